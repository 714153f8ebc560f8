"""The memory model's answer at a fraction of its time, for the planner's search.

The memory model lays out the whole graph for the compute buffers, and the search asks it hundreds
of times. But layers repeat: a few of each kind on each device already reach the buffers' peak. So
the search asks for the buffers of a model with few layers, which are the same for many settings.
Whatever is chosen is then asked in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

from . import memory_model
from .memory_model import DeviceMemory, RunConfig, placement
from .model_shape import LayerShape, ModelShape

MemoryFunction = Callable[[ModelShape, RunConfig], Sequence[DeviceMemory]]

_REMEMBERED: Final = (
    16  # models, over all plans that a process makes: the audit makes one a profile
)
_KEPT: Final = 2  # of each kind in each run of layers on one device


class Thumbnail:
    """A model in small; `rows` answers as the memory model does.

    `stored` is `memory` without compute buffers, where that takes less time.
    """

    def __init__(
        self, shape: ModelShape, memory: MemoryFunction, stored: MemoryFunction | None = None
    ) -> None:
        self.shape = shape
        self.memory = memory
        self.stored = stored or memory
        self.kinds: list[LayerShape] = []
        self.kind_of: list[int] = []
        # Where layers with a state and others take turns, the peak hangs on what lies at the ends.
        self.has_states = any(layer.recurrent for layer in shape.layers)
        for layer in shape.layers:
            if layer not in self.kinds:
                self.kinds.append(layer)
            self.kind_of.append(self.kinds.index(layer))
        self._small: dict[tuple[tuple[int, ...], RunConfig], Sequence[DeviceMemory]] = {}
        self._whole: dict[RunConfig, Sequence[DeviceMemory]] = {}
        self._rows: dict[RunConfig, Sequence[DeviceMemory]] = {}

    def whole(self, config: RunConfig) -> Sequence[DeviceMemory]:
        """The memory model's own answer. Raises MemoryModelError."""
        if config not in self._whole:
            self._whole[config] = self.memory(self.shape, config)
        return self._whole[config]

    def rows(self, config: RunConfig) -> Sequence[DeviceMemory]:
        """What each device holds. Raises MemoryModelError as the memory model does."""
        if config not in self._rows:
            self._rows[config] = self._composed(config)
        return self._rows[config]

    def _composed(self, config: RunConfig) -> Sequence[DeviceMemory]:
        where = placement(self.shape, config)
        kept = self._kept(where.layers, config.cpu_moe_layers)
        if len(kept) == self.shape.layer_count:
            return self.whole(config)
        counts = [
            sum(where.layers[index] == device for index in kept) + (where.output == device)
            for device in range(len(where.devices))
        ]
        small = replace(
            config,
            devices=where.devices,
            main_gpu=0,
            gpu_layers=sum(counts),
            tensor_split=tuple(map(float, counts)) if len(counts) > 1 else (),
            cpu_moe_layers=sum(index < config.cpu_moe_layers for index in kept),
        )
        return [
            replace(row, compute_bytes=alike.compute_bytes)
            for row, alike in zip(
                self.stored(self.shape, config), self._rows_of(kept, small), strict=True
            )
        ]

    def _kept(self, devices: Sequence[int], cpu_moe_layers: int) -> list[int]:
        """The layers of the small model: of each run of layers on one device, some of each kind.

        They are as many however long the run is, so that most settings share a small model.
        """
        kept: set[int] = set()
        runs = groupby(
            range(len(devices)), key=lambda index: (devices[index], index < cpu_moe_layers)
        )
        for _, members in runs:
            run = list(members)
            for kind in {self.kind_of[index] for index in run}:
                kept.update([index for index in run if self.kind_of[index] == kind][:_KEPT])
            if self.has_states:
                kept.update(run[:_KEPT], run[-_KEPT:])
        return sorted(kept)

    def _rows_of(self, kept: Sequence[int], config: RunConfig) -> Sequence[DeviceMemory]:
        key = (tuple(self.kind_of[index] for index in kept), config)
        if key not in self._small:
            layers = tuple(self.shape.layers[index] for index in kept)
            self._small[key] = self.memory(replace(self.shape, layers=layers), config)
        return self._small[key]


def thumbnail_of(shape: ModelShape | Mapping[str, Any], memory: MemoryFunction) -> Thumbnail:
    """The thumbnail of a shape or of its plain data: the same one for all models of that shape."""
    data = shape.to_data() if isinstance(shape, ModelShape) else shape
    return _remembered(json.dumps(data, sort_keys=True), memory)


@lru_cache(maxsize=_REMEMBERED)
def _remembered(shape: str, memory: MemoryFunction) -> Thumbnail:
    stored = memory_model.stored if memory is memory_model.memory else None
    return Thumbnail(ModelShape.from_data(json.loads(shape)), memory, stored)
