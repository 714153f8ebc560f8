"""JSON and times as Go writes them."""

from __future__ import annotations

import json
import time

import pytest

from kloros_llm.gateway.ollama_api.json_text import compact, string, timestamp


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a", '"a"'),
        ("<b> & c", r'"\u003cb\u003e \u0026 c"'),
        ("é🌊", '"é🌊"'),
        ('"\\\n\t\x00', r'"\"\\\n\t\u0000"'),
        ("\u2028\u2029", r'"\u2028\u2029"'),
        ("\ud800x", '"\ufffdx"'),
    ],
)
def test_strings(text: str, written: str) -> None:
    assert string(text) == written
    assert compact([text]) == f"[{written}]"


def test_values_have_no_blanks_and_keep_their_order() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"<": "&"}}
    assert compact(value) == r'{"b":[1,2.5,null,true],"a":{"\u003c":"\u0026"}}'
    assert json.loads(compact(value)) == value


@pytest.mark.parametrize(
    ("now_ns", "written"),
    [
        (1_795_351_079_595_466_730, "2026-11-22T12:37:59.59546673Z"),
        (1_795_351_079_000_000_000, "2026-11-22T12:37:59Z"),
        (1_795_351_080_000_000_001, "2026-11-22T12:38:00.000000001Z"),
    ],
)
def test_times_have_no_zeros_at_the_end(
    monkeypatch: pytest.MonkeyPatch, now_ns: int, written: str
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    assert timestamp() == written
