"""A real llama-server with the small model, for tests."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kloros_llm import check_llama_health
from tests.llama_server import BINARY, MODEL

START_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(port: int, *options: str | Path) -> subprocess.Popen[bytes]:
    """Starts it; it may still load."""
    return _run(port, "--model", MODEL, *options)


def _run(port: int, *options: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["nice", BINARY, "--port", str(port), "--threads", "1", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def real_llama_server(*options: str) -> Iterator[str]:
    """One that is ready; the value is its URL."""
    with _running("--model", MODEL, *options) as url:
        yield url


@contextmanager
def real_router(presets: Path) -> Iterator[str]:
    """One in router mode, with one model at a time; the value is its URL."""
    with _running("--models-preset", presets, "--models-max", "1") as url:
        yield url


@contextmanager
def _running(*options: str | Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = _run(port, *options)
    try:
        until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits for a llama-server."""
    deadline = time.monotonic() + START_S
    while not check_llama_health(url):
        assert process.poll() is None, "llama-server ended"
        assert time.monotonic() < deadline, "llama-server is not ready"
        time.sleep(0.1)
