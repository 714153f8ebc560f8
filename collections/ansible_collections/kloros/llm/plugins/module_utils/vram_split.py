"""How many layers each of several GPUs holds.

llama.cpp gives whole layers to the devices in their order, the output being the last of them.
Whole numbers that add up to the number of layers on the GPUs, given as `--tensor-split`, are
followed exactly (`load_tensors()` compares k/n with the running sums over n, both as floats).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from typing import Final

Counts = tuple[int, ...]
Load = Callable[[Counts], Sequence[float] | None]
"""Each device's need over its budget; None where the counts are not possible at all."""

_FINENESS: Final = 256  # steps in which the highest load over three devices and more is searched


def proportional(total: int, budgets: Sequence[float]) -> Counts:
    """Whole shares of `total` in proportion to the budgets; what is left over goes to the first."""
    whole = sum(budgets)
    if whole <= 0:
        return (total, *(0,) * (len(budgets) - 1))
    counts = [int(total * budget / whole) for budget in budgets]
    for position in range(total - sum(counts)):
        counts[position] += 1
    return tuple(counts)


def _highest(load: Load, counts: Counts) -> float:
    loads = load(counts)
    return float("inf") if loads is None else max(loads)


def _over_two(total: int, load: Load) -> Counts:
    """More layers on the first device raise its load and lower the second's: where they meet."""
    low, high = 0, total
    while low < high:
        middle = (low + high) // 2
        loads = load((middle, total - middle))
        if loads is not None and loads[0] < loads[1]:
            low = middle + 1
        else:
            high = middle
    near = [(first, total - first) for first in (low - 1, low) if first >= 0]
    return min(near, key=lambda counts: (_highest(load, counts), -counts[0]))


def _filled(total: int, devices: int, load: Load, limit: float) -> Counts | None:
    """Each device in turn gets as many layers as the limit allows; None if some are left over.

    No other counts within the limit exist if these do not: a device that starts with a later layer
    and ends with the same one needs no more.
    """
    counts: list[int] = []
    for position in range(devices - 1):
        left = total - sum(counts)

        def within(number: int, position: int = position, left: int = left) -> bool:
            between = (0,) * (devices - 2 - position)
            loads = load((*counts, number, *between, left - number))
            return loads is not None and loads[position] <= limit

        low, high = 0, left
        while low < high:
            middle = (low + high + 1) // 2
            if within(middle):
                low = middle
            else:
                high = middle - 1
        if not within(low):
            return None
        counts.append(low)
    whole = (*counts, total - sum(counts))
    return whole if _highest(load, whole) <= limit else None


def balanced(total: int, budgets: Sequence[float], load: Load) -> Counts:
    """The counts with the smallest highest load; where nothing fits, some that nearly would."""
    devices = len(budgets)
    if devices == 2:
        return _over_two(total, load)
    best = _filled(total, devices, load, 1.0)
    if best is None:
        return proportional(total, budgets)
    low, high = 0, _FINENESS
    while high - low > 1:
        middle = (low + high) // 2
        found = _filled(total, devices, load, middle / _FINENESS)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def splits(
    total: int, budgets: Sequence[float], load: Load, *, all_of_them: bool
) -> Iterator[Counts]:
    """Counts to try, best first: the balanced ones, and of two devices all others if asked.

    Of the others only those are given that each device has room for by itself. The farther from the
    balanced ones, the higher the load of the one device or of the other.
    """
    best = balanced(total, budgets, load)
    yield best
    if not all_of_them or len(budgets) != 2:
        return

    def beyond(places: range) -> Iterator[tuple[float, Counts]]:
        for first in places:
            counts = (first, total - first)
            highest = _highest(load, counts)
            if highest > 1:
                return
            yield highest, counts

    fewer, more = beyond(range(best[0] - 1, -1, -1)), beyond(range(best[0] + 1, total + 1))
    for _, counts in merge(fewer, more, key=lambda item: (item[0], -item[1][0])):
        yield counts
