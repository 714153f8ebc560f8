"""/api/generate and /api/chat through real HTTP, in front of a stand-in engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_engine import Fault, StandInEngine
from tests.unit.gateway.generation_lab import CHATML, HELLO, TOOL, Client, Lab

_FIGURES = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]
_BROKEN = {"error": "an error was encountered while running the model: unexpected EOF"}


def test_a_stream_is_a_line_a_token_and_the_figures(tmp_path: Path) -> None:
    lab = Lab(tmp_path, StandInEngine(pieces=(" a", " <b>"), answer_tokens=3))
    answer, client = lab.post("/api/chat", {"model": "templated", "messages": HELLO})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    *pieces, last = answer.lines
    assert [piece["message"]["content"] for piece in pieces] == [" a", " <b>", " a"]
    assert all(list(piece) == ["model", "created_at", "message", "done"] for piece in pieces)
    assert r"\u003cb\u003e" in answer.text
    assert list(last) == ["model", "created_at", "message", "done", "done_reason", *_FIGURES]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert all(last[name] > 0 for name in _FIGURES)
    # The first token costs this one request, and no other.
    assert client.paths() == ["/completion"]
    assert client.asked("/completion")[0]["prompt"] == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_line_is_sent_when_its_token_is_there(tmp_path: Path) -> None:
    async def use(client: Client) -> tuple[bytes, int]:
        body = json.dumps({"model": "templated", "prompt": "x"}).encode()
        async with client.session.post(f"{client.url}/api/generate", data=body) as response:
            line = await response.content.readline()
            generating = client.engine.generating
        return line, generating

    engine = StandInEngine(answer_tokens=1000, interval_s=0.02)
    line, generating = Lab(tmp_path, engine).run(use)
    assert json.loads(line)["done"] is False
    assert generating == 1


def test_a_client_that_goes_away_ends_the_generation(tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        for stream in (True, False):
            body = json.dumps({"model": "templated", "prompt": "x", "stream": stream}).encode()
            request = asyncio.ensure_future(
                client.session.post(f"{client.url}/api/generate", data=body)
            )
            while not client.engine.generating:
                await asyncio.sleep(0.01)
            if stream:
                (await request).close()
            else:
                request.cancel()
            async with asyncio.timeout(5):
                while client.engine.generating:
                    await asyncio.sleep(0.01)

    engine = StandInEngine(answer_tokens=100_000, interval_s=0.01)
    Lab(tmp_path, engine).run(use)
    assert engine.left_by_client == 2


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("model", ["templated", "small"])
def test_an_answer_that_breaks_off_ends_in_an_error(tmp_path: Path, kind: Any, model: str) -> None:
    engine = StandInEngine()
    engine.faults.append(Fault(kind, after=3))
    answer, _ = Lab(tmp_path, engine).post("/api/chat", {"model": model, "messages": HELLO})
    assert answer.status == 200
    *pieces, last = answer.lines
    assert pieces
    assert all(line["done"] is False for line in pieces)
    assert last == _BROKEN


def test_a_whole_answer_that_breaks_off_twice_is_an_error(tmp_path: Path) -> None:
    engine = StandInEngine()
    engine.faults.extend([Fault("cut", after=3)] * 2)
    answer, _ = Lab(tmp_path, engine).post(
        "/api/generate", {"model": "templated", "prompt": "x", "stream": False}
    )
    assert (answer.status, answer.json) == (500, _BROKEN)


def test_a_whole_answer_with_its_context(tmp_path: Path) -> None:
    lab = Lab(tmp_path, StandInEngine(pieces=(" a", " b"), answer_tokens=2))
    answer, client = lab.post(
        "/api/generate", {"model": "templated", "prompt": "x", "stream": False}
    )
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert list(answer.json) == [
        "model",
        "created_at",
        "response",
        "done",
        "done_reason",
        "context",
        *_FIGURES,
    ]
    assert answer.json["response"] == " a b"
    assert client.paths() == ["/completion", "/tokenize"]
    tokenized = client.asked("/tokenize")[0]
    assert tokenized["content"].endswith("<|im_start|>assistant\n a b")
    assert tokenized["add_special"] is False


def test_a_context_comes_before_the_prompt(tmp_path: Path) -> None:
    async def use(client: Client) -> str:
        first = await client.post(
            "/api/generate", {"model": "templated", "prompt": "x", "stream": False}
        )
        await client.post(
            "/api/generate",
            {"model": "templated", "prompt": "y", "context": first.json["context"]},
        )
        return str(client.asked("/completion")[-1]["prompt"])

    lab = Lab(tmp_path, StandInEngine(pieces=(" a",), answer_tokens=1))
    prompt = lab.run(use)
    assert prompt.startswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n a")
    assert prompt.endswith("<|im_start|>user\ny<|im_end|>\n<|im_start|>assistant\n")


def test_options_lie_over_the_personas_and_those_over_ollamas(tmp_path: Path) -> None:
    _, client = Lab(tmp_path).post(
        "/api/chat",
        {"model": "tuned", "messages": HELLO, "options": {"temperature": 0.6, "num_predict": 5}},
    )
    (body,) = client.asked("/v1/chat/completions")
    told = {name: body[name] for name in ("temperature", "top_k", "top_p", "min_p", "stop")}
    assert told == {"temperature": 0.6, "top_k": 7, "top_p": 0.9, "min_p": 0.0, "stop": ["END"]}
    assert body["n_predict"] == 5
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "a", "b", "hello"]


def test_a_clients_system_message_takes_the_personas_place(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, *HELLO]
    _, client = Lab(tmp_path).post("/api/chat", {"model": "tuned", "messages": messages})
    (body,) = client.asked("/v1/chat/completions")
    contents = [message["content"] for message in body["messages"]]
    assert contents == ["a", "b", "Be kind.", "hello"]


def test_raw_goes_as_it_is(tmp_path: Path) -> None:
    answer, client = Lab(tmp_path).post(
        "/api/generate", {"model": "tuned", "prompt": "<x>", "raw": True, "stream": False}
    )
    assert client.asked("/completion")[0]["prompt"] == "<x>"
    assert "context" not in answer.json
    assert client.paths() == ["/completion"]


def test_thinking_is_told_apart_in_raw_answers_too(tmp_path: Path) -> None:
    body = {"model": "thinker", "prompt": "as is", "raw": True, "stream": False}
    for more, expected in (
        ({}, ("yes", "so")),
        ({"think": False}, ("<think>so</think>yes", None)),
        ({"format": "json"}, ("<think>so</think>yes", "so")),
    ):
        engine = StandInEngine(pieces=("<think>", "so", "</think>", "yes"), answer_tokens=4)
        answer, client = Lab(tmp_path, engine).post("/api/generate", body | more)
        assert (answer.json["response"], answer.json.get("thinking")) == expected
    assert client.asked("/completion")[-1]["prompt"] == "as is<think>\nso\n</think>\n\n"


def test_a_suffix_needs_a_template_for_it(tmp_path: Path) -> None:
    body = {"model": "filler", "prompt": "a", "suffix": "b", "stream": False}
    answer, client = Lab(tmp_path).post("/api/generate", body)
    assert answer.status == 200
    assert client.asked("/completion")[0]["prompt"] == "a<fill>b"
    answer, _ = Lab(tmp_path).post("/api/generate", body | {"model": "templated"})
    assert answer.status == 400
    assert answer.json == {
        "error": "registry.ollama.ai/library/templated:latest does not support insert"
    }


def test_a_format_is_a_schema_for_the_engine(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    _, client = Lab(tmp_path).post(
        "/api/chat", {"model": "templated", "messages": HELLO, "format": schema}
    )
    assert client.asked("/completion")[0]["json_schema"] == schema
    _, client = Lab(tmp_path).post(
        "/api/chat", {"model": "small", "messages": HELLO, "format": schema}
    )
    (body,) = client.asked("/v1/chat/completions")
    assert body["response_format"]["json_schema"]["schema"] == schema


def test_thinking_is_told_apart(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=("<think>", "so", "</think>", "yes"), answer_tokens=4)
    answer, _ = Lab(tmp_path, engine).post(
        "/api/chat", {"model": "thinker", "messages": HELLO, "stream": False}
    )
    assert answer.json["message"] == {"role": "assistant", "content": "yes", "thinking": "so"}
    engine = StandInEngine(pieces=("yes",), answer_tokens=1)
    engine.thinking = ("so",)
    answer, client = Lab(tmp_path, engine).post(
        "/api/chat", {"model": "small", "messages": HELLO, "stream": False, "think": True}
    )
    assert answer.json["message"] == {"role": "assistant", "content": "yes", "thinking": "so"}
    (body,) = client.asked("/v1/chat/completions")
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


def test_thinking_stays_in_the_text_for_who_did_not_ask(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=("<think>", "so", "</think>", "yes"), answer_tokens=4)
    lab = Lab(tmp_path, engine, think_inline=True)
    answer, _ = lab.post("/api/chat", {"model": "thinker", "messages": HELLO, "stream": False})
    assert answer.json["message"]["content"] == "<think>so</think>yes"
    engine = StandInEngine(pieces=("yes",), answer_tokens=1)
    engine.thinking = ("so",)
    lab = Lab(tmp_path, engine, think_inline=True)
    answer, _ = lab.post("/api/chat", {"model": "small", "messages": HELLO, "stream": False})
    assert answer.json["message"]["content"] == "<think>\nso\n</think>\n\nyes"
    assert "thinking" not in answer.json["message"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_gpt_oss_has_its_channels_taken_apart_by_the_engine(tmp_path: Path, path: str) -> None:
    body = {"messages": HELLO, "prompt": "hello", "stream": False}
    for architecture, model, asked in (
        ("gpt-oss", "channels", "/v1/chat/completions"),
        ("gpt-oss", "templated", "/completion"),
        ("llama", "channels", "/completion"),
    ):
        lab = Lab(tmp_path, architecture=architecture)
        _, client = lab.post(path, body | {"model": model})
        assert client.paths()[0] == asked


def test_a_format_waits_until_the_model_has_thought(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=("<think>", "so", "</think>", "{"), answer_tokens=4)
    answer, client = Lab(tmp_path, engine).post(
        "/api/chat", {"model": "thinker", "messages": HELLO, "format": "json", "stream": False}
    )
    first, second = client.asked("/completion")
    assert "json_schema" not in first
    assert second["json_schema"] == {"type": "object"}
    assert second["prompt"].endswith("assistant: <think>so</think>\n")
    assert answer.json["message"]["thinking"] == "so"
    engine = StandInEngine(pieces=("<think>", "so", "</think>", "{"), answer_tokens=4)
    answer, client = Lab(tmp_path, engine).post(
        "/api/generate", {"model": "thinker", "prompt": "x", "format": "json", "stream": False}
    )
    # The context is what it came from in the end; what the first request answered is no part of it.
    text = client.asked("/completion")[1]["prompt"] + "<think>so</think>{"
    assert client.asked("/tokenize")[-1]["content"] == text
    assert answer.json["context"] == engine._tokens(text)


def test_tool_calls_of_both_ways(tmp_path: Path) -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
    engine = StandInEngine(pieces=(text,), answer_tokens=1)
    body = {"model": "caller", "messages": HELLO, "tools": [TOOL]}
    by_text, client = Lab(tmp_path, engine).post("/api/chat", body)
    assert '"weather"' in client.asked("/completion")[0]["prompt"]
    engine = StandInEngine(answer_tokens=0)
    engine.tool_calls = (("weather", '{"city":"Rome","days":2}'),)
    by_engine, client = Lab(tmp_path, engine).post("/api/chat", body | {"model": "small"})
    assert client.asked("/v1/chat/completions")[0]["tools"] == [TOOL]
    for answer in (by_text, by_engine):
        calls, last = answer.lines
        (call,) = calls["message"]["tool_calls"]
        assert calls["message"]["content"] == ""
        assert call["id"].startswith("call_")
        assert len(call["id"]) == 13
        assert call["function"] == {
            "index": 0,
            "name": "weather",
            "arguments": {"city": "Rome", "days": 2},
        }
        assert last["done_reason"] == "stop"


def test_what_a_model_cannot_do_is_refused(tmp_path: Path) -> None:
    answer, client = Lab(tmp_path).post(
        "/api/chat", {"model": "templated", "messages": HELLO, "tools": [TOOL]}
    )
    text = "registry.ollama.ai/library/templated:latest does not support tools"
    assert (answer.status, answer.json) == (400, {"error": text})
    answer, _ = Lab(tmp_path).post(
        "/api/chat", {"model": "templated", "messages": HELLO, "think": True}
    )
    assert (answer.status, answer.json) == (
        400,
        {"error": '"templated" does not support thinking'},
    )
    assert client.paths() == []


def test_an_engines_refusal_is_told_as_it_is(tmp_path: Path) -> None:
    engine = StandInEngine()
    refusal = b'{"error":{"code":400,"message":"no images","type":"invalid_request_error"}}'
    engine.faults.append(Fault("status", status=400, body=refusal))
    answer, _ = Lab(tmp_path, engine).post("/api/chat", {"model": "small", "messages": HELLO})
    assert (answer.status, answer.json) == (400, {"error": refusal.decode()})


@pytest.mark.parametrize("model", ["templated", "small"])
def test_a_model_that_repeats_itself_is_stopped(tmp_path: Path, model: str) -> None:
    engine = StandInEngine(pieces=("\n",), answer_tokens=500)
    answer, _ = Lab(tmp_path, engine).post("/api/chat", {"model": model, "messages": HELLO})
    assert answer.lines[-1] == {"error": "prediction aborted, token repeat limit reached"}
    assert len(answer.lines) < 110


def test_a_model_that_thinks_long_does_not_repeat_itself(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=("yes",), answer_tokens=1)
    engine.thinking = tuple(f" {number}" for number in range(300))
    answer, _ = Lab(tmp_path, engine).post("/api/chat", {"model": "small", "messages": HELLO})
    assert answer.lines[-2]["message"]["content"] == "yes"
    assert answer.lines[-1]["done_reason"] == "stop"
    engine.thinking = (" so",) * 300
    answer, _ = Lab(tmp_path, engine).post("/api/chat", {"model": "small", "messages": HELLO})
    assert answer.lines[-1] == {"error": "prediction aborted, token repeat limit reached"}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"model": "templated"}, None),
        ({"model": "caller"}, None),
        ({"model": "caller", "tools": [TOOL]}, ["<tool_call>"]),
        ({"model": "thinker"}, ["<think>", "</think>"]),
        ({"model": "thinker", "think": False}, None),
    ],
)
def test_special_tokens_that_are_looked_for_are_asked_for(
    tmp_path: Path, body: dict[str, Any], tokens: list[str] | None
) -> None:
    _, client = Lab(tmp_path).post("/api/chat", {"messages": HELLO, **body})
    assert client.asked("/completion")[0].get("preserved_tokens") == tokens


def test_thinking_in_the_text_has_its_special_tokens(tmp_path: Path) -> None:
    lab = Lab(tmp_path, think_inline=True)
    _, client = lab.post("/api/chat", {"model": "thinker", "messages": HELLO})
    assert client.asked("/completion")[0]["preserved_tokens"] == ["<think>", "</think>"]


def test_load_unload_and_render(tmp_path: Path) -> None:
    async def use(client: Client) -> list[Any]:
        bodies = [
            ("/api/generate", {"model": "templated"}),
            ("/api/chat", {"model": "templated", "messages": []}),
            ("/api/generate", {"model": "templated", "keep_alive": 0}),
            ("/api/chat", {"model": "templated", "messages": [], "keep_alive": "0"}),
            ("/api/generate", {"model": "templated", "prompt": "x", "_debug_render_only": True}),
        ]
        return [(await client.post(path, body)).json for path, body in bodies]

    *ended, rendered = Lab(tmp_path).run(use)
    assert [one["done_reason"] for one in ended] == ["load", "load", "unload", "unload"]
    assert list(ended[0]) == ["model", "created_at", "response", "done", "done_reason"]
    assert list(ended[1]) == ["model", "created_at", "message", "done", "done_reason"]
    text = CHATML.replace("{{ range .Messages }}", "").replace("{{ end }}", "")
    text = text.replace("{{ .Role }}", "user").replace("{{ .Content }}", "x")
    assert rendered["_debug_info"] == {"rendered_template": text}
    assert rendered["done"] is False


def test_logprobs_without_alternatives_that_nobody_wants(tmp_path: Path) -> None:
    for model in ("templated", "small"):
        for wanted in (0, 2):
            answer, _ = Lab(tmp_path, StandInEngine(answer_tokens=1)).post(
                "/api/chat",
                {
                    "model": model,
                    "messages": HELLO,
                    "stream": False,
                    "logprobs": True,
                    "top_logprobs": wanted,
                },
            )
            (found,) = answer.json["logprobs"]
            assert len(found.get("top_logprobs", ())) == wanted
            keys = list(answer.json)
            assert keys.index("logprobs") < keys.index("total_duration")
