"""The memory plan: GPUs, models and all instances in, one plan out, before a byte is fetched.

Plain data in and out, no reading or writing, and the same answer for the same question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from . import memory_model
from .memory_model import HOST
from .vram_budget import DEFAULT_RESERVE_MIB, Machine, machine
from .vram_ladder import Budgets, Settled, least_setting, room_for, settle
from .vram_need import CUDA_CONTEXT_MIB, ImpossibleError, Instance, Surroundings
from .vram_thumbnail import MemoryFunction
from .vram_ways_out import Case, WayOut, ways_out
from .vram_words import described, estimates, reasons, shortages

PROMPT_CACHE_MIB: Final = 8192
"""llama-server's `--cache-ram`: the most that its prompt cache grows to in main memory."""


def vram_plan(
    gpus: Sequence[Mapping[str, Any]],
    instances: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    host: Mapping[str, Any],
    *,
    own_pids: Iterable[int] = (),
    own_mib: Mapping[str, int] | None = None,
    reserves: Mapping[Any, Any] | None = None,
    default_reserve_mib: int = DEFAULT_RESERVE_MIB,
    cuda_context_mib: int | Mapping[str, int] = CUDA_CONTEXT_MIB,
    corrections: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    memory: MemoryFunction = memory_model.memory,
    only_whether: bool = False,
) -> dict[str, Any]:
    """Fit all instances into the memory that there is.

    `gpus` are those of `gpu_info` that may be used. `host` has `memory_mib` and `reserve_mib`.
    `own_pids` are our own llama-servers', whose memory the plan gives out anew; where the driver
    hides processes, `own_mib` says by UUID what they hold. `reserves` (by UUID or index) and
    `default_reserve_mib` are kept free on each GPU. `cuda_context_mib` is one number or one a UUID.
    `corrections` are what the engine measured beyond the prediction, by instance, device
    (`CUDA0` …, `Host`) and part (`weights_mib`, `kv_mib`, `compute_mib`, `draft_mib`,
    `projector_mib`).

    An instance (in inventory order, which is priority) has `name`, `model`, `gpus` (UUIDs; none is
    the CPU), `context` (`want` and `min`, tokens a slot; without `min` it is `want`), `slots` and
    `kv_cache` (types, best first), and may have `offload` ("full" or "auto"), `gpu_layers` and
    `cpu_moe` (forced), `split_mode`, `tensor_split`, `main_gpu` (a position in `gpus`),
    `flash_attention`, `batch`, `ubatch`, `embeddings`, `rerank`, `draft_model`, `lora_bytes` (of
    its own adapters), `projector_on_gpu`, `context_extended` (true: beyond the trained context, by
    RoPE scaling) and `cache_ram_mib`. A model has `shape` (None where the file is no model;
    `shape_detail` then says what it is), and may have `size_bytes`, `parameters`, `companions`
    (`projector`: {bytes, compute_bytes}, `draft`: shape, `lora_bytes`) and `other_quantisations`
    ({name: bytes}).

    Returns `instances` (those that fit, by name), `gpus`, `host`, and `problems`: what does not
    fit, with the numbers and up to three ways out. With `only_whether` and where not everything
    fits, `problems` without ways out are all that is worked out, which takes far less time.
    """
    there = machine(
        gpus,
        host,
        own_pids=own_pids,
        own_mib=own_mib,
        reserves=reserves or {},
        default_reserve_mib=default_reserve_mib,
    )
    contexts = (
        cuda_context_mib
        if isinstance(cuda_context_mib, Mapping)
        else {str(gpu["uuid"]): int(cuda_context_mib) for gpu in gpus}
    )
    around = Surroundings(
        machine=there,
        models=models,
        corrections=corrections or {},
        cuda_context_mib=contexts,
        memory=memory,
    )
    budgets = there.budgets()
    refused: dict[str, str] = {}
    possible: list[Instance] = []
    for wish in instances:
        try:
            possible.append(Instance(wish, around))
        except ImpossibleError as problem:
            refused[str(wish["name"])] = str(problem)
    accepted, settled = _accepted(possible, budgets, only_whether=only_whether)
    alone = {instance.name: instance for instance in possible if instance not in accepted}
    order = [str(wish["name"]) for wish in instances]
    problems = []
    for wish in instances:
        name = str(wish["name"])
        if name not in refused and name not in alone:
            continue
        case = Case(
            wish=wish,
            around=around,
            before=[other for other in accepted if order.index(other.name) < order.index(name)],
            after=[other for other in accepted if order.index(other.name) > order.index(name)],
            budgets=budgets,
        )
        rivals = [other for other in order if other != name and other in {*refused, *alone}]
        ways = [] if only_whether else ways_out(case)
        problems.append(_problem(case, alone.get(name), refused.get(name, ""), rivals, ways))
    return {
        "instances": {
            item.instance.name: _instance(item, [other.instance for other in settled[place + 1 :]])
            for place, item in enumerate(settled)
        },
        "gpus": _gpus(there, settled),
        "host": _host(there, settled),
        "problems": problems,
    }


