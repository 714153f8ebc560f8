"""Answers as they come over a connection, and what may be wrong with them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\Z")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)(?:\r\n|\Z)", re.IGNORECASE)
_TYPE = re.compile(rb"\r\ncontent-type: ([^\r\n]*)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: chunked", re.IGNORECASE)
_EMPTY = frozenset({204, 304})

# With what Ollama answers 5xx: statuses and texts, from its recorded exchanges and its source.
_ALLOWED = (
    (500, re.compile(r'option ".*" must be of (type|an array)')),
    (500, re.compile(r"invalid format: ")),
    (500, re.compile(r"template: ")),
    (500, re.compile(r"json: unsupported value: ")),
    (500, re.compile(r"pull model manifest: ")),
    (500, re.compile(r"account unavailable")),
    (503, re.compile(r"account unavailable\Z")),
    # Go's, of what is not HTTP/1.
    (505, re.compile(r"\Z")),
    # llama-server's, of a model that hears nothing.
    (501, re.compile(r"The current model does not support audio input\.")),
)
# The engine is there all the time.
_NEVER = (
    b"internal error",
    b"Traceback",
    b"running the model: unexpected EOF",
    b"server busy, please try again",
    b"Internal Server Error",
)


class AnswerError(Exception):
    """What came is no HTTP/1.1."""


@dataclass
class Answer:
    """One answer; `whole` when its end is here."""

    status: int
    header: bytes
    body: bytes = b""
    whole: bool = False

    @property
    def content_type(self) -> str:
        found = _TYPE.search(self.header)
        return found[1].decode("latin-1") if found else ""


class Answers:
    """Reads what a connection gives; a part of an answer is one of `found` too.

    `heads`: which of them have no body, whatever they say.
    """

    def __init__(self, heads: Sequence[bool] = ()) -> None:
        self.found: list[Answer] = []
        self.whole = 0
        self.ended = False
        self.problem = ""
        self._heads = tuple(heads)
        self._data = b""
        self._left: int | None = None
        self._news = asyncio.Event()

    async def news(self) -> None:
        """Returns when something has come since."""
        await self._news.wait()
        self._news.clear()

    def feed(self, data: bytes) -> None:
        """More bytes. Raises AnswerError."""
        self._data += data
        while self._step():
            pass
        self._news.set()

    def end(self) -> None:
        """Nothing will come any more."""
        self.ended = True
        if self.found and not self.found[-1].whole and self._left == -1:
            self._finish()
        self._news.set()

    def _finish(self) -> bool:
        self.found[-1].whole = True
        self.whole += 1
        return True

    def _step(self) -> bool:
        if not self.found or self.found[-1].whole:
            return self._begin()
        answer = self.found[-1]
        if self._left is None:
            return self._chunk(answer)
        if self._left < 0:
            answer.body, self._data = answer.body + self._data, b""
            return False
        taken = self._data[: self._left]
        answer.body += taken
        self._data = self._data[len(taken) :]
        self._left -= len(taken)
        return self._left == 0 and self._finish()

    def _begin(self) -> bool:
        header, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return False
        line = header.partition(b"\r\n")[0]
        status = _STATUS.match(line)
        if status is None:
            raise AnswerError(f"no status line: {line[:200]!r}")
        self._data = rest
        if status[1][:1] == b"1":
            return True
        self.found.append(Answer(int(status[1]), header))
        length = _LENGTH.search(header)
        number = len(self.found) - 1
        is_head = number < len(self._heads) and self._heads[number]
        if is_head or int(status[1]) in _EMPTY:
            return self._finish()
        if _CHUNKED.search(header):
            self._left = None
        else:
            self._left = int(length[1]) if length else -1
        return self._left != 0 or self._finish()

    def _chunk(self, answer: Answer) -> bool:
        size_text, end, rest = self._data.partition(b"\r\n")
        if not end:
            return False
        size = int(size_text, 16)
        if len(rest) < size + 2:
            return False
        answer.body += rest[:size]
        self._data = rest[size + 2 :]
        return self._finish() if size == 0 else True


def fault_of(answer: Answer) -> str:
    """What is wrong with it; nothing is the empty text. A part of one is looked at too."""
    shown = f"{answer.status} {answer.body[:300]!r}"
    if any(text in answer.body for text in _NEVER):
        return shown
    if answer.status >= 500 and answer.whole:
        told = _error_text(answer)
        if not any(answer.status == status and text.match(told) for status, text in _ALLOWED):
            return shown
    if answer.whole and answer.body:
        lines = answer.body.splitlines() if "ndjson" in answer.content_type else [answer.body]
        try:
            for line in lines if "json" in answer.content_type else ():
                json.loads(line)
        except ValueError as error:
            return f"{error} in {shown}"
    return ""


def _error_text(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(error.get("message")) if isinstance(error, dict) else str(error)
