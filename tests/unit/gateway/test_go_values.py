"""Numbers as Go prints them; the expected texts are Go's own (1.24)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.ollama_api.go_values import (
    encode,
    human_number,
    json_number,
    shortest_float32,
    shown_number,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (-0.5, "-0.5"),
        (0.00001, "0.00001"),
        (1e-6, "0.000001"),
        (1.5e-7, "1.5e-7"),
        (1e-10, "1e-10"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
    ],
)
def test_json_numbers(value: float, text: str) -> None:
    assert json_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2048, "2048"),
        (131072, "131072"),
        (1048576, "1.048576e+06"),
        (1000000, "1e+06"),
        (-1, "-1"),
        (0.2, "0.2"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (0, "0"),
    ],
)
def test_shown_numbers(value: float, text: str) -> None:
    assert shown_number(value) == text


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_told_with_few_digits_and_stays_itself(value: float) -> None:
    short = shortest_float32(value)
    assert struct.pack("<f", short) == struct.pack("<f", value)
    assert len(repr(short)) <= len(repr(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_numbers_are_read_back(value: float) -> None:
    assert float(json_number(value)) == value
    assert float(shown_number(value)) == value


def test_encode_keeps_order_and_escapes() -> None:
    value = {"b": [True, None, "<|x|>"], "a": 1e-5}
    assert encode(value) == '{"b":[true,null,"\\u003c|x|\\u003e"],"a":0.00001}'


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (12_345, "12K"),
        (134_515_008, "134.52M"),
        (3_000_000, "3M"),
        (7_615_616_512, "7.6B"),
        (32_000_000_000, "32B"),
    ],
)
def test_numbers_of_parameters(count: int, text: str) -> None:
    assert human_number(count) == text
