"""Clients of a gateway under faults: what they ask, and how an answer of theirs may end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from tests.unit.gateway.gateway_process import MODEL

TIMEOUT_S = 120.0
BROKEN_OFF = "an error was encountered while running the model: unexpected EOF"
_MESSAGES = [{"role": "user", "content": "How is the sea?"}]


@dataclass(frozen=True)
class Route:
    """A way to ask for a generation. `ends`: whether a line is a whole answer's last one."""

    path: str
    body: dict[str, Any]
    ends: Callable[[str], bool]
    error_of: Callable[[str], str]

    def ask(
        self, port: int, *, stream: bool = True, tokens: int | None = None, **more: Any
    ) -> requests.Response:
        """`tokens`: how long the answer may be."""
        asked = {**self.body, "stream": stream, **more}
        if tokens is not None:
            limit = {"max_tokens": tokens}
            asked |= limit if self.path.startswith("/v1/") else {"options": {"num_predict": tokens}}
        url = f"http://127.0.0.1:{port}{self.path}"
        return requests.post(url, json=asked, stream=stream, timeout=TIMEOUT_S)

    def ask_and_wait(self, port: int, *, stream: bool) -> socket.socket:
        """A client that has asked, and can leave before anything is answered."""
        data = json.dumps({**self.body, "stream": stream}).encode()
        client = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        client.sendall(head.encode() + data)
        return client


def lines_of(answer: requests.Response) -> Iterator[str]:
    """What comes, line by line; empty lines left out."""
    return (line.decode() for line in answer.iter_lines(chunk_size=1) if line)


def _ollama_error(line: str) -> str:
    return str(json.loads(line).get("error", ""))


def _event_error(line: str) -> str:
    return str(json.loads(line.removeprefix("data: "))["error"]["message"])


ROUTES = {
    "generate": Route(
        "/api/generate",
        {"model": MODEL, "prompt": "How is the sea?"},
        lambda line: json.loads(line).get("done") is True,
        _ollama_error,
    ),
    "chat": Route(
        "/api/chat",
        {"model": MODEL, "messages": _MESSAGES},
        lambda line: json.loads(line).get("done") is True,
        _ollama_error,
    ),
    "openai": Route(
        "/v1/chat/completions",
        {"model": MODEL, "messages": _MESSAGES},
        lambda line: line == "data: [DONE]",
        _event_error,
    ),
    "anthropic": Route(
        "/v1/messages",
        {"model": MODEL, "messages": _MESSAGES, "max_tokens": 1000},
        lambda line: '"message_stop"' in line,
        _event_error,
    ),
}


def await_condition(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


class SteadyLoad:
    """Requests at a rate, whatever becomes of those before; by turns one of all routes, as a
    stream and not. With `slots` no more are under way at a time. `tokens` is an answer's length.
    """

    def __init__(
        self, port: int, per_second: float, slots: int = 1000, tokens: int | None = None
    ) -> None:
        self._port = port
        self._tokens = tokens
        self._pause_s = 1 / per_second
        self._stop = threading.Event()
        self._slots = threading.Semaphore(slots)
        self._threads: list[threading.Thread] = []
        self._clock = threading.Thread(target=self._run, daemon=True)
        self.whole = 0
        self.broken_off: list[str] = []
        """Streams that had begun, and ended in Ollama's error line."""
        self.failures: list[str] = []

    def _run(self) -> None:
        number = 0
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause_s, time.monotonic())
            self._slots.acquire()
            thread = threading.Thread(target=self._one, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
            number += 1

    def _one(self, number: int) -> None:
        name, route = list(ROUTES.items())[number % len(ROUTES)]
        stream = number // len(ROUTES) % 3 != 0
        try:
            self._ask(name, route, stream=stream)
        except (requests.RequestException, ValueError, KeyError) as error:
            self.failures.append(f"{name}, stream {stream}: {error!r}")
        finally:
            self._slots.release()

    def _ask(self, name: str, route: Route, *, stream: bool) -> None:
        answer = route.ask(self._port, stream=stream, tokens=self._tokens)
        lines = list(lines_of(answer)) if stream else [answer.text]
        if answer.status_code != 200 or not lines:
            self.failures.append(f"{name}, stream {stream}: {answer.status_code} {lines}")
        elif not stream or route.ends(lines[-1]):
            self.whole += 1
        elif len(lines) > 1 and route.error_of(lines[-1]) == BROKEN_OFF:
            self.broken_off.append(name)
        else:
            self.failures.append(f"{name}: ends in {lines[-1]}")

    def __enter__(self) -> SteadyLoad:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def await_whole(self, count: int) -> None:
        """Until so many more have been answered."""
        least = self.whole + count
        await_condition(lambda: self.whole >= least or bool(self.failures))

    def stop(self) -> None:
        """Ask no more, and wait for the last answers."""
        self._stop.set()
        self._clock.join(TIMEOUT_S)
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a request is without an answer"
