"""Bodies and durations against what Go itself made of them (data/go), and any bytes at all."""

from __future__ import annotations

import base64
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.ollama_api import durations
from kloros_llm.gateway.ollama_api.go_decoding import (
    DecodingStoppedError,
    Reading,
    anything,
    array,
    boolean,
    image,
    integer,
    mapping,
    pointer,
    read_struct,
    string,
    struct,
)
from kloros_llm.gateway.ollama_api.ollama_json import decode

VECTORS = Path(__file__).with_name("data") / "go" / "vectors.jsonl"

INNER = struct("Inner", {"name": string, "n": integer, "req": array(string, "[]string")})
OUTER = {
    "model": string,
    "context": array(integer, "[]int"),
    "stream": pointer(boolean),
    "images": array(image, "[]api.ImageData"),
    "options": mapping(anything, "map[string]interface {}"),
    "files": mapping(string, "map[string]string"),
    "input": anything,
    "inner": INNER,
}


def vectors(kind: str) -> list[tuple[bytes, Any, str | None]]:
    lines = [json.loads(line) for line in VECTORS.read_text().splitlines()]
    return [(base64.b64decode(data), made, bad) for its, data, made, bad in lines if its == kind]


def same(mine: Any, theirs: Any) -> bool:
    """Go's null, empty array and zero value are one; numbers are equal as float64."""
    if isinstance(mine, bytes):
        return bool(base64.b64encode(mine).decode() == (theirs or ""))
    if isinstance(mine, dict):
        return isinstance(theirs, dict) and all(
            same(mine.get(key), value) if key in mine else not value or key == "inner"
            for key, value in theirs.items()
        )
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, int | float) and isinstance(theirs, int | float):
        return float(mine) == float(theirs)
    return bool(mine == theirs) or (not mine and not theirs)


def anything_of(body: bytes) -> Any:
    reading = Reading()
    try:
        value = anything(reading, decode(body))
    except DecodingStoppedError as error:
        raise ApiError(400, str(error.problem)) from None
    if reading.problem is not None:
        raise ApiError(400, str(reading.problem))
    return value


def problem_of(body: bytes) -> ApiError | None:
    """What is wrong with `body`; any other exception is the test's failure."""
    try:
        read_struct("Outer", OUTER, decode(body))
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize(("body", "result", "error"), vectors("any"))
def test_a_value_is_read_as_go_reads_it(body: bytes, result: Any, error: str | None) -> None:
    if error is None:
        assert same(anything_of(body), result)
        return
    with pytest.raises(ApiError) as refused:
        anything_of(body)
    assert (refused.value.status, refused.value.text) == (400, error)


@pytest.mark.parametrize(("body", "result", "error"), vectors("struct"))
def test_a_struct_is_filled_as_go_fills_it(body: bytes, result: Any, error: str | None) -> None:
    if error is None:
        assert same(read_struct("Outer", OUTER, decode(body)), result)
        return
    with pytest.raises(ApiError) as refused:
        read_struct("Outer", OUTER, decode(body))
    assert refused.value.text == error.replace("main.", "api.")


@pytest.mark.parametrize(("text", "result", "error"), vectors("duration"))
def test_a_duration_is_read_as_go_reads_it(text: bytes, result: Any, error: str | None) -> None:
    if error is None:
        assert durations.parse_duration(text.decode()) == result
        return
    with pytest.raises(durations.DurationError) as refused:
        durations.parse_duration(text.decode())
    assert str(refused.value) == error


def test_a_thousand_levels_are_refused_not_recursed() -> None:
    for deep in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900):
        with pytest.raises(ApiError) as refused:
            anything_of(deep)
        assert refused.value.text in ("exceeded max depth", "unexpected EOF")
    assert anything_of(b"[" * 200 + b"]" * 200)


