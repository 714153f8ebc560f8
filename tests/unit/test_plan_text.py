"""The plan in words: what servers said of their memory."""

from __future__ import annotations

from ansible_collections.kloros.llm.plugins.module_utils.plan_text import (
    differences,
    engine_lines,
    source_text,
)

SAME = ["", "The server itself says the same, to the MiB."]


def test_sources_without_what_may_be_secret() -> None:
    assert source_text("hf://a/b/c.gguf@main") == "hf://a/b/c.gguf@main"
    assert source_text("file:/srv/c.gguf?x") == "file:/srv/c.gguf?x"
    assert source_text("https://host:8/c.gguf?sig=canary") == "https://host:8/c.gguf"


def test_differences_are_a_table() -> None:
    found = {"live": {"CUDA0": {"weights_mib": 12, "kv_mib": -3}, "Host": {"draft_mib": 1}}}
    lines = differences(found)
    assert [line.split() for line in lines[3:]] == [
        ["live", "CUDA0", "weights", "+12"],
        ["live", "CUDA0", "kv", "-3"],
        ["live", "Host", "draft", "+1"],
    ]
    assert differences({}) == SAME


def test_what_was_not_asked_or_measured_is_said() -> None:
    memory = {"keys": {"a": "1", "b": "2"}, "unasked": [], "differences": {}, "not_covered": {}}
    assert engine_lines(memory) == SAME
    assert engine_lines(memory | {"unasked": ["b"], "not_covered": {"a": ["adapters"]}}) == [
        *SAME,
        "Not measured of a: adapters",
        "Not asked about in its last setting: b",
    ]
    # Where nobody was asked, nobody agrees.
    assert engine_lines(memory | {"unasked": ["a", "b"]}) == [
        "Not asked about in its last setting: a, b"
    ]
    assert engine_lines(memory | {"keys": {}}) == []
