"""A web server whose every answer the test gives, for what the stand-in Hub does not do."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    """One request; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def first_byte(self) -> int | None:
        """Where the range asked for begins."""
        text = self.headers.get("range", "")
        return int(text.removeprefix("bytes=").partition("-")[0]) if text else None


@dataclass(frozen=True)
class Reply:
    """One answer. `cut_after` closes the connection after so many bytes of the body; `hang_up`
    closes it without any answer; `states_length` False leaves Content-Length out.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hang_up: bool = False
    states_length: bool = True


def redirect(target: str) -> Reply:
    return Reply(302, headers={"Location": target})


def ranged(asked: Asked, body: bytes, **headers: str) -> Reply:
    """The body, or the rest of it that was asked for."""
    first = asked.first_byte
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if first is None:
        return Reply(200, body, named)
    named["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
    return Reply(206, body[first:], named)


class StandInWeb:
    """Serves from entry to exit; `answer` is called with every request."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self._server = _Server(("127.0.0.1", 0), _Handler, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], web: StandInWeb
    ) -> None:
        self.web = web
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind asks the DNS for this machine's name, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Stay silent: requests are recorded instead."""

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers)
        self.server.web.asked.append(asked)
        reply = self.server.web.answer(asked)
        if reply.hang_up:
            self.connection.close()
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.states_length and "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut_after])

    do_GET = do_HEAD = _handle  # noqa: N815 - names that http.server asks for
