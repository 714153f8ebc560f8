"""Making a conversation shorter that llama-server's context does not hold, as Ollama does.

Ollama's order: the oldest messages go first, the system prompt and the last message stay; then
the last one loses its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from .errors import LlmContextError

# What a template puts around a message, at least; the engine counts anew anyway.
_AROUND_TOKENS: Final = 4
_SPARE_TOKENS: Final = 16


class Tokenizer(Protocol):
    """The engine's."""

    def tokenize(self, text: str) -> list[int]: ...

    def detokenize(self, tokens: list[int]) -> str: ...


def excess_tokens(error: LlmContextError, options: Mapping[str, Any]) -> int:
    """How many tokens must go, so that there is room for an answer as well."""
    context = error.context_tokens
    wanted = options.get("num_predict", -1)
    room = min(wanted, context // 2) if wanted > 0 else context // 4
    return error.prompt_tokens - context + room + _SPARE_TOKENS


def shorter_conversation(
    messages: Sequence[Mapping[str, Any]], excess: int, tokens: Tokenizer
) -> list[dict[str, Any]] | None:
    """The conversation without about `excess` tokens; None where nothing may go."""
    kept = [dict(message) for message in messages]
    oldest = 0
    while excess > 0:
        while oldest < len(kept) - 1 and kept[oldest]["role"] == "system":
            oldest += 1
        if oldest >= len(kept) - 1:
            break
        # An answer without its question, or a tool's without its call, is more than templates take.
        dropped = kept.pop(oldest)
        while oldest < len(kept) - 1 and kept[oldest]["role"] in ("assistant", "tool"):
            excess -= _count(kept.pop(oldest), tokens)
        excess -= _count(dropped, tokens)
    if excess > 0:
        text = kept[-1].get("content")
        rest = shorter_text(text, excess, tokens) if isinstance(text, str) else None
        if rest is None:
            return None
        kept[-1]["content"] = rest
    return kept


def shorter_text(text: str, excess: int, tokens: Tokenizer) -> str | None:
    """The end of a text; None where nothing of it would be left."""
    ids = tokens.tokenize(text)
    # The cut may go through a character.
    return tokens.detokenize(ids[excess:]).lstrip("\ufffd") if len(ids) > excess else None


def _count(message: Mapping[str, Any], tokens: Tokenizer) -> int:
    content = message.get("content")
    return _AROUND_TOKENS + (
        len(tokens.tokenize(content)) if isinstance(content, str) and content else 0
    )
