"""Requests that the engine answers itself, handed on: only the model's name is the client's."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aiohttp import web

from ..engines.backends import Backends, LoadClock
from ..engines.engine import Engine, EngineAnswer
from ..engines.engine_errors import EngineError, EngineGoneError
from ..errors import ApiError, error_body
from ..front.access_log import RECORD, RequestRecord
from ..front.chunk_writer import ChunkWriter
from ..models.catalogue import Served
from ..ollama_api.answering import told
from ..ollama_api.json_text import string

# A key cannot look so inside of a string, where its quotes are escaped.
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_REASONING = re.compile(rb'"reasoning_content"(?=\s*:)')
_EVENT_END = b"\n\n"
_TIMINGS_KEY = b'"timings"'
_TIMINGS = re.compile(rb'"timings"\s*:\s*(\{[^{}]*\})')

MakeBody = Callable[[str], bytes]


async def pass_on(
    request: web.Request,
    backends: Backends,
    served: Served,
    *,
    path: str,
    make_body: MakeBody,
    content_type: str = "application/json",
) -> web.StreamResponse:
    """Ask the engine at `path` and answer with what it says.

    `make_body` is given the name that the engine has for the model. Raises EngineError for what
    the engine refuses, ApiError for what fails otherwise before the first byte.
    """
    name = request[RECORD].model

    async def ask(engine: Engine) -> _Begun:
        body = make_body(engine.model or name)
        return await _begun(await engine.open(path, body, content_type))

    streamed = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    try:
        with told(refusals=False):
            async with backends.open(served, ask, loading=LoadClock()) as begun:
                if begun.more is not None:
                    request[RECORD].first_token()
                    await streamed.prepare(request)
                    write = ChunkWriter(request, streamed).write
                    last = begun.first
                    await write(_renamed(begun.first, name))
                    async for events in begun.more:
                        await write(_renamed(events, name))
                        if _TIMINGS_KEY in events:
                            last = events
                    await streamed.write_eof()
                    _count(request[RECORD], last)
                    return streamed
    except ApiError as error:
        if not streamed.prepared:
            raise
        await streamed.write(b"data: " + error_body("openai", 500, error.text).data + b"\n")
        await streamed.write_eof()
        return streamed
    _count(request[RECORD], begun.first)
    return web.Response(
        body=_renamed(begun.first, name), headers={"Content-Type": begun.answer.content_type}
    )


@dataclass(frozen=True)
class _Begun:
    """An answer of the engine: all of it, or its first event with `more` to come."""

    answer: EngineAnswer
    first: bytes
    more: AsyncIterator[bytes] | None = None

    def close(self) -> None:
        self.answer.close()


async def _begun(answer: EngineAnswer) -> _Begun:
    """Reads until something can be passed on. What is lost before is asked for again: an engine
    may send its headers long before its first token.
    """
    if answer.content_type != "text/event-stream":
        return _Begun(answer, await answer.whole())
    try:
        events = _whole_events(answer)
        first = await anext(events, None)
        if first is None:
            raise EngineGoneError("a stream without events", began=False)
        return _Begun(answer, first, events)
    except BaseException:
        answer.close()
        raise


async def _whole_events(answer: EngineAnswer) -> AsyncIterator[bytes]:
    """One or more events at a time, none of them in parts."""
    rest = b""
    while chunk := await answer.read():
        rest += chunk
        end = rest.rfind(_EVENT_END) + len(_EVENT_END)
        if end >= len(_EVENT_END):
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _renamed(answer: bytes, name: str) -> bytes:
    """The client's name for the model, and Ollama's for what it thought."""
    model = b'"model":' + string(name).encode()
    return _REASONING.sub(b'"reasoning"', _MODEL.sub(lambda _: model, answer))


def _count(record: RequestRecord, answer: bytes) -> None:
    """What it took, where llama-server says it, in its last event."""
    if found := _TIMINGS.findall(answer):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            said = json.loads(found[-1])
            prompt_tokens = said["cache_n"] + said["prompt_n"]
            record.ended(prompt_tokens, said["predicted_n"], said["predicted_ms"])


def is_too_long(error: EngineError) -> bool:
    """Whether a prompt was refused for its length."""
    return error.kind == "exceed_context_size_error"
