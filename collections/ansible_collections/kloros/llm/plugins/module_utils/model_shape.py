# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""What a model's GGUF header says about its memory: layers, heads, tensors and their bytes.

Source: llama.cpp v0.5.0-dev, `src/llama-model.cpp` (load_hparams), `src/llama-hparams.cpp` and
`load_arch_hparams` of each file in `src/models`. Per-layer arrays are honoured; where an
architecture's sliding-window pattern is written into llama.cpp, it stands in SLIDING below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from .gguf_header import GgufHeader, GgufTensor, Scalar, SkippedArray, Value

# ggml pads each tensor of a buffer to the buffer type's alignment (ggml-impl.h TENSOR_ALIGNMENT;
# ggml-cuda.cu ggml_backend_cuda_buffer_type_get_alignment).
HOST_ALIGNMENT = 32
CUDA_ALIGNMENT = 128
# CUDA pads the last row of a quantised matrix to this many elements (common.cuh).
CUDA_ROW_PADDING = 512

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# A layer without KV heads is a recurrent one.
RECURRENT_WITHOUT_KV_HEADS = frozenset(
    {
        "jamba",
        "granitehybrid",
        "plamo2",
        "lfm2",
        "lfm2moe",
        "kimi-linear",
        "kimi-k3",
        "bailingmoe3",
        "glm5-next",
    }
)
# Every n-th layer has attention, the others are recurrent, unless an array says which.
ATTENTION_INTERVAL = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
NEMOTRON_H = frozenset({"nemotron_h", "nemotron_h_moe"})
# No memory between calls: encoders, and diffusion models.
WITHOUT_CACHE = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "eurobert",
        "gemma-embedding",
        "wavtokenizer-dec",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
    }
)
# Encoders whose graph ends in an embedding: no matrix of the vocabulary's size at the output.
WITHOUT_OUTPUT = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "eurobert",
    }
)


@dataclass(frozen=True)
class Sliding:
    """How an architecture finds its sliding-window layers.

    `period`: every n-th layer has full attention, the last of n or, if `full_first`, the first;
    0: all layers slide. A `sliding_window_pattern` in the header, number or array, goes before.
    `window`: used if the header has none; None: without the key (or with 0) no layer slides.
    """

    period: int
    full_first: bool = False
    window: int | None = None


SLIDING = {
    "afmoe": Sliding(4),
    "cohere2": Sliding(4),
    "cohere2moe": Sliding(4, full_first=True),
    "deepseek4": Sliding(0),
    "dots3note": Sliding(1),
    "exaone-moe": Sliding(4, window=128),
    "gemma2": Sliding(2, window=4096),
    "gemma3": Sliding(6),
    "gemma3n": Sliding(5),
    "gemma4": Sliding(1),
    "gemma-embedding": Sliding(6),
    "gpt-oss": Sliding(2),
    "granite_swa": Sliding(1),
    "graniteswitch": Sliding(1),
    "laguna": Sliding(4, full_first=True),
    "llama4": Sliding(4, window=8192),
    "maple": Sliding(1),
    "mellum": Sliding(4),
    "mimo2": Sliding(1),
    "modern-bert": Sliding(3, full_first=True),
    "muse-glimmer": Sliding(4),
    "olmo2": Sliding(4),
    "plamo3": Sliding(8),
    "smallthinker": Sliding(4, full_first=True),
    "spark2_5": Sliding(1),
    "step35": Sliding(1),
}
EXAONE4_SLIDING_LAYERS = 64  # only the 32B, known by its layers, has a window
GEMMA3N_LAYERS_WITH_KV = 20

# llama-hparams.h: LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS; its numbers are uint32_t.
MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_NUMBER = 2**32 - 1

