"""A planned instance as the variables of its env file.

Read from llama.cpp v0.5.0-dev's `common/arg.cpp` and tried on a CPU build of it. Traps that the
rendering avoids:

* `-np N` divides `-c` by N: N slots of C tokens are `-np N -c N*C`.
* An empty LLAMA_ARG_* variable ends the start with exit status 1.
* Of several aliases the *alphabetically first* becomes the model's id (they are kept in a
  std::set), and a server with one model answers to every name: only the client's name is set.
* A plain draft model is loaded but not used unless the type of speculation is named too.
* A server flag has no `--flag=value` form, and an option given twice keeps mostly its last value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from .systemd_env import join_args

EXTRA_ARGS = "LLAMA_EXTRA_ARGS"
"""Variable of an instance that its unit expands as `$LLAMA_EXTRA_ARGS`: options without one."""


class LoraAdapter(TypedDict):
    """An adapter's file on the host and the weight it is applied with (1.0: as trained)."""

    path: str
    scale: float


class PlannedInstance(TypedDict):
    """One llama-server as planned: nothing here is a wish any more.

    `aliases` starts with the name that clients use. `gpus` holds UUIDs; empty is the CPU.
    `context_tokens` is for one slot. `gpu_layers` ("all" or a number), `cpu_moe_layers` (layers
    whose experts stay on the CPU), `split_mode`, `main_gpu` (a position in `gpus`) and
    `tensor_split` (a share a GPU; empty: by the memory that is free when the model is loaded)
    count only with GPUs. `api_key` says whether there is one; the unit passes its file, and the key
    itself never comes here. `extra` maps long option names without dashes to values.
    """

    name: str
    model_path: str
    aliases: list[str]
    host: str
    port: int
    gpus: list[str]
    context_tokens: int
    slots: int
    kv_cache: str
    gpu_layers: str
    cpu_moe_layers: int
    split_mode: str | None
    main_gpu: int | None
    tensor_split: list[float]
    mmproj_path: str | None
    draft_model_path: str | None
    lora: list[LoraAdapter]
    embeddings: bool
    rerank: bool
    metrics: bool
    api_key: bool
    threads: int | None
    extra: dict[str, object]


def cuda_devices(count: int) -> list[str]:
    """The names that llama-server gives to that many GPUs.

    CUDA counts the visible devices from 0, whatever their indices on the host are.
    """
    return [f"CUDA{index}" for index in range(count)]


def instance_environment(instance: PlannedInstance) -> dict[str, str]:
    """The variables of one instance, complete and in a fixed order; none of them is empty.

    Raises ValueError for what llama-server would misread: an empty value, a comma in the name
    that clients use, a colon in the path of an adapter with a scale.
    """
    gpus = instance["gpus"]
    name = instance["aliases"][0]
    if "," in name:
        raise ValueError(f"{name!r} cannot be a model's name: llama-server splits it at the comma")
    variables = {
        "LLAMA_ARG_MODEL": instance["model_path"],
        "LLAMA_ARG_ALIAS": name,
        "LLAMA_ARG_HOST": instance["host"],
        "LLAMA_ARG_PORT": str(instance["port"]),
        "LLAMA_ARG_CTX_SIZE": str(instance["slots"] * instance["context_tokens"]),
        "LLAMA_ARG_N_PARALLEL": str(instance["slots"]),
        "LLAMA_ARG_CACHE_TYPE_K": instance["kv_cache"],
        "LLAMA_ARG_CACHE_TYPE_V": instance["kv_cache"],
    }
    variables |= _gpu_variables(instance) if gpus else {"LLAMA_ARG_DEVICE": "none"}
    # The plan has made it fit: loading something smaller instead would hide an error.
    variables["LLAMA_ARG_FIT"] = "off"
    variables |= _context_variables(instance)
    if instance["threads"] is not None:
        variables["LLAMA_ARG_THREADS"] = str(instance["threads"])
    if instance["mmproj_path"] is not None:
        variables["LLAMA_ARG_MMPROJ"] = instance["mmproj_path"]
        if not gpus:
            # The projector does not heed the device, and takes the first GPU that it sees.
            variables["LLAMA_ARG_MMPROJ_OFFLOAD"] = "0"
    if instance["draft_model_path"] is not None:
        variables["LLAMA_ARG_SPEC_DRAFT_MODEL"] = instance["draft_model_path"]
        # The flag adds to the variable instead of overriding it.
        if "spec-type" not in instance["extra"]:
            variables["LLAMA_ARG_SPEC_TYPE"] = "draft-simple"
    for wished, variable in (
        (instance["embeddings"], "LLAMA_ARG_EMBEDDINGS"),
        (instance["rerank"], "LLAMA_ARG_RERANKING"),
        (instance["metrics"], "LLAMA_ARG_ENDPOINT_METRICS"),
    ):
        if wished:
            variables[variable] = "1"
    arguments = [*lora_arguments(instance["lora"]), *_extra_arguments(instance["extra"])]
    if arguments:
        variables[EXTRA_ARGS] = join_args(arguments)
    for variable, value in variables.items():
        if not value:
            raise ValueError(f"{variable} of instance {instance['name']} would be empty")
    return variables


