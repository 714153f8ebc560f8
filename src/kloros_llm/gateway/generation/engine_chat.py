"""A generation by the model's own Jinja template: the engine renders, and parses the answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ..engines.backends import Backends
from ..engines.engine import Engine
from ..engines.engine_errors import EngineError, EngineGoneError, EngineLoadingError
from ..engines.engine_requests import response_format
from ..engines.pieces import Ending, Piece
from ..errors import ApiError
from ..ollama_api.answering import Totals
from .conversation import Conversation
from .generation import TOO_LONG, Generation, Settings
from .parsing import call_id, parsed, watched, with_tags
from .sources import THINK_TAGS
from .thinking import ThinkingParser

_log = logging.getLogger(__name__)


class EngineChat(Generation):
    """By /v1/chat/completions. `inline`: thinking stays in the text, in its tags."""

    def __init__(
        self,
        backends: Backends,
        settings: Settings,
        conversation: Conversation,
        *,
        inline: bool = False,
        wants_context: bool = False,
    ) -> None:
        super().__init__(backends, settings)
        self._conversation = conversation
        self._inline = inline
        self._wants_context = wants_context
        self._said: list[str] = []

    async def rendered(self) -> str:
        """The prompt."""
        return await self._render(self._conversation)

    async def _render(self, conversation: Conversation) -> str:
        async def ask(engine: Engine) -> str:
            return await engine.apply_template(conversation.body())

        return await self.call(ask)

    async def pieces(self) -> AsyncGenerator[Piece | Ending]:
        """The answer."""
        self._said.clear()
        async with aclosing(self._answer()) as items:
            async for item in with_tags(items) if self._inline else items:
                if self._wants_context and isinstance(item, Piece):
                    self._said.append(item.thinking + item.text)
                yield item

    async def _answer(self) -> AsyncGenerator[Piece | Ending]:
        settings = self.settings
        conversation = self._conversation
        bound: int | None = None
        if self.could_be_too_long(conversation.size_bytes()):
            bound = settings.context_tokens
            conversation = await self._fitting(conversation, bound)
        while True:
            self._conversation = conversation
            try:
                async with aclosing(self._sent(conversation)) as items:
                    async for item in watched(items, settings.top_logprobs):
                        yield item
                return
            except EngineError as error:
                if error.kind != TOO_LONG or not settings.truncate:
                    raise
                limit = error.context_tokens or settings.context_tokens
                if bound is not None and limit >= bound:
                    if any(message.images for message in conversation.messages):
                        raise  # nothing of them can be cut
                    break
                bound = limit
                conversation = await self._fitting(conversation, bound)
        async with aclosing(self._cut(conversation, limit)) as items:
            async for item in items:
                yield item

    def _sent(self, conversation: Conversation) -> AsyncGenerator[Piece | Ending]:
        settings = self.settings
        body = self.body() | conversation.body()
        body["reasoning_format"] = "deepseek"
        if settings.format is not None:
            body["response_format"] = response_format(settings.format)
        if settings.logprobs:
            body |= {"logprobs": True, "top_logprobs": max(1, settings.top_logprobs)}

        async def chat(engine: Engine) -> AsyncGenerator[Piece | Ending]:
            async with aclosing(engine.chat(body)) as items:
                async for item in items:
                    if isinstance(item, Piece) and item.tool_calls:
                        named = tuple(replace(call, id=call_id()) for call in item.tool_calls)
                        yield replace(item, tool_calls=named)
                    else:
                        yield item

        return self.stream(chat if conversation.tools else lambda engine: engine.chat(body))

    async def _fitting(self, conversation: Conversation, limit: int) -> Conversation:
        """Without as many of the oldest messages as it takes; the least is what cannot go."""
        tokens = await self._count(conversation)
        if tokens < limit:
            return conversation
        if not self.settings.truncate:
            raise self.refusal(tokens)
        steps = conversation.steps()
        low, high = 0, len(steps) - 1
        while low < high:
            middle = (low + high) // 2
            if await self._count(conversation.shortened(steps[middle])) < limit:
                high = middle
            else:
                low = middle + 1
        return conversation.shortened(steps[low]) if steps else conversation

    async def _count(self, conversation: Conversation) -> int:
        return len(await self.tokenize(await self._render(conversation), special=True))

    async def _cut(self, conversation: Conversation, limit: int) -> AsyncGenerator[Piece | Ending]:
        """The prompt without its middle: by /completion, since only text can be cut."""
        settings = self.settings
        prompt = await self._render(conversation)
        ids = await self.tokenize(prompt, special=True)
        body = self.body() | {"prompt": self.cut(ids, limit)}
        if settings.logprobs:
            body["n_probs"] = max(1, settings.top_logprobs)
        if conversation.tools:
            _log.warning("a prompt without its middle is answered without tool calls")
        thinking = None
        if conversation.think:
            thinking = ThinkingParser(*THINK_TAGS, prompt=prompt)
            body["preserved_tokens"] = list(THINK_TAGS)
        async with aclosing(self.stream(lambda engine: engine.completion(body))) as items:
            async for item in parsed(watched(items, settings.top_logprobs), thinking, None):
                yield item

    async def totals(self, ending: Ending) -> Totals:
        """The figures, and the ids of prompt and answer where they are wanted."""
        figures = self.figures(ending)
        if not self._wants_context:
            return figures
        try:
            text = await self.rendered() + "".join(self._said)
            context = await self.tokenize(text)
        except (EngineError, EngineGoneError, EngineLoadingError, ApiError) as error:
            _log.warning("no ids for the context of an answer: %s", error)
            return figures
        return replace(figures, context=context)
