"""Ollama's conversations as llama-server takes them: /completion and /v1/chat/completions."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ApiError
from ..ollama_api.api_tools import Message
from .pieces import ToolCall

# What Ollama has the model keep to for `"format": "json"` (its grammarJSON, from llama.cpp's
# json.gbnf): an object with anything in it.
_JSON_OBJECT: dict[str, Any] = {"type": "object"}

_IMAGE_TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_AUDIO_TYPES = ((b"RIFF", b"WAVE", "wav"), (b"ID3", b"", "mp3"), (b"\xff\xfb", b"", "mp3"))


def schema(wanted: str | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that `format` asks for."""
    return _JSON_OBJECT if isinstance(wanted, str) else wanted


def media_data(images: Sequence[bytes]) -> list[str]:
    """Images and sounds for /completion, in base64."""
    return [base64.b64encode(_readable(image)).decode() for image in images]


def _readable(image: bytes) -> bytes:
    """llama-server decodes JPEG, PNG, BMP and GIF; WebP it does not."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        raise ApiError(400, "image: WebP is not supported here; send it as PNG or JPEG")
    return image


def _media_part(data: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(_readable(data)).decode()
    for head, form, name in _AUDIO_TYPES:
        if data.startswith(head) and data[8 : 8 + len(form)] == form:
            return {"type": "input_audio", "input_audio": {"data": encoded, "format": name}}
    kind = next((kind for head, kind in _IMAGE_TYPES if data.startswith(head)), "image/jpeg")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded}"}}


def chat_message(message: Message) -> dict[str, Any]:
    """One message of /api/chat for /v1/chat/completions."""
    converted: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        text = [{"type": "text", "text": message.content}] if message.content else []
        converted["content"] = [*text, *(_media_part(image) for image in message.images)]
    if message.thinking:
        converted["reasoning_content"] = message.thinking
    if message.tool_calls:
        converted["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        converted["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        converted["name"] = message.tool_name
    return converted


def _tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def chat_template_fields(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    think: bool | str | None,
) -> dict[str, Any]:
    """What the GGUF's own template is given; also the whole of a body for /apply-template."""
    body: dict[str, Any] = {"messages": [chat_message(message) for message in messages]}
    if tools:
        body["tools"] = list(tools)
    if think is not None:
        kwargs: dict[str, Any] = {"enable_thinking": bool(think)}
        if isinstance(think, str):
            kwargs["reasoning_effort"] = think
        body["chat_template_kwargs"] = kwargs
    return body


def response_format(wanted: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`format` for /v1/chat/completions."""
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "schema", "schema": wanted}}


def too_long_body(prompt_tokens: int, context_tokens: int) -> str:
    """What llama-server says of a prompt that is too long, for a bound that it does not know."""
    message = (
        f"request ({prompt_tokens} tokens) exceeds the available context size "
        f"({context_tokens} tokens), try increasing it"
    )
    error = {
        "code": 400,
        "message": message,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": prompt_tokens,
        "n_ctx": context_tokens,
    }
    return json.dumps({"error": error}, separators=(",", ":"))
