"""Answers as llama-server does on /health, /slots and /props, with what the test says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class StandInLlamaServer:
    """The running stand-in. `health` is its status there; `key` is what the rest asks for."""

    def __init__(
        self, *, health: int = 200, busy: tuple[bool, ...] = (False, True), key: str | None = None
    ) -> None:
        self.health = health
        self.busy = busy
        self.key = key
        self.model_path = "/models/tiny.gguf"
        self.context_tokens = 8192
        self.redirect_to: str | None = None
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Stay silent."""

            def do_GET(self) -> None:
                status, answer = stand_in.answer(self.path, self.headers.get("Authorization"))
                body = json.dumps(answer).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", stand_in.redirect_to or "")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str, authorization: str | None) -> tuple[int, Any]:
        if path == "/health":
            return self.health, {"status": "ok"}
        if self.redirect_to:
            return 302, {}
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": {"code": 401, "message": "Invalid API Key"}}
        if path == "/slots":
            return 200, [
                {"id": number, "n_ctx": self.context_tokens, "is_processing": busy}
                for number, busy in enumerate(self.busy)
            ]
        if path == "/props":
            return 200, {
                "total_slots": len(self.busy),
                "model_path": self.model_path,
                "default_generation_settings": {"n_ctx": self.context_tokens},
            }
        return 404, {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
