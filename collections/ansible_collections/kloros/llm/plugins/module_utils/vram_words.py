"""Sentences about settings and about what is short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .memory_model import HOST
from .vram_ladder import Budgets, Settled, settings
from .vram_need import DeviceNeed, Instance, Setting

_PART_NAMES: Final = {
    "weights_mib": "weights",
    "kv_mib": "KV cache",
    "compute_mib": "compute",
    "cuda_context_mib": "CUDA context",
    "projector_mib": "projector",
    "draft_mib": "draft model",
}


def gib(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / 2**30:.1f} GiB"


def places(instance: Instance) -> str:
    """The GPUs of an instance, in its order."""
    pools = instance.around.machine
    by_uuid = {gpu["uuid"]: f"GPU {gpu['index']}" for gpu in pools.gpus}
    names = [by_uuid[uuid] for uuid in instance.gpus]
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _slots(instance: Instance, setting: Setting) -> str:
    tokens = f"{setting.context_tokens} tokens"
    return tokens if instance.slots == 1 else f"{instance.slots} slots of {tokens}"


def described(instance: Instance, setting: Setting) -> str:
    """A setting in a few words."""
    words = [f"{_slots(instance, setting)}, KV cache {setting.kv_cache}"]
    if not instance.gpus:
        words.append("on the CPU")
    elif setting.gpu_layers < instance.all_layers:
        words.append(f"{setting.gpu_layers} of {instance.all_layers} layers on {places(instance)}")
    else:
        split = "+".join(f"{share:g}" for share in setting.split)
        words.append(
            f"all {instance.all_layers} layers on {places(instance)}"
            + (f" ({split})" if len(setting.split) > 1 else "")
        )
    if setting.cpu_moe_layers:
        words.append(f"experts of {setting.cpu_moe_layers} layers on the CPU")
    return ", ".join(words)


def _parts(needs: Sequence[DeviceNeed]) -> str:
    sums = {name: sum(need.parts[part] for need in needs) for part, name in _PART_NAMES.items()}
    return ", ".join(f"{name} {mib}" for name, mib in sums.items() if mib)


def shortages(instance: Instance, setting: Setting, budgets: Budgets) -> list[str]:
    """A sentence without its full stop for every memory that is too small, with the numbers."""
    by_pool: dict[str, list[DeviceNeed]] = {}
    for need in instance.needs(setting):
        by_pool.setdefault(need.pool, []).append(need)
    found = []
    for key, needs in by_pool.items():
        total = sum(need.total_mib for need in needs)
        if total > budgets[key]:
            pool = instance.around.machine.pools[key]
            found.append(
                f"{pool.title} would need {total} MiB ({_parts(needs)}) and has "
                f"{max(0, budgets[key])} of {pool.total_mib} MiB left for it"
            )
    return found


def _why_not(
    instance: Instance,
    wanted: Setting,
    budgets: Budgets,
    later: Sequence[str],
) -> str:
    what = f"With {_slots(instance, wanted)} and a KV cache of {wanted.kv_cache}"
    if instance.usage(wanted) is None:
        return f"{what} it cannot run."
    short = shortages(instance, wanted, budgets)
    if short:
        return f"{what}, {'; '.join(short)}."
    return f"{what} it would leave too little for {', '.join(later)}."


def _placement(instance: Instance, setting: Setting) -> str:
    layers = instance.all_layers
    if not instance.gpus:
        return "It runs on the CPU, as wished."
    if setting.gpu_layers < layers:
        sentence = (
            f"{setting.gpu_layers} of {layers} layers (the output is one) are on "
            f"{places(instance)}, the others on the CPU"
        )
        return f"{sentence}." if instance.wish.get("gpu_layers") is None else f"{sentence}: wished."
    if setting.cpu_moe_layers:
        return (
            f"All {layers} layers are on {places(instance)}, but the experts of the first "
            f"{setting.cpu_moe_layers} are on the CPU."
        )
    return f"All {layers} layers (the output is one) are on {places(instance)}."


def _split(instance: Instance, setting: Setting) -> list[str]:
    if len(setting.split) < 2:
        return []
    shares = " + ".join(f"{share:g}" for share in setting.split)
    if instance.wished_split:
        return [f"They are shared {shares}, as wished."]
    if instance.splits_layers:
        return [f"They are shared {shares}, so that the GPUs are filled evenly."]
    return [f"The GPUs' shares are {shares}, as what is free on them."]


def _full(instance: Instance, setting: Setting, budgets: Budgets) -> Setting:
    """The best that the wish asks for, at the split that suits it."""
    return next(
        settings(
            instance,
            instance.steps[0],
            instance.contexts[-1],
            instance.kv_types[0],
            budgets,
            every_split=False,
        ),
        setting,
    )


def estimates(instance: Instance, setting: Setting) -> list[str]:
    """What of the numbers may be wrong, in sentences; empty where the formulas are exact."""
    found = []
    needs = instance.needs(setting)
    if any(need.approximate for need in needs):
        unknown = (
            f"split mode {instance.split_mode}"
            if instance.guesses_split
            else f"the architecture {instance.shape.architecture}"
        )
        found.append(f"The memory model only estimates {unknown}.")
    if any(need.parts["projector_mib"] for need in needs):
        found.append("What a projector needs to encode is only estimated.")
    return found


def reasons(settled: Settled, later: Sequence[Instance]) -> list[str]:
    """Why an instance got what it got, in sentences."""
    instance, setting, budgets = settled.instance, settled.setting, settled.budgets
    found = [*instance.notes, _placement(instance, setting), *_split(instance, setting)]
    names = [other.name for other in later]
    want, first = instance.contexts[-1], instance.kv_types[0]
    offloaded = (setting.gpu_layers, setting.cpu_moe_layers) != instance.steps[0]
    if setting.context_tokens == want and setting.kv_cache == first and not offloaded:
        found.append(
            f"It has the {want} tokens a slot and the KV cache of {first} that are wanted."
        )
    else:
        found.append(_why_not(instance, _full(instance, setting, budgets), budgets, names))
        if offloaded:
            found.append(
                "Even the smallest context does not fit with more on the GPUs; so as few layers "
                "as possible were taken off them, and the context has what that left."
            )
        elif setting.context_tokens == want:
            found.append(
                f"{setting.kv_cache} is the first type with which the wanted context fits."
            )
        else:
            found.append(
                f"{setting.context_tokens} tokens a slot with {setting.kv_cache} is the largest "
                "context that fits."
            )
    found += _corrections(instance)
    found += estimates(instance, setting)
    if any(need.pool == HOST and need.device != HOST for need in instance.needs(setting)):
        found.append("The GPU has no memory of its own: what lies on it counts as the host's.")
    return found


def _corrections(instance: Instance) -> list[str]:
    found = []
    for device, parts in instance.around.corrections.get(instance.name, {}).items():
        changes = [
            f"{_PART_NAMES[part]} {mib:+.0f} MiB" for part, mib in parts.items() if round(mib)
        ]
        if changes:
            found.append(f"Corrected by the engine's dry run on {device}: {', '.join(changes)}.")
    return found
