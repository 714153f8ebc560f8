"""Which engine is asked: the plan, the environment, the modes, the fall-back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import kloros_llm
from kloros_llm import (
    LlamaAdapter,
    LlmConfigurationError,
    LlmConnectionError,
    LlmHttpError,
    LlmInterruptedError,
    LLMMode,
    LLMRouter,
    LLMService,
    LlmUsageError,
    ReasoningBackend,
    ReasoningResult,
    TextStream,
    create_reasoning_backend,
    get_llm_url,
)
from tests.stand_in_engine import Fault, StandInEngine, in_thread
from tests.unit.client.stand_in_ollama import StandInOllama
from tests.unit.modelctl_host import ModelctlHost

SAID = "The sea is calm, the sky is blåe 🌊."
NOBODY = "http://127.0.0.1:9"  # the discard port


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine: no plan, no Ollama."""
    for name in ("OLLAMA_HOST", "OLLAMA_MODEL", "LLM_SYSTEM_PROMPT", "KLOROS_LLM_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("kloros_llm.modelctl.host_plan.DEFAULT_PLAN", tmp_path / "none.json")
    monkeypatch.setenv("OLLAMA_HOST", NOBODY)


@pytest.fixture
def engines() -> Iterator[dict[str, StandInEngine]]:
    with ExitStack() as running:
        made = {name: StandInEngine(pieces=(f"{name} speaks.",), answer_tokens=1) for name in "abc"}
        for engine in made.values():
            running.enter_context(in_thread(engine))
        yield made


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


def write_plan(host: ModelctlHost, **instances: dict[str, Any]) -> Path:
    model = host.models / "m.gguf"
    host.write_plan(
        instances=[host.planned_instance(name, model) | one for name, one in instances.items()]
    )
    return host.plan


def test_a_mode_is_served_by_who_has_it_then_by_its_namesake_then_by_live(
    host: ModelctlHost,
) -> None:
    plan = write_plan(
        host,
        vectors={"url": "http://127.0.0.1:1", "embeddings": True},
        code={"url": "http://127.0.0.1:2"},
        other={"url": "http://127.0.0.1:3", "modes": ["draw"]},
        main={"url": "http://127.0.0.1:4", "modes": ["live", "think"]},
    )
    urls = {mode: get_llm_url(mode, plan)[-1] for mode in (*LLMMode, "draw", "other")}
    assert urls == {"live": "4", "think": "4", "deep": "4", "code": "2", "draw": "3", "other": "3"}
    with pytest.raises(LlmConfigurationError, match="no mode is called 'sing'; there are: code"):
        get_llm_url("sing", plan)
    router = LLMRouter("llama", plan=plan)
    assert router.get_service("think").name == "main"
    assert router.get_service().model == "tiny:1b"
    assert router.get_available_services()["local"]["code"] == {
        "name": "code",
        "port": 2,
        "model": "tiny:1b",
        "description": "tiny:1b for any mode",
        "url": "http://127.0.0.1:2",
    }


def test_a_router_of_the_plan_is_asked_for_the_first_of_its_models(
    host: ModelctlHost, engines: dict[str, StandInEngine]
) -> None:
    router = {"url": engines["a"].url, "modes": ["live"], "model": "", "models": ["x:1b", "y:1b"]}
    backend = LLMRouter("llama", plan=write_plan(host, hot=router))
    assert backend.get_available_services()["local"]["live"]["model"] == "x:1b"
    backend.generate("Hi")
    backend.generate("Hi", model="y:1b")
    assert [one.body["model"] for one in engines["a"].asked] == ["x:1b", "y:1b"]


def test_the_environment_goes_before_the_plan(
    host: ModelctlHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(host, live={"url": "http://127.0.0.1:1", "modes": ["live", "code"]})
    monkeypatch.setenv("KLOROS_LLM_PLAN", str(plan))
    monkeypatch.setenv("KLOROS_LLM_URL_CODE", "127.0.0.1:2")
    monkeypatch.setenv("KLOROS_LLM_MODEL_CODE", "coder")
    assert [get_llm_url("live"), get_llm_url("code")] == [
        "http://127.0.0.1:1",
        "http://127.0.0.1:2",
    ]
    assert LLMRouter().get_service("code").model == "coder"
    # What is not on the host, and not said, is not asked: Ollama comes after the plan.
    assert [LLMRouter().get_service(mode).port for mode in LLMMode] == [1, 1, 1, 2]
    monkeypatch.setenv("KLOROS_LLM_URL", "http://127.0.0.1:3/")
    assert get_llm_url("live") == "http://127.0.0.1:3"
    assert get_llm_url("code") == "http://127.0.0.1:2"


def test_a_host_without_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert get_llm_url() == NOBODY
    monkeypatch.delenv("OLLAMA_HOST")
    assert get_llm_url("code") == "http://127.0.0.1:11434"
    with pytest.raises(LlmConfigurationError, match="this host has no plan"):
        LLMRouter("llama")
    with monkeypatch.context() as only_code:  # the first program that moves
        only_code.setenv("KLOROS_LLM_URL_CODE", "127.0.0.1:2")
        assert [get_llm_url(mode)[-1] for mode in ("code", "live")] == ["2", "4"]
        assert LLMRouter().get_service("live").name == "ollama"
    with pytest.raises(LlmConfigurationError, match="KLOROS_LLM_URL is not set"):
        create_reasoning_backend("llama")
    with pytest.raises(LlmConfigurationError, match="is not there"):
        get_llm_url(plan=tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(LlmConfigurationError, match="is no plan"):
        LLMRouter(plan=tmp_path / "broken.json")


def test_the_next_engine_answers_where_one_does_not(engines: dict[str, StandInEngine]) -> None:
    router = LLMRouter(
        services=[
            LLMService("down", NOBODY, modes=("live",)),
            LLMService("a", engines["a"].url, modes=("live",)),
            LLMService("b", engines["b"].url),
        ]
    )
    assert router.generate("Hi") == "a speaks."
    # Who was down is asked last for a while.
    assert router.get_service().name == "a"
    engines["a"].loading = True
    assert router.generate("Hi") == "b speaks."
    engines["a"].loading = False
    fresh = LLMRouter(services=router.services)
    for fault in (Fault("hang_up"), Fault("cut")):
        engines["a"].faults.extend([fault] * 6)
        assert LLMRouter(services=router.services).generate("Hi") == "b speaks."
        engines["a"].faults.clear()
    assert list(fresh.stream_sentences("Hi")) == ["a speaks."]
    assert fresh.chat([{"role": "user", "content": "Hi"}]).text == "a speaks."


def test_an_engine_that_loads_is_waited_for_where_no_other_answers(
    engines: dict[str, StandInEngine],
) -> None:
    router = LLMRouter(
        services=[
            LLMService("a", engines["a"].url, modes=("live",)),
            LLMService("down", NOBODY),
        ]
    )
    engines["a"].loading = True
    waiting = router.generate("Hi", stream=True)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(waiting))
    listener.start()
    while len(engines["a"].asked) < 3:  # by then, nobody else is left
        listener.join(0.01)
        assert listener.is_alive()
    engines["a"].loading = False
    listener.join(20)
    assert heard == ["a speaks."]


def test_another_program_on_the_port_is_passed_over(engines: dict[str, StandInEngine]) -> None:
    engines["a"].faults.append(Fault("garbage", body=b"data: {what?\n\n"))
    services = [
        LLMService(name, engines[name].url, modes=("live",), engine="llama") for name in "ab"
    ]
    assert LLMRouter(services=services).generate("Hi") == "b speaks."


def test_a_down_engine_is_asked_again_later(engines: dict[str, StandInEngine]) -> None:
    services = [LLMService(name, engines[name].url, modes=("live",)) for name in "ab"]
    router = LLMRouter(services=services, retry_after_s=0)
    engines["a"].loading = True
    assert router.generate("Hi") == "b speaks."
    engines["a"].loading = False
    assert router.generate("Hi") == "a speaks."


def test_the_callers_own_faults_are_not_passed_on(engines: dict[str, StandInEngine]) -> None:
    router = LLMRouter(services={"live": engines["a"].url, "code": engines["b"].url})
    with pytest.raises(TypeError):
        router.generate("Hi", temprature=1)
    with pytest.raises(LlmUsageError):
        router.generate("Hi", top_k="many")
    with pytest.raises(LlmConfigurationError):
        router.generate("Hi", mode="sing")
    body = b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'
    engines["a"].faults.append(Fault("status", status=400, body=body))
    engines["a"].faults.append(Fault("status", status=400, body=body))
    with pytest.raises(LlmHttpError, match="no"):
        router.generate("Hi")
    assert engines["b"].asked == []


def test_an_answer_that_began_is_not_begun_anew_elsewhere() -> None:
    first = StandInEngine()
    with in_thread(first) as url, in_thread(StandInEngine()) as other:
        router = LLMRouter(
            services=[
                LLMService("a", url, modes=("live",), engine="llama"),
                LLMService("b", other, modes=("live",)),
            ]
        )
        first.faults.append(Fault("reset", after=4))
        stream = router.generate("Hi", stream=True)
        with pytest.raises(LlmInterruptedError):
            list(stream)
        assert stream.text.strip() == "The sea is"


def test_where_nobody_answers_all_are_named() -> None:
    services = [LLMService("x", NOBODY), LLMService("y", "http://127.0.0.1:19")]
    router = LLMRouter(services=services)
    with pytest.raises(LlmConnectionError, match=r"no engine answers: .*:9/.*:19/"):
        router.generate("Hi")
    assert {name: one.state for name, one in router.health().items()} == {
        "x": "unreachable",
        "y": "unreachable",
    }
    ok, why = router.check_service_health("live")
    assert not ok
    assert "nobody listens there" in why
    ok, text, source = router.query("Hi", LLMMode.LIVE)
    assert (ok, source) == (False, "error")
    assert "no engine answers" in str(text)


def test_kloross_way_to_ask(engines: dict[str, StandInEngine]) -> None:
    router = LLMRouter(services={"live": engines["a"].url, "code": engines["b"].url})
    assert router.query("Hi", prefer_remote=True) == (True, "a speaks.", "local:live")
    ok, stream, source = router.query("Hi", LLMMode.CODE, stream=True)
    assert (ok, source) == (True, "local:code")
    assert isinstance(stream, TextStream)
    assert list(stream) == ["b speaks."]
    assert router.query_local_llm("Hi", LLMMode.CODE) == (True, "b speaks.")
    assert router.check_service_health(LLMMode.CODE) == (True, "")
    assert router.adapter("code").base_url == engines["b"].url


def test_ollama_takes_over_where_the_plans_engine_is_down(
    host: ModelctlHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(host, live={"url": NOBODY, "modes": ["live"], "model": "smollm2:135m"})
    with StandInOllama("11-generate-stream", "25-embed-ok-string") as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.url)
        backend = create_reasoning_backend("auto", plan=plan)
        assert backend.generate("Hi").startswith("1. Red")
        assert ollama.bodies("/api/generate")[0]["model"] == "smollm2:135m"
        assert isinstance(backend, LLMRouter)
        assert len(backend.embed("Hi")[0]) == 576
        with pytest.raises(LlmHttpError, match="does not rerank"):
            backend.rerank("Hi", ["there"])


def test_vectors_come_from_the_instance_for_them(
    host: ModelctlHost, engines: dict[str, StandInEngine]
) -> None:
    plan = write_plan(
        host,
        live={"url": engines["a"].url},
        vectors={"url": engines["b"].url, "embeddings": True},
    )
    router = LLMRouter("llama", plan=plan)
    assert len(router.embed(["one", "two"])) == 2
    assert [one.path for one in engines["b"].asked] == ["/v1/embeddings"]
    with pytest.raises(LlmConfigurationError, match="no instance of this host reranks"):
        router.rerank("Hi", ["there"])


def test_keys_of_instances(
    host: ModelctlHost, engines: dict[str, StandInEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines["a"].api_key = "s3cret"
    plan = write_plan(host, live={"url": engines["a"].url, "api_key": True})
    with pytest.raises(LlmHttpError, match="give api_key"):
        LLMRouter("llama", plan=plan).generate("Hi")
    monkeypatch.setenv("KLOROS_LLM_API_KEY_LIVE", "s3cret")
    router = LLMRouter("llama", plan=plan)
    assert router.generate("Hi") == "a speaks."
    assert "s3cret" not in repr(router.services)
    monkeypatch.delenv("KLOROS_LLM_API_KEY_LIVE")
    key = host.etc / "credentials/live.key"
    key.parent.mkdir()
    key.write_text("s3cret\n")
    assert create_reasoning_backend("llama", plan=plan).generate("Hi") == "a speaks."


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        (":11435", "http://127.0.0.1:11435"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1", "http://[::1]:1"),
        ('"llm.example:80/path/"', "http://llm.example:80/path"),
        ("llm.example/path", "http://llm.example:11434/path"),
        ("https://llm.example", "https://llm.example"),
    ],
)
def test_ollamas_address_as_ollama_takes_it(
    given: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert get_llm_url() == url


def test_which_engine_it_is_is_found_out_once() -> None:
    with StandInOllama("11-generate-stream") as ollama:
        router = LLMRouter(services={"live": ollama.url}, model="m")
        for _ in range(3):
            router.generate("Hi")
        assert [path for path, _ in ollama.asked].count("/api/version") == 1
        assert router.adapter() is router.adapter("think")


def test_a_remote_engine_is_asked_where_it_is_preferred(
    engines: dict[str, StandInEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLOROS_LLM_URL", engines["a"].url)
    assert LLMRouter().query("Hi") == (True, "a speaks.", "local:environment")
    assert LLMRouter().get_available_services()["remote"] == {"enabled": False}
    monkeypatch.setenv("KLOROS_LLM_URL_REMOTE", engines["b"].url)
    monkeypatch.setenv("KLOROS_LLM_MODEL_REMOTE", "large")
    router = LLMRouter()
    assert router.query("Hi") == (True, "b speaks.", "remote")
    assert engines["b"].asked[-1].body["model"] == "large"
    assert router.query("Hi", prefer_remote=False) == (True, "a speaks.", "local:environment")
    assert router.generate("Hi", mode="remote") == "b speaks."
    remote = {"enabled": True, "model": "large", "url": engines["b"].url}
    assert router.get_available_services()["remote"] == remote
    # Without it, what is said does not leave the host.
    engines["a"].loading = True
    before = len(engines["b"].asked)
    assert router.query("Hi", prefer_remote=False, timeout=0.5)[0] is False
    assert len(engines["b"].asked) == before
    engines["a"].loading = False
    engines["b"].loading = True
    assert router.query("Hi") == (True, "a speaks.", "local:environment")


def test_backends_by_name(
    host: ModelctlHost, engines: dict[str, StandInEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(
        host,
        live={"url": engines["a"].url, "modes": ["live"]},
        code={"url": engines["b"].url, "modes": ["code"]},
    )
    monkeypatch.setenv("LLM_SYSTEM_PROMPT", "You are KLoROS.")
    llama = create_reasoning_backend("llama", plan=plan, mode="code", temperature=0.6)
    assert isinstance(llama, LlamaAdapter)
    assert (llama.model, llama.system_prompt, llama.temperature) == (
        "tiny:1b",
        "You are KLoROS.",
        0.6,
    )
    assert llama.generate("Hi") == "b speaks."
    asked = engines["b"].asked[-1].body
    assert asked["messages"][0] == {"role": "system", "content": "You are KLoROS."}
    assert asked["temperature"] == 0.6
    there = create_reasoning_backend("auto", base_url=engines["c"].url)
    assert there.generate("Hi") == "c speaks."
    with StandInOllama("11-generate-stream") as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.url.removeprefix("http://"))
        for name in ("ollama", "LOCAL"):
            backend = create_reasoning_backend(name, plan=plan)
            assert isinstance(backend, ReasoningBackend)
            assert backend.generate("Hi").startswith("1. Red")
        monkeypatch.setenv("OLLAMA_MODEL", "mine")
        create_reasoning_backend("ollama").generate("Hi")
        assert [body["model"] for body in ollama.bodies("/api/generate")] == [
            "tiny:1b",
            "tiny:1b",
            "mine",
        ]
    with pytest.raises(ValueError, match="no reasoning backend is called 'rag'"):
        create_reasoning_backend("rag")


def test_a_reply_is_spoken_while_it_comes() -> None:
    class Voice:
        said: list[str] = []  # noqa: RUF012

        def speak(self, sentence: str) -> None:
            self.said.append(sentence)

    engine = StandInEngine(pieces=("One.", " Two", "!", " The end"), answer_tokens=4)
    with in_thread(engine) as url:
        backend = LlamaAdapter(url, None, "prompt", 0.6, 30)
        voice = Voice()
        whole = ReasoningResult("One. Two! The end")
        assert backend.reply("Hi", voice) == whole
        assert voice.said == ["One.", "Two!", "The end"]
        assert backend.reply("Hi", voice, enable_streaming=False) == whole
        assert backend.reply("Hi") == backend.reply("Hi", object()) == whole
        assert len(voice.said) == 3


def test_one_router_for_all_threads(engines: dict[str, StandInEngine]) -> None:
    router = LLMRouter(services={"live": engines["a"].url, "code": engines["b"].url})
    wrong: list[str] = []

    def ask(mode: str, expected: str) -> None:
        for _ in range(10):
            answer = router.generate("Hi", mode=mode)
            if answer != expected:
                wrong.append(answer)

    threads = [
        threading.Thread(target=ask, args=(mode, f"{name} speaks."))
        for mode, name in (("live", "a"), ("code", "b"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_router_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kloros_llm.llm_router._router", None)
    assert kloros_llm.get_router() is kloros_llm.get_router()
