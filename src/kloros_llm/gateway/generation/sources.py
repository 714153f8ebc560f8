"""What the prompt of a /completion is made from: a text, or a conversation and a Go template."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ..errors import ApiError
from ..go_template import TemplateError
from ..ollama_api.api_tools import Message
from .conversation import Conversation
from .prompt import MOST_STEPS, Prompt, Template, fit_prompt, make_prompt, parse
from .thinking import ThinkingParser
from .tool_calls import ToolParser, first_token

THINK_TAGS = ("<think>", "</think>")
# Some tens of milliseconds; a conversation of a hundred messages takes a tenth of it.
_AT_ONCE_STEPS = 20_000
# What is done with each of them before the first step takes some microseconds.
_AT_ONCE_MESSAGES = 500


class Tokenize(Protocol):
    """A text's token ids."""

    async def __call__(self, text: str) -> list[int]: ...


class Source(Protocol):
    """One prompt's source."""

    async def prompt(self) -> Prompt:
        """All of it."""

    async def fitted(self, limit: int, tokenize: Tokenize) -> Prompt:
        """As much of it as `limit` tokens hold, or the least that can be left."""

    def continued(self, thinking: str) -> Source:
        """The same, with what the model has thought so far."""

    def thinking_parser(self, prompt: Prompt) -> ThinkingParser | None:
        """For what the model says to `prompt`; None where its thinking is not looked for."""

    def tool_parser(self) -> ToolParser | None:
        """For what the model says; None where it was given no tools."""

    def markers(self) -> tuple[str, ...]:
        """What belongs into the text, though the engine leaves it out as a special token."""


class TextSource:
    """A prompt as it is. `tags` are around the thinking that is looked for; none: it is not."""

    def __init__(
        self, text: str, images: Sequence[bytes] = (), *, tags: tuple[str, str] | None = None
    ) -> None:
        self._prompt = Prompt(text, tuple(images))
        self._tags = tags

    async def prompt(self) -> Prompt:
        """The text."""
        return self._prompt

    async def fitted(self, limit: int, tokenize: Tokenize) -> Prompt:
        """The text: nothing of it can be told apart."""
        del limit, tokenize
        return self._prompt

    def continued(self, thinking: str) -> TextSource:
        """With the thinking at its end."""
        opening, closing = self._tags or THINK_TAGS
        text = self._prompt.text
        if not text.rstrip().endswith(opening):
            text += f"{opening}\n"
        return TextSource(f"{text}{thinking}\n{closing}\n\n", self._prompt.images)

    def thinking_parser(self, prompt: Prompt) -> ThinkingParser | None:
        """With its tags."""
        return ThinkingParser(*self._tags, prompt=prompt.text) if self._tags else None

    def tool_parser(self) -> None:
        """A text has no tools."""

    def markers(self) -> tuple[str, ...]:
        """Its tags."""
        return self._tags or ()


class TemplateSource:
    """A conversation by a Go template.

    `own` is the persona's template, `asked` one of the request, with which Ollama leaves out no
    messages. With a `suffix` the prompt is what stands before it. `before` goes in front of all.
    """

    def __init__(
        self,
        own: str,
        conversation: Conversation,
        *,
        inline: bool = False,
        asked: str = "",
        prompt: str = "",
        suffix: str = "",
        before: str = "",
    ) -> None:
        self._own = template_of(own)
        self._template = template_of(asked) if asked else self._own
        self._asked = bool(asked)
        self._conversation = conversation
        self._inline = inline
        self._before_suffix = prompt
        self._suffix = suffix
        self._before = before

    async def prompt(self) -> Prompt:
        """The whole conversation. Raises ApiError where the template cannot be rendered."""
        if len(self._conversation.messages) <= _AT_ONCE_MESSAGES:
            # Where that fails, it may only be long.
            with suppress(TemplateError):
                return self._made(_AT_ONCE_STEPS)
        # In a thread it has all the steps there are, and holds up nobody.
        try:
            return await asyncio.to_thread(self._made, MOST_STEPS)
        except TemplateError as error:
            raise ApiError(500, str(error)) from error

    def _made(self, steps: int) -> Prompt:
        conversation = self._conversation
        if self._suffix:
            text = self._template.render(
                prompt=self._before_suffix,
                suffix=self._suffix,
                think=conversation.think,
                steps=steps,
            )
            return Prompt(self._before + text, ())
        made = make_prompt(
            self._template,
            conversation.messages,
            conversation.tools,
            think=conversation.think,
            steps=steps,
        )
        return replace(made, text=self._before + made.text) if self._before else made

    async def fitted(self, limit: int, tokenize: Tokenize) -> Prompt:
        """Without the oldest messages."""
        if self._suffix or self._asked:
            return await self.prompt()

        async def count(text: str) -> int:
            return len(await tokenize(text))

        conversation = self._conversation
        try:
            made = await fit_prompt(
                self._template,
                conversation.messages,
                conversation.tools,
                think=conversation.think,
                budget_tokens=limit,
                count=count,
            )
        except TemplateError as error:
            raise ApiError(500, str(error)) from error
        return replace(made, text=self._before + made.text)

    def continued(self, thinking: str) -> TemplateSource:
        """With a message that has thought, and not yet answered."""
        thought = Message("assistant", thinking=thinking)
        conversation = self._conversation
        longer = replace(conversation, messages=(*conversation.messages, thought))
        return TemplateSource(self._own.source, longer, inline=self._inline, before=self._before)

    def thinking_parser(self, prompt: Prompt) -> ThinkingParser | None:
        """With the tags that the persona's template writes around thinking."""
        tags = self._own.thinking_tags
        if not self._conversation.think or self._inline or tags is None:
            return None
        return ThinkingParser(*tags, prompt=prompt.text)

    def tool_parser(self) -> ToolParser | None:
        """With what the persona's template writes before a call."""
        tools = self._conversation.tools
        return ToolParser(self._own.tool_tag, tools) if tools else None

    def markers(self) -> tuple[str, ...]:
        """The tags around thinking, and the token that a call begins with."""
        thinks = self._inline or bool(self._conversation.think)
        call = first_token(self._own.tool_tag) if self._conversation.tools else ""
        tags = (self._own.thinking_tags or ()) if thinks else ()
        return (*tags, call) if call else tags


def template_of(source: str) -> Template:
    """Raises ApiError where it cannot be read."""
    try:
        return parse(source)
    except TemplateError as error:
        raise ApiError(500, str(error)) from error
