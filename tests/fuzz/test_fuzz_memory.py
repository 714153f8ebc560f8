"""Headers of real dimensions with impossible numbers: the memory model answers or refuses."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import (
    GgufHeader,
    GgufTensor,
    Scalar,
    SkippedArray,
    Value,
)
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import RunConfig, memory
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import (
    MAX_EXPERTS,
    MAX_LAYERS,
    SECTIONS,
    SIZES,
    SWITCHES,
    ModelShapeError,
    shape_of,
)

from testbed import model_zoo
from tests.fuzz.fuzz_gguf import check_memory

INPUTS = 150
NUMBERS: tuple[Scalar, ...] = (
    *(0, 1, 2, 3, 7, 255, 4096, 2**20, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1, -5),
    *(0.0, 0.5, 1e38, float("nan"), float("inf"), -float("inf"), True, False, "", "x", "9" * 5000),
)
ENTRIES: tuple[Scalar, ...] = (0, 1, "a", -1, 2**63, float("nan"))
VALUES: list[Value] = [*NUMBERS, [], SkippedArray("i32", 5000)]
VALUES += [[entry] * length for entry in ENTRIES for length in (1, 99)]
NAMES = (
    *(*SIZES, *SWITCHES, SECTIONS),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "attention.value_length"),
    *("block_count", "context_length", "embedding_length", "expert_used_count"),
    *("expert_feed_forward_length", "feed_forward_length", "full_attention_interval"),
    *("nextn_predict_layers", "vocab_size"),
)
# Beside the zoo's: architectures with other rules for layers, heads and windows.
OTHERS = ("bert", "brand-new", "gemma4", "jamba", "minimax-01", "nemotron_h", "qwen35", "rwkv7")
LENGTHS = (1, 2, 3, 64, 2**20, 2**40)


def broken(number: int) -> GgufHeader:
    """A header of the zoo with some values, and perhaps tensors, that it should not have."""
    rng = random.Random(number)  # noqa: S311 - for tests
    header = model_zoo.header(rng.choice(model_zoo.NAMES))
    architecture = str(header.metadata["general.architecture"])
    metadata = dict(header.metadata)
    if rng.random() < 0.2:
        other = rng.choice(OTHERS)
        metadata = {key.replace(architecture, other, 1): one for key, one in metadata.items()}
        metadata["general.architecture"] = architecture = other
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        metadata[f"{architecture}.{rng.choice(NAMES)}"] = rng.choice(VALUES)
    tensors = list(header.tensors)
    for _ in range(rng.choice((0, 0, 1, 5, 50))):
        at = rng.randrange(len(tensors))
        if rng.random() < 0.3 and len(tensors) > 1:
            del tensors[at]
        else:
            shape = tuple(rng.choice(LENGTHS) for _ in range(rng.randrange(5)))
            tensors[at] = replace(tensors[at], shape=shape, type=rng.choice(("I8", "MXFP4")))
    return replace(header, metadata=metadata, tensors=tuple(tensors))


def test_impossible_numbers_are_refused_or_calculated_with() -> None:
    refused: list[str] = []
    for number in range(INPUTS):
        try:
            shape = shape_of(broken(number))
            json.dumps(shape.to_data(), allow_nan=False)
            check_memory(shape)
        except ModelShapeError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f"input {number}") from error
    assert 20 < len(refused) < INPUTS - 20
    assert max(map(len, refused)) < 300


@pytest.mark.parametrize("experts_used", [8, MAX_EXPERTS])
def test_the_largest_that_is_let_through_is_answered(experts_used: int) -> None:
    """All layers differ, so that each is laid out; so many experts are more than any graph has."""
    header = model_zoo.header("qwen3-30b-a3b")
    layer = [one for one in header.tensors if one.name.startswith("blk.0.")]
    tensors: list[GgufTensor] = [one for one in header.tensors if not one.name.startswith("blk.")]
    for index in range(MAX_LAYERS):
        name = f"blk.{index}."
        tensors += [replace(one, name=one.name.replace("blk.0.", name)) for one in layer]
    more: dict[str, Value] = {
        "qwen3moe.block_count": MAX_LAYERS,
        "qwen3moe.attention.head_count_kv": list(range(1, MAX_LAYERS + 1)),
        "qwen3moe.expert_used_count": experts_used,
    }
    shape = shape_of(replace(header, metadata={**header.metadata, **more}, tensors=tuple(tensors)))
    (row,) = memory(shape, RunConfig(4096))
    assert row.approximate == (experts_used == MAX_EXPERTS)
    assert row.compute_bytes > 0
