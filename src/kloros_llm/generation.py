"""What is asked of an engine, whichever it is, and what comes of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import LlmUsageError
from .gateway.engines.pieces import Ending, ToolCall

Message = Mapping[str, Any]
"""`role` and `content`; `images`, `tool_calls`, `tool_name`, `tool_call_id` where they apply."""


@dataclass(frozen=True)
class Generation:
    """One answer that is wanted: to a `prompt`, or to a conversation (`messages`).

    `options` have Ollama's names. `format` is "json" or a JSON schema. `images` are base64.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    model: str | None = None
    system: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    format: str | Mapping[str, Any] | None = None
    images: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    think: bool | str | None = None
    raw: bool = False
    suffix: str | None = None
    truncate: bool = True
    keep_alive: str | float | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """It as messages, with the system prompt where none of them is one."""
        messages = [dict(message) for message in self.messages]
        if self.prompt is not None:
            message: dict[str, Any] = {"role": "user", "content": self.prompt}
            messages.append(message | ({"images": list(self.images)} if self.images else {}))
        if self.system and not any(message.get("role") == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self.system})
        return messages


@dataclass(frozen=True)
class Answer:
    """A whole answer. `str(answer)` is its text."""

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    ending: Ending

    def __str__(self) -> str:
        return self.text


def images_of(images: Sequence[str | bytes | Path] | None) -> tuple[str, ...]:
    """Images as base64: bytes and files are read, texts are base64 already."""
    encoded = []
    for image in images or ():
        data = image.read_bytes() if isinstance(image, Path) else image
        encoded.append(base64.b64encode(data).decode() if isinstance(data, bytes) else data)
    return tuple(encoded)


def checked_messages(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    """A conversation whose images are base64. Raises LlmUsageError."""
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise LlmUsageError(f"a message needs a role and a content: {message!r}")
        images = message.get("images")
        checked.append(dict(message) | ({"images": images_of(images)} if images else {}))
    if not checked:
        raise LlmUsageError("a conversation needs at least one message")
    return tuple(checked)