def _context_variables(instance: PlannedInstance) -> dict[str, str]:
    """What goes on where a slot's context is full, unless `extra` says otherwise."""
    extra = instance["extra"]
    if instance["embeddings"] or instance["rerank"]:
        # A text is computed at once: one that is longer than a micro-batch is refused.
        size = str(instance["context_tokens"])
        wished = {"LLAMA_ARG_BATCH": "batch-size", "LLAMA_ARG_UBATCH": "ubatch-size"}
        return {variable: size for variable, option in wished.items() if option not in extra}
    if {"context-shift", "no-context-shift"} & extra.keys():
        return {}
    # As Ollama runs it: the answer goes on, and its beginning is forgotten. The server turns it
    # off by itself for what cannot be shifted, such as sliding windows and images.
    return {"LLAMA_ARG_CONTEXT_SHIFT": "1"}


def _gpu_variables(instance: PlannedInstance) -> dict[str, str]:
    """What says on which GPUs an instance runs, and how its model lies on them."""
    gpus = instance["gpus"]
    variables = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "LLAMA_ARG_DEVICE": ",".join(cuda_devices(len(gpus))),
        "LLAMA_ARG_N_GPU_LAYERS": instance["gpu_layers"],
        # The proof reads from the log what lies on which device; only this level tells.
        "LLAMA_ARG_LOG_JSONL": "1",
        "LLAMA_ARG_LOG_VERBOSITY": "4",
    }
    if instance["cpu_moe_layers"]:
        variables["LLAMA_ARG_N_CPU_MOE"] = str(instance["cpu_moe_layers"])
    if instance["split_mode"] is not None:
        variables["LLAMA_ARG_SPLIT_MODE"] = instance["split_mode"]
    if instance["main_gpu"] is not None:
        variables["LLAMA_ARG_MAIN_GPU"] = str(instance["main_gpu"])
    if instance["tensor_split"]:
        shares = ",".join(f"{share:g}" for share in instance["tensor_split"])
        variables["LLAMA_ARG_TENSOR_SPLIT"] = shares
    return variables


def lora_arguments(adapters: Sequence[LoraAdapter]) -> list[str]:
    """One flag for all adapters, so that their order (their id in the server) is the wish's."""
    if not adapters:
        return []
    if all(adapter["scale"] == 1 for adapter in adapters):
        return ["--lora", ",".join(_csv_field(adapter["path"]) for adapter in adapters)]
    fields = []
    for adapter in adapters:
        if ":" in adapter["path"]:
            raise ValueError(
                f"the path {adapter['path']!r} of a LoRA adapter with a scale holds a colon, "
                "which llama-server takes for the start of the scale"
            )
        fields.append(_csv_field(f"{adapter['path']}:{float(adapter['scale'])}"))
    return ["--lora-scaled", ",".join(fields)]


def _csv_field(text: str) -> str:
    """A field of the comma-separated list that `parse_csv_row()` in arg.cpp reads."""
    if "," in text or '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def _extra_arguments(extra: Mapping[str, object]) -> list[str]:
    arguments: list[str] = []
    for name, value in sorted(extra.items(), key=lambda item: item[0]):
        if value is True:
            arguments.append(f"--{name}")
        elif value is False:
            arguments.append(f"--no-{name}")
        else:
            for item in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}", str(item)]
    return arguments
