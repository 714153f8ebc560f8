"""Releases of llama.cpp: flags and names."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import release

VERSIONS = {"c++": "c++ 14.2.0", "cmake": "cmake version 3.31.6"}


@pytest.fixture
def wish(wishes: dict[str, Any]) -> dict[str, Any]:
    llama_cpp: dict[str, Any] = wishes["llama_cpp"]
    return llama_cpp | {
        "backend": "cpu",
        "cuda": None,
        "source_identity": {"url": "u", "version": "v"},
    }


def test_same_build_has_the_same_name(wish: dict[str, Any]) -> None:
    first = release.describe(wish, VERSIONS, "cpu")
    assert release.describe(dict(reversed(wish.items())), VERSIONS, "cpu") == first
    assert first["name"].startswith("v0.4.0-cpu-")


@pytest.mark.parametrize(
    ("change", "versions", "cpu"),
    [
        ({"cmake_flags": {"GGML_LTO": "ON"}}, VERSIONS, "cpu"),
        ({"source_identity": {"url": "u", "version": "w"}}, VERSIONS, "cpu"),
        ({"portable": True}, VERSIONS, "cpu"),
        ({}, VERSIONS | {"c++": "c++ 15"}, "cpu"),
        ({}, VERSIONS, "another"),
    ],
)
def test_every_difference_makes_another_release(
    wish: dict[str, Any], change: dict[str, Any], versions: dict[str, str | None], cpu: str
) -> None:
    name = release.describe(wish, VERSIONS, "cpu")["name"]
    assert release.describe(wish | change, versions, cpu)["name"] != name


def test_name_without_a_compiler_is_not_settled(wish: dict[str, Any]) -> None:
    name = release.describe(wish, {"c++": None, "cmake": None}, "cpu")["name"]
    assert name == "v0.4.0-cpu-unsettled"


def test_portable_build_does_not_depend_on_the_cpu(wish: dict[str, Any]) -> None:
    wish["portable"] = True
    one, two = (release.describe(wish, VERSIONS, cpu) for cpu in ("a", "b"))
    assert one["name"] == two["name"]
    assert one["flags"]["GGML_NATIVE"] == "OFF"


def test_users_flags_win(wish: dict[str, Any]) -> None:
    wish["cmake_flags"] = {"LLAMA_OPENSSL": "ON", "X": 1}
    flags = release.cmake_flags(wish)
    assert flags["LLAMA_OPENSSL"] == "ON"
    assert "-DX=1" in release.definitions(flags)


CUDA = {
    "version": "12.4",
    "source": "distribution",
    "root": "/usr",
    "nvcc": "/usr/bin/nvcc",
    "host_compiler": {"version": "13", "path": "/usr/bin/g++-13"},
    "architectures": ["61-real", "86-real"],
}


def test_cuda_flags(wish: dict[str, Any]) -> None:
    wish |= {"backend": "cuda", "cuda": CUDA}
    definitions = release.definitions(release.cmake_flags(wish), wish["cuda"])
    assert "-DGGML_CUDA=ON" in definitions
    assert "-DCMAKE_CUDA_ARCHITECTURES=61-real;86-real" in definitions
    assert "-DCMAKE_CUDA_COMPILER=/usr/bin/nvcc" in definitions
    assert "-DCMAKE_CUDA_HOST_COMPILER=/usr/bin/g++-13" in definitions
    assert not [item for item in definitions if "CUDAToolkit_ROOT" in item]


def test_where_the_toolkit_is_from_makes_no_other_release(wish: dict[str, Any]) -> None:
    wish |= {"backend": "cuda", "cuda": CUDA}
    name = release.describe(wish, VERSIONS, "cpu")["name"]
    elsewhere = CUDA | {"source": "redist", "root": "/c", "nvcc": "/c/bin/nvcc"}
    assert release.describe(wish | {"cuda": elsewhere}, VERSIONS, "cpu")["name"] == name
    for other in (
        {"version": "12.6"},
        {"architectures": ["86-real"]},
        {"host_compiler": {"version": "12", "path": "/usr/bin/g++-12"}},
    ):
        assert release.describe(wish | {"cuda": CUDA | other}, VERSIONS, "cpu")["name"] != name


@pytest.mark.parametrize(
    ("version", "number", "dev"),
    [("v0.4.0", "0", "OFF"), ("b10276", "10276", None), ("v0.5.0-dev", "0", None)],
)
def test_reported_version(wish: dict[str, Any], version: str, number: str, dev: str | None) -> None:
    flags = release.cmake_flags(wish | {"version": version})
    assert flags["LLAMA_BUILD_NUMBER"] == number
    assert flags["LLAMA_BUILD_COMMIT"] == version
    assert flags.get("LLAMA_BUILD_IS_DEV") == dev


def test_outdated_releases() -> None:
    there = ["e", "d", "c", "b", "a"]
    assert release.outdated(there, ["e", "b"], 0) == ["d", "c", "a"]
    assert release.outdated(there, ["e", "b"], 2) == ["a"]
    assert release.outdated([], ["e", ""], 0) == []
