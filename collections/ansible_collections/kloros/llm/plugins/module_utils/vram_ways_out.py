"""What would fit where a wish does not: each way out was calculated before it is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, TypedDict

from .model_shape import WITHOUT_CACHE
from .vram_ladder import Budgets, room_for, settle
from .vram_need import ImpossibleError, Instance, Setting, Surroundings
from .vram_words import described, gib

WAYS: Final = 3

# Bits a weight of llama.cpp's usual quantisations, as its tools/quantize/README.md measured them.
USUAL_BITS: Final[Mapping[str, float]] = {
    "Q8_0": 8.50,
    "Q6_K": 6.56,
    "Q5_K_M": 5.70,
    "Q5_K_S": 5.57,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.67,
    "IQ4_XS": 4.46,
    "Q3_K_L": 4.30,
    "Q3_K_M": 4.00,
    "Q3_K_S": 3.64,
    "IQ3_XXS": 3.25,
    "Q2_K": 3.16,
    "IQ2_M": 2.93,
    "IQ2_XS": 2.59,
    "IQ2_XXS": 2.38,
}
POOR_BITS: Final = 3.0
"""Below, answers are so much worse that a smaller model is the better choice."""

_FINENESS: Final = 500
_LEAST_CONTEXT: Final = 256
_SAVING_KV_TYPES: Final = ("q8_0", "q4_0")


class WayOut(TypedDict):
    """A change with which the instance fits: `change` is of its wish, `text` says it in words."""

    kind: str
    text: str
    change: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A wish that is not met, among the instances that are planned (all in inventory order)."""

    wish: Mapping[str, Any]
    around: Surroundings
    before: Sequence[Instance]
    after: Sequence[Instance]
    budgets: Budgets

    def changed(self, change: Mapping[str, Any], scale: float = 1.0) -> Instance | None:
        """The instance with another wish, or with a model of another size."""
        try:
            return Instance({**self.wish, **change}, self.around, scale=scale)
        except ImpossibleError:
            return None

    def fits(self, instance: Instance) -> bool:
        """Whether there is room for it beside the others."""
        return room_for([*self.before, instance, *self.after], self.budgets)

    def outcome(self, instance: Instance | None) -> Setting | None:
        """What it would get beside the others; None if it does not fit."""
        if instance is None:
            return None
        plan = settle([*self.before, instance, *self.after], self.budgets)
        return None if plan is None else plan[len(self.before)].setting

    def way(self, kind: str, change: dict[str, Any], words: str) -> WayOut | None:
        """The way out of one change, if it is one."""
        instance = self.changed(change)
        setting = self.outcome(instance)
        if instance is None or setting is None:
            return None
        text = f"{words}: then {described(instance, setting)}"
        return {"kind": kind, "text": text, "change": change}

    @property
    def model(self) -> Mapping[str, Any]:
        return self.around.models.get(self.wish["model"], {})


def _size_bytes(case: Case) -> float:
    size = case.model.get("size_bytes")
    if size:
        return float(size)
    instance = case.changed({"gpus": []})
    return float(instance.shape.weights_bytes) if instance else 0.0


def _largest_size(case: Case) -> float:
    """The largest size in bytes at which the model would fit, the rest being as it is; or 0."""
    low, high = 0, _FINENESS
    while high - low > 1:
        middle = (low + high) // 2
        instance = case.changed({}, scale=middle / _FINENESS)
        if instance is not None and case.fits(instance):
            low = middle
        else:
            high = middle
    return _size_bytes(case) * low / _FINENESS


def _known_quantisation(case: Case) -> WayOut | None:
    size = _size_bytes(case)
    others: Mapping[str, Any] = case.model.get("other_quantisations") or {}
    for name, other in sorted(others.items(), key=lambda item: (-int(item[1]), item[0])):
        if not 0 < other < size:
            continue
        instance = case.changed({}, scale=other / size)
        setting = case.outcome(instance)
        if instance is not None and setting is not None:
            return {
                "kind": "quantisation",
                "text": f"take {case.wish['model']} as {name} ({gib(other)} instead of "
                f"{gib(size)}): then {described(instance, setting)}",
                "change": {"quantisation": name},
            }
    return None


