"""Where a CUDA toolkit comes from."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.cuda_plan import (
    named_architectures,
    plan_cuda,
)

Data = dict[str, Any]


@pytest.fixture
def wish(wishes: Data) -> Data:
    llama_cpp: Data = wishes["llama_cpp"]
    return llama_cpp


def plan(wish: Data, host: Data) -> tuple[Any, list[str]]:
    """The plan and its errors in words."""
    chosen, findings = plan_cuda(wish, host["gpus"], host["cuda"], host["machine"])
    return chosen, [f"{item['key']}: {item['found']}" for item in findings]


def toolkit(version: str, root: str = "/usr/local/cuda", **changes: Any) -> Data:
    found = {"root": root, "nvcc": f"{root}/bin/nvcc", "version": version}
    return found | {"gcc_limit": 13, "cublas": True, "fits_glibc": True} | changes


def gpu(index: int, name: str, capability: str) -> Data:
    return {"index": index, "name": name, "compute_capability": capability}


def test_kloros_takes_debians_own_toolkit(wish: Data, gpu_host: Data) -> None:
    chosen, problems = plan(wish, gpu_host)
    assert problems == []
    assert (chosen["version"], chosen["source"]) == ("12.4", "distribution")
    assert chosen["architectures"] == ["61-real", "86-real"]
    # Debian 13's own g++ 14 is too new for CUDA 12.4.
    assert chosen["host_compiler"] == {"version": "13", "path": "/usr/bin/g++-13"}
    assert chosen["packages"] == ["nvidia-cuda-toolkit", "g++-13"]
    assert chosen["components"] == []
    assert any("no toolkit" in reason for reason in chosen["reasons"])


def test_component_is_enabled_only_where_that_is_allowed(wish: Data, gpu_host: Data) -> None:
    gpu_host["cuda"]["packaged"] = None
    chosen, _ = plan(wish, gpu_host)
    assert chosen["source"] == "redist"
    assert any("llama_cpp_cuda_nonfree" in reason for reason in chosen["reasons"])
    wish["cuda_nonfree"] = True
    chosen, _ = plan(wish, gpu_host)
    assert chosen["source"] == "distribution"
    assert chosen["components"] == ["contrib", "non-free"]


def test_no_second_driver_library_is_installed(wish: Data, gpu_host: Data) -> None:
    gpu_host["cuda"]["driver_library"] = {"path": "/usr/lib/libcuda.so.1", "package": None}
    chosen, _ = plan(wish, gpu_host)
    assert chosen["source"] == "redist"
    assert chosen["root"] == "/var/cache/kloros-llm/cuda/12.4-redist"
    assert (chosen["patch"], chosen["nvcc"]) == ("12.4.1", f"{chosen['root']}/bin/nvcc")
    assert any("second driver library" in reason for reason in chosen["reasons"])


def test_toolkit_of_the_host_is_taken_first(wish: Data, gpu_host: Data) -> None:
    gpu_host["cuda"] |= {
        "toolkits": [toolkit("13.0", "/opt/cuda"), toolkit("12.6")],
        "compilers": {"14": "/usr/bin/g++", "13": "/usr/bin/g++-13"},
    }
    chosen, _ = plan(wish, gpu_host)
    assert (chosen["version"], chosen["source"], chosen["root"]) == (
        "12.6",
        "system",
        "/usr/local/cuda",
    )
    assert chosen["packages"] == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (toolkit("13.0"), "CUDA 13.0, which does not serve"),
        (toolkit("12.4", cublas=False), "without cuBLAS"),
        (toolkit("12.4", fits_glibc=False), "do not compile with the host's C library"),
        (toolkit("12.4", gcc_limit=11), "g++ 11 at most"),
    ],
)
def test_toolkit_of_the_host_is_checked(wish: Data, gpu_host: Data, found: Data, said: str) -> None:
    gpu_host["cuda"]["toolkits"] = [found]
    wish["cuda_toolkit"] = "system"
    chosen, problems = plan(wish, gpu_host)
    assert chosen is None
    assert said in problems[0]


def test_newest_gpus_take_a_toolkit_of_their_own(wish: Data, gpu_host: Data) -> None:
    gpu_host["gpus"] = gpu_host["gpus"] | {
        "driver": {"version": "580.65.06", "cuda_version": "13.0"},
        "gpus": [gpu(0, "RTX 5090", "12.0")],
    }
    chosen, _ = plan(wish, gpu_host)
    assert (chosen["version"], chosen["source"]) == ("13.0", "pypi")
    assert "python3-venv" in chosen["packages"]
    wish["cuda_toolkit"] = "redist"
    assert plan(wish, gpu_host)[0]["root"].endswith("/cuda/13.0-redist")


def test_old_and_new_gpus_together_take_nvidias_archives(wish: Data, gpu_host: Data) -> None:
    gpu_host["gpus"]["driver"] = {"version": "570.86.10", "cuda_version": "12.8"}
    gpu_host["gpus"]["gpus"].append(gpu(2, "RTX 5080", "12.0"))
    chosen, _ = plan(wish, gpu_host)
    assert (chosen["version"], chosen["source"]) == ("12.8", "redist")
    # Its limit is g++ 14, which Debian 13 has.
    assert chosen["host_compiler"]["version"] == "14"
    assert chosen["architectures"] == ["61-real", "86-real", "120-real"]


def test_gpus_that_exclude_each_other(wish: Data, gpu_host: Data) -> None:
    gpu_host["gpus"]["gpus"] = [gpu(0, "Tesla K80", "3.7"), gpu(1, "RTX 5080", "12.0")]
    chosen, findings = plan_cuda(wish, gpu_host["gpus"], gpu_host["cuda"], gpu_host["machine"])
    assert chosen is None
    assert "exclude each other" in findings[0]["found"]
    assert "GPU 1 with CUDA 12.8, by llama_cpp_cuda_architectures: 120-real" in findings[0]["cure"]
    assert "; or GPU 0 with CUDA 11.8" in findings[0]["cure"]


def test_builder_without_a_gpu(wish: Data, host: Data) -> None:
    assert plan(wish, host)[1] == ["GPUs: there is no nvidia-smi"]
    wish["cuda_architectures"] = "61-real;86-real"
    chosen, problems = plan(wish, host)
    assert problems == []
    assert chosen["architectures"] == ["61-real", "86-real"]
    assert chosen["version"].startswith("12.")
    wish["cuda_version"] = "12.4"
    assert plan(wish, host)[0]["version"] == "12.4"
    wish["cuda_version"] = "13.0"
    assert "CUDA 13.0 does not serve" in plan(wish, host)[1][0]


def test_toolkit_at_a_path_is_taken_at_its_word(wish: Data, host: Data) -> None:
    wish |= {"cuda_architectures": "150-real", "cuda_toolkit": "/srv/cuda"}
    assert "no toolkit with an nvcc that runs is in that folder" in plan(wish, host)[1][0]
    host["cuda"]["toolkits"] = [toolkit("14.0", "/srv/cuda", gcc_limit=16)]
    chosen, problems = plan(wish, host)
    assert problems == []
    assert (chosen["version"], chosen["root"]) == ("14.0", "/srv/cuda")


def test_path_without_named_architectures_must_serve(wish: Data, gpu_host: Data) -> None:
    wish["cuda_toolkit"] = "/srv/cuda"
    gpu_host["cuda"]["toolkits"] = [toolkit("13.0", "/srv/cuda")]
    assert "which does not serve" in plan(wish, gpu_host)[1][0]


def test_path_is_not_taken_at_its_word_where_the_table_knows_better(
    wish: Data, gpu_host: Data
) -> None:
    wish |= {"cuda_architectures": "61-real", "cuda_toolkit": "/srv/cuda"}
    gpu_host["cuda"]["toolkits"] = [toolkit("13.0", "/srv/cuda")]
    assert "which does not serve" in plan(wish, gpu_host)[1][0]
    gpu_host["cuda"]["toolkits"] = [toolkit("12.4", "/srv/cuda")]
    assert plan(wish, gpu_host)[1] == []
    wish["cuda_version"] = "12.8"
    assert "which does not serve" in plan(wish, gpu_host)[1][0]


def test_distributions_toolkit_does_not_replace_an_older_driver(wish: Data, gpu_host: Data) -> None:
    gpu_host["gpus"]["driver"] = {"version": "535.274.02", "cuda_version": "12.2"}
    chosen, _ = plan(wish, gpu_host)
    assert (chosen["source"], chosen["version"]) == ("redist", "12.2")
    assert any("newer driver library" in reason for reason in chosen["reasons"])


def test_unknown_system_has_the_compilers_that_are_there(wish: Data, gpu_host: Data) -> None:
    gpu_host["machine"]["os"] = {"id": "mint", "version": "23", "name": "Mint 23"}
    gpu_host["cuda"] |= {"packaged": None, "compilers": {"15": "/usr/bin/g++"}}
    assert "g++ 13 at most, the host can have: 15" in plan(wish, gpu_host)[1][0]
    gpu_host["cuda"]["compilers"]["12"] = "/usr/bin/g++-12"
    chosen, _ = plan(wish, gpu_host)
    assert chosen["host_compiler"] == {"version": "12", "path": "/usr/bin/g++-12"}


@pytest.mark.parametrize("text", ["native", "all", "86;x", "8.6"])
def test_what_is_no_architecture(text: str) -> None:
    with pytest.raises(ValueError, match="is no CUDA architecture"):
        named_architectures(text)
