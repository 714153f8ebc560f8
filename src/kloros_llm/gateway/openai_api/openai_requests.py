"""Requests of OpenAI's form, translated into those of /api/chat and /api/generate.

Defaults and error texts are those of Ollama's own translation: a temperature and a top_p of 1
where the client says nothing, and no field for what Ollama's API lacks (n, tool_choice, …).
Source: openai/openai.go and middleware/openai.go of Ollama 0.33.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..engines.pieces import ToolCall
from ..errors import ApiError
from ..ollama_api.api_requests import ChatRequest, EmbedRequest, GenerateRequest
from ..ollama_api.api_tools import TOOLS, Message
from ..ollama_api.go_decoding import (
    Decoding,
    Reading,
    anything,
    array,
    boolean,
    integer,
    kind,
    read_struct,
    string,
    struct,
)
from ..ollama_api.ollama_json import MISSING_BODY, decode

_EFFORTS = ("high", "medium", "low", "max", "none")
_IMAGE_TYPES = ("jpeg", "jpg", "png", "webp")
_IMAGE_PREFIXES = ("data:;base64,", *(f"data:image/{kind};base64," for kind in _IMAGE_TYPES))
_GO_TYPES = {type(None): "<nil>", dict: "map[string]interface {}", bool: "bool"}


def number(reading: Reading, value: Any) -> float:
    """float64"""
    if isinstance(value, bool) or not isinstance(value, int | float):
        if value is not None:
            reading.note(kind(value), "float64")
        return 0.0
    return float(value)


_call = struct(
    "ToolCall",
    {
        "id": string,
        "index": integer,
        "type": string,
        "function": struct("", {"name": string, "arguments": string}),
    },
)
_message = struct(
    "Message",
    {
        "role": string,
        "content": anything,
        "reasoning": string,
        "tool_calls": array(_call, "[]openai.ToolCall"),
        "name": string,
        "tool_call_id": string,
    },
)
_COMMON: dict[str, Decoding] = {
    "model": string,
    "stream": boolean,
    "stream_options": struct("StreamOptions", {"include_usage": boolean}),
    "max_tokens": integer,
    "seed": integer,
    "stop": anything,
    "temperature": number,
    "frequency_penalty": number,
    "presence_penalty": number,
    "top_p": number,
}
_CHAT: dict[str, Decoding] = {
    **_COMMON,
    "messages": array(_message, "[]openai.Message"),
    # The newer name of max_tokens, which Ollama passes over.
    "max_completion_tokens": integer,
    "response_format": struct(
        "ResponseFormat",
        {"type": string, "json_schema": struct("JsonSchema", {"schema": anything})},
    ),
    "tools": TOOLS,
    "reasoning": struct("Reasoning", {"effort": string}),
    "reasoning_effort": string,
    "logprobs": boolean,
    "top_logprobs": integer,
}
_COMPLETION: dict[str, Decoding] = {
    **_COMMON,
    "prompt": string,
    "suffix": string,
    "logprobs": integer,
}
_EMBEDDINGS: dict[str, Decoding] = {
    "model": string,
    "input": anything,
    "dimensions": integer,
    "encoding_format": string,
}


def read_body(name: str, fields: Mapping[str, Decoding], body: bytes) -> dict[str, Any]:
    """The fields of a request under /v1. Raises ApiError 400 with Go's text."""
    try:
        return read_struct(name, fields, decode(body))
    except ApiError as error:
        if error.text == MISSING_BODY:
            raise ApiError(400, "EOF") from None
        raise


def chat_request(body: bytes) -> tuple[ChatRequest, bool]:
    """POST /v1/chat/completions; whether a stream is to end with the usage."""
    fields = read_body("ChatCompletionRequest", _CHAT, body)
    given = fields.get("messages") or []
    # A content that is an empty list is no message either.
    messages = tuple(one for message in given for one in _messages(message or {}, given))
    if not messages:
        raise ApiError(400, "[] is too short - 'messages'")
    request = ChatRequest(
        model=fields.get("model", ""),
        messages=messages,
        options=_options(fields),
        stream=fields.get("stream", False),
        tools=tuple(fields.get("tools") or ()),
        format=_format(fields.get("response_format")),
        think=think_of(
            (fields.get("reasoning") or {}).get("effort") or fields.get("reasoning_effort", "")
        ),
        logprobs=fields.get("logprobs", False),
        top_logprobs=_top_logprobs(fields.get("top_logprobs", 0)),
    )
    return request, _wants_usage(fields)


def chat_fields(body: bytes) -> dict[str, Any]:
    """All that a body which `chat_request` takes says, beyond what Ollama knows as well. What
    that knows is under its own name: Go finds `Messages` too.
    """
    said = decode(body)
    known = read_struct("ChatCompletionRequest", dict.fromkeys(_CHAT, anything), said)
    return {**anything(Reading(), said), **known}


