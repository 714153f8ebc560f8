"""Ollama's requests: what they default to, and the words for what is wrong with them.

The texts are those of the recorded exchanges and of Ollama's issues.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kloros_llm.gateway.engines.pieces import ToolCall
from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.ollama_api.api_requests import (
    ChatRequest,
    CopyRequest,
    CreateRequest,
    DeleteRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    PullRequest,
    PushRequest,
    ShowRequest,
)
from kloros_llm.gateway.ollama_api.api_tools import Message
from kloros_llm.gateway.ollama_api.durations import FOREVER_NS
from kloros_llm.gateway.ollama_api.json_text import compact

PARSERS: tuple[Callable[[bytes], Any], ...] = (
    GenerateRequest.parse,
    ChatRequest.parse,
    EmbedRequest.parse,
    EmbeddingsRequest.parse,
    ShowRequest.parse,
    CopyRequest.parse,
    DeleteRequest.parse,
    PullRequest.parse,
    PushRequest.parse,
    CreateRequest.parse,
)


def refusal(parse: Callable[[bytes], Any], body: Any) -> str:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as refused:
        parse(data)
    assert refused.value.status == 400
    return refused.value.text


def generate(**fields: Any) -> GenerateRequest:
    return GenerateRequest.parse(json.dumps(fields).encode())


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps(fields).encode())


@pytest.mark.parametrize("parse", PARSERS)
def test_a_missing_body_and_a_cut_one(parse: Callable[[bytes], Any]) -> None:
    assert refusal(parse, b"") == "missing request body"
    assert refusal(parse, b" \n") == "missing request body"
    assert refusal(parse, b'{"model":') == "unexpected EOF"
    assert refusal(parse, b"[]").startswith(
        "json: cannot unmarshal array into Go value of type api."
    )
    assert parse(b"null") == parse(b"{}")


def test_what_generate_takes_for_granted() -> None:
    request = generate(model="m", prompt="p")
    assert (request.stream, request.truncate, request.shift, request.raw) == (True,) * 3 + (False,)
    assert (request.keep_alive_ns, request.think, request.response_format()) == (None, None, None)
    assert (request.context, request.images, dict(request.options)) == ((), (), {})


def test_a_later_null_unsets_what_can_be_unset() -> None:
    request = GenerateRequest.parse(
        b'{"stream":false,"stream":null,"context":[1],"context":null,"prompt":"p","prompt":null,'
        b'"raw":true,"raw":null,"keep_alive":0,"keep_alive":null}'
    )
    assert (request.stream, request.context, request.keep_alive_ns) == (True, (), None)
    assert (request.prompt, request.raw) == ("p", True)


def test_everything_that_generate_may_say() -> None:
    request = GenerateRequest.parse(
        b'{"MODEL":"m","prompt":"p","suffix":"s","system":"y","template":"t","context":[1,2],'
        b'"stream":false,"raw":true,"format":"json","keep_alive":"10m","images":["aGk="],'
        b'"options":{"num_ctx":2048},"think":"high","truncate":false,"shift":false,'
        b'"logprobs":true,"top_logprobs":20,"_debug_render_only":true,"width":5,"new":1}'
    )
    assert request == GenerateRequest(
        model="m",
        prompt="p",
        suffix="s",
        system="y",
        template="t",
        context=(1, 2),
        stream=False,
        raw=True,
        format="json",
        keep_alive_ns=600_000_000_000,
        images=(b"hi",),
        options={"num_ctx": 2048},
        think="high",
        truncate=False,
        shift=False,
        logprobs=True,
        top_logprobs=20,
        debug_render_only=True,
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"stream": "yes"},
            "json: cannot unmarshal string into Go struct field GenerateRequest.stream "
            "of type bool",
        ),
        (
            {"prompt": ["a"]},
            "json: cannot unmarshal array into Go struct field GenerateRequest.prompt "
            "of type string",
        ),
        (
            {"options": "x"},
            "json: cannot unmarshal string into Go struct field GenerateRequest.options of type "
            "map[string]interface {}",
        ),
        (
            {"context": ["x"]},
            "json: cannot unmarshal string into Go struct field GenerateRequest.context "
            "of type int",
        ),
        (
            {"images": "x"},
            "json: cannot unmarshal string into Go struct field GenerateRequest.images of type "
            "[]api.ImageData",
        ),
        ({"images": ["data:image/png;base64,aGk="]}, "illegal base64 data at input byte 4"),
        ({"keep_alive": "xx"}, 'time: invalid duration "xx"'),
        ({"keep_alive": "5"}, 'time: missing unit in duration "5"'),
        ({"keep_alive": []}, "Unsupported type: '[]interface {}'"),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        (
            {"think": "xhigh"},
            'invalid think value: "xhigh" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            {"think": 1},
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
        ),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        # A type that reads itself ends the reading and is told first.
        ({"stream": "yes", "keep_alive": "xx"}, 'time: invalid duration "xx"'),
    ],
)
def test_what_generate_refuses(fields: dict[str, Any], text: str) -> None:
    assert refusal(GenerateRequest.parse, fields) == text


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [
        (0, 0),
        (-1, FOREVER_NS),
        ("-1m", FOREVER_NS),
        (2.5, 2_500_000_000),
        ("24h", 86_400_000_000_000),
        ("0", 0),
        (1e300, FOREVER_NS),
        (None, None),
    ],
)
def test_keep_alive(value: Any, nanoseconds: int | None) -> None:
    request = generate(keep_alive=value)
    assert request.keep_alive_ns == nanoseconds
    assert request.unloads is (nanoseconds == 0)


@pytest.mark.parametrize("unset", [None, ""])
def test_no_format(unset: Any) -> None:
    assert generate(format=unset).response_format() is None


def test_formats() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert chat(format=schema).response_format() == schema
    assert chat(format={}).response_format() == {}
    for wrong, shown in (("yaml", '"\\"yaml\\""'), (5, '"5"'), ([1], '"[1]"'), (False, '"false"')):
        with pytest.raises(ApiError) as refused:
            generate(format=wrong).response_format()
        assert refused.value.status == 500
        assert refused.value.text == (
            f'invalid format: {shown}; expected "json" or a valid JSON Schema object'
        )


def test_a_conversation() -> None:
    request = chat(
        model="m",
        messages=[
            {"role": "SYSTEM", "content": "s"},
            {"role": "user", "content": "u", "images": ["aGk="]},
            {
                "role": "assistant",
                "thinking": "t",
                "tool_calls": [
                    {"id": "call_1", "function": {"index": 1, "name": "f", "arguments": {"a": 1}}},
                    {"function": {"name": "g"}},
                ],
            },
            {"role": "tool", "content": "r", "tool_name": "f", "tool_call_id": "call_1"},
            None,
        ],
    )
    calls = (ToolCall("f", {"a": 1}, "call_1"), ToolCall("g", {}))
    assert request.messages == (
        Message(role="system", content="s"),
        Message(role="user", content="u", images=(b"hi",)),
        Message(role="assistant", thinking="t", tool_calls=calls),
        Message(role="tool", content="r", tool_name="f", tool_call_id="call_1"),
        Message(),
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content "
            "of type string",
        ),
        (
            {"messages": {"role": "user"}},
            "json: cannot unmarshal object into Go struct field ChatRequest.messages "
            "of type []api.Message",
        ),
        (
            {"messages": ["hi"]},
            "json: cannot unmarshal string into Go struct field ChatRequest.messages "
            "of type api.Alias",
        ),
        (
            {"messages": [{"tool_calls": [{"function": {"name": 5}}]}]},
            "json: cannot unmarshal number into Go struct field "
            "ChatRequest.messages.tool_calls.function.name of type string",
        ),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
            "Value looks like object, but can't find closing '}' symbol",
        ),
        (
            {"tools": {}},
            "json: cannot unmarshal object into Go struct field ChatRequest.tools "
            "of type api.Tools",
        ),
        (
            {"tools": [{"function": {"name": True}}]},
            "json: cannot unmarshal bool into Go struct field ToolFunction.tools.function.name "
            "of type string",
        ),
        (
            {"tools": [{"function": {"parameters": {"properties": {"a": {"type": 5}}}}}]},
            "json: cannot unmarshal number into Go struct field "
            "ToolFunctionParameters.tools.function.parameters.properties.type of type []string",
        ),
    ],
)
def test_what_chat_refuses(fields: dict[str, Any], text: str) -> None:
    assert refusal(ChatRequest.parse, fields) == text


def test_tools_are_what_ollama_writes_of_them() -> None:
    """The order of api.Tool, its omissions, and nothing that it has no field for."""
    request = chat(
        tools=[
            {
                "function": {
                    "parameters": {
                        "additionalProperties": False,
                        "properties": {
                            "unit": {"enum": ["C", "F"], "type": ["string"], "default": "C"},
                            "where": {
                                "description": "",
                                "anyOf": [{"type": "string"}, {"type": ["null", "integer"]}],
                                "properties": {"x": {"type": "number"}},
                                "required": [],
                            },
                        },
                        "required": ["unit"],
                        "type": "object",
                    },
                    "description": "Weather",
                    "name": "weather",
                },
                "type": "function",
            },
            {},
        ]
    )
    assert [compact(tool) for tool in request.tools] == [
        '{"type":"function","function":{"name":"weather","description":"Weather","parameters":'
        '{"type":"object","required":["unit"],"properties":{"unit":{"type":"string","enum":'
        '["C","F"]},"where":{"anyOf":[{"type":"string"},{"type":["null","integer"]}],'
        '"properties":{"x":{"type":"number"}}}}}}}',
        '{"type":"","function":{"name":"","parameters":{"type":"","properties":null}}}',
    ]


def test_embed_inputs() -> None:
    def inputs(value: Any) -> list[str]:
        return EmbedRequest.parse(json.dumps({"input": value}).encode()).inputs()

    assert inputs("a") == ["a"]
    assert inputs(["a", ""]) == ["a", ""]
    assert inputs("") == inputs([]) == inputs(None) == []
    for wrong in (5, {"a": 1}, ["a", 1], True, [["a"]]):
        with pytest.raises(ApiError) as refused:
            inputs(wrong)
        assert (refused.value.status, refused.value.text) == (400, "invalid input type")


def test_names_of_old() -> None:
    for parse in (ShowRequest.parse, DeleteRequest.parse, PullRequest.parse, PushRequest.parse):
        assert parse(b'{"name":"old"}').model == "old"
        assert parse(b'{"name":"old","model":"new"}').model == "new"
    created = CreateRequest.parse(b'{"name":"old","quantization":"q8_0","license":["a","b"]}')
    assert (created.model, created.quantize, created.license) == ("old", "q8_0", ("a", "b"))


def test_create() -> None:
    request = CreateRequest.parse(
        b'{"model":"derived","from":"smollm2:135m","system":"Be terse.","parameters":'
        b'{"temperature":0.5,"stop":["\\n\\n"]},"messages":[{"role":"user","content":"hi"}],'
        b'"files":{"a.gguf":"sha256:1"},"license":"MIT","stream":false}'
    )
    assert request == CreateRequest(
        model="derived",
        from_="smollm2:135m",
        system="Be terse.",
        parameters={"temperature": 0.5, "stop": ["\n\n"]},
        messages=(Message(role="user", content="hi"),),
        files={"a.gguf": "sha256:1"},
        license=("MIT",),
        stream=False,
    )


def test_copy() -> None:
    request = CopyRequest.parse(b'{"source":"a","destination":"b"}')
    assert (request.source, request.destination) == ("a", "b")


NAMES = st.sampled_from(
    [
        *("model", "name", "prompt", "messages", "tools", "images", "options", "think", "format"),
        *("keep_alive", "context", "input", "function", "parameters", "properties", "type"),
        *("role", "content", "tool_calls", "arguments", "license", "files"),
    ]
)
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=300)
@given(BODIES)
def test_any_body_is_a_request_or_an_api_error(body: Any) -> None:
    for parse in PARSERS:
        with contextlib.suppress(ApiError):
            request = parse(json.dumps(body).encode())
            assert isinstance(compact(vars(request).get("options", {})), str)
            if isinstance(request, GenerateRequest | ChatRequest):
                request.response_format()
            if isinstance(request, EmbedRequest):
                request.inputs()


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_an_api_error(body: bytes) -> None:
    for parse in PARSERS:
        with contextlib.suppress(ApiError):
            parse(body)
