"""What KLoROS's code needs of Ollama's API, one test each, with the clients that it uses.

The needs and their numbers: the project's facts of the KLoROS host, "What the code needs". Two
ports as there: the live one, and the one that thinks; a real llama-server with the small model
behind both.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests

from tests.llama_server import needs_llama_server
from tests.unit.gateway.gateway_process import GatewayProcess, free_ports
from tests.wire.house import TOOL, WEATHER
from tests.wire.rig import (
    CHAT_PERSONA,
    CONTEXT_TOKENS,
    ENDLESS,
    ENDLESS_TOKENS,
    STOP,
    SURE_CITIES,
    THINK_PERSONA,
    Store,
    await_cancelled,
    await_idle,
    tools_persona,
    write_toml,
)

pytestmark = needs_llama_server

SHARED = "qwen2.5:32b-instruct-q4_K_M"
LIVE_ONLY = (
    "qwen2.5:7b-instruct-q4_K_M",
    "qwen2.5:7b",
    "qwen2.5-coder:7b",
    "meta-llama/Llama-3.1-8B-Instruct",
    "main",
)
THINK_ONLY = ("qwen2.5:14b-instruct-q4_0", "deepseek-r1:7b")
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 24}
PROBE_S = 2
ANSWER_S = 120


@dataclass(frozen=True)
class Host:
    """Both ports, and the llama-server behind them."""

    live: str
    think: str
    engine_url: str


@pytest.fixture(scope="module")
def host(
    store: Store, chat_engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """One model under all names. "nous-hermes:13b" is on an instance that is down."""
    folder = tmp_path_factory.mktemp("kloros")
    live, think, dead = free_ports(3)
    engine = {"model": SHARED, "context_tokens": CONTEXT_TOKENS, "slots": 2}
    personas: dict[str, Any] = {
        name: {"from": SHARED, **CHAT_PERSONA, "instances": ["live"]} for name in LIVE_ONLY
    }
    thinkers = {"instances": ["think"], "parameters": {"stop": STOP}}
    personas["qwen2.5:14b-instruct-q4_0"] = {"from": SHARED, **CHAT_PERSONA, **thinkers}
    personas["deepseek-r1:7b"] = {"from": SHARED, **THINK_PERSONA, **thinkers}
    personas["caller:7b"] = {"from": SHARED, **tools_persona(*SURE_CITIES), "instances": ["live"]}
    config = write_toml(
        folder / "gateway.toml",
        models_dir=str(store.folder),
        state_dir=str(folder / "state"),
        think_inline=True,
        listeners=[
            {"port": live, "instances": ["live", "dead"]},
            {"port": think, "instances": ["think"]},
        ],
        instances={
            "live": engine | {"url": chat_engine},
            # An instance must have a URL of its own.
            "think": engine | {"url": chat_engine.replace("127.0.0.1", "localhost")},
            "dead": {"url": f"http://127.0.0.1:{dead}", "model": "nous-hermes:13b"},
        },
        models={
            SHARED: {"path": str(store.chat), "instances": ["live", "think"]},
            "nous-hermes:13b": {"path": str(store.chat), "instances": ["dead"]},
        },
        personas=personas,
        limits={"wait_s": 1.0},
    )
    with GatewayProcess(config):
        yield Host(f"http://127.0.0.1:{live}", f"http://127.0.0.1:{think}", chat_engine)


def body(prompt: str, model: str = "main", **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "stream": False, "options": OPTIONS} | more


def endless() -> dict[str, Any]:
    """A request that nobody waits for to the end."""
    options = {"num_predict": ENDLESS_TOKENS, "temperature": 0}
    return body("Write a story.", options=options, format=ENDLESS)


def generate(url: str, prompt: str, model: str = "main", **more: Any) -> dict[str, Any]:
    """As most of its code asks."""
    answer = requests.post(
        f"{url}/api/generate", json=body(prompt, model, **more), timeout=ANSWER_S
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream_lines(url: str, **more: Any) -> list[dict[str, Any]]:
    asked = body(**more) | {"stream": True}
    with requests.post(f"{url}/api/generate", json=asked, stream=True, timeout=ANSWER_S) as answer:
        return [json.loads(line) for line in answer.iter_lines() if line]


def test_1_generate_without_a_stream(host: Host) -> None:
    """One object; the chat template is applied, and `system` is heeded."""
    answer = generate(host.live, "What is the capital of France?", system="Answer briefly.")
    assert answer["response"].strip()
    assert answer["done"] is True
    rendered = generate(host.live, "Hello?", system="You are KLoROS.", _debug_render_only=True)[
        "_debug_info"
    ]["rendered_template"]
    assert rendered == (
        "<|im_start|>system\nYou are KLoROS.<|im_end|>\n"
        "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )
    # The same where the model's own template is applied, by the engine.
    counts = [
        generate(host.live, "Hello?", SHARED, **more)["prompt_eval_count"]
        for more in ({}, {"system": "You are KLoROS, a voice assistant with many opinions."})
    ]
    assert counts[0] > 0
    assert counts[0] != counts[1]


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        (body("hi", "nosuch:1b"), 404, "model 'nosuch:1b' not found"),
        (body("hi", options={"num_ctx": "big"}), 500, 'option "num_ctx" must be of type integer'),
        (body("hi", "nous-hermes:13b"), 503, "server busy, please try again."),
        (body("hi", think=True), 400, '"main" does not support thinking'),
    ],
)
def test_2_errors_are_no_answers(host: Host, asked: Any, status: int, text: str) -> None:
    """Never 200 with an empty response: callers take that for a success."""
    for stream in (False, True):
        answer = requests.post(
            f"{host.live}/api/generate", json=asked | {"stream": stream}, timeout=ANSWER_S
        )
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"].startswith(text)


def test_3_options(host: Host) -> None:
    """Those that are given count, those of loading are accepted, the rest are Ollama's."""
    asked = {"temperature": 0.3, "num_predict": 5, "top_p": 0.7, "repeat_penalty": 1.2}
    loading = {"num_ctx": 4096, "num_gpu": 99, "main_gpu": 0}
    answer = generate(host.live, "Tell me a story.", SHARED, options=asked | loading)
    assert (answer["eval_count"], answer["done_reason"]) == (5, "length")
    used = last_parameters(host.engine_url)
    assert used["n_predict"] == 5
    for name in ("temperature", "top_p", "repeat_penalty"):
        assert used[name] == pytest.approx(asked[name], abs=1e-6), name
    generate(host.live, "Tell me a tale.", SHARED, options={"num_predict": 5})
    used = last_parameters(host.engine_url)
    defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0, "repeat_penalty": 1}
    for name, value in defaults.items():
        assert used[name] == pytest.approx(value, abs=1e-6), name


