"""A request's body, read as Go's encoding/json reads it, with Go's words where it is broken.

Only the first value counts; whatever follows it is ignored, as by Go's Decoder. Invalid UTF-8
and lone surrogates become U+FFFD. The C scanner of the standard library does the work; its
findings are translated from the place that it names, so that a broken body costs no more
than a good one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import ApiError
from ..go_text import quote

MISSING_BODY = "missing request body"
UNEXPECTED_END = "unexpected EOF"
TOO_DEEP = "exceeded max depth"
_MOST_BRACKETS = 100_000
_MOST_COMMAS = 2_000_000
_MOST_PARTS = 5_000_000
TOO_MUCH = (
    f"http: request body too large: at most {_MOST_BRACKETS} opening brackets and {_MOST_COMMAS} "
    "commas are taken outside of strings"
)

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_SURROGATES = re.compile("[\ud800-\udfff]+")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]").search
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_PARTS = re.compile(rb'[\[{,]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^\[\]{}]+")
_COMMA, _COMMA_OR_QUOTE = b","[0], b',"'
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_NUMBER_CHARACTERS = frozenset("0123456789+-.eE")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
# What is looked through once more for an error's text. Beyond it the outermost bracket is named.
_MOST_CHARACTERS = 1 << 18

VALUE = "looking for beginning of value"
_KEY = "looking for beginning of object key string"


class Number(float):
    """A number with a fraction or an exponent, or a very long one, and how it was written."""

    literal: str

    def __new__(cls, literal: str) -> Number:
        number = super().__new__(cls, literal)
        number.literal = literal
        return number


class Members(list[tuple[str, Any]]):
    """An object as its pairs, in order: with Go, the last of several spellings of a key wins."""


class _ConstantError(Exception):
    """NaN and its like, which Python takes and nobody else does."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


# Functions of Python's own, also where a type would do: between two of them the interpreter lets
# other threads in, and the scanner alone would keep them out until it is through.
def _members(pairs: list[tuple[str, Any]]) -> Members:
    return Members(pairs)


def _integer(literal: str) -> int | Number:
    return int(literal) if len(literal) <= 20 else Number(literal)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_float=Number,
    parse_int=_integer,
    parse_constant=_refuse_constant,
)


def decode(body: bytes | bytearray | memoryview) -> Any:
    """The body's first value: None, bool, int, Number, str, list or Members.

    Raises ApiError: 400 with Ollama's text where there is none, 413 where it has more parts than
    anybody means.
    """
    data = bytes(body)
    if _has_too_many_parts(data):
        raise ApiError(413, TOO_MUCH)
    try:
        text = data.decode()
        replace = _ESCAPED_SURROGATE(text) is not None
    except UnicodeDecodeError:
        # Each invalid byte becomes a lone surrogate, and each of those one U+FFFD, as in Go.
        text = data.decode(errors="surrogateescape")
        replace = True
    start = _after_whitespace(text, 0)
    if start == len(text):
        raise ApiError(400, MISSING_BODY)
    value, end = _scan(text, start)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number_end(text, end)
    return _replaced(value) if replace else value


def _has_too_many_parts(data: bytes) -> bool:
    """Made into Python's objects each takes some 100 bytes, whatever few it has here."""
    brackets = data.count(b"{") + data.count(b"[")
    commas = data.count(b",")
    if brackets <= _MOST_BRACKETS and commas <= _MOST_COMMAS:
        return False
    # Most of them may stand in strings, such as a program's text.
    brackets = commas = 0
    for number, part in enumerate(_PARTS.finditer(data)):
        first = data[part.start()]
        commas += first == _COMMA
        brackets += first not in _COMMA_OR_QUOTE
        if brackets > _MOST_BRACKETS or commas > _MOST_COMMAS or number > _MOST_PARTS:
            return True
    return False


