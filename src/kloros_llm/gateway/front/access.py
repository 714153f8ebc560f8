"""Who may ask: Host and Origin as Ollama looks at them, and API keys.

Host guards against DNS rebinding: a page of somebody else's whose name is made to resolve to
127.0.0.1 still sends that name. Origin is CORS as gin-contrib/cors does it, OLLAMA_ORIGINS's
syntax included. Everything here is a function of the request's head; nothing is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}{port}"
    for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, bound by nobody
    for scheme in ("http", "https")
    for port in ("", ":*")
)
_APP_ORIGINS = (
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
ORIGIN_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
"""One of these begins an origin that has no `*`."""

_ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_ALLOWED_HEADERS = ",".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "Openai-Beta",
        "X-Stainless-Arch",
        "X-Stainless-Async",
        "X-Stainless-Custom-Poll-Interval",
        "X-Stainless-Helper-Method",
        "X-Stainless-Lang",
        "X-Stainless-Os",
        "X-Stainless-Package-Version",
        "X-Stainless-Poll-Helper",
        "X-Stainless-Retry-Count",
        "X-Stainless-Runtime",
        "X-Stainless-Runtime-Version",
        "X-Stainless-Timeout",
    )
)
_PREFLIGHT_AGE_S = "43200"
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_LOCAL_DOMAINS = (".localhost", ".local", ".internal")
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:\[\]]*)\Z")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(\S+) *\Z")
UNAUTHORIZED = "unauthorized: send a valid API key as 'Authorization: Bearer KEY'"

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a request.

    `status` None: it goes on. Otherwise it ends with that status and no body, except 401, whose
    text is UNAUTHORIZED. `headers` belong to the answer in either case; a name may come twice.
    """

    status: int | None = None
    headers: Headers = ()


class Access:
    """The rules of one listener. `keys` are what read_api_keys gave; none: everybody may ask."""

    def __init__(
        self,
        address: str,
        origins: Iterable[str] = (),
        keys: tuple[bytes, ...] = (),
        *,
        hostname: str | None = None,
        is_local: Callable[[Address], bool] | None = None,
    ) -> None:
        allowed = (*origins, *_LOCAL_ORIGINS, *_APP_ORIGINS)
        self._every_origin = "*" in allowed
        self._origins = frozenset(origin.strip().lower() for origin in allowed)
        self._wildcards = tuple(
            (before, after) for before, star, after in (o.partition("*") for o in allowed) if star
        )
        self._checks_host = ipaddress.ip_address(address).is_loopback
        self._hostname = (socket.gethostname() if hostname is None else hostname).lower()
        self._is_local = is_local or has_address
        self._keys = keys

    def decide(
        self,
        method: str,
        host: str,
        origin: str = "",
        authorization: str = "",
        x_api_key: str = "",
    ) -> Decision:
        """In Ollama's order: Origin, then Host, then, which Ollama does not have, the key.

        A missing header is an empty string. Anthropic's clients send their key as `x-api-key`.
        """
        headers: Headers = ()
        if origin and origin not in (f"http://{host}", f"https://{host}"):
            if not self._allows_origin(origin):
                return Decision(403)
            if method == "OPTIONS":
                return Decision(204, self._preflight(origin))
            headers = self._allowed(origin)
        if self._checks_host:
            named = _host_of(host)
            address = _address(named)
            if address is None or not self._allows_address(address):
                if not self._allows_name(named):
                    return Decision(403, headers)
                if method == "OPTIONS":
                    return Decision(204, headers)
        if self._keys and not self._has_key(authorization, x_api_key):
            return Decision(401, (*headers, ("WWW-Authenticate", "Bearer")))
        return Decision(None, headers)

    def _allows_origin(self, origin: str) -> bool:
        return (
            self._every_origin
            or origin in self._origins
            or any(
                len(origin) >= len(before) + len(after)
                and origin.startswith(before)
                and origin.endswith(after)
                for before, after in self._wildcards
            )
        )

    def _allowed(self, origin: str) -> Headers:
        if self._every_origin:
            return (("Access-Control-Allow-Origin", "*"),)
        return (("Vary", "Origin"), ("Access-Control-Allow-Origin", origin))

    def _preflight(self, origin: str) -> Headers:
        varies: Headers = ()
        if not self._every_origin:
            varies = (
                ("Vary", "Access-Control-Request-Method"),
                ("Vary", "Access-Control-Request-Headers"),
            )
        return (
            ("Access-Control-Allow-Methods", _ALLOWED_METHODS),
            ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
            ("Access-Control-Max-Age", _PREFLIGHT_AGE_S),
            *self._allowed(origin),
            *varies,
        )

    def _allows_address(self, address: Address) -> bool:
        return (
            address.is_loopback
            or address.is_unspecified
            or any(address in network for network in _PRIVATE)
            or self._is_local(address)
        )

    def _allows_name(self, name: str) -> bool:
        lowered = name.lower()
        return lowered in ("", "localhost", self._hostname) or lowered.endswith(_LOCAL_DOMAINS)

    def _has_key(self, authorization: str, x_api_key: str) -> bool:
        bearer = _BEARER.match(authorization)
        offered = _digest((bearer[1] if bearer else x_api_key).encode(errors="surrogateescape"))
        found = False
        for key in self._keys:
            # No early end: which key it was, and how much of it fits, must not show in the time.
            found |= hmac.compare_digest(offered, key)
        return found


def read_api_keys(path: Path) -> tuple[bytes, ...]:
    """The keys of a file, one a line, `#` beginning a comment; only their digests are kept.

    Raises OSError, and ValueError where there is no key in it.
    """
    lines = (line.strip() for line in path.read_bytes().splitlines())
    keys = tuple(_digest(line) for line in lines if line and not line.startswith(b"#"))
    if not keys:
        raise ValueError(f"{path} holds no API key: write one a line")
    return keys


def has_address(address: Address) -> bool:
    """Whether this host has `address`: whoever has it can bind it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    # Of equal length, so that a comparison tells nothing of the keys'.
    return hashlib.sha256(key).digest()


def _host_of(host: str) -> str:
    """net.SplitHostPort's host; all of it where there is no port."""
    match = _HOST_AND_PORT.match(host)
    if match is None:
        return host
    return match[1] if match[1] is not None else match[2]


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
