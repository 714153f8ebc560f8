"""NVIDIA's redistributable archives: which of a release's a build of llama.cpp needs.

A release is described by a manifest, `redistrib_<release>.json`: components, each with a version
and, for each platform, `relative_path`, `sha256` and `size` of an archive. Looked at in November
2026: the manifests of 11.4.4, 12.9.1, 13.0.2, 13.2.2 and 13.4.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypedDict

PLATFORMS: Final[Mapping[str, str]] = {"x86_64": "linux-x86_64", "aarch64": "linux-sbsa"}
"""NVIDIA's name of a machine architecture; its `linux-aarch64` is for Jetson boards."""


class _Component(NamedTuple):
    """A part of the toolkit: its names (they change) and the first release that has it apart."""

    names: tuple[str, ...]
    since: tuple[int, int]


_NVCC: Final = "cuda_nvcc"
_COMPONENTS: Final = (
    _Component((_NVCC,), (0, 0)),
    _Component(("cuda_crt",), (13, 0)),  # before, cuda_nvcc holds it
    _Component(("libnvvm",), (13, 0)),  # so it does this
    _Component(("cuda_cudart",), (0, 0)),
    _Component(("cuda_cccl", "cccl"), (0, 0)),  # renamed in 13.3
    _Component(("libcublas",), (0, 0)),
    _Component(("cuda_nvrtc",), (13, 2)),  # from there on NVIDIA's packages of cuBLAS need it
    _Component(("cuda_cuobjdump",), (0, 0)),
)
_VERSION: Final = re.compile(r"(\d{1,3})\.(\d{1,3})\.")
_PATH: Final = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9._+-]*/)*[A-Za-z0-9_][A-Za-z0-9._+-]*\.tar\.xz"
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NOT_NVIDIAS: Final = "get the manifest from NVIDIA, or from a mirror that has it unchanged"


class Archive(TypedDict):
    """One archive to fetch; `path` is relative to the folder that the manifest lies in."""

    component: str
    path: str
    sha256: str
    size_bytes: int


class ManifestError(ValueError):
    """The manifest cannot be used; the message says what was found, needed and what to do."""


def read_manifest(text: str) -> dict[str, Any]:
    """The manifest in a file. Raises ManifestError where it holds none."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise _refused("the manifest", f"it is no JSON ({problem})", "an object") from problem
    if not isinstance(manifest, dict):
        raise _refused("the manifest", f"it is {_shown(manifest)}", "an object of components")
    return manifest


def archives(manifest: Mapping[str, Any], architecture: str) -> list[Archive]:
    """The archives that make a toolkit to build llama.cpp with, nvcc's first.

    `architecture` is the machine's (x86_64 or aarch64). Nothing in the manifest is trusted: paths
    lead below the manifest's own folder, digests and sizes have their form. Raises ManifestError.
    """
    if architecture not in PLATFORMS:
        raise ManifestError(
            f"there are no archives for {architecture}; needed: {' or '.join(PLATFORMS)}; "
            "use a toolkit of the distribution"
        )
    release = _release(manifest)
    return [
        _archive(manifest, component, PLATFORMS[architecture])
        for component in _COMPONENTS
        if release >= component.since
    ]


def _release(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """MAJOR and MINOR; from nvcc's version, since old manifests have no label of their own."""
    version = _entry(manifest, (_NVCC,))[1].get("version")
    found = _VERSION.match(version) if isinstance(version, str) else None
    if found is None:
        raise _refused(f"{_NVCC}.version", f"it is {_shown(version)}", "a version such as 13.0.88")
    return int(found.group(1)), int(found.group(2))


def _entry(manifest: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
    for name in names:
        if name in manifest:
            if not isinstance(manifest[name], Mapping):
                raise _refused(name, f"it is {_shown(manifest[name])}", "an object")
            return name, manifest[name]
    raise _refused(
        "the manifest", f"it has no component {' or '.join(names)}", "all parts of the toolkit"
    )


def _archive(manifest: Mapping[str, Any], component: _Component, platform: str) -> Archive:
    name, entry = _entry(manifest, component.names)
    place = f"{name}.{platform}"
    archive = entry.get(platform)
    if not isinstance(archive, Mapping):
        raise _refused(place, f"it is {_shown(archive)}", "an object with relative_path and sha256")
    path, sha256, size = (archive.get(key) for key in ("relative_path", "sha256", "size"))
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise _refused(
            f"{place}.relative_path",
            f"it is {_shown(path)}",
            "the path of a .tar.xz below the manifest's folder",
        )
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256.lower()):
        raise _refused(f"{place}.sha256", f"it is {_shown(sha256)}", "64 hexadecimal digits")
    if not re.fullmatch(r"[1-9][0-9]{0,15}", str(size)):
        raise _refused(f"{place}.size", f"it is {_shown(size)}", "a number of bytes")
    return {"component": name, "path": path, "sha256": sha256.lower(), "size_bytes": int(str(size))}


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _refused(place: str, found: str, needed: str) -> ManifestError:
    return ManifestError(f"{place}: {found}; needed: {needed}; {_NOT_NVIDIAS}")
