"""Which of its wishes an instance gets: its own, or the first alternative that can be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .gpu_choice import ChosenGpu, choose_gpus
from .wishes import with_alternative


@dataclass(frozen=True)
class Candidate:
    """One way to run an instance: a whole wish, and the GPUs that it names.

    `number` is 0 for the wish itself and counts its alternatives from 1. `missing` says why its
    GPUs cannot be had; None where they can.
    """

    number: int
    wish: Mapping[str, Any]
    gpus: Sequence[ChosenGpu]
    missing: str | None = None


def usable_gpus(
    gpus: Sequence[Mapping[str, Any]], lockout: Sequence[int | str]
) -> list[Mapping[str, Any]]:
    """The GPUs that are not locked out; a lock-out names an index or a UUID."""
    locked = {str(item) for item in lockout}
    return [gpu for gpu in gpus if not locked & {str(gpu["index"]), gpu["uuid"]}]


def candidates(
    wish: Mapping[str, Any], shown: Mapping[str, Any], lockout: Sequence[int | str]
) -> list[Candidate]:
    """The wish and its alternatives, in order; `shown` is what `gpu_info` returned."""
    found = []
    for number, changes in enumerate(({}, *wish["alternatives"])):
        merged = with_alternative(wish, changes)
        try:
            if merged["gpus"] and shown["status"] != "ok":
                raise ValueError(shown["detail"])
            chosen = choose_gpus(merged["gpus"], _unlocked(merged["gpus"], shown["gpus"], lockout))
        except ValueError as problem:
            found.append(Candidate(number, merged, (), str(problem)))
        else:
            found.append(Candidate(number, merged, chosen))
    return found


def _unlocked(
    wanted: Sequence[int | str], there: Sequence[Mapping[str, Any]], lockout: Sequence[int | str]
) -> list[Mapping[str, Any]]:
    """The usable GPUs. Raises ValueError where a wanted one is there and locked out."""
    usable = usable_gpus(there, lockout)
    for gpu in there:
        if gpu not in usable and {gpu["index"], gpu["uuid"]} & set(wanted):
            raise ValueError(f"GPU {gpu['index']} ({gpu['name']}) is locked out by gpu_lockout")
    return usable


@dataclass(frozen=True)
class Choice:
    """What was settled on: a candidate an instance, and why it is not the wish itself."""

    chosen: Mapping[str, Candidate]
    passed_over: Mapping[str, Sequence[str]]
    memory: dict[str, Any]


def choose(
    instances: Mapping[str, Sequence[Candidate]],
    plan_memory: Callable[[Mapping[str, Candidate]], dict[str, Any]],
) -> Choice:
    """Give each instance its first candidate whose GPUs are there and which has room.

    Where the memory does not do, the last instance in the inventory that has another alternative
    takes it, since the earlier ones come first. `plan_memory` returns what `vram_plan` does.
    """
    passed_over: dict[str, list[str]] = {name: [] for name in instances}
    place = {name: _next(found, -1, passed_over[name]) for name, found in instances.items()}
    while True:
        chosen = {name: found[place[name] or 0] for name, found in instances.items()}
        memory = plan_memory(chosen)
        said = {problem["instance"]: problem["found"] for problem in memory["problems"]}
        for name in reversed(list(instances)):
            if name not in said:
                continue
            after = _next(instances[name], place[name] or 0, passed_over[name])
            if after is not None:
                number = chosen[name].number
                passed_over[name].append(f"{_called(number)}: {said[name]}")
                place[name] = after
                break
        else:
            return Choice(chosen, passed_over, memory)


def _next(found: Sequence[Candidate], after: int, passed_over: list[str]) -> int | None:
    """The place of the next candidate whose GPUs can be had; says why others are passed over."""
    reasons: list[str] = []
    for place in range(after + 1, len(found)):
        missing = found[place].missing
        if missing is None:
            passed_over += reasons
            return place
        reasons.append(f"{_called(found[place].number)}: {missing}")
    return None


def _called(number: int) -> str:
    return "the wish itself" if number == 0 else f"alternative {number}"