def _usual_quantisation(case: Case, *, poor: bool) -> WayOut | None:
    limit, parameters = _largest_size(case), case.model.get("parameters")
    if not limit or not parameters:
        return None
    size = _size_bytes(case)
    for name, bits in USUAL_BITS.items():
        smaller = parameters * bits / 8
        if smaller > limit or (bits < POOR_BITS) is not poor:
            continue
        instance = case.changed({}, scale=smaller / size)
        setting = case.outcome(instance)
        if instance is None or setting is None:
            continue
        quality = ", of poor quality" if poor else ""
        return {
            "kind": "quantisation",
            "text": f"take a quantisation of {case.wish['model']} of at most {gib(limit)} (it has "
            f"{gib(size)}), which is about {name}{quality}: then {described(instance, setting)}",
            "change": {"quantisation": name},
        }
    return None


def _good_quantisation(case: Case) -> WayOut | None:
    return _known_quantisation(case) or _usual_quantisation(case, poor=False)


def _poor_quantisation(case: Case) -> WayOut | None:
    return _usual_quantisation(case, poor=True)


def _gpu_sets(case: Case) -> list[list[list[str]]]:
    """Sets of GPUs to try, the smallest first: lone ones, pairs, all."""
    there = [str(gpu["uuid"]) for gpu in case.around.machine.gpus]
    wished = {str(uuid) for uuid in case.wish["gpus"]}
    sizes = [size for size in (1, 2, len(there)) if 0 < size <= len(there)]
    return [
        [list(group) for group in combinations(there, size) if set(group) != wished]
        for size in dict.fromkeys(sizes)
    ]


def _on_gpus(uuids: list[str]) -> dict[str, Any]:
    return {"gpus": uuids, "tensor_split": [], "main_gpu": None, "split_mode": None}


def _other_gpus(case: Case) -> WayOut | None:
    """The smallest set of other GPUs that would do, of sets of one size the one with the best
    setting; if none does, the same with a smaller context and a smaller KV cache."""
    context = case.wish["context"]
    types = [str(name) for name in case.wish["kv_cache"]]
    smaller: dict[str, Any] = {
        "context": {"want": context["want"], "min": _LEAST_CONTEXT},
        "kv_cache": [*types, *(name for name in _SAVING_KV_TYPES if name not in types)],
    }
    indices = {str(gpu["uuid"]): int(gpu["index"]) for gpu in case.around.machine.gpus}
    loosenings: list[dict[str, Any]] = [{}, smaller]
    for loosened in loosenings:
        for groups in _gpu_sets(case):
            found: list[tuple[tuple[int, int, int], list[str], Instance, Setting]] = []
            for group in groups:
                instance = case.changed({**_on_gpus(group), **loosened})
                setting = case.outcome(instance)
                if instance is not None and setting is not None:
                    step = (setting.gpu_layers, setting.cpu_moe_layers)
                    rank = (
                        instance.steps.index(step),
                        -setting.context_tokens,
                        instance.kv_types.index(setting.kv_cache),
                    )
                    found.append((rank, group, instance, setting))
            if found:
                _, group, instance, setting = min(found, key=lambda item: item[0])
                change = _on_gpus(group)
                if loosened:
                    change["context"] = {"want": context["want"], "min": setting.context_tokens}
                    change["kv_cache"] = list(dict.fromkeys([*types, setting.kv_cache]))
                places = ", ".join(str(indices[uuid]) for uuid in group)
                verb = "split it over" if len(group) > 1 else "put it on"
                return {
                    "kind": "gpus",
                    "text": f"{verb} gpus: [{places}]: then {described(instance, setting)}",
                    "change": change,
                }
    return None


def _smaller_context(case: Case) -> WayOut | None:
    instance = case.changed({})
    if instance is None or instance.contexts[0] <= _LEAST_CONTEXT:
        return None
    context = {"want": instance.contexts[0], "min": _LEAST_CONTEXT}
    setting = case.outcome(case.changed({"context": context}))
    if setting is None:
        return None
    least = {"want": case.wish["context"]["want"], "min": setting.context_tokens}
    return case.way(
        "context", {"context": least}, f"allow a context of {setting.context_tokens} tokens (min)"
    )


