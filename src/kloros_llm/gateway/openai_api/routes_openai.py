"""OpenAI's API under /v1, and Anthropic's /v1/messages, as Ollama has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ..engines.engine_errors import EngineError
from ..errors import ApiError
from ..front.access_log import RECORD
from ..front.request_bodies import parsed_body
from ..front.services import SERVICES, Services
from ..generation.embedding import in_base64, normalised, written
from ..generation.preparing import (
    MODEL_REQUIRED,
    chat_generation,
    find,
    generate_generation,
    stored_messages,
)
from ..models.catalogue import NOT_FOUND_TRY_PULLING, Served
from ..ollama_api.answering import respond, told
from ..ollama_api.api_requests import ChatRequest
from ..ollama_api.json_text import string
from ..ollama_api.model_names import DEFAULT_NAMESPACE, parse_name
from ..ollama_api.options import resolve
from ..ollama_api.routes_embed import embedder_of, vectors_of
from .anthropic_messages import Messages, messages_request
from .openai_answers import JSON, ChatCompletion, TextCompletion
from .openai_requests import chat_fields, chat_request, embed_request, generate_request
from .passing import is_too_long, pass_on
from .responses_answer import Response
from .responses_requests import responses_request

_FORM_MODEL = re.compile(rb'(name="?model"?\r\n(?:[^\r\n]+\r\n)*\r\n)([^\r\n]*)(?=\r\n)')

# The limits are n_predict (llama-server would take them for others), and `stop` has the model's
# texts too. Ollama passes over `n`, of which llama-server takes no more than it has slots.
_NOT_PASSED = frozenset({"max_tokens", "max_completion_tokens", "stop", "n"})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """A conversation. Without a Go template the engine answers by itself."""
    services, record = request.app[SERVICES], request[RECORD]
    asked, usage = await parsed_body(request, chat_request)
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)
    served = find(services, record, asked.model)
    generation = chat_generation(services, record, served, asked)
    answer = ChatCompletion(asked.model, usage=usage)
    if served.persona.template is None:
        said = await parsed_body(request, chat_fields)
        fields = _engine_fields(services, served, asked, said)

        def body(model: str) -> bytes:
            return json.dumps({**fields, "model": model}).encode()

        try:
            return await pass_on(
                request,
                services.backends,
                served,
                path="/v1/chat/completions",
                make_body=body,
            )
        except EngineError as error:
            if not is_too_long(error):
                raise ApiError(error.status, error.message) from error
        # Ollama shortens what is too long; so the answer is made here after all.
    return await respond(request, generation, answer, stream=asked.stream)


def _engine_fields(
    services: Services, served: Served, asked: ChatRequest, said: Mapping[str, Any]
) -> dict[str, Any]:
    """What the client said, with what Ollama's defaults and the persona add to it."""
    persona = served.persona
    options = resolve(persona.parameters, asked.options).options
    instance = services.config.instances[served.instances[0]]
    slot_tokens = instance.slot_tokens(served.persona.model.name)
    parameters = options.engine_parameters(options.context_tokens(slot_tokens))
    given = {
        name: value for name, value in said.items() if value is not None and name not in _NOT_PASSED
    }
    messages = [
        {"role": message.role, "content": message.content} for message in stored_messages(persona)
    ]
    if persona.system and asked.messages[0].role != "system":
        messages.insert(0, {"role": "system", "content": persona.system})
    # llama-server answers with 500 where there is no role.
    messages += [{"role": "", **message} for message in said["messages"]]
    added: dict[str, Any] = {"messages": messages}
    if asked.think is not None:
        kwargs = given.get("chat_template_kwargs") or {}
        added["chat_template_kwargs"] = {"enable_thinking": bool(asked.think), **kwargs}
    return {**parameters, "cache_prompt": True, "reasoning_format": "deepseek", **given, **added}


async def completions(request: web.Request) -> web.StreamResponse:
    """A prompt, to which the model's template is applied."""
    services, record = request.app[SERVICES], request[RECORD]
    asked, usage = await parsed_body(request, generate_request)
    served = find(services, record, asked.model)
    with told():
        generation = await generate_generation(services, record, served, asked)
    answer = TextCompletion(asked.model, usage=usage)
    return await respond(request, generation, answer, stream=asked.stream)


