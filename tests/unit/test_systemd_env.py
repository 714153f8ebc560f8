"""Quoting for systemd, pinned to what real systemd made of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.systemd_env import (
    join_args,
    render_env_file,
    split_args,
)
from hypothesis import given
from hypothesis import strategies as st

PROVEN = json.loads((Path(__file__).parent / "data/systemd-args.json").read_text(encoding="utf-8"))
LINE_TEXT = st.text(
    st.characters(
        exclude_categories=("Cs", "Cc"),
        exclude_characters=[
            *map(chr, range(0xFDD0, 0xFDF0)),
            *(
                chr(plane | end)
                for plane in range(0, 0x110000, 0x10000)
                for end in (0xFFFE, 0xFFFF)
            ),
            "\ufeff",
        ],
    )
)
NASTY_TEXT = st.text(st.sampled_from("ab \\\"'$`%#;={}né猫"))


def read_env_value(line: str) -> str:
    """The value that systemd reads after NAME= (systemd.exec(5), EnvironmentFile=)."""
    if not line.startswith('"'):
        assert not set(line) & set(" \"'\\"), "an unquoted value that systemd would reinterpret"
        return line
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', line), "the closing quote is not the last character"
    return re.sub(r'\\(["\\`$])', r"\1", line[1:-1])


def test_the_record_holds_what_it_claims() -> None:
    assert len(PROVEN["rendered"]) >= 100
    assert len(PROVEN["foreign"]) >= 50


@pytest.mark.parametrize("entry", PROVEN["rendered"], ids=lambda entry: entry["value"][:20])
def test_arguments_are_written_as_systemd_was_seen_to_read_them(
    entry: dict[str, str | list[str]],
) -> None:
    assert join_args(entry["arguments"]) == entry["value"]
    assert render_env_file({"X": str(entry["value"])}, "") == f"X={entry['line']}\n"
    assert split_args(str(entry["value"])) == entry["arguments"]


@pytest.mark.parametrize("entry", PROVEN["foreign"], ids=lambda entry: entry["value"][:20])
def test_any_text_is_split_as_systemd_was_seen_to_split_it(
    entry: dict[str, str | list[str]],
) -> None:
    assert split_args(str(entry["value"])) == entry["arguments"]


@given(st.lists(st.one_of(LINE_TEXT, NASTY_TEXT)))
def test_arguments_survive_the_round_trip(arguments: list[str]) -> None:
    assert split_args(join_args(arguments)) == arguments


@given(st.one_of(LINE_TEXT, NASTY_TEXT))
def test_a_value_survives_the_round_trip(value: str) -> None:
    text = render_env_file({"NAME": value}, "")
    assert text.startswith("NAME=")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert read_env_value(text.removeprefix("NAME=").removesuffix("\n")) == value


@given(st.text(st.characters(codec="utf-8")))
def test_splitting_any_text_ends_without_an_error(text: str) -> None:
    assert all(isinstance(argument, str) for argument in split_args(text))


def test_a_file_has_its_header_as_comments_and_variables_in_order() -> None:
    text = render_env_file(
        {"B": "plain/path:1,2", "A": 'say "$HOME" `x` \\', "EMPTY": ""}, "Written by\n\nkloros-llm"
    )
    assert text == (
        "# Written by\n#\n# kloros-llm\n"
        "B=plain/path:1,2\n"
        'A="say \\"\\$HOME\\" \\`x\\` \\\\"\n'
        "EMPTY=\n"
    )


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("line\nbreak", "control character"),
        ("tab\t", "control character"),
        ("nul\0", "control character"),
        ("\x7f", "control character"),
        ("\x85", "control character"),
        ("\ud800", "surrogate"),
        ("\ufdd0", "noncharacter"),
        ("\uffff", "noncharacter"),
        ("\U0010fffe", "noncharacter"),
        ("\ufeff", "byte order mark"),
    ],
)
def test_what_systemd_cannot_carry_is_refused(bad: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render_env_file({"NAME": bad}, "")
    with pytest.raises(ValueError, match=said):
        join_args(["fine", bad])
    if "\n" not in bad and bad != "\x85":
        with pytest.raises(ValueError, match=said):
            render_env_file({}, f"header {bad} text")


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "Ä", "A\n", "A="])
def test_names_that_systemd_would_drop_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name for an environment variable"):
        render_env_file({name: "x"}, "")


def test_a_header_line_cannot_swallow_the_first_variable() -> None:
    with pytest.raises(ValueError, match="backslash"):
        render_env_file({"A": "1"}, "path C:\\")


def test_an_assignment_is_as_long_as_execve_allows_and_no_longer() -> None:
    longest = "é" * 65_534 + "x"
    assert longest in render_env_file({"A": longest}, "")
    with pytest.raises(ValueError, match="131071 bytes"):
        render_env_file({"A": longest + "x"}, "")
