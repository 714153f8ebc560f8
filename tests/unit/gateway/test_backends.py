"""Waiting, trying again, breaker, fallback and routers, against stand-in engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kloros_llm.gateway.config import Config, Instance, Limits, Model
from kloros_llm.gateway.engines import attempts as attempts_module
from kloros_llm.gateway.engines import breaker as breaker_module
from kloros_llm.gateway.engines import engine as engine_module
from kloros_llm.gateway.engines.backends import SERVER_BUSY, Backends, LoadClock, Loaded
from kloros_llm.gateway.engines.breaker import FAILURES_TO_OPEN
from kloros_llm.gateway.engines.engine import Engine, EngineAnswer
from kloros_llm.gateway.engines.engine_errors import (
    EngineError,
    EngineGoneError,
    EngineStalledError,
)
from kloros_llm.gateway.engines.pieces import Ending, Piece
from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.models.personas import Persona
from kloros_llm.gateway.ollama_api.durations import FOREVER_NS
from tests.stand_in_engine import Fault, StandInEngine

PROMPT = {"prompt": "a b c"}
TEXT = " The sea is calm, the sky is blåe 🌊."


@dataclass(frozen=True)
class Asked:
    persona: Persona
    instances: tuple[str, ...]


def asked_for(*instances: str, model: str = "m:1") -> Asked:
    persona = Persona(
        name=model,
        model=Model(model, Path("/models/m.gguf")),
        system="",
        template=None,
        parameters={},
        messages=(),
        license=(),
        parent="",
        digest="0" * 64,
        modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        origin="model",
    )
    return Asked(persona, instances or ("live",))


def config_of(instances: Mapping[str, Instance], limits: Limits) -> Config:
    return Config(
        listeners=(),
        instances=instances,
        models={},
        personas={},
        models_dir=Path("/models"),
        state_dir=Path("/state"),
        limits=limits,
    )


def run(
    stand_ins: Mapping[str, StandInEngine],
    use: Callable[[Backends], Awaitable[None]],
    *,
    limits: Limits | None = None,
    stopped: tuple[str, ...] = (),
    fallbacks: Mapping[str, str] | None = None,
) -> None:
    """Starts the stand-ins and backends for them, and uses those. `stopped` ones are gone."""

    async def main() -> None:
        for stand_in in stand_ins.values():
            await stand_in.start()
        for name in stopped:
            await stand_ins[name].stop()
        instances = {
            name: Instance(
                name,
                stand_in.url,
                kind="router" if stand_in.models else "dedicated",
                model=None if stand_in.models else "m:1",
                fallback=(fallbacks or {}).get(name),
            )
            for name, stand_in in stand_ins.items()
        }
        backends = Backends(config_of(instances, limits or Limits(wait_s=20)))
        await backends.start()
        try:
            await asyncio.wait_for(use(backends), 60)
        finally:
            await backends.close()
            for stand_in in stand_ins.values():
                await stand_in.stop()

    asyncio.run(main())


async def text(
    backends: Backends,
    target: Asked | None = None,
    clock: LoadClock | None = None,
    received: list[Piece | Ending] | None = None,
    **more: Any,
) -> str:
    """A whole answer's text; an answer without an ending is none."""
    items = [] if received is None else received
    stream = backends.stream(
        target or asked_for(),
        lambda engine: engine.completion(PROMPT),
        loading=clock or LoadClock(),
        **more,
    )
    async with aclosing(stream):
        async for item in stream:
            items.append(item)
    assert isinstance(items[-1], Ending)
    return "".join(item.text for item in items if isinstance(item, Piece))


