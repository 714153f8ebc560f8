"""A CPU build of the pinned llama.cpp, kept in the cache; prints the folder of its programs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from ansible_collections.kloros.llm.plugins.module_utils.release import TARGETS

from testbed.cache import cache_folder
from testbed.fetch_inputs import SOURCE, fetch, pins

OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_CURL=OFF",
    # The programs find their libraries beside them, also in a copy of their folder.
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
)


def build() -> Path:
    """The folder of `llama-server` and `llama-fit-params`, built unless they are there.

    Raises FetchError or CalledProcessError.
    """
    pin = pins()[SOURCE]
    key = hashlib.sha256(" ".join([pin.sha256, *OPTIONS]).encode()).hexdigest()
    folder = cache_folder() / "llama.cpp" / key[:16]
    binaries = folder / "build/bin"
    if not (folder / "built").exists():
        with tarfile.open(fetch(pin, cache_folder() / "inputs")) as archive:
            archive.extractall(folder, filter="data")
        source = next(folder.glob("*/vendor/llama.cpp"))
        for command in (
            ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder / "build"), *OPTIONS],
            ["cmake", "--build", str(folder / "build"), "--target", *TARGETS],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "built").touch()
    return binaries


if __name__ == "__main__":
    print(build())
