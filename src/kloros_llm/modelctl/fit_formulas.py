"""What the formulas say that a model would take, counted as the engine counts it."""

from __future__ import annotations

from ..core.memory_model import MIB, RunConfig, memory
from ..core.model_shape import ModelShape
from .fit_devices import Devices
from .fit_result import Need


def needs(shape: ModelShape, config: RunConfig, devices: Devices) -> tuple[Need, ...]:
    """A need a device, in whole MiB rounded down. Raises MemoryModelError."""
    rows = memory(shape, config)
    return tuple(
        Need(
            device,
            row.weights_bytes // MIB,
            row.kv_bytes // MIB,
            row.compute_bytes // MIB,
            row.approximate,
        )
        for device, row in zip(devices.all, rows, strict=True)
    )