async def tokens(backends: Backends) -> list[int]:
    """Of a text, by a call: unlike streams those share connections."""
    return await backends.call(
        asked_for(), lambda engine: engine.tokenize("x"), loading=LoadClock()
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_an_answer_passes_and_the_wait_is_never_nothing() -> None:
    async def use(backends: Backends) -> None:
        clock = LoadClock()
        assert await text(backends, clock=clock) == TEXT
        assert clock.ns > 0
        assert backends.state("live").status == "up"
        assert backends.state("live").models == ("m:1",)
        assert backends.loaded() == [Loaded("live", "m:1", None)]
        assert backends.numbers.requests == {"live": 1}
        assert backends.numbers.running == {"live": 0}
        assert not backends.numbers.errors
        assert not backends.numbers.retries

    run({"live": StandInEngine()}, use)


def test_a_request_waits_for_an_engine_that_starts_then_loads() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        assert backends.state("live").status == "down"
        assert backends.loaded() == []
        clock = LoadClock()
        answer = asyncio.create_task(text(backends, clock=clock))
        await until(lambda: backends.numbers.waiting == 1)
        live.loading = True
        await live.start()
        await until(lambda: backends.state("live").status == "loading")
        assert not answer.done()
        assert backends.loaded() == []
        live.loading = False
        assert await answer == TEXT
        assert backends.numbers.waiting == 0
        assert clock.ns > 1_000_000

    run({"live": live}, use, stopped=("live",))


def test_loading_that_only_requests_meet_is_waited_for() -> None:
    live = StandInEngine()
    live.faults += [Fault("status"), Fault("status")]

    async def use(backends: Backends) -> None:
        assert await text(backends) == TEXT
        assert backends.numbers.errors["live", "loading"] == 2

    run({"live": live}, use)


def test_what_dies_before_the_first_byte_is_tried_again_once() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        for fault in (Fault("hang_up"), Fault("reset", after=0), Fault("cut", after=0)):
            live.faults.append(fault)
            assert await text(backends) == TEXT
        assert backends.numbers.errors["live", "gone"] == 3
        live.faults += [Fault("hang_up"), Fault("hang_up")]
        with pytest.raises(EngineGoneError) as caught:
            await text(backends)
        assert not caught.value.began
        assert not live.faults
        live.faults += [Fault("hang_up"), Fault("hang_up")]
        with pytest.raises(EngineGoneError):
            await backends.call(
                asked_for(), lambda engine: engine.tokenize("x"), loading=LoadClock()
            )
        assert not live.faults

    run({"live": live}, use)


def test_an_idle_connection_that_was_closed_costs_no_try() -> None:
    live = StandInEngine()
    live.hangs_up_on_reuse = True

    async def use(backends: Backends) -> None:
        found = await tokens(backends)
        # The kept connection is lost, then the fresh one breaks off, then it goes well.
        live.faults.append(Fault("hang_up"))
        assert await tokens(backends) == found
        assert backends.numbers.errors == {("live", "reused"): 1, ("live", "gone"): 1}
        assert backends.state("live").breaker == "closed"

    run({"live": live}, use)


def test_after_one_lost_connection_no_kept_one_is_used() -> None:
    live = StandInEngine()
    live.hangs_up_on_reuse = True

    async def use(backends: Backends) -> None:
        found, *_ = await asyncio.gather(*(tokens(backends) for _ in range(5)))
        assert live.connections >= 5
        assert await tokens(backends) == found
        assert backends.numbers.errors == {("live", "reused"): 1}

    run({"live": live}, use)


def test_who_is_refused_marks_the_instance_down() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        await live.stop()
        answers = [asyncio.create_task(text(backends)) for _ in range(3)]
        await until(lambda: backends.numbers.waiting == 3)
        assert backends.state("live").status == "down"
        await live.start()
        assert await asyncio.gather(*answers) == [TEXT] * 3
        assert backends.numbers.errors["live", "refused"] <= 3

    run({"live": live}, use)


def test_nothing_is_tried_again_after_the_first_byte() -> None:
    live = StandInEngine()
    received: list[Piece | Ending] = []

    async def use(backends: Backends) -> None:
        for kind in ("reset", "cut"):
            live.faults.append(Fault(kind, after=2))
            with pytest.raises(EngineGoneError) as caught:
                await text(backends, received=received)
            assert caught.value.began
        assert backends.numbers.errors["live", "cut"] == 2
        assert not backends.numbers.retries

    run({"live": live}, use)
    assert len(live.asked) == 2
    assert len(received) <= 4


def test_an_engine_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_PROBE_S", 0.1)
    live = StandInEngine(first_s=0.5)

    async def use(backends: Backends) -> None:
        assert await text(backends) == TEXT
        live.silent = True
        with pytest.raises(EngineStalledError):
            await text(backends)
        live.silent = False
        assert await text(backends) == TEXT

    run({"live": live}, use, limits=Limits(stall_s=0.2))


def test_errors_of_the_engine_pass_as_they_are() -> None:
    live = StandInEngine(context_tokens=1)

    async def use(backends: Backends) -> None:
        for _ in range(2 * FAILURES_TO_OPEN):
            with pytest.raises(EngineError, match="exceeds the available context size"):
                await text(backends)
        assert backends.numbers.errors == {("live", "client"): 2 * FAILURES_TO_OPEN}
        # Clients must not be able to take an engine from others.
        assert backends.state("live").breaker == "closed"

    run({"live": live}, use)


def test_who_leaves_ends_the_generation() -> None:
    live = StandInEngine(answer_tokens=1_000_000)

    async def use(backends: Backends) -> None:
        answer = asyncio.create_task(text(backends))
        await until(lambda: live.generating == 1)
        answer.cancel()
        await until(lambda: live.generating == 0)
        assert live.left_by_client == 1
        assert backends.numbers.running["live"] == 0

    run({"live": live}, use)


def test_who_leaves_while_waiting_gives_up_the_place() -> None:
    async def use(backends: Backends) -> None:
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.numbers.waiting == 1)
        answer.cancel()
        await until(lambda: backends.numbers.waiting == 0)

    run({"live": StandInEngine()}, use, stopped=("live",))


