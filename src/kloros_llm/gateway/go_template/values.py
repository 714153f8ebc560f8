"""The values that a template works with.

| Go | here |
|---|---|
| no value | `None` |
| bool, string | `bool`, `str` (see `go_text`) |
| int, float64 | `int`, `float` |
| slice | `list`, `tuple`; the empty tuple is a nil slice |
| map[string]any | `dict` |
| struct, pointer to one | `Struct` |
| a nil `any` in a field or an element | `NIL` |
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..go_text import to_bytes


class _Nil(enum.Enum):
    NIL = enum.auto()


NIL: Final = _Nil.NIL

# What a value is, is decided while the template runs.
Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class StructField:
    """A field's value, and how encoding/json names it."""

    value: Value
    json_name: str
    omit_empty: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct. `is_json` where its String method gives its JSON."""

    type_name: str
    fields: Mapping[str, StructField]
    is_json: bool = False


class JsonList(tuple[Value, ...]):
    """A slice whose String method gives its JSON."""

    __slots__ = ()


class JsonMap(dict[str, Value]):
    """A map whose String method gives its JSON."""

    __slots__ = ()


class InsertionMap(dict[str, Value]):
    """A map whose JSON keeps the order in which it was filled."""

    __slots__ = ()


class TypeList(tuple[str, ...]):
    """The types of a JSON schema: a single one reads, and is encoded, as that one."""

    __slots__ = ()


def is_list(value: Value) -> bool:
    """Whether Go would have a slice here."""
    return isinstance(value, list | tuple)


def element(value: Value) -> Value:
    """What stands in a slice or a map, as the template gets hold of it."""
    return NIL if value is None else value


def settled(value: Value) -> Value:
    """What a variable or a parameter holds of `value`."""
    return None if value is NIL else value


def type_name(value: Value) -> str:
    """Go's name of a value's type."""
    if isinstance(value, Struct):
        return value.type_name
    return _TYPE_NAMES.get(type(value)) or ("map[string]" * isinstance(value, dict) or "[]") + _ANY


_ANY = "interface {}"
_TYPE_NAMES = {
    type(None): "<nil>",
    _Nil: _ANY,
    bool: "bool",
    int: "int",
    float: "float64",
    str: "string",
}


def is_true(value: Value) -> bool:
    """Truth, as `if` has it: not the zero of its type. A struct always is true."""
    match value:
        case None | _Nil.NIL:
            return False
        case Struct():
            return True
    return bool(value)


def length(value: Value) -> int | None:
    """The bytes of a string, or the elements; None where there is no such thing."""
    match value:
        case str():
            return len(value) if value.isascii() else len(to_bytes(value))
        case list() | tuple() | dict():
            return len(value)
    return None


def key_order(keys: Iterable[str]) -> list[str]:
    """Keys of a map as Go goes through them."""
    return sorted(keys, key=to_bytes)
