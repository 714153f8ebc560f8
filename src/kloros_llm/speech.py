"""Cutting text into sentences while it comes, for speech.

A sentence is given out as soon as it is certain that it is over: with the first character of the
next, or with a line's end. How the text was cut into pieces makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Self

from .errors import LlmError
from .text_stream import TextStream


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# “ and « close in German; in other languages white space is before them.
_CLOSERS: Final = "\"'”’“‘»›«‹)\\]}*_`」』）】》〉〕＂"  # noqa: RUF001
# No space need follow these.
_WIDE: Final = "。！？｡।؟۔"  # noqa: RUF001
# Marks with what closes behind them, or a line's end.
_END: Final = re.compile(rf"([.!?…{_WIDE}]+)([{_CLOSERS}]*)|\n")
_WORD: Final = re.compile(r"[^\s(\[{\"'“‘«„*_`/-]*$")  # noqa: RUF001
_WORD_CHARS: Final = 24
_NEXT: Final = re.compile(r"[^\S\n]*(\n|[^\W\d_]+|\S)")
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_ACRONYM: Final = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
_ROMAN: Final = re.compile(r"[IVXLCDM]{2,}")
# "im 19. Jahrhundert", "die 2. Auflage"
_ORDINAL: Final = re.compile(
    r"\b(?:der|die|das|dem|den|des|im|vom|zum|zur|beim|(?<!\bI )am|eine?[rnsm]?|jede[rnsm]?) \d+$",
    re.IGNORECASE,
)

# Something follows these, always.
_LEADING: Final = _words(
    "mr mrs ms dr prof st mt rev gen col sgt capt lt cmdr adm maj hon gov sen rep pres vs e.g i.e "
    "cf viz ca approx hr fr dipl ing bzw z.b d.h u.a z.t s.o s.u vgl sog inkl evtl ggf mio mrd "
    "sr sra dra mme mlle"
)
# These may stand last as well: then a capital follows.
_SHORT: Final = _words(
    "etc inc ltd corp co jr bros dept est min max sec hrs ft esp mon tue wed thu fri sat sun jan "
    "feb mar apr jun jul aug sep sept oct nov dec usw ff zzgl std jh a.m p.m"
)
# Short for something only before a number.
_NUMBERED: Final = _words("no nos nr fig figs eq ch chap vol pp p art ver v bd kap abb")
# After a number and a point: German dates.
_MONTHS: Final = _words(
    "januar februar märz april mai juni juli august september oktober november dezember"
)


class SentenceSplitter:
    """Takes pieces of text, gives sentences. Of `min_chars` at least is what is given out."""

    def __init__(self, min_chars: int = 0) -> None:
        self._min_chars = min_chars
        self._text = ""
        self._seen = 0  # up to here, no sentence ends

    def feed(self, piece: str) -> list[str]:
        """The sentences that are over now."""
        self._text += piece
        return self._cut(final=False)

    def flush(self) -> list[str]:
        """What is left, when no more text comes."""
        sentences = self._cut(final=True)
        rest, self._text, self._seen = self._text.strip(), "", 0
        return [*sentences, rest] if rest else sentences

    def _cut(self, *, final: bool) -> list[str]:
        sentences = []
        while match := _END.search(self._text, self._seen):
            ends = self._ends(match, final=final)
            if ends is None:
                self._seen = match.start()
                break
            sentence = self._text[: match.end()].strip()
            speakable = any(character.isalnum() for character in sentence)
            if not ends or not speakable or len(sentence) < self._min_chars:
                self._seen = match.end()
                continue
            sentences.append(sentence)
            self._text = self._text[match.end() :]
            self._seen = 0
        else:
            self._seen = len(self._text)
        return sentences

    def _ends(self, match: re.Match[str], *, final: bool) -> bool | None:
        """Whether a sentence ends there; None where what follows must be seen first."""
        marks, closers = match.groups()
        text, end = self._text, match.end()
        if marks is not None and end == len(text):
            return True if final else None
        # A line's end has no marks.
        if marks is None or marks[0] in _WIDE:
            return True
        is_call = marks[0] in "!?"
        if not text[end].isspace():
            return is_call and _CJK.match(text, end) is not None
        return (is_call and not closers) or self._ends_by_words(match, final=final)

    def _ends_by_words(self, match: re.Match[str], *, final: bool) -> bool | None:
        """The same for marks that may mean something else, by the words around them."""
        marks, closers = match.groups()
        text, end = self._text, match.end()
        near = max(0, match.start() - _WORD_CHARS)
        word = _WORD.search(text, near, match.start())
        before = word.group().rstrip(_CLOSERS) if word and marks == "." else ""
        stop = _is_end(before, text[: match.start()].strip() == before)
        if stop is not None and not closers and marks == ".":
            return stop
        following = _NEXT.match(text, end)
        if following is None or (following.end() == len(text) and not final):
            return True if final else None
        if before.isdigit() and _ORDINAL.search(text, near, match.start()):
            return False
        is_spaced = len(before) == len(following.group(1)) == 1
        if is_spaced and text.startswith(".", following.end()):  # "z. B."
            return False
        return stop is not False and _starts_sentence(following.group(1), before)


def _is_end(word: str, is_first: bool) -> bool | None:
    """Whether a point after that word ends a sentence; None where what follows tells."""
    name = word.lower()
    if word.isdigit():
        return False if is_first else None  # the number of a list's item
    if name in _LEADING or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    if name in _SHORT or name in _NUMBERED or (len(word) == 1 and word.isalpha()):
        return None
    if _ROMAN.fullmatch(word):
        return None
    if _ACRONYM.fullmatch(word):
        return False if word.isupper() else None
    return True


def _starts_sentence(following: str, before: str) -> bool:
    """Whether what follows an end that may be none begins a sentence."""
    if following == "\n":
        return True
    name = before.lower()
    if following[0].isdigit():
        return name not in _NUMBERED and name not in _SHORT
    if before.isdigit() and following.lower() in _MONTHS:
        return False
    return not following[0].islower()


def sentences(pieces: Iterable[str], min_chars: int = 0) -> Iterator[str]:
    """The sentences of a text that comes in pieces, each as soon as it is over.

    What comes before an error is given out before the error is raised.
    """
    splitter = SentenceSplitter(min_chars)
    try:
        for piece in pieces:
            yield from splitter.feed(piece)
    except LlmError:
        yield from splitter.flush()
        raise
    yield from splitter.flush()


class SentenceStream(Iterator[str]):
    """An answer, sentence by sentence. `close()`, from any thread, ends it: nothing more comes."""

    def __init__(self, pieces: TextStream, min_chars: int = 0) -> None:
        self.pieces = pieces
        self._sentences = sentences(pieces, min_chars)

    def __next__(self) -> str:
        sentence = next(self._sentences)
        if self.pieces.closed:
            raise StopIteration
        return sentence

    def close(self) -> None:
        """End it, here and at the engine."""
        self.pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
