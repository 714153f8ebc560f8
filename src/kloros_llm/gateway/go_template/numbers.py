"""Number literals, as Go reads them."""

from __future__ import annotations

import math
import re

_PREFIXED = re.compile(r"0([xX](?:_?[0-9a-fA-F])+|[oO](?:_?[0-7])+|[bB](?:_?[01])+|(?:_?[0-7])+)")
_DECIMAL = re.compile(r"0|[1-9](?:_?[0-9])*")
_DIGITS = r"[0-9](?:_?[0-9])*"
_FLOAT = re.compile(rf"(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?")
_HEX_FLOAT = re.compile(
    r"0[xX](?:(?:_?[0-9a-fA-F])+\.?(?:[0-9a-fA-F](?:_?[0-9a-fA-F])*)?"
    r"|\.[0-9a-fA-F](?:_?[0-9a-fA-F])*)[pP][+-]?[0-9]+"
)
_LONGEST = 200  # no more characters than these make 64 bits, leading zeros aside
_FLOAT_MARKS = frozenset(".eEpP")


def _integer(text: str) -> int | None:
    """The value of an integer literal without its sign."""
    if not _DECIMAL.fullmatch(text) and not _PREFIXED.fullmatch(text):
        return None
    if len(text) > _LONGEST:
        return 1 << 64
    if _DECIMAL.fullmatch(text):
        return int(text.replace("_", ""))
    digits = text[1:].replace("_", "")
    base = {"x": 16, "o": 8, "b": 2}.get(digits[0].lower())
    return int(digits, 8) if base is None else int(digits[1:], base)


def _float(text: str) -> float | None:
    if _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
    elif _HEX_FLOAT.fullmatch(text):
        try:
            value = float.fromhex(text.replace("_", ""))
        except OverflowError:
            return None
    else:
        return None
    return value if math.isfinite(value) else None


def parse_number(text: str) -> int | float:
    """The value of a literal, an `int` where the literal has neither point nor exponent.

    ValueError says what Go says of it.
    """
    if text.endswith("i"):
        raise ValueError(f"complex number {text} is not supported")
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    integer = _integer(digits)
    if integer is not None:
        value = sign * integer
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f'integer overflow: "{text}"')
        if value >= 1 << 63:
            raise ValueError(f"{text} overflows int")
        return value
    number = _float(digits)
    if number is None:
        raise ValueError(f'illegal number syntax: "{text}"')
    if not _FLOAT_MARKS & set(text):
        raise ValueError(f'integer overflow: "{text}"')
    return sign * number