def last_parameters(engine_url: str) -> dict[str, Any]:
    """Those of the newest request that llama-server had."""
    found: dict[str, Any] = await_idle(engine_url)["params"]
    return found


def test_4_streams_of_tokens_that_may_be_left(host: Host) -> None:
    """Lines as large as tokens; no piece goes beyond the end of a sentence."""
    options = OPTIONS | {"num_predict": 120}
    lines = stream_lines(host.live, prompt="Write three short sentences.", options=options)
    pieces = [line["response"] for line in lines[:-1]]
    assert [line["done"] for line in lines] == [False] * len(pieces) + [True]
    assert lines[-1]["response"] == ""
    assert len(pieces) >= lines[-1]["eval_count"] - 2
    assert re.search(r"[.!?]", "".join(pieces)), "no sentence ends"
    assert not [one for one in pieces if re.search(r"[.!?]\s*\w", one)]
    with httpx.stream(
        "POST",
        f"{host.live}/api/generate",
        json=endless() | {"stream": True},
        timeout=ANSWER_S,
    ) as answer:
        next(answer.iter_lines())
    await_cancelled(host.engine_url)
    assert generate(host.live, "Are you there?")["response"]


def test_5_tags_while_it_generates(host: Host) -> None:
    """Probes wait two seconds. Each port lists what it serves, and nothing else."""
    stop = threading.Event()

    def listen() -> None:
        asked = endless() | {"stream": True}
        with requests.post(
            f"{host.live}/api/generate", json=asked, stream=True, timeout=ANSWER_S
        ) as answer:
            listening.wait()
            for _ in answer.iter_lines():
                if stop.is_set():
                    return

    listening = threading.Barrier(3)
    listeners = [threading.Thread(target=listen) for _ in range(2)]
    for one in listeners:
        one.start()
    listening.wait(ANSWER_S)  # both slots are taken
    try:
        for _ in range(20):
            answer = requests.get(f"{host.live}/api/tags", timeout=PROBE_S)
            live = {one["name"] for one in answer.json()["models"]}
        url = f"{host.think}/api/tags"
        with urllib.request.urlopen(url, timeout=PROBE_S) as probe:  # noqa: S310 - its own address
            think = {one["name"] for one in json.load(probe)["models"]}
    finally:
        stop.set()
        for one in listeners:
            one.join()
    assert {SHARED, *LIVE_ONLY[:-2]} <= live
    assert not live & set(THINK_ONLY)
    assert think == {SHARED, *THINK_ONLY}


