"""From a request of /api/generate or /api/chat to a generation, checked in Ollama's order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ..errors import ApiError
from ..front.access_log import RequestRecord
from ..front.services import Services
from ..go_text import quote
from ..models.capabilities import renders_itself
from ..models.catalogue import NOT_FOUND, Served
from ..models.personas import Persona
from ..ollama_api.api_requests import ChatRequest, GenerateRequest
from ..ollama_api.api_tools import Message
from ..ollama_api.model_names import parse_name
from ..ollama_api.options import resolve
from .conversation import Conversation
from .engine_chat import EngineChat
from .generation import Completion, Generation, Settings
from .sources import THINK_TAGS, TemplateSource, TextSource, template_of

RAW_AND_MORE = "raw mode does not support template, system, or context"
MODEL_REQUIRED = "model is required"

AnyGeneration: TypeAlias = Completion | EngineChat

_log = logging.getLogger(__name__)


def find(services: Services, record: RequestRecord, name: str, missing: str = NOT_FOUND) -> Served:
    """What `name` means here; the record learns it. Raises ApiError."""
    record.model = name
    served = services.catalogue.find(services.listener, name, missing)
    record.served = served.persona.name
    return served


def chat_generation(
    services: Services,
    record: RequestRecord,
    served: Served,
    asked: ChatRequest,
    *,
    relax_thinking: bool = False,
) -> AnyGeneration:
    """A conversation. `relax_thinking`: a model that cannot think is not asked to."""
    persona = served.persona
    think, inline = _think(services, persona, asked, relax=relax_thinking)
    _check(persona, asked.model, "chat", ["tools"] if asked.tools else [])
    settings = _settings(services, record, served, asked)
    messages = (*stored_messages(persona), *asked.messages)
    if persona.system and (not asked.messages or asked.messages[0].role != "system"):
        messages = (Message("system", persona.system), *messages)
    conversation = Conversation(messages, asked.tools, think)
    name = parse_name(persona.name)
    family = services.catalogue.facts(persona.model).family
    if family == "qwen3" or (name and name.model == "deepseek-r1"):
        conversation = conversation.without_old_thinking()
    template = _go_template(services, persona)
    if template is None:
        return EngineChat(services.backends, settings, conversation, inline=inline)
    source = TemplateSource(template, conversation, inline=inline)
    return Completion(services.backends, settings, source)


def _go_template(services: Services, persona: Persona) -> str | None:
    """The Go template that makes a persona's prompts; None: the model's own template does."""
    facts = services.catalogue.facts(persona.model)
    return None if renders_itself(facts, persona.template) else persona.template


async def generate_generation(
    services: Services, record: RequestRecord, served: Served, asked: GenerateRequest
) -> AnyGeneration:
    """A prompt: as it is, or as the last message of a conversation."""
    persona = served.persona
    if asked.raw and (asked.template or asked.system or asked.context):
        raise ApiError(400, RAW_AND_MORE)
    think, inline = _think(services, persona, asked)
    _check(persona, asked.model, "generate", ["insert"] if asked.suffix else [])
    settings = _settings(services, record, served, asked)
    backends = services.backends
    thinks = bool(think) and not inline
    own = _go_template(services, persona)
    if asked.raw:
        # Ollama tells thinking apart here as well, by the model's template.
        tags = template_of(own).thinking_tags if own else None
        raw = TextSource(asked.prompt, asked.images, tags=tags if thinks else None)
        return Completion(backends, settings, raw)
    messages = _generate_messages(persona, asked)
    conversation = Conversation(messages, (), think)
    if own is None and not asked.template:
        chat = EngineChat(backends, settings, conversation, inline=inline, wants_context=True)
        if not asked.context or not asked.prompt:
            return chat
        before = await chat.detokenize(asked.context)
        text = before + await chat.rendered()
        source = TextSource(text, asked.images, tags=THINK_TAGS if thinks else None)
        return Completion(backends, settings, source, wants_context=True)
    before = ""
    if asked.template:
        # A long one takes long to read; what was read is kept, and found again.
        await asyncio.to_thread(template_of, asked.template)
    if asked.context and asked.prompt:
        before = await Generation(backends, settings).detokenize(asked.context)
    template = TemplateSource(
        own or asked.template,
        conversation,
        inline=inline,
        asked=asked.template,
        prompt=asked.prompt,
        suffix=asked.suffix,
        before=before,
    )
    return Completion(backends, settings, template, wants_context=True)


def _generate_messages(persona: Persona, asked: GenerateRequest) -> tuple[Message, ...]:
    system = asked.system or persona.system
    first = (Message("system", system),) if system else ()
    stored: Iterable[Message] = () if asked.context else stored_messages(persona)
    return (*first, *stored, Message("user", asked.prompt, images=asked.images))


def stored_messages(persona: Persona) -> Iterable[Message]:
    """The Modelfile's MESSAGEs."""
    return (
        Message(str(message.get("role", "")).lower(), str(message.get("content", "")))
        for message in persona.messages
    )


def _think(
    services: Services,
    persona: Persona,
    asked: GenerateRequest | ChatRequest,
    *,
    relax: bool = False,
) -> tuple[bool | str | None, bool]:
    """What a model that can think is told, and whether its thinking stays in the text."""
    if "thinking" in persona.capabilities:
        if asked.think is None:
            return (None, True) if services.config.think_inline else (True, False)
        return asked.think, False
    if asked.think and not relax:
        raise ApiError(400, f"{quote(asked.model)} does not support thinking")
    return (None if relax else asked.think), False


def _check(persona: Persona, name: str, what: str, needed: Sequence[str]) -> None:
    """Raise what Ollama says where a model cannot do what is asked."""
    if "completion" not in persona.capabilities:
        raise ApiError(400, f"{quote(name)} does not support {what}")
    missing = [one for one in needed if one not in persona.capabilities]
    if missing:
        full = parse_name(persona.name)
        shown = full.full if full else persona.name
        raise ApiError(400, f"{shown} does not support {' '.join(missing)}")


def _settings(
    services: Services,
    record: RequestRecord,
    served: Served,
    asked: GenerateRequest | ChatRequest,
) -> Settings:
    resolved = resolve(served.persona.parameters, asked.options)
    for name in resolved.unknown:
        if name in asked.options:
            _log.warning("invalid option provided: %s", quote(name)[:100])
    instance = services.config.instances[served.instances[0]]
    slot_tokens = instance.slot_tokens(served.persona.model.name)
    return Settings(
        served=served,
        options=resolved.options,
        context_tokens=resolved.options.context_tokens(slot_tokens),
        slot_tokens=slot_tokens,
        received=record.received,
        format=asked.response_format(),
        truncate=asked.truncate,
        shift=asked.shift,
        logprobs=asked.logprobs,
        top_logprobs=asked.top_logprobs,
        keep_alive_ns=asked.keep_alive_ns,
    )
