"""A release of llama.cpp: the flags it is built with and the name that tells it from all others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypedDict

UNSETTLED: Final = "unsettled"
TARGETS: Final = ("llama-server", "llama-bench", "llama-fit-params")

# No UI download, no tests; every library is found beside the binaries, so that a release can be
# moved, packed and installed elsewhere.
_BASE_FLAGS: Final[Mapping[str, str]] = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
_PORTABLE_FLAGS: Final[Mapping[str, str]] = {
    "GGML_NATIVE": "OFF",
    "GGML_BACKEND_DL": "ON",
    "GGML_CPU_ALL_VARIANTS": "ON",
}
MANAGED_FLAGS: Final[Mapping[str, str]] = {
    "BUILD_SHARED_LIBS": "a release is made of programs and libraries beside them",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "a release finds its libraries in itself",
    "CMAKE_CUDA_ARCHITECTURES": "name them in llama_cpp_cuda_architectures",
    "CMAKE_CUDA_COMPILER": "name the toolkit's folder in llama_cpp_cuda_toolkit",
    "CMAKE_CUDA_HOST_COMPILER": "the newest g++ that the toolkit accepts is taken",
    "CMAKE_INSTALL_RPATH": "a release finds its libraries in itself",
    "CUDAToolkit_ROOT": "name the toolkit's folder in llama_cpp_cuda_toolkit",
    "GGML_CUDA": "set llama_cpp_backend",
    "GGML_CUDA_NCCL": "it would be linked where a host happens to have it, and could not travel",
}
"""CMake cache entries that a user's own must not repeat, with what to do instead."""

_RELEASE_TAG: Final = re.compile(r"v\d+\.\d+\.\d+\Z")
_NIGHTLY_TAG: Final = re.compile(r"b(\d+)\Z")


class Release(TypedDict):
    """What is built.

    `name` is the folder (ending in `unsettled` without a compiler), `flags` the CMake cache
    entries, `identity` what they, the source and the toolchain are.
    """

    name: str
    version: str
    backend: str
    flags: dict[str, str]
    identity: dict[str, Any]


def cmake_flags(wish: Mapping[str, Any]) -> dict[str, str]:
    """CMake cache entries of a build, name to value.

    `wish` is the plan's `llama_cpp` part: version, backend (`cpu` or `cuda`), cuda (a CudaPlan),
    portable, cmake_flags (the user's own, which win).
    """
    flags = dict(_BASE_FLAGS)
    flags |= _PORTABLE_FLAGS if wish["portable"] else {"GGML_NATIVE": "ON"}
    if wish["backend"] == "cuda":
        flags["GGML_CUDA"] = "ON"
        flags["CMAKE_CUDA_ARCHITECTURES"] = ";".join(wish["cuda"]["architectures"])
        # It would be linked where a host happens to have it, and could not travel.
        flags["GGML_CUDA_NCCL"] = "OFF"
    # A source without git history would report version 0 of an unknown commit.
    version = wish["version"]
    nightly = _NIGHTLY_TAG.match(version)
    flags["LLAMA_BUILD_NUMBER"] = nightly.group(1) if nightly else "0"
    flags["LLAMA_BUILD_COMMIT"] = version
    if _RELEASE_TAG.match(version):
        flags["LLAMA_BUILD_IS_DEV"] = "OFF"
    return flags | {name: str(value) for name, value in wish["cmake_flags"].items()}


def definitions(flags: Mapping[str, str], cuda: Mapping[str, Any] | None = None) -> list[str]:
    """CMake cache entries as arguments, `-DNAME=value`, in a stable order.

    `cuda` is a CudaPlan: where its tools lie is told to CMake too, but makes no other release.
    """
    tools = {}
    if cuda:
        tools["CMAKE_CUDA_COMPILER"] = cuda["nvcc"]
        tools["CMAKE_CUDA_HOST_COMPILER"] = cuda["host_compiler"]["path"]
        # CMake finds a toolkit that is spread over /usr by itself, and not with this.
        if cuda["root"] != "/usr":
            tools["CUDAToolkit_ROOT"] = cuda["root"]
    return [f"-D{name}={value}" for name, value in sorted((tools | dict(flags)).items())]


def describe(
    wish: Mapping[str, Any], versions: Mapping[str, str | None], cpu_digest: str
) -> Release:
    """The release that a wish and a host's toolchain make.

    `versions` maps program names to what they print for `--version`; `cpu_digest` stands for
    the CPU's feature flags, which a build that is not portable depends on.
    """
    flags = cmake_flags(wish)
    identity = {
        "source": wish["source_identity"],
        "flags": flags,
        "targets": list(TARGETS),
        "toolchain": dict(versions),
        "cpu": None if wish["portable"] else cpu_digest,
    }
    if wish["backend"] == "cuda":
        # Not where the toolkit comes from: what another run finds on the host is the same one.
        identity["cuda"] = {
            "toolkit": wish["cuda"]["version"],
            "architectures": wish["cuda"]["architectures"],
            "host_compiler": wish["cuda"]["host_compiler"]["version"],
        }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    if versions["c++"] is None:  # only in check mode: the compiler would have been installed
        digest = UNSETTLED
    return {
        "name": f"{wish['version']}-{wish['backend']}-{digest}",
        "version": wish["version"],
        "backend": wish["backend"],
        "flags": flags,
        "identity": identity,
    }


def jobs(cpus: int, memory_mib: int, memory_per_job_mib: int) -> int:
    """How many compilers may run at once: one a CPU, as far as memory reaches, at least one."""
    return max(1, min(cpus, memory_mib // memory_per_job_mib))


def outdated(releases: list[str], keep: list[str], keep_others: int) -> list[str]:
    """The releases to remove: `releases` (newest first) without `keep` and the next few."""
    others = [name for name in releases if name not in keep]
    return others[keep_others:]
