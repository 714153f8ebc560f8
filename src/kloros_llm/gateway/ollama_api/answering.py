"""A generation on its way to the client: as a stream, token by token, or as one object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from ..engines.attempts import SERVER_BUSY
from ..engines.engine_answers import INVALID_ANSWER
from ..engines.engine_errors import (
    EngineError,
    EngineGoneError,
    EngineLoadingError,
    EngineStalledError,
)
from ..engines.pieces import Ending, Piece
from ..errors import ApiError
from ..front.access_log import RECORD
from ..front.chunk_writer import ChunkWriter

# Ollama's text where its runner dies with an answer half given.
BROKEN_OFF = "an error was encountered while running the model: unexpected EOF"


@dataclass(frozen=True, slots=True)
class Totals:
    """What the last object says of the whole: durations in nanoseconds, prompt and answer."""

    reason: str
    total_ns: int = 0
    load_ns: int = 0
    prompt_tokens: int = 0
    prompt_ns: int = 0
    completion_tokens: int = 0
    completion_ns: int = 0
    context: Sequence[int] = ()


class Answer(Protocol):
    """How one API writes an answer. The texts of a stream are framed as they are sent."""

    stream_type: str
    whole_type: str

    def piece(self, piece: Piece) -> str:
        """One part of a stream; more will come."""

    def last(self, totals: Totals) -> str:
        """What ends a stream."""

    def whole(self, whole: Piece, totals: Totals) -> str:
        """The answer as one object."""

    def failed(self, text: str) -> str:
        """What ends a stream that has begun and cannot go on."""


class Running(Protocol):
    """A generation that has been prepared."""

    def pieces(self) -> AsyncGenerator[Piece | Ending]:
        """The answer; exactly one Ending, as the last. Each call makes it anew."""

    async def totals(self, ending: Ending) -> Totals:
        """The figures, once the answer is complete."""


async def respond(
    request: web.Request, running: Running, answer: Answer, *, stream: bool
) -> web.StreamResponse:
    """Send the answer. What fails before its first part is raised, as an ApiError."""
    if not stream:
        return await _whole(request, running, answer)
    async with aclosing(running.pieces()) as pieces:
        with told():
            first = await anext(pieces, None)
        if first is None:
            raise ApiError(500, BROKEN_OFF)
        if isinstance(first, Piece):
            request[RECORD].first_token()
        return await _stream(request, running, pieces, first, answer)


@contextmanager
def told(*, whole: bool = True, refusals: bool = True) -> Iterator[None]:
    """What an engine's failures are to a client that has been sent nothing yet: ApiErrors.

    `whole`: of a refusal Ollama hands on the engine's JSON as it is, as a text in its own; of
    one to make vectors only the message. Without `refusals` those stay EngineErrors.
    """
    try:
        yield
    except EngineError as error:
        if not refusals:
            raise
        refusal = bool(error.kind) and error.kind != INVALID_ANSWER
        status = error.status if refusal else 500
        text = error.body if whole and refusal and status < 500 else ""
        raise ApiError(status, text or error.message) from error
    except EngineLoadingError as error:
        raise ApiError(503, SERVER_BUSY) from error
    except EngineGoneError as error:
        raise ApiError(500, BROKEN_OFF) from error


async def _stream(
    request: web.Request,
    running: Running,
    pieces: AsyncGenerator[Piece | Ending],
    first: Piece | Ending,
    answer: Answer,
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": answer.stream_type})
    await response.prepare(request)
    write = ChunkWriter(request, response).write
    try:
        ending = await _send(pieces, first, answer, write)
    except ApiError as error:
        await write(answer.failed(error.text).encode())
    except EngineError as error:
        await write(answer.failed(error.message).encode())
    except (EngineGoneError, EngineLoadingError):
        await write(answer.failed(BROKEN_OFF).encode())
    else:
        if ending is None:  # closed without an ending: not an answer
            await write(answer.failed(BROKEN_OFF).encode())
        else:
            _count(request, ending)
            totals = await running.totals(ending)
            await write(answer.last(totals).encode())
    await response.write_eof()
    return response


async def _send(
    pieces: AsyncGenerator[Piece | Ending],
    first: Piece | Ending,
    answer: Answer,
    write: Callable[[bytes], Awaitable[None]],
) -> Ending | None:
    """Writes the parts. Returns the Ending, if there is one."""
    if isinstance(first, Ending):
        return first
    if text := answer.piece(first):
        await write(text.encode())
    async for item in pieces:
        if isinstance(item, Ending):
            return item
        if text := answer.piece(item):
            await write(text.encode())
    return None


async def _whole(request: web.Request, running: Running, answer: Answer) -> web.Response:
    with told():
        try:
            parts, ending = await _collected(request, running)
        except EngineGoneError as error:
            if not error.began or isinstance(error, EngineStalledError):
                raise
            # Its client has been sent nothing yet: the answer is made anew, once.
            parts, ending = await _collected(request, running)
    _count(request, ending)
    whole = Piece(
        text="".join(part.text for part in parts),
        thinking="".join(part.thinking for part in parts),
        tool_calls=tuple(call for part in parts for call in part.tool_calls),
        logprobs=tuple(one for part in parts for one in part.logprobs),
    )
    totals = await running.totals(ending)
    return web.Response(
        body=answer.whole(whole, totals).encode(), headers={"Content-Type": answer.whole_type}
    )


async def _collected(request: web.Request, running: Running) -> tuple[list[Piece], Ending]:
    parts: list[Piece] = []
    async with aclosing(running.pieces()) as pieces:
        async for item in pieces:
            if isinstance(item, Ending):
                return parts, item
            if not parts:
                request[RECORD].first_token()
            parts.append(item)
    raise ApiError(500, BROKEN_OFF)


def _count(request: web.Request, ending: Ending) -> None:
    request[RECORD].ended(ending.prompt_tokens, ending.completion_tokens, ending.completion_ms)
