"""What goes wrong on the way to an engine: retries, time-outs, ends from elsewhere."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from kloros_llm import (
    LlamaAdapter,
    LlmAuthenticationError,
    LlmBusyError,
    LlmConnectionError,
    LlmError,
    LlmInterruptedError,
    LlmLoadingError,
    LlmProtocolError,
    LlmTimeoutError,
    LlmUsageError,
    Timeouts,
    check_llama_health,
)
from kloros_llm.timeouts import Clock, timeouts_of
from kloros_llm.wire import Cancel, Wire
from tests.stand_in_engine import Fault, StandInEngine, in_thread
from tests.unit.client.odd_servers import Relay, dripping_server
from tests.unit.client.stand_in_ollama import StandInOllama

SAID = "The sea is calm, the sky is blåe 🌊."


@contextmanager
def engine_with(*faults: Fault, **settings: object) -> Iterator[tuple[StandInEngine, str]]:
    """An engine whose next requests meet these faults; that it is one is known already."""
    engine = StandInEngine(**settings)  # type: ignore[arg-type]
    with in_thread(engine) as url:
        engine.faults.extend(faults)
        yield engine, url


def asked(engine: StandInEngine) -> int:
    return sum(one.path == "/v1/chat/completions" for one in engine.asked)


def llama(url: str, timeout: float | Timeouts = 20.0, retries: int = 2) -> LlamaAdapter:
    return LlamaAdapter(url, timeout=timeout, retries=retries, engine="llama")


@pytest.mark.parametrize(
    "fault", [Fault("hang_up"), Fault("reset"), Fault("cut"), Fault("error_event")]
)
def test_what_breaks_before_the_first_piece_is_asked_again(fault: Fault) -> None:
    with engine_with(fault, fault) as (engine, url):
        assert llama(url).generate("Hi") == SAID
        assert asked(engine) == 3
        engine.faults.extend([fault] * 3)
        with pytest.raises((LlmConnectionError, LlmInterruptedError)):
            llama(url).generate("Hi")


@pytest.mark.parametrize("kind", ["reset", "cut", "error_event"])
def test_what_breaks_later_is_told_with_what_had_come(kind: str) -> None:
    fault = Fault(kind, after=4)  # type: ignore[arg-type]
    with engine_with(fault, fault) as (engine, url):
        with pytest.raises(LlmInterruptedError) as raised:
            llama(url).generate("Hi")
        assert raised.value.text.strip() == "The sea is"
        assert isinstance(raised.value, requests.RequestException)
        found: list[str] = []
        with pytest.raises(LlmInterruptedError):
            found.extend(llama(url).stream_sentences("Hi"))
        assert asked(engine) == 2


def test_garbage_is_told_as_such() -> None:
    garbage = [Fault("garbage", after=after, body=b"data: {what?") for after in (0, 3)]
    with engine_with(*garbage) as (_, url):
        for _fault in garbage:
            with pytest.raises(LlmProtocolError):
                llama(url).generate("Hi")


def test_an_engine_that_loads_is_waited_for() -> None:
    with engine_with(Fault("status"), Fault("status")) as (engine, url):
        assert llama(url, retries=0).generate("Hi") == SAID
        assert asked(engine) == 3
        engine.loading = True
        assert llama(url).health().state == "loading"
        assert not check_llama_health(url)
        with pytest.raises(LlmLoadingError):
            llama(url, Timeouts(load_s=0)).generate("Hi")
        with pytest.raises(LlmTimeoutError, match=r"whole answer|first piece"):
            llama(url, 0.3).generate("Hi")


def test_busy_and_other_refusals_are_not_repeated() -> None:
    body = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    with engine_with(Fault("status", body=body)) as (engine, url):
        with pytest.raises(LlmBusyError):
            llama(url).generate("Hi")
        assert asked(engine) == 1


def test_a_key() -> None:
    with engine_with(api_key="right") as (_, url):
        for key in (None, "wrong"):
            with pytest.raises(LlmAuthenticationError):
                LlamaAdapter(url, api_key=key).generate("Hi")
        assert LlamaAdapter(url, api_key="right").generate("Hi") == SAID
        with pytest.raises(LlmUsageError, match="no text for a header"):
            LlamaAdapter(url, api_key="wröng\n").generate("Hi")


@pytest.mark.parametrize("key", ["s3cret\n", "s3crét", "s3cret\r\nX: y"])
def test_a_key_is_in_no_error(key: str) -> None:
    with pytest.raises(LlmUsageError) as raised:
        LlamaAdapter("http://127.0.0.1:9", api_key=key).generate("Hi")
    assert "s3cr" not in "".join(traceback.format_exception(raised.value, chain=True))
    with pytest.raises(LlmUsageError, match="give api_key instead") as raised:
        LlamaAdapter("http://me:s3cret@127.0.0.1:9")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "timeouts", "phase"),
    [
        (Fault("hang"), Timeouts(first_piece_s=0.2), "first piece"),
        (Fault("stall"), Timeouts(first_piece_s=0.2), "first piece"),
        (Fault("stall", after=3), Timeouts(next_piece_s=0.2), "next piece"),
        (Fault("stall", after=3), Timeouts(whole_s=0.3), "whole answer"),
        (Fault("hang"), Timeouts(whole_s=0.3), "whole answer"),
    ],
)
def test_time_outs(fault: Fault, timeouts: Timeouts, phase: str) -> None:
    with engine_with(fault) as (engine, url):
        stream = llama(url, timeouts).generate("Hi", stream=True)
        with pytest.raises(LlmTimeoutError) as raised:
            list(stream)
        assert raised.value.phase == phase
        assert isinstance(raised.value, requests.Timeout)
        assert asked(engine) == 1


def test_pings_are_no_pieces() -> None:
    """A server that says every now and then that it is alive, and nothing else."""
    with dripping_server(b":\n\n") as url:
        stream = llama(url, Timeouts(first_piece_s=0.4)).generate("Hi", stream=True)
        with pytest.raises(LlmTimeoutError):
            next(stream)


def test_a_number_bounds_the_connection_too() -> None:
    assert timeouts_of(0.3, streaming=False).connect_s == 0.3
    assert timeouts_of(30, streaming=False).connect_s == Timeouts.connect_s


def test_a_whole_answer_is_bound_by_a_number_and_a_stream_is_not() -> None:
    with engine_with(interval_s=0.05) as (_, url):  # eleven pieces: half a second
        with pytest.raises(LlmTimeoutError):
            llama(url, 0.3).generate("Hi")
        assert "".join(llama(url, 0.3).generate("Hi", stream=True)).strip() == SAID


def test_a_consumer_may_be_slow() -> None:
    with engine_with() as (_, url):
        stream = llama(url, Timeouts(next_piece_s=0.1)).generate("Hi", stream=True)
        first = next(stream)
        time.sleep(0.3)  # speaks it
        assert (first + "".join(stream)).strip() == SAID


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("stall"), Fault("stall", after=3)])
def test_closing_wakes_whoever_waits(fault: Fault) -> None:
    with engine_with(fault) as (engine, url):
        stream = llama(url, Timeouts(first_piece_s=None, next_piece_s=None)).generate(
            "Hi", stream=True
        )
        heard: list[str] = []
        listener = threading.Thread(target=lambda: heard.extend(stream))
        listener.start()
        until(lambda: asked(engine) == 1 and len(stream.text) >= fault.after)
        stream.close()
        listener.join(20)
        assert not listener.is_alive()
        assert stream.closed
        assert stream.ending is None
        until(lambda: engine.left_by_client == 1)
        with pytest.raises(LlmInterruptedError, match="cancelled"):
            stream.answer()


def test_closing_ends_a_wait_for_an_engine_that_loads() -> None:
    with engine_with() as (engine, url):
        engine.loading = True
        stream = llama(url).generate("Hi", stream=True)
        listener = threading.Thread(target=lambda: list(stream))
        listener.start()
        until(lambda: asked(engine) > 0)
        stream.close()
        listener.join(20)
        assert not listener.is_alive()


def test_a_stream_that_was_closed_asks_nothing() -> None:
    with engine_with() as (engine, url):
        with llama(url).generate("Hi", stream=True) as stream:
            pass
        assert list(stream) == []
        assert engine.asked == []


def test_sentences_stop_when_they_are_closed() -> None:
    with engine_with(pieces=("One. Tw", "o. "), answer_tokens=30) as (_, url):
        with llama(url).stream_sentences("Hi") as spoken:
            assert next(spoken) == "One."
        assert list(spoken) == []


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LlmConnectionError, match="nobody listens there") as raised:
            LlamaAdapter(url, retries=1).generate("Hi")
    assert isinstance(raised.value, requests.ConnectionError)
    assert not check_llama_health(url)
    with pytest.raises(LlmConnectionError, match="no machine has that name"):
        LlamaAdapter("http://nobody.invalid:1", retries=0).generate("Hi")


@pytest.mark.parametrize(
    "url",
    ["", "ftp://127.0.0.1", "http://", "http://[::1", "http://a:b", "http://a..b", "http://a/?k=1"],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(LlmUsageError, match="is no URL of an engine"):
        LlamaAdapter(url)
    assert not check_llama_health(url)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("http://[::]:8080/", "http://[::1]:8080"),
        ("https://llm.example/path/", "https://llm.example/path"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
    ],
)
def test_urls_as_people_write_them(given: str, normal: str) -> None:
    assert LlamaAdapter(given).base_url == normal


def test_the_environments_proxy_and_netrc_are_not_for_the_hosts_own_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with engine_with() as (_, url):
        assert llama(url).generate("Hi") == SAID


def test_another_program_is_told_apart() -> None:
    with dripping_server(b"hello\n", status=b"404 Not Found", ends=True) as url:
        with pytest.raises(LlmProtocolError, match="neither llama-server nor Ollama"):
            LlamaAdapter(url).generate("Hi")
        assert LlamaAdapter(url).health().state == "refused"
    with dripping_server(b"[" * 100_000, ends=True) as url:
        assert LlamaAdapter(url).health().state == "refused"
    with (
        dripping_server(b"", status=b"hello", ends=True) as url,
        pytest.raises(LlmConnectionError, match="does not speak HTTP"),
    ):
        LlamaAdapter(url, retries=0).generate("Hi")


def test_the_engine_is_found_out_once_and_again_after_a_change() -> None:
    engine = StandInEngine()
    # Ollama answers OpenAI's route as well, in another way: its Server header tells.
    recorded = ("11-generate-stream", "73-v1-chat-stream")
    with StandInOllama(*recorded) as ollama, in_thread(engine) as url:
        relay = Relay(ollama.url)
        with relay:
            adapter = LlamaAdapter(relay.url, "smollm2:135m")
            for _ in range(3):
                assert adapter.generate("Hi").startswith("1. Red")
            assert [path for path, _ in ollama.asked].count("/api/version") == 1
            relay.to = url
            assert adapter.generate("Hi") == SAID
            assert [adapter.engine] == ["llama"]
            relay.to = ollama.url
            assert adapter.generate("Hi").startswith("1. Red")
            assert [adapter.engine] == ["ollama"]


def test_an_answer_without_a_frame_comes_as_it_comes() -> None:
    """As some proxies hand it on: the connection's end is the answer's."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    with dripping_server(event) as url:
        stream = llama(url).generate("Hi", stream=True)
        assert [next(stream), next(stream)] == ["Hi", "Hi"]
        stream.close()