def _smaller_kv_cache(case: Case) -> WayOut | None:
    types = [str(name) for name in case.wish["kv_cache"]]
    for name in _SAVING_KV_TYPES:
        if name not in types:
            change = {"kv_cache": [*types, name]}
            way = case.way("kv_cache", change, f"allow a {name} KV cache")
            if way is not None:
                return way
    return None


def _fewer_slots(case: Case) -> WayOut | None:
    for slots in range(int(case.wish["slots"]) - 1, 0, -1):
        way = case.way("slots", {"slots": slots}, f"take parallel: {slots}")
        if way is not None:
            return way
    return None


def _without_neighbours(case: Case) -> WayOut | None:
    """Whether it would fit if what others use now were freed, as far as no reserve is wished."""
    machine = case.around.machine
    freed = dict(case.budgets)
    words = []
    for uuid in dict.fromkeys(str(uuid) for uuid in case.wish["gpus"]):
        pool = machine.pools.get(uuid)
        if pool is not None and pool.neighbours_mib > pool.reserve_mib:
            freed[uuid] = pool.total_mib - pool.reserve_mib
            words.append(f"{pool.neighbours_mib} MiB on GPU {pool.index}")
    if not words:
        return None
    free = Case(case.wish, case.around, case.before, case.after, freed)
    return free.way("neighbours", {}, f"free what others use now ({', '.join(words)})")


def _offload(case: Case) -> WayOut | None:
    if not case.wish["gpus"] or (
        case.wish.get("offload") == "auto" and case.wish.get("gpu_layers") is None
    ):
        return None
    change = {"offload": "auto", "gpu_layers": None}
    instance = case.changed(change)
    setting = case.outcome(instance)
    if instance is None or setting is None or not setting.gpu_layers:
        return None
    return {
        "kind": "offload",
        "text": "leave a part to the CPU with offload: auto, which is slower: then "
        + described(instance, setting),
        "change": change,
    }


def _model_at_hand(case: Case) -> WayOut | None:
    """The largest smaller model of the inventory that would fit."""
    size = _size_bytes(case)
    smaller = [
        (int(model.get("size_bytes") or 0), str(name))
        for name, model in case.around.models.items()
        if 0 < int(model.get("size_bytes") or 0) < size
    ]
    for _, name in sorted(smaller, key=lambda item: (-item[0], item[1])):
        instance = case.changed({"model": name})
        if instance is None or (
            instance.shape.architecture in WITHOUT_CACHE and not case.wish.get("embeddings")
        ):
            continue
        way = case.way("model", {"model": name}, f"take the model {name} instead")
        if way is not None:
            return way
    return None


def _smaller_model(case: Case) -> WayOut | None:
    limit, size = _largest_size(case), _size_bytes(case)
    parameters = case.model.get("parameters")
    if not limit or not size or not parameters:
        return None
    billions = parameters * limit / size / 1e9
    return {
        "kind": "smaller_model",
        "text": f"take a smaller model: at the same {size * 8 / parameters:.1f} bits a weight, one "
        f"of about {billions:.1f} billion parameters ({gib(limit)}) would fit",
        "change": {"size_bytes": int(limit)},
    }


def _on_cpu(case: Case) -> WayOut | None:
    if not case.wish["gpus"]:
        return None
    change = {**_on_gpus([]), "gpu_layers": None}
    return case.way("cpu", change, "run it on the CPU with gpus: [], which is slow")


_IN_ORDER: Final[tuple[Callable[[Case], WayOut | None], ...]] = (
    _good_quantisation,
    _other_gpus,
    _smaller_context,
    _smaller_kv_cache,
    _fewer_slots,
    _without_neighbours,
    _model_at_hand,
    _offload,
    _smaller_model,
    _poor_quantisation,
    _on_cpu,
)


def ways_out(case: Case) -> list[WayOut]:
    """The first three ways out that there are; fewer where nothing else would fit."""
    found: list[WayOut] = []
    for look in _IN_ORDER:
        if len(found) == WAYS:
            break
        way = look(case)
        if way is not None:
            found.append(way)
    return found