def _accepted(
    possible: Sequence[Instance], budgets: Budgets, *, only_whether: bool
) -> tuple[list[Instance], list[Settled]]:
    """Those for which there is room beside the earlier ones, and their settings."""
    before: list[Instance] = []
    while True:
        accepted: list[Instance] = []
        for instance in possible:
            if room_for([*accepted, instance], budgets):
                accepted.append(instance)
        if only_whether and len(accepted) < len(possible):
            return accepted, []
        settled = settle(accepted, budgets)
        if settled is not None:
            return accepted, settled
        # Asked in full, one needs more than was thought, which it now knows; or the search met
        # its limit, and the last has to go.
        possible = accepted[:-1] if accepted == before else accepted
        before = accepted


def profiles(gpus: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The sets of GPUs whose plans are worth a look: all, all but one, none."""
    ordered = sorted(gpus, key=lambda gpu: int(gpu["index"]))
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    if ordered:
        names = ", ".join(f"GPU {gpu['index']} ({gpu['name']})" for gpu in ordered)
        found.append((f"all GPUs: {names}", ordered))
    if len(ordered) > 1:
        found += [
            (
                f"without GPU {gone['index']} ({gone['name']})",
                [gpu for gpu in ordered if gpu is not gone],
            )
            for gone in ordered
        ]
    return [*found, ("CPU only", [])]


def _instance(item: Settled, later: Sequence[Instance]) -> dict[str, Any]:
    instance, setting = item.instance, item.setting
    needs = instance.needs(setting)
    names = {str(gpu["uuid"]): gpu["name"] for gpu in instance.around.machine.gpus}
    chosen: list[float] = [
        int(share) if float(share).is_integer() else share for share in setting.split
    ]
    return {
        "model": instance.wish["model"],
        "context_tokens": setting.context_tokens,
        "slots": instance.slots,
        "kv_cache": setting.kv_cache,
        "gpu_layers": "all" if setting.gpu_layers == instance.all_layers else setting.gpu_layers,
        "layers_on_gpu": setting.gpu_layers,
        "layers": instance.all_layers,
        "tensor_split": chosen,
        "cpu_moe_layers": setting.cpu_moe_layers,
        "devices": [
            {
                "device": need.device,
                "uuid": need.uuid,
                "name": None if need.uuid is None else names[need.uuid],
                **need.parts,
                "total_mib": need.total_mib,
            }
            for need in needs
        ],
        "predicted": instance.predicted(setting),
        "estimates": estimates(instance, setting),
        "reasons": reasons(item, later),
    }


def _taken(settled: Sequence[Settled], pool: str) -> list[dict[str, Any]]:
    """What each instance takes of a pool."""
    taken = []
    for item in settled:
        used = item.instance.usage(item.setting) or {}
        if used.get(pool):
            taken.append({"name": item.instance.name, "mib": used[pool]})
    return taken


def _gpus(there: Machine, settled: Sequence[Settled]) -> list[dict[str, Any]]:
    found = []
    for gpu in there.gpus:
        pool = there.pools.get(str(gpu["uuid"]))
        entry: dict[str, Any] = {"index": gpu["index"], "uuid": gpu["uuid"], "name": gpu["name"]}
        if pool is None:
            note = "It has no memory of its own: what lies on it counts as the host's."
            entry |= {"total_mib": None, "neighbours_mib": 0, "reserve_mib": 0, "instances": []}
            entry |= {"budget_mib": 0, "free_mib": 0, "note": note}
        else:
            taken = _taken(settled, pool.key)
            entry |= {
                "total_mib": pool.total_mib,
                "neighbours_mib": pool.neighbours_mib,
                "reserve_mib": pool.reserve_mib,
                "budget_mib": pool.budget_mib,
                "instances": taken,
                "free_mib": pool.budget_mib - sum(item["mib"] for item in taken),
                "note": pool.note,
            }
        found.append(entry)
    return found


def _host(there: Machine, settled: Sequence[Settled]) -> dict[str, Any]:
    """Main memory. The prompt caches are a ceiling, reached after hours or never: they are named,
    and do not count against what is there."""
    pool = there.pools[HOST]
    taken = _taken(settled, HOST)
    free = pool.budget_mib - sum(item["mib"] for item in taken)
    caches = 0
    for item in settled:
        wish = item.instance.wish
        if not (wish.get("embeddings") or wish.get("rerank")):
            wished = wish.get("cache_ram_mib")
            caches += PROMPT_CACHE_MIB if wished is None else max(0, int(wished))
    notes = [pool.note]
    if caches > free:
        notes.append(
            f"The instances' prompt caches may grow to {caches} MiB in all, and {free} MiB are "
            "free: lower cache-ram in their extra where the host needs its memory for other things."
        )
    return {
        "total_mib": pool.total_mib,
        "reserve_mib": pool.reserve_mib,
        "budget_mib": pool.budget_mib,
        "instances": taken,
        "free_mib": free,
        "prompt_caches_mib": caches,
        "notes": notes,
    }


def _left_by(others: Sequence[Instance], budgets: Budgets) -> tuple[dict[str, int], list[str]]:
    """What the others leave at their smallest, and what each of them takes, in words."""
    left = dict(budgets)
    words = []
    for other in others:
        setting = least_setting(other, left)
        used = None if setting is None else other.usage(setting)
        for pool, mib in (used or {}).items():
            left[pool] -= mib
        if used:
            parts = ", ".join(
                f"{mib} MiB of {other.around.machine.pools[pool].title}"
                for pool, mib in used.items()
                if mib
            )
            words.append(f"{other.name} at its smallest takes {parts}")
    return left, words


def _problem(
    case: Case,
    instance: Instance | None,
    refused: str,
    rivals: Sequence[str],
    ways: Sequence[WayOut],
) -> dict[str, Any]:
    """What was found, what is needed, and what would fit instead."""
    name = str(case.wish["name"])
    if instance is None:
        found, needed = refused, "a model whose header can be read, on GPUs that are there"
    else:
        found, needed = _shortage(instance, case.before, case.budgets)
    if rivals and ways:
        needed += f" (the ways out are calculated without {', '.join(rivals)}, not planned either)"
    return {
        "instance": name,
        "key": f"llama_instances.{name}",
        "found": found,
        "needed": needed,
        "ways_out": list(ways),
    }


def _shortage(instance: Instance, before: Sequence[Instance], budgets: Budgets) -> tuple[str, str]:
    setting = least_setting(instance, budgets)
    if setting is None:
        return instance.refusal or "it cannot be run", "a setting that llama.cpp can run"
    smallest = described(instance, setting)
    needed = f"room for the smallest setting that the wish allows: {smallest}"
    if room_for([instance], budgets):
        left, words = _left_by(before, budgets)
        short = shortages(instance, setting, left)
        what = "; ".join(short) if short else "together they take more than there is"
        return f"it does not fit beside the instances before it: {what}; {'; '.join(words)}", needed
    return "; ".join(shortages(instance, setting, budgets)), needed
