"""What a model can do, as Ollama tells it: from its Go template, else from the GGUF file's own.

Source: Ollama 0.33, `server/images.go` and `types/model/capability.go`.
"""

from __future__ import annotations

from functools import lru_cache

from ..generation.prompt import parse
from ..go_template import TemplateError
from .model_facts import ModelFacts

GPT_OSS = ("gptoss", "gpt-oss")
"""Their family, in Ollama's files and in others."""


def renders_itself(facts: ModelFacts, template: str | None) -> bool:
    """Whether the GGUF file's own template is used, whatever Go template a persona has.

    gpt-oss answers in channels, which Ollama takes apart by code of its own, whatever the
    template; llama-server does so by the model's own. The condition is Ollama's shouldUseHarmony.
    """
    return (
        template is not None
        and facts.family in GPT_OSS
        and bool(facts.chat_template)
        and "<|start|>" in template
        and "<|end|>" in template
    )


def capabilities_of(facts: ModelFacts, template: str | None) -> tuple[str, ...]:
    """In Ollama's order. `template` is the Go template; None: the GGUF file's own renders."""
    found = [
        *(_of_chat_template(facts.chat_template) if template is None else ()),
        "embedding" if facts.embeds else "completion",
        *(["vision"] if facts.sees else ()),
        *(["audio"] if facts.hears else ()),
        *(template_capabilities(template) if template is not None else ()),
        *(["thinking"] if facts.family in GPT_OSS else ()),
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


# Each look at the names asks for all of them, and reading one takes milliseconds.
@lru_cache(maxsize=1024)
def template_capabilities(text: str) -> tuple[str, ...]:
    """Those that a Go template gives; none where it cannot be read."""
    try:
        return parse(text).capabilities
    except TemplateError:
        return ()
