"""The memory model's answer at a fraction of its time, for the planner's search.

The memory model lays out the whole graph, layer by layer, and the search asks it hundreds of
times. But layers repeat: a few of each kind on each device already reach the peak of the compute
buffers, and each further one adds the same weights and KV cache. So the search asks about a model
with few layers, and adds what the others take. Whatever is chosen is then asked in full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from .memory_model import DeviceMemory, RunConfig, placement
from .model_shape import LayerShape, ModelShape

MemoryFunction = Callable[[ModelShape, RunConfig], Sequence[DeviceMemory]]

_KEPT = 2  # of each kind in each run of layers on one device, and at each end of the run

Bytes = tuple[int, int]  # weights, KV cache


class Thumbnail:
    """A model in small; `rows` answers as the memory model does."""

    def __init__(self, shape: ModelShape, memory: MemoryFunction) -> None:
        self.shape = shape
        self.memory = memory
        self.kinds: list[LayerShape] = []
        self.kind_of: list[int] = []
        for layer in shape.layers:
            if layer not in self.kinds:
                self.kinds.append(layer)
            self.kind_of.append(self.kinds.index(layer))
        self._small: dict[tuple[tuple[int, ...], RunConfig], Sequence[DeviceMemory]] = {}
        self._added: dict[tuple[int, RunConfig], tuple[Bytes, Bytes]] = {}

    def rows(self, config: RunConfig) -> list[DeviceMemory]:
        """What each device holds. Raises MemoryModelError as the memory model does."""
        where = placement(self.shape, config)
        kept = self._kept(where.layers, config.cpu_moe_layers)
        dropped = sorted(set(range(self.shape.layer_count)) - set(kept))
        if not dropped:
            return list(self.memory(self.shape, config))
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
        added = [(0, 0)] * (len(where.devices) + 1)  # main memory last, as in the answer
        alike = Counter(
            (self.kind_of[index], where.layers[index], index < config.cpu_moe_layers)
            for index in dropped
        )
        for (kind, device, on_cpu), number in alike.items():
            own, on_host = self._layer(kind, config, device >= 0, on_cpu)
            for place, (weights, cache) in ((device, own), (-1, on_host)):
                before = added[place]
                added[place] = (before[0] + number * weights, before[1] + number * cache)
        return [
            replace(
                row,
                weights_bytes=row.weights_bytes + weights,
                kv_bytes=row.kv_bytes + cache,
            )
            for row, (weights, cache) in zip(self._rows_of(kept, small), added, strict=True)
        ]

    def _kept(self, devices: Sequence[int], cpu_moe_layers: int) -> list[int]:
        """The layers of the small model: the ends of each run, and some of each kind in it."""
        kept: set[int] = set()
        runs = groupby(
            range(len(devices)), key=lambda index: (devices[index], index < cpu_moe_layers)
        )
        for _, members in runs:
            run = list(members)
            kept.update(run[:_KEPT], run[-_KEPT:])
            for kind in {self.kind_of[index] for index in run}:
                kept.update([index for index in run if self.kind_of[index] == kind][:_KEPT])
        return sorted(kept)

    def _rows_of(self, kept: Sequence[int], config: RunConfig) -> Sequence[DeviceMemory]:
        key = (tuple(self.kind_of[index] for index in kept), config)
        if key not in self._small:
            layers = tuple(self.shape.layers[index] for index in kept)
            self._small[key] = self.memory(replace(self.shape, layers=layers), config)
        return self._small[key]

    def _layer(
        self, kind: int, config: RunConfig, on_gpu: bool, experts_on_cpu: bool
    ) -> tuple[Bytes, Bytes]:
        """What one more layer of a kind adds on its device, and beside that in main memory."""
        lone = replace(
            config,
            devices=config.devices[:1],
            main_gpu=0,
            split_mode="layer",
            tensor_split=(),
            gpu_layers=len(self.kinds) + 2 if on_gpu else 0,
            cpu_moe_layers=len(self.kinds) + 1 if experts_on_cpu else 0,
        )
        key = (kind, lone)
        if key not in self._added:
            # One of each kind, since the KV cache of one may depend on that of another.
            few = self.memory(replace(self.shape, layers=tuple(self.kinds)), lone)
            more = self.memory(replace(self.shape, layers=(*self.kinds, self.kinds[kind])), lone)
            added = [
                (after.weights_bytes - before.weights_bytes, after.kv_bytes - before.kv_bytes)
                for before, after in zip(few, more, strict=True)
            ]
            own, on_host = (added[0], added[-1]) if on_gpu else (added[-1], (0, 0))
            self._added[key] = own, on_host
        return self._added[key]
