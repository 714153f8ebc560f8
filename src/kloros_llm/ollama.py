"""Ollama's way to say what is wanted, and to answer it; the gateway's too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .gateway.engines.pieces import Ending, Piece, ToolCall
from .generation import Generation
from .refusals import refusal
from .sampling import to_ollama

_NS_PER_MS: Final = 1e6


def request(wanted: Generation) -> tuple[str, dict[str, Any]]:
    """Path and body. Raises LlmUsageError."""
    body: dict[str, Any] = {"model": wanted.model, "stream": True}
    said: dict[str, Any] = {
        "options": to_ollama(wanted.options),
        "format": wanted.format,
        "think": wanted.think,
        "keep_alive": wanted.keep_alive,
        "truncate": None if wanted.truncate else False,
    }
    if wanted.prompt is None:
        path = "/api/chat"
        said["messages"] = [_message(message) for message in wanted.conversation()]
        said["tools"] = list(wanted.tools)
    else:
        path = "/api/generate"
        said |= {
            "prompt": wanted.prompt,
            "system": wanted.system,
            "images": list(wanted.images),
            "raw": wanted.raw or None,
            "suffix": wanted.suffix,
        }
    unsaid: tuple[Any, ...] = (None, "", [], {})
    return path, body | {name: value for name, value in said.items() if value not in unsaid}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form with Ollama's fields."""
    said = dict(message)
    if isinstance(said.get("content"), list):
        texts = [part["text"] for part in said["content"] if part.get("type") == "text"]
        images = [
            part["image_url"]["url"].partition(",")[2]
            for part in said["content"]
            if part.get("type") == "image_url"
        ]
        said["content"] = "\n".join(texts)
        said["images"] = [*(said.get("images") or ()), *images]
    if said.get("images"):
        said["images"] = [image.rpartition("base64,")[2] for image in said["images"]]
    if said.get("tool_calls"):
        said["tool_calls"] = [_call(call) for call in said["tool_calls"]]
    if said.get("role") == "tool" and "tool_name" not in said and said.get("name"):
        said["tool_name"] = said["name"]
    return said


def _call(call: ToolCall | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"] or "{}")
    return {"function": function} | ({"id": call["id"]} if call.get("id") else {})


def read(lines: Iterable[bytes], url: str) -> Iterator[Piece | Ending]:
    """The pieces of a stream, and its ending last; without one, the stream was cut.

    Raises what `refusal` makes of an error amid it, ValueError for what is no object.
    """
    for line in lines:
        if not line.strip():
            continue
        event = json.loads(line)
        if "error" in event:
            raise refusal(200, event, url)
        message = event.get("message") or {}
        piece = Piece(
            text=event.get("response") or message.get("content") or "",
            thinking=event.get("thinking") or message.get("thinking") or "",
            tool_calls=tuple(
                ToolCall(
                    call["function"]["name"], call["function"]["arguments"], call.get("id", "")
                )
                for call in message.get("tool_calls") or ()
            ),
        )
        if piece != Piece():
            yield piece
        if event["done"]:
            yield Ending(
                reason="length" if event.get("done_reason") == "length" else "stop",
                prompt_tokens=event.get("prompt_eval_count", 0),
                prompt_ms=event.get("prompt_eval_duration", 0) / _NS_PER_MS,
                completion_tokens=event.get("eval_count", 0),
                completion_ms=event.get("eval_duration", 0) / _NS_PER_MS,
            )
            return
