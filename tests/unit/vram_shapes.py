"""Models with real measures, as far as the memory planner's tests need them."""

from __future__ import annotations

from typing import Any

from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import GgufHeader, GgufTensor
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape, shape_of

# Bytes and elements of a block (ggml.h).
BLOCKS = {"F32": (4, 1), "F16": (2, 1), "Q4_K": (144, 256), "Q6_K": (210, 256)}


def _tensor(name: str, shape: tuple[int, ...], kind: str) -> GgufTensor:
    elements = 1
    for length in shape:
        elements *= length
    size, block = BLOCKS[kind]
    return GgufTensor(
        name=name, shape=shape, type=kind, offset=0, size_bytes=elements // block * size
    )


def _more_bits(layer: int, layers: int) -> bool:
    """Which layers Q4_K_M gives more bits (`use_more_bits` in llama-quant.cpp)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def transformer(
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    vocabulary: int,
    context: int,
    experts: int = 0,
    experts_used: int = 0,
) -> ModelShape:
    """A transformer as Q4_K_M, with experts in place of the feed-forward part if wished."""
    head = width // heads
    tensors = [
        _tensor("token_embd.weight", (width, vocabulary), "Q4_K"),
        _tensor("output_norm.weight", (width,), "F32"),
        _tensor("output.weight", (width, vocabulary), "Q6_K"),
    ]
    for layer in range(layers):
        fine = "Q6_K" if _more_bits(layer, layers) else "Q4_K"
        prefix = f"blk.{layer}."
        many: tuple[int, ...] = (experts,) if experts else ()
        suffix = "_exps" if experts else ""
        tensors += [
            _tensor(f"{prefix}attn_norm.weight", (width,), "F32"),
            _tensor(f"{prefix}attn_q.weight", (width, heads * head), "Q4_K"),
            _tensor(f"{prefix}attn_k.weight", (width, kv_heads * head), "Q4_K"),
            _tensor(f"{prefix}attn_v.weight", (width, kv_heads * head), fine),
            _tensor(f"{prefix}attn_output.weight", (heads * head, width), "Q4_K"),
            _tensor(f"{prefix}ffn_norm.weight", (width,), "F32"),
            _tensor(f"{prefix}ffn_gate{suffix}.weight", (width, feed_forward, *many), "Q4_K"),
            _tensor(f"{prefix}ffn_up{suffix}.weight", (width, feed_forward, *many), "Q4_K"),
            _tensor(f"{prefix}ffn_down{suffix}.weight", (feed_forward, width, *many), fine),
        ]
        if experts:
            tensors.append(_tensor(f"{prefix}ffn_gate_inp.weight", (width, experts), "F32"))
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": layers,
        f"{architecture}.embedding_length": width,
        f"{architecture}.context_length": context,
        f"{architecture}.feed_forward_length": feed_forward,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": kv_heads,
    }
    if experts:
        metadata[f"{architecture}.expert_count"] = experts
        metadata[f"{architecture}.expert_used_count"] = experts_used
        metadata[f"{architecture}.expert_feed_forward_length"] = feed_forward
    header = GgufHeader(
        version=3,
        byte_order="little",
        metadata=metadata,
        tensors=tuple(tensors),
        alignment=32,
        data_offset=0,
    )
    return shape_of(header)


def qwen25_32b() -> ModelShape:
    """Qwen2.5-32B-Instruct Q4_K_M: 19.85 GB."""
    return transformer(
        "qwen2",
        layers=64,
        width=5120,
        heads=40,
        kv_heads=8,
        feed_forward=27648,
        vocabulary=152064,
        context=32768,
    )


def qwen25_14b() -> ModelShape:
    """Qwen2.5-14B-Instruct Q4_K_M."""
    return transformer(
        "qwen2",
        layers=48,
        width=5120,
        heads=40,
        kv_heads=8,
        feed_forward=13824,
        vocabulary=152064,
        context=32768,
    )


def qwen25_7b() -> ModelShape:
    """Qwen2.5-7B-Instruct Q4_K_M."""
    return transformer(
        "qwen2",
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        feed_forward=18944,
        vocabulary=152064,
        context=32768,
    )


def qwen3_30b_a3b() -> ModelShape:
    """Qwen3-30B-A3B Q4_K_M: 128 experts a layer, 8 used."""
    return transformer(
        "qwen3moe",
        layers=48,
        width=2048,
        heads=32,
        kv_heads=4,
        feed_forward=768,
        vocabulary=151936,
        context=40960,
        experts=128,
        experts_used=8,
    )


def model(shape: ModelShape, parameters: float | None = None, **more: Any) -> dict[str, Any]:
    """A model's facts as the planner takes them."""
    return {
        "shape": shape.to_data(),
        "size_bytes": shape.weights_bytes,
        "quantisation": "Q4_K_M",
        "parameters": None if parameters is None else int(parameters),
        "companions": {},
        **more,
    }
