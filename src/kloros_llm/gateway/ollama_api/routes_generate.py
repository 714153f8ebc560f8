"""POST /api/generate and /api/chat."""

from __future__ import annotations

from aiohttp import web

from ..engines.pieces import Piece
from ..errors import ApiError
from ..front.access_log import RECORD
from ..front.request_bodies import parsed_body
from ..front.services import SERVICES
from ..generation.preparing import (
    MODEL_REQUIRED,
    chat_generation,
    find,
    generate_generation,
)
from .answer_lines import JSON, ChatAnswer, GenerateAnswer
from .answering import Totals, respond, told
from .api_requests import ChatRequest, GenerateRequest


async def generate(request: web.Request) -> web.StreamResponse:
    """A prompt's continuation; without a prompt, a load or an unload."""
    services, record = request.app[SERVICES], request[RECORD]
    asked = await parsed_body(request, GenerateRequest.parse)
    served = find(services, record, asked.model)
    answer = GenerateAnswer(asked.model)
    if not asked.prompt and asked.unloads:
        services.backends.unload(served)
        return _whole(answer.whole(Piece(), Totals("unload")))
    with told():
        generation = await generate_generation(services, record, served, asked)
        if not asked.prompt:
            await generation.load()
            return _whole(answer.whole(Piece(), Totals("load")))
        if asked.debug_render_only:
            return _whole(answer.rendered(await generation.rendered(), len(asked.images)))
    return await respond(request, generation, answer, stream=asked.stream)


async def chat(request: web.Request) -> web.StreamResponse:
    """A conversation's next message; without messages, a load or an unload."""
    services, record = request.app[SERVICES], request[RECORD]
    asked = await parsed_body(request, ChatRequest.parse)
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)
    served = find(services, record, asked.model)
    answer = ChatAnswer(asked.model)
    if not asked.messages and asked.unloads:
        services.backends.unload(served)
        return _whole(answer.whole(Piece(), Totals("unload")))
    generation = chat_generation(services, record, served, asked)
    with told():
        if not asked.messages:
            await generation.load()
            return _whole(answer.whole(Piece(), Totals("load")))
        if asked.debug_render_only:
            images = sum(len(message.images) for message in asked.messages)
            return _whole(answer.rendered(await generation.rendered(), images))
    return await respond(request, generation, answer, stream=asked.stream)


def _whole(text: str) -> web.Response:
    return web.Response(body=text.encode(), headers={"Content-Type": JSON})
