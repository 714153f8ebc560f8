"""Sentences out of a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm import SentenceSplitter, sentences
from kloros_llm.errors import LlmInterruptedError

# `|` is where a sentence ends.
TEXTS = [
    "It is on.| The light is green!| Is it?| Yes.",
    "Dr. Smith met Mr. J. R. Tolkien at 5 p.m. on Main St. in Boston.| They spoke.",
    "It was 5 p.m.| The sun set.",
    "We need e.g. nails, i.e. iron ones, etc. and so on.| Then glue, etc.| We begin.",
    "Pi is 3.14159 and e is 2.71.| Version 2.0.1 is out.| It costs $5.| Cheap!",
    "In 2024.| The year began.| See No. 5 and Fig. 3.| No.| I will not.",
    "1. Red is warm.|\n2. Blue is cold.|\n10. Green.",
    'He said "Stop."| Then he left.| "Really?" she asked.| "Go!" he cried.| (It was late.)| End.',
    "Wait... what?| Well...| I see.| Hm… maybe.| Hm…| Maybe.",
    "What?!| No way!!!| Fine.",
    "Ask example.com or me@example.org.| Open a.b.c/d.html now.",
    "**Note.**| This is `code.`| _Done._",
    "A heading|\nand a line|\n\nand another.",
    "The U.S. Army has a Ph.D. student.| Good.",
    "Am 3. Mai kommt Hr. Meier, z.B. um 5 Uhr.| Am 4. Juni nicht.| Das war Platz 3.| Gut.",
    "Das ist z. B. gut, d. h. u. a. heute.| Es kostet 3 Mio. Euro.| Viel.",
    "Im 19. Jahrhundert, die 2. Auflage.| Ludwig XIV. war da.",
    "I am 3.| She is 5.| Solve for x.| So.",
    "Er rief: „Ich komme.“| Dann »Nein.«| Dann „Ja!“| Dann ging er.",
    "今日は晴れです。|明日は？|雨！|「本当。」|はい。",  # noqa: RUF001
    "你好!|我是小明。|价格是3.5元。|再见！",  # noqa: RUF001
    "هل أنت هنا؟| نعم.",
    "यह ठीक है।| हाँ।",
    "Yahoo!| It works.| Plan I.| Then sleep.",
    "...| Go on.",
]


def plain(marked: str) -> str:
    return marked.replace("|", "")


def expected(marked: str) -> list[str]:
    return [part.strip() for part in marked.split("|")]


@pytest.mark.parametrize("marked", TEXTS[:-1])
def test_sentences_end_where_they_end(marked: str) -> None:
    assert list(sentences([plain(marked)])) == expected(marked)


@pytest.mark.parametrize("marked", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_how_the_text_is_cut_makes_no_difference(marked: str, size: int) -> None:
    text = plain(marked)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(sentences(pieces)) == list(sentences([text]))


@given(
    st.text("ab .!?…\"')1\n。」Dr.emMIVz“«", max_size=60), st.lists(st.integers(1, 7), min_size=60)
)
def test_nothing_is_lost_and_nothing_depends_on_the_pieces(text: str, sizes: list[int]) -> None:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    found = list(sentences(pieces))
    assert found == list(sentences([text]))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in found)


def test_a_sentence_is_given_out_with_the_first_sign_of_the_next() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("It is on") == []
    assert splitter.feed(".") == []  # 3.14, a quotation mark, another point: all may follow
    assert splitter.feed(" The") == ["It is on."]
    assert splitter.feed(" end!\n") == ["The end!"]
    assert splitter.feed("はい。") == []
    assert splitter.feed("い") == ["はい。"]
    assert splitter.flush() == ["い"]
    assert splitter.flush() == []


def test_a_token_that_holds_an_end_and_a_beginning_is_cut() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("One") == []
    assert splitter.feed(".\n\nTwo") == ["One."]
    assert splitter.feed(".」三。四") == ["Two.」三。"]


def test_what_cannot_be_spoken_is_no_sentence_of_its_own() -> None:
    assert list(sentences(["Yes! 😀 ... !! Go on."])) == ["Yes!", "😀 ... !! Go on."]


def test_short_sentences_are_joined_where_that_is_wished() -> None:
    text = "Yes. No. I do not know that yet. Ask."
    assert list(sentences([text], min_chars=12)) == ["Yes. No. I do not know that yet.", "Ask."]


def test_what_came_before_an_error_is_given_out_first() -> None:
    def pieces() -> Iterator[str]:
        yield "One. Tw"
        raise LlmInterruptedError("cut", "One. Tw")

    found = sentences(pieces())
    assert [next(found), next(found)] == ["One.", "Tw"]
    with pytest.raises(LlmInterruptedError):
        next(found)
