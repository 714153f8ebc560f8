"""Models with real dimensions and no weights: what a planner is measured against.

`header(name)` is the model's header as data. `write(name, path)` makes a file of it that llama.cpp
loads in a dry run: header and tensor table, and a hole where the weights would be. Instead of a
tokenizer it has `no_vocab`, for which llama.cpp makes dummy tokens of the vocabulary's real size.

    python -m testbed.model_zoo FOLDER [NAME …]
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import (
    GgufHeader,
    GgufTensor,
    Scalar,
    Value,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_types import GGML_TYPES

_ALIGNMENT = 32
_TYPE_NUMBERS = {entry.name: number for number, entry in GGML_TYPES.items()}
_TYPES = {entry.name: entry for entry in GGML_TYPES.values()}

Parameter = Scalar | list[Scalar]
Entry = tuple[str, tuple[int, ...], str]


@dataclass
class _Model:
    """A model under construction: `types` picks a tensor's type by its name and first dimension."""

    architecture: str
    metadata: dict[str, Value]
    quantise: Callable[[str, int], str]
    tensors: list[Entry] = field(default_factory=list)

    def matrix(self, name: str, *shape: int) -> None:
        self.tensors.append((f"{name}.weight", shape, self.quantise(name, shape[0])))

    def vector(self, name: str, *shape: int, suffix: str = ".weight") -> None:
        self.tensors.append((name + suffix, shape, "F32"))


def _q4_k_m(name: str, row: int) -> str:
    """Roughly what llama-quantize makes of Q4_K_M."""
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    wide = name == "output" or (
        name.endswith(("attn_v", "ffn_down", "ffn_down_exps")) and layer % 2 == 0
    )
    if "ffn_gate_inp" in name:
        return "F32"
    if row % 256:
        return ("Q8_0" if wide else "Q5_0") if row % 32 == 0 else "F16"
    return "Q6_K" if wide else "Q4_K"


def _q8_0(name: str, row: int) -> str:
    if "ffn_gate_inp" in name:
        return "F32"
    return "F16" if row % 32 else "Q8_0"


def _f16(name: str, row: int) -> str:
    return "F32" if "ffn_gate_inp" in name or not row else "F16"


def _mxfp4(name: str, row: int) -> str:
    return "MXFP4" if name.endswith("_exps") else _q8_0(name, row)


def _model(
    architecture: str,
    *,
    layers: int,
    width: int,
    vocabulary: int,
    context: int,
    quantise: Callable[[str, int], str] = _q4_k_m,
    tied: bool = False,
    rms: bool = True,
    output: bool = True,
    more: Mapping[str, Parameter] | None = None,
    **parameters: Parameter,
) -> _Model:
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": architecture,
        f"{architecture}.block_count": layers,
        f"{architecture}.embedding_length": width,
        f"{architecture}.context_length": context,
        f"{architecture}.vocab_size": vocabulary,
        "tokenizer.ggml.model": "no_vocab",
    }
    epsilon = "layer_norm_rms_epsilon" if rms else "layer_norm_epsilon"
    metadata[f"{architecture}.attention.{epsilon}"] = 1e-5
    for key, value in {**parameters, **(more or {})}.items():
        metadata[f"{architecture}.{key.replace('__', '.')}"] = value
    model = _Model(architecture, metadata, quantise)
    model.matrix("token_embd", width, vocabulary)
    if output:
        model.vector("output_norm", width)
        if not tied:
            model.matrix("output", width, vocabulary)
    return model


def _attention(
    model: _Model,
    block: str,
    width: int,
    heads: int,
    *,
    kv_heads: int,
    length: int,
    bias: bool = False,
    norms: bool = False,
    fused: bool = False,
) -> None:
    model.vector(f"{block}.attn_norm", width)
    if fused:
        model.matrix(f"{block}.attn_qkv", width, (heads + 2 * kv_heads) * length)
    else:
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            model.matrix(f"{block}.attn_{part}", width, count * length)
            if bias:
                model.vector(f"{block}.attn_{part}", count * length, suffix=".bias")
    model.matrix(f"{block}.attn_output", heads * length, width)
    if norms:
        model.vector(f"{block}.attn_q_norm", length)
        model.vector(f"{block}.attn_k_norm", length)


