"""The best setting of each instance, so that all of them fit together.

A setting is better the fewer layers it leaves to the CPU; of these, the larger its context; of
these, the earlier its KV type stands in the wish; of these, the more evenly it loads the GPUs. So
a wish is met fully on the GPUs with the wanted context and the first KV type, else with the next
type, else with a smaller context, and only then with fewer layers. Where layers have to go, as few
go as the smallest context allows, and the context then takes what that leaves.

Instances are settled in their order. Each gets its best setting that leaves room for all later
ones, each of them at its smallest context.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .memory_model import HOST
from .vram_need import Instance, Setting
from .vram_split import Counts, proportional, splits

Budgets = Mapping[str, int]

SEARCH_LIMIT: Final = 5_000
"""Settings looked at to find room for the later instances; beyond, there is taken to be none."""

_FIRST_LOOK: Final = 200  # of these settings, before it is asked what would be the least of all
_UNLIMITED_MIB: Final = 2**40
_STEPS_OF_A_SPLIT: Final = 16
_ROUNDS: Final = 4  # of asking the memory model's thumbnail, before it is asked in full throughout


def take(budgets: Budgets, used: Mapping[str, int]) -> dict[str, int] | None:
    """What is left of the budgets; None if it is not enough."""
    left = {key: budget - used.get(key, 0) for key, budget in budgets.items()}
    return left if all(left[key] >= 0 for key in used) else None


def settings(
    instance: Instance,
    step: tuple[int, int],
    context_tokens: int,
    kv_cache: str,
    budgets: Budgets,
    *,
    every_split: bool,
) -> Iterator[Setting]:
    """The settings that differ in the split alone, best first."""
    gpu_layers, cpu_moe_layers = step

    def setting(split: Sequence[float]) -> Setting:
        return Setting(context_tokens, kv_cache, gpu_layers, cpu_moe_layers, tuple(split))

    pools = [budgets[pool] for pool in instance.pools]
    if len(instance.gpus) < 2 or instance.split_mode == "none":
        yield setting(())
    elif instance.wished_split:
        yield setting(instance.wished_split)
    elif not instance.splits_layers:
        yield setting(proportional(100, pools))
    elif not gpu_layers:
        yield setting(())
    else:

        def load(counts: Counts) -> list[float] | None:
            used = instance.needs_or_none(setting(counts))
            if used is None:
                return None
            return [
                need.total_mib / budget if budget > 0 else float("inf")
                for need, budget in zip(used, pools, strict=False)
            ]

        for counts in splits(gpu_layers, pools, load, all_of_them=every_split):
            yield setting(counts)


def _settled(
    instance: Instance,
    step: tuple[int, int],
    context_tokens: int,
    budgets: Budgets,
    later: Room,
) -> Setting | None:
    """The first KV type and split with which this context fits and leaves room for the later."""
    shared = any(set(other.pools) & set(instance.pools) for other in later.instances)
    for kv_cache in instance.kv_types:
        for setting in settings(
            instance, step, context_tokens, kv_cache, budgets, every_split=shared
        ):
            used = instance.usage(setting)
            left = None if used is None else take(budgets, used)
            if left is not None and later.suffices(left):
                return setting
    return None


def _largest(
    instance: Instance, step: tuple[int, int], budgets: Budgets, later: Room
) -> Setting | None:
    """The setting with the largest context that fits; a larger context never needs less."""
    contexts = instance.contexts
    most = _settled(instance, step, contexts[-1], budgets, later)
    if most is not None or len(contexts) == 1:
        return most
    best = _settled(instance, step, contexts[0], budgets, later)
    if best is None:
        return None
    low, high = 0, len(contexts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        found = _settled(instance, step, contexts[middle], budgets, later)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best


def _first_step(instance: Instance, budgets: Budgets) -> int:
    """The first step at which the GPUs alone would be large enough: each step spares them more."""
    easy = {**budgets, HOST: _UNLIMITED_MIB}
    nobody = Room(())
    low, high = 0, len(instance.steps) - 1
    while low < high:
        middle = (low + high) // 2
        if _settled(instance, instance.steps[middle], instance.contexts[0], easy, nobody) is None:
            low = middle + 1
        else:
            high = middle
    return low


def best_setting(
    instance: Instance, budgets: Budgets, later: Sequence[Instance] = ()
) -> Setting | None:
    """The best setting within the budgets that leaves room for the later instances."""
    room = Room(later)
    for step in instance.steps[_first_step(instance, budgets) :]:
        found = _largest(instance, step, budgets, room)
        if found is not None:
            return found
    return None


class _Remembered:
    """What an iterator gives, to be gone through again; only as much is taken as is asked for."""

    def __init__(self, source: Iterator[Mapping[str, int]]) -> None:
        self.source = source
        self.items: list[Mapping[str, int]] = []

    def __iter__(self) -> Iterator[Mapping[str, int]]:
        position = 0
        while True:
            if position == len(self.items):
                more = next(self.source, None)
                if more is None:
                    return
                self.items.append(more)
            yield self.items[position]
            position += 1


def _is_balanced(instance: Instance) -> bool:
    """Whether of its splits only the one is looked at that is balanced within the budgets."""
    return instance.splits_layers and len(instance.gpus) > 2


def _smallest(instance: Instance, budgets: Budgets) -> Iterable[Mapping[str, int]]:
    """What the instance takes with its smallest context, in all ways that are looked at.

    The last steps come first, which spare the GPUs most. Where there are many steps and several
    GPUs to split over, some steps are left out; over three GPUs and more only the split that is
    balanced within the budgets is looked at.
    """
    if _is_balanced(instance):
        return _smallest_uses(instance, budgets)
    if instance.smallest_uses is None:
        outset = instance.around.machine.budgets()
        instance.smallest_uses = _Remembered(_smallest_uses(instance, outset))
    return instance.smallest_uses


def _smallest_uses(instance: Instance, budgets: Budgets) -> Iterator[Mapping[str, int]]:
    steps = list(reversed(instance.steps))
    if instance.splits_layers and len(steps) > _STEPS_OF_A_SPLIT:
        every = -(-len(steps) // _STEPS_OF_A_SPLIT)
        steps = [*steps[:-1:every], steps[-1]]
    seen: set[tuple[tuple[str, int], ...]] = set()
    for step in steps:
        smallest = _smallest_setting(instance, step, budgets)
        if smallest is None:
            continue
        for setting in settings(
            instance, step, smallest.context_tokens, smallest.kv_cache, budgets, every_split=True
        ):
            used = instance.usage(setting)
            if used is not None and (key := tuple(sorted(used.items()))) not in seen:
                seen.add(key)
                yield used


class Room:
    """Whether instances fit together, each with its smallest context; asked of many budgets.

    More than was enough is enough, and less than was too little is too little.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = instances
        self.enough: list[Budgets] = []
        self.too_little: list[Budgets] = []
        self.looked_at = 0
        self.least: list[tuple[dict[str, int], int]] = []

    def suffices(self, budgets: Budgets) -> bool:
        """Whether all of them fit into the budgets."""
        if not self.instances or any(_covers(budgets, known) for known in self.enough):
            return True
        if any(_covers(known, budgets) for known in self.too_little):
            return False
        found = self._search(budgets)
        (self.enough if found else self.too_little).append(budgets)
        return found

    def _search(self, budgets: Budgets) -> bool:
        if not self.least:
            # Mostly room is found at once, and what would be the least need not be known.
            self.looked_at = SEARCH_LIMIT - _FIRST_LOOK
            if self._fits(0, budgets):
                return True
            if self.looked_at <= SEARCH_LIMIT:
                return False
            places = range(len(self.instances))
            self.least = [_least(self.instances[position:]) for position in places]
        self.looked_at = 0
        return self._fits(0, budgets)

    def _fits(self, position: int, left: Budgets) -> bool:
        if position == len(self.instances):
            return True
        if self.least:
            least, together = self.least[position]
            if take(left, least) is None or sum(left[pool] for pool in least) < together:
                return False
        for used in _smallest(self.instances[position], left):
            self.looked_at += 1
            if self.looked_at > SEARCH_LIMIT:
                return False
            rest = take(left, used)
            if rest is not None and self._fits(position + 1, rest):
                return True
        return False


