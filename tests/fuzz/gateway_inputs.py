"""Broken requests for the gateway: each follows from a seed and a number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.fuzz.gateway_bodies import (
    MODEL,
    TEMPLATED,
    Ask,
    asks,
    broken,
    chat_ask,
    garbled,
    text_of,
)

Expected = Literal["answers", "end", "anything"]


@dataclass(frozen=True)
class Input:
    """What goes over one connection.

    `parts` are sent one after the other, `pause_s` in between. `expected`: `count` whole answers;
    or that the gateway ends the connection by itself; or nothing that is known. `heads`: which
    answers have no body. `cut`: the client closes when it has sent all; `reset`: without a word.
    `most`: more answers than that would be to a request that nobody made. `last`: how the body of
    the last answer begins.
    """

    kind: str
    parts: tuple[bytes, ...]
    expected: Expected = "anything"
    count: int = 1
    heads: tuple[bool, ...] = ()
    pause_s: float = 0.0
    cut: bool = False
    reset: bool = False
    most: int | None = None
    last: bytes = b""


def make_input(seed: int, number: int) -> Input:
    """The input of that number."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 -- not for secrets
    makers, weights = zip(*_KINDS, strict=True)
    make: Callable[[random.Random, str], Input] = rng.choices(makers, weights)[0]
    return make(rng, f"fuzz-{seed}-{number}")


def request(
    ask: Ask,
    body: bytes | None,
    name: str,
    *,
    headers: bytes = b"",
    host: bytes = b"Host: localhost\r\n",
    length: bool = True,
) -> bytes:
    """A request as HTTP/1.1 has it; `name` is its id in the gateway's logs."""
    head = f"{ask.method} {ask.path} HTTP/1.1\r\n".encode() + host
    head += f"X-Request-Id: {name}\r\n".encode()
    head += b"".join(f"{key}: {value}\r\n".encode() for key, value in ask.headers.items())
    if body is not None and length:
        head += b"Content-Length: %d\r\n" % len(body)
    return head + headers + b"\r\n" + (body or b"")


def _heads(*asked: Ask) -> tuple[bool, ...]:
    return tuple(ask.method == "HEAD" for ask in asked)


def _body(ask: Ask) -> bytes | None:
    return None if ask.body is None else text_of(ask.body)


