"""What a model can do, as Ollama tells it: from its Go template, else from the GGUF file's own.

Source: Ollama 0.33, `server/images.go` and `types/model/capability.go`.
"""

from __future__ import annotations

from .go_template import TemplateError
from .model_facts import ModelFacts
from .prompt import parse

_GPT_OSS = ("gptoss", "gpt-oss")


def capabilities_of(facts: ModelFacts, template: str | None) -> tuple[str, ...]:
    """In Ollama's order. `template` is the Go template; None: the GGUF file's own renders."""
    found = [
        *(_of_chat_template(facts.chat_template) if template is None else ()),
        "embedding" if facts.embeds else "completion",
        *(["vision"] if facts.sees else ()),
        *(["audio"] if facts.hears else ()),
        *(_of_go_template(template) if template is not None else ()),
        *(["thinking"] if facts.family in _GPT_OSS else ()),
    ]
    return tuple(dict.fromkeys(found))


def _of_chat_template(text: str) -> list[str]:
    found = ["tools"] if "tools" in text or "tool_call" in text else []
    return [*found, "thinking"] if _thinks(text) else found


def _thinks(text: str) -> bool:
    if "<think>" in text and "</think>" in text:
        return True
    # Templates that strip earlier reasoning; the others are read by a parser of their own.
    strips = "content.split('</think>')" in text or 'content.split("</think>")' in text
    return strips and "reasoning_content" not in text and "<SPECIAL_12>" not in text


def _of_go_template(text: str) -> tuple[str, ...]:
    try:
        return parse(text).capabilities
    except TemplateError:
        return ()
