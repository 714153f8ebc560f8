"""Shapes of models, read from headers of the zoo and from headers made for one question."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import model_shape
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import (
    GgufHeader,
    GgufTensor,
    SkippedArray,
    Value,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import (
    SECTIONS,
    SIZES,
    SWITCHES,
    ModelShape,
    ModelShapeError,
    TensorShape,
    shape_of,
)

from testbed import model_zoo


def zoo(name: str) -> ModelShape:
    return shape_of(model_zoo.header(name))


def changed(name: str, **metadata: Value) -> ModelShape:
    """A model of the zoo with other metadata; "__" stands for a dot after the architecture."""
    header = model_zoo.header(name)
    prefix = header.metadata["general.architecture"]
    more = {f"{prefix}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return shape_of(replace(header, metadata={**header.metadata, **more}))


def full(shape: ModelShape) -> list[int]:
    """Layers whose attention sees everything."""
    return [index for index, layer in enumerate(shape.layers) if not layer.sliding]


def header_of(metadata: dict[str, Value], *tensors: GgufTensor) -> GgufHeader:
    return GgufHeader(3, "little", 32, metadata, tensors, 0)


LEAST: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
}


@pytest.mark.parametrize("name", model_zoo.NAMES)
def test_each_model_of_the_zoo_survives_json(name: str) -> None:
    shape = zoo(name)
    text = json.dumps(shape.to_data())
    assert ModelShape.from_data(json.loads(text)) == shape
    assert len(text) < 32 * 1024


@pytest.mark.parametrize("name", model_zoo.NAMES)
def test_all_bytes_of_the_file_are_counted_once(name: str) -> None:
    header = model_zoo.header(name)
    shape = shape_of(header)
    assert shape.weights_bytes == sum(tensor.size_bytes for tensor in header.tensors)
    parts = (*shape.input, *shape.output, *shape.first_layer_extras, *shape.every_device_extras)
    assert sorted(tensor.size_bytes for tensor in parts) == sorted(
        tensor.size_bytes for tensor in shape.tensors.values()
    )


def test_kv_heads_are_read_a_layer() -> None:
    shape = zoo("lfm2-1.2b")
    attention = [index for index, layer in enumerate(shape.layers) if layer.cached]
    assert attention == [2, 5, 8, 10, 12, 14]
    assert all(layer.recurrent != layer.cached for layer in shape.layers)
    assert {layer.key_length * layer.kv_heads for layer in shape.layers} == {0, 512}


def test_layers_side_by_side_have_both_cache_and_state() -> None:
    assert all(layer.cached and layer.recurrent for layer in zoo("falcon-h1-1.5b").layers)


def test_pure_state_space_models_have_no_cache() -> None:
    assert all(layer.recurrent and not layer.cached for layer in zoo("mamba-130m").layers)


def test_encoders_have_neither_cache_nor_output_matrix() -> None:
    shape = zoo("nomic-embed-1.5")
    assert not any(layer.cached or layer.recurrent for layer in shape.layers)
    assert shape.tied_output is None


def test_sliding_windows_are_known_by_architecture() -> None:
    assert full(zoo("gemma3-4b")) == [5, 11, 17, 23, 29]
    assert full(zoo("gemma2-9b")) == list(range(1, 42, 2))
    assert full(zoo("gpt-oss-20b")) == list(range(1, 24, 2))
    assert zoo("gpt-oss-20b").sliding_window == 128


def test_a_window_that_llama_cpp_ignores_is_ignored() -> None:
    shape = zoo("phi3-mini")
    assert shape.sliding_window == 0
    assert not any(layer.sliding for layer in shape.layers)


def test_a_pattern_in_the_header_goes_before() -> None:
    each: Value = [index != 3 for index in range(34)]
    assert full(changed("gemma3-4b", attention__sliding_window_pattern=each)) == [3]
    by_four = changed("gemma3-4b", attention__sliding_window_pattern=4)
    assert full(by_four) == list(range(3, 34, 4))


def test_without_a_window_no_layer_slides() -> None:
    assert full(changed("gemma3-4b", attention__sliding_window=0)) == list(range(34))


def test_the_window_has_its_own_head_length() -> None:
    shape = changed("gemma3-4b", attention__key_length_swa=128, attention__value_length_swa=64)
    assert (shape.layers[0].key_length, shape.layers[0].value_length) == (128, 64)
    assert (shape.layers[5].key_length, shape.layers[5].value_length) == (256, 256)


def test_latent_attention_keeps_keys_only() -> None:
    layer = zoo("deepseek-v2-lite").layers[0]
    assert (layer.kv_heads, layer.key_length, layer.value_length) == (1, 576, 0)


def test_layers_that_share_a_cache_own_none() -> None:
    cached = [layer.cached for layer in zoo("gemma3n-e4b").layers]
    assert cached == [True] * 20 + [False] * 15


def test_next_token_layers_are_not_passed() -> None:
    shape = changed("llama-3.1-8b", nextn_predict_layers=1)
    assert (shape.layer_count, shape.trunk_layers, shape.nextn_layers) == (32, 31, 1)
    assert not shape.layers[31].cached


def test_experts_are_told_from_the_rest() -> None:
    shape = zoo("qwen3-30b-a3b")
    layer = shape.layers[0]
    assert shape.has_experts
    assert len(layer.experts) == 3
    assert layer.experts_used == 8
    assert layer.weights_bytes == sum(t.size_bytes for t in (*layer.experts, *layer.dense))
    assert not zoo("qwen3-8b").has_experts


def test_shared_experts_stay_with_the_layer() -> None:
    layer = zoo("deepseek-v2-lite").layers[1]
    shared = layer.tensors["ffn_up_shexp.weight"]
    assert shared in layer.dense
    assert shared not in layer.experts


def test_a_tied_output_is_the_embedding() -> None:
    assert zoo("smollm2-135m").tied_output == zoo("smollm2-135m").tensors["token_embd.weight"]
    assert zoo("llama-3.1-8b").tied_output is None


def test_cuda_pads_the_last_row_of_a_quantised_matrix() -> None:
    assert TensorShape((576, 10), "Q8_0", 612 * 10).cuda_bytes == 6656  # + 448 elements, to 128
    assert TensorShape((1024, 10), "Q8_0", 10880).cuda_bytes == 10880
    assert TensorShape((576, 10), "F32", 23040).cuda_bytes == 23040
    assert TensorShape((3,), "F32", 12).host_bytes == 32


@pytest.mark.parametrize(
    ("tokens", "count"), [(SkippedArray("str", 1000), 1000), (["a", "b", "c"], 3)]
)
def test_the_vocabulary_is_counted(tokens: Value, count: int) -> None:
    assert shape_of(header_of({**LEAST, "tokenizer.ggml.tokens": tokens})).vocabulary == count


def test_without_tokens_the_embedding_tells_the_vocabulary() -> None:
    tensor = GgufTensor("token_embd.weight", (64, 77), "F16", 0, 64 * 77 * 2)
    assert shape_of(header_of(LEAST, tensor)).vocabulary == 77


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": None}, "general.architecture"),
        ({"llama.block_count": None}, "block_count"),
        ({"llama.block_count": 0}, "block_count is 0"),
        ({"llama.block_count": 513}, "block_count is 513; llama.cpp takes at most 512"),
        ({"llama.block_count": float("nan")}, "block_count is nan; llama.cpp loads no model"),
        ({"llama.block_count": SkippedArray("u32", 9999)}, "is an array of 9999 elements"),
        ({"llama.embedding_length": 0}, "embedding_length is 0"),
        ({"llama.context_length": 2**32}, "context_length is 4294967296; llama.cpp loads no"),
        ({"llama.attention.head_count": -1}, "head_count is -1"),
        ({"llama.attention.head_count": [4, float("inf")]}, "head_count is inf"),
        ({"llama.nextn_predict_layers": 2}, "nextn_predict_layers is 2 of 2 layers"),
        ({"llama.expert_used_count": 1025}, "expert_used_count is 1025; llama.cpp takes at most"),
        ({"llama.ssm.inner_size": 2**63}, "ssm.inner_size is 9223372036854775808"),
        ({"general.architecture": "x" * 65}, "no general.architecture"),
        ({"general.architecture": "llama\x1b]0;"}, "no general.architecture"),
        ({"llama.embedding_length": "wide"}, "embedding_length"),
        ({"llama.attention.head_count_kv": [8]}, "1 entries for 2 layers"),
        ({"llama.attention.head_count": "many"}, "head_count is a text"),
    ],
)
def test_a_header_that_lacks_something_is_refused(
    change: dict[str, Value | None], words: str
) -> None:
    metadata = {key: value for key, value in {**LEAST, **change}.items() if value is not None}
    with pytest.raises(ModelShapeError, match=words):
        shape_of(header_of(metadata))


def test_an_interval_of_no_layers_is_refused() -> None:
    header = model_zoo.header("qwen3-8b")
    metadata = {
        key.replace("qwen3", "qwen35", 1): value for key, value in header.metadata.items()
    } | {"general.architecture": "qwen35", "qwen35.full_attention_interval": 0}
    with pytest.raises(ModelShapeError, match="full_attention_interval is 0"):
        shape_of(replace(header, metadata=metadata))


def test_only_what_memory_depends_on_is_kept() -> None:
    # Files of gemma3n really say -inf there, which is no JSON.
    sparsity: Value = [1.64, -float("inf")]
    shape = changed(
        "gemma3n-e4b", activation_sparsity_scale=sparsity, logit_scale=float("nan"), note="x" * 99
    )
    json.dumps(shape.to_data(), allow_nan=False)
    assert not {"activation_sparsity_scale", "logit_scale", "note"} & set(shape.parameters)
    assert set(shape.parameters) <= {*SIZES, *SWITCHES, SECTIONS}


def test_the_memory_model_asks_for_nothing_else() -> None:
    """A name that is missing in the lists would silently be 0."""
    folder = Path(model_shape.__file__).parent
    asked: set[str] = set()
    for name in ("memory_model", "model_families", "model_graph", "state_graph", "gemma3n_graph"):
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        asked.update(re.findall(r'\.(?:parameter|flag)\(\s*"([^"]+)"', text))
        asked.update(re.findall(r'parameters\.get\(\s*"([^"]+)"', text))
        asked.update(re.findall(r'"([^"]+)" in \w+\.parameters', text))
    assert asked == {*SIZES, *SWITCHES, SECTIONS}
