"""Ollama's options, which are also a Modelfile's parameters, and what llama-server calls them.

Defaults < the persona's parameters < the request's options. Source: api/types.go of Ollama 0.33.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ApiError
from ..go_text import quote

_INT32_MAX = (1 << 31) - 1
_INT64_MIN = -(1 << 63)
_INT64_LIMIT = 1 << 63
# Ollama never lets an answer be longer than so many contexts.
_MOST_CONTEXTS = 10

# llama-server's own default order. It is sent all the same: a GGUF may bring another one.
_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
# What Ollama has no option for, at the values that do nothing.
_UNUSED_SAMPLERS: Mapping[str, Any] = {
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dry_multiplier": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "min_keep": 0,
    "ignore_eos": False,
    "logit_bias": [],
}


@dataclass(frozen=True, slots=True)
class Options:
    """All of them with Ollama's defaults.

    None is Ollama's own choice: `num_ctx` is then the context of the slot. Those in the second
    part are of the load; they are checked and have no effect on an instance that runs.
    """

    num_keep: int = 4
    seed: int = -1
    num_predict: int = -1
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    temperature: float = 0.8
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()

    num_ctx: int | None = None
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int = 4

    def context_tokens(self, slot_tokens: int) -> int:
        """The bound of a prompt: `num_ctx` where it is the smaller one. Ollama's least is 4."""
        if self.num_ctx is None or self.num_ctx <= 0:
            return slot_tokens
        return max(4, min(self.num_ctx, slot_tokens))

    def engine_parameters(self, context_tokens: int) -> dict[str, Any]:
        """The same for /completion and /v1/chat/completions of llama-server.

        All samplers are there, so that neither its defaults nor those of its command line or
        of the GGUF apply. `context_tokens` is what `context_tokens()` told.
        """
        most = _MOST_CONTEXTS * context_tokens
        # 0 is no limit either: Ollama leaves it out of what it asks, llama-server answers a token.
        predict = self.num_predict if 0 < self.num_predict <= most else most
        # -1 is the whole context, which llama-server no longer takes for it.
        penalised = context_tokens if self.repeat_last_n < 0 else self.repeat_last_n
        return {
            "n_predict": predict,
            "n_keep": max(-1, _int32(self.num_keep)),
            "seed": self.seed & 0xFFFFFFFF,
            "temperature": self.temperature,
            "top_k": max(0, _int32(self.top_k)),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repeat_last_n": _int32(penalised),
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "stop": list(self.stop),
            "samplers": list(_SAMPLERS),
            **_UNUSED_SAMPLERS,
        }


_INTEGERS = frozenset(
    (
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "draft_num_predict",
    )
)
_BOOLEANS = frozenset(("use_mmap",))
_ARRAYS = frozenset(("stop",))
NAMES = frozenset(field.name for field in fields(Options))
"""What Ollama knows. `mirostat`, `tfs_z`, `low_vram` and others of old are no longer among them."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The options of one generation, and the names that nobody knows, for a warning."""

    options: Options
    unknown: tuple[str, ...]


def resolve(*layers: Mapping[str, Any]) -> Resolved:
    """Ollama's defaults under all `layers`, the last one on top; `None` in a layer says nothing.

    Raises ApiError 500 for a wrong type: `option "num_ctx" must be of type integer`.
    """
    values: dict[str, Any] = {}
    unknown: dict[str, None] = {}
    for layer in layers:
        for name, value in layer.items():
            if name not in NAMES:
                unknown[name] = None
            elif value is not None:
                values[name] = checked(name, value)
    return Resolved(Options(**values), tuple(unknown))


def checked(name: str, value: Any) -> Any:
    """The value of the option `name` in its type; raises ApiError 500 with Ollama's text."""
    if name in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, "integer")
        return _int64(value)
    if name in _BOOLEANS:
        if not isinstance(value, bool):
            raise _wrong_type(name, "boolean")
        return value
    if name in _ARRAYS:
        if not isinstance(value, list | tuple):
            raise _wrong_type(name, "array")
        if not all(isinstance(text, str) for text in value):
            raise ApiError(500, f"option {quote(name)} must be of an array of strings")
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "float32")
    try:
        struct.pack("<f", value)
    except (OverflowError, struct.error):
        raise ApiError(500, f"json: unsupported value: {'+' if value > 0 else '-'}Inf") from None
    return float(value)


def _wrong_type(name: str, needed: str) -> ApiError:
    return ApiError(500, f"option {quote(name)} must be of type {needed}")


def _int64(value: int | float) -> int:
    """As Go converts a float64 on amd64: the fraction goes, and what does not fit is the least."""
    if not _INT64_MIN <= value < _INT64_LIMIT:
        return _INT64_MIN
    return int(value)


def _int32(value: int) -> int:
    return max(-_INT32_MAX, min(value, _INT32_MAX))
