"""The functions that a template may call: Go's own, and Ollama's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from ..go_text import to_bytes
from .budget import Budget
from .comparison import equal, less, less_or_equal
from .formatting import (
    byte_slice,
    html_escape,
    js_escape,
    query_escape,
    sprint,
    sprintf,
    sprintln,
)
from .go_json import JsonError, marshal
from .values import Struct, Value, element, is_list, is_true, length, settled, type_name


@dataclass(frozen=True, slots=True)
class Function:
    """`most` arguments at most, None: any number. `call` raises ValueError with what is wrong.

    The first `strings` arguments have to be strings; -1: all of them.
    """

    call: Callable[[Sequence[Value], Budget], Value]
    least: int = 1
    most: int | None = 1
    strings: int = 0


def _not(args: Sequence[Value], _: Budget) -> Value:
    return not is_true(args[0])


def _len(args: Sequence[Value], _: Budget) -> Value:
    value = settled(args[0])
    if value is None:
        raise ValueError("len of nil pointer")
    count = length(value)
    if count is None:
        raise ValueError(f"len of type {type_name(value)}")
    return count


def _at(value: Value, most: int) -> int:
    """An index into a slice or a string."""
    if value is None:
        raise ValueError("cannot index slice/array with nil")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"cannot index slice/array with type {type_name(value)}")
    if not 0 <= value <= most:
        raise ValueError(f"index out of range: {value}")
    return value


def _index(args: Sequence[Value], _: Budget) -> Value:
    item = settled(args[0])
    if item is None:
        raise ValueError("index of untyped nil")
    for key in map(settled, args[1:]):
        item = settled(item)
        if item is None:
            raise ValueError("index of nil pointer")
        if isinstance(item, dict):
            if not isinstance(key, str):
                found = "is nil" if key is None else f"has type {type_name(key)}"
                raise ValueError(f"value {found}; should be of type string")
            item = element(item.get(key))
            continue
        count = length(item)
        if count is None:
            raise ValueError(f"can't index item of type {type_name(item)}")
        at = _at(key, count)
        if at == count:
            raise ValueError(f"index out of range: {at}")
        item = to_bytes(item)[at] if isinstance(item, str) else element(item[at])
    return item


def _slice(args: Sequence[Value], budget: Budget) -> Value:
    item = settled(args[0])
    if item is None:
        raise ValueError("slice of untyped nil")
    if len(args) > 4:
        raise ValueError(f"too many slice indexes: {len(args) - 1}")
    if not isinstance(item, str) and not is_list(item):
        raise ValueError(f"can't slice item of type {type_name(item)}")
    if isinstance(item, str) and len(args) == 4:
        raise ValueError("cannot 3-index slice a string")
    count = length(item) or 0
    bounds = [0, count, count]
    for place, value in enumerate(map(settled, args[1:])):
        bounds[place] = _at(value, count)
    start, end, most = bounds
    if start > end or end > most:
        raise ValueError("invalid slice index")
    if isinstance(item, str):
        return byte_slice(item, start, end)
    budget.step((end - start) >> 5)
    return item[start:end]


def _text(args: Sequence[Value]) -> str:
    """What the escaping functions escape."""
    if len(args) == 1 and isinstance(args[0], str):
        return args[0]
    return sprint(["<no value>" if settled(value) is None else value for value in args])


def _of_text(write: Callable[[Sequence[Value]], str]) -> Callable[[Sequence[Value], Budget], str]:
    def call(args: Sequence[Value], budget: Budget) -> str:
        text = write(args)
        budget.format(len(text))
        return text

    return call


def _eq(args: Sequence[Value], _: Budget) -> Value:
    return equal(args[0], args[1:])


def _ne(args: Sequence[Value], _: Budget) -> Value:
    return not equal(args[0], args[1:])


def _lt(args: Sequence[Value], _: Budget) -> Value:
    return less(args[0], args[1])


def _le(args: Sequence[Value], _: Budget) -> Value:
    return less_or_equal(args[0], args[1])


def _gt(args: Sequence[Value], _: Budget) -> Value:
    return not less_or_equal(args[0], args[1])


def _ge(args: Sequence[Value], _: Budget) -> Value:
    return not less(args[0], args[1])


def _json(args: Sequence[Value]) -> str:
    try:
        return marshal(args[0])
    except JsonError:
        return ""  # Ollama ignores the error


def _typescript(args: Sequence[Value]) -> str:
    """The type of a tool's property in TypeScript."""
    value = settled(args[0])
    if not isinstance(value, Struct) or value.type_name != "api.ToolProperty":
        return "any"
    alternatives = value.fields["AnyOf"].value
    if alternatives:
        return " | ".join(_typescript([alternative]) for alternative in alternatives)
    names = [_TYPESCRIPT.get(name, "any") for name in value.fields["Type"].value]
    return " | ".join(names) or "any"


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def _date(days: int) -> Callable[[Sequence[Value]], str]:
    # The server's own day, as Ollama's.
    return lambda _: (date.today() + timedelta(days)).isoformat()


def _printf(args: Sequence[Value]) -> str:
    return sprintf(args[0], [settled(value) for value in args[1:]])


# `and` and `or` evaluate their arguments one by one, so the evaluator does them.
FUNCTIONS: Mapping[str, Function] = {
    "and": Function(lambda args, _: args[-1], 1, None),
    "or": Function(lambda args, _: args[-1], 1, None),
    "not": Function(_not),
    "len": Function(_len),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, None),
    "eq": Function(_eq, 1, None),
    "ne": Function(_ne, 2, 2),
    "lt": Function(_lt, 2, 2),
    "le": Function(_le, 2, 2),
    "gt": Function(_gt, 2, 2),
    "ge": Function(_ge, 2, 2),
    "print": Function(_of_text(sprint), 0, None),
    "println": Function(_of_text(sprintln), 0, None),
    "printf": Function(_of_text(_printf), 1, None, strings=1),
    "html": Function(_of_text(lambda args: html_escape(_text(args))), 0, None),
    "js": Function(_of_text(lambda args: js_escape(_text(args))), 0, None),
    "urlquery": Function(_of_text(lambda args: query_escape(_text(args))), 0, None),
    "json": Function(_of_text(_json)),
    "toJson": Function(_of_text(_json)),
    "toTypeScriptType": Function(_of_text(_typescript)),
    "currentDate": Function(_of_text(_date(0)), 0, None, strings=-1),
    "yesterdayDate": Function(_of_text(_date(-1)), 0, None, strings=-1),
}
