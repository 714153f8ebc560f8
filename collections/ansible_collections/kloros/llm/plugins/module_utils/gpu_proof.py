"""Proof that a llama-server uses the GPUs that it was given, from its own log and the driver.

Tried with llama.cpp v0.5.0-dev: a server may answer 200 and say "offloaded 31/31 layers to GPU"
while all weights lie in main memory (a backend that does not support a tensor's operation leaves
it on the CPU, layer by layer). Where the weights are is told by the sizes of the buffers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

_OFFLOADED: Final = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER: Final = re.compile(r"load_tensors: +(\S+) model buffer size = +([0-9.]+) MiB")
_FILE_SIZE: Final = re.compile(r"print_info: file size += +([0-9.]+) ([MG])iB")
_HOST_BUFFER: Final = re.compile(r"CPU|CUDA_Host")
# Some models keep large tables for the CPU (Gemma 3n: well over half of the file), all keep their
# input embedding there. Less than this share on the GPUs is no whole model.
_LEAST_SHARE: Final = 0.25
# Split over GPUs by row or by tensor, the weights lie in buffers of another name than the GPUs'.
_SHARED_BUFFER: Final = re.compile(r"CUDA\d*_Split|Meta\(")

PLACING_OPTION: Final = "override-tensor"
"""The option in `extra` with which the user places weights himself."""


class Offload(TypedDict):
    """What a log says: layers on GPUs and in all, the file's size, and MiB a buffer.

    What the log does not say is None. A buffer of main memory (`CPU_Mapped`) is the part of the
    file that is mapped, not what is used of it.
    """

    layers: tuple[int, int] | None
    file_mib: float | None
    buffers_mib: dict[str, float]


def read_offload(messages: Iterable[str]) -> Offload:
    """Read the messages of a server's log, as JSON or not; a draft model, which comes later, does
    not count."""
    layers: tuple[int, int] | None = None
    file_mib: float | None = None
    buffers: dict[str, float] = {}
    for message in messages:
        if found := _OFFLOADED.search(message):
            if layers is not None:
                break
            layers = int(found.group(1)), int(found.group(2))
        elif found := _FILE_SIZE.search(message):
            if file_mib is not None:
                break
            file_mib = float(found.group(1)) * (1024 if found.group(2) == "G" else 1)
        elif found := _BUFFER.search(message):
            buffers[found.group(1)] = buffers.get(found.group(1), 0.0) + float(found.group(2))
    return {"layers": layers, "file_mib": file_mib, "buffers_mib": buffers}


def offload_problems(
    offload: Offload,
    devices: Sequence[str],
    gpu_layers: str,
    *,
    split_mode: str | None = None,
    main_gpu: int | None = None,
    mostly_on_gpus: bool = True,
) -> list[str]:
    """What speaks against the model lying where it was planned, in sentences.

    `devices` are llama-server's names (`CUDA0`, …); `gpu_layers` is `all` or a number.
    Without `mostly_on_gpus` any part of the weights on the GPUs will do: where experts stay in main
    memory or the user places tensors, and for encoders, whose tables of words stay there.
    """
    if offload["layers"] is None:
        return ["Its log does not say that any layer was offloaded to a GPU."]
    on_gpus, total = offload["layers"]
    problems = []
    wanted = total if gpu_layers == "all" else int(gpu_layers)
    if on_gpus < min(wanted, total):
        problems.append(f"{on_gpus} of {total} layers are on GPUs, {gpu_layers} were planned.")
    buffers = offload["buffers_mib"]
    shared = [name for name in buffers if _SHARED_BUFFER.match(name)]
    expected = devices
    if split_mode == "none":
        expected = [devices[main_gpu or 0]]
    missing = [name for name in expected if not buffers.get(name)]
    if gpu_layers != "all" and len(missing) < len(expected):
        missing = []  # a few layers need not reach every GPU
    if wanted and missing and not shared:
        there = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in buffers.items()) or "nothing"
        problems.append(f"No weights lie on {', '.join(missing)}; they lie on: {there}.")
    on_gpus_mib = sum(mib for name, mib in buffers.items() if not _HOST_BUFFER.match(name))
    least_mib = _LEAST_SHARE * (offload["file_mib"] or 0.0)
    if gpu_layers == "all" and mostly_on_gpus and not missing and on_gpus_mib < least_mib:
        problems.append(
            f"{on_gpus_mib:.0f} MiB of {offload['file_mib']:.0f} MiB of weights are on the GPUs."
        )
    return problems


def memory_problems(
    offload: Offload,
    devices: Sequence[str],
    gpus: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    pid: int,
) -> list[str]:
    """What the driver does not confirm: memory that process `pid` holds on each of its GPUs.

    `gpus` are the instance's, in the order of `devices`; `shown` is what `gpu_info` returned of
    all GPUs. Where the driver shows no processes, or not what they hold (in a container, on old
    drivers), the memory in use on the whole GPU has to do; a GPU that shares the host's memory has
    none of its own to tell of.
    """
    problems = []
    for device, gpu in zip(devices, gpus, strict=True):
        name = f"GPU {gpu['index']} ({gpu['name']})"
        there = [other for other in shown if other["uuid"] == gpu["uuid"]]
        if not there:
            problems.append(f"The driver does not show {name} any more.")
            continue
        weights_mib = offload["buffers_mib"].get(device, 0.0)
        if not weights_mib:
            continue  # with a split of another kind, or missing, which is said already
        processes = there[0]["processes"]
        total, free = there[0]["memory_total_mib"], there[0]["memory_free_mib"]
        held = [process["used_mib"] for process in processes if process["pid"] == pid]
        if held and None not in held:
            used = sum(held)
        elif total is None or free is None:
            continue
        elif all(process["used_mib"] is None for process in processes):
            used = total - free
        else:
            problems.append(f"The driver shows no memory of process {pid} on {name}.")
            continue
        if used < weights_mib:
            problems.append(
                f"{used} MiB are taken on {name}, its weights alone are {weights_mib:.0f} MiB."
            )
    return problems