def _scan(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ApiError(400, _go_text(error, text)) from None
    except _ConstantError as error:
        name = str(error)
        where = "in numeric literal" if name[0] == "-" else VALUE
        raise ApiError(400, f"invalid character '{name.lstrip('-')[0]}' {where}") from None
    except RecursionError:
        # Go goes down 10,000 levels; nothing that anybody means is deeper than a few dozen.
        raise ApiError(400, TOO_DEEP) from None


def _without_surrogates(text: str) -> str:
    return _SURROGATES.sub(lambda run: "\ufffd" * len(run[0]), text)


def _replaced(value: Any) -> Any:
    """`value` without lone surrogates."""
    if isinstance(value, str):
        return _without_surrogates(value)
    try:
        if isinstance(value, Members):
            return Members((_without_surrogates(key), _replaced(item)) for key, item in value)
        if isinstance(value, list):
            return [_replaced(item) for item in value]
    except RecursionError:
        raise ApiError(400, TOO_DEEP) from None
    return value


def _go_text(error: json.JSONDecodeError, text: str) -> str:
    """What Go's scanner says where Python's says `error`."""
    for beginning, translate in _TRANSLATIONS.items():
        if error.msg.startswith(beginning):
            return translate(text, error.pos)
    # An unterminated string, or a backslash at the very end.
    return UNEXPECTED_END


def _at_value(text: str, position: int) -> str:
    first = text[position : position + 1]
    if first == "-":
        return _invalid(text, position + 1, "in numeric literal")
    literal = _LITERALS.get(first)
    if literal is None:
        return _invalid(text, position, VALUE)
    matching = 1
    while text[position + matching : position + matching + 1] == literal[matching]:
        matching += 1
    where = f"in literal {literal} (expecting '{literal[matching]}')"
    return _invalid(text, position + matching, where)


def _after_value(text: str, position: int) -> str:
    _check_number_end(text, position)
    where = (
        "after object key:value pair" if _inside_object(text, position) else "after array element"
    )
    return _invalid(text, position, where)


def _check_number_end(text: str, position: int) -> None:
    """Raise where a number goes on after `position` in a way that Python's scanner leaves out."""
    following = text[position : position + 1]
    if following not in (".", "e", "E") or text[position - 1] not in _NUMBER_CHARACTERS:
        return
    start = position
    while max(0, position - _MOST_CHARACTERS) < start and text[start - 1] in _NUMBER_CHARACTERS:
        start -= 1
    number = text[start:position]
    if "e" in number or "E" in number or (following == "." and "." in number):
        return
    where = "after decimal point in numeric literal"
    at = position + 1
    if following != ".":
        where = "in exponent of numeric literal"
        at += text[at : at + 1] in ("+", "-")
    raise ApiError(400, _invalid(text, at, where))


def _inside_object(text: str, position: int) -> bool:
    """Whether the innermost bracket that is open at `position` is a brace."""
    if position > _MOST_CHARACTERS:
        return text[_after_whitespace(text, 0)] == "{"
    brackets = _NOT_BRACKETS.sub("", _STRINGS.sub("", text[:position]))
    closed = 0
    for bracket in reversed(brackets):
        if bracket in "]}":
            closed += 1
        elif closed:
            closed -= 1
        else:
            return bracket == "{"
    return False


def _in_hexadecimal(text: str, position: int) -> str:
    start = text.find("u", position - 1) + 1
    for at in range(start, start + 4):
        if text[at : at + 1] not in _HEXADECIMAL:
            return _invalid(text, at, "in \\u hexadecimal character escape")
    return UNEXPECTED_END


def _invalid(text: str, position: int, where: str) -> str:
    if position >= len(text):
        return UNEXPECTED_END
    # Go reads bytes: of a character beyond ASCII it names the first byte.
    byte = chr(text[position].encode(errors="surrogateescape")[0])
    shown = {"'": "\\'", '"': '"'}.get(byte) or quote(byte)[1:-1]
    return f"invalid character '{shown}' {where}"


def _after_whitespace(text: str, position: int) -> int:
    match = _WHITESPACE.match(text, position)
    return match.end() if match else position


# Python's messages, from 3.11 to 3.14, by how they begin.
_TRANSLATIONS: dict[str, Callable[[str, int], str]] = {
    "Expecting value": _at_value,
    "Expecting ','": _after_value,
    "Expecting ':'": lambda text, at: _invalid(text, at, "after object key"),
    "Expecting property name": lambda text, at: _invalid(text, at, _KEY),
    "Illegal trailing comma before end of array": lambda text, at: _invalid(
        text, _after_whitespace(text, at + 1), VALUE
    ),
    "Illegal trailing comma before end of object": lambda text, at: _invalid(
        text, _after_whitespace(text, at + 1), _KEY
    ),
    "Invalid control character": lambda text, at: _invalid(text, at, "in string literal"),
    "Invalid \\escape": lambda text, at: _invalid(text, at + 1, "in string escape code"),
    "Invalid \\uXXXX": _in_hexadecimal,
}