def test_512_wait_and_one_more_is_refused() -> None:
    live = StandInEngine(answer_tokens=1)

    async def use(backends: Backends) -> None:
        answers = [asyncio.create_task(text(backends)) for _ in range(512)]
        await until(lambda: backends.numbers.waiting == 512)
        with pytest.raises(ApiError) as caught:
            await text(backends)
        assert (caught.value.status, caught.value.text) == (503, SERVER_BUSY)
        await live.start()
        assert await asyncio.gather(*answers) == [" The"] * 512
        assert backends.numbers.rejected == 1
        assert backends.numbers.waiting == 0

    run({"live": live}, use, stopped=("live",))


def test_waiting_ends_with_ollamas_text() -> None:
    async def use(backends: Backends) -> None:
        with pytest.raises(ApiError) as caught:
            await text(backends)
        assert (caught.value.status, caught.value.text) == (503, SERVER_BUSY)
        assert backends.numbers.expired == 1

    run({"live": StandInEngine()}, use, stopped=("live",), limits=Limits(wait_s=0.2))


def test_an_engine_that_always_says_loading_is_not_asked_for_ever() -> None:
    live = StandInEngine()
    live.faults += [Fault("status")] * 1000

    async def use(backends: Backends) -> None:
        with pytest.raises(ApiError):
            await text(backends)

    run({"live": live}, use, limits=Limits(wait_s=0.5))
    assert len(live.asked) < 10


def test_close_sends_away_who_waits() -> None:
    async def use(backends: Backends) -> None:
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.numbers.waiting == 1)
        await backends.close()
        with pytest.raises(ApiError):
            await answer
        assert backends.numbers.expired == 0

    run({"live": StandInEngine()}, use, stopped=("live",))


def test_the_breaker_opens_waits_tries_and_closes() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        live.faults += [Fault("reset", after=1)] * FAILURES_TO_OPEN
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(EngineGoneError):
                await text(backends)
        assert backends.state("live").breaker == "open"
        assert backends.breaker_openings() == {"live": 1}
        answers = [asyncio.create_task(text(backends)) for _ in range(3)]
        await until(lambda: backends.numbers.waiting == 3)
        assert len(live.asked) == FAILURES_TO_OPEN
        assert await asyncio.gather(*answers) == [TEXT] * 3
        assert backends.state("live").breaker == "closed"

    run({"live": live}, use)


def test_a_try_that_its_client_left_makes_way_for_the_next() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        live.faults += [Fault("reset", after=1)] * FAILURES_TO_OPEN + [Fault("hang")]
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(EngineGoneError):
                await text(backends)
        trying = asyncio.create_task(text(backends))
        await until(lambda: len(live.asked) == FAILURES_TO_OPEN + 1)
        assert backends.state("live").breaker == "half-open"
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.numbers.waiting == 1)
        trying.cancel()
        assert await answer == TEXT

    run({"live": live}, use)


