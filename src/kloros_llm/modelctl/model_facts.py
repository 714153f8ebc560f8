"""What a model is, out of its header, in words."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from ..core.gguf_facts import model_facts
from ..core.gguf_files import read_model_file
from ..core.gguf_header import SkippedArray, Value
from ..core.gguf_reader import GgufError


def local_facts(path: Path) -> dict[str, Any]:
    """The facts of a model that is here; nothing where its header cannot be read."""
    try:
        return model_facts(read_model_file(path))
    except (GgufError, OSError):
        return {}


def value_data(value: Value) -> Any:
    """A value of the header as JSON, which has no infinity (files of gemma3n have) and no NaN."""
    if isinstance(value, SkippedArray):
        return {"array": value.element_type, "length": value.length}
    if isinstance(value, list):
        return [value_data(entry) for entry in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value


def value_text(value: Value) -> str:
    """A value of the header, short enough for a line."""
    if isinstance(value, SkippedArray):
        return f"[{value.length} x {value.element_type}]"
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def context_text(tokens: int | None) -> str | None:
    """`32768 tokens`."""
    return None if not tokens else f"{tokens} tokens"
