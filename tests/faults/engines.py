"""Engines as processes, so that they can be killed: the stand-in, and the real llama-server."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import requests

from tests.llama_server import BINARY, MODEL
from tests.unit.gateway.gateway_process import free_ports

_STAND_IN = Path(__file__).resolve().parents[1] / "stand_in_engine.py"
_WAIT_S = 120.0
_END_S = 5.0


class EngineProcess:
    """`with EngineProcess.stand_in(...) as engine`: it answers; killed at the end.

    It can be killed and started again where it was.
    """

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def stand_in(cls, *, tokens: int = 20, interval_ms: float = 0, first_ms: float = 0) -> Self:
        """The stand-in engine: `first_ms` from its headers to its first token."""
        (port,) = free_ports(1)
        options = ["--tokens", tokens, "--interval-ms", interval_ms, "--first-ms", first_ms]
        command = [sys.executable, str(_STAND_IN), "--port", str(port), *map(str, options)]
        return cls(command, port)

    @classmethod
    def real(cls, *options: str) -> Self:
        """llama-server with the small model, on one thread."""
        (port,) = free_ports(1)
        settings = ["--threads", "1", "--threads-batch", "1", *options]
        command = ["nice", BINARY, "--model", str(MODEL), "--port", str(port), *settings]
        return cls(command, port)

    def start(self) -> None:
        """Returns at once."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """As by the kernel for want of memory: no word to anybody."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def end(self) -> None:
        """As by systemd: killed where it does not end by itself. llama-server may wait for ever
        for the answers that it was giving.
        """
        process = self._process
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            self.kill()

    def await_ready(self) -> None:
        """Until it has loaded its model."""
        until = time.monotonic() + _WAIT_S
        while not self._is_ready():
            assert self._process is not None
            assert self._process.poll() is None, "the engine has ended"
            assert time.monotonic() < until, "the engine is not ready"
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def __enter__(self) -> Self:
        self.start()
        self.await_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
