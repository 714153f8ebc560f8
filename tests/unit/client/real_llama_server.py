"""A real llama-server with the small model, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kloros_llm import check_llama_health

BINARY = os.environ.get("KLOROS_LLAMA_BIN", "")
MODEL = Path(
    os.environ.get("KLOROS_LLAMA_MODEL")
    or Path.home()
    / ".cache/kloros-llm/hub/HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
    / "SmolLM2-135M-Instruct.Q4_1.gguf"
)
START_S = 120
needs_real = pytest.mark.skipif(
    not (BINARY and MODEL.is_file()),
    reason="needs a real llama-server (KLOROS_LLAMA_BIN names it) and a model "
    "(KLOROS_LLAMA_MODEL, by default SmolLM2-135M in the testbed's cache)",
)


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
        deadline = time.monotonic() + START_S
        while not check_llama_health(url):
            assert process.poll() is None, "llama-server ended"
            assert time.monotonic() < deadline, "llama-server is not ready"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()