def test_6_all_names_in_use(host: Host) -> None:
    """Names are matched exactly; one that is not there is told in Ollama's words."""
    few = OPTIONS | {"num_predict": 3}
    for url, names in ((host.live, (SHARED, *LIVE_ONLY)), (host.think, (SHARED, *THINK_ONLY))):
        for name in names:
            answer = generate(url, "Hello", name, options=few)
            assert answer["model"] == name
            assert answer["response"]
    for url, name in ((host.live, THINK_ONLY[0]), (host.think, "main"), (host.live, "x")):
        refused = requests.post(f"{url}/api/generate", json=body("hi", name), timeout=ANSWER_S)
        assert (refused.status_code, refused.json()) == (
            404,
            {"error": f"model '{name}' not found"},
        )


@pytest.mark.parametrize("model", ["main", SHARED])
def test_7_prompts_that_are_too_long(host: Host, model: str) -> None:
    """They are shortened and answered."""
    prompt = "The history of the lighthouse, continued. " * 850
    assert len(prompt) > 35_000
    answer = generate(host.live, prompt, model, options=OPTIONS | {"num_predict": 4})
    assert answer["response"]
    assert CONTEXT_TOKENS / 2 < answer["prompt_eval_count"] <= CONTEXT_TOKENS


@pytest.mark.parametrize("model", ["main", SHARED])
def test_8_counters(host: Host, model: str) -> None:
    """The last object's, in nanoseconds, for rates."""
    for last in (
        generate(host.live, "Hello", model),
        stream_lines(host.live, prompt="Hello", model=model)[-1],
    ):
        for name in ("prompt_eval_count", "eval_count", "eval_duration", "prompt_eval_duration"):
            assert type(last[name]) is int, name
            assert last[name] > 0, name
        assert last["eval_duration"] > 1_000_000, "these are no nanoseconds"
        assert last["total_duration"] >= last["eval_duration"]


def test_9_probes(host: Host) -> None:
    """`/` is 200; /health may be missing."""
    for url in (host.live, host.think):
        assert requests.get(f"{url}/", timeout=PROBE_S).status_code == 200
        health = requests.get(f"{url}/health", timeout=PROBE_S)
        assert health.status_code == 404 or health.json() == {"status": "ok"}


def test_10_chat_with_tools(host: Host) -> None:
    """The arguments of a call are an object."""
    asked = {
        "model": "caller:7b",
        "messages": [{"role": "user", "content": WEATHER}],
        "tools": [TOOL],
        "stream": False,
        "options": {"temperature": 0, "num_predict": 60},
    }
    message = httpx.post(f"{host.live}/api/chat", json=asked, timeout=ANSWER_S).json()["message"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert call["function"]["arguments"] == {"city": "Paris"}


@pytest.mark.parametrize("model", ["main", SHARED])
def test_11_context(host: Host, model: str) -> None:
    """Token ids come back, and are taken."""
    first = generate(host.live, "My name is Ada.", model)
    assert all(type(one) is int for one in first["context"])
    assert len(first["context"]) >= first["prompt_eval_count"]
    second = generate(host.live, "What is my name?", model, context=first["context"])
    assert second["prompt_eval_count"] > len(first["context"])
    assert second["context"][: len(first["context"])] == first["context"]


def test_12_thinking_stays_inline_unless_asked_for(host: Host) -> None:
    """Older code looks for <think> in the text."""
    options = {"temperature": 0, "num_predict": 60}
    inline = generate(host.think, "What is 4+4?", "deepseek-r1:7b", options=options)
    assert inline["response"].lstrip().startswith("<think>")
    assert "thinking" not in inline
    lines = stream_lines(host.think, prompt="What is 4+4?", model="deepseek-r1:7b", options=options)
    assert "".join(line["response"] for line in lines) == inline["response"]
    apart = generate(host.think, "What is 4+4?", "deepseek-r1:7b", options=options, think=True)
    assert apart["thinking"]
    assert "<think>" not in apart["response"]


def test_13_show_tells_of_tools(host: Host) -> None:
    """Code searches the template for `.Tools`."""
    for name, calls in (("caller:7b", True), ("main", False)):
        shown = requests.post(f"{host.live}/api/show", json={"model": name}, timeout=PROBE_S).json()
        assert (".Tools" in shown["template"]) is calls
        assert ("tools" in shown["capabilities"]) is calls


def test_14_timeouts(host: Host) -> None:
    """A caller that gives up takes its request along: the next one is not behind it."""
    asked = endless()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", int(host.live.rpartition(":")[2]))) as raw:
            content = json.dumps(asked).encode()
            head = f"POST /api/generate HTTP/1.1\r\nHost: x.local\r\nContent-Length: {len(content)}"
            raw.sendall(head.encode() + b"\r\n\r\n" + content)
            raw.settimeout(0.3)
            with pytest.raises(TimeoutError):
                raw.recv(1)
    await_cancelled(host.engine_url)
    done = subprocess.run(
        ["curl", "--silent", "--max-time", str(PROBE_S), f"{host.live}/api/tags"],
        capture_output=True,
        check=True,
    )
    assert b'"name":"main:latest"' in done.stdout
    assert generate(host.live, "Hello")["response"]
