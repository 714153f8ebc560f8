"""Whether a release's machine code runs on a GPU."""

from __future__ import annotations

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.cuda_code import package_problems

D550 = {"version": "550.163.01", "cuda_version": "12.4"}


def problems(architecture: str, capability: str, toolkit: str = "12.4") -> list[str]:
    gpu = {"index": 0, "name": "card", "compute_capability": capability}
    cuda = {"architectures": architecture.split(";"), "toolkit": toolkit}
    return package_problems(cuda, [gpu], D550)


@pytest.mark.parametrize(
    ("architecture", "capability"),
    [
        ("86-real", "8.6"),
        ("86-real", "8.9"),  # the same major, a newer minor
        ("61-real;86-real", "6.1"),
        ("120-real", "12.0"),
        ("75-virtual", "8.6"),  # PTX that this driver's own CUDA made
        ("75", "7.5"),
        ("75", "9.0"),
    ],
)
def test_code_that_runs(architecture: str, capability: str) -> None:
    assert problems(architecture, capability) == []


@pytest.mark.parametrize(
    ("architecture", "capability", "toolkit"),
    [
        ("86-real", "6.1", "12.4"),
        ("86-real", "8.0", "12.4"),
        ("86-real", "9.0", "12.4"),
        ("120-real", "12.1", "12.8"),  # llama.cpp makes code for the one chip
        ("75-virtual", "8.6", "12.8"),  # PTX that is newer than the driver
        ("75-virtual", "7.5", "12.8"),
        ("75", "9.0", "12.8"),
    ],
)
def test_code_that_does_not_run(architecture: str, capability: str, toolkit: str) -> None:
    (problem,) = problems(architecture, capability, toolkit)
    assert f"holds no code for GPU 0 (card, {capability})" in problem


def test_driver_of_an_older_major() -> None:
    (problem,) = problems("86-real", "8.6", "13.0")
    assert "driver 550.163.01 runs CUDA 12.4 and older major versions" in problem


def test_release_without_cuda_has_no_problem() -> None:
    assert package_problems(None, [{"index": 0}], D550) == []