def _feed_forward(
    model: _Model, block: str, width: int, hidden: int, *, suffix: str = "", norm: bool = True
) -> None:
    if norm:
        model.vector(f"{block}.ffn_norm", width)
    model.matrix(f"{block}.ffn_gate{suffix}", width, hidden)
    model.matrix(f"{block}.ffn_up{suffix}", width, hidden)
    model.matrix(f"{block}.ffn_down{suffix}", hidden, width)


def _experts(model: _Model, block: str, width: int, hidden: int, count: int) -> None:
    model.matrix(f"{block}.ffn_gate_inp", width, count)
    model.matrix(f"{block}.ffn_gate_exps", width, hidden, count)
    model.matrix(f"{block}.ffn_up_exps", width, hidden, count)
    model.matrix(f"{block}.ffn_down_exps", hidden, width, count)


def _dense(
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    vocabulary: int,
    context: int,
    length: int = 0,
    bias: bool = False,
    norms: bool = False,
    tied: bool = False,
    quantise: Callable[[str, int], str] = _q4_k_m,
    rope_freqs: bool = False,
    **parameters: Parameter,
) -> _Model:
    """llama, qwen2, qwen3: attention, then a gated feed-forward."""
    size = length or width // heads
    if length:
        parameters |= {"attention__key_length": length, "attention__value_length": length}
    model = _model(
        architecture,
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        context=context,
        tied=tied,
        quantise=quantise,
        feed_forward_length=feed_forward,
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        more=parameters,
    )
    if rope_freqs:
        model.vector("rope_freqs", size // 2)
    for index in range(layers):
        block = f"blk.{index}"
        _attention(
            model, block, width, heads, kv_heads=kv_heads, length=size, bias=bias, norms=norms
        )
        _feed_forward(model, block, width, feed_forward)
    return model


def _gemma(
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    vocabulary: int,
    context: int,
    window: int,
    norms: bool,
    quantise: Callable[[str, int], str] = _q4_k_m,
) -> _Model:
    model = _dense(
        architecture,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        length=256,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        context=context,
        tied=True,
        norms=norms,
        quantise=quantise,
        attention__sliding_window=window,
    )
    for index in range(layers):
        model.vector(f"blk.{index}.post_attention_norm", width)
        model.vector(f"blk.{index}.post_ffw_norm", width)
    return model


def _qwen3moe() -> _Model:
    model = _model(
        "qwen3moe",
        layers=48,
        width=2048,
        vocabulary=151936,
        context=40960,
        feed_forward_length=6144,
        attention__head_count=32,
        attention__head_count_kv=4,
        attention__key_length=128,
        attention__value_length=128,
        expert_count=128,
        expert_used_count=8,
        expert_feed_forward_length=768,
    )
    for index in range(48):
        block = f"blk.{index}"
        _attention(model, block, 2048, 32, kv_heads=4, length=128, norms=True)
        model.vector(f"{block}.ffn_norm", 2048)
        _experts(model, block, 2048, 768, 128)
    return model


def _mixtral() -> _Model:
    model = _model(
        "llama",
        layers=32,
        width=4096,
        vocabulary=32000,
        context=32768,
        feed_forward_length=14336,
        attention__head_count=32,
        attention__head_count_kv=8,
        expert_count=8,
        expert_used_count=2,
    )
    for index in range(32):
        block = f"blk.{index}"
        _attention(model, block, 4096, 32, kv_heads=8, length=128)
        model.vector(f"{block}.ffn_norm", 4096)
        _experts(model, block, 4096, 14336, 8)
    return model


def _gemma3n() -> _Model:
    layers, width, hidden, vocabulary, narrow, altup = 35, 2048, 16384, 262144, 256, 4
    model = _dense(
        "gemma3n",
        layers=layers,
        width=width,
        heads=8,
        kv_heads=2,
        length=256,
        feed_forward=hidden,
        vocabulary=vocabulary,
        context=32768,
        tied=True,
        norms=True,
        quantise=_q8_0,
        attention__sliding_window=512,
        attention__sliding_window_pattern=[index % 5 != 4 for index in range(layers)],
        embedding_length_per_layer_input=narrow,
    )
    model.matrix("per_layer_token_embd", narrow * layers, vocabulary)
    model.matrix("per_layer_model_proj", width, narrow * layers)
    model.vector("per_layer_proj_norm", narrow)
    model.matrix("altup_proj", width, width, altup - 1)
    model.matrix("altup_unembd_proj", width, width, altup - 1)
    for index in range(layers):
        block = f"blk.{index}"
        for name in ("post_attention_norm", "post_ffw_norm", "post_norm", "laurel_post_norm"):
            model.vector(f"{block}.{name}", width)
        model.vector(f"{block}.altup_correct_scale", width)
        model.vector(f"{block}.altup_router_norm", width)
        model.vector(f"{block}.altup_correct_coef", altup, altup)
        model.vector(f"{block}.altup_predict_coef", altup, altup * altup)
        model.vector(f"{block}.altup_router", width, altup)
        model.matrix(f"{block}.inp_gate", width, narrow)
        model.matrix(f"{block}.proj", narrow, width)
        model.matrix(f"{block}.laurel_l", width, 64)
        model.matrix(f"{block}.laurel_r", 64, width)
    return model


def _phi3(*, layers: int, width: int, heads: int, kv_heads: int, feed_forward: int) -> _Model:
    model = _model(
        "phi3",
        layers=layers,
        width=width,
        vocabulary=32064,
        context=4096,
        feed_forward_length=feed_forward,
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        attention__sliding_window=2047,
        rope__dimension_count=width // heads,
    )
    for index in range(layers):
        block = f"blk.{index}"
        _attention(model, block, width, heads, kv_heads=kv_heads, length=width // heads, fused=True)
        model.vector(f"{block}.ffn_norm", width)
        model.matrix(f"{block}.ffn_up", width, 2 * feed_forward)
        model.matrix(f"{block}.ffn_down", feed_forward, width)
    return model


def _deepseek2_lite() -> _Model:
    layers, width, heads, latent, turned, straight, value = 27, 2048, 16, 512, 64, 128, 128
    model = _model(
        "deepseek2",
        layers=layers,
        width=width,
        vocabulary=102400,
        context=163840,
        feed_forward_length=10944,
        attention__head_count=heads,
        attention__head_count_kv=1,
        attention__key_length=latent + turned,
        attention__value_length=latent,
        attention__key_length_mla=straight + turned,
        attention__value_length_mla=value,
        attention__kv_lora_rank=latent,
        rope__dimension_count=turned,
        leading_dense_block_count=1,
        expert_count=64,
        expert_used_count=6,
        expert_feed_forward_length=1408,
        expert_shared_count=2,
        expert_weights_scale=1.0,
    )
    for index in range(layers):
        block = f"blk.{index}"
        model.vector(f"{block}.attn_norm", width)
        model.vector(f"{block}.attn_kv_a_norm", latent)
        model.matrix(f"{block}.attn_q", width, heads * (straight + turned))
        model.matrix(f"{block}.attn_kv_a_mqa", width, latent + turned)
        model.matrix(f"{block}.attn_k_b", straight, latent, heads)
        model.matrix(f"{block}.attn_v_b", latent, value, heads)
        model.matrix(f"{block}.attn_output", heads * value, width)
        if index == 0:
            _feed_forward(model, block, width, 10944)
        else:
            model.vector(f"{block}.ffn_norm", width)
            _experts(model, block, width, 1408, 64)
            _feed_forward(model, block, width, 2 * 1408, suffix="_shexp", norm=False)
    return model


def _mamba(*, layers: int, width: int, rank: int, quantise: Callable[[str, int], str]) -> _Model:
    inner, state, conv = 2 * width, 16, 4
    model = _model(
        "mamba",
        layers=layers,
        width=width,
        vocabulary=50280,
        context=1048576,
        tied=True,
        quantise=quantise,
        feed_forward_length=0,
        attention__head_count=0,
        ssm__conv_kernel=conv,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
    )
    for index in range(layers):
        block = f"blk.{index}"
        model.vector(f"{block}.attn_norm", width)
        model.matrix(f"{block}.ssm_in", width, 2 * inner)
        model.vector(f"{block}.ssm_conv1d", conv, inner)
        model.vector(f"{block}.ssm_conv1d", inner, suffix=".bias")
        model.matrix(f"{block}.ssm_x", inner, rank + 2 * state)
        model.matrix(f"{block}.ssm_dt", rank, inner)
        model.vector(f"{block}.ssm_dt", inner, suffix=".bias")
        model.vector(f"{block}.ssm_a", state, inner, suffix="")
        model.vector(f"{block}.ssm_d", inner, suffix="")
        model.matrix(f"{block}.ssm_out", inner, width)
    return model


def _mamba2_block(
    model: _Model, block: str, *, width: int, inner: int, state: int, heads: int, groups: int = 1
) -> None:
    model.matrix(f"{block}.ssm_in", width, 2 * inner + 2 * groups * state + heads)
    model.vector(f"{block}.ssm_conv1d", 4, inner + 2 * groups * state)
    model.vector(f"{block}.ssm_conv1d", inner + 2 * groups * state, suffix=".bias")
    model.vector(f"{block}.ssm_dt", heads, suffix=".bias")
    model.vector(f"{block}.ssm_a", 1, heads, suffix="")
    model.vector(f"{block}.ssm_d", 1, heads, suffix="")
    model.vector(f"{block}.ssm_norm", inner // groups, groups)
    model.matrix(f"{block}.ssm_out", inner, width)


def _mamba2() -> _Model:
    layers, width, inner, state, heads = 48, 1024, 2048, 128, 32
    model = _model(
        "mamba2",
        layers=layers,
        width=width,
        vocabulary=50288,
        context=1048576,
        tied=True,
        quantise=_f16,
        feed_forward_length=0,
        attention__head_count=0,
        ssm__conv_kernel=4,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=heads,
        ssm__group_count=1,
    )
    for index in range(layers):
        model.vector(f"blk.{index}.attn_norm", width)
        _mamba2_block(model, f"blk.{index}", width=width, inner=inner, state=state, heads=heads)
    return model


def _falcon_h1() -> _Model:
    layers, width, inner, state, heads = 24, 2048, 3072, 256, 48
    model = _model(
        "falcon-h1",
        layers=layers,
        width=width,
        vocabulary=65537,
        context=131072,
        feed_forward_length=4096,
        attention__head_count=8,
        attention__head_count_kv=2,
        attention__key_length=128,
        attention__value_length=128,
        ssm__conv_kernel=4,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=heads,
        ssm__group_count=1,
    )
    for index in range(layers):
        block = f"blk.{index}"
        _attention(model, block, width, 8, kv_heads=2, length=128)
        _mamba2_block(model, block, width=width, inner=inner, state=state, heads=heads)
        _feed_forward(model, block, width, 4096, norm=False)
        model.vector(f"{block}.ffn_norm", width, suffix="")
    return model


def _lfm2() -> _Model:
    layers, width, length = 16, 2048, 64
    attention = {2, 5, 8, 10, 12, 14}
    model = _model(
        "lfm2",
        layers=layers,
        width=width,
        vocabulary=65536,
        context=128000,
        output=False,
        feed_forward_length=8192,
        attention__head_count=32,
        attention__head_count_kv=[8 if index in attention else 0 for index in range(layers)],
        shortconv__l_cache=3,
    )
    model.vector("token_embd_norm", width)
    for index in range(layers):
        block = f"blk.{index}"
        if index in attention:
            _attention(model, block, width, 32, kv_heads=8, length=length, norms=True)
        else:
            model.vector(f"{block}.attn_norm", width)
            model.vector(f"{block}.shortconv.conv", 3, width)
            model.matrix(f"{block}.shortconv.in_proj", width, 3 * width)
            model.matrix(f"{block}.shortconv.out_proj", width, width)
        _feed_forward(model, block, width, 8192)
    return model


def _granite_hybrid() -> _Model:
    layers, width, inner, state, heads = 40, 1536, 3072, 128, 48
    attention = {5, 15, 25, 35}
    model = _model(
        "granitehybrid",
        layers=layers,
        width=width,
        vocabulary=100352,
        context=131072,
        tied=True,
        feed_forward_length=512,
        attention__head_count=12,
        attention__head_count_kv=[4 if index in attention else 0 for index in range(layers)],
        ssm__conv_kernel=4,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=heads,
        ssm__group_count=1,
        expert_count=64,
        expert_used_count=6,
        expert_shared_feed_forward_length=1024,
        logit_scale=6.0,
        residual_scale=0.22,
        embedding_scale=12.0,
        attention__scale=0.0078125,
        rope__dimension_count=128,
        rope__scaling__finetuned=False,
    )
    for index in range(layers):
        block = f"blk.{index}"
        if index in attention:
            _attention(model, block, width, 12, kv_heads=4, length=128)
        else:
            model.vector(f"{block}.attn_norm", width)
            _mamba2_block(model, block, width=width, inner=inner, state=state, heads=heads)
        model.vector(f"{block}.ffn_norm", width)
        _experts(model, block, width, 512, 64)
        _feed_forward(model, block, width, 1024, suffix="_shexp", norm=False)
    return model


def _gpt_oss() -> _Model:
    layers, width, heads, kv_heads, experts = 24, 2880, 64, 8, 32
    model = _model(
        "gpt-oss",
        layers=layers,
        width=width,
        vocabulary=201088,
        context=131072,
        quantise=_mxfp4,
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        attention__key_length=64,
        attention__value_length=64,
        attention__sliding_window=128,
        rope__dimension_count=64,
        expert_count=experts,
        expert_used_count=4,
        expert_feed_forward_length=2880,
    )
    for index in range(layers):
        block = f"blk.{index}"
        _attention(model, block, width, heads, kv_heads=kv_heads, length=64, bias=True)
        model.vector(f"{block}.attn_output", width, suffix=".bias")
        model.vector(f"{block}.attn_sinks", heads)
        model.vector(f"{block}.post_attention_norm", width)
        _experts(model, block, width, 2880, experts)
        model.vector(f"{block}.ffn_gate_inp", experts, suffix=".bias")
        for name in ("gate", "up", "down"):
            model.vector(f"{block}.ffn_{name}_exps", width, experts, suffix=".bias")
    return model


def _cohere(
    architecture: str,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    context: int,
    **parameters: Parameter,
) -> _Model:
    model = _model(
        architecture,
        layers=layers,
        width=width,
        vocabulary=256000,
        context=context,
        tied=True,
        rms=False,
        feed_forward_length=feed_forward,
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
        logit_scale=0.0625,
        more=parameters,
    )
    for index in range(layers):
        block = f"blk.{index}"
        _attention(model, block, width, heads, kv_heads=kv_heads, length=width // heads)
        _feed_forward(model, block, width, feed_forward, norm=False)
    return model


def _nomic_bert() -> _Model:
    layers, width = 12, 768
    model = _model(
        "nomic-bert",
        layers=layers,
        width=width,
        vocabulary=30522,
        context=2048,
        rms=False,
        output=False,
        quantise=_f16,
        feed_forward_length=3072,
        attention__head_count=12,
        attention__causal=False,
        pooling_type=1,
    )
    model.metadata["tokenizer.ggml.token_type_count"] = 2
    model.vector("token_types", width, 2)
    model.vector("token_embd_norm", width)
    model.vector("token_embd_norm", width, suffix=".bias")
    for index in range(layers):
        block = f"blk.{index}"
        model.matrix(f"{block}.attn_qkv", width, 3 * width)
        model.matrix(f"{block}.attn_output", width, width)
        _feed_forward(model, block, width, 3072, norm=False)
        for name in ("attn_output_norm", "layer_output_norm"):
            model.vector(f"{block}.{name}", width)
            model.vector(f"{block}.{name}", width, suffix=".bias")
    return model


_ZOO: dict[str, Callable[[], _Model]] = {
    "llama-3.1-8b": lambda: _dense(
        "llama",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        feed_forward=14336,
        vocabulary=128256,
        context=131072,
        rope_freqs=True,
    ),
    "smollm2-135m": lambda: _dense(
        "llama",
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        feed_forward=1536,
        vocabulary=49152,
        context=8192,
        tied=True,
        quantise=_q8_0,
    ),
    "mixtral-8x7b": _mixtral,
    "qwen2.5-0.5b": lambda: _dense(
        "qwen2",
        layers=24,
        width=896,
        heads=14,
        kv_heads=2,
        feed_forward=4864,
        vocabulary=151936,
        context=32768,
        tied=True,
        bias=True,
    ),
    "qwen2.5-7b": lambda: _dense(
        "qwen2",
        layers=28,
        width=3584,
        heads=28,
        kv_heads=4,
        feed_forward=18944,
        vocabulary=152064,
        context=32768,
        bias=True,
    ),
    "qwen2.5-32b": lambda: _dense(
        "qwen2",
        layers=64,
        width=5120,
        heads=40,
        kv_heads=8,
        feed_forward=27648,
        vocabulary=152064,
        context=32768,
        bias=True,
    ),
    "qwen3-8b": lambda: _dense(
        "qwen3",
        layers=36,
        width=4096,
        heads=32,
        kv_heads=8,
        length=128,
        feed_forward=12288,
        vocabulary=151936,
        context=40960,
        norms=True,
    ),
    "qwen3-30b-a3b": _qwen3moe,
    "granite-3.3-8b": lambda: _dense(
        "granite",
        layers=40,
        width=4096,
        heads=32,
        kv_heads=8,
        feed_forward=12800,
        vocabulary=49159,
        context=131072,
        tied=True,
        logit_scale=16.0,
        residual_scale=0.22,
        embedding_scale=12.0,
        attention__scale=0.0078125,
    ),
    "gemma-2b": lambda: _dense(
        "gemma",
        layers=18,
        width=2048,
        heads=8,
        kv_heads=1,
        length=256,
        feed_forward=16384,
        vocabulary=256000,
        context=8192,
        tied=True,
    ),
    "gemma2-9b": lambda: _gemma(
        "gemma2",
        layers=42,
        width=3584,
        heads=16,
        kv_heads=8,
        feed_forward=14336,
        vocabulary=256000,
        context=8192,
        window=4096,
        norms=False,
    ),
    "gemma3-270m": lambda: _gemma(
        "gemma3",
        layers=18,
        width=640,
        heads=4,
        kv_heads=1,
        feed_forward=2048,
        vocabulary=262144,
        context=32768,
        window=512,
        norms=True,
        quantise=_q8_0,
    ),
    "gemma3-4b": lambda: _gemma(
        "gemma3",
        layers=34,
        width=2560,
        heads=8,
        kv_heads=4,
        feed_forward=10240,
        vocabulary=262144,
        context=131072,
        window=1024,
        norms=True,
    ),
    "gemma3-12b": lambda: _gemma(
        "gemma3",
        layers=48,
        width=3840,
        heads=16,
        kv_heads=8,
        feed_forward=15360,
        vocabulary=262144,
        context=131072,
        window=1024,
        norms=True,
    ),
    "gemma3n-e4b": _gemma3n,
    "phi3-mini": lambda: _phi3(layers=32, width=3072, heads=32, kv_heads=32, feed_forward=8192),
    "phi3-medium": lambda: _phi3(layers=40, width=5120, heads=40, kv_heads=10, feed_forward=17920),
    "deepseek-v2-lite": _deepseek2_lite,
    "mamba-130m": lambda: _mamba(layers=24, width=768, rank=48, quantise=_f16),
    "mamba-2.8b": lambda: _mamba(layers=64, width=2560, rank=160, quantise=_q4_k_m),
    "mamba2-370m": _mamba2,
    "falcon-h1-1.5b": _falcon_h1,
    "lfm2-1.2b": _lfm2,
    "granite-4.0-h-tiny": _granite_hybrid,
    "gpt-oss-20b": _gpt_oss,
    "command-r-35b": lambda: _cohere(
        "command-r",
        layers=40,
        width=8192,
        heads=64,
        kv_heads=64,
        feed_forward=22528,
        context=131072,
    ),
    "command-r7b": lambda: _cohere(
        "cohere2",
        layers=32,
        width=4096,
        heads=32,
        kv_heads=8,
        feed_forward=14336,
        context=132096,
        attention__sliding_window=4096,
        rope__dimension_count=128,
        attention__key_length=128,
        attention__value_length=128,
    ),
    "nomic-embed-1.5": _nomic_bert,
}

NAMES = tuple(_ZOO)


def _bytes(shape: tuple[int, ...], type_: str) -> int:
    elements = 1
    for size in shape:
        elements *= size
    kind = _TYPES[type_]
    return elements // kind.block_elements * kind.block_bytes


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def header(name: str) -> GgufHeader:
    """The header of a model of the zoo."""
    model = _ZOO[name]()
    model.metadata["general.name"] = name
    tensors: list[GgufTensor] = []
    offset = 0
    for tensor, shape, type_ in model.tensors:
        size = _bytes(shape, type_)
        tensors.append(GgufTensor(tensor, shape, type_, offset, size))
        offset += _padded(size)
    return GgufHeader(
        version=3,
        byte_order="little",
        alignment=_ALIGNMENT,
        metadata=model.metadata,
        tensors=tuple(tensors),
        data_offset=_padded(len(_encoded(model.metadata, tuple(tensors)))),
    )


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Scalar) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return 8, _text(value)


def _encoded(metadata: dict[str, Value], tensors: tuple[GgufTensor, ...]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(_text(key))
        if isinstance(value, list):
            entries = [_typed(entry) for entry in value]
            parts.append(struct.pack("<IIQ", 9, entries[0][0], len(entries)))
            parts += [raw for _, raw in entries]
        elif isinstance(value, bool | int | float | str):
            kind, raw = _typed(value)
            parts += [struct.pack("<I", kind), raw]
    for tensor in tensors:
        parts.append(_text(tensor.name))
        parts.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        parts.append(struct.pack("<IQ", _TYPE_NUMBERS[tensor.type], tensor.offset))
    return b"".join(parts)


def write(name: str, path: Path) -> None:
    """A file of the model's full size that takes no room on the disk: its weights are a hole."""
    made = header(name)
    metadata = dict(made.metadata)
    with path.open("wb") as file:
        file.write(_encoded(metadata, made.tensors))
        file.truncate(made.data_offset + _padded(made.data_bytes))


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or NAMES:
        write(name, folder / f"{name}.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
