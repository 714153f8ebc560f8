"""Options: Ollama's defaults, types and words, and what llama-server gets of them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.ollama_api.options import NAMES, Options, resolve


def test_ollamas_defaults_reach_the_engine() -> None:
    """Not llama-server's own: its top_p is 0.95, its min_p 0.05, and a GGUF may bring others."""
    sent = resolve().options.engine_parameters(4096)
    assert sent == {
        "n_predict": 40960,
        "n_keep": 4,
        "seed": 0xFFFFFFFF,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "samplers": [
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature",
        ],
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


def test_the_request_stands_over_the_persona() -> None:
    persona = {"temperature": 0.2, "stop": ["a"], "num_ctx": 2048, "seed": 7}
    request = {"temperature": 0, "seed": None, "mirostat": 2, "low_vram": True}
    resolved = resolve(persona, request)
    assert resolved.options == Options(temperature=0.0, stop=("a",), num_ctx=2048, seed=7)
    assert resolved.unknown == ("mirostat", "low_vram")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_ctx", "big", 'option "num_ctx" must be of type integer'),
        ("seed", True, 'option "seed" must be of type integer'),
        ("top_p", "0.9", 'option "top_p" must be of type float32'),
        ("temperature", [], 'option "temperature" must be of type float32'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", ["x", 1], 'option "stop" must be of an array of strings'),
        ("min_p", 1e300, "json: unsupported value: +Inf"),
    ],
)
def test_wrong_types_are_errors_of_the_server(name: str, value: Any, text: str) -> None:
    with pytest.raises(ApiError) as refused:
        resolve({name: value})
    assert (refused.value.status, refused.value.text) == (500, text)


def test_fractions_of_integers_go() -> None:
    assert resolve({"num_predict": 12.9, "top_k": -1.5}).options.num_predict == 12
    assert resolve({"seed": 1e300}).options.seed == -(2**63)


@pytest.mark.parametrize(
    ("asked", "sent"), [(-1, 1000), (-2, 1000), (0, 1000), (10, 10), (1000, 1000), (1001, 1000)]
)
def test_an_answer_is_never_longer_than_ten_contexts(asked: int, sent: int) -> None:
    assert Options(num_predict=asked).engine_parameters(100)["n_predict"] == sent


@pytest.mark.parametrize(
    ("num_ctx", "tokens"), [(None, 4096), (2048, 2048), (8192, 4096), (1, 4), (0, 4096), (-1, 4096)]
)
def test_num_ctx_bounds_below_the_slot(num_ctx: int | None, tokens: int) -> None:
    assert Options(num_ctx=num_ctx).context_tokens(4096) == tokens


def test_repeat_last_n_of_the_whole_context() -> None:
    assert Options(repeat_last_n=-1).engine_parameters(2048)["repeat_last_n"] == 2048


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), SCALARS | st.lists(SCALARS, max_size=2)))
def test_any_options_are_in_the_engines_limits_or_an_api_error(values: dict[str, Any]) -> None:
    with contextlib.suppress(ApiError):
        sent = resolve(values).options.engine_parameters(4096)
        _check_limits(sent)


def _check_limits(sent: dict[str, Any]) -> None:
    int32 = 2**31
    assert -1 <= sent["n_predict"] < int32
    assert -1 <= sent["n_keep"] < int32
    assert 0 <= sent["top_k"] < int32
    assert 0 <= sent["repeat_last_n"] < int32
    assert 0 <= sent["seed"] < 2**32
