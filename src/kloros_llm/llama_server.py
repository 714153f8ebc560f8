"""llama-server's own way to say what is wanted, and to answer it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .errors import LlmUsageError
from .gateway.engines.engine_answers import Answer as EngineAnswer
from .gateway.engines.engine_answers import ChatAnswer, CompletionAnswer
from .gateway.engines.engine_requests import response_format, schema
from .gateway.engines.pieces import Ending, Piece, ToolCall
from .gateway.engines.sse import EventParser
from .generation import Generation
from .sampling import to_llama

# The first bytes of base64 tell what an image is.
_IMAGE_TYPES: Final = {"iVBOR": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}


def request(wanted: Generation, messages: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Path and body. `messages` are the conversation, where one is rendered by the model's own
    template; a raw prompt and one with a suffix are not. Raises LlmUsageError.
    """
    body: dict[str, Any] = {"stream": True, **to_llama(wanted.options)}
    if wanted.model:
        body["model"] = wanted.model
    if wanted.raw or wanted.suffix is not None:
        return _plain_request(wanted, body)
    body |= {
        "messages": [_message(message) for message in messages],
        "stream_options": {"include_usage": True},
        "reasoning_format": "deepseek",  # apart from the text, whatever the unit says
    }
    if wanted.tools:
        body["tools"] = list(wanted.tools)
    if wanted.format:
        body["response_format"] = response_format(wanted.format)
    if isinstance(wanted.think, bool):
        body["chat_template_kwargs"] = {"enable_thinking": wanted.think}
    elif wanted.think is not None:
        body["chat_template_kwargs"] = {"reasoning_effort": wanted.think}
    return "/v1/chat/completions", body


def _plain_request(wanted: Generation, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if wanted.images or wanted.tools or wanted.messages:
        raise LlmUsageError("images, tools and messages need the model's template: not raw")
    if wanted.format:
        body["json_schema"] = schema(wanted.format)
    if wanted.suffix is not None:
        return "/infill", body | {"input_prefix": wanted.prompt, "input_suffix": wanted.suffix}
    return "/completion", body | {"prompt": wanted.prompt}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with Ollama's fields in OpenAI's form."""
    said = {key: value for key, value in message.items() if key not in ("images", "tool_name")}
    images = message.get("images")
    if images:
        said["content"] = [
            {"type": "text", "text": message.get("content") or ""},
            *({"type": "image_url", "image_url": {"url": _image_url(one)}} for one in images),
        ]
    if message.get("tool_name"):
        said["name"] = message["tool_name"]
    if "thinking" in said:
        said["reasoning_content"] = said.pop("thinking")
    if message.get("tool_calls"):
        said["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return said


def _call(call: ToolCall | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments") or {})
    function.pop("index", None)
    return {"type": "function", "function": function, "id": call.get("id") or function["name"]}


def _image_url(image: str) -> str:
    kind = next((kind for start, kind in _IMAGE_TYPES.items() if image.startswith(start)), "png")
    return image if image.startswith("data:") else f"data:image/{kind};base64,{image}"


def read(chunks: Iterable[bytes], answer: EngineAnswer) -> Iterator[Piece | Ending]:
    """The pieces of a stream, and its ending last; without one, the stream was cut.

    Raises EngineError for what is no event, and for an error amid the stream.
    """
    parser = EventParser()
    for chunk in chunks:
        for event in parser.feed(chunk):
            yield from answer.read(event)
            if answer.ending is not None:
                yield answer.ending
                return


def reader(wanted: Generation) -> EngineAnswer:
    """What takes the events of the answer apart."""
    is_plain = wanted.raw or wanted.suffix is not None
    return CompletionAnswer() if is_plain else ChatAnswer()
