"""A small HTTP client for big files, on the standard library alone.

Proxies come from the environment (`https_proxy`, `no_proxy`, …). Redirects are followed one by
one, so that the token can be dropped on the way to another host and the Hub's own headers can be
read on the way.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Protocol, Self, cast
from urllib.parse import urljoin, urlsplit

USER_AGENT = "kloros-llm"
MAX_REDIRECTS = 10
MAX_ATTEMPTS = 6
# A wrong name or a closed port hardly ever heals: tell sooner.
MAX_ATTEMPTS_UNREACHABLE = 3
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 300.0
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HttpError(Exception):
    """A request that brought no usable answer. `status` is None where no server answered."""

    def __init__(self, message: str, status: int | None = None, *, transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient


class _Transient(Exception):  # noqa: N818 - a signal to retry, never seen outside
    def __init__(self, error: HttpError, attempts: int, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.attempts = attempts
        self.retry_after_s = retry_after_s


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
    def close(self) -> None: ...


class Response:
    """An answer whose body is still to be read; close it or use it as a context manager."""

    def __init__(self, body: _Body, url: str, hub: HubFacts) -> None:
        self._body = body
        self.status = body.status or 0
        self.headers = body.headers
        self.url = url
        self.hub = hub

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
            r"bytes (\d+)-\d+/(\d+|\*)", (self.headers.get("Content-Range") or "").strip()
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
            raise HttpError(
                f"{display_url(self.url)}: the transfer broke off ({_reason(error)})",
                transient=True,
            ) from error


class HttpClient:
    """`timeout_s` bounds connecting and every single wait for bytes, not the whole transfer.

    `sleep` is called with seconds; `on_wait` with a reason before each wait.
    """

    def __init__(
        self,
        timeout_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._on_wait = on_wait
        # No error processor and no redirect handler: every status comes back as a response.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

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
                return self._follow(method, url, headers or {}, token, stop_at_foreign_redirect)
            except _Transient as transient:
                if attempt >= transient.attempts:
                    raise transient.error from transient
                self.wait_before_retry(attempt, str(transient.error), transient.retry_after_s)

    def wait_before_retry(
        self, attempt: int, reason: str, retry_after_s: float | None = None
    ) -> None:
        """Sleep before attempt number `attempt` + 1 (attempts count from 1)."""
        delay_s = min(MAX_BACKOFF_S, 2.0 ** (attempt - 1))
        if retry_after_s is not None:
            delay_s = max(delay_s, retry_after_s)
        self._on_wait(reason)
        self._sleep(delay_s)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], token: str | None, stop: bool
    ) -> Response:
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
            body = self._send(method, url, headers, token if trusted else None)
            if trusted:
                hub = _merge(hub, _hub_facts(body.headers))
            status = body.status or 0
            target = body.headers.get("Location")
            if status in _REDIRECTS and target:
                location = _checked_target(url, target)
                foreign = not may_share_token(url, location)
                if foreign and stop:
                    return Response(body, url, hub)
                body.close()
                trusted = trusted and not foreign
                url = location
                continue
            if 200 <= status < 300:
                return Response(body, url, hub)
            try:
                raise self._refusal(body, url, token, trusted)
            finally:
                body.close()

    def _send(self, method: str, url: str, headers: Mapping[str, str], token: str | None) -> _Body:
        request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - only http(s) handlers exist in this opener
        request.add_header("User-Agent", USER_AGENT)
        # A compressed body would break ranges and sizes.
        request.add_header("Accept-Encoding", "identity")
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            answer = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, Exception) else error
            raise self._unreachable(url, cause) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(url, error) from error
        return cast("_Body", answer)

    def _unreachable(self, url: str, cause: Exception) -> Exception:
        where = display_url(url)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return HttpError(
                f"{where}: the certificate is not trusted ({_reason(cause)}); where a company "
                "proxy opens TLS, install its CA on the host (update-ca-certificates)"
            )
        lasting = isinstance(cause, ConnectionRefusedError | socket.gaierror)
        error = HttpError(
            f"{where}: no answer ({_reason(cause)}); check the address, the host's network and "
            "its proxy variables (https_proxy, no_proxy)",
            transient=True,
        )
        return _Transient(error, MAX_ATTEMPTS_UNREACHABLE if lasting else MAX_ATTEMPTS)

    def _refusal(self, body: _Body, url: str, token: str | None, trusted: bool) -> Exception:
        status = body.status or 0
        error = HttpError(
            f"{display_url(url)}: HTTP {status}{_stated_reason(body.headers)}; "
            f"{_advice(status, bool(token), trusted)}",
            status,
            transient=status in _TRANSIENT,
        )
        if status not in _TRANSIENT:
            return error
        retry_after_s = _retry_after_s(body.headers.get("Retry-After"))
        if retry_after_s is not None and retry_after_s > MAX_RETRY_AFTER_S:
            return HttpError(
                f"{display_url(url)}: HTTP {status}, and the server asks to wait "
                f"{retry_after_s:.0f} s (more than {MAX_RETRY_AFTER_S:.0f} s); try again later",
                status,
            )
        return _Transient(error, MAX_ATTEMPTS, retry_after_s)


def display_url(url: str) -> str:
    """The URL for messages: signed queries and user names stay out."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


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
    return int(text) if text.isascii() and text.isdigit() else None


def _retry_after_s(text: str | None) -> float | None:
    seconds = _natural(text)
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text or "").timestamp() - time.time())
    except ValueError:
        return None


def _stated_reason(headers: Message) -> str:
    stated = headers.get("X-Error-Message") or ""
    printable = "".join(char for char in stated if char.isprintable())[:200]
    return f" ({printable})" if printable else ""


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
