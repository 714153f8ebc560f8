"""One request over HTTP: time-outs of every phase, an end from any thread, lines as they come."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from http.client import HTTPException, IncompleteRead
from typing import Any, Final, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import DecodeError, HTTPError, ReadTimeoutError

from .errors import LlmConnectionError, LlmProtocolError, LlmTimeoutError, LlmUsageError
from .timeouts import Clock

_CHUNK_BYTES: Final = 1 << 16


class CancelledError(Exception):
    """Whoever asked wants no answer any more."""


class Cancel:
    """Ends a request from any thread, also one that waits for the next byte."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End it; whoever waits is woken."""
        with self._lock:
            self._cancelled.set()
            self._shut()

    def attach(self, connected: socket.socket | None) -> None:
        """The socket that the answer comes over."""
        with self._lock:
            self._socket = connected
            if self.cancelled:
                self._shut()

    def close_socket(self) -> None:
        """The answer is over. urllib3 would keep it until its pool is collected."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def sleep(self, seconds: float) -> None:
        """Wait, unless it is cancelled. Raises CancelledError."""
        if self._cancelled.wait(seconds):
            raise CancelledError

    def set_timeout(self, seconds: float | None) -> None:
        """Of the next read."""
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.settimeout(seconds)

    def _shut(self) -> None:
        # Closing it would let another thread's read go on, and on a number that is used anew.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


# http.client forgets its socket when the server says that it will close: time-outs need it.
_CONNECTING: ContextVar[Cancel] = ContextVar("connecting")


class _HttpConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _CONNECTING.get().attach(self.sock)


class _HttpsConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _CONNECTING.get().attach(self.sock)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class Reply:
    """An answer whose body is still to come."""

    def __init__(
        self,
        response: requests.Response,
        clock: Clock,
        cancel: Cancel,
    ) -> None:
        self.status = response.status_code
        self.server = response.headers.get("Server", "")
        self._response = response
        self._clock = clock
        self._cancel = cancel

    def chunks(self) -> Iterator[bytes]:
        """The body, as it comes. Raises LlmConnectionError, LlmTimeoutError, CancelledError."""
        headers = self._response.headers
        framed = "Content-Length" in headers or "chunked" in headers.get("Transfer-Encoding", "")
        chunks = self._response.iter_content(_CHUNK_BYTES) if framed else _unframed(self._response)
        while chunk := self._next(chunks):
            yield chunk

    def lines(self) -> Iterator[bytes]:
        """The body's lines, each when it is there, without its end. Raises as `chunks`."""
        rest = b""
        for chunk in self.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def data(self) -> Any:
        """The body as JSON; a text where it is none. Raises as `chunks`."""
        body = b"".join(self.chunks())
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return body.decode("utf-8", "replace")

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        if self._cancel.cancelled:
            raise CancelledError
        self._cancel.set_timeout(self._clock.left())
        try:
            return next(chunks, b"")
        except (requests.RequestException, OSError) as error:
            raise _failure(error, self._response.url, self._clock, self._cancel) from error

    def close(self) -> None:
        """Drops the connection: the engine stops at once."""
        self._response.close()
        self._cancel.close_socket()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Wire:
    """The way to one engine. Safe to use from several threads: every request has its own."""

    def __init__(self, base_url: str, api_key: str | None, verify: bool | str = True) -> None:
        self.base_url = normal_url(base_url)
        self._verify = verify
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            # Whoever sends it would say it in the error.
            if not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
                raise LlmUsageError(f"the API key for {self.base_url} is no text for a header")
            self._headers["Authorization"] = f"Bearer {api_key}"

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, clock: Clock, cancel: Cancel
    ) -> Reply:
        """Asks; returns when the answer's head is there.

        Raises LlmConnectionError, LlmTimeoutError, CancelledError.
        """
        url = self.base_url + path
        # A connection of its own: llama-server closes those that are kept, and they are near.
        # The engines are the host's own: no proxy, no netrc of the environment.
        session = requests.Session()
        session.trust_env = False
        adapter = _Adapter()
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        token = _CONNECTING.set(cancel)
        try:
            response = session.request(
                method,
                url,
                data=None if body is None else _encoded(body),
                headers=self._headers | ({} if body is None else _JSON),
                timeout=(clock.timeouts.connect_s, clock.left()),
                allow_redirects=False,
                stream=True,
                verify=self._verify,
            )
        except (requests.RequestException, OSError) as error:
            cancel.close_socket()
            raise _failure(error, url, clock, cancel) from error
        finally:
            _CONNECTING.reset(token)
        return Reply(response, clock, cancel)


_JSON: Final = {"Content-Type": "application/json"}


def _encoded(body: Mapping[str, Any]) -> bytes:
    # Half a surrogate pair is no text: it is replaced, as by Ollama.
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")


def normal_url(text: str) -> str:
    """`127.0.0.1:11434` or a whole URL. Raises LlmUsageError."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    if "@" in url.split("/")[2]:
        raise LlmUsageError("a user and password in a URL would be shown: give api_key instead")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        usable = parts.scheme in ("http", "https") and bool(host)
        usable = usable and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise LlmUsageError(f"{text!r} is no URL of an engine; one is http://127.0.0.1:8080")
    url = url.rstrip("/")
    # An address to listen on is none to go to.
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")  # noqa: S104
    if near:
        port = "" if parts.port is None else f":{parts.port}"
        url = f"{parts.scheme}://{near}{port}{parts.path}".rstrip("/")
    return url.removesuffix("/v1")


def _unframed(response: requests.Response) -> Iterator[bytes]:
    """What has come, as soon as it has: `iter_content` waits until its whole size is there."""
    try:
        while piece := response.raw.read1(_CHUNK_BYTES, decode_content=True):
            yield piece
    except DecodeError as error:
        raise requests.exceptions.ContentDecodingError(error) from error
    except HTTPError as error:
        raise requests.ConnectionError(error) from error


def _failure(error: Exception, url: str, clock: Clock, cancel: Cancel) -> Exception:
    if cancel.cancelled:
        return CancelledError()
    if isinstance(error, requests.ConnectTimeout):
        bound = clock.timeouts.connect_s
        return LlmTimeoutError(f"{url}: no connection within {bound:g} s", "connect")
    if _is_timeout(error):
        expired = clock.expired()
        return LlmTimeoutError(f"{url}: {expired}", expired.phase)
    if isinstance(error, requests.exceptions.ContentDecodingError):
        return LlmProtocolError(f"{url}: {error}")
    return LlmConnectionError(f"{url}: {_reason(error)}")


def _is_timeout(error: Exception) -> bool:
    # While the body is read, requests calls a time-out a ConnectionError.
    return isinstance(error, requests.Timeout | TimeoutError) or any(
        isinstance(argument, ReadTimeoutError) for argument in error.args
    )


def _reason(error: BaseException) -> str:
    """What the system said, out of the wrappings of requests and urllib3."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionRefusedError):
            return "nobody listens there (connection refused); is its unit running?"
        if isinstance(inner, ConnectionResetError | BrokenPipeError):
            return "the connection was reset"
        if isinstance(inner, socket.gaierror):
            return f"no machine has that name ({inner.strerror})"
        if isinstance(inner, IncompleteRead):
            return "the connection broke off amid the answer"
        if isinstance(inner, HTTPException):
            return "what answers there does not speak HTTP"
        inner = inner.__cause__ or inner.__context__
    return str(error)
