"""LlamaAdapter in front of Ollama, as a real one answered."""

from __future__ import annotations

import json

import pytest
import requests

from kloros_llm import (
    LlamaAdapter,
    LlmAuthenticationError,
    LlmConfigurationError,
    LlmHttpError,
    LlmInterruptedError,
    LlmModelNotFoundError,
    LlmProtocolError,
    LlmUnsupportedError,
    LlmUsageError,
    Timeouts,
    ToolCall,
)
from tests.unit.client.stand_in_ollama import StandInOllama, exchange

GENERATE = exchange("11-generate-stream")
CHAT = exchange("13-chat-stream")
TOOLS = exchange("131-tools-chat-stream")
OPTIONS = {"seed": 1, "temperature": 0, "num_predict": 32}
PROMPT = "Name three colours."
PIECES = [json.loads(line)["response"] for line in GENERATE.body.splitlines()[:-1]]


def test_an_answer_piece_by_piece_and_what_is_asked_for_it() -> None:
    with StandInOllama("11-generate-stream") as ollama:
        stream = LlamaAdapter(ollama.url, "smollm2:135m").generate(PROMPT, stream=True, **OPTIONS)
        assert ollama.asked == []  # nothing is asked before the first piece is
        assert list(stream) == PIECES
        assert stream.text == "".join(PIECES)
        assert ollama.bodies("/api/generate") == [GENERATE.asked | {"stream": True}]
    ending = stream.ending
    assert ending is not None
    assert (ending.reason, ending.prompt_tokens, ending.completion_tokens) == ("length", 34, 32)
    assert (ending.prompt_ms, ending.completion_ms) == (63.419, 381.066)


def test_a_whole_answer_has_no_white_space_around_it() -> None:
    with StandInOllama("11-generate-stream") as ollama:
        answer = LlamaAdapter(ollama.url, model_name="smollm2:135m").generate(PROMPT)
    assert answer == "".join(PIECES).strip() != "".join(PIECES)


def test_a_conversation() -> None:
    with StandInOllama("13-chat-stream") as ollama:
        adapter = LlamaAdapter(ollama.url, "smollm2:135m")
        answer = adapter.chat(
            CHAT.asked["messages"], options=CHAT.asked["options"], system="not for this one"
        )
        (asked,) = ollama.bodies("/api/chat")
    assert answer.text.startswith("Hello, I'm here to help")
    assert str(answer) == answer.text
    system = {"role": "system", "content": "not for this one"}
    assert asked == CHAT.asked | {"stream": True, "messages": [system, *CHAT.asked["messages"]]}


def test_tools() -> None:
    with StandInOllama("131-tools-chat-stream") as ollama:
        adapter = LlamaAdapter(ollama.url, "smollm2-tools")
        answer = adapter.chat(
            TOOLS.asked["messages"], tools=TOOLS.asked["tools"], options=TOOLS.asked["options"]
        )
        assert answer.tool_calls == (ToolCall("get_weather", {"city": "Paris"}, "call_w270xwua"),)
        assert answer.text == ""
        said = [
            *TOOLS.asked["messages"],
            {"role": "assistant", "content": "", "tool_calls": answer.tool_calls},
            {"role": "tool", "content": "rain", "tool_name": "get_weather"},
        ]
        adapter.chat(said)
        first, second = ollama.bodies("/api/chat")
    assert first == TOOLS.asked | {"stream": True}
    function = {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert second["messages"][1]["tool_calls"] == [{"id": "call_w270xwua", "function": function}]
    assert second["messages"][2] == said[2]


def test_openais_form_of_messages_is_understood() -> None:
    with StandInOllama("13-chat-stream") as ollama:
        LlamaAdapter(ollama.url, "m").chat(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
                    ],
                },
                {"role": "user", "content": "And this?", "images": [b"\x00\x01"]},
            ]
        )
        (asked,) = ollama.bodies("/api/chat")
    assert asked["messages"][0] == {"role": "user", "content": "What is it?", "images": ["AAAA"]}
    assert asked["messages"][1]["tool_calls"] == [
        {"function": {"name": "look", "arguments": {"a": 1}}}
    ]
    assert asked["messages"][2]["images"] == ["AAE="]


def test_what_a_caller_does_not_say_is_left_to_ollama_and_the_rest_is_passed() -> None:
    with StandInOllama("11-generate-stream") as ollama:
        adapter = LlamaAdapter(
            ollama.url, "m", "Be brief.", 0.6, options={"top_k": 10, "num_ctx": 8192}
        )
        adapter.generate("Hi")
        adapter.generate(
            "Hi",
            system="Be long.",
            model="n",
            temperature=0.1,
            num_gpu=999,
            main_gpu=0,
            max_tokens=7,
            stop="end",
            format="json",
            think=False,
            keep_alive=0,
            truncate=False,
            images=[b"\x00"],
        )
        adapter.generate("Hi", raw=True)
        first, second, third = ollama.bodies("/api/generate")
    options = {"top_k": 10, "num_ctx": 8192, "temperature": 0.6}
    asked = {"model": "m", "prompt": "Hi", "stream": True, "options": options}
    assert first == asked | {"system": "Be brief."}
    assert second == asked | {
        "model": "n",
        "system": "Be long.",
        "options": options
        | {
            "temperature": 0.1,
            "num_gpu": 999,
            "main_gpu": 0,
            "num_predict": 7,
            "stop": ["end"],
        },
        "format": "json",
        "think": False,
        "keep_alive": 0,
        "truncate": False,
        "images": ["AA=="],
    }
    assert third == asked | {"raw": True}


