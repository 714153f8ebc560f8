"""Tool calls out of text, however it is cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.engines.pieces import ToolCall
from kloros_llm.gateway.generation.tool_calls import ToolParser, first_token, infer_tag
from kloros_llm.gateway.go_template import parse
from tests.unit.gateway import chat_templates

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name}}
    for name in ("get", "get_weather", "say_hello", "add")
]
PARIS = ToolCall("get_weather", {"city": "Paris"})
CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'


def calls_in(tag: str, pieces: list[str]) -> tuple[list[ToolCall], str]:
    parser = ToolParser(tag, TOOLS)
    calls: list[ToolCall] = []
    text = ""
    for piece in pieces:
        found, said = parser.add(piece)
        calls += found
        text += said
    return calls, text + parser.rest()


@pytest.mark.parametrize(
    ("tag", "text", "calls", "said"),
    [
        # With a tag of its own.
        ("<tool_call>", f"<tool_call>\n{CALL}\n</tool_call>", [PARIS], ""),
        ("<tool_call>", f"Let me see. <tool_call>{CALL}</tool_call>", [PARIS], "Let me see. "),
        ("<tool_call>", f"<tool_call>{CALL}</tool_call>\n<tool_call>"
         '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}</tool_call>',
         [PARIS, ToolCall("add", {"a": 1, "b": [2, {"c": "}"}]})], ""),
        ("<tool_call>", f"<tool_call>{CALL}{CALL}", [PARIS, PARIS], ""),
        ("[TOOL_CALLS]", f"[TOOL_CALLS] [{CALL}, {CALL}]", [PARIS, PARIS], ""),
        ("<tool_call>", "a < b, <tool, no call {}", [], "a < b, <tool, no call {}"),
        ("<tool_call>", "<tool_call>", [], "<tool_call>"),
        ("<tool_call>", CALL, [], CALL),
        # Names that are no tools are text, so is what is cut off.
        ("<tool_call>", '<tool_call>{"name": "rm", "arguments": {"x": "get_weather"}}</tool_call>',
         [], '<tool_call>{"name": "rm", "arguments": {"x": "get_weather"}}</tool_call>'),
        ("<tool_call>", '<tool_call>{"name": "get_weather_2", "arguments": {}}', [],
         '<tool_call>{"name": "get_weather_2", "arguments": {}}'),
        ("<tool_call>", f'<tool_call>{{"name": "rm", "arguments": {{}}}} <tool_call>{CALL}',
         [PARIS], '<tool_call>{"name": "rm", "arguments": {}} '),
        ("<tool_call>", f"<tool_call>{CALL}</tool_call>\n"
         '<tool_call>{"name": "rm", "arguments": {}}',
         [PARIS], '<tool_call>{"name": "rm", "arguments": {}}'),
        ("<tool_call>", '<tool_call>{"name": "get_wea', [], '<tool_call>{"name": "get_wea'),
        ("<tool_call>", "<tool_call>{not: json} end", [], "<tool_call>{not: json} end"),
        # Other shapes.
        ("<c>", '<c>{"name": "add", "parameters": {"a": 1}}', [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>{"name": "add", "arguments": "{\\"a\\": 1}"}', [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>{"name": "add", "arguments": {}}', [ToolCall("add", {})], ""),
        ("<c>", '<c>{"name": "add"}', [ToolCall("add", {})], ""),
        ("<c>", '<c>{"add": {"a": 1}}', [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}',
         [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>function<sep>add\n```json\n{"a": 1}\n```', [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>{"a": 1} add {"b": 2} {"c": 3}', [ToolCall("add", {"b": 2})], ""),
        ("<c>", '<c>add {"name": "Bob"}', [ToolCall("add", {"name": "Bob"})], ""),
        ("Action:", 'Action: ```json\n[{"tool_name": "add", "parameters": {"a": 1}}]```',
         [ToolCall("add", {"a": 1})], ""),
        ("<c>", '<c>{"name": "add", "arguments": {"s": "line\nbreak"}}',
         [ToolCall("add", {"s": "line\nbreak"})], ""),
        ("<c>", '<c>{"name": "add", "arguments": {"s": "\\"}{\\\\"}}',
         [ToolCall("add", {"s": '"}{\\'})], ""),
        ("<c>", "<c>it's \"quoted\" " + CALL, [PARIS], ""),
        # Without a tag only an answer that starts with JSON has calls.
        ("{", CALL, [PARIS], ""),
        ("{", f" \n{CALL}; {CALL}", [PARIS, PARIS], " \n"),
        ("{", f"It is {CALL}", [], f"It is {CALL}"),
        ("{", '{"a": 1} and more', [], '{"a": 1} and more'),
        ("{", '{"name": "rm", "arguments": {}} more', [], '{"name": "rm", "arguments": {}} more'),
        ("{", '{"a": ', [], '{"a": '),
        ("[", f"[{CALL}]", [PARIS], ""),
        ("[", "[1, [2], 3] is a list", [], "[1, [2], 3] is a list"),
        ("[", '["]", 1', [], '["]", 1'),
        ("[", f"[] {CALL}", [], f"[] {CALL}"),
    ],
)  # fmt: skip
def test_calls_and_text(tag: str, text: str, calls: list[ToolCall], said: str) -> None:
    assert calls_in(tag, [text]) == (calls, said)
    assert calls_in(tag, list(text)) == (calls, said)
    for at in range(len(text)):
        assert calls_in(tag, [text[:at], text[at:]]) == (calls, said)


def test_text_comes_as_soon_as_it_cannot_be_a_tag() -> None:
    parser = ToolParser("<tool_call>", TOOLS)
    assert parser.add("a <to") == ((), "a ")
    assert parser.add("p> b") == ((), "<top> b")
    assert parser.add("<tool_call>{") == ((), "")
    assert parser.add(CALL[1:]) == ((PARIS,), "")


def test_long_arguments_and_deep_ones_take_no_time() -> None:
    value = "x{\\\\" * 20_000
    text = f'<c>{{"name": "add", "arguments": {{"s": "{value * 2}"}}}}'
    calls, said = calls_in("<c>", [text[at : at + 3] for at in range(0, len(text), 3)])
    assert (len(calls), said) == (1, "")
    deep = "<c>" + '{"a":' * 50_000 + "1" + "}" * 50_000
    assert calls_in("<c>", [deep]) == ([], deep)


@given(
    st.sampled_from(["{", "[", "<c>"]),
    st.lists(
        st.sampled_from(
            ["<c>", "<", "{", "}", "[", "]", '"', "\\", CALL, "add", '"name":', " ", "é"]
        )
    ),
)
def test_cutting_changes_no_call(tag: str, pieces: list[str]) -> None:
    whole = calls_in(tag, ["".join(pieces)])
    assert calls_in(tag, pieces) == whole
    assert calls_in(tag, list("".join(pieces))) == whole


@pytest.mark.parametrize(
    ("template", "tag"),
    [
        (chat_templates.QWEN_TOOLS, "<tool_call>"),
        (chat_templates.MISTRAL_TOOLS, "[TOOL_CALLS] ["),
        (chat_templates.LLAMA3_TOOLS, "{"),
        (chat_templates.COMMAND_R, "Action: ```json\n["),
        (chat_templates.CHATML, "{"),
        ("{{ range .Messages }}{{ if .ToolCalls }}{{ range .ToolCalls }}<c>\n{{ .ID }}{{ end }}"
         "{{ end }}{{ end }}", "<c>"),
        ("{{ if .ToolCalls }}{{ .Content }}<c>{{ end }}", "{"),
        ("{{ if (.ToolCalls) }}<c>{{ end }}", "{"),
    ],
)  # fmt: skip
def test_the_tag_is_inferred_from_the_template(template: str, tag: str) -> None:
    assert infer_tag(parse(template)) == tag


@pytest.mark.parametrize(
    ("tag", "token"),
    [
        ("<tool_call>", "<tool_call>"),
        ("[TOOL_CALLS] [", "[TOOL_CALLS]"),
        ("<|python_tag|>x", "<|python_tag|>"),
        ("functools[", "functools["),
        ("<open", "<open"),
        ("{", ""),
        ("[", ""),
    ],
)
def test_what_of_a_tag_may_be_a_special_token(tag: str, token: str) -> None:
    assert first_token(tag) == token
