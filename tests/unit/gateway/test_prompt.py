"""Prompts: of the models in Ollama's recorded exchanges, of well-known formats, and cut to fit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kloros_llm.gateway.engines.pieces import ToolCall
from kloros_llm.gateway.generation.prompt import (
    collate,
    fit_prompt,
    make_prompt,
    parse,
    with_images,
)
from kloros_llm.gateway.go_template import TemplateError
from kloros_llm.gateway.ollama_api.api_tools import Message
from tests.unit.gateway import chat_templates

RECORDED = json.loads((Path(__file__).parent / "data" / "go_prompts.json").read_text())["cases"]
USER = Message("user", "hi")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
WEATHER_JSON = (
    '{"type":"function","function":{"name":"get_weather",'
    '"description":"Get the weather for a city","parameters":{"type":"object",'
    '"required":["city"],"properties":{"city":{"type":"string"}}}}}'
)
PARIS = ToolCall("get_weather", {"city": "Paris", "Days": 2})
TOOL_TALK = (
    Message("system", "Be terse."),
    Message("user", "Weather?"),
    Message("assistant", tool_calls=(PARIS,)),
    Message("tool", "22 C", tool_name="get_weather"),
)

# The templates of the models that Ollama's exchanges were recorded with.
SMOLLM = (
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{- range .Messages }}{{- if ne .Role "system" }}<|im_start|>{{ .Role }}\n'
    "{{ .Content }}<|im_end|>\n{{ end }}{{- end }}<|im_start|>assistant\n"
)
SMOLLM_TOOLS = """{{- if or .System .Tools }}<|im_start|>system
{{ .System }}{{ if .Tools }}
You can call functions. Reply only with {{ "" -}}
<tool_call>{"name": <function>, "arguments": <args>}</tool_call>.
<tools>{{ range .Tools }}{{ . }}{{ end }}</tools>{{ end }}<|im_end|>
{{ end }}{{- range .Messages }}{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>{{ end }}{{ end }}<|im_end|>
{{ else if eq .Role "tool" }}<|im_start|>user
<tool_response>{{ .Content }}</tool_response><|im_end|>
{{ end }}{{- end }}<|im_start|>assistant
"""
SMOLLM_THINK = (
    "{{- range $i, $_ := .Messages }}<|im_start|>{{ .Role }}\n"
    "{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n{{ if .Think }}<think>{{ end }}"
)


def test_what_ollama_rendered() -> None:
    """As in the exchange 42-debug-render."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert parse(SMOLLM).render([USER], system=system) == (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_as_in_the_recorded_exchange() -> None:
    """A tool is written as in 130-tools-chat, whose prompt had 207 tokens.

    So it has with the tool as this JSON, and with no other of the ways that Go could write it.
    """
    assert parse(SMOLLM_TOOLS).render(TOOL_TALK, [WEATHER]) == (
        "<|im_start|>system\nBe terse.\nYou can call functions. Reply only with "
        '<tool_call>{"name": <function>, "arguments": <args>}</tool_call>.\n'
        f"<tools>{WEATHER_JSON}</tools><|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"Days":2,"city":"Paris"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>22 C</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "messages", "tools", "think", "expected"),
    [
        (chat_templates.CHATML,
         [Message("system", "S"), USER, Message("assistant", "yo"), Message("user", "again")],
         [], None,
         "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
         "<|im_start|>assistant\nyo<|im_end|>\n"
         "<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        (chat_templates.LLAMA2,
         [Message("system", "S"), USER, Message("assistant", "yo "), Message("user", "again")],
         [], None,
         "[INST] <<SYS>>\nS\n<</SYS>>\n\nhi [/INST] yo [INST] again [/INST] "),
        (chat_templates.INSTRUCTION, [USER], [], None,
         "\n### Instruction:\nhi\n\n### Response:\n"),
        (chat_templates.LLAMA3_TOOLS, TOOL_TALK[:2], [WEATHER], None,
         "<|start_header_id|>system<|end_header_id|>\n\nBe terse.\n\n"
         "When you receive a tool call response, use the output to format an answer.<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nRespond in the format "
         '{"name": function name, "parameters": dictionary of arguments}.\n'
         f"{WEATHER_JSON}\n\n"
         "Question: Weather?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        (chat_templates.LLAMA3_TOOLS, TOOL_TALK[1:], [], None,
         "<|start_header_id|>user<|end_header_id|>\n\nWeather?<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n"
         '\n{"name": "get_weather", "parameters": {"Days":2,"city":"Paris"}}<|eot_id|>'
         "<|start_header_id|>ipython<|end_header_id|>\n\n22 C<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        (chat_templates.MISTRAL_TOOLS, TOOL_TALK, [WEATHER], None,
         "[INST] Weather?[/INST]"
         '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"Days":2,"city":"Paris"}}]</s>'
         '[TOOL_RESULTS] {"content": 22 C}[/TOOL_RESULTS]'),
        (chat_templates.MISTRAL_TOOLS, TOOL_TALK[:2], [WEATHER], None,
         f"[AVAILABLE_TOOLS] [{WEATHER_JSON}][/AVAILABLE_TOOLS]"
         "[INST] Be terse.\n\nWeather?[/INST]"),
        (chat_templates.GEMMA, [Message("system", "S"), USER], [], None,
         "<start_of_turn>user\nS\nhi<end_of_turn>\n<start_of_turn>model\n"),
        (chat_templates.PHI3, [Message("system", "S"), USER], [], None,
         "<|system|>\nS<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"),
        (chat_templates.QWEN_TOOLS, TOOL_TALK, [WEATHER], None,
         "<|im_start|>system\nBe terse.\n\n# Tools\n\nYou are provided with function signatures "
         "within <tools></tools> XML tags:\n<tools>\n"
         f'{{"type": "function", "function": {WEATHER_JSON[30:-1]}}}\n</tools><|im_end|>\n'
         "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n"
         '<tool_call>\n{"name": "get_weather", "arguments": {"Days":2,"city":"Paris"}}\n'
         "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n22 C\n</tool_response>"
         "<|im_end|>\n<|im_start|>assistant\n"),
        (chat_templates.DEEPSEEK_R1, [USER], [], None, "<|User|>hi<|Assistant|>"),
        (chat_templates.DEEPSEEK_R1, [USER], [], True, "<|User|>hi<|Assistant|>"),
        (chat_templates.DEEPSEEK_R1, [USER], [], False,
         "<|User|>hi<|Assistant|><think>\n\n</think>\n\n"),
        (chat_templates.DEEPSEEK_R1, [USER, Message("assistant", thinking="hm")], [], True,
         "<|User|>hi<|Assistant|><think>\nhm\n</think>"),
        (chat_templates.COMMAND_R, [Message("system", "S"), USER], [WEATHER], None,
         "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>## Available Tools\n\n"
         "def get_weather(city: string, ):\n    # Get the weather for a city\n"
         "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>hi<|END_OF_TURN_TOKEN|>"
         "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
        (chat_templates.TYPESCRIPT_TOOLS, TOOL_TALK[3:], [WEATHER], "high",
         "namespace functions {\ntype get_weather = (_: {\ncity: string,\n}) => any;\n}\n"
         "<|tool|>get_weather: 22 C\nReasoning: high"),
        (SMOLLM_THINK, [USER], [], True,
         "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>"),
        (SMOLLM_THINK, [USER], [], None,
         "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        ("{{ .ThinkLevel }}{{ .Messages | len }}", [USER], [], True, "medium1"),
    ],
)  # fmt: skip
def test_known_formats(
    template: str,
    messages: list[Message],
    tools: list[dict[str, Any]],
    think: bool | str | None,
    expected: str,
) -> None:
    assert parse(template).render(messages, tools, think=think) == expected


def test_what_go_renders() -> None:
    assert len(RECORDED) > 150
    for case in RECORDED:
        template = parse(getattr(chat_templates, case["template"]))
        text = template.render(
            [_message(message) for message in case["messages"]],
            case.get("tools", ()),
            prompt=case.get("prompt", ""),
            suffix=case.get("suffix", ""),
            think=case.get("think"),
        )
        assert text == case["output"], case


def _message(given: dict[str, Any]) -> Message:
    calls = [(call["id"], call["function"]) for call in given.get("tool_calls", ())]
    return Message(
        given["role"],
        given["content"],
        given.get("thinking", ""),
        tool_calls=tuple(ToolCall(f["name"], f["arguments"], call_id) for call_id, f in calls),
        tool_name=given.get("tool_name", ""),
        tool_call_id=given.get("tool_call_id", ""),
    )


def test_numbers_of_arguments_are_floating_point() -> None:
    """As encoding/json decodes them: with %v they look different from seven digits on."""
    template = "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }} "
    template += "{{ index .Function.Arguments `n` }}"
    call = ToolCall("f", {"n": 1234567, "m": 10**21, "k": True})
    text = parse(template + "{{ end }}{{ end }}").render([Message("assistant", tool_calls=(call,))])
    assert text == '{"k":true,"m":1e+21,"n":1234567} 1.234567e+06'


def test_text_in_between() -> None:
    template = parse(chat_templates.FILL_IN)
    text = template.render(prompt="def f(", suffix="return 1", system="no")
    assert text == "<PRE> def f( <SUF>return 1 <MID>"
    assert template.render(prompt="def f(") == "def f("


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        (SMOLLM, ()),
        (SMOLLM_TOOLS, ("tools",)),
        (SMOLLM_THINK, ("thinking",)),
        (chat_templates.FILL_IN, ("insert",)),
        ("{{ range .Messages }}{{ $.Tools }}{{ if .Thinking }}{{ .Thinking }}{{ end }}{{ end }}",
         ("tools",)),
        ('{{ define "a" }}{{ .Suffix }}{{ end }}{{ template "a" . }}', ("insert",)),
    ],
)  # fmt: skip
def test_capabilities(template: str, capabilities: tuple[str, ...]) -> None:
    assert parse(template).capabilities == capabilities


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .Prompt }}", "hi"),
        ("{{ .Prompt }}>{{ .Response }}<", "hi>"),
        ("{{ .Prompt }}{{ if .Response }}>{{ .Response }}<{{ else }}?{{ end }}!", "hi"),
        ("{{ .Prompt }}{{ if true }}>{{ .Response }}<{{ end }}!", "hi>"),
        ("{{ .Prompt }}{{ $.Response }}<", "hi<"),
        ("{{ with .Prompt }}{{ . }}{{ end }}{{ .Response | html }}{{ currentDate }}", "hi"),
    ],
)
def test_the_prompt_of_a_turn_ends_at_the_response(template: str, expected: str) -> None:
    assert parse(template).render([USER]) == expected


