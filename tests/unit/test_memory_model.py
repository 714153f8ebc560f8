"""The memory model against answers of llama-server, and what must hold for any configuration.

The answers in `data/memory-v0.5.0-dev.json` were recorded by `tests.bench.memory --record`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import (
    MIB,
    DeviceMemory,
    MemoryModelError,
    RunConfig,
    cuda_flash_attention,
    memory,
    placement,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_families import EXACT
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape, shape_of
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import model_zoo

RECORDED = json.loads((Path(__file__).parent / "data/memory-v0.5.0-dev.json").read_text())[
    "answers"
]
ANSWERS: dict[str, list[tuple[dict[str, Any], dict[str, list[int]]]]] = defaultdict(list)
for _model, _config, _engine in RECORDED:
    ANSWERS[_model].append((_config, _engine))

GPU = ("CUDA0",)
GPUS = ("CUDA0", "CUDA1")


@cache
def zoo(name: str) -> ModelShape:
    return shape_of(model_zoo.header(name))


def config_of(recorded: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in recorded.items()
    }
    return RunConfig(**values)


def by_device(shape: ModelShape, config: RunConfig) -> dict[str, DeviceMemory]:
    return {row.device: row for row in memory(shape, config)}


def test_the_whole_zoo_was_recorded() -> None:
    assert set(ANSWERS) == set(model_zoo.NAMES)


def test_what_is_called_exact_was_measured() -> None:
    assert {zoo(name).architecture for name in ANSWERS} == EXACT


@pytest.mark.parametrize("name", model_zoo.NAMES)
def test_the_engine_says_the_same(name: str) -> None:
    for recorded, engine in ANSWERS[name]:
        ours = by_device(zoo(name), config_of(recorded))
        for device, (weights, cached, compute) in engine.items():
            row = ours[device]
            where = f"{recorded} {device}"
            assert row.weights_bytes // MIB == weights, where
            assert row.kv_bytes // MIB == cached, where
            # The engine rounds down to whole MiB.
            assert 0.9 * compute <= row.compute_bytes / MIB <= 1.1 * compute + 1, where
            assert row.total_bytes / MIB >= 0.98 * (weights + cached + compute), where


contexts = st.integers(min_value=1, max_value=40).map(lambda count: count * 512)
names = st.sampled_from(["llama-3.1-8b", "gemma3-4b", "lfm2-1.2b", "qwen3-30b-a3b", "mamba-130m"])


@settings(deadline=None, max_examples=40)
@given(name=names, context=contexts, more=contexts, slots=st.integers(1, 4))
def test_more_context_takes_no_less(name: str, context: int, more: int, slots: int) -> None:
    small = RunConfig(context_tokens=context, slots=slots, devices=GPU)
    large = replace(small, context_tokens=context + more)
    for before, after in zip(memory(zoo(name), small), memory(zoo(name), large), strict=True):
        assert after.kv_bytes >= before.kv_bytes
        assert after.weights_bytes == before.weights_bytes
        assert after.compute_bytes >= before.compute_bytes * 0.99
        assert min(before.weights_bytes, before.kv_bytes, before.compute_bytes) >= 0


@settings(deadline=None, max_examples=30)
@given(name=names, context=contexts, slots=st.integers(1, 4), more=st.integers(1, 4))
def test_more_slots_take_no_less(name: str, context: int, slots: int, more: int) -> None:
    few = memory(zoo(name), RunConfig(context_tokens=context, slots=slots))[0]
    many = memory(zoo(name), RunConfig(context_tokens=context, slots=slots + more))[0]
    assert many.kv_bytes > few.kv_bytes
    assert many.weights_bytes == few.weights_bytes


@settings(deadline=None, max_examples=30)
@given(name=names, split=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_two_devices_hold_what_one_would(name: str, split: tuple[int, int]) -> None:
    shape = zoo(name)
    one = memory(shape, RunConfig(context_tokens=4096, devices=GPU))
    two = memory(
        shape,
        RunConfig(
            context_tokens=4096, devices=GPUS, tensor_split=(float(split[0]), float(split[1]))
        ),
    )
    copies = sum(tensor.cuda_bytes for tensor in shape.every_device_extras)
    total = sum(row.weights_bytes for row in two)
    assert total - sum(row.weights_bytes for row in one) in (0, copies)
    assert sum(row.kv_bytes for row in two) == sum(row.kv_bytes for row in one)


def test_layers_go_to_the_gpu_from_the_end() -> None:
    shape = zoo("llama-3.1-8b")

    def on_gpu(layers: int | None) -> tuple[int, bool]:
        place = placement(shape, RunConfig(context_tokens=512, devices=GPU, gpu_layers=layers))
        return place.layers.count(0), place.output == 0

    assert on_gpu(None) == (32, True)
    assert on_gpu(99) == (32, True)
    assert on_gpu(33) == (32, True)
    assert on_gpu(32) == (31, True)
    assert on_gpu(1) == (0, True)
    assert on_gpu(0) == (0, False)


def test_layers_are_split_by_the_parts_given_or_by_free_memory() -> None:
    shape = zoo("llama-3.1-8b")
    config = RunConfig(context_tokens=512, devices=GPUS)
    assert placement(shape, config).layers.count(0) == 17
    uneven = replace(config, tensor_split=(3.0, 1.0))
    assert placement(shape, uneven).layers.count(0) == 25
    by_memory = replace(config, device_free_bytes=(30 * MIB, 10 * MIB))
    assert placement(shape, by_memory).layers.count(0) == 25
    alone = replace(config, split_mode="none", main_gpu=1)
    assert placement(shape, alone).devices == ("CUDA1",)


def test_experts_on_the_cpu_move_their_weights_only() -> None:
    shape = zoo("qwen3-30b-a3b")
    config = RunConfig(context_tokens=4096, devices=GPU)
    all_on = by_device(shape, config)
    some = by_device(shape, replace(config, cpu_moe_layers=10))
    moved = sum(layer.experts_cuda_bytes for layer in shape.layers[:10])
    assert all_on["CUDA0"].weights_bytes - some["CUDA0"].weights_bytes == moved
    assert all_on["CUDA0"].kv_bytes == some["CUDA0"].kv_bytes


def test_logits_of_all_tokens_take_more_than_those_of_the_slots() -> None:
    config = RunConfig(context_tokens=4096)
    server, tool = (
        memory(zoo("gemma3-270m"), replace(config, all_outputs=every))[0].compute_bytes
        for every in (False, True)
    )
    assert tool - server > 400 * MIB


def test_cuda_needs_room_to_convert_a_quantised_cache() -> None:
    config = RunConfig(context_tokens=32768, cache_type_k="q8_0", cache_type_v="q8_0", devices=GPU)
    cuda = by_device(zoo("llama-3.1-8b"), config)["CUDA0"].compute_bytes
    plain = by_device(zoo("llama-3.1-8b"), replace(config, cuda_sizes=False))["CUDA0"]
    # K and V of a layer as f16: 32768 cells x 8 heads x 128 elements x 2 bytes, twice: 128 MiB,
    # of which a part finds room where the feed-forward's tensors lie later.
    assert cuda - plain.compute_bytes >= 32 * MIB


def test_heads_that_cuda_has_no_kernel_for_go_without_flash_attention() -> None:
    shape = zoo("llama-3.1-8b")
    odd = replace(
        shape,
        layers=tuple(replace(layer, key_length=120, value_length=120) for layer in shape.layers),
    )
    assert cuda_flash_attention(shape.layers[0])
    assert not cuda_flash_attention(odd.layers[0])
    config = RunConfig(context_tokens=16384, devices=GPU)
    scores = 16384 * 512 * 32 * 4  # a score a cell, token and head
    more = by_device(odd, config)["CUDA0"].compute_bytes
    assert more - by_device(shape, config)["CUDA0"].compute_bytes > scores * 0.8
    quantised = replace(config, cache_type_k="q8_0", cache_type_v="q8_0")
    with pytest.raises(MemoryModelError, match="flash attention cannot run"):
        memory(odd, replace(quantised, cache_type_k="f16"))


def test_an_architecture_nobody_knows_is_estimated_and_marked() -> None:
    shape = replace(zoo("llama-3.1-8b"), architecture="brand-new")
    known = memory(zoo("llama-3.1-8b"), RunConfig(context_tokens=4096))[0]
    guess = memory(shape, RunConfig(context_tokens=4096))[0]
    assert guess.approximate
    assert not known.approximate
    assert guess.kv_bytes == known.kv_bytes
    assert guess.compute_bytes > known.compute_bytes


@pytest.mark.parametrize("name", ["lfm2-1.2b", "falcon-h1-1.5b", "mamba-130m"])
def test_what_is_no_transformer_is_bounded_from_above(name: str) -> None:
    shape = zoo(name)
    strange = replace(shape, architecture="brand-new")
    for layers in (None, shape.layer_count // 2):
        config = RunConfig(context_tokens=4096, devices=GPU, gpu_layers=layers)
        for bound, known in zip(memory(strange, config), memory(shape, config), strict=True):
            assert bound.compute_bytes >= known.compute_bytes


@pytest.mark.parametrize("architecture", ["llama", "brand-new"])
@pytest.mark.parametrize("devices", [(), GPU, GPUS])
def test_a_model_without_the_usual_tensors_is_bounded(
    devices: tuple[str, ...], architecture: str
) -> None:
    shape = zoo("llama-3.1-8b")
    strange = replace(
        shape,
        architecture=architecture,
        layers=tuple(
            replace(
                layer,
                tensors={name: t for name, t in layer.tensors.items() if "attn_output" not in name},
            )
            for layer in shape.layers
        ),
    )
    config = RunConfig(context_tokens=4096, devices=devices)
    for bound, known in zip(memory(strange, config), memory(shape, config), strict=True):
        assert bound.approximate
        assert bound.compute_bytes >= known.compute_bytes


def test_sizes_that_contradict_each_other_are_bounded() -> None:
    llama, mamba = zoo("llama-3.1-8b"), zoo("mamba2-370m")
    no_kv_heads = replace(llama, layers=tuple(replace(layer, kv_heads=0) for layer in llama.layers))
    no_groups = replace(mamba, parameters={**mamba.parameters, "ssm.group_count": 0})
    no_experts = replace(
        zoo("qwen3-30b-a3b"),
        layers=tuple(replace(one, experts_used=0) for one in zoo("qwen3-30b-a3b").layers),
    )
    for shape in (no_kv_heads, no_groups, no_experts):
        (row,) = memory(shape, RunConfig(context_tokens=512))
        assert row.approximate
        assert row.compute_bytes > 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RunConfig(context_tokens=512, cache_type_k="q9_9"), "no type 'q9_9'"),
        (RunConfig(context_tokens=512, split_mode="tensor"), "split mode tensor"),
        (RunConfig(context_tokens=512, slots=0), "slots is 0"),
        (
            RunConfig(context_tokens=512, cache_type_v="q8_0", flash_attention="off"),
            "needs flash attention",
        ),
        (
            RunConfig(context_tokens=512, devices=GPU, split_mode="none", main_gpu=3),
            "main_gpu is 3",
        ),
    ],
)
def test_what_the_server_refuses_is_refused(config: RunConfig, words: str) -> None:
    with pytest.raises(MemoryModelError, match=words):
        memory(zoo("llama-3.1-8b"), config)


def test_rows_that_no_block_divides_are_refused() -> None:
    shape = zoo("llama-3.1-8b")
    narrow = replace(
        shape, layers=tuple(replace(layer, key_length=50, kv_heads=1) for layer in shape.layers)
    )
    with pytest.raises(MemoryModelError, match="multiple of 32"):
        memory(narrow, RunConfig(context_tokens=512, cache_type_k="q8_0"))


def test_context_zero_is_what_the_model_was_trained_for() -> None:
    shape = zoo("smollm2-135m")
    asked = memory(shape, RunConfig(context_tokens=8192))
    assert memory(shape, RunConfig(context_tokens=0)) == asked
    with pytest.raises(MemoryModelError, match="no context"):
        memory(replace(shape, context_trained=0), RunConfig(context_tokens=0))
