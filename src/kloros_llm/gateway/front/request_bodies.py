"""A request's body, read whole and parsed without holding up the other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import web

# Parsing takes microseconds a kilobyte of text, and a thousand times as much of empty objects.
_AT_ONCE_BYTES = 32 << 10
# One thread: each more would be one more that the event loop waits for to get the interpreter.
_PARSER = ThreadPoolExecutor(1, "parser")

T = TypeVar("T")


async def parsed_body(request: web.Request, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of the body, in a thread where it is large. Raises as `parse` does."""
    raw = await request.read()
    if len(raw) <= _AT_ONCE_BYTES:
        return parse(raw)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse, raw)
