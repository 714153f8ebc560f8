"""Downloads, measured: `python -m tests.bench.download` (make bench).

The stand-in Hub runs in a process of its own. Each table is of one run: the programs take turns,
round by round, and the medians are compared. What is timed is the whole command from its start to
its end, the interpreter's start and imports included; kloros-llm also hashes what it gets.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = "acme/bench-GGUF"
MIB = 1 << 20
LATENCY_S = 0.02
CONNECTION_BYTES_PER_S = 8_000_000
SHAPED_MIB = 512
UNSHAPED_MIB = 2048
MEMORY_MIB = (256, 2048, 8192)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Program:
    """Something that downloads: its command line for a file and a folder, and its version's."""

    name: str
    command: Callable[[str, Path], list[str]]
    version: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """`kloros-llm` is to reach at least `ratio` of this program's rate."""

    program: str
    ratio: float


class Hub:
    """The stand-in Hub in its own process, over the files of `root`."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "testbed.stand_in_hub", "--root", str(root)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._host = self.url.removeprefix("http://")

    def shape(self, **faults: float | None) -> None:
        """Set latency, bandwidth and the like (testbed.stand_in_hub.Faults)."""
        for method, body in (("DELETE", b""), ("PATCH", json.dumps(faults).encode())):
            self._ask(method, "/_stand_in/faults", body)

    def address(self, name: str) -> str:
        return f"{self.url}/{REPOSITORY}/resolve/main/{name}"

    def warm_up(self, name: str) -> str:
        """Have the file's sha256 computed and its bytes in the page cache; the sha256."""
        entries = self._ask("GET", f"/api/models/{REPOSITORY}/tree/main")
        return str(next(entry["lfs"]["oid"] for entry in entries if entry["path"] == name))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        there = http.client.HTTPConnection(self._host)
        there.request(method, path, body)
        answer = json.load(there.getresponse())
        there.close()
        return answer

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def programs(hub: Hub, sizes: Mapping[str, int], digests: Mapping[str, str]) -> list[Program]:
    """All that are compared, ours first."""

    def ours(name: str, folder: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "tests.bench.fetch_one",
            hub.address(name),
            str(folder / name),
            str(sizes[name]),
            digests[name],
        ]

    def aria2(name: str, folder: Path) -> list[str]:
        command = ["aria2c", "-x16", "-s16", "--file-allocation=falloc", "--quiet=true"]
        return [*command, f"--dir={folder}", f"--out={name}", hub.address(name)]

    def curl(name: str, folder: Path) -> list[str]:
        return ["curl", "-sSfL", "-o", str(folder / name), hub.address(name)]

    hf_program = shutil.which("hf") or str(Path(sys.executable).with_name("hf"))

    def hf(name: str, folder: Path) -> list[str]:
        return [hf_program, "download", REPOSITORY, name, "--local-dir", str(folder), "--quiet"]

    hf_environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    python_path = f"{ROOT / 'collections'}{os.pathsep}{ROOT}"
    return [
        Program("kloros-llm", ours, [sys.executable, "--version"], {"PYTHONPATH": python_path}),
        Program("aria2c -x16 -s16", aria2, ["aria2c", "--version"]),
        Program("hf download", hf, [hf_program, "--version"], hf_environment),
        Program("curl", curl, ["curl", "--version"]),
    ]


