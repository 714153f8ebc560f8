"""/v1/messages: Anthropic's requests as bodies of /api/chat, and answers in Anthropic's form."""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..engines.pieces import Piece, ToolCall
from ..errors import ApiError
from ..ollama_api.answering import Totals
from ..ollama_api.api_requests import ChatRequest
from ..ollama_api.api_tools import Message
from ..ollama_api.go_decoding import (
    Decoding,
    Reading,
    anything,
    array,
    boolean,
    integer,
    ordered_map,
    string,
    struct,
)
from ..ollama_api.json_text import compact
from ..ollama_api.json_text import string as quoted
from .openai_requests import number, read_body

_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}


def _invalid(text: str) -> ApiError:
    return ApiError(400, text)


def _content(reading: Reading, value: Any) -> list[dict[str, Any]]:
    """Blocks; a text is one of them."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [block for block in _blocks(reading, value) if block]


_block = struct(
    "ContentBlock",
    {
        "type": string,
        "text": string,
        "thinking": string,
        "source": struct("ImageSource", {"type": string, "data": string}),
        "id": string,
        "name": string,
        "input": ordered_map(anything),
        "tool_use_id": string,
        "content": _content,
    },
)
_blocks = array(_block, "[]anthropic.ContentBlock")


_FIELDS: dict[str, Decoding] = {
    "model": string,
    "max_tokens": integer,
    "messages": array(
        struct("MessageParam", {"role": string, "content": _content}), "[]anthropic.MessageParam"
    ),
    "system": _content,
    "stream": boolean,
    "temperature": number,
    "top_p": number,
    "top_k": integer,
    "stop_sequences": array(string, "[]string"),
    "tools": array(
        struct(
            "Tool",
            {"type": string, "name": string, "description": string, "input_schema": anything},
        ),
        "[]anthropic.Tool",
    ),
    "thinking": struct("ThinkingConfig", {"type": string}),
    "output_config": struct("OutputConfig", {"effort": string}),
}


def messages_request(body: bytes) -> ChatRequest:
    """The request as /api/chat has it; what the client leaves out gets Ollama's defaults."""
    fields = read_body("MessagesRequest", _FIELDS, body)
    _check(fields)
    system = _text(fields.get("system") or ())
    spoken = [one for message in fields["messages"] for one in _messages(message or {})]
    options = {"num_predict": fields["max_tokens"]}
    options |= {name: fields[name] for name in ("temperature", "top_p", "top_k") if name in fields}
    if fields.get("stop_sequences"):
        options["stop"] = fields["stop_sequences"]
    return ChatRequest(
        model=fields["model"],
        messages=((Message("system", system),) if system else ()) + tuple(spoken),
        options=options,
        stream=fields.get("stream", False),
        tools=tuple(_tool(tool or {}) for tool in fields.get("tools") or ()),
        think=_think(fields),
    )


def _check(fields: Mapping[str, Any]) -> None:
    """What Ollama refuses before it looks for the model."""
    if not fields.get("model"):
        raise _invalid("model is required")
    if fields.get("max_tokens", 0) <= 0:
        raise _invalid("max_tokens is required and must be positive")
    if not fields.get("messages"):
        raise _invalid("messages is required")


def _text(blocks: Iterable[Mapping[str, Any]]) -> str:
    return "".join(block.get("text", "") for block in blocks if block.get("type") == "text")


def _think(fields: Mapping[str, Any]) -> bool | str | None:
    kind = (fields.get("thinking") or {}).get("type")
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    effort = (fields.get("output_config") or {}).get("effort", "")
    return _EFFORTS.get(effort.strip().lower())


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type", "").startswith("web_search"):
        raise _invalid("web_search is a service of ollama.com, which this server does not ask")
    function = {
        "name": tool.get("name", ""),
        "description": tool.get("description", ""),
        "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
    }
    if not function["description"]:
        del function["description"]
    return {"type": "function", "function": function}


def _messages(message: Mapping[str, Any]) -> list[Message]:
    """A message, and one for each result of a tool in it."""
    role = message.get("role", "").lower()
    blocks = message.get("content") or []
    results = [_tool_result(block) for block in blocks if block.get("type") == "tool_result"]
    spoken = Message(
        role,
        _text(blocks),
        "".join(block.get("thinking", "") for block in blocks if block.get("type") == "thinking"),
        _images(blocks),
        tuple(_tool_use(block) for block in blocks if block.get("type") == "tool_use"),
    )
    said = [] if spoken == Message(role) else [spoken]
    return results + said if role == "user" else said + results


def _images(blocks: Iterable[Mapping[str, Any]]) -> tuple[bytes, ...]:
    return tuple(_image(block.get("source")) for block in blocks if block.get("type") == "image")


