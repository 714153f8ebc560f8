"""Where a model would run: the GPUs of the host, imagined ones, or the CPU."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..core.host_facts import memory_mib
from ..core.memory_model import HOST
from ..core.nvidia_smi import Gpu, gpu_info
from ..core.vram_need import CUDA_CONTEXT_MIB
from .exit_codes import Exit, ModelctlError

_MEMINFO: Final = Path("/proc/meminfo")


@dataclass(frozen=True)
class Device:
    """A GPU as llama-server counts them, or main memory ("Host").

    `uuid` is None for the host and for an imagined GPU. `memory_mib` and `free_mib` are None where
    nobody tells. `overhead_mib` is taken beside what llama.cpp itself counts.
    """

    name: str
    title: str
    uuid: str | None
    memory_mib: int | None
    free_mib: int | None
    overhead_mib: int = 0


@dataclass(frozen=True)
class Devices:
    """The GPUs that a model would be on (none: the CPU), and the host's memory."""

    gpus: tuple[Device, ...]
    host: Device

    @property
    def all(self) -> tuple[Device, ...]:
        return (*self.gpus, self.host)

    @property
    def imagined(self) -> bool:
        """Whether one of the GPUs is not there."""
        return any(gpu.uuid is None for gpu in self.gpus)


def choose_devices(arguments: Namespace) -> Devices:
    """What the command line asks for; else all GPUs of the host. Raises ModelctlError."""
    host = Device(HOST, "main memory", None, memory_mib(), _free_memory_mib())
    if arguments.cpu:
        return Devices((), host)
    if arguments.gpu:
        imagined = [
            Device(f"CUDA{number}", "imagined", None, mib, mib, CUDA_CONTEXT_MIB)
            for number, mib in enumerate(arguments.gpu)
        ]
        return Devices(tuple(imagined), host)
    found = gpu_info()
    by_name = {name: gpu for gpu in found["gpus"] for name in (str(gpu["index"]), gpu["uuid"])}
    chosen = list(found["gpus"])
    if arguments.gpus is not None:
        wanted = [part.strip() for part in arguments.gpus.split(",") if part.strip()]
        if not wanted:
            raise ModelctlError("--gpus names none; --cpu is for the CPU", Exit.USAGE)
        chosen = [_named(name, by_name, found["detail"]) for name in dict.fromkeys(wanted)]
    return Devices(tuple(_device(number, gpu) for number, gpu in enumerate(chosen)), host)


def _named(name: str, known: Mapping[str, Gpu], detail: str) -> Gpu:
    if name not in known:
        raise ModelctlError(
            f"--gpus {name}: this host has no such GPU ({detail}); --gpu MIB imagines one",
            Exit.NOT_FOUND,
        )
    return known[name]


def _device(number: int, gpu: Gpu) -> Device:
    return Device(
        f"CUDA{number}",
        f"GPU {gpu['index']}: {gpu['name']}",
        gpu["uuid"],
        gpu["memory_total_mib"],
        gpu["memory_free_mib"],
        CUDA_CONTEXT_MIB,
    )


def _free_memory_mib() -> int | None:
    """What new programs can have without swapping, by the kernel's own estimate."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    try:
        available_kib = int(values["MemAvailable"].split()[0])
    except (KeyError, IndexError, ValueError):
        return None
    return min(available_kib // 1024, memory_mib())
