"""Bodies that each route takes, and the ways in which they are broken."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

MODEL = "smol:135m"
TEMPLATED = "templated"
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
_MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How is the sea?"},
]
_OPTIONS = {
    "num_ctx": 2048,
    "temperature": 0.7,
    "stop": ["x"],
    "seed": 1,
    "num_predict": 5,
    "mirostat_tau": 1.0,
}


@dataclass(frozen=True)
class Ask:
    """A request that the gateway answers, before it is broken."""

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def asks(rng: random.Random) -> Ask:
    """One of all routes."""
    model = rng.choice((MODEL, MODEL, TEMPLATED, "nobody"))
    name = f"fuzz{rng.randrange(16)}"
    return rng.choice(_GENERATIONS if rng.random() < 0.6 else _OTHERS)(model, name)


def chat_ask(model: str) -> Ask:
    """The most used one."""
    return Ask("POST", "/api/chat", {"model": model, "messages": _MESSAGES, "options": _OPTIONS})


_GENERATIONS = (
    lambda model, _: Ask(
        "POST",
        "/api/generate",
        {
            "model": model,
            "prompt": "Once",
            "suffix": "",
            "images": [PIXEL],
            "system": "s",
            "template": "",
            "context": [1, 2, 3],
            "stream": False,
            "raw": False,
            "format": "json",
            "options": _OPTIONS,
            "keep_alive": "5m",
            "think": False,
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    lambda model, _: Ask("POST", "/api/generate", {"model": model, "prompt": "Once"}),
    lambda model, _: chat_ask(model),
    lambda model, _: Ask(
        "POST",
        "/api/chat",
        {
            "model": model,
            "messages": [
                *_MESSAGES,
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [
                        {"function": {"name": "weather", "arguments": {"place": "Rome"}}}
                    ],
                },
                {"role": "tool", "content": "sunny", "tool_name": "weather"},
            ],
            "tools": [TOOL],
            "format": {"type": "object"},
            "stream": False,
            "keep_alive": 10,
            "think": "high",
        },
    ),
    lambda model, _: Ask(
        "POST",
        "/v1/chat/completions",
        {
            "model": model,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 4,
            "stop": ["x"],
            "temperature": 0.5,
            "response_format": {"type": "json_object"},
            "tools": [TOOL],
            "reasoning_effort": "low",
        },
    ),
    lambda model, _: Ask(
        "POST", "/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 3}
    ),
    lambda model, _: Ask(
        "POST",
        "/v1/responses",
        {
            "model": model,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
            "instructions": "Be short.",
            "tools": [{"type": "function", "name": "weather", "parameters": {}}],
            "stream": True,
        },
    ),
    lambda model, _: Ask(
        "POST",
        "/v1/messages",
        {
            "model": model,
            "max_tokens": 5,
            "system": [{"type": "text", "text": "s"}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
            "thinking": {"type": "enabled", "budget_tokens": 10},
            "stream": True,
        },
    ),
    lambda model, _: Ask(
        "POST", "/api/embed", {"model": model, "input": ["a", "b"], "dimensions": 4}
    ),
    lambda model, _: Ask("POST", "/api/embeddings", {"model": model, "prompt": "a"}),
    lambda model, _: Ask(
        "POST",
        "/v1/embeddings",
        {"model": model, "input": "a", "encoding_format": "base64", "dimensions": 2},
    ),
)
_DIGEST = "sha256:" + "ab" * 32
_OTHERS = (
    lambda model, _: Ask("POST", "/api/show", {"model": model, "verbose": True}),
    lambda model, name: Ask("POST", "/api/copy", {"source": model, "destination": name}),
    lambda _, name: Ask("DELETE", "/api/delete", {"model": name}),
    lambda model, name: Ask(
        "POST",
        "/api/create",
        {
            "model": name,
            "from": model,
            "system": "s",
            "template": "{{ .Prompt }}",
            "parameters": {"temperature": 0.1, "stop": ["x"]},
            "messages": [{"role": "user", "content": "c"}],
            "license": ["l"],
            "stream": False,
        },
    ),
    lambda _, name: Ask("POST", "/api/create", {"model": name, "files": {"a.gguf": _DIGEST}}),
    lambda _, name: Ask("POST", "/api/pull", {"model": f"hf.co/owner/{name}:q4_0"}),
    lambda model, _: Ask("POST", "/api/pull", {"model": model, "stream": False}),
    lambda model, _: Ask("POST", "/api/push", {"model": model, "stream": False}),
    lambda _, __: Ask("POST", f"/api/blobs/{_DIGEST}", b"GGUF, but no more"),
    lambda _, __: Ask("HEAD", f"/api/blobs/{_DIGEST}"),
    lambda _, __: Ask("GET", "/"),
    lambda _, __: Ask("HEAD", "/"),
    lambda _, __: Ask("GET", "/api/tags"),
    lambda _, __: Ask("GET", "/api/ps"),
    lambda _, __: Ask("GET", "/api/version"),
    lambda _, __: Ask("GET", "/api/status"),
    lambda _, __: Ask("GET", "/v1/models"),
    lambda model, _: Ask("GET", f"/v1/models/{model}"),
    lambda _, __: Ask("POST", "/api/me", {}),
    lambda _, __: Ask("POST", "/api/signout"),
    lambda _, __: Ask("DELETE", "/api/user/keys/key"),
    lambda _, __: Ask("POST", "/api/experimental/web_search", {"query": "q"}),
    lambda _, __: Ask("POST", "/api/experimental/web_fetch", {"url": "http://127.0.0.1/"}),
    lambda _, __: Ask("GET", "/api/experimental/model-recommendations"),
    lambda model, _: Ask(
        "POST",
        "/v1/audio/transcriptions",
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        + model.encode()
        + b'\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
        b"\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
)

# Stands in a JSON text for the bytes that follow it in RAW.
_PLACE = "\x00raw{}\x00"
RAW = (
    b"1e400", b"-1e400", b"1e-400", b"-", b"01", b"1.", b"+1", b".5", b"0x10", b"1e", b"nul",
    b"NaN", b"Infinity", b"-Infinity", b"tru", b"'a'", b'"\\ud800"', b'"\\udc00\\ud800"',
    b'"\\u12"', b'"\\x"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\x00"', b'"\n"', b'"', b"[", b"{",
    b"]", b"", b",", b"[1,]", b'{"a":1,}', b"{1:2}", b"/**/1", b"\xef\xbb\xbf1", b"9" * 40,
    b"9" * 5000, b"-" + b"9" * 300 + b".5", b"1" + b"0" * 30 + b"e5", b"[" * 200 + b"]" * 200,
    b"[" * 9000, b"[" * 20000 + b"]" * 20000, b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"a":' * 11000 + b"1" + b"}" * 11000, b'{"a":1,"a":2,"A":3}', b'[[{"x":[' * 50,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**25, 0.5, -0.0, 1e308, 1e-320, "", " ", "\x00", "a", "0", "-1", "true", "json", "5m",
    "-1ns", "9" * 30 + "h", "1e9h", "🌊", "\u202e", "<script>", "../../etc/passwd", "%s%n",
    "{{ .Prompt }}", "[img]", "[img-0]", "<|im_end|>", "<think>", "data:image/png;base64,AAAA",
    "a" * 5000, "é" * 3000, "/" * 300, ":" * 50, "a/b/c/d/e", "hf.co/x/y", "hf://a/b/c.gguf",
    "http://127.0.0.1:1/x", "sha256:" + "0" * 64, "sha256-../../x", [], {}, [None], [[]], [{}],
    [""], [0] * 500, ["a"] * 300, {"": ""}, {"a": None}, {"type": "object"}, {"type": []},
    {"role": "user", "content": "x"}, [{"role": "user"}], [{"role": "tool", "content": None}],
    [{"role": 1}], [{"type": "image_url", "image_url": "x"}], {"function": {"arguments": "x"}},
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, [PIXEL], ["AAAA"], ["%%"],
)  # fmt: skip


def value(rng: random.Random) -> Any:
    """What stands where something else was expected."""
    chosen = rng.random()
    if chosen < 0.25:
        return _PLACE.format(rng.randrange(len(RAW)))
    if chosen < 0.3:
        return nested(rng.choice((5, 40, 90)), rng)
    # A copy: what is broken further must not change what others get.
    return deepcopy(rng.choice(_VALUES))


def nested(depth: int, rng: random.Random) -> Any:
    """Lists and objects in each other."""
    inner: Any = deepcopy(rng.choice(_VALUES))
    for _ in range(depth):
        inner = [inner] if rng.random() < 0.5 else {rng.choice(("a", "role", "content")): inner}
    return inner


def broken(body: Any, rng: random.Random) -> Any:
    """The body with some values changed, keys removed, added or written otherwise."""
    changed = json.loads(json.dumps(body))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed = _broken_once(changed, rng)
    return changed


def _broken_once(body: Any, rng: random.Random) -> Any:
    if not isinstance(body, dict | list) or not body or rng.random() < 0.15:
        return value(rng)
    if isinstance(body, list):
        at = rng.randrange(len(body))
        body[at] = _broken_once(body[at], rng)
        return body
    key = rng.choice(list(body))
    change = rng.randrange(8)
    if change == 0:
        del body[key]
    elif change == 1:
        body[rng.choice((key.upper(), key.title(), "", key + "\u212a", "\u017ftream"))] = value(rng)
    elif change == 2:
        body[rng.choice(("model", "name", "stream", "options", "messages", "x"))] = value(rng)
    elif change == 3:
        body[key] = [body[key]] * rng.choice((1, 2, 50))
    else:
        body[key] = _broken_once(body[key], rng) if rng.random() < 0.5 else value(rng)
    return body


def text_of(body: Any) -> bytes:
    """As it is sent, with what no JSON writer would write."""
    if isinstance(body, bytes):
        return body
    text = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
    for index, raw in enumerate(RAW):
        place = json.dumps(_PLACE.format(index)).encode()
        if place in text:
            text = text.replace(place, raw)
    return text


def garbled(text: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, inserted, doubled, or the end cut off."""
    data = bytearray(text)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randrange(1, 20)]
            case 2:
                data[at:at] = rng.choice((b"\xff", b"\xc0\x80", b"\x00", b"\xed\xa0\x80", b'"'))
            case 3:
                data[at:at] = rng.choice((b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\xf0\x9f"))
            case 4:
                data[at:at] = data[: rng.randrange(len(data) + 1)]
            case _:
                del data[at:]
    return bytes(data)
