"""Tools and messages of /api/chat, as Ollama's types read them and write them again.

A tool keeps what api.Tool has fields for, in its order and with its omissions: this is what
`{{ .Tools }}` of a template prints and what Ollama passes on. Source: api/types.go of Ollama 0.33.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engines.pieces import ToolCall
from .go_decoding import (
    Decoding,
    Reading,
    anything,
    array,
    image,
    integer,
    ordered_map,
    own_reader,
    string,
    struct,
)

__all__ = ["MESSAGES", "TOOLS", "Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is in lower case; `images` are the files themselves."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


_strings = array(string, "[]string")

_call = struct(
    "ToolCall",
    {
        "id": string,
        "function": struct(
            "ToolCallFunction",
            {"index": integer, "name": string, "arguments": ordered_map(anything)},
        ),
    },
)


def _tool_call(reading: Reading, value: Any) -> ToolCall:
    call = _call(reading, value)
    function = call.get("function", {})
    return ToolCall(
        name=function.get("name", ""),
        arguments=function.get("arguments", {}),
        id=call.get("id", ""),
    )


# The type that Message reads itself with is called Alias in Ollama's source, and so in errors.
_message_fields = struct(
    "Alias",
    {
        "role": string,
        "content": string,
        "thinking": string,
        "images": array(image, "[]api.ImageData"),
        "tool_calls": array(_tool_call, "[]api.ToolCall"),
        "tool_name": string,
        "tool_call_id": string,
    },
)


def _message(reading: Reading, value: Any) -> Message:
    fields = _message_fields(reading, value)
    fields["role"] = fields.get("role", "").lower()
    for name in ("images", "tool_calls"):
        fields[name] = tuple(fields.get(name, ()))
    return Message(**fields)


MESSAGES = array(own_reader(_message, on_null=Message()), "[]api.Message")


def _property_type(reading: Reading, value: Any) -> str | list[str]:
    if isinstance(value, str):
        return value
    types: list[str] = _strings(reading, value)
    return types[0] if len(types) == 1 else types


def _nested_properties(reading: Reading, value: Any) -> Any:
    return _properties(reading, value)


def _property(reading: Reading, value: Any) -> dict[str, Any]:
    fields = _property_fields(reading, value)
    return {name: fields[name] for name in _PROPERTY_ORDER if fields.get(name) not in _EMPTY}


_EMPTY: tuple[Any, ...] = (None, "", [])
_PROPERTY_ORDER = ("anyOf", "type", "items", "description", "enum", "properties", "required")
_property_fields = struct(
    "ToolProperty",
    {
        "anyOf": array(_property, "[]api.ToolProperty"),
        "type": own_reader(_property_type),
        "items": anything,
        "description": string,
        "enum": array(anything, "[]interface {}"),
        "properties": _nested_properties,
        "required": _strings,
    },
)
_properties: Decoding = ordered_map(_property)

_tool_fields = struct(
    "Tool",
    {
        "type": string,
        "items": anything,
        "function": struct(
            "ToolFunction",
            {
                "name": string,
                "description": string,
                "parameters": struct(
                    "ToolFunctionParameters",
                    {
                        "type": string,
                        "$defs": anything,
                        "items": anything,
                        "required": _strings,
                        "properties": _properties,
                    },
                ),
            },
        ),
    },
)


def _tool(reading: Reading, value: Any) -> dict[str, Any]:
    fields = _tool_fields(reading, value)
    function = fields.get("function", {})
    parameters = function.get("parameters", {})
    return _without_empty(
        {
            "type": fields.get("type", ""),
            "items": fields.get("items"),
            "function": _without_empty(
                {
                    "name": function.get("name", ""),
                    "description": function.get("description"),
                    "parameters": _without_empty(
                        {
                            "type": parameters.get("type", ""),
                            "$defs": parameters.get("$defs"),
                            "items": parameters.get("items"),
                            "required": parameters.get("required"),
                            "properties": parameters.get("properties"),
                        },
                        kept=("type", "properties"),
                    ),
                },
                kept=("name", "parameters"),
            ),
        },
        kept=("type", "function"),
    )


def _without_empty(fields: Mapping[str, Any], kept: tuple[str, ...]) -> dict[str, Any]:
    """`omitempty`, which some of the fields do not have."""
    return {name: value for name, value in fields.items() if name in kept or value not in _EMPTY}


TOOLS = array(_tool, "api.Tools")
