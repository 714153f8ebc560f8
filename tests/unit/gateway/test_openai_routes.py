"""/v1 through real HTTP, in front of a stand-in engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kloros_llm.gateway.openai_api.responses_requests import responses_request
from tests.stand_in_engine import Fault, StandInEngine
from tests.unit.gateway.generation_lab import HELLO, TOOL, Client, Lab

_CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def test_a_templated_model_answers_as_ollama_does(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=(" a", " b"), answer_tokens=2)
    answer, client = Lab(tmp_path, engine).post(
        "/v1/chat/completions", {"model": "templated", "messages": HELLO, "max_tokens": 9}
    )
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert list(answer.json) == [
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
    ]
    (choice,) = answer.json["choices"]
    assert list(choice) == ["index", "message", "finish_reason"]
    assert choice["message"] == {"role": "assistant", "content": " a b"}
    (body,) = client.asked("/completion")
    # OpenAI's defaults, which Ollama gives to this API.
    assert (body["temperature"], body["top_p"], body["n_predict"]) == (1.0, 1.0, 9)


def test_a_templated_models_events(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=(" a", " b"), answer_tokens=2)
    body = {"model": "templated", "messages": HELLO, "stream": True}
    answer, _ = Lab(tmp_path, engine).post("/v1/chat/completions", body)
    assert answer.headers["Content-Type"] == "text/event-stream"
    first, second, last, done = answer.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": " a"}
    assert second["choices"][0]["delta"] == {"content": " b"}
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert done == "[DONE]"
    usage = {"stream_options": {"include_usage": True}}
    answer, _ = Lab(tmp_path, StandInEngine()).post("/v1/chat/completions", body | usage)
    assert answer.events[-2]["choices"] == []
    assert answer.events[-2]["usage"]["completion_tokens"] == 11


def test_tool_calls_are_those_of_openai(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=(_CALL,), answer_tokens=1)
    body = {"model": "caller", "messages": HELLO, "tools": [TOOL]}
    answer, _ = Lab(tmp_path, engine).post("/v1/chat/completions", body)
    (choice,) = answer.json["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["type"] == "function"
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    answer, _ = Lab(tmp_path, engine).post("/v1/chat/completions", body | {"stream": True})
    called, last, _ = answer.events
    assert called["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "weather"
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_results_of_tools_find_their_calls(tmp_path: Path) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
    }
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer, client = Lab(tmp_path).post(
        "/v1/chat/completions", {"model": "caller", "messages": messages}
    )
    assert answer.status == 200
    assert '<tool_call>{"name": "weather"}</tool_call>' in client.asked("/completion")[0]["prompt"]


def test_without_a_template_the_engine_answers(tmp_path: Path) -> None:
    body = {
        "model": "tuned",
        "messages": HELLO,
        "max_tokens": 5,
        "tool_choice": "none",
        "seed": 3,
        "repeat_penalty": 1.5,
        "n": 9,
    }
    answer, client = Lab(tmp_path).post("/v1/chat/completions", body)
    assert answer.status == 200
    assert answer.json["model"] == "tuned"
    (asked,) = client.asked("/v1/chat/completions")
    assert [one["content"] for one in asked["messages"]] == ["Be brief.", "a", "b", "hello"]
    # OpenAI's defaults lie over the persona's, and the client's own fields over all.
    told = {name: asked[name] for name in ("temperature", "top_k", "repeat_penalty", "stop")}
    assert told == {"temperature": 1.0, "top_k": 7, "repeat_penalty": 1.5, "stop": ["END"]}
    assert asked["n_predict"] == 5
    assert "max_tokens" not in asked
    assert asked["tool_choice"] == "none"
    assert "n" not in asked


def test_names_of_fields_are_found_as_go_finds_them(tmp_path: Path) -> None:
    """Ollama takes `Messages`, and has its own name for what it does not know."""
    body = {"Model": "tuned", "MESSAGES": HELLO, "Max_Tokens": 5, "Stop": "X", "min_p": 0.25}
    answer, client = Lab(tmp_path).post("/v1/chat/completions", body)
    assert answer.status == 200, answer.text
    (asked,) = client.asked("/v1/chat/completions")
    assert [one["content"] for one in asked["messages"]] == ["Be brief.", "a", "b", "hello"]
    assert (asked["n_predict"], asked["stop"], asked["min_p"]) == (5, ["X"], 0.25)


def test_a_message_without_a_role_is_taken(tmp_path: Path) -> None:
    body = {"model": "small", "messages": [{"content": "hello"}]}
    answer, client = Lab(tmp_path).post("/v1/chat/completions", body)
    assert answer.status == 200
    (asked,) = client.asked("/v1/chat/completions")
    assert asked["messages"] == [{"role": "", "content": "hello"}]


@pytest.mark.parametrize("model", ["tuned", "templated"])
def test_a_content_without_parts_is_no_message(tmp_path: Path, model: str) -> None:
    messages = [{"role": "user", "content": []}]
    body = {"model": model, "messages": messages}
    answer, client = Lab(tmp_path).post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.json["error"]["message"] == "[] is too short - 'messages'"
    assert client.paths() == []


def test_events_of_the_engine_have_the_clients_name(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=(' "model":"x"',), answer_tokens=2)
    engine.thinking = ("so",)
    body = {"model": "small", "messages": HELLO, "stream": True}
    answer, _ = Lab(tmp_path, engine).post("/v1/chat/completions", body)
    *events, done = answer.events
    assert {event["model"] for event in events} == {"small"}
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "so"
    said = "".join(delta.get("content") or "" for delta in deltas)
    assert said == ' "model":"x" "model":"x"'
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
def test_what_the_engine_answers_itself_is_counted(tmp_path: Path, stream: bool) -> None:
    lab = Lab(tmp_path)
    lab.post("/v1/chat/completions", {"model": "small", "messages": HELLO, "stream": stream})
    line = json.loads(lab.log.getvalue())
    assert line["tokens"] == 11
    assert line["prompt_tokens"] > 0
    # Nobody knows of a whole answer when its first token was there.
    assert ("first_token_ms" in line) is stream


def test_events_that_break_off_end_in_an_error(tmp_path: Path) -> None:
    for model in ("small", "templated"):
        engine = StandInEngine()
        engine.faults.append(Fault("reset", after=3))
        answer, _ = Lab(tmp_path, engine).post(
            "/v1/chat/completions", {"model": model, "messages": HELLO, "stream": True}
        )
        assert answer.status == 200
        assert answer.events[-1]["error"]["type"] == "api_error"


def test_what_is_too_long_for_the_engine_is_shortened(tmp_path: Path) -> None:
    engine = StandInEngine(context_tokens=50)
    messages = [{"role": "user", "content": f"m{number} " + "w " * 30} for number in range(9)]
    answer, client = Lab(tmp_path, engine).post(
        "/v1/chat/completions", {"model": "small", "messages": messages}
    )
    assert answer.status == 200
    assert answer.json["system_fingerprint"] == "fp_ollama"
    assert len(client.asked("/v1/chat/completions")[-1]["messages"]) < 9


def test_errors_are_those_of_openai(tmp_path: Path) -> None:
    async def use(client: Client) -> list[tuple[int, Any]]:
        bodies: list[tuple[str, Any]] = [
            ("/v1/chat/completions", {"model": "gone", "messages": HELLO}),
            ("/v1/chat/completions", {"model": "small", "messages": []}),
            ("/v1/chat/completions", b""),
            ("/v1/completions", {"model": "small", "prompt": ["a"]}),
            ("/v1/embeddings", {"model": "small", "input": []}),
        ]
        answers = [await client.post(path, body) for path, body in bodies]
        return [(answer.status, answer.json["error"]) for answer in answers]

    gone, empty, nothing, array, no_input = Lab(tmp_path).run(use)
    assert gone == (
        404,
        {
            "message": "model 'gone' not found",
            "type": "not_found_error",
            "param": None,
            "code": None,
        },
    )
    assert (empty[0], empty[1]["message"]) == (400, "[] is too short - 'messages'")
    assert (nothing[0], nothing[1]["message"]) == (400, "EOF")
    assert array[0] == 400
    assert "CompletionRequest.prompt of type string" in array[1]["message"]
    assert (no_input[0], no_input[1]["message"]) == (400, "invalid input")


def test_the_engines_refusal_is_an_openai_error(tmp_path: Path) -> None:
    engine = StandInEngine()
    refusal = b'{"error":{"code":400,"message":"no images","type":"invalid_request_error"}}'
    engine.faults.append(Fault("status", status=400, body=refusal))
    answer, _ = Lab(tmp_path, engine).post(
        "/v1/chat/completions", {"model": "small", "messages": HELLO}
    )
    assert answer.status == 400
    assert answer.json["error"]["message"] == "no images"


def test_a_completion_has_the_template(tmp_path: Path) -> None:
    engine = StandInEngine(pieces=(" a",), answer_tokens=2)
    body = {"model": "templated", "prompt": "x"}
    answer, client = Lab(tmp_path, engine).post("/v1/completions", body)
    assert client.asked("/completion")[0]["prompt"].startswith("<|im_start|>user\nx")
    assert answer.json["choices"] == [{"text": " a a", "index": 0, "finish_reason": "stop"}]
    answer, _ = Lab(tmp_path, engine).post("/v1/completions", body | {"stream": True})
    *events, done = answer.events
    assert [event["choices"][0]["text"] for event in events] == [" a", " a", ""]
    assert done == "[DONE]"


def test_models_are_what_the_listener_lists(tmp_path: Path) -> None:
    async def use(client: Client) -> tuple[Any, Any, int]:
        listed = (await client.get("/v1/models")).json
        one = (await client.get("/v1/models/tuned")).json
        return listed, one, (await client.get("/v1/models/gone")).status

    listed, one, missing = Lab(tmp_path).run(use)
    assert "tuned:latest" in {model["id"] for model in listed["data"]}
    assert list(one) == ["id", "object", "created", "owned_by"]
    assert (one["id"], one["owned_by"]) == ("tuned", "library")
    assert missing == 404


def test_anthropics_messages(tmp_path: Path) -> None:
    body = {
        "model": "templated",
        "max_tokens": 5,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        # It cannot, and is not asked to.
        "thinking": {"type": "enabled", "budget_tokens": 10},
    }
    engine = StandInEngine(pieces=(" a",), answer_tokens=9)
    answer, client = Lab(tmp_path, engine).post("/v1/messages", body)
    assert answer.json["content"] == [{"type": "text", "text": " a a a a a"}]
    assert answer.json["stop_reason"] == "max_tokens"
    asked = client.asked("/completion")[0]
    assert "Be kind." in asked["prompt"]
    assert asked["temperature"] == 0.8
    answer, _ = Lab(tmp_path, engine).post("/v1/messages", body | {"stream": True})
    assert [event["type"] for event in answer.events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    answer, _ = Lab(tmp_path).post("/v1/messages", body | {"model": "gone"})
    assert (answer.status, answer.json["type"]) == (404, "error")


def test_anthropics_tools(tmp_path: Path) -> None:
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    body = {
        "model": "caller",
        "max_tokens": 50,
        "tools": [{"name": "weather", "input_schema": schema}],
        "messages": [
            {"role": "user", "content": "hello"},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}],
            },
        ],
    }
    engine = StandInEngine(pieces=(_CALL,), answer_tokens=1)
    answer, client = Lab(tmp_path, engine).post("/v1/messages", body)
    (block,) = answer.json["content"]
    assert (block["type"], block["input"]) == ("tool_use", {"city": "Rome"})
    assert answer.json["stop_reason"] == "tool_use"
    assert client.asked("/completion")[0]["prompt"].endswith("tool: sunny\n")


def test_responses(tmp_path: Path) -> None:
    body = {
        "model": "thinker",
        "instructions": "Be kind.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "max_output_tokens": 9,
    }
    engine = StandInEngine(pieces=("<think>", "so", "</think>", "yes"), answer_tokens=4)
    answer, client = Lab(tmp_path, engine).post("/v1/responses", body)
    thought, message = answer.json["output"]
    assert thought["summary"][0]["text"] == "so"
    assert message["content"][0]["text"] == "yes"
    assert answer.json["status"] == "completed"
    assert client.asked("/completion")[0]["prompt"] == "system: Be kind.\nuser: hello\n"
    answer, _ = Lab(tmp_path, engine).post("/v1/responses", body | {"stream": True})
    events = answer.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][1]["content"][0]["text"] == "yes"
    answer, _ = Lab(tmp_path).post("/v1/responses", body | {"previous_response_id": "resp_1"})
    assert answer.status == 400


def test_responses_with_tools(tmp_path: Path) -> None:
    function = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    body = {
        "model": "caller",
        "tools": [function],
        "input": [
            {"role": "user", "content": "hello"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        "stream": True,
    }
    engine = StandInEngine(pieces=(_CALL,), answer_tokens=1)
    answer, client = Lab(tmp_path, engine).post("/v1/responses", body)
    assert client.asked("/completion")[0]["prompt"].endswith("tool: sunny\n")
    (call,) = answer.events[-1]["response"]["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"]) == {"city": "Rome"}


def test_a_responses_conversation_is_the_one_that_ollama_makes() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    body: dict[str, Any] = {
        "model": "m",
        "input": [
            {"role": "user", "content": "hello"},
            {"type": "message", "role": "assistant", "content": "I look."},
            {"type": "reasoning", "encrypted_content": "so", "summary": []},
            call,
            {**call, "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c2", "output": "sunny"},
            {"type": "reasoning", "encrypted_content": "well", "summary": []},
        ],
        # Codex sends more than functions, and Ollama refuses none.
        "tools": [{"type": "web_search"}, {"type": "function", "name": "weather"}],
    }
    chat = responses_request(json.dumps(body).encode()).chat
    user, said, result, thought = chat.messages
    assert (user.role, user.content) == ("user", "hello")
    assert (said.role, said.content, said.thinking) == ("assistant", "I look.", "so")
    assert [one.id for one in said.tool_calls] == ["c1", "c2"]
    assert (result.role, result.content, result.tool_name) == ("tool", "sunny", "weather")
    assert (thought.role, thought.content, thought.thinking) == ("assistant", "", "well")
    assert [tool["function"]["name"] for tool in chat.tools] == ["weather"]
    # A model's own top_p holds; only the temperature has OpenAI's default.
    assert chat.options == {"temperature": 1.0}
    body["top_p"] = 0.5
    assert responses_request(json.dumps(body).encode()).chat.options["top_p"] == 0.5


def test_a_sound_goes_to_the_engine_under_its_models_name(tmp_path: Path) -> None:
    async def use(client: Client) -> tuple[int, str]:
        form = aiohttp.FormData({"model": "gone"})
        form.add_field("file", b"RIFF", filename="a.wav")
        url = f"{client.url}/v1/audio/transcriptions"
        async with client.session.post(url, data=form) as response:
            return response.status, (await response.json())["error"]["message"]

    assert Lab(tmp_path).run(use) == (404, "model 'gone' not found")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "templated", "messages": HELLO}),
        ("/v1/messages", {"model": "templated", "messages": HELLO, "max_tokens": 3}),
        ("/v1/responses", {"model": "templated", "input": "hello"}),
        ("/v1/completions", {"model": "templated", "prompt": "hello"}),
    ],
)
def test_an_error_before_the_first_byte_is_a_status(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    engine = StandInEngine()
    engine.faults.append(Fault("cut", after=0))
    engine.faults.append(Fault("cut", after=0))
    answer, _ = Lab(tmp_path, engine).post(path, body | {"stream": True})
    assert answer.status == 500
    assert "unexpected EOF" in answer.json["error"]["message"]
