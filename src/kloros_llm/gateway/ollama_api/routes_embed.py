"""POST /api/embed and the older /api/embeddings."""

from __future__ import annotations

import time

from aiohttp import web

from ..engines.backends import LoadClock
from ..errors import ApiError
from ..front.access_log import RECORD, RequestRecord
from ..front.request_bodies import parsed_body
from ..front.services import SERVICES, Services
from ..generation.embedding import Embedder, Vectors, normalised, written
from ..generation.preparing import MODEL_REQUIRED, find
from ..models.catalogue import NOT_FOUND, NOT_FOUND_TRY_PULLING, Served
from .answer_lines import JSON
from .answering import told
from .api_requests import EmbeddingsRequest, EmbedRequest
from .go_values import encode
from .json_text import string
from .options import resolve


async def embed(request: web.Request) -> web.Response:
    """Vectors of length 1 for one text or several."""
    services, record = request.app[SERVICES], request[RECORD]
    asked = await parsed_body(request, EmbedRequest.parse)
    if not asked.model:
        raise ApiError(404, NOT_FOUND.format(name=""))
    texts = asked.inputs()
    served = find(services, record, asked.model, NOT_FOUND_TRY_PULLING)
    head = f'{{"model":{string(asked.model)},"embeddings":'
    embedder = embedder_of(services, served, asked)
    found = await vectors_of(record, embedder, texts, truncate=asked.truncate)
    if not texts:
        return _answer(f"{head}[]}}")
    rows = await written([normalised(vector, asked.dimensions) for vector in found.vectors])
    total_ns = round((time.perf_counter() - record.received) * 1e9)
    tokens = f',"prompt_eval_count":{found.prompt_tokens}' if found.prompt_tokens else ""
    return _answer(
        f'{head}[{",".join(rows)}],"total_duration":{total_ns},'
        f'"load_duration":{embedder.clock.ns}{tokens}}}'
    )


async def embeddings(request: web.Request) -> web.Response:
    """One text's vector, as the engine gives it."""
    services, record = request.app[SERVICES], request[RECORD]
    asked = await parsed_body(request, EmbeddingsRequest.parse)
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)
    served = find(services, record, asked.model, NOT_FOUND_TRY_PULLING)
    embedder = embedder_of(services, served, asked)
    texts = [asked.prompt] if asked.prompt else []
    try:
        found = await vectors_of(record, embedder, texts, truncate=False)
    except ApiError as error:
        # Whatever an engine says is a 500 here, with the older route.
        raise ApiError(error.status if error.status == 503 else 500, error.text) from error
    vector = found.vectors[0] if texts else []
    return _answer(f'{{"embedding":{encode(vector)}}}')


def embedder_of(
    services: Services, served: Served, asked: EmbedRequest | EmbeddingsRequest
) -> Embedder:
    """For what a request asks of a model. Raises ApiError for a wrong option."""
    options = resolve(served.persona.parameters, asked.options).options
    instance = services.config.instances[served.instances[0]]
    slot_tokens = instance.slot_tokens(served.persona.model.name)
    trained = services.catalogue.facts(served.persona.model).context_length
    context_tokens = options.context_tokens(slot_tokens)
    return Embedder(
        services.backends,
        served,
        LoadClock(),
        min(context_tokens, trained) if trained else context_tokens,
        asked.keep_alive_ns,
    )


async def vectors_of(
    record: RequestRecord, embedder: Embedder, texts: list[str], *, truncate: bool
) -> Vectors:
    """The vectors; for no text, the model is loaded. Raises ApiError."""
    with told(whole=False):
        if not texts:
            await embedder.backends.ready(
                embedder.served, loading=embedder.clock, keep_alive_ns=embedder.keep_alive_ns
            )
            return Vectors([], 0)
        found = await embedder.vectors(texts, truncate=truncate)
    record.ended(found.prompt_tokens, 0, 0.0)
    return found


def _answer(text: str) -> web.Response:
    return web.Response(body=text.encode(), headers={"Content-Type": JSON})