def _image(source: Mapping[str, Any] | None) -> bytes:
    if source is None:
        raise _invalid("invalid image source")
    if source.get("type") != "base64":
        found = source.get("type", "")
        raise _invalid(f"invalid image source type: {found}. Only base64 images are supported.")
    try:
        return binascii.a2b_base64(source.get("data", ""), strict_mode=True)
    except ValueError:
        raise _invalid("invalid base64 image data") from None


def _tool_use(block: Mapping[str, Any]) -> ToolCall:
    for needed in ("id", "name"):
        if not block.get(needed):
            raise _invalid(f"tool_use block missing required '{needed}' field")
    return ToolCall(block["name"], block.get("input") or {}, block["id"])


def _tool_result(block: Mapping[str, Any]) -> Message:
    content = block.get("content") or []
    return Message(
        "tool", _text(content), images=_images(content), tool_call_id=block.get("tool_use_id", "")
    )


def _event(kind: str, fields: str) -> str:
    return f'event: {kind}\ndata: {{"type":"{kind}"{fields}}}\n\n'


class Messages:
    """The answer: a message of blocks, each of one kind."""

    stream_type = "text/event-stream"
    whole_type = "application/json"

    def __init__(self, model: str) -> None:
        self._head = (
            f'"id":"msg_{secrets.token_hex(12)}","type":"message","role":"assistant",'
            f'"model":{quoted(model)}'
        )
        self._begun = False
        self._index = -1
        self._open = ""
        self._called = False

    def _begin(self) -> str:
        if self._begun:
            return ""
        self._begun = True
        usage = '"usage":{"input_tokens":0,"output_tokens":0}'
        return _event("message_start", f',"message":{{{self._head},"content":[],{usage}}}')

    def _close(self) -> str:
        if not self._open:
            return ""
        self._open = ""
        return _event("content_block_stop", f',"index":{self._index}')

    def _start(self, kind: str, block: str) -> str:
        closed = self._close()
        self._index += 1
        self._open = kind
        fields = f',"index":{self._index},"content_block":{block}'
        return closed + _event("content_block_start", fields)

    def _delta(self, delta: str) -> str:
        return _event("content_block_delta", f',"index":{self._index},"delta":{{{delta}}}')

    def piece(self, piece: Piece) -> str:
        """What came, in the block of its kind."""
        parts = [self._begin()]
        for kind, said in (("thinking", piece.thinking), ("text", piece.text)):
            if said:
                if self._open != kind:
                    parts.append(self._start(kind, f'{{"type":"{kind}","{kind}":""}}'))
                parts.append(self._delta(f'"type":"{kind}_delta","{kind}":{quoted(said)}'))
        for call in piece.tool_calls:
            self._called = True
            named = f'"id":{quoted(call.id)},"name":{quoted(call.name)}'
            block = f'{{"type":"tool_use",{named},"input":{{}}}}'
            arguments = quoted(compact(call.arguments))
            parts.append(self._start("tool_use", block))
            parts.append(self._delta(f'"type":"input_json_delta","partial_json":{arguments}'))
            parts.append(self._close())
        return "".join(parts)

    def _stop_reason(self, reason: str) -> str:
        return "tool_use" if self._called else _STOP_REASONS.get(reason, "end_turn")

    def last(self, totals: Totals) -> str:
        """The reason and the usage."""
        delta = f'{{"stop_reason":"{self._stop_reason(totals.reason)}"}}'
        fields = f',"delta":{delta},"usage":{_usage(totals)}'
        ending = _event("message_delta", fields) + _event("message_stop", "")
        return self._begin() + self._close() + ending

    def whole(self, whole: Piece, totals: Totals) -> str:
        """One object, with a line end."""
        blocks = [
            f'{{"type":"{kind}","{kind}":{quoted(said)}}}'
            for kind, said in (("thinking", whole.thinking), ("text", whole.text))
            if said
        ]
        blocks += _tool_blocks(whole)
        self._called = bool(whole.tool_calls)
        return (
            f'{{{self._head},"content":[{",".join(blocks)}],'
            f'"stop_reason":"{self._stop_reason(totals.reason)}","usage":{_usage(totals)}}}\n'
        )

    def failed(self, text: str) -> str:
        """The event that ends a broken stream."""
        return _event("error", f',"error":{{"type":"api_error","message":{quoted(text)}}}')


def _usage(totals: Totals) -> str:
    return f'{{"input_tokens":{totals.prompt_tokens},"output_tokens":{totals.completion_tokens}}}'


def _tool_blocks(whole: Piece) -> Sequence[str]:
    return [
        f'{{"type":"tool_use","id":{quoted(call.id)},"name":{quoted(call.name)},'
        f'"input":{compact(call.arguments)}}}'
        for call in whole.tool_calls
    ]
