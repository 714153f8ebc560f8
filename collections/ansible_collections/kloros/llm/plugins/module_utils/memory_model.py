# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""What an instance of llama-server takes on each device: weights, KV cache, compute buffers.

Source: llama.cpp v0.5.0-dev: `src/llama-model.cpp` (load_tensors, create_memory),
`src/llama-kv-cache*.cpp`, `src/llama-memory-recurrent.cpp`, `src/llama-context.cpp`.
The truth is llama-server's own line `fit_memory_breakdown`; docs/measurements compares the two.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from .compute_buffers import Backends, attention_backends, compute_buffers
from .model_families import EXACT, build_graph
from .model_graph import QUANTISED_CACHES, GraphConfig, UnknownGraphError
from .model_shape import (
    CUDA_ALIGNMENT,
    CUDA_ROW_PADDING,
    HOST_ALIGNMENT,
    LayerShape,
    ModelShape,
    TensorShape,
)

MIB = 1024 * 1024
HOST = "Host"
MARGIN = 1.15  # on the compute buffers of an architecture whose graph is not followed exactly
KEPT_OF_A_KIND = 3
KEPT_WITH_COPIES = 6  # copies between backends take some more layers until the peak is reached
# Their layers read slices of one large tensor, so that what is free changes from layer to layer.
EACH_LAYER_COUNTS = frozenset({"gemma3n"})
PIPELINE_COPIES = 4  # ggml-backend.cpp GGML_SCHED_MAX_COPIES
POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # llama.h llama_pooling_type

# ggml's types that a KV cache may have: bytes of a block, elements of a block.
CACHE_TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
# x86-64 with AVX2 repacks these for the CPU, which makes a second copy of a tied output matrix
# (ggml-cpu/repack.cpp).
REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
# Their tied output is made before the embedding, and is not recognised as the same tensor
# (src/models/gemma3n.cpp, gemma4.cpp): a second copy in main memory as well.
COPIED_OUTPUT = frozenset({"gemma3n", "gemma4"})


class MemoryModelError(ValueError):
    """A configuration that llama-server does not start with, or that cannot be computed."""


@dataclass(frozen=True)
class RunConfig:
    """How an instance is started; the defaults are llama-server's.

    `context_tokens`: of a slot; 0: what the model was trained for. `unified`: the slots share one
    pool of `context_tokens` x `slots`. `devices`: names as llama.cpp's, () = CPU only.
    `gpu_layers`: -ngl, counted from the end, the output layer being one more than the layers; None:
    all. `tensor_split`: a part a device, () = by `device_free_bytes`, () = even.
    `cpu_moe_layers`: --n-cpu-moe, the experts of the first N layers stay in main memory.
    `flash_attention`: "auto" is on wherever a device can do it. `draft_tokens`: at most so many are
    drafted at once for a slot. `all_outputs`: logits for each token, as llama-fit-params reserves.
    `cuda_sizes`: False for devices that pad tensors as main memory does (the stand-in CUDA).
    `cpu_repack`: without a GPU the CPU may keep matrices in another order (--no-repack: False).
    """

    context_tokens: int
    slots: int = 1
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    devices: tuple[str, ...] = ()
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    device_free_bytes: tuple[int, ...] = ()
    split_mode: Literal["layer", "none", "tensor"] = "layer"
    main_gpu: int = 0
    cpu_moe_layers: int = 0
    flash_attention: Literal["auto", "on", "off"] = "auto"
    batch: int = 2048
    ubatch: int = 512
    embeddings: bool = False
    pooling: Literal["unset", "none", "mean", "cls", "last", "rank"] = "unset"
    kv_offload: bool = True
    unified: bool = False
    draft_tokens: int = 0
    all_outputs: bool = False
    cuda_sizes: bool = True
    cpu_repack: bool = True


