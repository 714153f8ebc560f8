"""Options under Ollama's names, for llama-server and for Ollama."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Any, Final

from .errors import LlmUsageError
from .gateway.errors import ApiError
from .gateway.ollama_api.options import NAMES, Options, checked


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What Ollama itself no longer knows. They, and those of a load, change nothing at llama-server.
_FORMER: Final = _names(
    "use_mlock numa low_vram f16_kv vocab_only logits_all embedding_only tfs_z penalize_newline"
)
# What only llama-server knows (tools/server/README.md), by its own names.
_NATIVE: Final = _names(
    "grammar json_schema logit_bias samplers n_probs min_keep mirostat mirostat_tau mirostat_eta "
    "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers "
    "xtc_probability xtc_threshold dynatemp_range dynatemp_exponent top_n_sigma ignore_eos "
    "cache_prompt id_slot lora t_max_predict_ms n_indent"
)
_OPENAI: Final = {"max_tokens": "num_predict", "max_completion_tokens": "num_predict"}
_KNOWN: Final = NAMES | _FORMER | _NATIVE | _OPENAI.keys()
# More than a slot has: "the whole context" where a penalty looks back.
_WHOLE_CONTEXT: Final = 1 << 17

_log = logging.getLogger(__name__)


def is_option(name: str) -> bool:
    """Whether a keyword argument of that name is an option."""
    return name in _KNOWN


def like(name: str) -> str:
    """The option that was perhaps meant, as the end of a message."""
    near = difflib.get_close_matches(name, sorted(_KNOWN), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def merged(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options, the later ones before the earlier, under Ollama's names; None is not said.

    Raises LlmUsageError for a value of a wrong type.
    """
    options: dict[str, Any] = {}
    for layer in layers:
        for name, value in (layer or {}).items():
            if value is None:
                continue
            if name not in _KNOWN:
                # As Ollama: it must not fail for what a newer or older one knows.
                _log.warning("option %r is not known and has no effect%s", name, like(name))
                continue
            own = _OPENAI.get(name, name)
            options[own] = _checked(own, value) if own in NAMES else value
    return options


def to_llama(options: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields for llama-server: all samplers are said, with Ollama's defaults.

    A server's own, which its unit may have changed, never apply.
    """
    said = Options(**{name: value for name, value in options.items() if name in NAMES})
    fields = said.engine_parameters(_WHOLE_CONTEXT)
    if said.num_predict < 0:
        fields["n_predict"] = -1  # until the context is full
    return fields | {name: value for name, value in options.items() if name in _NATIVE}


def to_ollama(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of a request to Ollama, which knows its defaults. Raises LlmUsageError."""
    said = {name: value for name, value in options.items() if name not in _NATIVE}
    # Mirostat was Ollama's too; the other two change no answer.
    foreign = [name for name in options if name in _NATIVE and not name.startswith(_HARMLESS)]
    if foreign:
        raise LlmUsageError(f"{', '.join(foreign)}: llama-server knows that, Ollama does not")
    return said | {name: value for name, value in options.items() if name.startswith("mirostat")}


_HARMLESS: Final = ("mirostat", "cache_prompt", "id_slot")


def _checked(name: str, value: Any) -> Any:
    if name == "stop" and isinstance(value, str):
        value = [value]
    try:
        return checked(name, value)
    except ApiError as error:
        raise LlmUsageError(str(error)) from error
