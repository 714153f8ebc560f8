"""Thinking told apart from the answer, however the text is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.generation.thinking import ThinkingParser, infer_tags
from kloros_llm.gateway.go_template import parse
from tests.unit.gateway import chat_templates

TAGS = ("<think>", "</think>")


def split(pieces: list[str], prompt: str = "") -> tuple[str, str]:
    parser = ThinkingParser(*TAGS, prompt=prompt)
    parts = [parser.add(piece) for piece in pieces] + [parser.rest()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        (" \n<think>\n a \n</think>\n\n b ", "a \n", "b "),
        ("<think></think>b", "", "b"),
        ("no thinking", "", "no thinking"),
        ("  no thinking", "", "  no thinking"),
        ("late <think>a</think>", "", "late <think>a</think>"),
        ("<thin", "", "<thin"),
        ("<think>a</thin", "a</thin", ""),
        ("<think>a</thinx></think>b", "a</thinx>", "b"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("<think>a", "a", ""),
        ("<think>\n", "", ""),
        ("   ", "", "   "),
        ("", "", ""),
    ],
)
def test_however_it_is_cut(text: str, thinking: str, answer: str) -> None:
    assert split([text]) == (thinking, answer)
    assert split(list(text)) == (thinking, answer)
    for at in range(len(text)):
        assert split([text[:at], text[at:]]) == (thinking, answer)


def test_nothing_is_held_longer_than_needed() -> None:
    parser = ThinkingParser(*TAGS)
    assert parser.add("<th") == ("", "")
    assert parser.add("ink> a<") == ("a", "")
    assert parser.add("b") == ("<b", "")
    assert parser.add("</think>\n") == ("", "")
    assert parser.add("c") == ("", "c")


def test_a_prompt_may_open_the_thinking() -> None:
    assert split(["\nhm", "</think>x"], prompt="…<think>\n") == ("hm", "x")
    assert split(["hm", "</think>x"], prompt="…<think>.") == ("", "hm</think>x")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "/", " ", "\n", "é", "ink>"])))
def test_cutting_changes_nothing(pieces: list[str]) -> None:
    whole = split(["".join(pieces)])
    assert split(pieces) == whole
    assert split(list("".join(pieces))) == whole


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("{{ range .Messages }}a{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}b{{ end }}",
         ("<t>", "</t>")),
        ("{{ range $i, $m := .Messages }}{{ if and .Thinking $i }}\n<t>\n{{ .Thinking }}</t> "
         "{{ end }}{{ end }}", ("<t>", "</t>")),
        ("{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}", None),
        ("{{ range .Tools }}<t>{{ .Thinking }}</t>{{ end }}", None),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", None),
        ("{{ range .Messages }}{{ if .Thinking }}{{ .Thinking }}{{ end }}{{ end }}", None),
        (chat_templates.DEEPSEEK_R1, TAGS),
        (chat_templates.CHATML, None),
    ],
)  # fmt: skip
def test_tags_are_inferred_from_the_template(template: str, tags: tuple[str, str] | None) -> None:
    assert infer_tags(parse(template)) == tags
