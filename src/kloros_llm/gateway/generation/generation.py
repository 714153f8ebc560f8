"""One generation: a served model and what it is asked, to pieces and an ending.

The first token costs one request to the engine. Only when that says that the prompt is too long,
or a smaller `num_ctx` could be exceeded, is the prompt counted, shortened as Ollama shortens it,
and sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..engines.backends import Backends, LoadClock
from ..engines.engine import Engine
from ..engines.engine_errors import EngineError, EngineGoneError, EngineLoadingError
from ..engines.engine_requests import media_data, schema, too_long_body
from ..engines.pieces import Ending, Piece
from ..errors import ApiError
from ..models.catalogue import Served
from ..ollama_api.answering import Totals
from ..ollama_api.options import Options
from .parsing import parsed, watched
from .prompt import Prompt
from .sources import Source

TOO_LONG = "exceed_context_size_error"
NO_SHIFT = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for a generation, whatever its prompt is made from.

    `context_tokens` bounds the prompt; it is smaller than `slot_tokens` only where the client or
    the persona asks for less. `received` is of time.perf_counter.
    """

    served: Served
    options: Options
    context_tokens: int
    slot_tokens: int
    received: float
    format: str | Mapping[str, Any] | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    keep_alive_ns: int | None = None


class Generation:
    """What the two ways have in common; engine_chat.py has the other one."""

    def __init__(self, backends: Backends, settings: Settings) -> None:
        self.settings = settings
        self._backends = backends
        self._clock = LoadClock()

    async def load(self) -> None:
        """Have the model loaded, without generating."""
        settings = self.settings
        await self._backends.ready(
            settings.served, loading=self._clock, keep_alive_ns=settings.keep_alive_ns
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""

        async def ask(engine: Engine) -> str:
            return await engine.detokenize(ids)

        return await self.call(ask)

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; `special`: with those that the model begins a prompt with."""

        async def ask(engine: Engine) -> list[int]:
            return await engine.tokenize(text, special=special)

        return await self.call(ask)

    async def call(self, ask: Callable[[Engine], Awaitable[T]]) -> T:
        """An answer of the engine that serves, by Backends.call."""
        settings = self.settings
        return await self._backends.call(
            settings.served, ask, loading=self._clock, keep_alive_ns=settings.keep_alive_ns
        )

    def stream(
        self, start: Callable[[Engine], AsyncGenerator[Piece | Ending]]
    ) -> AsyncGenerator[Piece | Ending]:
        """A generation of the engine that serves, by Backends.stream."""
        settings = self.settings
        return self._backends.stream(
            settings.served, start, loading=self._clock, keep_alive_ns=settings.keep_alive_ns
        )

    def body(self) -> dict[str, Any]:
        """What every request of a generation holds."""
        settings = self.settings
        body = settings.options.engine_parameters(settings.context_tokens)
        body["cache_prompt"] = True
        return body

    def could_be_too_long(self, size_bytes: int) -> bool:
        """Whether to count before sending: the engine would take more than is allowed here.

        A token is never shorter than a byte.
        """
        limit = self.settings.context_tokens
        return limit < self.settings.slot_tokens and size_bytes >= limit

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """The prompt without its middle: the first `num_keep` tokens, and of the rest as much as
        fills half of what they leave. The other half is the answer's, as in Ollama's
        contextShiftPromptLimit.

        Raises ApiError where the client does not want that.
        """
        if not self.settings.shift:
            raise ApiError(400, NO_SHIFT)
        keep = self.settings.options.num_keep
        keep = min(len(ids) if keep < 0 else keep, limit - 1)
        fits = limit - max((limit - keep) // 2, 1)
        _log.info("truncated a prompt of %d tokens to %d", len(ids), fits)
        return ids[:keep] + ids[keep + len(ids) - fits :]

    def refusal(self, prompt_tokens: int) -> ApiError:
        """For a prompt that is too long and may not be shortened."""
        return ApiError(400, too_long_body(prompt_tokens, self.settings.context_tokens))

    def figures(self, ending: Ending) -> Totals:
        """Of the generation as it is now."""
        return Totals(
            reason=ending.reason,
            total_ns=round((time.perf_counter() - self.settings.received) * 1e9),
            load_ns=self._clock.ns,
            prompt_tokens=ending.prompt_tokens,
            prompt_ns=round(ending.prompt_ms * 1e6),
            completion_tokens=ending.completion_tokens,
            completion_ns=round(ending.completion_ms * 1e6),
        )


class Completion(Generation):
    """By /completion: the prompt is made here, and the answer is taken apart here."""

    def __init__(
        self,
        backends: Backends,
        settings: Settings,
        source: Source,
        *,
        wants_context: bool = False,
    ) -> None:
        super().__init__(backends, settings)
        self._source = source
        self._wants_context = wants_context
        self._said: list[str] = []
        self._prompt: Prompt | None = None

    async def rendered(self) -> str:
        """The prompt."""
        return (await self._source.prompt()).text

    async def pieces(self) -> AsyncGenerator[Piece | Ending]:
        """The answer."""
        settings = self.settings
        self._said.clear()
        prompt = await self._source.prompt()
        thinking = self._source.thinking_parser(prompt)
        # A model that thinks first cannot be held to a format from its first token on: it is
        # asked again, with what it thought, when it begins to answer.
        later = settings.format is not None and thinking is not None
        thoughts: list[str] = []
        async with aclosing(self._answer(self._source, prompt, with_format=not later)) as items:
            async for item in parsed(items, thinking, self._source.tool_parser()):
                if later and isinstance(item, Piece):
                    thoughts.append(item.thinking)
                    if item.text or item.tool_calls:
                        if item.thinking:
                            yield Piece(thinking=item.thinking)
                        break
                yield item
            else:
                return
        self._said.clear()
        source = self._source.continued("".join(thoughts))
        prompt = await source.prompt()
        async with aclosing(self._answer(source, prompt, with_format=True)) as items:
            async for item in parsed(items, None, source.tool_parser()):
                yield item

    async def _answer(
        self, source: Source, prompt: Prompt, *, with_format: bool
    ) -> AsyncGenerator[Piece | Ending]:
        """The engine's answer to a prompt that fits."""
        settings = self.settings
        ids: list[int] | None = None
        bound: int | None = None
        if self.could_be_too_long(len(prompt.text.encode())):
            bound = settings.context_tokens
            prompt, ids = await self._shortened(source, bound)
        while True:
            self._prompt = prompt
            try:
                async with aclosing(self._sent(prompt, ids, with_format=with_format)) as items:
                    async for item in watched(items, settings.top_logprobs):
                        if self._wants_context and isinstance(item, Piece):
                            self._said.append(item.text)
                        yield item
                return
            except EngineError as error:
                if error.kind != TOO_LONG or not settings.truncate:
                    raise
                limit = error.context_tokens or settings.context_tokens
                # Shortened and still too long: it has images, of which nothing can be cut. Only
                # a fallback's context may be a smaller one.
                if bound is not None and limit >= bound:
                    raise
                bound = limit
                prompt, ids = await self._shortened(source, bound)

    def _sent(
        self, prompt: Prompt, ids: list[int] | None, *, with_format: bool
    ) -> AsyncGenerator[Piece | Ending]:
        settings = self.settings
        body = self.body()
        if markers := self._source.markers():
            body["preserved_tokens"] = list(markers)
        if settings.logprobs:
            body["n_probs"] = max(1, settings.top_logprobs)
        if with_format and settings.format is not None:
            body["json_schema"] = schema(settings.format)
        if not prompt.images:
            body["prompt"] = prompt.text if ids is None else ids
            return self.stream(lambda engine: engine.completion(body))

        async def with_media(engine: Engine) -> AsyncGenerator[Piece | Ending]:
            # The marker is another one for each process.
            marker = str((await engine.props()).get("media_marker", ""))
            text = prompt.text
            for index in range(len(prompt.images)):
                text = text.replace(f"[img-{index}]", marker, 1)
            media = media_data(prompt.images)
            body["prompt"] = {"prompt_string": text, "multimodal_data": media}
            async with aclosing(engine.completion(body)) as items:
                async for item in items:
                    yield item

        return self.stream(with_media)

    async def _shortened(self, source: Source, limit: int) -> tuple[Prompt, list[int] | None]:
        """What of the prompt fits into `limit` tokens, as Ollama's chatPrompt and its runner do.

        First the oldest messages go; of what is left, the middle. None where the text fits.
        """
        settings = self.settings
        if not settings.truncate:
            prompt = await source.prompt()
            ids = await self.tokenize(prompt.text, special=True)
            if len(ids) < limit:
                return prompt, ids
            raise self.refusal(len(ids))
        prompt = await source.fitted(limit, self.tokenize)
        if prompt.images:
            return prompt, None
        ids = await self.tokenize(prompt.text, special=True)
        if len(ids) < limit:
            return prompt, ids
        return prompt, self.cut(ids, limit)

    async def totals(self, ending: Ending) -> Totals:
        """The figures, and the ids of prompt and answer where they are wanted."""
        figures = self.figures(ending)
        if not self._wants_context or self._prompt is None:
            return figures
        text = self._prompt.text + "".join(self._said)
        try:
            context = await self.tokenize(text)
        except (EngineError, EngineGoneError, EngineLoadingError, ApiError) as error:
            # The answer is whole: it does not fail for the want of its ids.
            _log.warning("no ids for the context of an answer: %s", error)
            return figures
        return replace(figures, context=context)
