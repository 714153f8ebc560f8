"""Go's `eq`, `ne`, `lt`, `le`, `gt` and `ge`."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from ..go_text import to_bytes
from .values import Struct, Value, is_list, settled, type_name


class _Kind(enum.Enum):
    NONE = enum.auto()
    BOOL = enum.auto()
    INT = enum.auto()
    FLOAT = enum.auto()
    STRING = enum.auto()
    OTHER = enum.auto()


_INCOMPATIBLE = "incompatible types for comparison"
_INVALID = "invalid type for comparison"


def _kind(value: Value) -> _Kind:
    match value:
        case None:
            return _Kind.NONE
        case bool():
            return _Kind.BOOL
        case int():
            return _Kind.INT
        case float():
            return _Kind.FLOAT
        case str():
            return _Kind.STRING
    return _Kind.OTHER


def _same(left: Value, right: Value) -> bool:
    """Equality of two values that are no basic ones."""
    if left is None or right is None:
        other = right if left is None else left
        return other is None or other == ()
    kinds = [(is_list(v), isinstance(v, Struct)) for v in (left, right)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"non-comparable types {type_name(left)}, {type_name(right)}")
    if () in (left, right) and kinds[0][0]:
        return bool(left == right)
    if not isinstance(left, Struct):
        raise ValueError(f"non-comparable type {type_name(right)}")
    return left is right


def equal(left: Value, others: Sequence[Value]) -> bool:
    """Whether `left` is one of `others`. ValueError: what Go says of the types."""
    if not others:
        raise ValueError("missing argument for comparison")
    left = settled(left)
    kind = _kind(left)
    for other in map(settled, others):
        other_kind = _kind(other)
        basic = {kind, other_kind} - {_Kind.NONE, _Kind.OTHER}
        if not basic:
            if _same(left, other):
                return True
        elif kind is not other_kind:
            if _Kind.NONE not in (kind, other_kind):
                raise ValueError(_INCOMPATIBLE)
        elif left == other:
            return True
    return False


def less(left: Value, right: Value) -> bool:
    """`left < right`. ValueError: what Go says of the types."""
    left, right = settled(left), settled(right)
    kinds = _kind(left), _kind(right)
    if _Kind.NONE in kinds or _Kind.OTHER in kinds:
        raise ValueError(_INVALID)
    if kinds[0] is not kinds[1]:
        raise ValueError(_INCOMPATIBLE)
    if kinds[0] is _Kind.BOOL:
        raise ValueError(_INVALID)
    if isinstance(left, str):
        return to_bytes(left) < to_bytes(right)
    return bool(left < right)


def less_or_equal(left: Value, right: Value) -> bool:
    """`left <= right`, as Go has it: less or equal."""
    return less(left, right) or equal(left, [right])
