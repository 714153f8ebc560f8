"""Values as Go's package fmt writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..go_text import from_bytes, quote, to_bytes
from .go_json import digits_of, marshal, positional, scientific
from .values import (
    NIL,
    JsonList,
    JsonMap,
    Struct,
    TypeList,
    Value,
    is_list,
    key_order,
    type_name,
)

_WIDEST = 1_000_000
_SHORTEST = -1
_LARGEST_EXPONENT = 6  # not above: of floats without a precision


@dataclass(slots=True)
class _Verb:
    """`%`, flags, width, precision and a letter. Without a precision it is -1."""

    letter: str = "v"
    flags: str = ""
    width: int = 0
    precision: int = _SHORTEST
    names_fields: bool = False


def text_of(value: Value) -> str | None:
    """What the String method gives; None where there is none."""
    if isinstance(value, JsonList | JsonMap) or (isinstance(value, Struct) and value.is_json):
        return marshal(value)
    if isinstance(value, TypeList) and len(value) < 2:
        return "".join(value)
    return None


def show(value: Value) -> str:
    """`%v`."""
    if isinstance(value, str):
        return value
    return _formatted(value, _Verb())


def sprint(values: Sequence[Value]) -> str:
    """fmt.Sprint: blanks stand between two operands of which neither is a string."""
    parts: list[str] = []
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            parts.append(" ")
        parts.append(show(value))
    return "".join(parts)


def sprintln(values: Sequence[Value]) -> str:
    """fmt.Sprintln."""
    return " ".join(map(show, values)) + "\n"


def sprintf(pattern: str, values: Sequence[Value]) -> str:
    """fmt.Sprintf. ValueError: `*` and `[n]`, which are not supported."""
    parts: list[str] = []
    used = at = 0
    while (percent := pattern.find("%", at)) >= 0:
        parts.append(pattern[at:percent])
        verb, at = _verb(pattern, percent + 1)
        if verb is None:
            parts.append("%!(NOVERB)")
            break
        if verb.letter == "%":
            parts.append("%")
        elif used >= len(values):
            parts.append(f"%!{verb.letter}(MISSING)")
        else:
            parts.append(_formatted(values[used], verb))
            used += 1
    else:
        parts.append(pattern[at:])
    if used < len(values):
        extra = ", ".join(
            "<nil>" if value is None else f"{_type(value)}={show(value)}" for value in values[used:]
        )
        parts.append(f"%!(EXTRA {extra})")
    return "".join(parts)


def check_pattern(pattern: str) -> None:
    """ValueError: what `sprintf` does not support."""
    sprintf(pattern, ())


def _verb(pattern: str, at: int) -> tuple[_Verb | None, int]:
    """The verb whose `%` stands before `at`, and where it ends; None where there is no letter."""
    start = at
    while at < len(pattern) and pattern[at] in "+-# 0":
        at += 1
    verb = _Verb(flags=pattern[start:at])
    verb.width, at = _digits(pattern, at)
    if at < len(pattern) and pattern[at] == ".":
        verb.precision, at = _digits(pattern, at + 1)
    if at < len(pattern) and pattern[at] in "*[":
        raise ValueError(f"{pattern[at]!r} in the format {quote(pattern)} is not supported")
    if at >= len(pattern):
        return None, at
    verb.letter = pattern[at]
    if verb.letter == "v":
        if "#" in verb.flags:
            raise ValueError(f"%#v in the format {quote(pattern)} is not supported")
        verb.names_fields = "+" in verb.flags
        verb.flags = verb.flags.replace("+", "")
    return verb, at + 1


def _digits(text: str, at: int) -> tuple[int, int]:
    end = at
    while end < len(text) and "0" <= text[end] <= "9":
        end += 1
    if end - at > 7 or (end > at and int(text[at:end]) > _WIDEST):
        raise ValueError(f"a width of more than {_WIDEST} in a format is not supported")
    return int(text[at:end] or 0), end


def _type(value: Value) -> str:
    return type_name(None if value is NIL else value)


def _bad(value: Value, verb: _Verb) -> str:
    if value is None or value is NIL:
        return f"%!{verb.letter}(<nil>)"
    plain = replace(verb, letter="v")
    return f"%!{verb.letter}({_type(value)}={_formatted(value, plain)})"


def _padded(text: str, verb: _Verb, *, zeros: bool = False) -> str:
    missing = verb.width - len(text)
    if missing <= 0:
        return text
    if "-" in verb.flags:
        return text + " " * missing
    if zeros and "0" in verb.flags:
        sign = text[:1] if text[:1] in {"+", "-", " "} else ""
        return sign + "0" * missing + text[len(sign) :]
    # Go pads strings with zeros, too.
    return ("0" if "0" in verb.flags else " ") * missing + text


def _formatted(value: Value, verb: _Verb) -> str:
    if verb.letter == "T":
        return _padded(_type(value), verb)
    written = text_of(value) if verb.letter in "vsqxX" else None
    if written is not None:
        value = written
    if value is None or value is NIL:
        return _padded("<nil>", verb) if verb.letter == "v" else _bad(None, verb)
    if is_list(value):
        return "[" + " ".join(_nested(item, verb) for item in value) + "]"
    if isinstance(value, dict):
        keys = key_order(value)
        pairs = (f"{_formatted(key, verb)}:{_nested(value[key], verb)}" for key in keys)
        return "map[" + " ".join(pairs) + "]"
    return _WRITERS[type(value)](value, verb)


def _struct(value: Struct, verb: _Verb) -> str:
    inner = (
        (f"{name}:" if verb.names_fields else "") + _nested(field.value, verb)
        for name, field in value.fields.items()
    )
    return "{" + " ".join(inner) + "}"


def _bool(value: bool, verb: _Verb) -> str:
    if verb.letter not in "vt":
        return _bad(value, verb)
    return _padded("true" if value else "false", verb)


def _nested(value: Value, verb: _Verb) -> str:
    """A value inside another one, where nil is the same for all verbs."""
    return "<nil>" if value is None or value is NIL else _formatted(value, verb)


def _string(value: str, verb: _Verb) -> str:
    if verb.letter in "xX":
        data = to_bytes(value)
        data = data if verb.precision < 0 else data[: verb.precision]
        separator = " " if " " in verb.flags else ""
        prefix = "0x" if "#" in verb.flags and data else ""
        text = prefix + data.hex() if not separator else separator.join(f"{b:02x}" for b in data)
        return _padded(text.upper() if verb.letter == "X" else text, verb)
    if verb.precision >= 0:
        value = value[: verb.precision]
    if verb.letter in "vs":
        return _padded(value, verb)
    if verb.letter != "q":
        return _bad(value, verb)
    if "#" in verb.flags and "`" not in value and all(c == "\t" or c.isprintable() for c in value):
        return _padded(f"`{value}`", verb)
    return _padded(quote(value, ascii_only="+" in verb.flags), verb)


def _sign(verb: _Verb, *, negative: bool) -> str:
    if negative:
        return "-"
    return "+" if "+" in verb.flags else " " if " " in verb.flags else ""


def _integer(value: int, verb: _Verb) -> str:
    if verb.letter == "c":
        return _padded(_char(value), verb)
    if verb.letter == "q":
        return _padded(quote(_char(value), "'", ascii_only="+" in verb.flags), verb)
    if verb.letter == "U":
        text = f"U+{value & (1 << 64) - 1 if value < 0 else value:04X}"
        if "#" in verb.flags and _char(value).isprintable():
            text += f" '{_char(value)}'"
        return _padded(text, verb)
    base = {"v": "d", "d": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}.get(verb.letter)
    if base is None:
        return _bad(value, verb)
    digits = f"{abs(value):{base}}"
    if verb.precision >= 0:
        if verb.precision == 0 and value == 0:
            return " " * verb.width
        digits = digits.rjust(verb.precision, "0")
    sign = _sign(verb, negative=value < 0)
    if "0" in verb.flags and "-" not in verb.flags and verb.precision < 0:
        digits = digits.rjust(verb.width - len(sign), "0")
    if verb.letter == "O":
        digits = "0o" + digits
    elif "#" in verb.flags:
        prefix = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}.get(base, "")
        digits = digits if base == "o" and digits.startswith("0") else prefix + digits
    return _padded(sign + digits, _Verb(flags=verb.flags.replace("0", ""), width=verb.width))


def _char(code: int) -> str:
    return "\ufffd" if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF else chr(code)


def _float(value: float, verb: _Verb) -> str:
    letter = "g" if verb.letter == "v" else verb.letter
    if letter in "bxX" or "#" in verb.flags:
        raise ValueError(f"%{verb.flags}{verb.letter} of a float64 is not supported")
    if letter not in "eEfFgG":
        return _bad(value, verb)
    sign = _sign(verb, negative=math.copysign(1, value) < 0 and not math.isnan(value))
    if not math.isfinite(value):
        text = "NaN" if math.isnan(value) else "Inf"
        if math.isinf(value) and not sign:
            sign = "+"
        plain = _Verb(flags=verb.flags.replace("0", ""), width=verb.width)
        return _padded(sign + text, plain)
    text = _magnitude(abs(value), letter, verb)
    return _padded(sign + text, verb, zeros=True)


def _magnitude(value: float, letter: str, verb: _Verb) -> str:
    upper = letter in "EG"
    if letter in "fF":
        text = f"{value:.{6 if verb.precision < 0 else verb.precision}f}"
    elif letter in "eE":
        text = f"{value:.{6 if verb.precision < 0 else verb.precision}e}"
    elif verb.precision < 0:
        _, digits, exponent = digits_of(value)
        if not -4 <= exponent < _LARGEST_EXPONENT:
            text = scientific("", digits, exponent, width=2)
        else:
            text = positional("", digits, exponent)
    else:
        text = f"{value:.{verb.precision}g}"
    return text.upper() if upper else text


_WRITERS: dict[type, Callable[..., str]] = {
    bool: _bool,
    int: _integer,
    float: _float,
    str: _string,
    Struct: _struct,
}


def html_escape(text: str) -> str:
    """The function `html`."""
    return text.translate(_HTML)


_HTML = str.maketrans(
    {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
)
_JS = {
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "<": "\\u003C",
    ">": "\\u003E",
    "&": "\\u0026",
    "=": "\\u003D",
}
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


def js_escape(text: str) -> str:
    """The function `js`."""
    return "".join(_js_char(char) for char in text)


def _js_char(char: str) -> str:
    if char in _JS:
        return _JS[char]
    if "\ud800" <= char <= "\udfff":
        return "\ufffd"
    if char < " " or not (char.isascii() or char.isprintable()):
        return f"\\u{ord(char):04X}"
    return char


def query_escape(text: str) -> str:
    """The function `urlquery`."""
    return "".join(
        chr(byte) if byte in _PLAIN else "+" if byte == 0x20 else f"%{byte:02X}"
        for byte in to_bytes(text)
    )


def byte_slice(text: str, start: int, end: int) -> str:
    """Bytes of a string, as a string."""
    return text[start:end] if text.isascii() else from_bytes(to_bytes(text)[start:end])
