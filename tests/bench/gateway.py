"""Measures the gateway against direct llama-server, and its CPU and memory at 256 streams.

    python -m tests.bench.gateway --server PATH [--model FILE] [--threads N] [--rounds N]
        [--streams N] [--skip-engine]

First token and tokens a second are of a real llama-server, asked directly and through the gateway
in turns, every prompt new, every request on its own connection. CPU and memory are of the
gateway's process alone, its engine being the stand-in in a process of its own: `each by itself`
with 25 ms from token to token, `at once` as fast as all can. Prints Markdown; ends with status 1
where a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from testbed.cache import cache_folder
from testbed.fetch_inputs import MODEL_MEMBER, MODEL_REPOSITORY
from tests.unit.gateway.gateway_process import MODEL, GatewayProcess, free_ports, write_config

TOKENS = 64
SLOTS = 4
START_S = 180.0
CPU_US, MEMORY_MIB = 60.0, 150.0
FIRST_TOKEN_MS, FIRST_TOKEN_RATIO, RATE_RATIO = 2.0, 1.05, 0.98
PACE_MS = 25.0
STREAM_TOKENS = 200

# llama-server and Ollama 0.33, recorded on 2 cores: first token p50 in ms, tokens/s.
RECORDED = {
    1: (("20", "107"), ("22", "98")),
    4: (("167-283", "104-116"), ("1885-2540", "76-101")),
}
_numbers = count(1)


@dataclass(frozen=True)
class Target:
    """Whom a client asks: one token's mark in what it answers."""

    name: str
    port: int
    path: str
    mark: bytes


@dataclass
class Measured:
    """One target's answers: seconds to the first token; tokens and the seconds they took."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    busy_s: float = 0.0

    @property
    def first_ms(self) -> float:
        return median(self.first_s) * 1000

    @property
    def rate(self) -> float:
        return self.tokens / self.busy_s


def direct(port: int) -> Target:
    return Target("llama-server, direct", port, "/v1/chat/completions", b'"content":"')


def gateway(port: int) -> Target:
    return Target("through the gateway", port, "/api/chat", b'"done":false')


def _request(target: Target, tokens: int) -> bytes:
    """The same samplers for both: the gateway always sends Ollama's."""
    number = next(_numbers)
    text = f"Number {number}: write a long story of {number} ships, the sea and the calm after it."
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    }
    samplers = {"temperature": 0.0, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1}
    if target.path.startswith("/api/"):
        body["options"] = samplers | {"num_predict": tokens}
    else:
        body |= samplers | {"max_tokens": tokens}
    data = json.dumps(body).encode()
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + data


class Client(asyncio.Protocol):
    """One request; `done` gives its tokens. It does as little as can be done."""

    def __init__(self, target: Target, tokens: int) -> None:
        self._target = target
        self._request = _request(target, tokens)
        self._tail = b""
        self._tokens = 0
        self._began = 0.0
        self.first_s = 0.0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._began = time.perf_counter()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        mark = self._target.mark
        seen = self._tail + data
        self._tokens += seen.count(mark)
        if self._tokens and not self.first_s:
            self.first_s = time.perf_counter() - self._began
        self._tail = seen[1 - len(mark) :]

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or not self._tokens:
            said = f"{self._target.name}: {exc or self._tail!r}"
            self.done.set_exception(ConnectionError(said))
        else:
            self.done.set_result(self._tokens)


