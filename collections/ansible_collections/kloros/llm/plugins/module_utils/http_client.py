"""A small HTTP client for big files, on the standard library alone.

Proxies come from the environment (`https_proxy`, `no_proxy`, …) by urllib's rules; the requests
themselves are http.client's, so that a connection can be kept for the next one. Redirects are
followed one by one, so that the token can be dropped on the way to another host and the Hub's own
headers can be read on the way.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import re
import socket
import ssl
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Protocol, Self, cast
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

USER_AGENT = "kloros-llm"
MAX_REDIRECTS = 10
MAX_ATTEMPTS = 6
# A wrong name or a closed port hardly ever heals: tell sooner.
MAX_ATTEMPTS_UNREACHABLE = 3
# Of who waits for a header nothing is lost by asking again later.
MAX_ATTEMPTS_HEADER = 3
MAX_TIMEOUT_S = 86_400
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No file is bigger, and Python refuses to read numbers of some thousand digits.
_NUMBER = r"[0-9]{1,18}"
# What is left of an answer is read rather than the connection given up, up to here.
_WORTH_READING_BYTES = 64 * 1024


class HttpError(Exception):
    """A request that brought no usable answer. `status` is None where no server answered.

    `transient`: the next attempt may succeed, after `retry_after_s` where the server asks for it;
    `attempts` is how many of them make sense.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        transient: bool = False,
        retry_after_s: float | None = None,
        attempts: int = MAX_ATTEMPTS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient
        self.retry_after_s = retry_after_s
        self.attempts = attempts


@dataclass(frozen=True)
class HubFacts:
    """What a Hugging Face Hub says of a file (headers of the Hub itself, never of its CDN)."""

    commit: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None


