"""OpenAI's /v1/responses, translated into requests of /api/chat. Nothing is kept between them.

Source: openai/responses.go of Ollama 0.33.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engines.pieces import ToolCall
from ..errors import ApiError
from ..ollama_api.api_requests import ChatRequest
from ..ollama_api.api_tools import TOOLS, Message
from ..ollama_api.go_decoding import (
    Decoding,
    Reading,
    anything,
    array,
    boolean,
    integer,
    kind,
    string,
    struct,
)
from ..ollama_api.ollama_json import Members
from .openai_requests import image_of, number, read_body, think_of

_log = logging.getLogger(__name__)

_item = struct(
    "ResponsesInputItem",
    {
        "type": string,
        "role": string,
        "content": anything,
        "call_id": string,
        "name": string,
        "arguments": string,
        "output": anything,
        "summary": anything,
        "encrypted_content": string,
    },
)
_items = array(_item, "[]openai.ResponsesInputItem")


def _input(reading: Reading, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [item for item in _items(reading, value) if item]


def _tool(reading: Reading, value: Any) -> dict[str, Any] | None:
    """A function of this API is flat: its fields are brought under `function` first. None for
    what only OpenAI runs (web_search, …): a model that is not told of it does not call it.
    """
    if not isinstance(value, Members):
        reading.note(kind(value), "openai.ResponsesTool")
        return None
    tool = dict(value)
    if tool.get("type") != "function":
        _log.warning("a tool that is no function is left out: %.100r", tool.get("type"))
        return None
    names = ("name", "description", "parameters")
    function = Members((name, tool[name]) for name in names if name in tool)
    found: list[dict[str, Any]] = TOOLS(
        reading, [Members((("type", "function"), ("function", function)))]
    )
    return found[0]


_FIELDS: dict[str, Decoding] = {
    "model": string,
    "input": _input,
    "instructions": string,
    "previous_response_id": string,
    "stream": boolean,
    "temperature": number,
    "top_p": number,
    "max_output_tokens": integer,
    "tools": array(_tool, "[]openai.ResponsesTool"),
    "reasoning": struct("ResponsesReasoning", {"effort": string, "summary": string}),
    "text": struct("ResponsesText", {"format": anything}),
    "truncation": string,
    "background": boolean,
}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """The conversation, and what of the request the answer repeats."""

    chat: ChatRequest
    echo: Mapping[str, Any]


def responses_request(body: bytes) -> ResponsesRequest:
    """From the body of a request. Raises ApiError."""
    fields = read_body("ResponsesRequest", _FIELDS, body)
    if fields.get("previous_response_id"):
        raise ApiError(
            400,
            "previous_response_id is not supported: nothing is kept between requests, so send "
            "the whole conversation as input",
        )
    options: dict[str, Any] = {"temperature": fields.get("temperature", 1.0)}
    if "top_p" in fields:
        options["top_p"] = fields["top_p"]
    if "max_output_tokens" in fields:
        options["num_predict"] = fields["max_output_tokens"]
    instructions = fields.get("instructions", "")
    first = (Message("system", instructions),) if instructions else ()
    chat = ChatRequest(
        model=fields.get("model", ""),
        messages=first + _messages(fields.get("input") or ()),
        options=options,
        stream=fields.get("stream", False),
        tools=tuple(tool for tool in fields.get("tools") or () if tool),
        format=_format((fields.get("text") or {}).get("format")),
        think=think_of((fields.get("reasoning") or {}).get("effort", "")),
    )
    return ResponsesRequest(chat, _echo(fields))


def _echo(fields: Mapping[str, Any]) -> dict[str, Any]:
    reasoning = fields.get("reasoning") or {}
    tools = [{"type": "function", **tool["function"]} for tool in fields.get("tools") or () if tool]
    return {
        "instructions": fields.get("instructions") or None,
        "tools": tools,
        "truncation": fields.get("truncation") or "disabled",
        "text": {"format": (fields.get("text") or {}).get("format") or {"type": "text"}},
        "top_p": _short(fields.get("top_p", 1.0)),
        "temperature": _short(fields.get("temperature", 1.0)),
        "reasoning": {name: reasoning.get(name) or None for name in ("effort", "summary")}
        if reasoning
        else None,
        "max_output_tokens": fields.get("max_output_tokens"),
        "background": fields.get("background", False),
    }


def _short(value: float) -> float:
    """Go writes a whole number without a fraction."""
    return int(value) if value.is_integer() else value


def _format(wanted: Any) -> Any:
    if not isinstance(wanted, Mapping):
        return None
    if wanted.get("type") == "json_object":
        return "json"
    return wanted.get("schema") if wanted.get("type") == "json_schema" else None


def _messages(items: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Calls belong to the message before them, thoughts to the one behind: all the assistant's."""
    found: list[Message] = []
    thinking = ""
    for item in items:
        match item.get("type", ""):
            case "reasoning":
                thinking = item.get("encrypted_content") or _text(item.get("summary"))
            case "function_call":
                if not (found and found[-1].role == "assistant"):
                    found.append(Message("assistant"))
                last = found[-1]
                calls = (*last.tool_calls, _call(item))
                found[-1] = replace(last, tool_calls=calls, thinking=thinking or last.thinking)
                thinking = ""
            case "function_call_output":
                found.append(_result(item, found))
            case "message" | "":
                message = _message(item)
                if message.role == "assistant":
                    message, thinking = replace(message, thinking=thinking), ""
                found.append(message)
            case other:
                raise ApiError(400, f"unsupported input item type: {other}")
    if thinking:
        found.append(Message("assistant", thinking=thinking))
    return tuple(found)


def _message(item: Mapping[str, Any]) -> Message:
    role = item.get("role", "").lower()
    role = "system" if role == "developer" else role
    content = item.get("content")
    return Message(role, _text(content), images=_images(content))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _images(content: Any) -> tuple[bytes, ...]:
    parts = content if isinstance(content, list) else []
    return tuple(
        image_of(str(part.get("image_url", "")))
        for part in parts
        if isinstance(part, Mapping) and part.get("type") == "input_image"
    )


def _call(item: Mapping[str, Any]) -> ToolCall:
    try:
        arguments = json.loads(item.get("arguments") or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, "invalid tool call arguments")
    return ToolCall(item.get("name", ""), arguments, item.get("call_id", ""))


def _result(item: Mapping[str, Any], before: Sequence[Message]) -> Message:
    call_id = item.get("call_id", "")
    calls = (call for message in reversed(before) for call in message.tool_calls)
    name = next((call.name for call in calls if call.id == call_id), "")
    return Message("tool", _text(item.get("output")), tool_name=name, tool_call_id=call_id)
