"""What the installed llama-server says that a model would take."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from ..core.gguf_header_files import Header
from ..core.llama_dry_run import DryRun, DryRunError, dry_run
from ..core.memory_model import RunConfig
from .exit_codes import Exit, ModelctlError
from .fit_devices import Devices
from .host import Host

_MODEL = "/model.gguf"  # only stands for the model; nothing lies there


def server_of(host: Host, arguments: Namespace) -> Path | None:
    """The llama-server to ask; None where there is none, or where none is wished."""
    if arguments.no_engine:
        return None
    if arguments.server is not None:
        server: Path = arguments.server
        if not os.access(server, os.X_OK):
            raise ModelctlError(f"--server {server} is no program", Exit.NOT_FOUND)
        return server
    return host.server if os.access(host.server, os.X_OK) else None


def ask(
    server: Path,
    headers: tuple[Header, ...],
    devices: Devices,
    config: RunConfig,
) -> DryRun:
    """Ask it. Raises ModelctlError where it refuses the model, DryRunError where it is silent."""
    environment = {
        "LLAMA_ARG_MODEL": _MODEL,
        "LLAMA_ARG_CTX_SIZE": str(config.slots * config.context_tokens),
        "LLAMA_ARG_N_PARALLEL": str(config.slots),
        "LLAMA_ARG_CACHE_TYPE_K": config.cache_type_k,
        "LLAMA_ARG_CACHE_TYPE_V": config.cache_type_v,
        "LLAMA_ARG_FIT": "off",
    }
    if devices.gpus:
        layers = "all" if config.gpu_layers is None else str(config.gpu_layers)
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid or "" for gpu in devices.gpus),
            "LLAMA_ARG_DEVICE": ",".join(gpu.name for gpu in devices.gpus),
            "LLAMA_ARG_N_GPU_LAYERS": layers,
        }
        if config.cpu_moe_layers:
            environment["LLAMA_ARG_N_CPU_MOE"] = str(config.cpu_moe_layers)
    else:
        environment["LLAMA_ARG_DEVICE"] = "none"
    answer = dry_run(server, environment, headers={_MODEL: headers})
    if not answer.accepted:
        words = "; ".join(answer.last_words) or "it does not say why"
        if "invalid device" in words:
            # Not a word about the model: it was built without CUDA, or sees no GPU.
            raise DryRunError(f"it knows no {', '.join(gpu.name for gpu in devices.gpus)}: {words}")
        raise ModelctlError(f"{server} would not load this: {words}")
    names = [row.device for row in answer.rows]
    if names != [device.name for device in devices.all]:
        raise DryRunError(f"it told of {', '.join(names)}")
    return answer
