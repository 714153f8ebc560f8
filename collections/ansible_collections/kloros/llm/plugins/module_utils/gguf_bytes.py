"""Where a GGUF header's bytes come from: a file, a URL by range requests, or memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final, Protocol, Self

from .http_client import HttpClient, HttpError, HubFacts, Response, display_url, may_share_token

MIB: Final = 1024 * 1024
FIRST_BYTES: Final = 4 * MIB
LIMIT_BYTES: Final = 64 * MIB
MAX_REQUESTS: Final = 16
MAX_FRUITLESS: Final = 4  # answers without a byte
_READ_BYTES: Final = 256 * 1024
# How a CDN answers a signed address that has expired.
_EXPIRED: Final = (400, 401, 403, 404, 410)


class ByteSource(Protocol):
    """Bytes that can be read anywhere. `size_bytes` is None while nobody knows it."""

    @property
    def size_bytes(self) -> int | None: ...

    @property
    def description(self) -> str:
        """What messages call it."""

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on; fewer than `length` only at the end."""

    def close(self) -> None: ...


class FileBytes:
    """A local file. Raises OSError, also where the path is no regular file."""

    def __init__(self, path: Path | str) -> None:
        self.description = str(path)
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ValueError as error:  # a NUL in it
            raise OSError(errno.EINVAL, "no path of a file", repr(str(path))) from error
        state = os.fstat(self._descriptor)
        if not stat.S_ISREG(state.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        self.size_bytes = state.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        chunks = []
        while length > 0:
            chunk = os.pread(self._descriptor, length, offset)
            if not chunk:
                break
            chunks.append(chunk)
            offset += len(chunk)
            length -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class MemoryBytes:
    """The beginning of a file, already in memory; `size_bytes` is that of the whole file.

    By default `content` is the whole file; None says that the size is not known.
    """

    def __init__(
        self, content: bytes, size_bytes: int | None = -1, description: str = "memory"
    ) -> None:
        self._content = content
        self.size_bytes = len(content) if size_bytes == -1 else size_bytes
        self.description = description

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def close(self) -> None:
        """Nothing is held."""


class HttpBytes:
    """The beginning of what lies at a URL: fetched in a few growing ranges, and kept.

    The first request asks for `first_bytes`, the next for three times as much, each later one for
    as much as is there. After a redirect the later ones go to the final address; where that has
    expired, the original is asked once more. `token` goes to the host of `url` only. A server that
    ignores ranges is read as far as needed. Nothing is read beyond `limit_bytes`. Raises HttpError.

    `requests` counts those answered, a redirect (or several at once) as one more; `fetched_bytes`
    the bytes of the answers that were read. `hub` is what a Hub said of the file.
    """

    def __init__(
        self,
        client: HttpClient,
        url: str,
        token: str | None = None,
        *,
        first_bytes: int = FIRST_BYTES,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.size_bytes: int | None = None
        self.description = display_url(url)
        self.requests = 0
        self.fetched_bytes = 0
        self.hub = HubFacts()
        self._client = client
        self._url = url
        self._token = token
        self._first_bytes = first_bytes
        self._limit_bytes = limit_bytes
        self._final_url = url
        self._asked_again = False
        self._etag: str | None = None
        self._data = bytearray()
        self._ended = False
        self._fruitless = 0
        self._target = 0
        self._stream: Response | None = None  # of a server that ignores ranges

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stream:
            self._stream.__exit__()
            self._stream = None

    def read_at(self, offset: int, length: int) -> bytes:
        stop = offset + length
        while len(self._data) < stop and not self._ended:
            self._fetch(stop)
        return bytes(self._data[offset:stop])

    def _fetch(self, stop: int) -> None:
        """Get some more, if possible up to `stop`."""
        if self.size_bytes is not None:
            stop = min(stop, self.size_bytes)
        if stop > self._limit_bytes:
            raise HttpError(
                f"{self.description}: byte {stop} is asked for, but at most {self._limit_bytes} "
                "bytes are read of a header"
            )
        if self._stream is None:
            target = min(max(stop, self._grown_target()), self._limit_bytes)
            response = self._ask(target)
            if response is None:
                self._ended = True
                return
        else:
            target, response = stop, self._stream
        before = len(self._data)
        try:
            if response.status == 200 and self._stream is None:
                self._stream, target = response, stop
                self._pass_over(response, before)
            self._receive(response, target)
            failure = "no bytes came"
        except HttpError as error:
            self.close()
            failure = str(error)
        if response is not self._stream:
            response.__exit__()
        if len(self._data) == before and not self._ended:
            self._fruitless += 1
            if self._fruitless >= MAX_FRUITLESS:
                raise HttpError(
                    f"{self.description}: byte {before} never came, {self._fruitless} times "
                    f"({failure}); the server is in trouble, try again later"
                )
            self._client.wait_before_retry(self._fruitless, failure)

    def _grown_target(self) -> int:
        """Where the next range is to end: 4, 16, 32, 64 MiB; the same again after a break."""
        if not self._target:
            self._target = self._first_bytes
        elif len(self._data) >= self._target:
            self._target = max(4 * self._first_bytes, 2 * self._target)
        return self._target

    def _receive(self, response: Response, target: int) -> None:
        """Read until `target` bytes are there, or the answer ends."""
        while len(self._data) < target:
            chunk = response.read(min(_READ_BYTES, target - len(self._data)))
            if not chunk:
                self._at_end_of(response)
                break
            self.fetched_bytes += len(chunk)
            self._data += chunk
        if len(self._data) == self.size_bytes:
            self._ended = True

    def _at_end_of(self, response: Response) -> None:
        if response is self._stream:
            self.close()
            if self.size_bytes is None:
                self.size_bytes = len(self._data)
                self._ended = True

    def _pass_over(self, response: Response, count: int) -> None:
        while count:
            chunk = response.read(min(_READ_BYTES, count))
            if not chunk:
                raise HttpError(f"{self.description}: the transfer broke off", transient=True)
            self.fetched_bytes += len(chunk)
            count -= len(chunk)

    def _ask(self, target: int) -> Response | None:
        """An answer that begins at the first missing byte, or one with everything (200).

        None where nothing is missing.
        """
        start = len(self._data)
        response = self._request({"Range": f"bytes={start}-{target - 1}"})
        if response is None:
            self.size_bytes = start
            return None
        try:
            self._check(response, start)
        except HttpError:
            response.__exit__()
            raise
        return response

    def _request(self, headers: dict[str, str]) -> Response | None:
        """None where the file has no byte more (416)."""
        while True:
            if self.requests >= MAX_REQUESTS:
                raise HttpError(
                    f"{self.description}: {self.requests} requests brought only "
                    f"{len(self._data)} bytes; the server is in trouble, try again later"
                )
            url = self._final_url
            token = self._token if may_share_token(self._url, url) else None
            try:
                response = self._client.request("GET", url, headers=headers, token=token)
            except HttpError as error:
                self.requests += 1
                if error.status == 416 and self.size_bytes is None:
                    return None
                expired = url != self._url and error.status in _EXPIRED
                if not expired or self._asked_again:
                    raise
                self._asked_again = True
                self._final_url, self._etag = self._url, None
                continue
            self.requests += 1 if response.url == url else 2
            self._final_url = response.url
            return response

    def _check(self, response: Response, start: int) -> None:
        if response.status not in (200, 206):
            raise HttpError(
                f"{self.description}: HTTP {response.status} instead of the file's bytes; check "
                "the source",
                response.status,
            )
        if response.status == 206:
            stated = response.content_range
            if not stated or stated[0] != start:
                raise HttpError(
                    f"{self.description}: asked for the bytes from {start} on, the server answers "
                    f"with the range {response.headers.get('Content-Range')!r}"
                )
        size_bytes, etag = response.total_size, response.strong_etag
        if _differ(self.size_bytes, size_bytes) or _differ(self._etag, etag):
            raise HttpError(
                f"{self.description}: the file changed while it was being read; try again"
            )
        self.size_bytes = self.size_bytes if size_bytes is None else size_bytes
        self._etag = etag or self._etag
        if not start:
            self.hub = response.hub


def _differ(known: object, stated: object) -> bool:
    return known is not None and stated is not None and known != stated
