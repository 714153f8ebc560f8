"""Sends broken requests to a gateway's process in front of a stand-in engine.

    nice -n 19 python -m tests.fuzz.fuzz_gateway --inputs 100000

Each input follows from a seed and a number, so that every finding can be made again
(`--seed S --only N` sends one and shows what came back). It fails where an answer is a 5xx that
Ollama would not give, breaks off, is no JSON, or fails to come; where a request is answered that
nobody made; where the gateway logs an error; where its memory or its open files have grown beyond
MEMORY_GROWTH_MIB and FILES_GROWTH; and where it does not answer afterwards as it did before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.fuzz.gateway_answers import AnswerError, Answers, fault_of
from tests.fuzz.gateway_bodies import MODEL, TEMPLATED
from tests.fuzz.gateway_inputs import Input, make_input
from tests.unit.gateway.gateway_process import GatewayProcess, free_ports, write_config
from tests.unit.stand_in_web import Reply, StandInWeb

ROOT = Path(__file__).parents[2]
MEMORY_GROWTH_MIB = 64
FILES_GROWTH = 8
# Of the inputs: allocators keep the most that they ever needed at once.
WARM_UP = 0.2
_AT_ONCE = 32
_ANSWER_S = 120.0
_END_S = 60.0
_QUIET_S = 0.1
_TEMPLATE = (
    "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
    '{{ .Role }}: {{ .Content }}{{ range .ToolCalls }}<call>{"name": "{{ .Function.Name }}", '
    '"arguments": {{ .Function.Arguments }}}</call>{{ end }}\\n{{ end }}{{ .Tools }}{{ .Suffix }}'
)
_CONFIG = f"""
[personas."{TEMPLATED}"]
from = "{MODEL}"
template = '{_TEMPLATE}'

[limits]
body_bytes = {1 << 20}
header_s = 1.0
body_s = 1.0
wait_s = 10.0
"""
# Which say of the gateway that something happened that nobody thought of.
_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_BAD_LOG = re.compile(r"Traceback|^ERROR|^CRITICAL|never retrieved|unexpected|Unclosed|Exception")


@dataclass
class Tally:
    """What happened."""

    inputs: int = 0
    answers: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    memory_mib: tuple[int, int] = (0, 0)
    files: tuple[int, int] = (0, 0)
    failures: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """For people."""
        return {
            "inputs": self.inputs,
            "answers": self.answers,
            "seconds": round(self.seconds),
            "kinds": dict(self.kinds.most_common()),
            "statuses": dict(sorted(self.statuses.items())),
            "memory_mib after the warm-up and at the end": self.memory_mib,
            "open files after the warm-up and at the end": self.files,
            "failures": len(self.failures),
        }


@dataclass(frozen=True)
class House:
    """A gateway with all that is around it."""

    port: int
    gateway: GatewayProcess

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory_mib(self) -> int:
        """What the gateway holds of the machine's memory."""
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) // 1024

    def files(self) -> int:
        """How many it has open, once the connections of before are gone."""
        folder = Path(f"/proc/{self.gateway.process.pid}/fd")
        seen = [len(list(folder.iterdir()))]
        while len(seen) < 5 or (len(set(seen[-5:])) > 1 and len(seen) < 100):
            time.sleep(0.2)
            seen.append(len(list(folder.iterdir())))
        return min(seen)

    def bad_log(self) -> list[str]:
        """What its log should not say, each once, with the lines that belong to it."""
        records: list[list[str]] = []
        for line in list(self.gateway.log):
            if _RECORD.match(line) or not records:
                records.append([])
            records[-1].append(line)
        told = ("\n".join(record[:60]) for record in records)
        return list(dict.fromkeys(text for text in told if _BAD_LOG.search(text)))


@contextmanager
def house() -> Iterator[House]:
    """One that is ready; its store is removed at the end."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StandInWeb(lambda _: Reply(404, b"{}")) as hub,
        _engine() as engine_url,
    ):
        (port,) = free_ports(1)
        top = f'hf_endpoint = "{hub.url}"'
        config = write_config(Path(folder), port, engine_url, _CONFIG, top)
        with GatewayProcess(config) as gateway:
            yield House(port, gateway)
            assert gateway.stop() == 0, "it did not end as it should"


@contextmanager
def _engine() -> Iterator[str]:
    engine = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "stand_in_engine.py"), "--tokens", "12"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert engine.stdout is not None
        yield engine.stdout.readline().strip()
        assert engine.poll() is None, "the stand-in engine has ended"
    finally:
        engine.send_signal(signal.SIGKILL)
        engine.wait()


def reference(url: str) -> list[tuple[str, int, Any]]:
    """What a client gets that does nothing wrong; what differs from time to time left out."""
    generate = {"model": MODEL, "prompt": "Once"}
    chat = {"model": TEMPLATED, "messages": [{"role": "user", "content": "Hi"}]}
    asked = (
        ("GET", "/", None),
        ("GET", "/api/version", None),
        ("GET", "/v1/models/" + MODEL, None),
        ("GET", "/nowhere", None),
        ("POST", "/api/show", {"model": TEMPLATED}),
        ("POST", "/api/generate", generate),
        ("POST", "/api/generate", {**generate, "options": {"num_ctx": "x"}}),
        ("POST", "/api/chat", chat),
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/api/embed", {"model": MODEL, "input": "a"}),
        ("POST", "/api/chat", {**chat, "model": "nobody"}),
    )
    found: list[tuple[str, int, Any]] = []
    for method, path, body in asked:
        answer = requests.request(method, url + path, json=body, timeout=_ANSWER_S)
        text = re.sub(r'"[a-z_]*(duration|at|count|created|id)":("[^"]*"|\d+)', "", answer.text)
        found.append((path, answer.status_code, text))
    listed = requests.get(url + "/api/tags", timeout=_ANSWER_S).json()["models"]
    names = {one["name"] for one in listed} & {MODEL, f"{TEMPLATED}:latest"}
    return [*found, ("/api/tags", len(names), "")]


async def run_input(port: int, one: Input) -> tuple[Answers, str]:
    """Send it. What came back, and what is wrong with that; nothing is the empty text."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return Answers(), f"no connection: {error}"
    answers = Answers(one.heads)
    reading = asyncio.create_task(_read(reader, answers))
    try:
        await _send(writer, one)
        if one.cut:
            return answers, ""
        problem = await _awaited(one, answers, reading)
        return answers, problem or _problem_of(one, answers)
    finally:
        reading.cancel()
        if one.reset:
            connected = writer.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        writer.close()


