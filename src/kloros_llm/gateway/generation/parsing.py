"""What a model's text is taken apart into: thinking, tool calls, answer."""

from __future__ import annotations

import secrets
import string as characters
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from ..engines.pieces import Ending, Piece, ToolCall
from ..errors import ApiError
from .thinking import ThinkingParser
from .tool_calls import ToolParser

_CALL_ID = characters.ascii_lowercase + characters.digits
# A model that says one thing so often in a row has lost its way; Ollama ends it there.
_REPEATS = 100


def call_id() -> str:
    """The id of a tool call, as Ollama makes them."""
    return "call_" + "".join(secrets.choice(_CALL_ID) for _ in range(8))


async def watched(
    items: AsyncIterator[Piece | Ending], top_logprobs: int
) -> AsyncGenerator[Piece | Ending]:
    """The same items; raises ApiError where the model repeats a token without end.

    The engine gives one alternative at least; for no `top_logprobs` it is left out.
    """
    last, repeats = "", 0
    async for item in items:
        if isinstance(item, Piece):
            text = (item.text or item.thinking).strip()
            if text == last:
                repeats += 1
                if repeats > _REPEATS:
                    raise ApiError(500, "prediction aborted, token repeat limit reached")
            else:
                last, repeats = text, 0
            if item.logprobs and not top_logprobs:
                yield replace(item, logprobs=tuple(map(_alone, item.logprobs)))
                continue
        yield item


def _alone(logprob: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in logprob.items() if name != "top_logprobs"}


async def parsed(
    items: AsyncIterator[Piece | Ending],
    thinking: ThinkingParser | None,
    tools: ToolParser | None,
) -> AsyncGenerator[Piece | Ending]:
    """Pieces of plain text, taken apart. What neither parser lets go yet, waits."""
    async for item in items:
        if isinstance(item, Ending):
            thought, text = thinking.rest() if thinking is not None else ("", "")
            calls: tuple[ToolCall, ...] = ()
            if tools is not None:
                text, calls = _calls_of(tools, text)
                text += tools.rest()
            if thought or text or calls:
                yield Piece(text, thought, calls)
            yield item
            return
        thought, text = thinking.add(item.text) if thinking is not None else ("", item.text)
        calls = ()
        if tools is not None and text:
            text, calls = _calls_of(tools, text)
        if thought or text or calls or item.logprobs:
            yield Piece(text, thought, calls, item.tokens, item.logprobs)


def _calls_of(tools: ToolParser, text: str) -> tuple[str, tuple[ToolCall, ...]]:
    calls, text = tools.add(text)
    return text, tuple(replace(call, id=call_id()) for call in calls)


async def with_tags(
    items: AsyncIterator[Piece | Ending], opening: str = "<think>", closing: str = "</think>"
) -> AsyncGenerator[Piece | Ending]:
    """Thinking put back into the text, for clients of the time before there was `think`."""
    inside = False
    async for item in items:
        if isinstance(item, Ending):
            if inside:
                yield Piece(closing)
            yield item
            return
        text = item.thinking
        if text and not inside:
            text, inside = f"{opening}\n{text}", True
        if inside and (item.text or item.tool_calls):
            text, inside = f"{text}\n{closing}\n\n", False
        yield replace(item, text=text + item.text, thinking="")