async def ask(target: Target, tokens: int) -> tuple[int, float]:
    """Tokens, and the seconds to the first one."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Client(target, tokens), "127.0.0.1", target.port
    )
    return await client.done, client.first_s


async def ask_at_once(target: Target, clients: int, each: int, measured: Measured) -> None:
    """`clients` that ask `each` times, one after the other."""

    async def one() -> None:
        for _ in range(each):
            tokens, first_s = await ask(target, TOKENS)
            measured.tokens += tokens
            measured.first_s.append(first_s)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    measured.busy_s += time.perf_counter() - began


def in_turns(targets: tuple[Target, Target], clients: int, rounds: int) -> list[Measured]:
    """The same for both, one after the other and the other way round."""
    found = {target.name: Measured() for target in targets}
    for turn in range(rounds):
        for target in targets if turn % 2 else targets[::-1]:
            asyncio.run(ask_at_once(target, clients, 1, found[target.name]))
    return [found[target.name] for target in targets]


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def llama_server(binary: Path, model: Path, threads: int) -> Iterator[int]:
    """Its port, once it is ready."""
    (port,) = free_ports(1)
    command = [str(binary), "-m", str(model), "--port", str(port), "-np", str(SLOTS)]
    command += ["-c", str(SLOTS * 1024), "--threads", str(threads)]
    silent = subprocess.DEVNULL
    with ended(subprocess.Popen(command, stdout=silent, stderr=silent, text=True)) as process:
        until = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
            else:
                yield port
                return
        raise SystemExit(f"{binary} did not become ready with {model}")


@contextmanager
def stand_in_engine(interval_ms: float) -> Iterator[str]:
    """Its URL."""
    script = Path(__file__).resolve().parents[1] / "stand_in_engine.py"
    command = [sys.executable, str(script), "--tokens", str(STREAM_TOKENS)]
    command += ["--interval-ms", str(interval_ms)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    with ended(
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def gateway_before(engine_url: str) -> Iterator[tuple[GatewayProcess, int]]:
    """A gateway process with that engine, and its port."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), port, engine_url)
        with GatewayProcess(config) as process:
            yield process, port


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """The most it has ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Load:
    """What many streams cost. `cpu_us` of one token, the median of `runs`."""

    cpu_us: float
    runs: list[float]
    rate: float
    memory_mib: float


async def _streams(target: Target, streams: int) -> int:
    answers = await asyncio.gather(*(ask(target, STREAM_TOKENS) for _ in range(streams)))
    return sum(tokens for tokens, _ in answers)


def load(streams: int, interval_ms: float, runs: int) -> Load:
    """`streams` at once, `runs` times, after a first time that is not counted."""
    with stand_in_engine(interval_ms) as url, gateway_before(url) as (process, port):
        target, pid = gateway(port), process.process.pid
        asyncio.run(_streams(target, min(streams, 16)))
        costs, rates = [], []
        for _ in range(runs):
            before, began = cpu_s(pid), time.perf_counter()
            tokens = asyncio.run(_streams(target, streams))
            costs.append((cpu_s(pid) - before) / tokens * 1e6)
            rates.append(tokens / (time.perf_counter() - began))
        return Load(median(costs), costs, median(rates), memory_mib(pid))


def print_engine(server: Path, model: Path, threads: int, rounds: int) -> bool:
    """The table against direct llama-server; whether the goals are met."""
    print(f"\n## First token and rate: {model.name}, {TOKENS} tokens, {threads} threads\n")
    print("| clients | | first token p50, ms | tokens/s | goal |")
    print("|---|---|---|---|---|")
    met = True
    with (
        llama_server(server, model, threads) as engine_port,
        gateway_before(f"http://127.0.0.1:{engine_port}") as (_, port),
    ):
        targets = (direct(engine_port), gateway(port))
        in_turns(targets, 1, 2)
        for clients in (1, SLOTS):
            plain, through = in_turns(targets, clients, max(2, rounds // clients))
            if clients == 1:
                limit = plain.first_ms + FIRST_TOKEN_MS
            else:
                limit = plain.first_ms * FIRST_TOKEN_RATIO
            least = plain.rate * RATE_RATIO
            good = through.first_ms <= limit and through.rate >= least
            met = met and good
            goal = f"<= {limit:.1f} ms, >= {least:.1f}/s: {'met' if good else 'MISSED'}"
            for name, one, told in (
                (targets[0].name, plain, ""),
                (targets[1].name, through, goal),
            ):
                print(f"| {clients} | {name} | {one.first_ms:.1f} | {one.rate:.1f} | {told} |")
            for name, (first, rate) in zip(
                ("llama-server", "Ollama 0.33"), RECORDED[clients], strict=True
            ):
                print(f"| {clients} | {name}, recorded on 2 other cores | {first} | {rate} | |")
    return met


def print_load(streams: int, runs: int) -> bool:
    """The table of CPU and memory; whether the goals are met."""
    print(f"\n## {streams} streams of {STREAM_TOKENS} tokens from the stand-in engine\n")
    print("| tokens come | CPU a token, us (median; all runs) | tokens/s | memory, MiB | goal |")
    print("|---|---|---|---|---|")
    met = True
    for name, interval_ms in (("each by itself", PACE_MS), ("at once", 0.0)):
        found = load(streams, interval_ms, runs)
        good = found.cpu_us <= CPU_US and found.memory_mib <= MEMORY_MIB
        met = met and good
        each = ", ".join(f"{one:.1f}" for one in found.runs)
        print(
            f"| {name} | {found.cpu_us:.1f} ({each}) | {found.rate:.0f} | "
            f"{found.memory_mib:.0f} | <= {CPU_US:.0f} us, <= {MEMORY_MIB:.0f} MiB: "
            f"{'met' if good else 'MISSED'} |"
        )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=Path, help="llama-server's binary")
    parser.add_argument(
        "--model",
        type=Path,
        default=cache_folder() / "hub" / MODEL_REPOSITORY / Path(MODEL_MEMBER).name,
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="requests at each target")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5, help="of the streams")
    parser.add_argument("--skip-engine", action="store_true", help="only the streams")
    arguments = parser.parse_args()
    met = True
    if not arguments.skip_engine:
        if arguments.server is None:
            parser.error("--server: llama-server's binary is needed, or --skip-engine")
        met = print_engine(arguments.server, arguments.model, arguments.threads, arguments.rounds)
    return 0 if print_load(arguments.streams, arguments.runs) and met else 1


if __name__ == "__main__":
    sys.exit(main())
