"""One POST over HTTP/1.1 on a connection of its own, its answer read as it comes.

aiohttp's client takes half of the CPU of a streamed token: a parser, a queue, a timer and their
bookkeeping for every part of a body. This does what a stream of an engine needs and no more.
Source of the format: RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from functools import cache
from typing import cast

from yarl import URL

_HEAD_BYTES = 64 << 10
# An engine that is faster than its reader waits from here on.
_HELD_BYTES = 256 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: |$)").match
_NAME = re.compile(rb"[!#$%&'*+.^_`|~\w-]+").fullmatch
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}").fullmatch
_SIZE_LINE_BYTES = 1 << 10


class HttpConnectError(Exception):
    """Nobody took the connection."""


class NotHttpError(Exception):
    """The answer is no HTTP/1.1."""


class _Chunked:
    """Transfer-Encoding: chunked, undone."""

    __slots__ = ("_left", "_line_end_due", "_rest", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._line_end_due = False  # after a chunk
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`. Raises NotHttpError."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        parts = []
        at, size = 0, len(data)
        while at < size and not self.ended:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._line_end_due = not self._left
            elif self._line_end_due:
                if size - at == 1:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise NotHttpError("a chunk is longer than its size")
                at += 2
                self._line_end_due = False
            else:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                self._left = _chunk_size(data[at:end])
                # Nothing follows but trailers, and the connection is not used again.
                self.ended = not self._left
                at = end + 2
        self._rest = data[at:]
        if len(self._rest) > _SIZE_LINE_BYTES and not self.ended:
            raise NotHttpError("a chunk's size has no end")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not _HEX(digits):  # int() takes more: signs, underscores, spaces, 0x
        raise NotHttpError("a chunk without a size")
    return int(digits, 16)


class _Sized:
    """A body with Content-Length."""

    __slots__ = ("_left", "ended")

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.ended = not size_bytes

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`."""
        data = data[: self._left]
        self._left -= len(data)
        self.ended = not self._left
        return data


class _UntilClosed:
    """A body that ends with its connection."""

    ended = False

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data


class HttpStream(asyncio.Protocol):
    """An answer. `open_stream` makes one; `close` it in the end, or in the middle.

    `stall_s`: the longest time without a byte while somebody reads; before the body begins,
    without a sign of life either: `alive_at` gives the time of the last one, by the loop's clock.
    """

    def __init__(
        self, request: bytes, stall_s: float | None, alive_at: Callable[[], float] | None = None
    ) -> None:
        self.status = 0
        self.content_type = ""
        self._request = request
        self._stall_s = stall_s
        self._alive_at = alive_at
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        self._body: _Chunked | _Sized | _UntilClosed = _UntilClosed()
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._request = b""
        self._heard = self._loop.time()
        if self._stall_s:
            self._timer = self._loop.call_later(self._stall_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            if self._head is not None:
                data = self._read_head(data)
                if self._head is not None:
                    return
            if not self._ended and (data := self._body.feed(data)):
                self._alive_at = None
                self._parts.append(data)
                self._held_bytes += len(data)
                if self._held_bytes > _HELD_BYTES and not self._paused and self._transport:
                    self._paused = True
                    self._transport.pause_reading()
            self._ended = self._body.ended
        except NotHttpError as error:
            self._fail(error)
            return
        self._wake()

    def eof_received(self) -> None:
        self._over(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(exc)
        self._stop_timer()
        self._transport = None

    # inside

    def _over(self, exc: Exception | None) -> None:
        if isinstance(self._body, _UntilClosed) and self._head is None and exc is None:
            self._ended = True
            self._wake()
        elif not self._ended:
            self._fail(exc or ConnectionResetError("the connection closed before its answer's end"))

    def _read_head(self, data: bytes) -> bytes:
        """Returns what of the body came along with its end."""
        head = cast(bytearray, self._head)
        searched = max(0, len(head) - 3)
        head += data
        while (end := head.find(b"\r\n\r\n", searched)) >= 0:
            lines = bytes(head[:end]).split(b"\r\n")
            del head[: end + 4]
            searched = 0
            found = _STATUS(lines[0])
            if found is None:
                raise NotHttpError("an answer without a status line")
            if found[1].startswith(b"1"):  # not the answer yet
                continue
            self.status = int(found[1])
            self._read_headers(lines[1:])
            self._head = None
            return bytes(head)
        if len(head) > _HEAD_BYTES or not head.startswith(b"HTTP/1."[: len(head)]):
            raise NotHttpError("no status line and headers")
        return b""

    def _read_headers(self, lines: list[bytes]) -> None:
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME(name):
                raise NotHttpError("a header without a name")
            headers[name.lower()] = value.strip()
        kind = headers.get(b"content-type", b"").decode("latin-1")
        self.content_type = kind.partition(";")[0].strip().lower()
        coding = headers.get(b"transfer-encoding", b"").lower()
        size = headers.get(b"content-length", b"")
        if coding:
            if coding != b"chunked":
                raise NotHttpError("an unknown transfer encoding")
            self._body = _Chunked()
        elif self.status in {204, 304}:
            self._body = _Sized(0)
        elif size:
            if not size.isdigit():
                raise NotHttpError("a length that is no number")
            self._body = _Sized(int(size))

    def _look(self) -> None:
        """A timer for each part of a body would cost more than reading it: it runs on instead."""
        if self._ended:
            return
        stall_s = cast(float, self._stall_s)
        heard = self._heard if self._alive_at is None else max(self._heard, self._alive_at())
        due = heard + stall_s
        if self._paused:  # not the engine's fault
            due = self._loop.time() + stall_s
        elif due <= self._loop.time():
            self._fail(TimeoutError())
            return
        self._timer = self._loop.call_at(due, self._look)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._ended = True
        self._wake()
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # of the reader

    async def head(self) -> None:
        """Waits for `status` and `content_type`. Raises as `read` does."""
        while self._head is not None and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._head is not None and self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """What came since; b"" at the end.

        Raises NotHttpError; TimeoutError where nothing came for too long; OSError where the
        connection broke off.
        """
        parts = self._parts
        while not parts and not self._ended:
            self._waiter = self._loop.create_future()
            await self._waiter
        if not parts:
            if self._error is not None:
                raise self._error
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._held_bytes = 0
        if self._paused and self._transport is not None and not self._ended:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Closes the connection at once, whatever is under way."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def open_stream(
    url: URL,
    headers: Mapping[str, str],
    body: bytes,
    *,
    connect_s: float | None,
    stall_s: float | None,
    alive_at: Callable[[], float] | None = None,
) -> HttpStream:
    """POST `body`; returns when the answer's head is here. `stall_s` and `alive_at`: HttpStream's.

    Raises HttpConnectError, and what HttpStream.read raises.
    """
    fields = {"Host": url.authority, "Accept": "*/*", **headers, "Content-Length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header with a line end")
    lines = [f"POST {url.raw_path_qs} HTTP/1.1", *lines, "Connection: close", "", ""]
    request = "\r\n".join(lines).encode() + body
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_s):
            _, stream = await loop.create_connection(
                lambda: HttpStream(request, stall_s, alive_at),
                url.host or "",
                url.port or 0,
                ssl=_tls() if url.scheme == "https" else None,
            )
    except TimeoutError as error:
        raise HttpConnectError(f"no connection to {url.authority} in time") from error
    except OSError as error:
        raise HttpConnectError(str(error)) from error
    try:
        await stream.head()
    except BaseException:
        stream.close()
        raise
    return stream
