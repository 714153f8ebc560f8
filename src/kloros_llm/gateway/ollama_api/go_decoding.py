"""From a decoded body to the fields of Ollama's request types, as encoding/json fills a struct.

Keys match whatever their case, the last one wins, `null` says nothing, unknown keys are nothing.
A value of a wrong type is noted and the rest is read; the first such note is what the client is
told. An error of a type that reads itself (a duration, a message) ends it at once. Source:
encoding/json/decode.go; since Go 1.24 an error names the whole path to its field.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ApiError
from .ollama_json import TOO_DEEP, Members, Number

# Go's limit is 10,000; Python's own recursion is the narrower one.
_MOST_LEVELS = 250
_INT_LIMIT = 1 << 63
# Up to here a float64, which is what Go makes of any number, holds every integer.
_EXACT = 1 << 53
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/\r\n]")
_NEWLINES = str.maketrans("", "", "\r\n")


@dataclass(frozen=True)
class Mismatch:
    """json.UnmarshalTypeError: which value was found, for which type, in which field."""

    found: str
    needed: str
    struct: str = ""
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.struct:
            return f"json: cannot unmarshal {self.found} into Go value of type {self.needed}"
        field = f"Go struct field {self.struct}.{'.'.join(self.path)}"
        return f"json: cannot unmarshal {self.found} into {field} of type {self.needed}"


class DecodingStoppedError(Exception):
    """What a type says that reads itself."""

    def __init__(self, problem: Mismatch | str) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass
class Reading:
    """Where the reader is, and the first thing that it found wrong."""

    struct: str = ""
    path: list[str] = field(default_factory=list)
    problem: Mismatch | str | None = None

    def note(self, found: str, needed: str) -> None:
        """A value of the wrong kind; reading goes on."""
        if self.problem is None:
            self.problem = Mismatch(found, needed, self.struct, tuple(self.path))

    def note_text(self, text: str) -> None:
        """Anything else that is wrong with a value."""
        if self.problem is None:
            self.problem = text

    def stop(self, problem: Mismatch | str) -> DecodingStoppedError:
        """The same problem as seen from here: Go names the outer struct and the whole path."""
        if isinstance(problem, Mismatch) and self.struct:
            path = (*self.path, *problem.path)
            problem = Mismatch(problem.found, problem.needed, self.struct, path)
        return DecodingStoppedError(problem)


Decoding = Callable[[Reading, Any], Any]


def read_struct(name: str, fields: Mapping[str, Decoding], value: Any) -> dict[str, Any]:
    """The fields that `value` gives a struct `api.<name>`; raises ApiError 400 with Go's text."""
    reading = Reading()
    try:
        result: dict[str, Any] = struct(name, fields)(reading, value)
    except DecodingStoppedError as error:
        raise ApiError(400, str(error.problem)) from None
    except RecursionError:
        raise ApiError(400, TOO_DEEP) from None
    if reading.problem is not None:
        raise ApiError(400, str(reading.problem))
    return result


def kind(value: Any) -> str:
    """What Go calls the JSON value."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "object" if isinstance(value, Members) else "array"


def struct(name: str, fields: Mapping[str, Decoding]) -> Decoding:
    """A struct: a dict of the fields that are there."""
    folded = {key.lower(): key for key in fields}

    def decode(reading: Reading, value: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if not isinstance(value, Members):
            if value is not None:
                reading.note(kind(value), f"api.{name}")
            return result
        outer = reading.struct
        for key, item in value:
            known = key if key in fields else folded.get(_folded(key))
            if known is None:
                continue
            decoding = fields[known]
            if item is None:
                if decoding not in _KEPT_ON_NULL:
                    result.pop(known, None)
                continue
            reading.struct = name
            reading.path.append(known)
            found = decoding(reading, item)
            # A second object under the same key adds to the first.
            if isinstance(found, dict) and known in result and decoding is not anything:
                found = {**result[known], **found}
            result[known] = found
            reading.path.pop()
            reading.struct = outer
        return result

    return decode


def own_reader(decoding: Decoding, on_null: Any = None) -> Decoding:
    """A type with an UnmarshalJSON of its own: what is wrong inside it ends everything."""

    def decode(reading: Reading, value: Any) -> Any:
        if value is None:
            return on_null
        inner = Reading()
        try:
            result = decoding(inner, value)
        except DecodingStoppedError as error:
            raise reading.stop(error.problem) from None
        if inner.problem is not None:
            raise reading.stop(inner.problem)
        return result

    return decode


def ordered_map(decoding: Decoding) -> Decoding:
    """Ollama's maps that keep their order. Its library's error text is not encoding/json's."""

    def decode(reading: Reading, value: Any) -> dict[str, Any]:
        if not isinstance(value, Members):
            raise reading.stop("Value looks like object, but can't find closing '}' symbol")
        read = own_reader(decoding)
        return {key: read(reading, item) for key, item in value}

    return decode


