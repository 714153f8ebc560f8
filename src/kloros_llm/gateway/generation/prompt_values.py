"""Messages and tools, from the JSON of a request to what a Go template sees of them.

A tool is {type, function: {name, description, parameters}}; what is of another type counts as
absent. Templates see arguments and properties as maps, so their keys are in alphabetical order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..engines.pieces import ToolCall
from ..go_template import Struct, StructField
from ..go_template.values import InsertionMap, JsonList, JsonMap, TypeList, Value
from ..ollama_api.api_tools import Message


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in _list(value) if isinstance(item, str))


def any_value(value: Any) -> Value:
    """Decoded JSON as Go has it in an `any`: every number is a float64."""
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    if isinstance(value, Mapping):
        return {str(key): any_value(item) for key, item in value.items()}
    return [any_value(item) for item in _list(value)]


def _struct(type_name: str, is_json: bool, **fields: StructField) -> Struct:
    return Struct(type_name, fields, is_json)


def message_value(message: Message) -> Struct:
    """What `range .Messages` yields. Images are there, but cannot be written."""
    calls = tuple(_call(index, call) for index, call in enumerate(message.tool_calls))
    return _struct(
        "*template.templateMessage",
        False,
        Role=StructField(message.role, "role"),
        Content=StructField(message.content, "content"),
        Thinking=StructField(message.thinking, "thinking", True),
        Images=StructField(("",) * len(message.images), "images", True),
        ToolCalls=StructField(calls, "tool_calls", True),
        ToolName=StructField(message.tool_name, "tool_name", True),
        ToolCallID=StructField(message.tool_call_id, "tool_call_id", True),
    )


def _call(index: int, call: ToolCall) -> Struct:
    return _struct(
        "template.templateToolCall",
        False,
        ID=StructField(call.id, "id", True),
        Function=StructField(
            _struct(
                "template.templateToolCallFunction",
                False,
                Index=StructField(index, "index"),
                Name=StructField(call.name, "name"),
                Arguments=StructField(JsonMap(any_value(call.arguments)), "arguments"),
            ),
            "function",
        ),
    )


def tools_value(tools: Sequence[Mapping[str, Any]]) -> Value:
    """What `.Tools` is."""
    return JsonList(_tool(_object(tool)) for tool in tools)


def _tool(tool: Mapping[str, Any]) -> Struct:
    function = _object(tool.get("function"))
    parameters = _object(function.get("parameters"))
    properties = parameters.get("properties")
    described = _struct(
        "template.templateToolFunctionParameters",
        True,
        Type=StructField(_text(parameters.get("type")), "type"),
        Defs=_optional(parameters, "$defs"),
        Items=_optional(parameters, "items"),
        Required=StructField(_texts(parameters.get("required")), "required", True),
        Properties=StructField(
            JsonMap({name: _property(_object(p)) for name, p in properties.items()})
            if isinstance(properties, Mapping)
            else None,
            "properties",
        ),
    )
    return _struct(
        "template.templateTool",
        True,
        Type=StructField(_text(tool.get("type")), "type"),
        Items=_optional(tool, "items"),
        Function=StructField(
            _struct(
                "template.templateToolFunction",
                True,
                Name=StructField(_text(function.get("name")), "name"),
                Description=StructField(_text(function.get("description")), "description", True),
                Parameters=StructField(described, "parameters"),
            ),
            "function",
        ),
    )


def _optional(holder: Mapping[str, Any], name: str) -> StructField:
    """A field of type `any`: left out of JSON only where it is nil."""
    value = any_value(holder.get(name))
    return StructField(value, name, value is None)


def _property(schema: Mapping[str, Any]) -> Struct:
    types = schema.get("type")
    enum = schema.get("enum")
    inner = schema.get("properties")
    return _struct(
        "api.ToolProperty",
        False,
        AnyOf=StructField(
            tuple(_property(_object(item)) for item in _list(schema.get("anyOf"))), "anyOf", True
        ),
        Type=StructField(
            TypeList([types] if isinstance(types, str) else _texts(types)), "type", True
        ),
        Items=_optional(schema, "items"),
        Description=StructField(_text(schema.get("description")), "description", True),
        Enum=StructField([any_value(item) for item in _list(enum)], "enum", True),
        Properties=StructField(
            InsertionMap({name: _property(_object(p)) for name, p in inner.items()})
            if isinstance(inner, Mapping)
            else None,
            "properties",
            not isinstance(inner, Mapping),
        ),
        Required=StructField(_texts(schema.get("required")), "required", True),
    )
