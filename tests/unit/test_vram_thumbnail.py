"""The search's quick answer is the memory model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import (
    MIB,
    DeviceMemory,
    MemoryModelError,
    RunConfig,
    memory,
    stored,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape, shape_of
from ansible_collections.kloros.llm.plugins.module_utils.vram_thumbnail import Thumbnail

from testbed import model_zoo
from tests.unit.vram_shapes import qwen3_30b_a3b, qwen25_32b


def configurations(shape: ModelShape) -> Iterator[RunConfig]:
    full = shape.layer_count + 1
    for kv_cache in ("f16", "q8_0"):
        for split in ((1, full - 1), (full // 3, full - full // 3), (0, full), (5, 9)):
            yield RunConfig(
                12288,
                2,
                kv_cache,
                kv_cache,
                devices=("CUDA0", "CUDA1"),
                gpu_layers=sum(split),
                tensor_split=tuple(map(float, split)),
            )
    for gpu_layers in (0, 1, 9, full):
        for cpu_moe_layers in (0, 1, 7, full):
            yield RunConfig(
                4096, devices=("CUDA0",), gpu_layers=gpu_layers, cpu_moe_layers=cpu_moe_layers
            )
    yield RunConfig(4096, flash_attention="off")
    yield RunConfig(4096, devices=("CUDA0", "CUDA1"), split_mode="none", main_gpu=1)
    yield RunConfig(512, embeddings=True, pooling="mean", devices=("CUDA0",))


@pytest.mark.parametrize("name", model_zoo.NAMES)
def test_thumbnail_answers_as_the_whole(name: str) -> None:
    """Weights and cache to the byte; the compute buffers' peak may hang on a layer's place."""
    shape = shape_of(model_zoo.header(name))
    thumbnail = Thumbnail(shape, memory, stored)
    for config in configurations(shape):
        try:
            whole = list(memory(shape, config))
        except MemoryModelError:
            continue
        for said, told in zip(thumbnail.rows(config), whole, strict=True):
            assert replace(said, compute_bytes=0) == replace(told, compute_bytes=0), config
            difference = abs(said.compute_bytes - told.compute_bytes)
            assert difference <= max(MIB, 0.25 * told.compute_bytes), config


@pytest.mark.parametrize("make", [qwen25_32b, qwen3_30b_a3b])
def test_of_a_plain_transformer_the_compute_buffers_are_exact_too(
    make: Callable[[], ModelShape],
) -> None:
    shape = make()
    thumbnail = Thumbnail(shape, memory, stored)
    for config in configurations(shape):
        assert thumbnail.rows(config) == list(memory(shape, config)), config


def test_few_layers_are_asked_about() -> None:
    shape = qwen25_32b()
    asked: list[int] = []

    def counting(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
        asked.append(len(shape.layers))
        return list(memory(shape, config))

    thumbnail = Thumbnail(shape, counting, stored)
    for first in range(20, 45):
        thumbnail.rows(
            RunConfig(8192, devices=("CUDA0", "CUDA1"), tensor_split=(first, 65.0 - first))
        )
    assert max(asked) <= 16
    assert len(asked) < 25


def test_most_splits_share_a_small_model() -> None:
    asked: list[RunConfig] = []

    def counting(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
        asked.append(config)
        return list(memory(shape, config))

    thumbnail = Thumbnail(qwen25_32b(), counting, stored)
    for first in range(66):
        thumbnail.rows(
            RunConfig(8192, devices=("CUDA0", "CUDA1"), tensor_split=(first, 65.0 - first))
        )
    assert len(asked) <= 14
