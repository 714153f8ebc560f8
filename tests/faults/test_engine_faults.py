"""The gateway's process in front of engines that are killed, restarted, or keep breaking off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.faults.clients import (
    BROKEN_OFF,
    ROUTES,
    TIMEOUT_S,
    Route,
    SteadyLoad,
    await_condition,
    lines_of,
)
from tests.faults.engines import EngineProcess
from tests.llama_server import needs_llama_server
from tests.stand_in_engine import Fault, StandInEngine, in_thread
from tests.unit.gateway.gateway_process import MODEL, GatewayProcess, free_ports, write_config

_QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
_LONG = "word " * 3000
_BOTH = pytest.mark.parametrize(
    "kind", ["stand-in", pytest.param("real", marks=needs_llama_server)]
)


@dataclass(frozen=True)
class Gateway:
    """Its ports."""

    port: int
    metrics_port: int

    def number(self, name: str) -> float:
        """Of the metrics; 0 where it is not there yet."""
        text = requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30).text
        found = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    def await_running(self, count: int = 1) -> None:
        """Until an engine has so many requests."""
        name = 'kloros_gateway_upstream_running{instance="live"}'
        await_condition(lambda: self.number(name) == count)


@contextmanager
def gateway(folder: Path, engine_url: str, more: str = "") -> Iterator[Gateway]:
    port, metrics_port = free_ports(2)
    more += f"\n[metrics]\nport = {metrics_port}\n"
    with GatewayProcess(write_config(folder, port, engine_url, more)) as process:
        yield Gateway(port, metrics_port)
        assert process.stop() == 0
        assert "Traceback" not in "\n".join(process.log)


def engine_of(kind: str, **settings: float) -> EngineProcess:
    """One that answers for a while."""
    if kind == "real":
        return EngineProcess.real("--ctx-size", "8192", "--parallel", "2")
    return EngineProcess.stand_in(**{"tokens": 500, "interval_ms": 20, **settings})  # type: ignore[arg-type]


@_BOTH
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_a_stream_on_a_killed_engine_ends_in_the_error_line(
    tmp_path: Path, kind: str, route: Route
) -> None:
    with engine_of(kind) as engine, gateway(tmp_path, engine.url) as served:
        answer = route.ask(served.port)
        lines = lines_of(answer)
        begun = [next(lines) for _ in range(8)]
        engine.kill()
        rest = list(lines)
    assert answer.status_code == 200
    assert not any(route.ends(line) for line in begun + rest)
    assert route.error_of(rest[-1]) == BROKEN_OFF


@_BOTH
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_what_a_killed_engine_had_not_begun_is_asked_again(
    tmp_path: Path, kind: str, route: Route, stream: bool
) -> None:
    more: dict[str, Any] = {"messages": [{"role": "user", "content": _LONG}]}
    if "prompt" in route.body:
        more = {"prompt": _LONG}
    if kind == "real":
        more["tokens"] = 8
    # The stand-in sends its headers at once; llama-server not before it has read the prompt.
    slow = engine_of(kind, first_ms=600_000)
    quick = EngineProcess(slow._command, slow.port)
    if kind == "stand-in":
        quick = EngineProcess([*slow._command, "--first-ms", "0", "--interval-ms", "0"], slow.port)
    with slow, gateway(tmp_path, slow.url) as served, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: list(lines_of(route.ask(served.port, stream=stream, **more))))
        await_condition(lambda: _is_processing(slow))
        slow.kill()
        with quick:
            lines = asked.result(TIMEOUT_S)
            retries = served.number('kloros_gateway_retries_total{instance="live"}')
    assert retries >= 1
    assert route.ends(lines[-1]) if stream else '"error"' not in lines[0], lines


def test_a_whole_answer_that_an_engine_had_begun_is_made_anew(tmp_path: Path) -> None:
    """Its client has been sent nothing yet."""
    engine = StandInEngine(model=MODEL)
    with in_thread(engine), gateway(tmp_path, engine.url) as served:
        for name in ("generate", "chat", "anthropic"):  # "openai" asks for a whole one
            engine.faults.append(Fault("reset", after=3))
            answer = ROUTES[name].ask(served.port, stream=False)
            assert answer.status_code == 200, answer.text
            assert not engine.faults
            # Once, and not what the first one had said before it.
            assert answer.text.count("The sea is calm") == 1, answer.text


@_BOTH
def test_restarts_of_an_engine_under_load_fail_nothing_that_had_not_begun(
    tmp_path: Path, kind: str
) -> None:
    # llama-server on one thread is slower than that, so the rate is what it can do.
    slots, tokens = (1000, None) if kind == "stand-in" else (8, 8)
    engine = engine_of(kind, tokens=10, interval_ms=10)
    limits = "[limits]\nwait_s = 120\n"
    restarts: tuple[Callable[[], None], ...] = (engine.end, engine.kill, engine.kill)
    with engine, gateway(tmp_path, engine.url, limits) as served:
        with SteadyLoad(served.port, 20, slots, tokens) as load:
            for restart in restarts:
                load.await_whole(20)
                restart()
                engine.start()
            load.await_whole(20)
        assert load.failures == []
        assert load.whole >= 80


@_BOTH
def test_clients_that_vanish_end_their_generations(tmp_path: Path, kind: str) -> None:
    settings = {"tokens": 1_000_000, "interval_ms": 10}
    with engine_of(kind, **settings) as engine, gateway(tmp_path, engine.url) as served:
        for route in ROUTES.values():
            answer = route.ask(served.port)
            lines = lines_of(answer)  # urllib3 closes the connection when nobody has it any more
            next(lines)
            if kind == "real":
                await_condition(lambda: _is_processing(engine))
            answer.close()
            served.await_running(0)
            if kind == "real":
                await_condition(lambda: not _is_processing(engine))


def _is_processing(engine: EngineProcess) -> bool:
    slots = requests.get(f"{engine.url}/slots", timeout=30).json()
    return any(slot["is_processing"] for slot in slots)


def test_a_generation_ends_with_its_client(tmp_path: Path) -> None:
    """What the engine itself sees of it, on each route, while it reads the prompt and later."""
    engine = StandInEngine(model=MODEL, answer_tokens=1_000_000, interval_s=0.01)
    with in_thread(engine), gateway(tmp_path, engine.url) as served:
        for number, route in enumerate(ROUTES.values(), 1):
            answer = route.ask(served.port)
            lines = lines_of(answer)
            next(lines)
            assert engine.generating == 1
            answer.close()
            await_condition(lambda: engine.generating == 0)
            assert engine.left_by_client == number


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_ends_with_a_client_that_has_got_nothing_yet(
    tmp_path: Path, stream: bool
) -> None:
    engine = StandInEngine(model=MODEL, answer_tokens=1_000_000, first_s=600, interval_s=600)
    with in_thread(engine), gateway(tmp_path, engine.url) as served:
        for number, route in enumerate(ROUTES.values(), 1):
            client = route.ask_and_wait(served.port, stream=stream)
            await_condition(lambda: engine.generating == 1)
            client.close()
            await_condition(lambda: engine.generating == 0)
            assert engine.left_by_client == number
            served.await_running(0)


def test_who_leaves_the_queue_makes_room(tmp_path: Path) -> None:
    engine = StandInEngine(model=MODEL)
    engine.loading = True
    route = ROUTES["chat"]
    limits = "[limits]\nqueue = 4\n"
    with in_thread(engine), gateway(tmp_path, engine.url, limits) as served:
        waiting = [route.ask_and_wait(served.port, stream=False) for _ in range(4)]
        await_condition(lambda: served.number("kloros_gateway_requests_waiting") == 4)
        assert route.ask(served.port, stream=False).status_code == 503
        waiting.pop().close()
        await_condition(lambda: served.number("kloros_gateway_requests_waiting") == 3)
        waiting.append(route.ask_and_wait(served.port, stream=False))
        await_condition(lambda: served.number("kloros_gateway_requests_waiting") == 4)
        engine.loading = False
        for client in waiting:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            client.close()
        assert served.number("kloros_gateway_requests_waiting") == 0


def test_512_wait_and_one_more_is_refused(tmp_path: Path) -> None:
    engine = StandInEngine(model=MODEL)
    engine.loading = True
    route = ROUTES["chat"]
    with (
        in_thread(engine),
        gateway(tmp_path, engine.url) as served,
        ThreadPoolExecutor(512) as pool,
    ):
        waiting = [pool.submit(lambda: route.ask(served.port, stream=False)) for _ in range(512)]
        await_condition(lambda: served.number("kloros_gateway_requests_waiting") == 512)
        refused = route.ask(served.port, stream=False)
        assert (refused.status_code, refused.json()) == (503, {"error": _QUEUE_FULL})
        tags = requests.get(f"http://127.0.0.1:{served.port}/api/tags", timeout=30)
        assert tags.json()["models"][0]["name"] == MODEL
        engine.loading = False
        answers = [one.result(TIMEOUT_S) for one in waiting]
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.json()["done"] for answer in answers)
        assert served.number("kloros_gateway_requests_rejected_total") == 1


def test_the_breaker_opens_the_fall_back_serves_and_it_closes_again(tmp_path: Path) -> None:
    engine = StandInEngine(model=MODEL, pieces=[" own"])
    other = StandInEngine(model=MODEL, pieces=[" other"])
    route = ROUTES["generate"]
    with in_thread(engine), in_thread(other):
        port, metrics_port = free_ports(2)
        config = write_config(
            tmp_path,
            port,
            engine.url,
            f"""[instances.spare]
