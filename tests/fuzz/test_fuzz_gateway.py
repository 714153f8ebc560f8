"""A short, deterministic run of the gateway's fuzzer, and that it can find something."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fuzz import fuzz_gateway
from tests.fuzz.gateway_inputs import Input, make_input

_ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_SOUND = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def test_broken_requests_are_answered_as_ollama_does() -> None:
    tally = fuzz_gateway.run(seed=0, first=0, count=3000)
    assert tally.failures == []
    assert tally.inputs == 3000
    # A fuzzer that is never let in, or always, tests nothing.
    assert tally.statuses[200] > 300
    assert tally.statuses[400] > 300
    assert len(tally.kinds) == 15


def test_inputs_follow_from_seed_and_number() -> None:
    made = [make_input(5, number) for number in range(300)]
    again = [make_input(5, number) for number in reversed(range(300))][::-1]
    assert made == again
    assert made != [make_input(6, number) for number in range(300)]


@contextmanager
def stand_in_gateway(answer: bytes) -> Iterator[int]:
    """Answers one connection so, and closes it. The value is its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connected, _ = listening.accept()
            with connected:
                connected.recv(1 << 16)
                connected.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (_SOUND, ""),
        (_SOUND.replace(b"200 OK", b"500 No"), "500 b'{}'"),
        (_SOUND.replace(b"{}", b"{]"), "Expecting property name"),
        (_SOUND.replace(b"Length: 2", b"Length: 3"), "0 whole answers of 1"),
        (_SOUND.replace(b"2\r\n\r\n{}", b'18\r\n\r\n"internal error: x"'), "internal error"),
        (_SOUND * 2, "2 answers"),
        (b"", "0 whole answers of 1"),
        (b"SSH-2.0\r\n\r\n", "no status line"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
            "0 whole answers of 1",
        ),
    ],
)
def test_what_is_wrong_with_an_answer_is_found(answer: bytes, problem: str) -> None:
    asked = Input("one", (_ASK,), "answers", most=1)
    with stand_in_gateway(answer) as port:
        _, found = asyncio.run(fuzz_gateway.run_input(port, asked))
    assert (problem in found) if problem else not found, found


def test_another_answer_than_the_one_that_was_asked_for_is_found() -> None:
    with stand_in_gateway(_SOUND) as port:
        asked = Input("one", (_ASK,), "answers", last=b'{"version"')
        _, found = asyncio.run(fuzz_gateway.run_input(port, asked))
    assert found.startswith("the last answer is [Answer(status=200")
