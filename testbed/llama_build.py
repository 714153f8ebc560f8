"""A CPU build of the pinned llama.cpp, kept in the cache; prints the folder of its programs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from ansible_collections.kloros.llm.plugins.module_utils.release import TARGETS

from testbed.cache import cache_folder
from testbed.fetch_inputs import SOURCE, fetch, pins


def build() -> Path:
    """The folder of `llama-server` and `llama-fit-params`, built unless they are there.

    Raises FetchError or CalledProcessError.
    """
    pin = pins()[SOURCE]
    folder = cache_folder() / "llama.cpp" / pin.sha256[:16]
    binaries = folder / "build/bin"
    if not (folder / "built").exists():
        with tarfile.open(fetch(pin, cache_folder() / "inputs")) as archive:
            archive.extractall(folder, filter="data")
        source = next(folder.glob("*/vendor/llama.cpp"))
        options = ["-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_CURL=OFF"]
        configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder / "build")]
        for command in (
            [*configure, "-DCMAKE_BUILD_TYPE=Release", *options],
            ["cmake", "--build", str(folder / "build"), "--target", *TARGETS],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "built").touch()
    return binaries


if __name__ == "__main__":
    print(build())