async def opened(backends: Backends, live: StandInEngine, *then: Fault) -> None:
    """With as many failures as it takes; the next request meets the first of `then`."""
    live.faults += [Fault("reset", after=1)] * FAILURES_TO_OPEN
    live.faults += then
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(EngineGoneError):
            await text(backends)
    assert backends.state("live").breaker == "open"


def test_a_timer_that_goes_off_early_leaves_nobody_waiting() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        await opened(backends, live)
        # As uvloop's do, if by less; asyncio's own are late by up to some milliseconds.
        breaker = backends._pool.members["live"].breaker
        breaker._clock = lambda: time.monotonic() - 0.008
        assert await text(backends) == TEXT

    run({"live": live}, use, limits=Limits(wait_s=4))


def test_a_try_that_hangs_makes_way_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attempts_module, breaker_module):
        monkeypatch.setattr(module, "TRY_S", 0.3)
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        await opened(backends, live, Fault("hang"))
        trying = asyncio.create_task(text(backends))
        await until(lambda: len(live.asked) == FAILURES_TO_OPEN + 1)
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.numbers.waiting == 1)
        assert await answer == TEXT
        assert not trying.done()
        assert backends.state("live").breaker == "closed"
        trying.cancel()

    run({"live": live}, use, limits=Limits(wait_s=8))


def test_a_restarted_engine_is_tried_though_the_breaker_is_open() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        live.faults += [Fault("reset", after=1)] * FAILURES_TO_OPEN
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(EngineGoneError):
                await text(backends)
        await live.stop()
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.state("live").status == "down")
        await live.start()
        await until(lambda: backends.state("live").status == "up")
        assert backends.state("live").breaker != "open"
        assert await answer == TEXT

    run({"live": live}, use)


def test_a_fallback_serves_while_its_instance_is_down_or_open() -> None:
    live, code = StandInEngine(), StandInEngine(pieces=("spare",), answer_tokens=1)

    async def use(backends: Backends) -> None:
        assert await text(backends) == "spare"
        assert backends.numbers.fallbacks == {("live", "code"): 1}
        await live.start()
        await until(lambda: backends.state("live").status == "up")
        assert await text(backends) == TEXT
        live.faults += [Fault("reset", after=1)] * FAILURES_TO_OPEN
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(EngineGoneError):
                await text(backends)
        assert await text(backends) == "spare"

    run({"live": live, "code": code}, use, stopped=("live",), fallbacks={"live": "code"})


def test_an_instance_that_loads_is_waited_for_though_it_has_a_fallback() -> None:
    live, code = StandInEngine(), StandInEngine()
    live.loading = True

    async def use(backends: Backends) -> None:
        answer = asyncio.create_task(text(backends))
        await until(lambda: backends.numbers.waiting == 1)
        live.loading = False
        assert await answer == TEXT
        assert not code.asked

    run({"live": live, "code": code}, use, fallbacks={"live": "code"})


def test_another_instance_of_the_model_serves_while_the_first_loads() -> None:
    """It is no fallback: both have the same model."""
    one, two = StandInEngine(), StandInEngine(pieces=("two",), answer_tokens=1)
    one.loading = True

    async def use(backends: Backends) -> None:
        target = asked_for("one", "two")
        assert await text(backends, target) == "two"
        assert not backends.numbers.fallbacks
        one.loading = False
        await until(lambda: backends.state("one").status == "up")
        assert await text(backends, target) == TEXT

    run({"one": one, "two": two}, use)


def test_an_engine_that_dies_under_a_request_hands_it_to_the_fallback() -> None:
    live, code = StandInEngine(), StandInEngine(pieces=("spare",), answer_tokens=1)
    live.faults.append(Fault("hang"))

    async def use(backends: Backends) -> None:
        answer = asyncio.create_task(text(backends))
        await until(lambda: len(live.asked) == 1)
        await live.stop()
        assert await answer == "spare"

    run({"live": live, "code": code}, use, fallbacks={"live": "code"})


def test_fallbacks_in_a_circle_end() -> None:
    async def use(backends: Backends) -> None:
        with pytest.raises(ApiError):
            await text(backends)

    run(
        {"live": StandInEngine(), "code": StandInEngine()},
        use,
        stopped=("live", "code"),
        fallbacks={"live": "code", "code": "live"},
        limits=Limits(wait_s=0.2),
    )


