"""The gateway as a process of its own, started as systemd starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.unit.gguf_maker import U32, GgufMaker

_SOURCE = Path(__file__).resolve().parents[3] / "src"
_WAIT_S = 60.0
MODEL = "smol:135m"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_model(path: Path, architecture: str = "llama") -> None:
    """A file with a header and one tensor, as far as the gateway reads models."""
    maker = GgufMaker()
    maker.string("general.architecture", architecture)
    maker.number(f"{architecture}.block_count", U32, 1)
    maker.number(f"{architecture}.context_length", U32, 4096)
    maker.number(f"{architecture}.embedding_length", U32, 64)
    maker.number(f"{architecture}.attention.head_count", U32, 1)
    maker.string("tokenizer.chat_template", "{{ messages }}")
    maker.tensor("token_embd.weight", (64, 100))
    path.write_bytes(maker.file())


def write_config(folder: Path, port: int, engine_url: str, more: str = "", top: str = "") -> Path:
    """gateway.toml with one listener, one instance and one model; `more` goes to its end."""
    (folder / "models").mkdir(exist_ok=True)
    write_model(folder / "models" / "smol.gguf")
    path = folder / "gateway.toml"
    path.write_text(
        f"""models_dir = "models"
state_dir = "state"
{top}

[[listeners]]
port = {port}

[instances.live]
url = "{engine_url}"
model = "{MODEL}"

[models."{MODEL}"]
path = "models/smol.gguf"
{more}
"""
    )
    return path


class GatewayProcess:
    """`with GatewayProcess(config) as gateway`: started and READY; ended at the end.

    `passed` are listening sockets that it gets as systemd's, under `names`.
    """

    def __init__(
        self, config: Path, passed: Sequence[socket.socket] = (), names: Sequence[str] = ()
    ) -> None:
        self._config = config
        self._passed = passed
        self._names = names
        self.states: list[str] = []
        self.lines: list[str] = []
        self.log: list[str] = []
        self._news = threading.Condition()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind("")  # the kernel chooses an abstract name
        self._address = "@" + self._manager.getsockname()[1:].decode()
        self._threads: list[threading.Thread] = []

    def start(self) -> Self:
        """Returns at once; `await_state` waits."""
        descriptors = [os.dup(one.fileno()) for one in self._passed]
        moves = " ".join(f"{3 + n}<&{old}" for n, old in enumerate(descriptors))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(_SOURCE),
            "NOTIFY_SOCKET": self._address,
        }
        listening = ""
        if descriptors:
            names = ":".join(self._names)
            listening = f"LISTEN_PID=$$ LISTEN_FDS={len(descriptors)} LISTEN_FDNAMES={names} "
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'{listening}exec "$0" -m kloros_llm.gateway --config "$1" {moves}',
                sys.executable,
                str(self._config),
            ],
            pass_fds=descriptors,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in descriptors:
            os.close(one)
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.log)):
            thread = threading.Thread(target=self._read, args=(stream, kept), daemon=True)
            thread.start()
            self._threads.append(thread)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _read(self, stream: Any, kept: list[str]) -> None:
        for line in stream:
            with self._news:
                kept.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _listen(self) -> None:
        while True:
            try:
                state = self._manager.recv(4096).decode()
            except OSError:
                return
            with self._news:
                self.states.append(state)
                self._news.notify_all()

    def await_state(self, beginning: str, count: int = 1) -> None:
        """Until systemd would have been told this `count` times."""

        def told() -> bool:
            return sum(state.startswith(beginning) for state in self.states) >= count

        with self._news:
            self._news.wait_for(lambda: told() or self.process.poll() is not None, _WAIT_S)
            assert told(), "\n".join([f"no {beginning}; told: {self.states}", *self.log])

    def await_log(self, text: str) -> str:
        """The first line of the log that has it."""

        def found() -> list[str]:
            return [line for line in self.log if text in line]

        with self._news:
            self._news.wait_for(lambda: bool(found()), _WAIT_S)
            assert found(), "\n".join([f"no {text!r} in", *self.log])
            return found()[0]

    def accesses(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in self.lines]

    def signal(self, number: signal.Signals) -> None:
        """To the gateway: bash has become it."""
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            status = self.process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for thread in self._threads:
            thread.join(10)
        return status

    def __enter__(self) -> Self:
        self.start()
        try:
            self.await_state("READY=1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join(10)
        self._manager.close()
