"""What a host has to build with CUDA: toolkits, host compilers, its package archive, libcuda.

Only looks; a toolkit that is found is never touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypedDict

from .cuda_toolkit_files import host_glibc, patched_math_header
from .host_facts import run

PACKAGE: Final = "nvidia-cuda-toolkit"
"""Debian's and Ubuntu's own package of the toolkit."""

_USUAL_ROOTS: Final = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/usr")
_RELEASE: Final = re.compile(r"release (\d+\.\d+)")
_GCC_LIMIT: Final = re.compile(r"^#if __GNUC__ > (\d+)$", re.MULTILINE)
_CANDIDATE: Final = re.compile(r"^\s*Candidate: (?:\d+:)?(\d+\.\d+)", re.MULTILINE)
_COMPILER_NAME: Final = re.compile(r"g\+\+(?:-(\d+))?\Z")


class FoundToolkit(TypedDict):
    """A toolkit on the host.

    `root` is the folder above `bin/nvcc`, `version` MAJOR.MINOR, `gcc_limit` the newest major
    version of g++ that its headers accept (None where they do not say), `cublas` whether the
    libraries and headers that llama.cpp links with are there, `fits_glibc` whether its headers
    compile with the host's C library.
    """

    root: str
    nvcc: str
    version: str
    gcc_limit: int | None
    cublas: bool
    fits_glibc: bool


class DriverLibrary(TypedDict):
    """The driver's libcuda; `package` is None where no package of the distribution owns it."""

    path: str
    package: str | None


class CudaHost(TypedDict):
    """Everything that decides where a toolkit can come from.

    `compilers` maps g++'s major version (as a string, since it passes through JSON) to its path;
    `packaged` is the toolkit's version in the package lists that are enabled.
    """

    toolkits: list[FoundToolkit]
    compilers: dict[str, str]
    packaged: str | None
    driver_library: DriverLibrary | None


def _library_folders(root: Path) -> list[Path]:
    return [
        root / "lib64",
        *sorted(root.glob("targets/*/lib")),
        root / "lib",
        *sorted(root.glob("lib/*-linux-gnu")),
    ]


def _include_folders(root: Path) -> list[Path]:
    return [root / "include", *sorted(root.glob("targets/*/include"))]


def gcc_limit(root: Path) -> int | None:
    """The newest major version of g++ that a toolkit's own headers accept."""
    for folder in _include_folders(root):
        try:
            text = (folder / "crt/host_config.h").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if found := _GCC_LIMIT.search(text):
            return int(found.group(1))
    return None


def _fits_glibc(root: Path) -> bool:
    if root == Path("/usr"):
        return True  # a compiler lets declarations of the system's own headers differ
    for folder in _include_folders(root):
        try:
            text = (folder / "crt/math_functions.h").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        return patched_math_header(text, host_glibc()) == text
    return True


def toolkit_at(root: Path) -> FoundToolkit | None:
    """The toolkit below a folder, or None where there is no nvcc that runs."""
    nvcc = root / "bin/nvcc"
    status, output = run([str(nvcc), "--version"])
    release = _RELEASE.search(output)
    if status != 0 or release is None:
        return None
    return {
        "root": str(root),
        "nvcc": str(nvcc),
        "version": release.group(1),
        "gcc_limit": gcc_limit(root),
        "cublas": any((folder / "libcublas.so").exists() for folder in _library_folders(root))
        and any((folder / "cublas_v2.h").exists() for folder in _include_folders(root)),
        "fits_glibc": _fits_glibc(root),
    }


def toolkits(extra_roots: Iterable[str] = ()) -> list[FoundToolkit]:
    """The toolkits in the usual places, on the PATH and at `extra_roots`, each once."""
    places = [Path(root) for root in extra_roots]
    if on_path := shutil.which("nvcc"):
        places.append(Path(on_path).parent.parent)
    for pattern in _USUAL_ROOTS:
        places += sorted(Path("/").glob(pattern[1:]), reverse=True)
    found: dict[Path, FoundToolkit] = {}
    for place in places:
        real = (place / "bin/nvcc").resolve()
        if real not in found and (toolkit := toolkit_at(place)) is not None:
            found[real] = toolkit
    return list(found.values())


def compilers(folders: Iterable[str] = ("/usr/local/bin", "/usr/bin")) -> dict[str, str]:
    """The host's g++, major version to path; a versioned name wins, since it stays the same."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("g++*")):
            if not (name := _COMPILER_NAME.match(path.name)):
                continue
            status, output = run([str(path), "-dumpversion"])
            major = output.strip().split(".")[0]
            if status == 0 and major.isdigit() and (major not in found or name.group(1)):
                found[major] = str(path)
    return found


def packaged_version() -> str | None:
    """The toolkit's version in the package archives that the host has enabled."""
    _, output = run(["apt-cache", "policy", PACKAGE])
    found = _CANDIDATE.search(output)
    return found.group(1) if found else None


def driver_library() -> DriverLibrary | None:
    """The driver's libcuda.so.1 that programs would load, and the package that it is from."""
    _, output = run(["ldconfig", "-p"])
    found = re.search(r"libcuda\.so\.1 \(.*\) => (\S+)", output)
    if found is None:
        found = re.search(r"libcuda\.so\.1 \(.*\) => (\S+)", run(["/sbin/ldconfig", "-p"])[1])
    if found is None or not Path(found.group(1)).exists():
        return None
    status, owner = run(["dpkg-query", "--search", str(Path(found.group(1)).resolve())])
    return {
        "path": found.group(1),
        "package": owner.split(":")[0] if status == 0 else None,
    }


def look(extra_roots: Iterable[str] = ()) -> CudaHost:
    """Everything at once."""
    return {
        "toolkits": toolkits(extra_roots),
        "compilers": compilers(),
        "packaged": packaged_version(),
        "driver_library": driver_library(),
    }
