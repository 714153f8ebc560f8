"""JSON as Go's encoding/json writes it."""

from __future__ import annotations

import math
import re

from .values import NIL, InsertionMap, Struct, TypeList, Value, is_list, is_true, key_order

_SPECIAL = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


class JsonError(ValueError):
    """There is no JSON for it: a number that is infinite or none."""


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char in _SHORT:
        return _SHORT[char]
    return "\\ufffd" if "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


def string(text: str) -> str:
    """A JSON string; `<`, `>` and `&` are escaped."""
    return f'"{_SPECIAL.sub(_escape, text)}"'


def digits_of(value: float) -> tuple[str, str, int]:
    """The sign, the shortest digits that give `value` back, and the exponent after the first.

    `value` is finite.
    """
    mantissa, _, exponent = f"{value!r}e0".partition("e")
    exponent = exponent.removesuffix("e0")
    sign, mantissa = ("-", mantissa[1:]) if mantissa[0] == "-" else ("", mantissa)
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return sign, "0", 0
    leading = len(whole) if whole != "0" else len(digits) - len(fraction)
    return sign, digits.rstrip("0"), leading - 1 + int(exponent)


def positional(sign: str, digits: str, exponent: int) -> str:
    """Digits with the exponent of the first one, without an exponent."""
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    whole = digits[: exponent + 1].ljust(exponent + 1, "0")
    fraction = digits[exponent + 1 :]
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


def scientific(sign: str, digits: str, exponent: int, *, width: int) -> str:
    """Digits with an exponent of at least `width` digits."""
    mantissa = f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else digits
    mark = "-" if exponent < 0 else "+"
    return f"{sign}{mantissa}e{mark}{abs(exponent):0{width}d}"


def number(value: float) -> str:
    """A JSON number. JsonError: it is not finite."""
    if not math.isfinite(value):
        raise JsonError(f"json: unsupported value: {value}")
    sign, digits, exponent = digits_of(value)
    if value and not -6 <= exponent < 21:
        return scientific(sign, digits, exponent, width=1 if exponent < 0 else 2)
    return positional(sign, digits, exponent)


def marshal(value: Value) -> str:
    """JSON without blanks, keys of maps in order. JsonError: there is none."""
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts)


def _write(value: Value, parts: list[str]) -> None:
    if value is None or value is NIL:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, str):
        parts.append(string(value))
    elif isinstance(value, int):
        parts.append(str(value))
    elif isinstance(value, float):
        parts.append(number(value))
    elif isinstance(value, TypeList) and len(value) == 1:
        parts.append(string(value[0]))
    elif is_list(value):
        _write_list(value, parts)
    elif isinstance(value, Struct):
        _write_fields(
            [
                (field.json_name, field.value)
                for field in value.fields.values()
                if not field.omit_empty or is_true(field.value)
            ],
            parts,
        )
    else:
        keys = list(value) if isinstance(value, InsertionMap) else key_order(value)
        _write_fields([(key, value[key]) for key in keys], parts)


def _write_list(values: Value, parts: list[str]) -> None:
    if values == () and not isinstance(values, TypeList):
        parts.append("null")
        return
    parts.append("[")
    for at, value in enumerate(values):
        if at:
            parts.append(",")
        _write(value, parts)
    parts.append("]")


def _write_fields(fields: list[tuple[str, Value]], parts: list[str]) -> None:
    parts.append("{")
    for at, (key, value) in enumerate(fields):
        parts.append(f"{',' if at else ''}{string(key)}:")
        _write(value, parts)
    parts.append("}")
