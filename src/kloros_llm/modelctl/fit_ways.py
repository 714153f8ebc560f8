"""What would fit instead, by the formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ..core.memory_model import MemoryModelError, RunConfig
from ..core.model_shape import ModelShape
from .fit_devices import Devices
from .fit_formulas import needs

_CONTEXT_STEP: Final = 256
_SMALLER_KV: Final = ("f16", "q8_0", "q4_0")


def ways_out(shape: ModelShape, config: RunConfig, devices: Devices) -> list[str]:
    """Changes of one setting that would make it fit, as sentences."""

    def fits(changed: RunConfig) -> bool:
        return _fits(shape, changed, devices)

    found = []
    context = _largest(
        config.context_tokens // _CONTEXT_STEP,
        lambda steps: fits(replace(config, context_tokens=steps * _CONTEXT_STEP)),
    )
    if context:
        found.append(f"It would fit with a context of {context * _CONTEXT_STEP} tokens a slot.")
    kv_cache = next(
        (
            one
            for one in _after(config.cache_type_k)
            if fits(replace(config, cache_type_k=one, cache_type_v=one))
        ),
        None,
    )
    if kv_cache:
        found.append(f"It would fit with a KV cache of {kv_cache}.")
    if config.slots > 1:
        slots = _largest(config.slots - 1, lambda count: fits(replace(config, slots=count)))
        if slots:
            found.append(f"It would fit with {slots} slot{'s' if slots > 1 else ''}.")
    if devices.gpus:
        layers = _largest(shape.layer_count, lambda count: fits(replace(config, gpu_layers=count)))
        if layers:
            found.append(
                f"It would fit with {layers} of {shape.layer_count + 1} layers on the GPUs "
                "(slower)."
            )
        elif _fits(shape, replace(config, devices=()), Devices((), devices.host)):
            found.append("It would fit on the CPU alone (much slower).")
    return found or ["No smaller context, KV cache or number of layers on the GPUs would do."]


def _after(kv_cache: str) -> tuple[str, ...]:
    """The usual types that take less than that one."""
    if kv_cache not in _SMALLER_KV:
        return _SMALLER_KV[1:] if kv_cache in ("f32", "bf16") else ()
    return _SMALLER_KV[_SMALLER_KV.index(kv_cache) + 1 :]


def _fits(shape: ModelShape, config: RunConfig, devices: Devices) -> bool:
    try:
        return all(need.fits is not False for need in needs(shape, config, devices))
    except MemoryModelError:
        return False


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `most` for which that holds; 0 where it holds for none.

    What holds for a number holds for all smaller ones.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
