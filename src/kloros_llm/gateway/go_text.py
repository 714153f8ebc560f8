"""Go's strings and their literals.

A Go string is a sequence of bytes. Here it is a `str` whose bytes that are no UTF-8 are lone
surrogates, as `surrogateescape` makes them.
"""

from __future__ import annotations

import re

SPACES = " \t\r\n"

_ESCAPES = {
    "a": b"\a",
    "b": b"\b",
    "f": b"\f",
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "v": b"\v",
    "\\": b"\\",
}
_SHORT = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def to_bytes(text: str) -> bytes:
    """The bytes of a Go string; a surrogate that stands for no byte becomes U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "".join(
            "\ufffd" if "\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff" else c
            for c in text
        ).encode("utf-8", "surrogateescape")


def from_bytes(data: bytes) -> str:
    """The Go string of `data`."""
    return data.decode("utf-8", "surrogateescape")


def well_formed(text: str) -> str:
    """`text` without surrogates: U+FFFD for every byte that is no UTF-8."""
    if not _SURROGATE.search(text):
        return text
    return _SURROGATE.sub("\ufffd", from_bytes(to_bytes(text)))


def is_letter_or_digit(char: str) -> bool:
    """Whether `char` may be part of an identifier."""
    return char == "_" or char.isalpha() or char.isdecimal()


def quote(text: str, mark: str = '"', *, ascii_only: bool = False) -> str:
    """`text` as a Go literal between two `mark`s, as strconv.Quote writes it."""
    return mark + "".join(_quoted(char, mark, ascii_only=ascii_only) for char in text) + mark


def _quoted(char: str, mark: str, *, ascii_only: bool) -> str:
    if char == mark or char in _SHORT:
        return _SHORT.get(char, "\\" + char)
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if 0xD800 <= code <= 0xDFFF:
        char, code = "\ufffd", 0xFFFD
    if char.isprintable() and (code < 0x80 or not ascii_only):
        return char
    width, letter = (2, "x") if code < 0x80 else (4, "u") if code < 0x10000 else (8, "U")
    return f"\\{letter}{code:0{width}x}"


def describe(char: str) -> str:
    """A character as Go's `%#U` writes it; `""` is the end of the text."""
    if not char:
        return "U+FFFFFFFFFFFFFFFF"
    code = 0xFFFD if "\ud800" <= char <= "\udfff" else ord(char)
    shown = chr(code)
    return f"U+{code:04X} '{shown}'" if shown.isprintable() else f"U+{code:04X}"


def unquote(literal: str) -> str:
    """The string of a literal with its quotes (`"` or a back quote). ValueError: it is none."""
    mark, inner = literal[0], literal[1:-1]
    if mark == "`":
        return inner.replace("\r", "")
    data, at = bytearray(), 0
    while at < len(inner):
        piece, at = _unquoted(inner, at, mark)
        data += piece
    return from_bytes(bytes(data))


def unquote_char(literal: str) -> int:
    """The code point of a character literal with its quotes. ValueError: it is none."""
    inner = literal[1:-1]
    if not inner:
        raise ValueError(literal)
    if inner[0] != "\\":
        code, end = ord(inner[0]), 1
    else:
        piece, end = _unquoted(inner, 0, "'")
        is_byte = inner[1] == "x" or inner[1].isdigit()
        code = piece[0] if is_byte else ord(piece.decode("utf-8", "surrogatepass"))
    if end != len(inner):
        raise ValueError(literal)
    return 0xFFFD if 0xDC80 <= code <= 0xDCFF else code


def _unquoted(text: str, at: int, mark: str) -> tuple[bytes, int]:
    """The bytes that `text` at `at` stands for, and where it goes on."""
    char = text[at]
    if char == mark:
        raise ValueError(text)
    if char != "\\":
        return to_bytes(char), at + 1
    at += 1
    if at >= len(text):
        raise ValueError(text)
    char = text[at]
    if char in _ESCAPES:
        return _ESCAPES[char], at + 1
    if char == mark:
        return char.encode(), at + 1
    if char in _HEX_DIGITS:
        return _hex_escape(text, at + 1, _HEX_DIGITS[char])
    digits = text[at : at + 3]
    if len(digits) == 3 and all(digit in "01234567" for digit in digits) and int(digits, 8) < 256:
        return bytes([int(digits, 8)]), at + 3
    raise ValueError(text)


def _hex_escape(text: str, at: int, count: int) -> tuple[bytes, int]:
    digits = text[at : at + count]
    if len(digits) < count or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(text)
    code = int(digits, 16)
    if count == 2:
        return bytes([code]), at + count
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(text)
    return chr(code).encode(), at + count