def test_numbers_of_any_length() -> None:
    long = b"1" * 10_000
    with pytest.raises(ApiError, match=r"cannot unmarshal number 1+ into .* of type float64"):
        anything_of(b"[" + long + b"]")
    with pytest.raises(
        ApiError, match=r"number 1+ into Go struct field Outer\.context of type int"
    ):
        read_struct("Outer", OUTER, decode(b'{"context":[' + long + b"]}"))
    assert anything_of(b"[0." + long + b"]") == [0.1111111111111111]
    assert sys.get_int_max_str_digits() == 4300


def test_a_large_body_that_breaks_at_its_end_is_told_at_once() -> None:
    """Where it breaks is known; only the bracket around it is taken for the outermost one."""
    body = b'{"a":[' + b'"\\\\",' * 200_000 + b"1 2"
    with pytest.raises(ApiError, match="invalid character '2' after object key:value pair"):
        decode(body)
    with pytest.raises(durations.DurationError, match=r'^time: invalid duration "1h1h'):
        durations.parse_duration("1h" * 100_000)


def test_whole_numbers_are_whole() -> None:
    assert [str(number) for number in anything_of(b"[2048, 1.0, 1e3, -0, 0.5]")] == [
        "2048",
        "1",
        "1000",
        "0",
        "0.5",
    ]


@settings(max_examples=400)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_api_error(body: bytes) -> None:
    problem = problem_of(body)
    assert problem is None or (problem.status == 400 and problem.text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON)
def test_what_json_writes_is_read_back(value: Any) -> None:
    # Beyond 2**53 a number is Go's float64, which is what 1e16 is to Python too.
    def bounded(item: Any) -> Any:
        if isinstance(item, bool) or not isinstance(item, int):
            return item
        return item % 2**53

    def walk(item: Any) -> Any:
        if isinstance(item, list):
            return [walk(inner) for inner in item]
        if isinstance(item, dict):
            return {key: walk(inner) for key, inner in item.items()}
        return bounded(item)

    value = walk(value)
    for ascii_only in (True, False):
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert anything_of(b" " + body + b"trailing") == value


@settings(max_examples=300)
@given(JSON, st.integers(min_value=0), st.binary(min_size=1, max_size=2))
def test_a_broken_value_never_surprises(value: Any, where: int, wrong: bytes) -> None:
    body = bytearray(json.dumps({"options": value, "inner": value}).encode())
    body[where % len(body) : where % len(body) + 1] = wrong
    problem = problem_of(bytes(body))
    assert problem is None or problem.status == 400


@pytest.mark.parametrize(
    ("part", "most"), [(b"{},", 100_000), (b"[],", 100_000), (b"1,", 2_000_000)]
)
def test_a_body_of_more_parts_than_anybody_means_is_refused_unread(part: bytes, most: int) -> None:
    assert len(decode(b"[" + part * (most - 2) + b"1]")) == most - 1
    with pytest.raises(ApiError) as refused:
        decode(b"[" + part * (most + 1) + b"1]")
    assert refused.value.status == 413


@pytest.mark.parametrize("text", [b"[[{,", b'\\"[[{,\\"', b"\\\\"])
def test_what_stands_in_strings_is_no_part(text: bytes) -> None:
    """A program's text, or many of them, to be embedded."""
    body = b'{"input":[' + b'"' + text * 200_000 + b'"' + b',"a"' * 2_000 + b"]}"
    assert len(dict(decode(body))["input"]) == 2_001
    for end in (b'"', b""):
        with pytest.raises(ApiError) as refused:
            decode(b'{"x":"' + text * 40_000 + b'","input":' + b"[" * 100_001 + b'"' + text + end)
        assert refused.value.status == 413


@pytest.mark.parametrize(("part", "count"), [(b"1,", 1_000_000), (b'{"a":null},', 99_000)])
def test_while_a_body_is_scanned_the_interpreter_does_other_things(part: bytes, count: int) -> None:
    """Signals are looked for where other threads are let in: the event loop is one of these."""
    body = b"[" + part * count + b"0]"
    seen = 0

    def look(*_: object) -> None:
        nonlocal seen
        seen += 1

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        decode(body)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen > 20