def test_a_model_that_nothing_serves_is_told_so() -> None:
    async def use(backends: Backends) -> None:
        target = Asked(asked_for().persona, ())
        with pytest.raises(ApiError, match="no instance serves model 'm:1'"):
            await text(backends, target)

    run({"live": StandInEngine()}, use)


def test_a_restart_under_load_fails_nothing_that_had_not_begun() -> None:
    live = StandInEngine(answer_tokens=3)

    async def use(backends: Backends) -> None:
        failed: list[EngineGoneError] = []
        done = 0

        async def one() -> None:
            nonlocal done
            try:
                await text(backends)
                done += 1
            except EngineGoneError as error:
                failed.append(error)

        tasks = []
        for number in range(120):
            tasks.append(asyncio.create_task(one()))
            if number in {30, 80}:
                await live.stop()
            if number in {40, 90}:
                live.loading = True
                await live.start()
            if number in {50, 100}:
                live.loading = False
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert done + len(failed) == 120
        assert all(error.began for error in failed)
        assert done >= 110

    run({"live": live}, use)


def test_an_answer_passed_through_is_closed_and_its_break_is_told() -> None:
    live = StandInEngine()
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'

    async def ask(engine: Engine) -> EngineAnswer:
        return await engine.open("/v1/chat/completions", body)

    async def use(backends: Backends) -> None:
        live.faults.append(Fault("hang_up"))
        async with backends.open(asked_for(), ask, loading=LoadClock()) as answer:
            assert backends.numbers.running["live"] == 1
            assert (await answer.whole()).endswith(b"data: [DONE]\n\n")
        assert backends.numbers.running["live"] == 0
        live.faults.append(Fault("reset", after=2))
        with pytest.raises(EngineGoneError) as caught:
            async with backends.open(asked_for(), ask, loading=LoadClock()) as answer:
                await answer.whole()
        assert caught.value.began
        assert backends.numbers.errors == {("live", "gone"): 1, ("live", "cut"): 1}
        live.faults.append(Fault("reset", after=0))
        firsts: list[bytes] = []

        async def ask_with_first(engine: Engine) -> EngineAnswer:
            answer = await ask(engine)
            firsts.append(await answer.read())
            return answer

        async with backends.open(asked_for(), ask_with_first, loading=LoadClock()) as answer:
            assert (firsts[0] + await answer.whole()).endswith(b"data: [DONE]\n\n")
        live.context_tokens = 0
        with pytest.raises(EngineError) as refused:
            async with backends.open(asked_for(), ask, loading=LoadClock()):
                pass
        assert refused.value.kind == "exceed_context_size_error"
        live.context_tokens, live.answer_tokens = 4096, 1_000_000
        async with backends.open(asked_for(), ask, loading=LoadClock()):
            await until(lambda: live.generating == 1)
        await until(lambda: live.generating == 0)
        assert backends.numbers.running["live"] == 0

    run({"live": live}, use)


# routers


def test_a_router_loads_what_is_asked_for_once() -> None:
    box = StandInEngine(router_models=["m:1", "n:1"], load_s=0.2)

    async def use(backends: Backends) -> None:
        target = asked_for("box")
        clock = LoadClock()
        answers = [asyncio.create_task(text(backends, target, clock=clock)) for _ in range(5)]
        await until(lambda: backends.numbers.waiting == 5)
        assert await asyncio.gather(*answers) == [TEXT] * 5
        assert clock.ns > 100_000_000
        loads = [one for one in box.asked if one.path == "/models/load"]
        assert [one.body["model"] for one in loads] == ["m:1"]
        (loaded,) = backends.loaded()
        assert (loaded.instance, loaded.model) == ("box", "m:1")
        assert loaded.expires_at is not None
        left_s = (loaded.expires_at - datetime.now(UTC)).total_seconds()
        assert 200 < left_s <= 300

    run({"box": box}, use)


def test_a_model_that_is_being_ended_is_not_said_to_stay() -> None:
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")

    async def use(backends: Backends) -> None:
        assert await text(backends, target) == TEXT
        (before,) = backends.loaded()
        backends.unload(target)
        assert before.expires_at is not None
        while loaded := backends.loaded():
            assert loaded[0].expires_at is not None
            assert loaded[0].expires_at < before.expires_at
            await asyncio.sleep(0)

    run({"box": box}, use)


