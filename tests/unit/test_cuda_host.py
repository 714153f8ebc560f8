"""What a host has to build with CUDA, found in folders that look like a host's."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.kloros.llm.plugins.module_utils import cuda_host


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n", encoding="utf-8")
    path.chmod(0o755)


def make_toolkit(root: Path, header: str = "", libraries: str = "lib64") -> None:
    program(root / "bin/nvcc", "Cuda compilation tools, release 12.8, V12.8.93")
    (root / "include/crt").mkdir(parents=True)
    (root / "include/crt/host_config.h").write_text("#if __GNUC__ > 14\n", encoding="utf-8")
    (root / "include/crt/math_functions.h").write_text(header, encoding="utf-8")
    (root / "include/cublas_v2.h").touch()
    (root / libraries).mkdir(parents=True)
    (root / libraries / "libcublas.so").touch()


def test_toolkit_is_described(tmp_path: Path) -> None:
    make_toolkit(tmp_path)
    assert cuda_host.toolkit_at(tmp_path) == {
        "root": str(tmp_path),
        "nvcc": f"{tmp_path}/bin/nvcc",
        "version": "12.8",
        "gcc_limit": 14,
        "cublas": True,
        "fits_glibc": True,
    }
    assert cuda_host.toolkits([str(tmp_path)])[0]["root"] == str(tmp_path)


def test_toolkit_without_libraries_to_build_with(tmp_path: Path) -> None:
    make_toolkit(tmp_path, libraries="targets/x86_64-linux/lib")
    found = cuda_host.toolkit_at(tmp_path)
    assert found is not None
    assert found["cublas"]
    (tmp_path / "targets/x86_64-linux/lib/libcublas.so").unlink()
    found = cuda_host.toolkit_at(tmp_path)
    assert found is not None
    assert not found["cublas"]


def test_what_is_no_toolkit(tmp_path: Path) -> None:
    assert cuda_host.toolkit_at(tmp_path) is None
    make_toolkit(tmp_path)
    # The obvious mistake: the path of nvcc instead of the toolkit's.
    assert cuda_host.toolkit_at(tmp_path / "bin/nvcc") is None
    (tmp_path / "bin/nvcc").chmod(0o644)
    assert cuda_host.toolkit_at(tmp_path) is None
    (tmp_path / "bin/nvcc").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "bin/nvcc").chmod(0o755)
    assert cuda_host.toolkit_at(tmp_path) is None


def test_compilers_are_named_as_they_stay(tmp_path: Path) -> None:
    program(tmp_path / "g++", "14")
    program(tmp_path / "g++-14", "14")
    program(tmp_path / "g++-13", "13.3.0")
    program(tmp_path / "g++-broken", "x")
    assert cuda_host.compilers([str(tmp_path)]) == {
        "13": f"{tmp_path}/g++-13",
        "14": f"{tmp_path}/g++-14",
    }
    (tmp_path / "g++-14").unlink()
    assert cuda_host.compilers([str(tmp_path)])["14"] == f"{tmp_path}/g++"
