"""What a server's log and the driver prove of the GPUs that it uses.

The log lines are llama.cpp v0.5.0-dev's, as printed by the stand-in CUDA backend's trials.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gpu_proof import (
    memory_problems,
    offload_problems,
    read_offload,
)

ALL_ON_ONE = [
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:        CUDA0 model buffer size =    92.10 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =    45.00 MiB",
]
ON_TWO = [
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:        CUDA0 model buffer size =    46.50 MiB",
    "load_tensors:        CUDA1 model buffer size =    45.60 MiB",
]
# Answers 200, and every weight is in main memory.
ON_THE_CPU_ALL_THE_SAME = [
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
    "llama_kv_cache:      CUDA0 KV buffer size =    45.00 MiB",
]
SPLIT_BY_TENSOR = [
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:       Meta() model buffer size =    60.46 MiB",
]
SPLIT_BY_ROW = [
    "load_tensors: offloaded 31/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    28.69 MiB",
    "load_tensors:        CUDA0 model buffer size =     1.10 MiB",
    "load_tensors:   CUDA_Split model buffer size =    91.00 MiB",
]
TEN_LAYERS = [
    "load_tensors: offloaded 10/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
    "load_tensors:        CUDA0 model buffer size =    47.71 MiB",
]
NO_LAYER = [
    "load_tensors: offloaded 0/31 layers to GPU",
    "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
]
ONE, TWO = ["CUDA0"], ["CUDA0", "CUDA1"]


@pytest.mark.parametrize(
    ("log", "devices", "layers", "options"),
    [
        (ALL_ON_ONE, ONE, "all", {}),
        (ALL_ON_ONE, ONE, "31", {}),
        (ALL_ON_ONE, ONE, "99", {}),
        (ON_TWO, TWO, "all", {}),
        (SPLIT_BY_TENSOR, TWO, "all", {"split_mode": "tensor"}),
        (SPLIT_BY_ROW, TWO, "all", {"split_mode": "row"}),
        (ALL_ON_ONE, TWO, "all", {"split_mode": "none", "main_gpu": 0}),
        (TEN_LAYERS, ONE, "10", {}),
        (NO_LAYER, ONE, "0", {}),
        (TEN_LAYERS, TWO, "10", {}),  # they need not reach the second
    ],
)
def test_model_that_lies_where_it_was_planned(
    log: list[str], devices: list[str], layers: str, options: dict[str, Any]
) -> None:
    assert offload_problems(read_offload(log), devices, layers, **options) == []


@pytest.mark.parametrize(
    ("log", "devices", "layers", "options", "said"),
    [
        ([], ONE, "all", {}, "does not say"),
        (ON_THE_CPU_ALL_THE_SAME, ONE, "all", {}, "lie on: CPU_Mapped 92 MiB"),
        (ON_THE_CPU_ALL_THE_SAME, ONE, "10", {}, "No weights lie on CUDA0"),
        (TEN_LAYERS, ONE, "all", {}, "10 of 31 layers are on GPUs, all were planned"),
        (TEN_LAYERS, ONE, "11", {}, "10 of 31"),
        (NO_LAYER, ONE, "1", {}, "0 of 31"),
        (ALL_ON_ONE, TWO, "all", {}, "No weights lie on CUDA1"),
        (ALL_ON_ONE, TWO, "all", {"split_mode": "none", "main_gpu": 1}, "lie on CUDA1"),
    ],
)
def test_model_that_lies_elsewhere(
    log: list[str], devices: list[str], layers: str, options: dict[str, Any], said: str
) -> None:
    problems = offload_problems(read_offload(log), devices, layers, **options)
    assert said in " ".join(problems)


def test_a_small_part_of_the_weights_is_not_the_model() -> None:
    size = "print_info: file size   = 92.10 MiB (5.74 BPW) "
    log = [size, ALL_ON_ONE[0], "load_tensors: CUDA0 model buffer size = 20.00 MiB"]
    (problem,) = offload_problems(read_offload(log), ONE, "all")
    assert problem == "20 MiB of 92 MiB of weights are on the GPUs."
    gigabytes = size.replace("92.10 MiB", "18.48 GiB")
    assert read_offload([gigabytes])["file_mib"] == pytest.approx(18923.5, abs=0.1)
    assert offload_problems(read_offload([size, *ALL_ON_ONE]), ONE, "all") == []
    assert offload_problems(read_offload(log), ONE, "all", mostly_on_gpus=False) == []


def test_draft_model_does_not_count() -> None:
    own = "print_info: file size   = 92.10 MiB (5.74 BPW)"
    draft = [own.replace("92", "300"), "load_tensors: offloaded 1/9 layers to GPU"]
    log = [own, *ALL_ON_ONE, *draft, "load_tensors: CUDA0 model buffer size = 300.00 MiB"]
    assert read_offload(log)["file_mib"] == 92.1
    assert read_offload(log)["layers"] == (31, 31)
    assert read_offload(log)["buffers_mib"] == {"CPU_Mapped": 28.69, "CUDA0": 92.1}


GPU = {"index": 1, "uuid": "GPU-1", "name": "GTX 1080 Ti"}


def shown(*processes: dict[str, Any], free_mib: int = 1000) -> list[dict[str, Any]]:
    memory = {"memory_total_mib": 11264, "memory_free_mib": free_mib}
    return [GPU | memory | {"processes": list(processes)}]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (shown({"pid": 7, "used_mib": 300}), None),
        (shown({"pid": 7, "used_mib": 60}), "60 MiB are taken on GPU 1 (GTX 1080 Ti)"),
        (shown({"pid": 8, "used_mib": 300}), "no memory of process 7"),
        (shown(), None),
        (shown(free_mib=11250), "14 MiB are taken"),
        ([], "does not show GPU 1 (GTX 1080 Ti) any more"),
        # The driver does not tell what a process holds: the whole GPU has to do.
        (shown({"pid": 1, "used_mib": None}), None),
        (shown({"pid": 1, "used_mib": None}, free_mib=11250), "14 MiB are taken"),
    ],
)
def test_memory_that_the_driver_confirms(there: list[dict[str, Any]], said: str | None) -> None:
    problems = memory_problems(read_offload(ALL_ON_ONE), ONE, [GPU], there, 7)
    assert len(problems) == (said is not None)
    assert (said or "") in " ".join(problems)


def test_gpu_that_shares_the_hosts_memory() -> None:
    gpu = GPU | {"memory_total_mib": None, "memory_free_mib": None, "processes": []}
    assert memory_problems(read_offload(ALL_ON_ONE), ONE, [GPU], [gpu], 7) == []