class _Body(Protocol):
    @property
    def status(self) -> int | None: ...
    @property
    def headers(self) -> Message: ...
    def read1(self, n: int = -1) -> bytes: ...
    def readinto1(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


class _Answer(http.client.HTTPResponse):
    """http.client's response, which can also be read into a buffer as bytes come in."""

    was_cut = False
    """Whether, when it was closed, something was left to read."""

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        if self.fp is None or self.chunked or self.length is None:
            data = self.read1(len(view))
            view[: len(data)] = data
            return len(data)
        got = self.fp.readinto1(view[: self.length])
        self.length -= got
        return got

    def close(self) -> None:
        self.was_cut = self.was_cut or not (self.isclosed() or self.length == 0)
        super().close()


class Response:
    """An answer whose body is still to be read; close it or use it as a context manager.

    `url` is where it came from in the end; `trusted` says whether that is still the way that the
    caller named, where the token may go.
    """

    def __init__(self, body: _Body, url: str, hub: HubFacts, *, trusted: bool = True) -> None:
        self._body = body
        self.status = body.status or 0
        self.headers = body.headers
        self.url = url
        self.hub = hub
        self.trusted = trusted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._body.close()

    @property
    def length(self) -> int | None:
        """Content-Length, None where the server does not state it."""
        return _natural(self.headers.get("Content-Length"))

    @property
    def content_range(self) -> tuple[int, int | None] | None:
        """(first byte, total size) of a 206; the total is None where the server hides it."""
        match = re.fullmatch(
            rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)",
            (self.headers.get("Content-Range") or "").strip(),
        )
        if not match:
            return None
        return int(match[1]), None if match[2] == "*" else int(match[2])

    @property
    def total_size(self) -> int | None:
        """Size of the whole file where this answer states it (not: of one range)."""
        if self.status == 206:
            return self.content_range[1] if self.content_range else None
        return self.length if self.status == 200 else None

    @property
    def strong_etag(self) -> str | None:
        """The ETag, quotes included, where byte ranges of it may be joined (RFC 9110, 8.8.1)."""
        etag = (self.headers.get("ETag") or "").strip()
        return etag if len(etag) > 2 and etag.startswith('"') and etag.endswith('"') else None

    @property
    def last_modified(self) -> str | None:
        return self.headers.get("Last-Modified")

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes, as soon as there are any; empty at the end.

        Raises HttpError (transient) where the connection breaks. The end may come before the
        announced length: comparing is the caller's business.
        """
        try:
            return self._body.read1(limit)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def read_into(self, buffer: memoryview) -> int:
        """As `read`, into `buffer`: the number of bytes that came, 0 at the end."""
        try:
            return self._body.readinto1(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> HttpError:
        return HttpError(
            f"{display_url(self.url)}: the transfer broke off ({_reason(error)})", transient=True
        )


class HttpClient:
    """`timeout_s` bounds connecting and every single wait for bytes, not the whole transfer.

    `sleep` is called with seconds (None: really wait); `on_wait` with a reason before each wait.
    Threads may share a client. Raises HttpError where nobody could wait so long.
    """

    def __init__(
        self,
        timeout_s: float = 30.0,
        sleep: Callable[[float], None] | None = None,
        on_wait: Callable[[str], None] = lambda _: None,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise HttpError(
                f"a connection cannot be waited for {timeout_s} seconds; needed: more than 0, at "
                f"most {MAX_TIMEOUT_S} (a day)"
            )
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._on_wait = on_wait
        self._max_attempts = max_attempts
        self._proxies = urllib.request.getproxies()
        self._context: ssl.SSLContext | None = None
        self._context_lock = threading.Lock()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        stop_at_foreign_redirect: bool = False,
    ) -> Response:
        """The final answer with a status below 300; everything else raises HttpError.

        `token` goes to the host of `url` only. `stop_at_foreign_redirect` gives back the
        redirect itself once it leads to another host: enough for a HEAD to a Hub, whose CDN
        refuses HEAD on signed URLs.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return Connection(self, keep=False).request(
                    method,
                    url,
                    headers=headers,
                    token=token,
                    stop_at_foreign_redirect=stop_at_foreign_redirect,
                )
            except HttpError as error:
                if not error.transient or attempt >= min(error.attempts, self._max_attempts):
                    raise
                self.wait_before_retry(attempt, str(error), error.retry_after_s)

    def connection(self) -> Connection:
        """A connection that is kept from one request to the next; for one thread."""
        return Connection(self, keep=True)

    def wait_before_retry(
        self,
        attempt: int,
        reason: str,
        retry_after_s: float | None = None,
        wake: threading.Event | None = None,
    ) -> None:
        """Sleep before attempt number `attempt` + 1 (attempts count from 1).

        `wake` ends the wait early.
        """
        delay_s = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
        if retry_after_s is not None:
            delay_s = max(delay_s, retry_after_s)
        self._on_wait(reason)
        if self._sleep is not None:
            self._sleep(delay_s)
        else:
            (wake or threading.Event()).wait(delay_s)

    def _dial(self, parts: SplitResult) -> http.client.HTTPConnection:
        """An unconnected connection to the host of a URL, or to the proxy that is to be used."""
        host = parts.hostname or ""
        address = f"{host}:{parts.port}" if parts.port else host
        given = self._proxies.get(parts.scheme)
        if not given or urllib.request.proxy_bypass(address):
            return self._connection(parts.scheme, host, parts.port)
        proxy, headers = _proxy(given)
        if parts.scheme == "http":
            return self._connection(proxy.scheme, proxy.hostname or "", proxy.port)
        connection = self._connection("https", proxy.hostname or "", proxy.port)
        connection.set_tunnel(host, parts.port or _DEFAULT_PORTS["https"], headers)
        return connection

    def _by_proxy(self, parts: SplitResult) -> dict[str, str] | None:
        """The headers for a proxy that wants the whole URL; None where there is none."""
        given = self._proxies.get("http")
        address = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        if parts.scheme != "http" or not given or urllib.request.proxy_bypass(address):
            return None
        return _proxy(given)[1]

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._timeout_s, context=self._tls()
            )
        connection.response_class = _Answer
        return connection

    def _tls(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = ssl.create_default_context()
                self._context.set_alpn_protocols(["http/1.1"])
            return self._context


class Connection:
    """One request after the other, over one socket as long as host and server allow it.

    Close it or use it as a context manager. One thread uses it; only `abort` may come from others.
    """

    def __init__(self, client: HttpClient, *, keep: bool) -> None:
        self._client = client
        self._keep = keep
        self._http: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str] | None = None
        self._answer: _Answer | None = None
        self._socket: socket.socket | None = None
        self._aborted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next request dials anew."""
        if self._http is not None:
            self._http.close()
        self._http = self._answer = self._socket = None

    def abort(self) -> None:
        """End whatever another thread waits for here, now and from now on."""
        self._aborted = True
        if (connected := self._socket) is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: it would take the TLS state from under the reader.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        stop_at_foreign_redirect: bool = False,
    ) -> Response:
        """As HttpClient.request, but one attempt: waiting and asking again is the caller's."""
        trusted = True  # still on the way that the caller named
        seen: set[str] = set()
        hub = HubFacts()
        while True:
            if url in seen or len(seen) >= MAX_REDIRECTS:
                kind = "a redirect loop" if url in seen else f"more than {MAX_REDIRECTS} redirects"
                raise HttpError(
                    f"{display_url(url)}: {kind}; the server is misconfigured, check the address"
                )
            seen.add(url)
            body = self._send(method, url, headers or {}, token if trusted else None)
            if trusted:
                hub = _merge(hub, _hub_facts(body.headers))
            status = body.status or 0
            target = body.headers.get("Location")
            if status in _REDIRECTS and target:
                location = _checked_target(url, target)
                foreign = not may_share_token(url, location)
                if foreign and stop_at_foreign_redirect:
                    return Response(body, url, hub, trusted=trusted)
                self._be_done_with(body)
                trusted = trusted and not foreign
                url = location
            elif status < 300:
                _check_encoding(body, url)
                return Response(body, url, hub, trusted=trusted)
            else:
                self._be_done_with(body)
                raise _refusal(body, url, token, trusted)

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], token: str | None
    ) -> _Answer:
        parts = urlsplit(url)
        origin = (parts.scheme, parts.netloc)
        kept = self._is_free() and self._origin == origin
        if not kept:
            self.close()
        self._origin = origin
        sent = {"User-Agent": USER_AGENT, **headers}
        # A compressed body would break ranges and sizes.
        sent["Accept-Encoding"] = "identity"
        if not self._keep:
            sent["Connection"] = "close"
        if token:
            sent["Authorization"] = f"Bearer {token}"
        selector = quote(
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            encoding="iso-8859-1",
            safe=string.punctuation,
        )
        for_proxy = self._client._by_proxy(parts)
        if for_proxy is not None:
            sent |= for_proxy
            selector = f"http://{parts.netloc.rpartition('@')[2]}{selector}"
        try:
            try:
                return self._exchange(method, parts, selector, sent)
            except (ConnectionError, http.client.BadStatusLine):
                # The server may hang up while a kept connection is idle; that is no failure.
                if not kept or self._aborted:
                    raise
                self.close()
                return self._exchange(method, parts, selector, sent)
        except (http.client.InvalidURL, UnicodeError) as error:
            self.close()
            raise HttpError(f"{display_url(url)}: this is no usable address ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unreachable(url, error) from error

    def _exchange(
        self, method: str, parts: SplitResult, selector: str, headers: Mapping[str, str]
    ) -> _Answer:
        if self._http is None:
            self._http = self._client._dial(parts)
            self._http.connect()
            self._socket = self._http.sock
        if self._aborted:
            raise ConnectionAbortedError("the transfer was stopped")
        self._http.request(method, selector, headers=dict(headers))
        answer = self._answer = cast("_Answer", self._http.getresponse())
        if not self._keep and self._http.sock is not None:
            # From here on the answer alone holds the socket, and closes it.
            self._http.sock.close()
            self._http.sock = None
        return answer

    def _is_free(self) -> bool:
        """Whether the next request can go over the connection that is there."""
        if self._http is None or self._http.sock is None:
            return False
        if self._answer is not None:
            self._answer.close()
            return not self._answer.was_cut
        return True

    def _be_done_with(self, body: _Answer) -> None:
        """Read the little that is left, for the connection's sake."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            if self._keep and body.length is not None and body.length <= _WORTH_READING_BYTES:
                body.read()
        body.close()


def _check_encoding(body: _Body, url: str) -> None:
    """Whoever compresses unasked sends bytes that no size, range or digest is about."""
    encoding = (body.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        body.close()
        raise HttpError(
            f"{display_url(url)}: the server sends the file compressed "
            f"({_printable(encoding)}), although that was not asked for; it or a proxy on the way "
            "is misconfigured: use another endpoint"
        )


def _proxy(given: str) -> tuple[SplitResult, dict[str, str]]:
    """The proxy of a variable's value, and the headers that it wants."""
    parts = urlsplit(given if "://" in given else f"http://{given}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HttpError(
            f"the proxy variables name a proxy of kind {parts.scheme!r}; only http(s) proxies can "
            "be used, check http_proxy and https_proxy"
        )
    if parts.username is None:
        return parts, {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return parts, {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _unreachable(url: str, cause: Exception) -> HttpError:
    where = display_url(url)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return HttpError(
            f"{where}: the certificate is not trusted ({_reason(cause)}); where a company "
            "proxy opens TLS, install its CA on the host (update-ca-certificates)"
        )
    lasting = isinstance(cause, ConnectionRefusedError | socket.gaierror)
    return HttpError(
        f"{where}: no answer ({_reason(cause)}); check the address, the host's network and "
        "its proxy variables (https_proxy, no_proxy)",
        transient=True,
        attempts=MAX_ATTEMPTS_UNREACHABLE if lasting else MAX_ATTEMPTS,
    )


def _refusal(body: _Body, url: str, token: str | None, trusted: bool) -> HttpError:
    status = body.status or 0
    retry_after_s = _retry_after_s(body.headers.get("Retry-After"))
    transient = status in _TRANSIENT
    if transient and retry_after_s is not None and retry_after_s > MAX_RETRY_AFTER_S:
        return HttpError(
            f"{display_url(url)}: HTTP {status}, and the server asks to wait "
            f"{retry_after_s:.0f} s (more than {MAX_RETRY_AFTER_S:.0f} s); try again later",
            status,
        )
    return HttpError(
        f"{display_url(url)}: HTTP {status}{_stated_reason(body.headers)}; "
        f"{_advice(status, bool(token), trusted)}",
        status,
        transient=transient,
        retry_after_s=retry_after_s,
    )


def display_url(url: str) -> str:
    """The URL for messages: signed queries and user names stay out."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return _printable(f"{parts.scheme}://{host}{port}{parts.path}", 2000)


_ADVICE = {
    404: "nothing is there: check owner, repository, path and revision",
    407: "the proxy wants a login: check the proxy variables",
    410: "what was there is gone: choose another source",
    416: "the server has fewer bytes than were announced",
    429: "too many requests, also after waiting: try again later or give a token",
}


def _advice(status: int, with_token: bool, trusted: bool) -> str:
    if status in (401, 403):
        return _advice_on_access(with_token, trusted)
    if status in _TRANSIENT and status not in _ADVICE:
        return "the server has trouble, also after several attempts: try again later"
    return _ADVICE.get(status, "the server cannot serve this address: check the source")


def _advice_on_access(with_token: bool, trusted: bool) -> str:
    if not trusted:
        return "another host than the one asked for refuses; the token is never sent there"
    if with_token:
        return (
            "the token was sent and does not open this: it is wrong or expired, or its account "
            "has not accepted the repository's terms, or the name is misspelt"
        )
    return (
        "the repository is gated or private, or does not exist: check the name, accept its terms "
        "on the Hub and give a read token (option hf_token, variable gguf_models_hf_token)"
    )


def _checked_target(url: str, target: str) -> str:
    location = urljoin(url, target)
    try:
        parts = urlsplit(location)
        usable = parts.scheme in ("http", "https") and parts.hostname
        _ = parts.port  # raises where it is no number
    except ValueError:
        usable = None
    if not usable:
        raise HttpError(f"{display_url(url)}: redirects to something that is no http(s) URL")
    return location.partition("#")[0]


def may_share_token(url: str, target: str) -> bool:
    """Whether `target` is the host that a token for `url` may go to.

    Same scheme, name and port; or the usual upgrade of one name from http to https.
    """
    one, other = urlsplit(url), urlsplit(target)
    if one.hostname != other.hostname:
        return False
    here = (one.scheme, one.port or _DEFAULT_PORTS.get(one.scheme))
    there = (other.scheme, other.port or _DEFAULT_PORTS.get(other.scheme))
    return here == there or (here == ("http", 80) and there == ("https", 443))


def _hub_facts(headers: Message) -> HubFacts:
    etag = (headers.get("X-Linked-Etag") or "").strip().removeprefix("W/").strip('"').lower()
    commit = (headers.get("X-Repo-Commit") or "").strip()
    return HubFacts(
        commit=commit if re.fullmatch(r"[0-9A-Fa-f]{7,64}", commit) else None,
        sha256=etag if _SHA256.fullmatch(etag) else None,
        size_bytes=_natural(headers.get("X-Linked-Size")),
    )


def _merge(first: HubFacts, later: HubFacts) -> HubFacts:
    return HubFacts(
        first.commit or later.commit,
        first.sha256 or later.sha256,
        later.size_bytes if first.size_bytes is None else first.size_bytes,
    )


def _natural(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if re.fullmatch(_NUMBER, text) else None


def _retry_after_s(text: str | None) -> float | None:
    seconds = _natural(text)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text or "").timestamp() - time.time())
    except ValueError:
        return None


def _stated_reason(headers: Message) -> str:
    printable = _printable(headers.get("X-Error-Message") or "")
    return f" ({printable})" if printable else ""


def _reason(error: BaseException) -> str:
    return _printable(str(error)) or type(error).__name__


def _printable(text: str, limit: int = 200) -> str:
    """What a server says may hold anything, also what a terminal obeys."""
    return "".join(char for char in text if char.isprintable())[:limit]
