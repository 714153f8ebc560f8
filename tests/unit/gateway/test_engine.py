"""Engine against a stand-in that answers as llama-server does, and as it never does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from kloros_llm.gateway.config import Instance, Limits
from kloros_llm.gateway.engines.engine import Embeddings, Engine
from kloros_llm.gateway.engines.engine_answers import INVALID_ANSWER, ChatAnswer, failure
from kloros_llm.gateway.engines.engine_errors import (
    EngineError,
    EngineGoneError,
    EngineLoadingError,
    EngineRefusedError,
    EngineStalledError,
)
from kloros_llm.gateway.engines.engine_pool import new_session
from kloros_llm.gateway.engines.pieces import Ending, Piece, ToolCall
from tests.stand_in_engine import Fault, StandInEngine


@asynccontextmanager
async def engine_at(
    url: str, *, limits: Limits | None = None, **more: Any
) -> AsyncIterator[Engine]:
    kept = new_session(limits or Limits(), reuse=True)
    fresh = new_session(limits or Limits(), reuse=False)
    async with kept, fresh:
        yield Engine(Instance("live", url), kept, fresh, **more)


def with_engine(
    stand_in: StandInEngine, use: Callable[[Engine], Awaitable[Any]], **more: Any
) -> Any:
    async def run() -> Any:
        async with stand_in, engine_at(stand_in.url, **more) as engine:
            return await use(engine)

    return asyncio.run(run())


async def everything(items: AsyncIterator[Piece | Ending]) -> list[Piece | Ending]:
    return [item async for item in items]


def text_of(items: list[Piece | Ending]) -> str:
    return "".join(item.text for item in items if isinstance(item, Piece))


PROMPT = {"prompt": "a b c d"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_completion_gives_a_piece_a_token_and_the_ending() -> None:
    stand_in = StandInEngine(pieces=(" blåe", " 🌊"), answer_tokens=4)
    items = with_engine(stand_in, lambda engine: everything(engine.completion(PROMPT)))
    assert [item.text for item in items[:-1]] == [" blåe", " 🌊", " blåe", " 🌊"]
    assert all(len(item.tokens) == 1 for item in items[:-1])
    # Half of the four prompt tokens were in the cache.
    assert items[-1] == Ending("stop", 4, 12.5, 4, 40.0)
    (asked,) = stand_in.asked
    assert asked.body["stream"] is True


def test_a_limit_is_the_reason_length() -> None:
    for use in (
        lambda engine: everything(engine.completion({**PROMPT, "n_predict": 2})),
        lambda engine: everything(engine.chat({**CHAT, "max_tokens": 2})),
    ):
        items = with_engine(StandInEngine(), use)
        assert items[-1].reason == "length"
        assert items[-1].completion_tokens == 2


def test_logprobs_are_ollamas_objects() -> None:
    one = {"token": " sea", "logprob": -0.25, "bytes": [32, 115, 101, 97]}
    other = {"token": "x", "logprob": -2.5, "bytes": [120]}
    expected = ({**one, "top_logprobs": [one, other]},)
    for use in (
        lambda engine: everything(engine.completion({**PROMPT, "n_probs": 2})),
        lambda engine: everything(engine.chat({**CHAT, "logprobs": True, "top_logprobs": 2})),
    ):
        items = with_engine(StandInEngine(pieces=(" sea",), answer_tokens=1), use)
        assert items[0].logprobs == expected


def test_chat_joins_what_comes_in_parts() -> None:
    stand_in = StandInEngine(pieces=("Hi",), answer_tokens=1)
    stand_in.thinking = ("Let", " me")
    stand_in.tool_calls = (("weather", '{"city":"Paris"}'), ("clock", "{}"))
    items = with_engine(stand_in, lambda engine: everything(engine.chat(CHAT)))
    assert items == [
        Piece(thinking="Let"),
        Piece(thinking=" me"),
        Piece("Hi"),
        Piece(tool_calls=(ToolCall("weather", {"city": "Paris"}, "id0"),)),
        Piece(tool_calls=(ToolCall("clock", {}, "id1"),)),
        Ending("stop", 4, 12.5, 1, 10.0),
    ]


def test_a_call_that_the_limit_cut_is_dropped_and_a_broken_one_is_an_error() -> None:
    def read(reason: str) -> list[Piece]:
        answer = ChatAnswer()
        part = {"index": 0, "id": "x", "function": {"name": "w", "arguments": '{"ci'}}
        pieces: list[Piece] = []
        for choice in (
            {"delta": {"tool_calls": [part]}, "finish_reason": None},
            {"delta": {}, "finish_reason": reason},
        ):
            pieces += answer.read(json.dumps({"choices": [choice]}).encode())
        return pieces

    assert read("length") == []
    with pytest.raises(EngineError, match="arguments of the model's call of 'w'"):
        read("tool_calls")


@pytest.mark.parametrize(
    "text", ["a", "", '\\"}}],"created":', "\U0001f30a\n\x00", "\ud800", "blå"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(
    "more", [{}, {"reasoning_content": "so"}, {"tool_calls": [{"index": 0, "id": "x"}]}]
)
def test_a_tokens_text_is_the_same_in_every_form_of_its_event(
    text: str, ascii_only: bool, in_order: bool, more: dict[str, Any]
) -> None:
    if text == "\ud800" and not ascii_only:
        pytest.skip("has no UTF-8")
    choice = {"finish_reason": None, "index": 0, "delta": {"content": text, **more}}
    event = {"choices": [choice], "created": 1, "id": "x"}
    if not in_order:
        event = dict(reversed(event.items()))
    raw = json.dumps(event, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    pieces = ChatAnswer().read(raw)
    thinking = more.get("reasoning_content", "")
    assert pieces == ([Piece(text, thinking)] if text or thinking else []) or pieces == (
        Piece(text),
    )


@pytest.mark.parametrize("delta", [b'"\xff"}}],"created":1}', b'"a"}}],"created":1', b'"a'])
def test_a_chat_event_that_is_cut_or_no_text(delta: bytes) -> None:
    before = b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":'
    with pytest.raises(EngineError) as caught:
        ChatAnswer().read(before + delta)
    assert caught.value.kind == INVALID_ANSWER


def test_a_call_is_told_when_the_next_begins() -> None:
    answer = ChatAnswer()

    def read(index: int) -> list[str]:
        part = {"index": index, "function": {"name": f"f{index}", "arguments": "{}"}}
        choice = {"delta": {"tool_calls": [part]}, "finish_reason": None}
        pieces = answer.read(json.dumps({"choices": [choice]}).encode())
        return [call.name for piece in pieces for call in piece.tool_calls]

    assert [read(0), read(1), read(2)] == [[], ["f0"], ["f1"]]


def test_calls_share_a_connection_and_streams_take_their_own() -> None:
    stand_in = StandInEngine()

    async def use(engine: Engine) -> None:
        for _ in range(3):
            await engine.tokenize("x")
        assert stand_in.connections == 1
        await engine.on_fresh_connection().tokenize("x")
        assert stand_in.connections == 2
        # llama-server closes after a stream: to use it again would be a race.
        await everything(engine.completion(PROMPT))
        await everything(engine.chat(CHAT))
        await engine.tokenize("x")
        assert stand_in.connections == 4
        assert stand_in.left_by_client == 0

    with_engine(stand_in, use)


def test_leaving_early_closes_the_connection() -> None:
    stand_in = StandInEngine(answer_tokens=1_000_000)

    async def leave(engine: Engine) -> None:
        async with aclosing(engine.completion(PROMPT)) as items:
            await anext(items)
        while stand_in.generating:
            await asyncio.sleep(0.001)
        assert stand_in.left_by_client == 1

    with_engine(stand_in, leave)


@pytest.mark.parametrize("api", ["completion", "chat"])
@pytest.mark.parametrize(
    ("fault", "kind", "began"),
    [
        (Fault("reset", after=3), EngineGoneError, True),
        (Fault("cut", after=3), EngineGoneError, True),
        (Fault("reset", after=0), EngineGoneError, False),
        (Fault("cut", after=0), EngineGoneError, False),
        (Fault("hang_up"), EngineGoneError, False),
        (Fault("stall", after=3), EngineStalledError, True),
        (Fault("hang"), EngineStalledError, False),
    ],
)
def test_what_breaks_off_tells_whether_it_had_begun(
    api: str, fault: Fault, kind: type[EngineGoneError], began: bool
) -> None:
    stand_in = StandInEngine()
    stand_in.faults.append(fault)
    received: list[Piece | Ending] = []

    async def use(engine: Engine) -> None:
        items = engine.completion(PROMPT) if api == "completion" else engine.chat(CHAT)
        async for item in items:
            received.append(item)

    with pytest.raises(EngineGoneError) as caught:
        with_engine(stand_in, use, limits=Limits(stall_s=0.2))
    assert type(caught.value) is kind
    assert caught.value.began is began
    assert bool(received) is began
    assert not any(isinstance(item, Ending) for item in received)


def test_what_takes_long_to_begin_is_waited_for_while_probes_are_answered() -> None:
    """A long prompt, a long answer in one piece, or many in line: no byte comes for as long."""
    stand_in = StandInEngine(first_s=0.6)
    stream = json.dumps({**CHAT, "stream": True}).encode()

    async def opened(engine: Engine, body: bytes) -> bytes:
        return await (await engine.open("/v1/chat/completions", body)).whole()

    async def use(engine: Engine) -> None:
        asks: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: everything(engine.completion(PROMPT)),
            lambda: opened(engine, json.dumps(CHAT).encode()),
            lambda: opened(engine, stream),
        )
        for ask in asks:
            with pytest.raises(EngineStalledError):
                await ask()
        assert await engine.health() == "ok"
        for ask in asks:
            assert await ask()
        stand_in.silent = True
        with pytest.raises(EngineStalledError):
            await engine.health()
        for ask in asks:
            with pytest.raises(EngineStalledError):
                await ask()

    with_engine(stand_in, use, limits=Limits(stall_s=0.2))


def test_a_connection_that_is_closed_on_reuse_says_so() -> None:
    stand_in = StandInEngine()
    stand_in.hangs_up_on_reuse = True

    async def use(engine: Engine) -> None:
        await engine.tokenize("x")
        with pytest.raises(EngineGoneError) as caught:
            await engine.tokenize("x")
        assert caught.value.reused
        assert not caught.value.began

    with_engine(stand_in, use)


@pytest.mark.parametrize("api", ["completion", "chat"])
@pytest.mark.parametrize("garbage", [b"data: {broken", b"data: 17", b'data: {"hello":1}'])
def test_garbage_in_the_stream_is_an_error_not_an_end(api: str, garbage: bytes) -> None:
    stand_in = StandInEngine()
    stand_in.faults.append(Fault("garbage", after=3, body=garbage))

    async def use(engine: Engine) -> None:
        await everything(engine.completion(PROMPT) if api == "completion" else engine.chat(CHAT))

    with pytest.raises(EngineError, match="none of llama-server") as caught:
        with_engine(stand_in, use)
    assert caught.value.kind == INVALID_ANSWER


def test_comments_between_events_are_dropped() -> None:
    stand_in = StandInEngine(pieces=("a",), answer_tokens=2)
    stand_in.pings = True
    stand_in.faults.append(Fault("garbage", after=1, body=b":"))
    assert text_of(with_engine(stand_in, lambda e: everything(e.completion(PROMPT)))) == "aa"


def test_an_error_in_the_stream_keeps_its_words() -> None:
    stand_in = StandInEngine()
    stand_in.faults.append(Fault("error_event", after=2))
    with pytest.raises(EngineError, match="it broke") as caught:
        with_engine(stand_in, lambda engine: everything(engine.completion(PROMPT)))
    assert (caught.value.status, caught.value.kind) == (500, "server_error")


def test_a_prompt_too_long_states_its_length() -> None:
    with pytest.raises(EngineError) as caught:
        with_engine(StandInEngine(context_tokens=3), lambda e: everything(e.completion(PROMPT)))
    error = caught.value
    assert (error.status, error.kind) == (400, "exceed_context_size_error")
    assert (error.prompt_tokens, error.context_tokens) == (4, 3)
    assert json.loads(error.body)["error"]["message"] == error.message


def test_loading_and_refused() -> None:
    stand_in = StandInEngine()
    stand_in.loading = True

    async def use(engine: Engine) -> None:
        assert await engine.health() == "loading"
        with pytest.raises(EngineLoadingError):
            await everything(engine.completion(PROMPT))
        with pytest.raises(EngineLoadingError):
            await engine.open("/v1/completions", b"{}")
        await stand_in.stop()
        for ask in (engine.health(), everything(engine.chat(CHAT)), engine.tokenize("x")):
            with pytest.raises(EngineRefusedError):
                await ask
        stand_in.loading = False
        await stand_in.start()
        assert await engine.health() == "ok"

    with_engine(stand_in, use)


def test_calls() -> None:
    stand_in = StandInEngine(context_tokens=2048)

    async def use(engine: Engine) -> None:
        tokens = await engine.tokenize("the blåe 🌊")
        assert len(tokens) == 3
        assert await engine.detokenize(tokens) == "the blåe 🌊"
        assert (await engine.apply_template(CHAT)).startswith("<|im_start|>user\nhi<|im_end|>")
        assert (await engine.props())["default_generation_settings"]["n_ctx"] == 2048
        found = await engine.embed(["one", "one two"])
        assert isinstance(found, Embeddings)
        assert found.prompt_tokens == 3
        assert [len(vector) for vector in found.vectors] == [8, 8]
        assert sum(one * one for one in found.vectors[1]) == pytest.approx(1)

    with_engine(stand_in, use)
    assert stand_in.asked[0].body["add_special"] is True


def test_a_refusal_to_embed_is_llama_servers() -> None:
    with pytest.raises(EngineError, match="This server does not support embeddings") as caught:
        with_engine(StandInEngine(embeddings=False), lambda engine: engine.embed(["x"]))
    assert caught.value.status == 501


def test_the_api_key_goes_by_header_and_nothing_else_does() -> None:
    stand_in = StandInEngine(api_key="secret")

    async def use(engine: Engine) -> None:
        await engine.tokenize("x")
        body = json.dumps(PROMPT).encode()
        answer = await engine.open("/v1/completions", body, "application/json; charset=utf-8")
        assert "content" in json.loads(await answer.whole())

    with_engine(stand_in, use, api_key="secret")
    headers = dict(stand_in.asked[-1].headers)
    assert headers.pop("host").startswith("127.0.0.1:")
    assert headers.pop("content-length").isdigit()
    assert headers == {
        "accept": "*/*",
        "authorization": "Bearer secret",
        "connection": "close",
        "content-type": "application/json; charset=utf-8",
    }
    # The gateway's fault, not its client's: no 401, which would have him doubt his own key.
    for ask in (
        lambda engine: engine.tokenize("x"),
        lambda engine: everything(engine.completion(PROMPT)),
    ):
        with pytest.raises(EngineError, match="api_key_file") as caught:
            with_engine(stand_in, ask)
        assert caught.value.status == 500


def test_a_router_is_told_the_model() -> None:
    stand_in = StandInEngine(router_models=["a:1"])

    async def use(engine: Engine) -> None:
        assert (await engine.models())["a:1"]["value"] == "unloaded"
        await engine.load()
        await everything(engine.completion(PROMPT))
        assert (await engine.models())["a:1"]["value"] == "loaded"
        await engine.unload()
        assert (await engine.models())["a:1"]["value"] == "unloaded"

    with_engine(stand_in, use, model="a:1")
    assert all(asked.body["model"] == "a:1" for asked in stand_in.asked if asked.body)


def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert with_engine(StandInEngine(), lambda engine: engine.health()) == "ok"


@pytest.mark.parametrize(
    ("status", "raw", "kind"),
    [
        (500, b"proxy error: Failed to read connection", EngineGoneError),
        (400, b'{"error":{"message":"model name=x is not running"}}', EngineLoadingError),
        (503, b"", EngineLoadingError),
        (503, b"<html>", EngineLoadingError),
        (500, b"<html>", EngineError),
        (500, b'{"error":"text"}', EngineError),
        (404, b"[]", EngineError),
        (400, b"\xff", EngineError),
    ],
)
def test_errors_of_every_shape(status: int, raw: bytes, kind: type[Exception]) -> None:
    assert type(failure(status, raw)) is kind


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
@pytest.mark.parametrize("said", [b"<html>", b'{"data":["x"]}', b"[" * 200_000])
def test_a_page_instead_of_a_stream(kind: str, said: bytes) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=said, content_type=kind)

    async def run() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", page)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with engine_at(f"http://127.0.0.1:{runner.addresses[0][1]}") as engine:
                with pytest.raises(EngineError) as caught:
                    await everything(engine.completion(PROMPT))
                assert caught.value.kind == INVALID_ANSWER
                with pytest.raises(EngineError):
                    await engine.models()
                with pytest.raises(EngineError):
                    await engine.tokenize("x")
                with pytest.raises(EngineError):
                    await engine.embed(["x"])
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_what_is_no_http() -> None:
    async def shout(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(shout, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, engine_at(f"http://127.0.0.1:{port}") as engine:
            with pytest.raises(EngineError) as caught:
                await everything(engine.completion(PROMPT))
            assert caught.value.kind == INVALID_ANSWER

    asyncio.run(run())