def test_keep_alive_ends_a_model_after_its_last_request() -> None:
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")

    async def use(backends: Backends) -> None:
        assert await text(backends, target, keep_alive_ns=FOREVER_NS) == TEXT
        assert backends.loaded() == [Loaded("box", "m:1", None)]
        # Without a keep_alive of its own, a request leaves it as it is.
        assert await text(backends, target) == TEXT
        assert backends.loaded() == [Loaded("box", "m:1", None)]
        box.answer_tokens = 1_000_000
        long = asyncio.create_task(text(backends, target))
        await until(lambda: box.generating == 1)
        box.answer_tokens = 11
        assert await text(backends, target, keep_alive_ns=0) == TEXT
        await asyncio.sleep(0.05)
        assert box.models["m:1"] == "loaded"  # the long one still uses it
        long.cancel()
        await until(lambda: box.models["m:1"] == "unloaded")
        await until(lambda: backends.loaded() == [])

    run({"box": box}, use)


def test_ready_loads_and_unload_ends() -> None:
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")

    async def use(backends: Backends) -> None:
        engine = await backends.ready(target, loading=LoadClock())
        assert engine.instance.name == "box"
        assert engine.model == "m:1"
        assert [one.model for one in backends.loaded()] == ["m:1"]
        backends.unload(target)
        await until(lambda: box.models["m:1"] == "unloaded")
        assert await text(backends, target) == TEXT

    run({"box": box}, use)


def test_who_comes_while_a_model_is_being_ended_has_it_loaded_again() -> None:
    """And is not cut off by that end."""
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")

    async def use(backends: Backends) -> None:
        await text(backends, target)
        backends.unload(target)
        router = backends._pool.members["box"].router
        assert router is not None
        while not router._ends:
            await asyncio.sleep(0)
        assert await text(backends, target) == TEXT
        paths = [one.path for one in box.asked if one.path != "/models"]
        load, use_ = "/models/load", "/completion"
        assert paths == [load, use_, "/models/unload", load, use_]

    run({"box": box}, use)


def test_a_model_in_use_is_not_ended() -> None:
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")

    async def use(backends: Backends) -> None:
        assert await text(backends, target, keep_alive_ns=100_000_000) == TEXT
        box.answer_tokens = 1_000_000
        long = asyncio.create_task(text(backends, target))
        await until(lambda: box.generating == 1)
        await asyncio.sleep(0.2)
        assert box.models["m:1"] == "loaded"
        backends.unload(target)
        await asyncio.sleep(0.05)
        assert box.models["m:1"] == "loaded"
        long.cancel()
        await until(lambda: box.models["m:1"] == "unloaded")

    run({"box": box}, use)


def test_a_router_that_is_between_two_models_is_not_asked_for_ever() -> None:
    box = StandInEngine(router_models=["m:1"])
    target = asked_for("box")
    going = b'{"error":{"code":400,"message":"model name=m:1 is not running"}}'

    async def use(backends: Backends) -> None:
        await text(backends, target)
        box.faults += [Fault("status", status=400, body=going)] * 2
        assert await text(backends, target) == TEXT
        box.faults += [Fault("status", status=400, body=going)] * 1000
        with pytest.raises(ApiError):
            await text(backends, target)

    run({"box": box}, use, limits=Limits(wait_s=0.5))
    assert len(box.asked) < 30


def test_unload_leaves_a_dedicated_instance_alone() -> None:
    live = StandInEngine()

    async def use(backends: Backends) -> None:
        backends.unload(asked_for())
        assert await text(backends) == TEXT
        assert [one.path for one in live.asked] == ["/completion"]

    run({"live": live}, use)


def test_a_model_that_cannot_be_loaded_is_an_error() -> None:
    box = StandInEngine(router_models=["m:1"])
    box.fails_to_load = True

    async def use(backends: Backends) -> None:
        with pytest.raises(EngineError, match="could not load the model 'm:1'"):
            await text(backends, asked_for("box"))
        with pytest.raises(EngineError, match="does not know the model 'other'"):
            await text(backends, asked_for("box", model="other"))
        assert backends.numbers.running["box"] == 0
        assert backends.numbers.waiting == 0

    run({"box": box}, use)
