"""Numbers as Go prints them: in JSON, and with fmt's `%v`.

Source: Go's encoding/json (encode.go), strconv (ftoa.go) and fmt.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .json_text import compact, string


def encode(value: Any) -> str:
    """JSON of plain data, numbers as Go writes them; keys keep their order."""
    if isinstance(value, Mapping):
        members = (f"{string(str(key))}:{encode(one)}" for key, one in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(encode, value))}]"
    return json_number(value) if isinstance(value, float) else compact(value)


def json_number(value: float) -> str:
    """Digits as far as they are needed; an exponent below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        return "null"  # Go refuses them; a header may hold them all the same
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, _, exponent = repr(value).partition("e")
        # As 1e-09 is written 1e-9, but 1e+21 with its sign.
        return f"{mantissa.removesuffix('.0')}e{exponent[0]}{exponent[1:].lstrip('0')}"
    return _plain(Decimal(repr(value)))


def shown_number(value: float) -> str:
    """As `%v` shows a float64: an exponent below 1e-4 and from seven digits on."""
    value = float(value)
    if not math.isfinite(value):
        return {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
    digits = Decimal(repr(value))
    exponent = digits.adjusted() if value else 0
    if -4 <= exponent < 6:
        return _plain(digits)
    mantissa = _plain(digits.scaleb(-exponent))
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def shortest_float32(value: float) -> float:
    """The float with the fewest digits that is the same float32; others stay as they are."""
    if not math.isfinite(value) or _rounded(value) != value:
        return value
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((one for one in shorter if _rounded(one) == value), value)


def _rounded(value: float) -> float:
    """The nearest float32."""
    try:
        nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.inf
    return nearest


def human_number(count: int) -> str:
    """A number of parameters as Ollama shows it: 134.52M, 7.6B."""
    for unit, name, decimals in ((10**9, "B", 1), (10**6, "M", 2)):
        if count >= unit:
            number = count / unit
            return f"{number:.{0 if number == int(number) else decimals}f}{name}"
    return f"{count / 1000:.0f}K" if count >= 1000 else str(count)


def _plain(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