def generate_request(body: bytes) -> tuple[GenerateRequest, bool]:
    """POST /v1/completions; whether a stream is to end with the usage.

    The model's template is applied to the prompt, as Ollama does.
    """
    fields = read_body("CompletionRequest", _COMPLETION, body)
    stop = fields.get("stop")
    for text in stop if isinstance(stop, list) else []:
        if not isinstance(text, str):
            raise ApiError(400, f"invalid type for 'stop' field: {_go_type(text)}")
    top_logprobs = fields.get("logprobs", 0)
    request = GenerateRequest(
        model=fields.get("model", ""),
        prompt=fields.get("prompt", ""),
        suffix=fields.get("suffix", ""),
        options=_options(fields),
        stream=fields.get("stream", False),
        logprobs=top_logprobs > 0,
        top_logprobs=_top_logprobs(top_logprobs),
    )
    return request, _wants_usage(fields)


def embed_request(body: bytes) -> tuple[EmbedRequest, bool]:
    """POST /v1/embeddings; whether the vectors are wanted in base64."""
    fields = read_body("EmbedRequest", _EMBEDDINGS, body)
    form = fields.get("encoding_format", "")
    if form.lower() not in ("", "float", "base64"):
        raise ApiError(
            400,
            f"Invalid value for 'encoding_format' = {form}. Supported values: ['float', 'base64'].",
        )
    wanted = fields.get("input")
    if wanted is None or wanted == []:
        raise ApiError(400, "invalid input")
    request = EmbedRequest(
        model=fields.get("model", ""),
        # An empty text is a text here, and not only a wish to load the model.
        input=[""] if wanted == "" else wanted,
        dimensions=fields.get("dimensions", 0),
    )
    return request, form.lower() == "base64"


def _wants_usage(fields: Mapping[str, Any]) -> bool:
    return bool((fields.get("stream_options") or {}).get("include_usage"))


def _top_logprobs(count: int) -> int:
    if not 0 <= count <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")
    return count


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
    stop = fields.get("stop")
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif isinstance(stop, list):
        options["stop"] = [text for text in stop if isinstance(text, str)]
    limit = fields.get("max_completion_tokens", fields.get("max_tokens"))
    if limit is not None:
        options["num_predict"] = limit
    same = ("temperature", "seed", "frequency_penalty", "presence_penalty", "top_p")
    return options | {name: fields[name] for name in same if name in fields}


def _format(response_format: Mapping[str, Any] | None) -> Any:
    kind_ = (response_format or {}).get("type", "").strip().lower()
    if kind_ == "json_object":
        return "json"
    if kind_ == "json_schema":
        return ((response_format or {}).get("json_schema") or {}).get("schema")
    return None


def think_of(effort: str) -> bool | str | None:
    """`think` for a reasoning effort. Raises ApiError for one that there is not."""
    if not effort:
        return None
    if effort not in _EFFORTS:
        raise ApiError(
            400,
            f"invalid reasoning value: '{effort}' "
            '(must be "high", "medium", "low", "max", or "none")',
        )
    return False if effort == "none" else str(effort)


def _messages(message: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Ollama makes a message of each part of a content that is a list."""
    role = message.get("role", "").lower()
    calls = tuple(_tool_call(call or {}) for call in message.get("tool_calls") or ())
    call_id = message.get("tool_call_id", "")
    name = _tool_name(message, everyone) if role == "tool" else ""
    thinking = message.get("reasoning", "")
    content = message.get("content")
    if isinstance(content, str) or (content is None and "tool_calls" in message):
        return [Message(role, content or "", thinking, (), calls, name, call_id)]
    if not isinstance(content, list):
        raise ApiError(400, f"invalid message content type: {_go_type(content)}")
    parts = [_part(role, part) for part in content]
    if parts and (calls or name or call_id or thinking):
        last = parts[-1]
        parts[-1] = Message(role, last.content, thinking, last.images, calls, name, call_id)
    return parts


def _part(role: str, part: Any) -> Message:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return Message(role, part["text"])
    if isinstance(part, dict) and part.get("type") == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return Message(role, images=(image_of(url),))
    raise ApiError(400, "invalid message format")


def image_of(url: str) -> bytes:
    """The image of a data URL; others Ollama does not fetch."""
    for prefix in _IMAGE_PREFIXES:
        if url.startswith(prefix):
            try:
                return binascii.a2b_base64(url[len(prefix) :], strict_mode=True)
            except ValueError:
                raise ApiError(400, "invalid message format") from None
    raise ApiError(400, "invalid image input")


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments", ""))
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, "invalid tool call arguments")
    return ToolCall(function.get("name", ""), arguments, call.get("id", ""))


def _tool_name(message: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]) -> str:
    """The tool that a result is of: named, or found by the id of its call; the last one wins."""
    if message.get("name"):
        return str(message["name"])
    wanted = message.get("tool_call_id")
    for earlier in reversed(everyone):
        for call in (earlier or {}).get("tool_calls") or ():
            if wanted and (call or {}).get("id") == wanted:
                return str((call.get("function") or {}).get("name", ""))
    return ""


def _go_type(value: Any) -> str:
    return _GO_TYPES.get(type(value), "float64")