async def responses(request: web.Request) -> web.StreamResponse:
    """OpenAI's newer conversation; nothing of it is kept."""
    services, record = request.app[SERVICES], request[RECORD]
    wanted = await parsed_body(request, responses_request)
    asked = wanted.chat
    if not asked.model:
        raise ApiError(400, MODEL_REQUIRED)
    served = find(services, record, asked.model)
    generation = chat_generation(services, record, served, asked)
    answer = Response(asked.model, wanted.echo)
    return await respond(request, generation, answer, stream=asked.stream)


async def messages(request: web.Request) -> web.StreamResponse:
    """Anthropic's conversation; a model that cannot think is not asked to."""
    services, record = request.app[SERVICES], request[RECORD]
    asked = await parsed_body(request, messages_request)
    served = find(services, record, asked.model)
    generation = chat_generation(services, record, served, asked, relax_thinking=True)
    return await respond(request, generation, Messages(asked.model), stream=asked.stream)


async def embeddings(request: web.Request) -> web.Response:
    """Vectors of length 1."""
    services, record = request.app[SERVICES], request[RECORD]
    asked, as_base64 = await parsed_body(request, embed_request)
    texts = asked.inputs()
    if not asked.model:
        raise ApiError(404, "model '' not found")
    served = find(services, record, asked.model, NOT_FOUND_TRY_PULLING)
    found = await vectors_of(record, embedder_of(services, served, asked), texts, truncate=True)
    vectors = [normalised(vector, asked.dimensions) for vector in found.vectors]
    if as_base64:
        rows = [f'"{in_base64(vector)}"' for vector in vectors]
    else:
        rows = await written(vectors)
    data = ",".join(
        f'{{"object":"embedding","embedding":{row},"index":{index}}}'
        for index, row in enumerate(rows)
    )
    usage = f'{{"prompt_tokens":{found.prompt_tokens},"total_tokens":{found.prompt_tokens}}}'
    return _json(
        f'{{"object":"list","data":[{data}],"model":{string(asked.model)},"usage":{usage}}}'
    )


async def models(request: web.Request) -> web.Response:
    """What the listener lists."""
    services = request.app[SERVICES]
    listed = (
        _model(served, served.persona.name) for served in services.catalogue.tags(services.listener)
    )
    data = ",".join(listed)
    return _json(f'{{"object":"list","data":{f"[{data}]" if data else "null"}}}')


async def model(request: web.Request) -> web.Response:
    """One of them, under the name that it was asked for by."""
    services, record = request.app[SERVICES], request[RECORD]
    name = request.match_info["model"]
    record.model = name
    served = services.catalogue.named(services.listener, name)
    return _json(_model(served, name))


def _model(served: Served, shown: str) -> str:
    name = parse_name(shown)
    owner = name.namespace if name else DEFAULT_NAMESPACE
    created = int(served.persona.modified_at.timestamp())
    return (
        f'{{"id":{string(shown)},"object":"model","created":{created},"owned_by":{string(owner)}}}'
    )


async def transcriptions(request: web.Request) -> web.StreamResponse:
    """A sound's text: the form goes to the engine as it is."""
    services, record = request.app[SERVICES], request[RECORD]
    raw = await request.read()
    field = _FORM_MODEL.search(raw)
    if field is None:
        raise ApiError(400, MODEL_REQUIRED)
    served = find(services, record, field[2].decode(errors="replace"))

    def body(model_name: str) -> bytes:
        return raw[: field.start(2)] + model_name.encode() + raw[field.end(2) :]

    try:
        return await pass_on(
            request,
            services.backends,
            served,
            path="/v1/audio/transcriptions",
            make_body=body,
            content_type=request.headers.get("Content-Type", ""),
        )
    except EngineError as error:
        raise ApiError(error.status, error.message) from error


def _json(text: str) -> web.Response:
    return web.Response(body=f"{text}\n".encode(), headers={"Content-Type": JSON})