def test_neighbours_of_one_role_are_one_message() -> None:
    messages = [Message("user", "a"), Message("user", "b"), Message("tool", "c")]
    collated = collate([*messages, Message("tool", "d")])
    assert [m.content for m in collated] == ["a\n\nb", "c", "d"]
    assert messages[0].content == "a"
    template = parse("{{ .System }}|{{ range .Messages }}{{ .Role }}:{{ .Content }} {{ end }}")
    assert template.render([Message("system", "x"), USER, Message("system", "y")]) == (
        "x\n\ny|system:x user:hi system:y "
    )


def test_images_have_their_places() -> None:
    messages = [
        Message("user", "see [img] and", images=(b"a", b"b")),
        Message("user", "plain"),
        Message("user", "last", images=(b"c",)),
    ]
    tagged, images = with_images(messages)
    assert [m.content for m in tagged] == ["[img-1]see [img-0] and", "plain", "[img-2]last"]
    assert images == (b"a", b"b", b"c")
    prompt = make_prompt(parse("{{ range .Messages }}{{ .Content }}{{ end }}"), messages[2:])
    assert (prompt.text, prompt.images) == ("[img-0]last", (b"c",))


WORDS = "{{ range .Messages }}{{ .Role }} {{ .Content }} {{ end }}"


