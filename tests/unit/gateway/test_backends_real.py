"""Engine and Backends against real llama-servers, killed and restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kloros_llm.gateway.config import Config, Instance, Limits, Model
from kloros_llm.gateway.engines.backends import Backends, LoadClock
from kloros_llm.gateway.engines.engine import Engine
from kloros_llm.gateway.engines.engine_errors import EngineError, EngineGoneError
from kloros_llm.gateway.engines.pieces import Ending, Piece
from kloros_llm.gateway.models.personas import Persona
from tests.llama_server import BINARY, MODEL, needs_llama_server

pytestmark = needs_llama_server


@dataclass(frozen=True)
class Asked:
    persona: Persona
    instances: tuple[str, ...] = ("live",)


def asked_for(model: str = "smollm2:135m") -> Asked:
    return Asked(
        Persona(
            name=model,
            model=Model(model, MODEL),
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
    )


class RealServer:
    """One llama-server on a port of its own; started, killed and started again there."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self._folder = folder
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY, "--port", str(self.port), "--threads", "1", *self._arguments],
                env={"HOME": str(self._folder), "PATH": os.defpath},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def end(self) -> None:
        """Lets a router end its children too."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(30)


def run(
    server: RealServer, use: Callable[[Backends], Awaitable[None]], *, kind: Any = "dedicated"
) -> None:
    async def main() -> None:
        live = Instance(
            "live",
            f"http://127.0.0.1:{server.port}",
            kind=kind,
            model="smollm2:135m" if kind == "dedicated" else None,
        )
        config = Config(
            listeners=(),
            instances={"live": live},
            models={},
            personas={},
            models_dir=Path("/models"),
            state_dir=Path("/state"),
            limits=Limits(wait_s=60),
        )
        backends = Backends(config)
        await backends.start()
        try:
            await asyncio.wait_for(use(backends), 120)
        finally:
            await backends.close()
            server.end()

    asyncio.run(main())


@pytest.fixture
def server(tmp_path: Path) -> RealServer:
    return RealServer(tmp_path, "-m", str(MODEL), "-c", "1024", "-np", "1", "--no-webui")


async def items_of(
    backends: Backends,
    body: dict[str, Any],
    *,
    target: Asked | None = None,
    clock: LoadClock | None = None,
    **more: Any,
) -> list[Piece | Ending]:
    """By /completion or /v1/chat/completions, as the body is."""

    def start(engine: Engine) -> Any:
        return engine.chat(body) if "messages" in body else engine.completion(body)

    stream = backends.stream(target or asked_for(), start, loading=clock or LoadClock(), **more)
    async with aclosing(stream):
        return [item async for item in stream]


def text_of(items: list[Piece | Ending]) -> str:
    return "".join(item.text for item in items if isinstance(item, Piece))


SHORT = {"prompt": "Once upon a time", "n_predict": 4, "temperature": 0}
LONG = {"prompt": "Once upon a time", "n_predict": 900, "ignore_eos": True}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_waits_for_the_start_then_all_calls(server: RealServer) -> None:
    async def use(backends: Backends) -> None:
        clock = LoadClock()
        first = asyncio.create_task(items_of(backends, SHORT, clock=clock))
        await until(lambda: backends.numbers.waiting == 1)
        server.start()
        items = await first
        ending = items[-1]
        assert isinstance(ending, Ending)
        assert (ending.reason, ending.prompt_tokens, ending.completion_tokens) == ("length", 4, 4)
        assert ending.prompt_ms > 0
        assert ending.completion_ms > 0
        assert len(items) == 5
        assert clock.ns > 1_000_000
        # A warm prompt has the same number of tokens.
        again = (await items_of(backends, SHORT))[-1]
        assert isinstance(again, Ending)
        assert again.prompt_tokens == 4

        engine = await backends.ready(asked_for(), loading=LoadClock())
        emoji = "a 🌊 ü"
        tokens = await engine.tokenize(emoji)
        assert await engine.detokenize(tokens) == emoji
        prompt = await engine.apply_template({"messages": [{"role": "user", "content": "Hi"}]})
        assert prompt.endswith("<|im_start|>assistant\n")
        assert (await engine.props())["default_generation_settings"]["n_ctx"] == 1024
        with pytest.raises(EngineError, match="does not support embeddings") as caught:
            await engine.embed(["x"])
        assert caught.value.status == 501
        with pytest.raises(EngineError) as caught:
            await items_of(backends, {"prompt": "x " * 2000})
        assert caught.value.kind == "exceed_context_size_error"
        assert caught.value.context_tokens == 1024
        assert caught.value.prompt_tokens is not None

        # Characters of several tokens come whole.
        schema = {"const": emoji}
        spoken = await items_of(backends, {"prompt": "Say", "json_schema": schema})
        assert text_of(spoken) == f'"{emoji}"'

    run(server, use)


def test_chat_logprobs_and_tools(server: RealServer) -> None:
    server.start()

    async def use(backends: Backends) -> None:
        chat = {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 3,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 2,
        }
        items = await items_of(backends, chat)
        ending = items[-1]
        assert isinstance(ending, Ending)
        assert (ending.reason, ending.completion_tokens) == ("length", 3)
        assert ending.prompt_tokens > 20
        for piece in items[:-1]:
            assert isinstance(piece, Piece)
            (logprob,) = piece.logprobs
            assert logprob["token"] == piece.text
            assert bytes(logprob["bytes"]).decode() == piece.text
            assert list(logprob) == ["token", "logprob", "bytes", "top_logprobs"]
            assert len(logprob["top_logprobs"]) == 2
            assert list(logprob["top_logprobs"][0]) == ["token", "logprob", "bytes"]
        completion = {**SHORT, "n_probs": 1}
        (piece, *_) = await items_of(backends, completion)
        assert isinstance(piece, Piece)
        assert list(piece.logprobs[0]) == ["token", "logprob", "bytes", "top_logprobs"]

    run(server, use)


def test_who_leaves_frees_the_slot(server: RealServer) -> None:
    server.start()

    async def use(backends: Backends) -> None:
        async with aclosing(
            backends.stream(
                asked_for(), lambda engine: engine.completion(LONG), loading=LoadClock()
            )
        ) as items:
            await anext(items)
        # The one slot is free again: what waited for all 900 tokens would find the cache full.
        short = (await items_of(backends, SHORT))[-1]
        assert isinstance(short, Ending)
        slots = f"http://127.0.0.1:{server.port}/slots"
        async with aiohttp.ClientSession() as session, session.get(slots) as response:
            (slot,) = await response.json()
        assert slot["is_processing"] is False

    run(server, use)


def test_killed_amid_and_before_the_answer(server: RealServer) -> None:
    server.start()

    async def use(backends: Backends) -> None:
        began = asyncio.Event()

        async def long() -> None:
            stream = backends.stream(
                asked_for(), lambda engine: engine.completion(LONG), loading=LoadClock()
            )
            async for _item in stream:
                began.set()

        first = asyncio.create_task(long())
        await began.wait()
        # In llama-server's queue: its one slot is taken.
        queued = [asyncio.create_task(items_of(backends, SHORT)) for _ in range(5)]
        await until(lambda: backends.numbers.running["live"] == 6)
        await asyncio.sleep(0.1)
        server.kill()
        with pytest.raises(EngineGoneError) as caught:
            await first
        assert caught.value.began
        await until(lambda: backends.numbers.waiting == 5)
        await until(lambda: backends.state("live").status == "down")
        server.start()
        answers = await asyncio.gather(*queued)
        assert all(isinstance(items[-1], Ending) and text_of(items) for items in answers)
        assert backends.numbers.errors["live", "gone"] == 5

    run(server, use)


def test_restarts_under_load_fail_nothing_that_had_not_begun(server: RealServer) -> None:
    server.start()

    async def use(backends: Backends) -> None:
        await items_of(backends, SHORT)
        tasks: list[asyncio.Task[list[Piece | Ending]]] = []
        for _restart in range(2):
            for number in range(40):
                tasks.append(asyncio.create_task(items_of(backends, SHORT)))
                if number == 20:
                    server.kill()
                if number == 30:
                    server.start()
                await asyncio.sleep(0.05)
            # What two restarts hit is given up: it may be what ends the server.
            await asyncio.wait(tasks)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [one for one in outcomes if isinstance(one, BaseException)]
        assert all(isinstance(one, EngineGoneError) and one.began for one in failed)
        assert len(failed) <= 2

    run(server, use)


def test_connections_that_the_server_ends_are_not_noticed(server: RealServer) -> None:
    server.start()

    async def use(backends: Backends) -> None:
        # It closes a connection after its hundredth request.
        for _ in range(250):
            await backends.call(
                asked_for(), lambda engine: engine.tokenize("x"), loading=LoadClock()
            )
        assert backends.numbers.errors["live", "gone"] == 0

    run(server, use)


def test_a_router_swaps_models(tmp_path: Path) -> None:
    preset = tmp_path / "preset.ini"
    preset.write_text(
        # Names of sections as they are would be rewritten: two tags could become one.
        "version = 1\n[*]\nc = 256\nnp = 1\nthreads = 1\n"
        f"[m0]\nalias = smollm2:135m\nmodel = {MODEL}\n"
        f"[m1]\nalias = other:1b-q4_K_M\nmodel = {MODEL}\n"
        "[m2]\nalias = broken:1b\nmodel = /nowhere/x.gguf\n"
    )
    server = RealServer(tmp_path, "--models-preset", str(preset), "--models-max", "1", "--no-webui")
    server.start()

    async def use(backends: Backends) -> None:
        one, other = asked_for(), asked_for("other:1b-q4_K_M")
        clock = LoadClock()
        assert text_of(await items_of(backends, SHORT, target=one, clock=clock))
        assert clock.ns > 10_000_000
        assert [each.model for each in backends.loaded()] == ["smollm2:135m"]
        engine = await backends.ready(one, loading=LoadClock())
        assert (await engine.props())["default_generation_settings"]["n_ctx"] == 256
        assert await engine.tokenize("hi there")
        assert await engine.apply_template({"messages": [{"role": "user", "content": "Hi"}]})

        # Only one has a place; both are served, whoever comes when.
        answers = await asyncio.gather(
            *(items_of(backends, SHORT, target=target) for target in (other, one, other, one))
        )
        assert all(text_of(items) for items in answers)

        await items_of(backends, SHORT, target=other, keep_alive_ns=0)
        await until(lambda: backends.loaded() == [])
        assert text_of(await items_of(backends, SHORT, target=other))

        # The router's own words where the request waited in its line for a place.
        with pytest.raises(
            EngineError, match=r"could not load the model 'broken:1b'|failed to load"
        ):
            await items_of(backends, SHORT, target=asked_for("broken:1b"))
        with pytest.raises(EngineError, match="does not know the model 'unknown:1b'"):
            await items_of(backends, SHORT, target=asked_for("unknown:1b"))
        assert text_of(await items_of(backends, SHORT, target=one))

    run(server, use, kind="router")