def run(program: Program, name: str, size_bytes: int, scratch: Path) -> tuple[float, str]:
    """Seconds that the command took, and what it printed; its file is checked and removed."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = program.command(name, Path(folder))
        environment = os.environ | program.environment | {"HF_HOME": folder}
        began = time.monotonic()
        ran = subprocess.run(
            command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        seconds = time.monotonic() - began
        if ran.returncode or (Path(folder) / name).stat().st_size != size_bytes:
            raise SystemExit(f"{program.name} failed ({ran.returncode}): {ran.stderr[-2000:]}")
        return seconds, ran.stdout


@dataclass(frozen=True)
class Race:
    """All programs get one file, in turns."""

    title: str
    goals: list[Goal]
    file: str
    size_bytes: int
    rounds: int


def compare(race: Race, entrants: list[Program], scratch: Path) -> bool:
    """Print one table; whether all goals are met."""
    seconds: dict[str, list[float]] = {program.name: [] for program in entrants}
    inside: list[float] = []
    for _ in range(race.rounds):
        for program in entrants:
            taken, said = run(program, race.file, race.size_bytes, scratch)
            seconds[program.name].append(taken)
            if program is entrants[0]:
                inside.append(json.loads(said)["seconds"])
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ours = medians[entrants[0].name]
    print(f"\n### {race.title}\n")
    print("| program | median s | min to max s | MB/s | ours / its rate | goal |")
    print("|---|--:|--:|--:|--:|---|")
    met = True
    for key, median in medians.items():
        goal = next((goal for goal in race.goals if goal.program == key), None)
        ratio = median / ours
        verdict = ""
        if goal is not None:
            is_met = ratio >= goal.ratio
            met = met and is_met
            verdict = f">= {goal.ratio:.2f} {'met' if is_met else 'MISSED'}"
        spread = f"{min(seconds[key]):.2f} to {max(seconds[key]):.2f}"
        rate = race.size_bytes / median / 1e6
        print(f"| {key} | {median:.2f} | {spread} | {rate:.0f} | {ratio:.2f} | {verdict} |")
    print(
        f"\nInside kloros-llm's process the transfer itself took "
        f"{statistics.median(inside):.2f} s (median); the rest is the interpreter's start."
    )
    return met


def memory(hub: Hub, ours: Program, sizes: Mapping[str, int], scratch: Path) -> bool:
    """Print the table of memory; whether the goal is met."""
    print("\n### (c) Memory: unshaped, sparse files\n")
    print("| size MiB | bare MiB | peak MiB | growth MiB | seconds | goal |")
    print("|--:|--:|--:|--:|--:|---|")
    hub.shape()
    met = True
    for size_mib in MEMORY_MIB:
        name = f"sparse-{size_mib}.gguf"
        _, said = run(ours, name, sizes[name], scratch)
        found = json.loads(said)
        growth = found["peak_mib"] - found["bare_mib"]
        is_met = growth <= 64
        met = met and is_met
        print(
            f"| {size_mib} | {found['bare_mib']:.1f} | {found['peak_mib']:.1f} | {growth:.1f} | "
            f"{found['seconds']:.1f} | <= 64 {'met' if is_met else 'MISSED'} |"
        )
    return met


def hashing_rate() -> float:
    """sha256 of one core, in bytes a second: no download that is hashed can be faster."""
    block, digest = bytes(MIB), hashlib.sha256()
    began = time.monotonic()
    for _ in range(1024):
        digest.update(block)
    return 1024 * MIB / (time.monotonic() - began)


def describe(entrants: list[Program], name: str) -> None:
    """Print the machine, the versions and the commands."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    print(f"Machine: {cpu}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}; ")
    print(
        f"load {os.getloadavg()[0]:.1f} before; sha256 on one core {hashing_rate() / 1e6:.0f} MB/s"
    )
    for program in entrants:
        ran = subprocess.run(program.version, check=False, capture_output=True, text=True)
        version = (ran.stdout or ran.stderr).strip().splitlines()[0]
        shown = " ".join(program.command(name, Path("DIR"))).replace(sys.executable, "python")
        print(f"- {program.name} ({version}): `{shown}`")


def make_files(root: Path, scratch: Path) -> dict[str, int]:
    """Files to download, by name with their size: random ones in memory, sparse ones on disk."""
    folder = root / REPOSITORY
    folder.mkdir(parents=True)
    block = os.urandom(32 * MIB)
    for name, size_mib in (("shaped.gguf", SHAPED_MIB), ("unshaped.gguf", UNSHAPED_MIB)):
        with (folder / name).open("wb") as file:
            for number in range(size_mib // 32):
                file.write(number.to_bytes(8, "little") + block[8:])
    for size_mib in MEMORY_MIB:
        target = scratch / f"sparse-{size_mib}.gguf"
        with target.open("wb") as file:
            file.truncate(size_mib * MIB)
        (folder / target.name).symlink_to(target)
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@contextlib.contextmanager
def _folder(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kloros-bench-", dir=parent) as folder:
        yield Path(folder)


def bench(rounds: int, parts: str) -> bool:
    """Measure and print everything; whether all goals are met."""
    in_memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with _folder(in_memory) as fast, _folder(None) as disk:
        sizes = make_files(fast, disk)
        hub = Hub(fast)
        try:
            digests = {name: hub.warm_up(name) for name in sizes}
            entrants = programs(hub, sizes, digests)
            describe(entrants, "shaped.gguf")
            met = True
            if "a" in parts:
                hub.shape(latency_s=LATENCY_S, bytes_per_s=CONNECTION_BYTES_PER_S)
                shaped = Race(
                    f"(a) Shaped: {LATENCY_S * 1000:.0f} ms latency, "
                    f"{CONNECTION_BYTES_PER_S / 1e6:.0f} MB/s a connection, {SHAPED_MIB} MiB",
                    [Goal("aria2c -x16 -s16", 0.95), Goal("hf download", 1), Goal("curl", 1)],
                    "shaped.gguf",
                    sizes["shaped.gguf"],
                    rounds,
                )
                met &= compare(shaped, entrants, fast)
            if "b" in parts:
                hub.shape()
                unshaped = Race(
                    f"(b) Unshaped: loopback, {UNSHAPED_MIB} MiB, into memory (tmpfs)",
                    [Goal("curl", 0.9)],
                    "unshaped.gguf",
                    sizes["unshaped.gguf"],
                    rounds,
                )
                met &= compare(unshaped, entrants, fast)
            if "c" in parts:
                met &= memory(hub, entrants[0], sizes, disk)
        finally:
            hub.close()
    print(f"\nAll goals are met: {'yes' if met else 'NO'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="abc", help="which tables: letters of abc")
    given = parser.parse_args()
    # As Ctrl-C does: gigabytes in memory and a server are not to stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return 0 if bench(given.rounds, given.parts) else 1


if __name__ == "__main__":
    sys.exit(main())