def test_an_answer_without_a_frame_is_not_read_byte_by_byte() -> None:
    size = 100_000
    with dripping_server(b"x" * size, ends=True) as url:
        clock = Clock(timeouts_of(30.0, streaming=False))
        with Wire(url, None).ask("GET", "/", None, clock, Cancel()) as reply:
            pieces = [len(piece) for piece in reply.chunks()]
    assert sum(pieces) == size
    assert len(pieces) < 100, f"{len(pieces)} reads"


def test_an_answer_without_a_frame_that_cannot_be_decoded_is_said() -> None:
    packed = b"200 OK\r\nContent-Encoding: gzip"
    with (
        dripping_server(b"no gzip", status=packed, ends=True) as url,
        pytest.raises(LlmProtocolError, match="decode"),
    ):
        llama(url).generate("Hi")


def test_wrong_calls_ask_nothing() -> None:
    with engine_with() as (engine, url):
        adapter = llama(url)
        with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
            adapter.generate("Hi", temprature=1)
        for wrong in (
            {"temperature": "hot"},
            {"num_predict": True},
            {"stop": [1]},
            {"raw": True, "system": "x"},
        ):
            with pytest.raises(LlmUsageError):
                adapter.generate("Hi", **wrong)
        for alone in ({"images": [b"x"]}, {"raw": True}, {"suffix": "x"}):
            said: dict[str, Any] = dict(alone)
            with pytest.raises(LlmUsageError, match=r"is for generate\(\)"):
                adapter.chat([{"role": "user", "content": "Hi"}], **said)
        for messages in ([], [{"content": "x"}], ["x"]):
            with pytest.raises(LlmUsageError):
                adapter.chat(messages)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the text is empty"):
            adapter.generate("")
        with pytest.raises(LlmUsageError):
            Timeouts(connect_s=0)
        with pytest.raises(LlmError, match="engine is"):
            LlamaAdapter(url, engine="vllm")  # type: ignore[arg-type]
        assert engine.asked == []