def _covers(budgets: Budgets, others: Budgets) -> bool:
    return all(budgets[pool] >= mib for pool, mib in others.items())


def _least(instances: Sequence[Instance]) -> tuple[dict[str, int], int]:
    """What the instances take at least of each pool, and in all, in whatever way they are run."""
    least: dict[str, int] = {}
    together = 0
    for instance in instances:
        if _is_balanced(instance):
            least |= {pool: least.get(pool, 0) for pool in (*instance.pools, HOST)}
            continue
        uses = list(_smallest(instance, instance.around.machine.budgets()))
        for pool in dict.fromkeys((*instance.pools, HOST)):
            least[pool] = least.get(pool, 0) + min((used.get(pool, 0) for used in uses), default=0)
        together += min((sum(used.values()) for used in uses), default=0)
    return least, together


def room_for(instances: Sequence[Instance], budgets: Budgets) -> bool:
    """Whether all of them fit together, each with its smallest context."""
    return Room(instances).suffices(budgets)


@dataclass(frozen=True)
class Settled:
    """An instance, its setting, and the budgets that were left when its turn came."""

    instance: Instance
    setting: Setting
    budgets: Budgets


def settle(instances: Sequence[Instance], budgets: Budgets) -> list[Settled] | None:
    """The best settings of all instances, in their order; None if there is no room for all."""
    for _ in range(_ROUNDS):
        found = _settled_together(instances, budgets)
        confirmed = [item.instance.confirmed(item.setting) for item in found or ()]
        if all(confirmed):
            return found
    for instance in instances:
        instance.in_full = True
    return _settled_together(instances, budgets)


def _settled_together(instances: Sequence[Instance], budgets: Budgets) -> list[Settled] | None:
    if not room_for(instances, budgets):
        return None
    found: list[Settled] = []
    left = dict(budgets)
    for position, instance in enumerate(instances):
        setting = best_setting(instance, left, instances[position + 1 :])
        used = None if setting is None else instance.usage(setting)
        rest = None if used is None else take(left, used)
        if setting is None or rest is None:
            return None
        found.append(Settled(instance, setting, left))
        left = rest
    return found


def least_setting(instance: Instance, budgets: Budgets) -> Setting | None:
    """The smallest setting that the wish allows, whether it fits or not.

    None if none is possible.
    """
    return _smallest_setting(instance, instance.steps[-1], budgets)


def _smallest_setting(
    instance: Instance, step: tuple[int, int], budgets: Budgets
) -> Setting | None:
    """Of a step: the smallest context with the KV type that takes least; None if none can be."""
    found: list[tuple[int, Setting]] = []
    for kv_cache in instance.kv_types:
        for setting in settings(
            instance, step, instance.contexts[0], kv_cache, budgets, every_split=False
        ):
            used = instance.usage(setting)
            if used is not None:
                found.append((sum(used.values()), setting))
    return min(found, key=lambda item: item[0])[1] if found else None
