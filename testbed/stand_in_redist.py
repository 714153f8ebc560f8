#!/usr/bin/env python3
"""A server that answers as NVIDIA's for redistributable archives, with a real toolkit.

NVIDIA's own is out of CI's reach. A toolkit from PyPI (the folder above `bin/nvcc`) is split into
the components and packed as NVIDIA packs them, under the addresses that NVIDIA has:

    /compute/cuda/redist/redistrib_<release>.json
    /compute/cuda/redist/<component>/<platform>/<component>-<platform>-<release>-archive.tar.xz

Packing takes two minutes of one CPU, so what is in the folder already is served as it is. Ranges,
faults and the record of requests are those of the stand-in Hub.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from testbed.stand_in_hub import Answer, HubHandler, StandInHub, serve

SITE, FOLDER = "compute/cuda", "redist"
PLATFORM = "linux-x86_64"
CHUNK_BYTES = 16 << 20
# The first that matches a file's path in the toolkit; the order makes the last a remainder.
COMPONENTS = {
    "cuda_cuobjdump": r"bin/cuobjdump",
    "cuda_crt": r"include/crt/.*",
    "cuda_cccl": r"include/cccl/.*|lib/cmake/.*|cccl/.*",
    "libnvvm": r"nvvm/.*|include/nvvm\.h|lib/libnvvm.*",
    "libcublas": r"(include|lib)/(lib)?(cu|nv)blas.*",
    "cuda_nvrtc": r"(include|lib)/(lib)?nvrtc.*",
    "cuda_nvcc": r"bin/.*",
    "cuda_cudart": r"(include|lib)/.*",
}
# What kloros-llm adds to a toolkit, and what pip leaves: NVIDIA's archives have none of it.
NOT_NVIDIAS = re.compile(r"lib/stubs/.*|COMPLETE|\.metadata/.*|.*\.pyc|.*__init__\.py")


class RedistHandler(HubHandler):
    """Serves files as they lie."""

    server_version = "stand-in-redist"

    def answer(self) -> None:
        """Send the file.

        Raises:
            Answer: 404, when there is none.
        """
        path = unquote(urlsplit(self.path).path).removeprefix(f"/{SITE}/")
        try:
            file = self.hub.store.file(SITE, path)
        except FileNotFoundError as error:
            raise Answer(404, message="Not Found") from error
        self.send_file(file, f'"{file.sha256}"', {})


class StandInRedist(StandInHub):
    """The running stand-in; `root` holds `compute/cuda/redist`."""

    @staticmethod
    def handler() -> type[BaseHTTPRequestHandler]:
        """Return what answers."""
        return RedistHandler

    @property
    def redist_url(self) -> str:
        """What llama_cpp_cuda_redist_url is to be."""
        return f"{self.url}/{SITE}/{FOLDER}"


def files_of(toolkit: Path) -> Iterator[tuple[str, str]]:
    """Yield component and relative path of each file; links are left to who unpacks it."""
    for path in sorted(toolkit.rglob("*")):
        name = path.relative_to(toolkit).as_posix()
        if path.is_symlink() or not path.is_file() or NOT_NVIDIAS.fullmatch(name):
            continue
        for component, pattern in COMPONENTS.items():
            if re.fullmatch(pattern, name):
                yield component, name
                break


def pack(toolkit: Path, release: str, root: Path) -> Path:
    """Pack a toolkit as a release's archives, unless they are there; return the manifest's path.

    Raises:
        FileNotFoundError: the folder holds no toolkit.
    """
    if not (toolkit / "bin/nvcc").is_file():
        raise FileNotFoundError(f"{toolkit} holds no toolkit (bin/nvcc)")
    redist = root / SITE / FOLDER
    redist.mkdir(parents=True, exist_ok=True)
    manifest = redist / f"redistrib_{release}.json"
    if manifest.exists():
        return manifest
    content: dict[str, list[str]] = {}
    for component, name in files_of(toolkit):
        content.setdefault(component, []).append(name)
    described: dict[str, object] = {"release_label": release, "release_product": "cuda"}
    for component, names in sorted(content.items()):
        top = f"{component}-{PLATFORM}-{release}-archive"
        archive = redist / component / PLATFORM / f"{top}.tar.xz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as plain, archive.open("wb") as packed:
            with tarfile.open(fileobj=plain, mode="w") as tar:
                for name in names:
                    tar.add(toolkit / name, f"{top}/{name}", filter=_as_root)
            plain.seek(0)
            packed.writelines(xz(plain))
        described[component] = {
            "name": component,
            "version": release,
            PLATFORM: {
                "relative_path": archive.relative_to(redist).as_posix(),
                "sha256": _sha256(archive),
                "size": str(archive.stat().st_size),
            },
        }
    # Last: a manifest stands for whole archives.
    manifest.write_text(json.dumps(described, indent=2), encoding="utf-8")
    return manifest


def xz(plain: IO[bytes]) -> Iterator[bytes]:
    """Compress a little and on all CPUs: an .xz file may be several, one after another."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        while batch := [chunk for _ in range(workers) if (chunk := plain.read(CHUNK_BYTES))]:
            yield from pool.map(partial(lzma.compress, preset=0), batch)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    """Pack, then serve until SIGTERM or SIGINT; the first line of output is the address."""
    parser = argparse.ArgumentParser(description="A server of NVIDIA's redistributable archives.")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--root", type=Path, required=True, help="where the archives are kept")
    parser.add_argument("--toolkit", type=Path, required=True, help="the folder above bin/nvcc")
    parser.add_argument("--release", required=True, help="the toolkit's release, e.g. 13.0.2")
    parser.add_argument("--pid-file", type=Path, help="written once the server listens")
    given = parser.parse_args()
    try:
        pack(given.toolkit, given.release, given.root)
        server = StandInRedist(given.root, bind=given.bind, port=given.port)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    serve(server, server.redist_url, given.pid_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