url = "{other.url}"
model = "{MODEL}"

[metrics]
port = {metrics_port}
""",
        )
        text = config.read_text()
        for head, more in (
            ("[instances.live]\n", 'fallback = "spare"\n'),
            (f'[models."{MODEL}"]\n', 'instances = ["live"]\n'),
        ):
            text = text.replace(head, head + more)
        config.write_text(text)
        served = Gateway(port, metrics_port)

        def state(name: str) -> bool:
            metric = f'kloros_gateway_breaker_state{{instance="live",state="{name}"}}'
            return served.number(metric) == 1

        with GatewayProcess(config):
            assert state("closed")
            engine.faults.extend([Fault("hang_up")] * 1000)
            # After two tries each is told that the engine is gone; then nothing goes there.
            statuses = [route.ask(port, stream=False).status_code for _ in range(4)]
            assert statuses[:2] == [500, 500]
            assert statuses[3] == 200
            answer = route.ask(port, stream=False)
            assert answer.json()["response"].startswith(" other")
            assert state("open")
            fallbacks = 'kloros_gateway_fallbacks_total{fallback="spare",instance="live"}'
            assert served.number(fallbacks) >= 2
            engine.faults.clear()
            await_condition(lambda: not state("open"))
            await_condition(
                lambda: route.ask(port, stream=False).json()["response"].startswith(" own")
            )
            assert state("closed")