def string(reading: Reading, value: Any) -> str:
    """string"""
    if isinstance(value, str):
        return value
    if value is not None:
        reading.note(kind(value), "string")
    return ""


def boolean(reading: Reading, value: Any) -> bool:
    """bool"""
    if isinstance(value, bool):
        return value
    if value is not None:
        reading.note(kind(value), "bool")
    return False


def integer(reading: Reading, value: Any, *, name: str = "int", limit: int = _INT_LIMIT) -> int:
    """int: no fraction, no exponent, and it fits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        if value is not None:
            reading.note(kind(value), name)
        return 0
    if isinstance(value, int) and -limit <= value < limit:
        return value
    reading.note(f"number {_literal(value)}", name)
    return 0


def integer32(reading: Reading, value: Any) -> int:
    """int32"""
    return integer(reading, value, name="int32", limit=1 << 31)


def pointer(decoding: Decoding) -> Decoding:
    """A field that can be unset again: the last `null` of several does so."""

    def decode(reading: Reading, value: Any) -> Any:
        return decoding(reading, value)

    return decode


def array(decoding: Decoding, name: str) -> Decoding:
    """A slice; `name` is Go's for it."""

    def decode(reading: Reading, value: Any) -> list[Any]:
        if isinstance(value, Members) or not isinstance(value, list):
            if value is not None:
                reading.note(kind(value), name)
            return []
        return [decoding(reading, item) for item in value]

    return decode


def mapping(decoding: Decoding, name: str) -> Decoding:
    """A map with strings as keys; `name` is Go's for it."""

    def decode(reading: Reading, value: Any) -> dict[str, Any]:
        if not isinstance(value, Members):
            if value is not None:
                reading.note(kind(value), name)
            return {}
        return {key: decoding(reading, item) for key, item in value}

    return decode


def image(reading: Reading, value: Any) -> bytes:
    """api.ImageData, a []byte: base64, or an array of small numbers."""
    if isinstance(value, str):
        try:
            digits = value.translate(_NEWLINES) if "\n" in value or "\r" in value else value
            return binascii.a2b_base64(digits, strict_mode=True)
        except ValueError:
            reading.note_text(f"illegal base64 data at input byte {_base64_error(value)}")
            return b""
    if isinstance(value, list) and not isinstance(value, Members):
        return bytes(_byte(reading, item) for item in value)
    if value is not None:
        reading.note(kind(value), "api.ImageData")
    return b""


def anything(reading: Reading, value: Any, level: int = 0) -> Any:
    """`any`: plain Python values. Numbers are float64 in Go; whole ones are int here."""
    if level > _MOST_LEVELS:
        raise DecodingStoppedError(TOO_DEEP)
    if isinstance(value, Members):
        return {key: anything(reading, item, level + 1) for key, item in value}
    if isinstance(value, list):
        return [anything(reading, item, level + 1) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, int) and -_EXACT <= value <= _EXACT:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if number in (float("inf"), float("-inf")):
        reading.note(f"number {_literal(value)}", "float64")
        return None
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


_KEPT_ON_NULL: tuple[Decoding, ...] = (string, boolean, integer, integer32)


def _folded(key: str) -> str:
    """`key` under simple case folding, which finds two letters beyond ASCII in ASCII's names."""
    return (key if key.isascii() else key.replace("\u017f", "s").replace("\u212a", "k")).lower()


def _literal(value: int | float) -> str:
    return value.literal if isinstance(value, Number) else str(value)


def _byte(reading: Reading, value: Any) -> int:
    number = integer(reading, value, name="uint8")
    if 0 <= number < 256:
        return number
    reading.note(f"number {number}", "uint8")
    return 0


def _base64_error(text: str) -> int:
    """Where Go's decoder stops: at the first byte that cannot stand there."""
    data = text.encode(errors="replace").decode("latin-1")
    wrong = _NOT_BASE64.search(data)
    end = wrong.start() if wrong else len(data)
    digits = len(data[:end].translate(_NEWLINES)) % 4
    if wrong is None:
        # It ends within a group of four, of which Go names the first.
        return end - digits
    if data[end] != "=" or digits < 2:
        return end
    following = end + 1
    if digits == 2:
        following = _after_newlines(data, following)
        if following == len(data):
            return following
        if data[following] != "=":
            return following - 1
        following += 1
    return _after_newlines(data, following)


def _after_newlines(data: str, position: int) -> int:
    while data[position : position + 1] in ("\r", "\n"):
        position += 1
    return position