def test_thinking_is_apart_and_tools_are_called() -> None:
    with engine_with() as (engine, url):
        engine.thinking = ("Let me", " see.")
        engine.tool_calls = (("look", '{"at": "sky"}'),)
        stream = llama(url).chat([{"role": "user", "content": "Hi"}], stream=True, tools=[{}])
        assert "".join(stream).strip() == SAID
        assert stream.thinking == "Let me see."
        assert [(call.name, call.arguments) for call in stream.tool_calls] == [
            ("look", {"at": "sky"})
        ]


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with StandInOllama("11-generate-stream", tls=context) as ollama:
        with pytest.raises(LlmConnectionError, match="certificate verify failed"):
            LlamaAdapter(ollama.url, "m", retries=0).generate("Hi")
        adapter = LlamaAdapter(ollama.url, "m", verify=str(certificate))
        assert adapter.generate("Hi").startswith("1. Red")
        assert adapter.health()
        ollama.lines = 2
        ollama.stalls.clear()
        bounds = Timeouts(next_piece_s=0.2)
        with pytest.raises(LlmTimeoutError):
            list(adapter.generate("Hi", stream=True, timeout=bounds))
        stream = adapter.generate("Hi", stream=True)
        listener = threading.Thread(target=lambda: list(stream))
        listener.start()
        until(lambda: stream.text == "1.")
        stream.close()
        listener.join(20)
        ollama.stalls.set()
        assert not listener.is_alive()


def test_no_connection_is_left_open() -> None:
    def sockets() -> int:
        return sum(link.is_socket() for link in Path("/proc/self/fd").iterdir())

    with engine_with() as (engine, url):
        adapter = LlamaAdapter(url)
        adapter.generate("Hi")
        gc.disable()  # nothing waits for it
        try:
            before = sockets()
            for fault in (None, Fault("reset", after=2), Fault("status", status=400)) * 5:
                engine.faults.extend([fault] if fault else [])
                with contextlib.suppress(LlmError):
                    adapter.generate("Hi")
                for _ in adapter.generate("Hi", stream=True):
                    break
            until(lambda: sockets() <= before)
        finally:
            gc.enable()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
