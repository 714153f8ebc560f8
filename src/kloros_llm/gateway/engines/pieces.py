"""What a generation is made of, on its way from the engine to the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for. `id` is empty where nobody gave one."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


# Not frozen: it is made for every token, and that would take three times as long.
@dataclass(slots=True)
class Piece:
    """What came at once: usually one token's text. Nobody changes it.

    `tokens` are the ids of the text where they were asked for; `logprobs` Ollama's objects.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """Why it ended ("stop" or "length"), and what it took.

    `prompt_tokens` are all of the prompt, those that the engine had cached as well.
    """

    reason: str
    prompt_tokens: int
    prompt_ms: float
    completion_tokens: int
    completion_ms: float