@dataclass(frozen=True)
class DeviceMemory:
    """What one device holds, in bytes. `kv_bytes`: attention cache and recurrent state.

    `approximate`: the graph is not one that is followed and was measured, for its architecture or
    for tensors that this model lacks.
    """

    device: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    approximate: bool = False

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def _pad(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _f32(number: float) -> float:
    """Rounded as a C float: llama.cpp places layers with them."""
    result: float = struct.unpack("f", struct.pack("f", number))[0]
    return result


@dataclass(frozen=True)
class Placement:
    """Where layers go: indices into the devices, -1 is main memory; the last is the output's."""

    devices: tuple[str, ...]
    layers: tuple[int, ...]
    output: int


def placement(shape: ModelShape, config: RunConfig) -> Placement:
    """As llama_model_base::load_tensors assigns layers."""
    devices = config.devices
    if config.split_mode == "none" and devices:
        if not 0 <= config.main_gpu < len(devices):
            raise MemoryModelError(
                f"main_gpu is {config.main_gpu}, and there are {len(devices)} devices"
            )
        devices = (devices[config.main_gpu],)
    count = shape.layer_count
    wanted = count + 1 if config.gpu_layers is None else config.gpu_layers
    if not devices or wanted <= 0:
        return Placement(devices, (-1,) * count, -1)
    split: tuple[float, ...] = (1.0,) * len(devices)
    if len(devices) > 1 and any(config.tensor_split):
        split = (*config.tensor_split, *(0.0,) * len(devices))[: len(devices)]
    elif len(devices) > 1 and len(config.device_free_bytes) == len(devices):
        split = tuple(float(free) for free in config.device_free_bytes)
    points: list[float] = []
    total = 0.0
    for part in split:
        total = _f32(total + _f32(part))
        points.append(total)
    if total <= 0:
        raise MemoryModelError("no device has any free memory to split the layers by")
    points = [_f32(point / total) for point in points]
    start = max(count + 1 - wanted, 0)
    offloaded = min(wanted, count + 1)

    def device(index: int) -> int:
        if index < start or index - start >= offloaded:
            return -1
        return min(bisect_right(points, _f32((index - start) / offloaded)), len(devices) - 1)

    return Placement(devices, tuple(device(index) for index in range(count)), device(count))


@dataclass(frozen=True)
class Context:
    """The sizes that llama_context derives from its parameters."""

    cells: int  # n_ctx_seq
    streams: int
    sequences: int
    total: int  # n_ctx
    batch: int
    ubatch: int
    swa_cells: int


def context_of(shape: ModelShape, config: RunConfig) -> Context:
    """As llama_context's constructor computes them."""
    if config.slots < 1:
        raise MemoryModelError(f"slots is {config.slots}, at least 1 is needed")
    wanted = config.context_tokens * config.slots or shape.context_trained
    if wanted <= 0:
        raise MemoryModelError("no context is given, and the header has no context_length")
    causal = shape.flag("attention.causal", True)
    batch = config.batch
    if config.embeddings and batch > config.ubatch:
        batch = config.ubatch
    batch = min(wanted, batch) if causal else batch
    ubatch = min(batch, config.ubatch or batch)
    total = _pad(wanted, 256)
    if config.unified:
        cells = total
    else:
        cells = _pad(total // config.slots, 256)
        total = cells * config.slots
    streams = 1 if config.unified else config.slots
    window = shape.sliding_window * (config.slots if config.unified else 1)
    swa_cells = _pad(min(cells, window + ubatch), 256)
    return Context(cells, streams, config.slots, total, batch, ubatch, swa_cells)


def _cache_row(cache_type: str, elements: int) -> int:
    block_bytes, block = CACHE_TYPES[cache_type]
    if elements % block:
        raise MemoryModelError(
            f"a KV cache of type {cache_type} needs rows of a multiple of {block} elements, "
            f"this model's have {elements}: use f16"
        )
    return elements // block * block_bytes


def _on_device(size: int, row_elements: int, row_bytes: int, quantised: bool) -> int:
    rest = row_elements % CUDA_ROW_PADDING
    if quantised and rest:
        size += row_bytes * (CUDA_ROW_PADDING - rest) // row_elements
    return _pad(size, CUDA_ALIGNMENT)


def recurrent_state_elements(shape: ModelShape, layer: LayerShape) -> tuple[int, int]:
    """Elements (f32) a sequence: rolling state, recurrent state (llama_hparams n_embd_r, _s)."""
    width = shape.embedding_length
    heads = shape.layers[0].heads
    wkv = shape.parameter("wkv.head_size")
    if wkv:
        return shape.parameter("token_shift_count", 2) * width, width * wkv
    conv = max(shape.parameter("ssm.conv_kernel") - 1, 0)
    kda = shape.parameter("kda.head_dim")
    if kda:
        return 3 * (conv or 3) * heads * kda, kda * kda * heads
    inner = shape.parameter("ssm.inner_size")
    state = shape.parameter("ssm.state_size")
    groups = shape.parameter("ssm.group_count")
    rolling = conv * (inner + 2 * groups * state)
    shortconv = shape.parameter("shortconv.l_cache")
    if shortconv:
        rolling = width * (shortconv - 1)
    if shape.architecture == "minimax-01":
        return rolling, layer.key_length**2 * heads
    return rolling, state * inner


def _cache_tensors(
    shape: ModelShape, config: RunConfig, context: Context, layer: LayerShape, flash: bool
) -> Iterator[tuple[int, int, int, bool]]:
    """(bytes, elements of a row, bytes of a row, quantised) of each tensor a layer keeps."""
    if layer.cached:
        cells = context.swa_cells if layer.sliding else context.cells
        value = layer.value_length * layer.kv_heads
        if not flash and value:
            value = max(
                (entry.value_length * entry.kv_heads for entry in shape.layers), default=value
            )
        for elements, cache_type in (
            (layer.key_length * layer.kv_heads, config.cache_type_k),
            (value, config.cache_type_v),
        ):
            if elements:
                row = _cache_row(cache_type, elements)
                quantised = cache_type not in {"f32", "f16", "bf16"}
                yield row * cells * context.streams, elements, row, quantised
        indexer = shape.parameter("attention.indexer.key_length")
        if indexer:
            row = _cache_row(config.cache_type_k, indexer)
            yield row * cells * context.streams, indexer, row, False
    if layer.recurrent:
        for elements in recurrent_state_elements(shape, layer):
            yield elements * 4 * context.sequences, elements, elements * 4, False


@dataclass(frozen=True)
class Flash:
    """Flash attention in the graph, and whether the cache was laid out for it."""

    graph: bool
    cache: bool


def _flash(config: RunConfig) -> Flash:
    if config.flash_attention == "off":
        if config.cache_type_v not in {"f32", "f16", "bf16"}:
            raise MemoryModelError(
                f"a V cache of type {config.cache_type_v} needs flash attention, and it is off"
            )
        return Flash(graph=False, cache=False)
    return Flash(graph=True, cache=True)


def _telling_layers(shape: ModelShape, config: RunConfig, place: Placement) -> tuple[int, ...]:
    """Layers enough to know the peak: of each kind and device the first ones and the last ones.

    A layer in the middle of its like finds the buffer as the one before it did.
    """
    if shape.architecture in EACH_LAYER_COUNTS:
        return tuple(range(shape.trunk_layers))
    of_kind: dict[object, list[int]] = {}
    for index in range(shape.trunk_layers):
        layer = shape.layers[index]
        device = place.layers[index]
        on_cpu = index < config.cpu_moe_layers
        copied = bool(place.devices) and (device < 0 or on_cpu)
        kind = (
            device,
            on_cpu,
            layer.graph_kind,
            layer.tensor_kind if copied else None,
        )
        of_kind.setdefault(kind, []).append(index)
    picked = {shape.trunk_layers - 1}
    whole = all(device >= 0 for device in place.layers) or not place.devices
    kept = KEPT_OF_A_KIND
    if not whole or config.cpu_moe_layers or not config.kv_offload:
        kept = KEPT_WITH_COPIES
    for indices in of_kind.values():
        picked.update(indices[:kept])
        picked.update(indices[-kept:])
    return tuple(sorted(picked))


def _graph_config(
    shape: ModelShape, config: RunConfig, context: Context, place: Placement, flash: Flash
) -> GraphConfig:
    cpu = len(place.devices)

    def backend(device: int) -> int:
        return cpu if device < 0 else device

    tokens = min(context.total, context.ubatch)
    limit = context.batch
    if not (config.embeddings or config.all_outputs):
        limit = min(limit, max(1, config.slots * (1 + config.draft_tokens)))
    pooling: str = config.pooling
    if pooling == "unset":
        pooling = POOLING.get(shape.parameter("pooling_type"), "none")
    return GraphConfig(
        tokens=tokens,
        sequences=context.sequences,
        streams=context.streams,
        outputs=min(tokens, limit),
        cells=context.cells,
        swa_cells=context.swa_cells,
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        flash=flash.graph,
        transposed_values=not flash.cache,
        layers=tuple(backend(device) for device in place.layers),
        output=backend(place.output),
        cpu=cpu,
        cpu_moe_layers=config.cpu_moe_layers,
        kv_offload=config.kv_offload,
        embeddings=config.embeddings,
        pooling=pooling,
        indices=_telling_layers(shape, config, place),
    )


def _flash_stays(shape: ModelShape, config: RunConfig, plan: GraphConfig) -> bool:
    """llama_context::resolve_fused_ops: auto turns it off if one layer's would run elsewhere."""
    if config.cuda_sizes and any(
        not cuda_flash_attention(layer)
        for index, layer in enumerate(shape.layers)
        if layer.cached and plan.layers[index] != plan.cpu
    ):
        return False
    probe = replace(plan, tokens=plan.sequences, outputs=plan.sequences)
    backends = Backends(devices=plan.cpu, cuda=config.cuda_sizes)
    ran = attention_backends(build_graph(shape, probe), backends)
    return all(plan.layers[index] == backend for index, backend in ran.items() if index >= 0)


def cuda_flash_attention(layer: LayerShape) -> bool:
    """Whether CUDA has a kernel for such heads (ggml-cuda/fattn.cu, best kernel)."""
    key, value = layer.key_length, layer.value_length
    ratio = layer.heads // max(layer.kv_heads, 1)
    if not value:  # MLA: the values are the front part of the keys
        return (key, ratio >= 2) == (576, True)
    if key in {40, 64, 72, 80, 96, 112, 128, 256}:
        return value == key
    return (key == 512 == value and ratio >= 2) or (key == 192 and value == 128 and ratio % 8 == 0)


def _pipeline(config: RunConfig, place: Placement) -> bool:
    """Several devices work as a pipeline (llama_context's constructor)."""
    return (
        len(place.devices) > 1
        and place.output >= 0
        and all(device >= 0 for device in place.layers)
        and config.split_mode == "layer"
        and config.kv_offload
        and not config.cpu_moe_layers
    )


def _compute(
    shape: ModelShape, config: RunConfig, context: Context, place: Placement, flash: Flash
) -> tuple[list[int], bool]:
    """Compute buffers of the devices, main memory last; whether the graph was followed."""
    plan = _graph_config(shape, config, context, place, flash)
    try:
        stays = (
            config.flash_attention != "auto"
            or not place.devices
            or _flash_stays(shape, config, plan)
        )
    except UnknownGraphError:
        return _bound(shape, config, context, place), False
    if not stays:
        if config.cache_type_v in QUANTISED_CACHES:
            raise MemoryModelError(
                "flash attention cannot run where the layers are, and without it a V cache of type "
                f"{config.cache_type_v} is refused: use f16, or other gpu_layers"
            )
        plan = replace(plan, flash=False)
    backends = Backends(
        devices=len(place.devices),
        copies=PIPELINE_COPIES if _pipeline(config, place) else 1,
        cuda=config.cuda_sizes,
    )
    try:
        sizes = compute_buffers(build_graph(shape, plan), backends)
    except UnknownGraphError:
        return _bound(shape, config, context, place), False
    if shape.architecture not in EXACT:
        sizes = [int(size * MARGIN) for size in sizes]
    return sizes, True


def _bound(shape: ModelShape, config: RunConfig, context: Context, place: Placement) -> list[int]:
    """Compute buffers where the graph is not known: rather too much."""
    tokens = min(context.total, context.ubatch)
    outputs = tokens if config.embeddings or config.all_outputs else min(tokens, config.slots)
    wide = max(
        (max((*tensor.shape[1:2], 0)) for layer in shape.layers for tensor in layer.dense),
        default=0,
    )
    used = max((layer.experts_used for layer in shape.layers), default=0)
    routed = max((layer.expert_feed_forward for layer in shape.layers), default=0) * used
    state = max(
        (sum(recurrent_state_elements(shape, layer)) for layer in shape.layers if layer.recurrent),
        default=0,
    )
    floats = tokens * (8 * shape.embedding_length + 4 * wide + 3 * routed)
    floats += outputs * shape.vocabulary + 3 * state * config.slots
    mask = (context.cells + context.swa_cells) * tokens * 2
    partial = bool(place.devices) and any(device < 0 for device in place.layers)
    if config.flash_attention == "off" or (partial and state):  # then auto may turn it off
        heads = max((layer.heads for layer in shape.layers), default=0)
        floats += 2 * tokens * context.cells * heads
    size = 4 * floats + mask
    if not place.devices:
        return [size]
    if partial or config.cpu_moe_layers:
        size += max(layer.weights_bytes for layer in shape.layers)
    copies = PIPELINE_COPIES if _pipeline(config, place) else 1
    inputs = copies * (mask + 16 * tokens * shape.embedding_length)
    host = 2 * inputs + (4 * floats if partial or not config.kv_offload else 0)
    return [size + inputs] * len(place.devices) + [host]


def _check(config: RunConfig) -> None:
    for cache_type in (config.cache_type_k, config.cache_type_v):
        if cache_type not in CACHE_TYPES:
            raise MemoryModelError(
                f"a KV cache has no type {cache_type!r}; there are {', '.join(CACHE_TYPES)}"
            )
    if config.split_mode == "tensor":
        raise MemoryModelError("split mode tensor cannot be computed, nor asked of the engine")


def _bytes_on(tensors: Iterable[TensorShape], device: int) -> int:
    return sum(tensor.cuda_bytes if device >= 0 else tensor.host_bytes for tensor in tensors)


def _weights(shape: ModelShape, config: RunConfig, place: Placement) -> list[int]:
    """Weights of the devices, main memory last (index -1, as in Placement)."""
    weights = [0] * (len(place.devices) + 1)
    weights[-1] += _bytes_on(shape.input, -1)
    for index, layer in enumerate(shape.layers[: shape.trunk_layers]):
        device = place.layers[index]
        experts = -1 if index < config.cpu_moe_layers else device
        weights[device] += layer.dense_cuda_bytes if device >= 0 else layer.dense_host_bytes
        weights[experts] += layer.experts_cuda_bytes if experts >= 0 else layer.experts_host_bytes
    weights[place.layers[0]] += _bytes_on(shape.first_layer_extras, place.layers[0])
    weights[place.output] += _bytes_on(shape.output, place.output)
    for device in set(place.layers):
        weights[device] += _bytes_on(shape.every_device_extras, device)
    tied = shape.tied_output
    if tied is not None and (
        place.output >= 0
        or shape.architecture in COPIED_OUTPUT
        or (not place.devices and config.cpu_repack and tied.type in REPACKED)
    ):
        weights[place.output] += _bytes_on((tied,), place.output)
    return weights


def _caches(
    shape: ModelShape, config: RunConfig, context: Context, place: Placement, flash: Flash
) -> list[int]:
    """Caches and states of the devices, main memory last."""
    caches = [0] * (len(place.devices) + 1)
    for index, layer in enumerate(shape.layers):
        device = place.layers[index] if config.kv_offload else -1
        for size, elements, row, quantised in _cache_tensors(
            shape, config, context, layer, flash.cache
        ):
            if device < 0:
                caches[device] += _pad(size, HOST_ALIGNMENT)
            elif config.cuda_sizes:
                caches[device] += _on_device(size, elements, row, quantised)
            else:
                caches[device] += _pad(size, CUDA_ALIGNMENT)
    return caches


def stored(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
    """Weights and caches alone: as `memory` without compute buffers, at a small part of its time.

    Raises MemoryModelError.
    """
    _check(config)
    place = placement(shape, config)
    weights = _weights(shape, config, place)
    caches = _caches(shape, config, context_of(shape, config), place, _flash(config))
    return [
        DeviceMemory(
            name,
            weights[index],
            caches[index],
            compute_bytes=0,
            approximate=shape.architecture not in EXACT,
        )
        for index, name in enumerate((*place.devices, HOST))
    ]


def memory(shape: ModelShape, config: RunConfig) -> list[DeviceMemory]:
    """What each device holds, in the order of the devices, "Host" last.

    Raises MemoryModelError for what llama-server would refuse.
    """
    rows = stored(shape, config)
    place = placement(shape, config)
    sizes, followed = _compute(shape, config, context_of(shape, config), place, _flash(config))
    return [
        replace(row, compute_bytes=size, approximate=row.approximate or not followed)
        for row, size in zip(rows, sizes, strict=True)
    ]
