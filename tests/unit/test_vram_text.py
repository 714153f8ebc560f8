"""The memory plan as a person reads it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.vram_plan import profiles, vram_plan
from ansible_collections.kloros.llm.plugins.module_utils.vram_text import (
    WIDTH,
    gpu_lines,
    instance_lines,
    memory_text,
    problem_lines,
    profiles_text,
    reason_lines,
)

from tests.unit.test_vram_plan import (
    FIRST,
    HOST_MEMORY,
    SECOND,
    TEN_LAYERS,
    gpu,
    instance,
    kloros_gpus,
    kloros_instances,
    kloros_models,
    stand_in_memory,
    wish,
)

Data = dict[str, Any]


@pytest.fixture(scope="module")
def refused() -> Data:
    return vram_plan(kloros_gpus(), kloros_instances(), kloros_models(), HOST_MEMORY)


@pytest.fixture(scope="module")
def split() -> Data:
    (live, _) = kloros_instances()
    return vram_plan(
        kloros_gpus(), [live | {"gpus": [FIRST, SECOND]}], kloros_models(), HOST_MEMORY
    )


def small_plan(**more: Any) -> Data:
    options: Data = {"memory": stand_in_memory, "cuda_context_mib": 100, "default_reserve_mib": 0}
    cards = more.pop("gpus", [gpu(0, 4000)])
    wishes = more.pop("wishes", [wish()])
    host = {"memory_mib": 4000, "reserve_mib": 1000}
    return vram_plan(cards, wishes, {"m": TEN_LAYERS}, host, **{**options, **more})


def bar(line: str) -> str:
    return line.split("|")[1]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_fit_a_terminal(refused: Data, split: Data, ascii_only: bool) -> None:
    for plan in (refused, split, small_plan(wishes=[wish("a" * 41)])):
        lines = [
            *memory_text(plan, ascii_only=ascii_only),
            *profiles_text([("all", plan)], ascii_only=ascii_only),
        ]
        assert max(map(len, lines)) <= WIDTH
        assert all(line == line.rstrip() for line in lines)
        assert all(line.isascii() for line in lines) is ascii_only


def test_bars_of_a_gpu_follow_each_other() -> None:
    card = gpu(0, 4000, memory_free_mib=3000, processes=[{"pid": 7, "name": "x", "used_mib": 900}])
    lines = gpu_lines(small_plan(gpus=[card]), ascii_only=True)
    heading, others, ours, free, *_ = lines
    assert heading == "GPU 0  Card 0, 4000 MiB"
    assert others.split()[:3] == ["others", "1024", "MiB"]
    assert ours.split()[:3] == ["a", "1461", "MiB"]
    assert free.split()[:3] == ["free", "1515", "MiB"]
    assert bar(others) == "=" * 10 + " " * 30
    assert bar(ours) == " " * 10 + "#" * 15 + " " * 15
    assert bar(free) == " " * 25 + "." * 15
    assert any("Others use 1000 MiB" in line for line in lines)


def test_small_part_is_seen_and_a_reserve_is_called_so() -> None:
    lines = gpu_lines(small_plan(default_reserve_mib=30), ascii_only=True)
    assert lines[1].split()[:2] == ["reserve", "30"]
    assert bar(lines[1]) == "=" + " " * 39
    host = lines[lines.index("Host  main memory, 4000 MiB") :]
    assert [line.split()[0] for line in host[1:4]] == ["reserve", "a", "free"]
    assert any("prompt caches may grow to 8192 MiB" in " ".join(host) for _ in host)


def test_full_gpu_has_its_last_column() -> None:
    lines = gpu_lines(small_plan(gpus=[gpu(0, 1461)]), ascii_only=True)
    assert bar(lines[1]) == "#" * 40
    assert (lines[2].split()[:2], bar(lines[2])) == (["free", "0"], " " * 40)


def test_gpu_that_shares_the_hosts_memory() -> None:
    board = gpu(0, 0, memory_total_mib=None, memory_free_mib=None)
    lines = gpu_lines(small_plan(gpus=[board]))
    assert lines[0] == "GPU 0  Card 0"
    assert "no memory of its own" in lines[1]


def test_instances_and_their_parts() -> None:
    lines = instance_lines(small_plan())
    assert lines[0].split() == [
        "instance", "context", "slots", "KV", "layers", "split", "experts", "on", "CPU",
    ]  # fmt: skip
    assert lines[2].split() == ["a", "32768", "1", "f16", "11/11", "-", "-"]
    assert lines[6].split() == ["a", "CUDA0", "1030", "320", "11", "100", "-", "-", "1461"]
    assert lines[7].split() == ["a", "Host", "7", "-", "11", "-", "-", "-", "18"]
    assert instance_lines(small_plan(wishes=[])) == ["no instance is planned"]


def test_split_is_shown(split: Data) -> None:
    planned = split["instances"]["live"]["tensor_split"]
    assert f"  65/65   {planned[0]}:{planned[1]}  -" in instance_lines(split)[2]


def test_reasons_and_problems(refused: Data, split: Data) -> None:
    assert reason_lines(split)[0] == "live:"
    assert "All 65 layers (the output is one) are on GPU 0 and GPU 1." in reason_lines(split)[1]
    lines = problem_lines(refused)
    assert lines[0] == "live does not fit:"
    assert [line[:5] for line in lines if line[:5].strip() in ("1.", "2.", "3.")] == [
        "  1. ", "  2. ", "  3. ", "  1. ", "  2. ", "  3. ",
    ]  # fmt: skip
    assert problem_lines(split) == []
    hopeless = small_plan(gpus=[gpu(0, 100)], wishes=[wish(context={"want": 256})])
    none = {**hopeless["problems"][0], "ways_out": []}
    assert problem_lines({"problems": [none]})[-1] == "  nothing that was tried would fit"


def test_profiles_side_by_side() -> None:
    cards = [gpu(0, 2000), gpu(1, 1150)]
    wishes = [instance("a", "m", [FIRST]), instance("b", "m", [], offload="full")]
    plans = [(label, small_plan(gpus=there, wishes=wishes)) for label, there in profiles(cards)]
    lines = profiles_text(plans)
    assert lines[0] == "all GPUs: GPU 0 (Card 0), GPU 1 (Card 1)"
    assert lines[1] == "  a                  1 x 32768 tokens, f16, 11 of 11 layers on the GPUs"
    assert lines[2] == "  b                  1 x 32768 tokens, f16, on the CPU"
    gone = lines.index("without GPU 0 (Card 0)")
    assert any("does not fit" in line for line in lines[gone : gone + 3])
    assert "CPU only" in lines
    assert profiles_text([("CPU only", small_plan(gpus=[], wishes=[]))]) == [
        "CPU only",
        "  no instances",
    ]
