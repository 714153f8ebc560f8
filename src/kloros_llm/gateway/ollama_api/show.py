"""The answer of /api/show."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.gguf_reader import GgufError
from ..errors import ApiError
from ..models.catalogue import Catalogue, details_of, shown_time
from ..models.model_facts import ModelFacts, read_all_info
from ..models.personas import Persona
from .api_requests import ShowRequest
from .go_values import encode
from .json_text import compact
from .modelfile import modelfile, parameters_table, shown_template

# A header with a whole vocabulary takes some hundred MiB for a moment.
_reading_all = asyncio.Semaphore(1)


async def show(catalogue: Catalogue, persona: Persona, request: ShowRequest) -> bytes:
    """The body. Raises ApiError 500 where `verbose` cannot be answered."""
    facts = catalogue.facts(persona.model)
    if request.system:
        persona = replace(persona, system=request.system)
    if not request.verbose:
        return _body(persona, facts, facts.model_info, request.options)

    def read() -> bytes:
        return _body(persona, facts, read_all_info(persona.model), request.options)

    async with _reading_all:
        try:
            return await asyncio.to_thread(read)
        except (OSError, GgufError) as error:
            raise ApiError(500, str(error)) from error


def _body(
    persona: Persona, facts: ModelFacts, info: Mapping[str, Any], options: Mapping[str, Any]
) -> bytes:
    tools = "tools" in persona.capabilities
    texts = {
        "license": "\n".join(persona.license),
        "modelfile": modelfile(persona, options),
        "parameters": parameters_table(persona.parameters),
        "template": shown_template(persona, tools=tools),
        "system": persona.system,
    }
    members = [_member(key, compact(text)) for key, text in texts.items() if text]
    members.append(_member("details", compact(details_of(persona, facts))))
    if persona.messages:
        messages = [
            {"role": one.get("role", ""), "content": one.get("content", "")}
            for one in persona.messages
        ]
        members.append(_member("messages", compact(messages)))
    members.append(_member("model_info", encode(info)))
    if facts.projector_info:
        members.append(_member("projector_info", encode(facts.projector_info)))
    if facts.tensors:
        tensors = [
            {"name": one.name, "type": one.type, "shape": one.shape} for one in facts.tensors
        ]
        members.append(_member("tensors", compact(tensors)))
    if persona.capabilities:
        members.append(_member("capabilities", compact(persona.capabilities)))
    members.append(_member("modified_at", compact(shown_time(persona.modified_at))))
    if persona.requires:
        members.append(_member("requires", compact(persona.requires)))
    return f"{{{','.join(members)}}}".encode()


def _member(key: str, value: str) -> str:
    return f'"{key}":{value}'