# What the memory model reads by name: sizes, and values of which it asks whether they are set.
SIZES = (
    "attention.indexer.key_length",
    "attention.key_length_mla",
    "attention.kv_lora_rank",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "kda.head_dim",
    "moe_every_n_layers",
    "pooling_type",
    "rope.dimension_count",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "token_shift_count",
    "wkv.head_size",
)
SWITCHES = (
    "attention.causal",
    "attention.layer_norm_rms_epsilon",
    "embedding_scale",
    "expert_weights_norm",
    "expert_weights_scale",
    "logit_scale",
    "residual_scale",
    "rope.scaling.finetuned",
    "ssm.dt_b_c_rms",
)
SECTIONS = "rope.dimension_sections"

_ARCHITECTURE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BLOCK = re.compile(r"^(?:blk|dec\.blk|enc\.blk)\.(\d+)\.(.+)$")
_EXPERTS = re.compile(r"^ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b")

_ON_INPUT = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
_ON_FIRST_LAYER = frozenset(
    {
        "token_embd_norm",
        "per_layer_model_proj",
        "per_layer_proj_norm",
        "nextn.pre_projection",
        "conv1d",
        "hrm.z_l_init",
    }
)
_ON_EVERY_DEVICE = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})


class ModelShapeError(ValueError):
    """The header lacks what every language model's has, or says what no llama.cpp could load."""


