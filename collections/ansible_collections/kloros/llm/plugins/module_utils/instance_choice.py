"""Which of its wishes an instance gets: its own, or the first alternative that can be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .gpu_choice import ChosenGpu, choose_gpus
from .wishes import with_alternative

PLANS_LIMIT: Final = 40
"""Combinations of alternatives that are planned to find one that fits."""


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
    """What was settled on: a candidate an instance, and why it is not the wish itself.

    `cut_short`: nothing was found that fits, and not all combinations were tried.
    """

    chosen: Mapping[str, Candidate]
    passed_over: Mapping[str, Sequence[str]]
    memory: dict[str, Any]
    cut_short: bool = False


PlanMemory = Callable[[Mapping[str, Candidate]], dict[str, Any]]


def choose(instances: Mapping[str, Sequence[Candidate]], plan_memory: PlanMemory) -> Choice:
    """Give each instance its first candidate whose GPUs are there and which has room.

    The earlier ones come first: an instance takes an alternative only where those before it leave
    no room for any better one, or where, with it as it is, a later one fits in no way. What fits in
    no way at all has its last alternative. `plan_memory` returns what `vram_plan` does; it refuses
    an instance for those before it, never for those after it.
    """
    search = _Search(instances, plan_memory)
    forward = search.go(step_back=False)
    refused = {problem["instance"] for problem in forward.memory["problems"]}
    if not refused or not all(search.fits_alone(name) for name in refused):
        return forward
    found = search.go(step_back=True)
    if not found.memory["problems"]:
        return found
    return replace(forward, cut_short=found.cut_short)


class _Search:
    """The combinations of candidates in lexicographic order, less those that cannot fit."""

    def __init__(
        self, instances: Mapping[str, Sequence[Candidate]], plan_memory: PlanMemory
    ) -> None:
        self.names = list(instances)
        self.plan_memory = plan_memory
        self.plans: dict[tuple[int, ...], dict[str, Any]] = {}
        # Where none of its GPUs can be had, the wish itself stands for the instance.
        self.open = {
            name: [one for one in found if one.missing is None] or [found[0]]
            for name, found in instances.items()
        }
        self.missing = {
            name: {one.number: one.missing for one in found if one.missing is not None}
            for name, found in instances.items()
        }

    def go(self, *, step_back: bool) -> Choice:
        """Until all fit or nothing is left to try.

        Without stepping back, what fits with no candidate is left behind and the later ones go on.
        """
        at = dict.fromkeys(self.names, 0)
        why: dict[str, dict[int, str]] = {name: {} for name in self.names}
        while True:
            chosen = {name: self.open[name][place] for name, place in at.items()}
            memory = self._planned(tuple(at.values()), chosen)
            if memory is None:
                return Choice(chosen, {}, {"problems": [{}]}, cut_short=True)
            said = {problem["instance"]: problem["found"] for problem in memory["problems"]}
            refused = [name for name in self.names if name in said]
            moves = self._before(refused[0]) if refused and step_back else refused
            name = next((one for one in moves if at[one] + 1 < len(self.open[one])), None)
            if name is None:
                return Choice(chosen, self._passed_over(chosen, why), memory)
            beside = f"with it there is no room for {refused[0]}"
            why[name][chosen[name].number] = said.get(name, beside)
            at[name] += 1
            if step_back:
                for later in self.names[self.names.index(name) + 1 :]:
                    at[later], why[later] = 0, {}

    def fits_alone(self, name: str) -> bool:
        """Whether there would be room for some candidate of the instance without the others."""
        return any(not self.plan_memory({name: one})["problems"] for one in self.open[name])

    def _before(self, refused: str) -> list[str]:
        """The instances that may make room for one, itself first and the earliest last."""
        return self.names[self.names.index(refused) :: -1]

    def _planned(
        self, places: tuple[int, ...], chosen: Mapping[str, Candidate]
    ) -> dict[str, Any] | None:
        """The plan of a combination, made once; None beyond the limit."""
        if places not in self.plans:
            if len(self.plans) == PLANS_LIMIT:
                return None
            self.plans[places] = self.plan_memory(chosen)
        return self.plans[places]

    def _passed_over(
        self, chosen: Mapping[str, Candidate], why: Mapping[str, Mapping[int, str]]
    ) -> dict[str, list[str]]:
        """Why it is none of the candidates before the chosen one."""
        return {
            name: [
                f"{_called(number)}: {reason}"
                for number, reason in sorted({**self.missing[name], **why[name]}.items())
                if number < one.number
            ]
            for name, one in chosen.items()
        }


def _called(number: int) -> str:
    return "the wish itself" if number == 0 else f"alternative {number}"