async def _read(reader: asyncio.StreamReader, answers: Answers) -> None:
    try:
        while data := await reader.read(1 << 16):
            answers.feed(data)
    except (ConnectionError, AnswerError) as error:
        answers.problem = str(error) if isinstance(error, AnswerError) else ""
    answers.end()


async def _send(writer: asyncio.StreamWriter, one: Input) -> None:
    try:
        for index, part in enumerate(one.parts):
            if index and one.pause_s:
                await asyncio.sleep(one.pause_s)
            writer.write(part)
            async with asyncio.timeout(_ANSWER_S):
                await writer.drain()
    except ConnectionError:
        pass  # it has answered already, and reads no more
    except TimeoutError:
        raise AssertionError("what is sent is not read") from None


async def _awaited(one: Input, answers: Answers, reading: asyncio.Task[None]) -> str:
    try:
        if one.expected == "end":
            async with asyncio.timeout(_END_S):
                await reading
        elif one.expected == "answers":
            async with asyncio.timeout(_ANSWER_S):
                while answers.whole < one.count and not answers.ended:
                    await answers.news()
        else:
            while not answers.ended:
                async with asyncio.timeout(_QUIET_S):
                    await answers.news()
    except TimeoutError:
        if one.expected == "end":
            return f"not ended after {_END_S:g} s"
        if one.expected == "answers":
            return f"no answer after {_ANSWER_S:g} s"
    return ""


def _problem_of(one: Input, answers: Answers) -> str:
    found = answers.found
    if answers.problem:
        return answers.problem
    if one.most is not None and len(found) > one.most:
        return f"{len(found)} answers"
    for answer in found:
        if problem := fault_of(answer):
            return problem
    if one.last and not (found and found[-1].body.startswith(one.last)):
        return f"the last answer is {found[-1:]}"
    if one.expected == "answers" and answers.whole < one.count:
        closes = any(b"\r\nconnection: close" in answer.header.lower() for answer in found)
        if not (found and closes and found[-1].whole):
            return f"{answers.whole} whole answers of {one.count}"
    return ""


async def run_inputs(place: House, seed: int, numbers: Sequence[int], tally: Tally) -> None:
    """All of them, some at a time."""
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            one = make_input(seed, number)
            try:
                answers, problem = await run_input(place.port, one)
            except AssertionError as error:
                answers, problem = Answers(), str(error)
            tally.inputs += 1
            tally.kinds[one.kind] += 1
            tally.answers += len(answers.found)
            tally.statuses.update(answer.status for answer in answers.found)
            if problem:
                tally.failures.append(f"seed {seed}, input {number} ({one.kind}): {problem}")
            if tally.inputs % 10_000 == 0:
                print(f"{tally.inputs} inputs, {place.memory_mib()} MiB", file=sys.stderr)

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))


def run(seed: int, first: int, count: int) -> Tally:
    """Inputs `first` to `first + count`, and all that is looked at around them."""
    tally = Tally()
    begin = time.monotonic()
    _allow_open_files()
    with house() as place:
        before = reference(place.url)
        warm = first + int(count * WARM_UP)
        asyncio.run(run_inputs(place, seed, range(first, warm), tally))
        memory_mib, files = place.memory_mib(), place.files()
        asyncio.run(run_inputs(place, seed, range(warm, first + count), tally))
        tally.files = files, place.files()
        tally.memory_mib = memory_mib, place.memory_mib()
        tally.failures += place.bad_log()
        if place.gateway.process.poll() is not None:
            tally.failures.append("the gateway has ended")
        elif (after := reference(place.url)) != before:
            pairs = zip(before, after, strict=True)
            tally.failures += [f"before {a}, after {b}" for a, b in pairs if a != b]
    if tally.memory_mib[1] - tally.memory_mib[0] > MEMORY_GROWTH_MIB:
        tally.failures.append(f"memory has grown: {tally.memory_mib} MiB")
    if tally.files[1] - tally.files[0] > FILES_GROWTH:
        tally.failures.append(f"open files have grown: {tally.files}")
    tally.seconds = time.monotonic() - begin
    return tally


def _allow_open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))


def _show(seed: int, number: int) -> int:
    one = make_input(seed, number)
    print(one)
    with house() as place:
        answers, problem = asyncio.run(run_input(place.port, one))
        for answer in answers.found:
            print(answer)
        print("\n".join(place.gateway.log))
        print(problem or "nothing is wrong")
        return 1 if problem or place.bad_log() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="one input, shown")
    given = parser.parse_args(arguments)
    if given.only is not None:
        return _show(given.seed, given.only)
    tally = run(given.seed, given.first, given.inputs)
    print("\n".join(tally.failures[:100]))
    print(json.dumps(tally.told(), indent=1))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
