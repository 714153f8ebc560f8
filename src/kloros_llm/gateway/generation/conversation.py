"""What a model is to continue: messages, tools, and whether it is to think."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engines.engine_requests import chat_template_fields
from ..ollama_api.api_tools import Message
from .thinking import ThinkingParser

# A message's share of what a template puts around it, in bytes; more than most do.
_AROUND_BYTES = 64


@dataclass(frozen=True, slots=True)
class Conversation:
    """`think` None: nobody said."""

    messages: tuple[Message, ...]
    tools: Sequence[Mapping[str, Any]] = ()
    think: bool | str | None = None

    def body(self) -> dict[str, Any]:
        """For the engine's template: /v1/chat/completions and /apply-template."""
        return chat_template_fields(self.messages, self.tools, self.think)

    def size_bytes(self) -> int:
        """At least that of the prompt, as far as can be told."""
        return sum(len(message.content.encode()) + _AROUND_BYTES for message in self.messages)

    def shortened(self, dropped: int) -> Conversation:
        """Without the first `dropped` messages, of which those of the system stay."""
        first = self.messages[:dropped]
        system = tuple(message for message in first if message.role == "system")
        return replace(self, messages=system + self.messages[dropped:])

    def steps(self) -> list[int]:
        """How many messages may be dropped: never the last, no tool's answer without its call."""
        counts = range(1, len(self.messages))
        return [count for count in counts if self.messages[count].role != "tool"]

    def without_old_thinking(self) -> Conversation:
        """Without what earlier answers hold of it in `<think>` tags.

        Ollama does so for models of the time before thinking was told apart.
        """
        last = max(
            (at for at, message in enumerate(self.messages) if message.role == "user"), default=0
        )
        old = (
            _without_thinking(message) if message.role == "assistant" else message
            for message in self.messages[:last]
        )
        return replace(self, messages=(*old, *self.messages[last:]))


def _without_thinking(message: Message) -> Message:
    parser = ThinkingParser("<think>", "</think>")
    _, answer = parser.add(message.content)
    return replace(message, content=answer)