def _pad(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


@dataclass(frozen=True)
class TensorShape:
    """`shape` innermost dimension first, `type` ggml's name, `size_bytes` without padding."""

    shape: tuple[int, ...]
    type: str
    size_bytes: int

    @property
    def host_bytes(self) -> int:
        """What it takes in main memory."""
        return _pad(self.size_bytes, HOST_ALIGNMENT)

    @property
    def cuda_bytes(self) -> int:
        """What it takes on a CUDA device (ggml_backend_cuda_buffer_type_get_alloc_size)."""
        size = self.size_bytes
        rest = self.shape[0] % CUDA_ROW_PADDING if self.shape else 0
        if rest and self.type not in {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}:
            rows = 1
            for dimension in self.shape[1:]:
                rows *= dimension
            size += size // rows * (CUDA_ROW_PADDING - rest) // self.shape[0]
        return _pad(size, CUDA_ALIGNMENT)


Tensors = Mapping[str, TensorShape]


def _host(tensors: Iterable[TensorShape]) -> int:
    return sum(tensor.host_bytes for tensor in tensors)


def _cuda(tensors: Iterable[TensorShape]) -> int:
    return sum(tensor.cuda_bytes for tensor in tensors)


@dataclass(frozen=True)
class LayerShape:
    """One layer.

    `heads`, `kv_heads`: attention heads; 0 where it has none. `key_length`, `value_length`:
    elements a KV head takes in the cache; MLA: the latent's, and no value. `cached`: it owns a KV
    cache (a layer that shares another's does not). `tensors` by their name without "blk.N.".
    """

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    feed_forward: int
    expert_feed_forward: int
    experts_used: int
    cached: bool
    sliding: bool
    recurrent: bool
    nextn: bool
    tensors: Tensors

    @cached_property
    def experts(self) -> tuple[TensorShape, ...]:
        """The experts' matrices, those that --n-cpu-moe keeps in main memory."""
        return tuple(tensor for name, tensor in self.tensors.items() if _EXPERTS.match(name))

    @cached_property
    def dense(self) -> tuple[TensorShape, ...]:
        """All other tensors of the layer."""
        return tuple(tensor for name, tensor in self.tensors.items() if not _EXPERTS.match(name))

    @cached_property
    def dense_host_bytes(self) -> int:
        return _host(self.dense)

    @cached_property
    def dense_cuda_bytes(self) -> int:
        return _cuda(self.dense)

    @cached_property
    def experts_host_bytes(self) -> int:
        return _host(self.experts)

    @cached_property
    def experts_cuda_bytes(self) -> int:
        return _cuda(self.experts)

    @property
    def weights_bytes(self) -> int:
        """Bytes in the file."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @cached_property
    def graph_kind(self) -> tuple[object, ...]:
        """Layers with the same one are computed alike."""
        return (
            self.heads,
            self.kv_heads,
            self.key_length,
            self.value_length,
            self.experts_used,
            self.cached,
            self.sliding,
            self.recurrent,
            tuple(sorted((name, tensor.shape) for name, tensor in self.tensors.items())),
        )

    @cached_property
    def tensor_kind(self) -> tuple[object, ...]:
        """Layers with the same one have tensors of the same types."""
        return tuple(sorted((name, tensor.type) for name, tensor in self.tensors.items()))


@dataclass(frozen=True)
class ModelShape:
    """A model as the memory model sees it.

    `parameters`: SIZES, SWITCHES and SECTIONS, as far as the header has them. `layers`: all of
    `block_count`, next-token layers (MTP) last. `tensors`: those that belong to no layer.
    `sliding_window`: tokens, 0 if no layer slides.
    """

    architecture: str
    name: str
    context_trained: int
    vocabulary: int
    embedding_length: int
    sliding_window: int
    parameters: Mapping[str, Scalar | list[Scalar]]
    layers: tuple[LayerShape, ...]
    tensors: Tensors

    @property
    def layer_count(self) -> int:
        """What `-ngl` counts, without the output layer."""
        return len(self.layers)

    @property
    def nextn_layers(self) -> int:
        return sum(layer.nextn for layer in self.layers)

    @property
    def trunk_layers(self) -> int:
        """Layers that a token passes through."""
        return self.layer_count - (0 if self.architecture == "graniteswitch" else self.nextn_layers)

    @property
    def has_experts(self) -> bool:
        return any(layer.experts for layer in self.layers)

    @cached_property
    def weights_bytes(self) -> int:
        """All tensors of the file, in bytes."""
        return sum(tensor.size_bytes for tensor in self.tensors.values()) + sum(
            layer.weights_bytes for layer in self.layers
        )

    def _global(self, kind: frozenset[str]) -> tuple[TensorShape, ...]:
        return tuple(
            tensor for name, tensor in self.tensors.items() if name.rpartition(".")[0] in kind
        )

    @cached_property
    def input(self) -> tuple[TensorShape, ...]:
        """Embeddings: always in main memory."""
        return self._global(_ON_INPUT)

    @cached_property
    def first_layer_extras(self) -> tuple[TensorShape, ...]:
        """Tensors without a layer's number that llama.cpp puts where layer 0 is."""
        if self.architecture in {"lfm2", "lfm2moe"}:  # token_embd_norm is their output_norm
            return ()
        return self._global(_ON_FIRST_LAYER)

    @cached_property
    def every_device_extras(self) -> tuple[TensorShape, ...]:
        """RoPE factors: one copy on each device that has layers."""
        return self._global(_ON_EVERY_DEVICE)

    @cached_property
    def output(self) -> tuple[TensorShape, ...]:
        """Norm and matrix at the end, without a tied output."""
        elsewhere = _ON_INPUT | _ON_EVERY_DEVICE
        if self.architecture not in {"lfm2", "lfm2moe"}:
            elsewhere |= _ON_FIRST_LAYER
        return tuple(
            tensor
            for name, tensor in self.tensors.items()
            if name.rpartition(".")[0] not in elsewhere
        )

    @cached_property
    def tied_output(self) -> TensorShape | None:
        """The token embedding, where it is the output matrix too: on a GPU it exists twice."""
        if "output.weight" in self.tensors or self.architecture in WITHOUT_OUTPUT:
            return None
        return self.tensors.get("token_embd.weight")

    def parameter(self, name: str, default: int = 0) -> int:
        """One of SIZES."""
        value = self.parameters.get(name, default)
        return value if isinstance(value, int) else default

    def flag(self, name: str, default: bool) -> bool:
        """One of SWITCHES: whether it is there, and neither false nor 0."""
        return bool(self.parameters.get(name, default))

    def to_data(self) -> dict[str, Any]:
        """Plain JSON: layers that are alike stand once in `layer_kinds`."""
        kinds: list[dict[str, Any]] = []
        runs: list[list[int]] = []
        for layer in self.layers:
            kind = {
                "heads": layer.heads,
                "kv_heads": layer.kv_heads,
                "key_length": layer.key_length,
                "value_length": layer.value_length,
                "feed_forward": layer.feed_forward,
                "expert_feed_forward": layer.expert_feed_forward,
                "experts_used": layer.experts_used,
                "cached": layer.cached,
                "sliding": layer.sliding,
                "recurrent": layer.recurrent,
                "nextn": layer.nextn,
                "tensors": _tensors_to_data(layer.tensors),
            }
            if kind not in kinds:
                kinds.append(kind)
            number = kinds.index(kind)
            if runs and runs[-1][0] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
        return {
            "architecture": self.architecture,
            "name": self.name,
            "context_trained": self.context_trained,
            "vocabulary": self.vocabulary,
            "embedding_length": self.embedding_length,
            "sliding_window": self.sliding_window,
            "parameters": dict(self.parameters),
            "layer_kinds": kinds,
            "layers": runs,
            "tensors": _tensors_to_data(self.tensors),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ModelShape:
        """The inverse of `to_data`."""
        kinds = [
            LayerShape(**{**kind, "tensors": _tensors_from_data(kind["tensors"])})
            for kind in data["layer_kinds"]
        ]
        return cls(
            architecture=data["architecture"],
            name=data["name"],
            context_trained=data["context_trained"],
            vocabulary=data["vocabulary"],
            embedding_length=data["embedding_length"],
            sliding_window=data["sliding_window"],
            parameters=dict(data["parameters"]),
            layers=tuple(kinds[number] for number, count in data["layers"] for _ in range(count)),
            tensors=_tensors_from_data(data["tensors"]),
        )


def _tensors_to_data(tensors: Tensors) -> dict[str, list[Any]]:
    return {
        name: [tensor.type, list(tensor.shape), tensor.size_bytes]
        for name, tensor in tensors.items()
    }


def _tensors_from_data(data: Mapping[str, list[Any]]) -> dict[str, TensorShape]:
    return {name: TensorShape(tuple(row[1]), row[0], row[2]) for name, row in data.items()}


class _Metadata:
    """The architecture's entries of a header, typed."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
            raise ModelShapeError(
                "the header has no general.architecture: it is no model that llama.cpp loads"
            )
        self.architecture = architecture
        self.metadata = metadata

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def value(self, name: str) -> Value | None:
        return self.metadata.get(f"{self.architecture}.{name}")

    def whole(self, name: str, default: int | None = None) -> int:
        """A number; of an array the first."""
        value = self.value(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            value = default
        if value is None:
            raise ModelShapeError(
                f"the header has no number {self.architecture}.{name}: "
                "the file is not a language model, or it is damaged"
            )
        return self._checked(name, value)

    def least_one(self, name: str, default: int | None = None) -> int:
        """A number that cannot be 0."""
        number = self.whole(name, default)
        if not number:
            raise self._refused(name, number)
        return number

    def each(self, name: str, layers: int, default: int = 0) -> list[int]:
        """One number a layer; a single one counts for all."""
        value = self.value(name)
        if not isinstance(value, list):
            return [self._checked(name, default if value is None else value)] * layers
        if len(value) < layers:
            raise ModelShapeError(
                f"{self.architecture}.{name} has {len(value)} entries for {layers} layers"
            )
        return [self._checked(name, entry) for entry in value[:layers]]

    def largest(self, name: str) -> int:
        """A number; of an array the largest."""
        value = self.value(name)
        if isinstance(value, list):
            return max((self._checked(name, entry) for entry in value), default=0)
        return self.whole(name)

    def _checked(self, name: str, value: Value) -> int:
        if not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
            raise self._refused(name, value)
        return int(value)

    def _refused(self, name: str, value: Value) -> ModelShapeError:
        what = "a text" if isinstance(value, str) else str(value)
        if isinstance(value, SkippedArray):
            what = f"an array of {value.length} elements"
        return ModelShapeError(
            f"{self.architecture}.{name} is {what}; llama.cpp loads no model with that"
        )


def _parameters(meta: _Metadata) -> dict[str, Scalar | list[Scalar]]:
    found: dict[str, Scalar | list[Scalar]] = {
        name: meta.largest(name) for name in SIZES if meta.has(name)
    }
    for name in SWITCHES:
        value = meta.value(name)
        if isinstance(value, int | float) and isfinite(value):
            found[name] = value
    sections = meta.value(SECTIONS)
    if isinstance(sections, list):
        found[SECTIONS] = [bool(section) for section in sections[:4]]
    return found


def _sliding_layers(meta: _Metadata, layers: int) -> tuple[int, list[bool]]:
    """The window in tokens, and which layers slide."""
    none = 0, [False] * layers
    if meta.architecture in {"lfm2", "lfm2moe"}:
        window = meta.whole("attention.sliding_window", 0)
        kv_heads = meta.each("attention.head_count_kv", layers)
        return (window, [heads > 0 for heads in kv_heads]) if window else none
    rule = SLIDING.get(meta.architecture)
    if meta.architecture == "exaone4" and layers == EXAONE4_SLIDING_LAYERS:
        rule = Sliding(4, window=4096)
    if rule is None:
        return none
    window = meta.whole("attention.sliding_window", rule.window or 0)
    if meta.architecture in {"llama4", "smallthinker"} and window:
        window = {"llama4": 8192, "smallthinker": 4096}[meta.architecture]
    if not window:
        return none
    name = "attention.sliding_window_pattern"
    pattern = meta.value(name)
    if isinstance(pattern, list):
        each = [bool(entry) for entry in pattern[:layers]]
        return window, each + [False] * (layers - len(each))
    period = meta.whole(name, rule.period)
    full = 0 if rule.full_first else period - 1
    return window, [period == 0 or index % period != full for index in range(layers)]


def _recurrent_layers(meta: _Metadata, layers: int, kv_heads: list[int]) -> list[bool]:
    name = meta.architecture
    if name in RECURRENT or name == "falcon-h1":
        return [True] * layers
    if name in RECURRENT_WITHOUT_KV_HEADS:
        return [heads == 0 for heads in kv_heads]
    if name in NEMOTRON_H:
        feed_forward = meta.each("feed_forward_length", layers)
        return [heads == 0 and ff == 0 for heads, ff in zip(kv_heads, feed_forward, strict=True)]
    if name in ATTENTION_INTERVAL:
        if meta.has("attention.recurrent_layers"):
            return [bool(entry) for entry in meta.each("attention.recurrent_layers", layers)]
        interval = meta.least_one("full_attention_interval", ATTENTION_INTERVAL[name])
        return [(index + 1) % interval != 0 for index in range(layers)]
    return [False] * layers


def _cached_layers(meta: _Metadata, layers: int, recurrent: list[bool], nextn: int) -> list[bool]:
    name = meta.architecture
    if name in WITHOUT_CACHE or name in RECURRENT:
        return [False] * layers
    cached = [True] * layers
    if name in NEMOTRON_H:
        feed_forward = meta.each("feed_forward_length", layers)
        cached = [not r and ff == 0 for r, ff in zip(recurrent, feed_forward, strict=True)]
    elif name != "falcon-h1":
        cached = [not entry for entry in recurrent]
    owners = layers
    if name == "gemma3n":
        owners = GEMMA3N_LAYERS_WITH_KV
    elif name == "gemma4":
        owners = layers - meta.whole("attention.shared_kv_layers", 0)
    trunk = layers if name == "graniteswitch" else layers - nextn
    return [entry and index < min(owners, trunk) for index, entry in enumerate(cached)]


def _head_lengths(meta: _Metadata, embedding_length: int, heads: list[int]) -> tuple[int, int]:
    first = heads[0] if heads else 0
    if first == 0:
        default = 0
        if meta.architecture not in NEMOTRON_H | {"granitehybrid", "lfm2", "lfm2moe", "jamba"}:
            return 0, 0
    else:
        default = embedding_length // first
    return (
        meta.whole("attention.key_length", default),
        meta.whole("attention.value_length", default),
    )


def _tensor(tensor: GgufTensor) -> TensorShape:
    return TensorShape(tensor.shape, tensor.type, tensor.size_bytes)


def _vocabulary(meta: _Metadata, tensors: Tensors) -> int:
    tokens = meta.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, SkippedArray):
        return tokens.length
    if isinstance(tokens, list):
        return len(tokens)
    embedding = tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) > 1:
        return embedding.shape[1]
    return meta.whole("vocab_size", 0)


def shape_of(header: GgufHeader) -> ModelShape:
    """The shape of a model; for a split model, of its merged header.

    What a plan costs is bounded by MAX_LAYERS, MAX_EXPERTS and MAX_NUMBER, whatever a header says.

    Raises ModelShapeError if the header lacks an architecture, its number of layers or its width,
    or where one of its numbers is beyond what llama.cpp can hold.
    """
    meta = _Metadata(header.metadata)
    layers = meta.least_one("block_count")
    if layers > MAX_LAYERS:
        raise ModelShapeError(
            f"{meta.architecture}.block_count is {layers}; llama.cpp takes at most {MAX_LAYERS}"
        )
    embedding_length = meta.least_one("embedding_length")
    nextn = meta.whole("nextn_predict_layers", 0)
    if nextn >= layers:
        raise ModelShapeError(
            f"{meta.architecture}.nextn_predict_layers is {nextn} of {layers} layers: "
            "none is left to pass"
        )
    heads = meta.each("attention.head_count", layers)
    kv_heads = heads
    if meta.has("attention.head_count_kv"):
        kv_heads = meta.each("attention.head_count_kv", layers)
    window, sliding = _sliding_layers(meta, layers)
    recurrent = _recurrent_layers(meta, layers, kv_heads)
    cached = _cached_layers(meta, layers, recurrent, nextn)
    key_length, value_length = _head_lengths(meta, embedding_length, heads)
    mla = bool(meta.whole("attention.key_length_mla", 0))
    feed_forward = meta.each("feed_forward_length", layers)
    experts_used = meta.each("expert_used_count", layers)
    if max(experts_used) > MAX_EXPERTS:
        raise ModelShapeError(
            f"{meta.architecture}.expert_used_count is {max(experts_used)}; llama.cpp takes at "
            f"most {MAX_EXPERTS}"
        )
    expert_feed_forward = meta.each("expert_feed_forward_length", layers)

    of_layer: list[dict[str, TensorShape]] = [{} for _ in range(layers)]
    of_model: dict[str, TensorShape] = {}
    for tensor in header.tensors:
        match = _BLOCK.match(tensor.name)
        if match and int(match[1]) < layers:
            name = match[2] if tensor.name.startswith("blk.") else f"{tensor.name[:3]}.{match[2]}"
            of_layer[int(match[1])][name] = _tensor(tensor)
        else:
            of_model[tensor.name] = _tensor(tensor)

    def layer(index: int) -> LayerShape:
        key, value = key_length, value_length
        if sliding[index]:
            key = meta.whole("attention.key_length_swa", key)
            value = meta.whole("attention.value_length_swa", value)
        trunk = index < layers - nextn
        return LayerShape(
            heads=heads[index],
            kv_heads=kv_heads[index],
            key_length=key,
            value_length=0 if mla else value,
            feed_forward=feed_forward[index],
            expert_feed_forward=expert_feed_forward[index],
            experts_used=experts_used[index],
            cached=cached[index],
            sliding=sliding[index] and trunk,
            recurrent=recurrent[index] and trunk,
            nextn=not trunk,
            tensors=of_layer[index],
        )

    name = header.metadata.get("general.name", "")
    return ModelShape(
        architecture=meta.architecture,
        name=name if isinstance(name, str) else "",
        context_trained=meta.whole("context_length", 0),
        vocabulary=_vocabulary(meta, of_model),
        embedding_length=embedding_length,
        sliding_window=window,
        parameters=_parameters(meta),
        layers=tuple(layer(index) for index in range(layers)),
        tensors=of_model,
    )