def _values(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    body = text_of(broken(ask.body, rng)) if not isinstance(ask.body, bytes) else ask.body
    return Input("values", (request(ask, body, name),), "answers", heads=_heads(ask))


def _bytes(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    body = garbled(_body(ask) or b"{}", rng)
    return Input("bytes", (request(ask, body, name),), "answers", heads=_heads(ask))


def _chunks(body: bytes, rng: random.Random) -> bytes:
    made, at = b"", 0
    while at < len(body):
        size = rng.choice((1, 3, 16, 400))
        piece = body[at : at + size]
        made += b"%x%s\r\n%s\r\n" % (len(piece), rng.choice((b"", b"", b";x=y")), piece)
        at += size
    return made + b"0\r\n\r\n"


def _chunked(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    body = _body(ask) or b"{}"
    headers = b"Transfer-Encoding: chunked\r\n"
    sent = request(ask, _chunks(body, rng), name, headers=headers, length=False)
    if rng.random() < 0.3:
        return Input("chunked", (sent,), "answers", heads=_heads(ask))
    begin = sent.index(b"\r\n\r\n") + 4
    nonsense = rng.choice(
        (
            b"%x\r\n" % 2**64, b"-1\r\n", b"0x5\r\n", b"5 \r\nabcde\r\n", b"\r\n", b"zz\r\n",
            b"f" * 70000, b"5;" + b"e" * 70000, b"5\nabcde\n0\n\n", b"5\r\nabcdefgh\r\n",
            b"0\r\nTrailer: x\r\nHost: y\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 5000 + b"\r\n",
            b"00000000000000000005\r\nabcde\r\n", b"5\r\nabcde", garbled(sent[begin:], rng),
        )
    )  # fmt: skip
    return Input("chunked", (sent[:begin] + nonsense,))


_HEADERS = (
    b"Host: evil.example\r\n", b"Host: \r\n", b"Host: [::1\r\n", b"Host: localhost:99999999\r\n",
    b"Host: a b\r\n", b"Host: \xff\r\n", b"Host: " + b"h" * 9000 + b"\r\n", b"",
    b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nHost: evil.example\r\n",
    b"Host: localhost\r\nOrigin: http://evil.example\r\n", b"Host: user@localhost\r\n",
    b"Host: localhost\r\nOrigin: null\r\n", b"Host: localhost\r\nOrigin: http://[\r\n",
    b"Host: localhost\r\nOrigin: http://localhost:x\r\n", b"Host: LOCALHOST.\r\n",
)  # fmt: skip
_MORE = (
    b"Content-Type: text/plain\r\n", b"Content-Type: \xff\xfe\r\n", b"Content-Type: ;;;=\r\n",
    b"Content-Type: application/json; charset=utf-16\r\n", b"Content-Type: multipart/form-data\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Encoding: br, gzip, x\r\n", b"Accept-Encoding: *\r\n",
    b"Expect: 100-continue\r\n", b"Expect: nonsense\r\n", b"Upgrade: websocket\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive, close, \xe9\r\n", b"Range: bytes=0-0\r\n",
    b"Authorization: Bearer \r\n", b"Authorization: Basic " + b"A" * 4000 + b"\r\n",
    b"X-Request-Id: " + b"r" * 5000 + b"\r\n", b"X-Request-Id: a\x0bb\r\n", b"X-A: \x00\r\n",
    b"If-None-Match: *\r\n", b"Cookie: " + b"a=b; " * 1500 + b"\r\n", b"Bad Name: x\r\n",
    b": empty\r\n", b"NoColon\r\n", b"X-Folded: a\r\n b\r\n", b"X-Bare: a\nX-B: c\r\n",
    b"X-Cr: a\rb\r\n", b"Transfer-Encoding: identity\r\n", b"TE: trailers\r\n", b"\xff: x\r\n",
    b"Content-Length: 0\r\n", b"X: y\r\n" * 150, b"X: y\r\n" * 40000, b"X" * 20000 + b": y\r\n",
    b"X: " + b"y" * 17000 + b"\r\n", b"Access-Control-Request-Method: POST\r\n", b"Date: x\r\n",
)  # fmt: skip


def _headers(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    host = rng.choice(_HEADERS) if rng.random() < 0.4 else b"Host: localhost\r\n"
    more = b"".join(rng.choice(_MORE) for _ in range(rng.randrange(4)))
    if rng.random() < 0.2:
        more = garbled(more + b"X-Last: x\r\n", rng)
    return Input("headers", (request(ask, _body(ask), name, headers=more, host=host),))


_SECOND = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Two lengths, or one that may be read in two ways: what follows must never be a request.
_AMBIGUOUS = (
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: +5\r\n",
    b"Content-Length: 5, 6\r\n", b"Content-Length: 0x5\r\n", b"Content-Length: -5\r\n",
    b"Content-Length: 5 6\r\n", b"Content-Length: \r\n", b"Content-Length: 5a\r\n",
    b"Content-Length: 1_0\r\n", b"Content-Length: " + b"9" * 400 + b"\r\n",
    b"Content-Length : 5\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n", b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: identity, chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding: gzip\r\n", b"Content-Length: \xd9\xa5\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
)  # fmt: skip


def _smuggled(rng: random.Random, name: str) -> Input:
    ask = Ask("POST", rng.choice(("/api/show", "/api/chat", "/v1/messages", "/api/me", "/none")))
    body = rng.choice((b"0\r\n\r\n", b"{}{}{", b"5\r\n{} {}\r\n0\r\n\r\n", b""))
    head = request(ask, body, name, headers=rng.choice(_AMBIGUOUS), length=False)
    return Input("smuggled", (head + _SECOND,), most=1)


_PATHS = (
    "/..", "/../api/tags", "/api/../../etc/passwd", "/api/%2e%2e/tags", "/api/%2e%2e%2ftags",
    "/api//tags", "//api/tags", "//evil.example/api/tags", "/api/tags/", "/api/tags//", "/API/TAGS",
    "/api/tags?", "/api/tags?x=%", "/api/tags#a", "/api/tags;x=y", "/api/tags%00", "/%", "/%zz",
    "/%c0%ae%c0%ae/", "/%ff%fe", "*", "api/tags", "http://evil.example/api/tags", "http://",
    "http://localhost/api/tags", "https://localhost:443/api/tags", "/\\..\\api", "/api/tags\t",
    "/api/blobs/", "/api/blobs/x", "/api/blobs/sha256:" + "0" * 64, "/api/blobs/sha256-../../x",
    "/api/blobs/sha256:" + "g" * 64, "/api/blobs/..%2f..%2fgateway.toml", "/v1/models/",
    "/v1/models/%2e%2e", "/v1/models/a%2fb%2fc", "/v1/models/" + "m" * 4000, "/v1/models/%00",
    "/v1/models/..", "/v1/models/smol:135m", "/v1/models/smol%3a135m", "/" + "a/" * 3000,
    "/" + "p" * 12000, "/" + "p" * 40000, "/é", "/\x01", "/a b", "/{digest}", "/api/user/keys/%2f",
    "/api/user/keys/..", "/?" + "q=1&" * 2000, "/./api/./tags", "/api/tags/..", "/..;/api/tags",
    "/api/generate/", "/api/show/../delete", "[::1]", "/[", "http://[::1", "http://a:b@c:d/e", "",
)  # fmt: skip
_METHODS = (
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PRI", "get",
    "FOO", "G\xc9T", "", "A" * 300, "M-SEARCH", "\x00", "POST\tX", "PROPFIND", "QUERY",
)  # fmt: skip


def _paths(rng: random.Random, name: str) -> Input:
    path = rng.choice(_PATHS)
    if rng.random() < 0.2:
        path = path[: rng.randrange(len(path) + 1)] + rng.choice(_PATHS)
    method = rng.choice(("GET", "GET", "POST", "HEAD", "DELETE", "OPTIONS"))
    body = rng.choice((None, b"{}", b"x"))
    return Input("paths", (request(Ask(method, path), body, name),))


def _methods(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    version = rng.choice(
        (" HTTP/1.1", " HTTP/1.0", " HTTP/1.2", " HTTP/2.0", " HTTP/9", "", " http/1.1", " X")
    )
    line = f"{rng.choice(_METHODS)} {ask.path}{version}\r\n"
    body = _body(ask) or b""
    rest = f"Host: localhost\r\nX-Request-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Input("methods", (line.encode("latin-1") + rest.encode() + body,))


def _cut(rng: random.Random, name: str) -> Input:
    ask = asks(rng) if rng.random() < 0.6 else chat_ask(rng.choice((MODEL, TEMPLATED)))
    whole = request(ask, _body(ask), name)
    at = len(whole) if rng.random() < 0.4 else rng.randrange(len(whole))
    return Input("cut", (whole[:at],), cut=True, reset=rng.random() < 0.5)


def _slow(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    whole = request(ask, (_body(ask) or b"{}") + b" " * 40, name)
    head = whole.index(b"\r\n\r\n") + 4
    if rng.random() < 0.5:  # never to the end of the header
        parts = tuple(whole[at : at + 1] for at in range(min(head - 2, 60)))
    else:  # never to the end of the body
        parts = (whole[:head], *(whole[at : at + 1] for at in range(head, head + 30)))
    return Input("slow", parts, "end", pause_s=0.1)


def _pipelined(rng: random.Random, name: str) -> Input:
    count = rng.choice((2, 3, 10))
    asked = [asks(rng) for _ in range(count)]
    whole = b"".join(request(ask, _body(ask), name) for ask in asked)
    if rng.random() < 0.3:
        whole += rng.choice((b"\r\n\r\n", b"GET", rng.randbytes(40), b"GET / HTTP/1.1\r\n"))
        return Input("pipelined", (whole,), heads=_heads(*asked), most=count + 1)
    return Input("pipelined", (whole,), "answers", count, _heads(*asked))


def _pieces(rng: random.Random, name: str) -> Input:
    ask = asks(rng)
    whole = request(ask, _body(ask), name)
    cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(rng.choice((1, 3, 8))))
    ends = (*cuts, len(whole))
    parts = tuple(whole[a:b] for a, b in zip((0, *cuts), ends, strict=True))
    return Input("pieces", parts, "answers", heads=_heads(ask), pause_s=0.001)


def _unwanted(rng: random.Random, name: str) -> Input:
    """A body that comes when its request has been answered, and another request behind it."""
    ask = Ask("POST", rng.choice(("/nowhere", "/api/tags", "/v1/nowhere", "/api/generate/")))
    body = rng.randbytes(rng.choice((10, 20_000, 100_000)))
    whole = request(ask, body, name)
    head = whole.index(b"\r\n\r\n") + 4
    step = max(5, len(body) // 4)
    rest = tuple(whole[at : at + step] for at in range(head, len(whole), step))
    parts = (whole[:head], *rest, _SECOND)
    return Input("unwanted", parts, "answers", 2, pause_s=0.005, last=b'{"version":')


_RAW = (
    b"", b"\r\n" * 50, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9, b"\x00" * 2000, b"\xff" * 20000, b"\n" * 999,
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"GET / HTTP/1.1\n\n", b"GET /\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"\r" * 500, b"SSH-2.0-x\r\n", b"{}" * 500,
)  # fmt: skip


def _raw(rng: random.Random, _: str) -> Input:
    data = rng.choice(_RAW) if rng.random() < 0.5 else rng.randbytes(rng.randrange(3000))
    return Input("raw", (data,), cut=rng.random() < 0.5)


def _big(rng: random.Random, name: str) -> Input:
    """As large as a body may be, and larger (see BODY_BYTES)."""
    ask = chat_ask(rng.choice((MODEL, TEMPLATED)))
    size = rng.choice((300_000, 900_000))
    filling = rng.choice(
        (
            b'"' + b"a" * size + b'"', b"[" + b"1," * (size // 2) + b"1]", b"[" * size,
            b'{"a":' * (size // 5), b"[" + b"{}," * (size // 3) + b"{}]", b'"' + b"\\" * size,
            b'"' + b"\xff" * size + b'"', b'"' + b"\\ud800" * (size // 6) + b'"', b"9" * size,
            b'[{"role":"user","content":"a"}' + b',{"role":"user","content":"a"}' * (size // 31)
            + b"]", b"\x20" * size, b'{"' + b"k" * size + b'":1}',
        )
    )  # fmt: skip
    body = b'{"model":"%s","messages":%s}' % (ask.body["model"].encode(), filling)
    if rng.random() < 0.3:
        body += b" " * 1_200_000
        return Input("big", (request(ask, body, name),))
    if rng.random() < 0.2:
        length = b"Content-Length: 1%s\r\n" % (b"0" * 17)
        head = request(ask, b"{", name, length=False, headers=length)
        return Input("big", (head,))
    return Input("big", (request(ask, body, name),), "answers")


_NEST = "{{ range .Messages }}"
_TEMPLATES = (
    _NEST * 6 + "x" + "{{ end }}" * 6,
    '{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}',
    '{{ define "a" }}{{ template "a" . }}{{ template "a" . }}{{ end }}{{ template "a" . }}',
    '{{ printf "%1000000000d" 1 }}',
    '{{ printf "%*d" 1000000000 1 }}',
    '{{ printf "%.999999999f" 1.5 }}',
    '{{ $x := "ab" }}{{ range .Messages }}{{ $x = printf "%s%s" $x $x }}{{ end }}{{ $x }}',
    '{{ $x := "ab" }}{{ range .Messages }}{{ $x = print $x $x $x }}{{ end }}{{ len $x }}',
    "{{ if .A }}" * 3000 + "{{ end }}" * 3000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ 1 " + "| print " * 5000 + "}}",
    "{{ json .Messages }}" * 2000,
    "{{ slice .Messages 9 1 }}",
    "{{ index .Messages 99999999999999999999 }}",
    "{{ 1e999999999 }}",
    "{{ 0x" + "f" * 5000 + " }}",
    "{{ range $i, $m := .Messages }}{{ range $j, $n := $.Messages }}{{ $i }}{{ $j }}"
    "{{ end }}{{ end }}",
    "{{ .",
    '{{ "',
    "{{ `",
    "{{/*",
    "}}",
    "{{ end }}",
    "{{ else }}",
    "{{ .Messages.Role.X }}",
    "\x00",
    "{{ call .Prompt }}",
    "{{ js .Messages }}",
    '{{ html .Prompt | urlquery | printf "%q" }}',
    "{{ range .Messages }}{{ break }}{{ continue }}{{ end }}",
    "{{ with $x := .Tools }}{{ $x }}{{ end }}",
    "{{ currentDate }}{{ now }}",
    "{{ " + ".a" * 5000 + " }}",
    "{{- " * 3000,
    '{{ eq 1 "a" }}',
    "{{ range 1000000000 }}x{{ end }}",
    "{{ and " + "1 " * 5000 + "}}",
    "{{ not }}",
    "{{ len 1 }}",
    "{{ range .Messages }}{{ .Role }}{{ .Content }}{{ json . }}{{ end }}",
    "{{ .Prompt }}{{ .Response }}",
)


def _templates(rng: random.Random, name: str) -> Input:
    template = rng.choice(_TEMPLATES)
    if rng.random() < 0.2:
        template = garbled(template.encode(), rng).decode("utf-8", "replace")
    made = f"template{rng.randrange(4)}"
    messages = [{"role": "user", "content": f"{n}"} for n in range(rng.choice((1, 40)))]
    for number, message in enumerate(messages):
        message["role"] = "user" if number % 2 else "assistant"
    asked: tuple[Ask, ...]
    if rng.random() < 0.5:
        body = {"model": MODEL, "prompt": "Hi", "template": template, "stream": False}
        asked = (Ask("POST", "/api/generate", body),)
    else:
        create = {"model": made, "from": MODEL, "template": template, "stream": False}
        asked = (
            Ask("POST", "/api/create", create),
            Ask("POST", "/api/chat", {"model": made, "messages": messages}),
        )
    whole = b"".join(request(ask, json.dumps(ask.body).encode(), name) for ask in asked)
    return Input("templates", (whole,), "answers", len(asked))


_KINDS: tuple[tuple[Callable[[random.Random, str], Input], float], ...] = (
    (_values, 34),
    (_bytes, 16),
    (_chunked, 6),
    (_headers, 10),
    (_smuggled, 6),
    (_paths, 8),
    (_methods, 3),
    (_cut, 7),
    (_pipelined, 3),
    (_pieces, 3),
    (_unwanted, 2),
    (_raw, 2),
    (_templates, 1.2),
    (_slow, 0.5),
    (_big, 0.3),
)
