"""A stand-in for Ollama: repeats what a real one answered (tests/wire/transcripts)."""

from __future__ import annotations

import json
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

RECORDED = Path(__file__).parents[2] / "wire/transcripts"


@dataclass(frozen=True)
class Exchange:
    """One recorded exchange; `asked` is the request's JSON."""

    path: str
    asked: Any
    status: int
    content_type: str
    body: bytes


def exchange(name: str) -> Exchange:
    """The exchange in the file of that name."""
    text = (RECORDED / f"{name}.txt").read_bytes().replace(b"\r\n", b"\n")
    request, _, answer = text.partition(b"### RESPONSE\n")
    head, _, asked = request.partition(b"\n\n")
    status, _, rest = answer.partition(b"\n")
    headers, _, body = rest.partition(b"\n\n")
    types = [line for line in headers.split(b"\n") if line.startswith(b"Content-Type")]
    return Exchange(
        path=head.split()[3].decode(),
        asked=json.loads(asked) if asked.strip() else None,
        status=int(status.split()[1]),
        content_type=types[0].partition(b": ")[2].decode(),
        body=body.rpartition(b"\n### TIMES")[0],
    )


class StandInOllama:
    """The running stand-in. `answers` are exchanges by path; `asked` what was asked, in order.

    With `lines` only so many lines of a stream are sent, then `and_then` (bytes) and the end.
    `key` is what it asks for, None nothing. Until `stalls` is set, a stream does not end.
    """

    def __init__(
        self, *names: str, key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.answers = {one.path: one for one in map(exchange, ("03-version", "04-tags", *names))}
        self.asked: list[tuple[str, Any]] = []
        self.key = key
        self.lines: int | None = None
        self.and_then = b""
        self.stalls = threading.Event()
        self.stalls.set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def version_string(self) -> str:
                return ""

            def log_message(self, format: str, *args: Any) -> None:
                """Stay silent."""

            def do_GET(self) -> None:
                stand_in.answer(self)

            def do_POST(self) -> None:
                stand_in.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def bodies(self, path: str) -> list[Any]:
        """What was asked there."""
        return [body for asked_path, body in self.asked if asked_path == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size)) if size else None
        self.asked.append((handler.path, body))
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            self._whole(handler, 401, "application/json", b'{"error":"unauthorized"}')
            return
        found = self.answers.get(handler.path) or exchange("57-err-404-path")
        if "ndjson" not in found.content_type:
            self._whole(handler, found.status, found.content_type, found.body)
            return
        handler.send_response(found.status)
        handler.send_header("Content-Type", found.content_type)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for line in [*found.body.splitlines(keepends=True)[: self.lines], self.and_then]:
            if line:
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        self.stalls.wait()
        handler.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _whole(
        handler: BaseHTTPRequestHandler, status: int, content_type: str, body: bytes
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
