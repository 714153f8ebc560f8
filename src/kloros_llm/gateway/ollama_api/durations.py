"""Go's durations, in which clients write `keep_alive`. Times are nanoseconds."""

from __future__ import annotations

import re
from typing import Any

FOREVER_NS = 2**63 - 1
"""What a negative `keep_alive` becomes; `ps` shows it as a date in the year 2319 or so."""

_SECOND_NS = 1_000_000_000
_LIMIT = 1 << 63
# Both signs for micro: U+00B5 and the Greek letter U+03BC.
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": _SECOND_NS,
    "m": 60 * _SECOND_NS,
    "h": 3600 * _SECOND_NS,
}
_PART = re.compile(r"([0-9]*)(\.?)([0-9]*)([^0-9.]*)")
# The whole of any number that fits has 19 digits; Python would take long over a million of them.
_MOST_DIGITS = 19
# Go would add up a million parts; nobody who means a duration writes that.
_MOST_CHARACTERS = 1000
_NOT_AS_IT_IS = re.compile(r'["\\\x00-\x1f\x80-\xff]')


class DurationError(ValueError):
    """No duration; the text is Go's."""


def parse_duration(text: str) -> int:
    """time.ParseDuration: `1h30m`, `-1.5s`, `0`. Raises DurationError with Go's text."""
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    if len(rest) > _MOST_CHARACTERS:
        raise DurationError(f"time: invalid duration {_quoted(text)}")
    total = 0
    position = 0
    while position < len(rest) or not rest:
        part = _PART.match(rest, position)
        if part is None or not (part[1] or part[3]):
            raise DurationError(f"time: invalid duration {_quoted(text)}")
        position = part.end()
        total += _part_ns(part, text)
        if total > _LIMIT:
            raise DurationError(f"time: invalid duration {_quoted(text)}")
    if sign > 0 and total == _LIMIT:
        raise DurationError(f"time: invalid duration {_quoted(text)}")
    return sign * total


def keep_alive(value: Any) -> int:
    """What `keep_alive` says in a request: seconds as a number, or a duration as text.

    Negative ones are FOREVER_NS. Raises DurationError with Ollama's text.
    """
    if isinstance(value, str):
        duration = parse_duration(value)
        return FOREVER_NS if duration < 0 else duration
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationError(f"Unsupported type: '{_go_type(value)}'")
    if value < 0:
        return FOREVER_NS
    # A float, as in Go: 1e30 seconds are not a day less than for ever.
    return int(min(float(value) * _SECOND_NS, FOREVER_NS))


def _part_ns(part: re.Match[str], text: str) -> int:
    whole = part[1].lstrip("0")
    unit = part[4]
    if len(whole) > _MOST_DIGITS or int(whole or 0) > _LIMIT:
        raise DurationError(f"time: invalid duration {_quoted(text)}")
    if not unit:
        raise DurationError(f"time: missing unit in duration {_quoted(text)}")
    factor = _UNITS_NS.get(unit)
    if factor is None:
        raise DurationError(f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
    # Nothing is measured in less than a nanosecond: further digits change nothing.
    fraction = part[3][:_MOST_DIGITS]
    below = int(float(fraction) * (factor / 10 ** len(fraction))) if fraction else 0
    nanoseconds = int(whole or 0) * factor + below
    if nanoseconds > _LIMIT:
        raise DurationError(f"time: invalid duration {_quoted(text)}")
    return nanoseconds


def _quoted(text: str) -> str:
    """Package time quotes by itself, byte by byte, so that it need not import strconv."""
    data = text.encode("utf-8", "replace").decode("latin-1")
    return f'"{_NOT_AS_IT_IS.sub(_escaped, data)}"'


def _escaped(match: re.Match[str]) -> str:
    byte = match[0]
    return f"\\{byte}" if byte in '"\\' else f"\\x{ord(byte):02x}"


def _go_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, list | tuple):
        return "[]interface {}"
    return "map[string]interface {}"
