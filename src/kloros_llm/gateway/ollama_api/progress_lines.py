"""The answers of pull, push and create: a line a step, or the last one alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from ..errors import ApiError, error_line
from ..models.pulls import Line
from .json_text import compact


async def respond(
    request: web.Request, lines: AsyncGenerator[Line], *, stream: bool
) -> web.StreamResponse:
    """Send the lines. An error is a status before the first line, and the last line after it."""
    async with aclosing(lines):
        return await (_stream(request, lines) if stream else _last(lines))


async def _stream(request: web.Request, lines: AsyncGenerator[Line]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    try:
        async for line in lines:
            if not response.prepared:
                await response.prepare(request)
            await response.write(f"{compact(line)}\n".encode())
    except ApiError as error:
        if not response.prepared:
            return _refused(error)
        await response.write(error_line(error.text))
    await response.write_eof()
    return response


async def _last(lines: AsyncGenerator[Line]) -> web.StreamResponse:
    last: Line = {}
    try:
        async for line in lines:
            last = line
    except ApiError as error:
        return _refused(error)
    return _json(200, compact(last).encode())


def _refused(error: ApiError) -> web.Response:
    return _json(error.status, compact({"error": error.text}).encode())


def _json(status: int, body: bytes) -> web.Response:
    # Without a charset, which these routes of Ollama leave out.
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json"})
