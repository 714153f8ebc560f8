"""One JSON line a request on standard output, and what handlers tell about their request."""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from aiohttp import web

_QUEUE_LINES = 10_000


@dataclass(slots=True)
class RequestRecord:
    """What becomes known of one request; it feeds the access log and the metrics.

    A handler sets `model` to the name that the client used and, once it is found, `served` to
    the name that is listed. `received` is of `time.perf_counter`; `status` is set where it is
    not the one that was sent, `body` where prompts are logged.
    """

    id: str
    listener: str
    received: float = field(default_factory=time.perf_counter)
    model: str = ""
    served: str = ""
    first_token_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_s: float = 0.0
    status: int | None = None
    body: str | None = None

    def first_token(self) -> None:
        """The first piece of the answer is here. Later calls change nothing."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.received

    def ended(self, prompt_tokens: int, completion_tokens: int, completion_ms: float) -> None:
        """What the engine counted."""
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.completion_s = completion_ms / 1000


RECORD: web.RequestKey[RequestRecord] = web.RequestKey("record", RequestRecord)


def access_line(
    record: RequestRecord, *, method: str, route: str, status: int, client: str
) -> dict[str, Any]:
    """One line's object: durations in milliseconds, what is not known left out."""
    line: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": record.id,
        "listener": record.listener,
        "client": client,
        "method": method,
        "route": route,
        "status": status,
        "ms": round((time.perf_counter() - record.received) * 1000, 1),
    }
    if record.served or record.model:
        # An unknown name is the client's text: as long as it likes.
        line["model"] = record.served or record.model[:200]
    if record.first_token_s is not None:
        line["first_token_ms"] = round(record.first_token_s * 1000, 1)
    if record.prompt_tokens or record.completion_tokens:
        line["prompt_tokens"] = record.prompt_tokens
        line["tokens"] = record.completion_tokens
    if record.body is not None:
        line["body"] = record.body
    return line


class AccessLog:
    """Writes lines by a thread: whoever reads them slowly (journald) holds up no request.

    `dropped` counts lines for which there was no room.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def write(self, line: dict[str, Any]) -> None:
        """Queue one object."""
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        # A lone surrogate of a client's name has no UTF-8.
        text = text.encode("utf-8", "replace").decode("utf-8")
        try:
            self._lines.put_nowait(text + "\n")
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, within the time."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._output.write(line)
                if self._lines.empty():
                    self._output.flush()
            except (OSError, ValueError):  # nobody reads any more
                self.dropped += 1
        try:
            self._output.flush()
        except (OSError, ValueError):
            return
