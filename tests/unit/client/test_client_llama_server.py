"""LlamaAdapter in front of a real llama-server with a small model."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from kloros_llm import (
    LlamaAdapter,
    LlmConnectionError,
    LlmContextError,
    LlmInterruptedError,
    LlmLoadingError,
    LlmModelNotFoundError,
    LlmUnsupportedError,
    Timeouts,
    check_llama_health,
)
from tests.llama_server import MODEL, needs_llama_server
from tests.unit.client.real_llama_server import free_port, real_llama_server, real_router, start

pytestmark = needs_llama_server
CAPITAL = "What is the capital of France?"
SURE = {"temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_llama_server("-c", "1024", "-np", "2", "--slots") as served:
        yield served


@pytest.fixture
def adapter(url: str) -> LlamaAdapter:
    return LlamaAdapter(url, options=SURE)


def busy_slots(url: str) -> int:
    slots = requests.get(f"{url}/slots", timeout=10).json()
    return sum(slot["is_processing"] for slot in slots)


def test_an_answer_in_the_models_own_template(adapter: LlamaAdapter) -> None:
    ignored: dict[str, Any] = {"num_ctx": 4096, "num_gpu": 999, "main_gpu": 0}
    answer = adapter.generate(CAPITAL, system="Answer in one word.", num_predict=40, **ignored)
    assert "Paris" in answer
    assert "<|im" not in answer
    assert answer == answer.strip()
    assert adapter.engine == "llama"


def test_a_stream_is_the_same_answer_in_pieces(adapter: LlamaAdapter) -> None:
    stream = adapter.generate(CAPITAL, stream=True, num_predict=12)
    pieces = list(stream)
    assert len(pieces) > 4
    assert "".join(pieces).strip() == adapter.generate(CAPITAL, num_predict=12)
    assert stream.ending is not None
    assert stream.ending.completion_tokens <= 12
    assert stream.ending.prompt_tokens > 10
    assert list(stream) == []


def test_the_system_prompt_is_honoured(adapter: LlamaAdapter, url: str) -> None:
    pirate = LlamaAdapter(url, None, "You are a pirate. You only say: Arrr!", options=SURE)
    with_system = pirate.generate("Who are you?", num_predict=16)
    assert with_system != adapter.generate("Who are you?", num_predict=16)
    said = adapter.generate("Who are you?", system=pirate.system_prompt, num_predict=16)
    assert said == with_system
    assert pirate.generate("Who are you?", system="", num_predict=16) != with_system
    messages = [
        {"role": "system", "content": pirate.system_prompt},
        {"role": "user", "content": "Who are you?"},
    ]
    assert adapter.chat(messages, num_predict=16).text.strip() == with_system


def test_limits_stops_formats_and_raw(adapter: LlamaAdapter) -> None:
    stream = adapter.generate("Count from one to ten.", stream=True, num_predict=3)
    assert list(stream)
    assert stream.ending is not None
    assert (stream.ending.reason, stream.ending.completion_tokens) == ("length", 3)
    assert "is" not in adapter.generate(CAPITAL, stop="is", num_predict=20)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for raw in (False, True):
        answer = adapter.generate("A number:", format=schema, raw=raw, num_predict=60)
        assert isinstance(json.loads(answer)["a"], int)
    assert adapter.generate("Say yes.", grammar='root ::= "yes" | "no"') in ("yes", "no")
    assert adapter.generate("The capital of France is", raw=True, num_predict=4).startswith("Paris")


def test_what_the_context_does_not_hold_loses_its_beginning(adapter: LlamaAdapter) -> None:
    long = "Nothing here. " * 900 + f"\n{CAPITAL}"
    assert "Paris" in adapter.generate(long, num_predict=40)
    with pytest.raises(LlmContextError) as raised:
        adapter.generate(long, num_predict=40, truncate=False)
    assert raised.value.context_tokens == 512
    assert raised.value.prompt_tokens > 2000
    raw = "Nothing here. " * 900 + "The capital of France is"
    assert adapter.generate(raw, raw=True, num_predict=4).startswith("Paris")


def test_a_conversation_loses_its_oldest_messages(adapter: LlamaAdapter) -> None:
    told = [{"role": "system", "content": "Be brief."}]
    for number in range(30):
        told += [
            {"role": "user", "content": f"This is message {number}. " + "Go on. " * 10},
            {"role": "assistant", "content": "I do."},
        ]
    answer = adapter.chat([*told, {"role": "user", "content": CAPITAL}], num_predict=40)
    assert "Paris" in answer.text
    assert 100 < answer.ending.prompt_tokens < 512
    with pytest.raises(LlmContextError):
        adapter.chat([{"role": "system", "content": "word " * 3000}, told[1]], num_predict=40)


def test_closing_the_iterator_ends_the_engines_work(url: str, adapter: LlamaAdapter) -> None:
    endless = {"num_predict": -1, "ignore_eos": True}
    stream = adapter.generate("Tell a long story.", stream=True, **endless)
    assert next(stream)
    assert busy_slots(url) == 1
    stream.close()
    wait_for(lambda: busy_slots(url) == 0)
    assert list(stream) == []
    for _ in adapter.generate("Tell a long story.", stream=True, **endless):
        break  # dropped, not closed
    wait_for(lambda: busy_slots(url) == 0)


def test_another_thread_ends_an_answer(url: str, adapter: LlamaAdapter) -> None:
    stream = adapter.generate("Tell a long story.", stream=True, ignore_eos=True, num_predict=-1)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(stream))
    listener.start()
    wait_for(lambda: bool(stream.text))
    stream.close()
    listener.join(30)
    assert not listener.is_alive()
    assert heard
    wait_for(lambda: busy_slots(url) == 0)


def test_several_threads_with_one_adapter(adapter: LlamaAdapter) -> None:
    questions = ["Say A.", "Say B.", "Say C.", "Say D."]
    alone = [adapter.generate(question, num_predict=8) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: adapter.generate(one, num_predict=8), questions * 3))
    assert all(together)
    assert len(set(alone)) > 1
    # Batched, the last bits differ: most answers are the same, none is another thread's.
    same = sum(one == other for one, other in zip(together, alone * 3, strict=True))
    assert same > len(together) / 2


def test_what_it_was_not_started_for(adapter: LlamaAdapter) -> None:
    with pytest.raises(LlmUnsupportedError, match="--embeddings"):
        adapter.embed("Hi")
    with pytest.raises(LlmUnsupportedError, match="--reranking"):
        adapter.rerank("Hi", ["there"])
    with pytest.raises(LlmUnsupportedError):
        adapter.generate("def f(", suffix="return 1")


def test_models_and_health(adapter: LlamaAdapter, url: str) -> None:
    assert len(adapter.list_models()) == 1
    health = adapter.health()
    assert (health.state, health.engine) == ("ready", "llama")
    assert adapter.health_check()
    assert check_llama_health(f"{url}/")


def test_one_that_loads_is_waited_for_and_a_killed_one_is_told() -> None:
    port = free_port()
    adapter = LlamaAdapter(
        f"http://127.0.0.1:{port}", timeout=Timeouts(load_s=0), retries=0, options=SURE
    )
    with pytest.raises(LlmConnectionError, match="nobody listens there"):
        adapter.generate("Hi")
    assert adapter.health().state == "unreachable"
    process = start(port, "-c", "512", "-np", "1")
    try:
        seen = set()
        while not (health := adapter.health()):
            seen.add(health.state)
            if health.state == "loading":
                break
        if "loading" in seen:
            with pytest.raises(LlmLoadingError):
                adapter.generate("Hi", num_predict=2)
        patient = LlamaAdapter(adapter.base_url, options=SURE)
        stream = patient.generate("Tell a long story.", stream=True, ignore_eos=True)
        assert next(stream)
        process.send_signal(signal.SIGKILL)
        with pytest.raises(LlmInterruptedError, match="broke off"):
            list(stream)
    finally:
        process.kill()
        process.wait()


def test_a_router(tmp_path: Path) -> None:
    presets = tmp_path / "models.ini"
    sections = (
        f"[m{number}]\nalias = {name}\nmodel = {MODEL}\nctx-size = 512\nparallel = 1\n"
        for number, name in enumerate(("a:1b", "b:1b"))
    )
    presets.write_text("version = 1\n\n" + "\n".join(sections))
    with real_router(presets) as url:
        assert LlamaAdapter(url).list_models() == ["a:1b", "b:1b"]
        adapter = LlamaAdapter(url, "b:1b", options=SURE)
        assert adapter.generate(CAPITAL, num_predict=4)
        long = "Nothing here. " * 900 + f"\n{CAPITAL}"
        assert adapter.generate(long, num_predict=4)
        with pytest.raises(LlmModelNotFoundError):
            adapter.generate("Hi", model="c:1b")


def test_what_is_no_text_is_replaced(adapter: LlamaAdapter) -> None:
    assert adapter.generate("Say \ud83c.", num_predict=2)


def test_embeddings_of_a_server_that_has_them() -> None:
    with real_llama_server("-c", "512", "--embeddings", "--pooling", "mean") as url:
        adapter = LlamaAdapter(url)
        sky, sea, sky_again = adapter.embed(
            ["The sky is blue.", "I like fish.", "The sky is blue."]
        )
    assert sum(value * value for value in sky) == pytest.approx(1, abs=1e-4)
    assert sky == pytest.approx(sky_again, abs=1e-3)
    assert sky != pytest.approx(sea, abs=1e-2)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