def test_embeddings() -> None:
    with StandInOllama("25-embed-ok-string") as ollama:
        adapter = LlamaAdapter(ollama.url, "smollm2-embed")
        (vector,) = adapter.embed("The sky is blue")
        assert adapter.embed([]) == []
        with pytest.raises(LlmProtocolError, match="1 vectors for 2 texts"):
            adapter.embed(["one", "two"])
    assert len(vector) == 576
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "status", "text"),
    [
        ("50-err-model-missing", LlmModelNotFoundError, 404, "model 'nosuch:1b' not found"),
        ("39-think-unsupported", LlmUnsupportedError, 400, "does not support thinking"),
        ("38-images-nonvision", LlmUnsupportedError, 400, "does not support multimodal requests"),
        ("55-err-bad-option-type", LlmHttpError, 500, "must be of type integer"),
    ],
)
def test_refusals(name: str, kind: type[LlmHttpError], status: int, text: str) -> None:
    with StandInOllama(name) as ollama:
        with pytest.raises(kind, match=text) as raised:
            LlamaAdapter(ollama.url, "m").generate("Hi")
        assert raised.value.status == status
        assert len(ollama.bodies("/api/generate")) == 1  # it would say the same again
    assert isinstance(raised.value, requests.HTTPError)


def test_what_ollama_cannot_do() -> None:
    with StandInOllama("20-embed-string") as ollama:
        adapter = LlamaAdapter(ollama.url, "m")
        with pytest.raises(LlmUnsupportedError, match="does not rerank"):
            adapter.rerank("sky", ["blue", "red"])
        with pytest.raises(LlmUnsupportedError, match="does not support embeddings"):
            adapter.embed("Hi")
        with pytest.raises(LlmUsageError, match="grammar: llama-server knows that, Ollama does"):
            adapter.generate("Hi", grammar='root ::= "a"')


def test_a_model_must_be_named_and_the_error_names_them() -> None:
    with StandInOllama("11-generate-stream") as ollama:
        adapter = LlamaAdapter(ollama.url)
        with pytest.raises(LlmConfigurationError, match="it has: smollm2:135m"):
            adapter.generate("Hi")
        assert adapter.list_models() == ["smollm2:135m"]
        assert adapter.engine == "ollama"


def test_an_error_amid_the_answer_is_an_error() -> None:
    line = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
    with StandInOllama("11-generate-stream") as ollama:
        ollama.lines, ollama.and_then = 3, line
        stream = LlamaAdapter(ollama.url, "m").generate("Hi", stream=True)
        assert [next(stream), next(stream), next(stream)] == ["1", ".", " Red"]
        with pytest.raises(LlmInterruptedError, match="unexpected EOF") as raised:
            next(stream)
        assert raised.value.text == stream.text == "1. Red"
        assert stream.ending is None
        assert len(ollama.bodies("/api/generate")) == 1


@pytest.mark.parametrize("line", [b"", b'{"error":"unexpected EOF"}\n'])
def test_an_answer_without_an_ending_is_never_an_empty_one(line: bytes) -> None:
    with StandInOllama("11-generate-stream") as ollama:
        ollama.lines, ollama.and_then = 0, line
        with pytest.raises(LlmInterruptedError):
            LlamaAdapter(ollama.url, "m", retries=1).generate("Hi")
        assert len(ollama.bodies("/api/generate")) == 2  # nothing had come: it is asked again


@pytest.mark.parametrize("line", [b"<html>\n", b"[]\n", b'{"response":"x"}\n', b"\xff\n"])
def test_what_is_no_answer_is_an_error(line: bytes) -> None:
    with StandInOllama("11-generate-stream") as ollama:
        ollama.lines, ollama.and_then = 0, line
        with pytest.raises(LlmProtocolError):
            LlamaAdapter(ollama.url, "m").generate("Hi")


def test_a_key() -> None:
    with StandInOllama("11-generate-stream", key="s3cret") as ollama:
        with pytest.raises(LlmAuthenticationError, match="give api_key"):
            LlamaAdapter(ollama.url, "m").generate("Hi")
        adapter = LlamaAdapter(ollama.url, "m", api_key="s3cret")
        assert adapter.generate("Hi")
        assert adapter.health()
        assert "s3cret" not in repr(adapter)
        assert LlamaAdapter(ollama.url, "m").health().state == "refused"


def test_sentences_for_speech() -> None:
    with StandInOllama("13-chat-stream", "11-generate-stream") as ollama:
        adapter = LlamaAdapter(ollama.url, "m", timeout=Timeouts())
        assert list(adapter.stream_sentences(PROMPT)) == [
            "1. Red: The most obvious colour, but there are many more.",
            "2. Blue: The most obvious colour, but there are many more.",
        ]