def fitted(messages: list[Message], budget: int) -> tuple[list[str], int]:
    async def count(text: str) -> int:
        return len(text.split())

    prompt = asyncio.run(fit_prompt(parse(WORDS), messages, budget_tokens=budget, count=count))
    return prompt.text.split(), prompt.dropped


def test_the_oldest_messages_go_first() -> None:
    roles = ("user", "assistant")
    turns = [Message(role, f"{role[0]}{n}") for n in range(5) for role in roles]
    words = " ".join(f"user u{n} assistant a{n}" for n in range(5)).split()
    talk = [Message("system", "s"), *turns]
    assert fitted(talk, 22) == (["system", "s", *words], 0)
    assert fitted(talk, 8) == (["system", "s", *words[-6:]], 7)
    assert fitted(talk, 9) == fitted(talk, 8)
    assert fitted(talk, 1) == (["system", "s", "assistant", "a4"], 9)
    assert fitted([], 0) == ([], 0)
    assert fitted([Message("user", "a b c")], 1) == (["user", "a", "b", "c"], 0)


def test_an_answer_of_a_tool_keeps_its_call() -> None:
    talk = [
        Message("user", "q"),
        Message("assistant", "calling", tool_calls=(PARIS,)),
        Message("tool", "one"),
        Message("tool", "two"),
    ]
    assert fitted(talk, 1) == (["assistant", "calling", "tool", "one", "tool", "two"], 1)
    alone = [Message("user", "q"), Message("assistant", "no call"), Message("tool", "one")]
    assert fitted(alone, 1) == (["tool", "one"], 2)


def test_images_count_when_it_is_cut() -> None:
    talk = [Message("user", "old", images=(b"x",)), Message("user", "new")]
    assert fitted(talk, 700) == (["user", "new"], 1)
    assert fitted(talk, 800)[1] == 0


_ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
_TALK = st.lists(
    st.builds(
        Message,
        _ROLES,
        st.sampled_from(["w", "w w", "w w w w"]),
        tool_calls=st.sampled_from([(), (PARIS,)]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(_TALK, st.integers(1, 60))
def test_halving_finds_what_going_through_finds(talk: list[Message], budget: int) -> None:
    """As Ollama looks for it: one message less, and one less, until it fits."""
    template = parse(WORDS)

    def kept(at: int) -> list[Message]:
        start = at
        while start > 0 and talk[start].role == "tool":
            start -= 1
        if not (start < at and talk[start].role == "assistant" and talk[start].tool_calls):
            start = at
        return [m for m in talk[:start] if m.role == "system"] + talk[start:]

    for at in range(len(talk)):
        expected = template.render(kept(at)).split()
        if len(expected) <= budget:
            break
    assert fitted(talk, budget)[0] == expected


def test_what_cannot_be_rendered_says_so() -> None:
    with pytest.raises(TemplateError, match="can't evaluate field Nope in type"):
        parse("{{ range .Messages }}{{ .Nope }}{{ end }}").render([USER])
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    call = Message("assistant", tool_calls=(ToolCall("f", {"a": deep}),))
    with pytest.raises(TemplateError, match="nested"):
        parse(SMOLLM_TOOLS).render([call])
