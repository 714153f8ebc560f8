# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""llama.cpp's graphs by architecture, as far as memory needs them.

Source: llama.cpp v0.5.0-dev, `src/models/*.cpp`. KNOWN architectures and FAMILIES follow their
source operation by operation; others are taken for a transformer whose tensors say what it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .compute_graph import (
    Graph,
    GraphTooLargeError,
    Tensor,
    columns,
    concat,
    cont,
    get_rows,
    like,
    mul_mat,
    new_input,
    permute,
    repeat,
    reshape,
    view,
)
from .gemma3n_graph import gemma3n
from .model_graph import Activation, Caches, Gating, GraphConfig, UnknownGraphError
from .model_shape import LayerShape, ModelShape
from .state_graph import StateInput, StateParts


@dataclass(frozen=True)
class Traits:
    """What the tensors of a transformer do not say.

    `norm_before_rope`: Q and K are normed before they are rotated. `scaled_q`: Q is scaled by an
    operation of its own. `parallel`: attention and feed-forward read the same norm.
    `logit_scales`: operations on the logits. `rows_last`: the tokens to answer are picked after the
    last layer, not within it. `ffn_norm`: the tensor before the feed-forward. `hidden_output`: the
    last layer's result is kept. `rope_factors`: RoPE may have factors of its own.
    `rope_sliding_only`: only sliding layers rotate. `residual_first`: the order of the last sum's
    operands, of which the first gives its room to the result.
    """

    activation: Activation = "silu"
    gating: Gating = "softmax"
    normalise_experts: bool = True
    embedding_scaled: bool = False
    scaled_q: bool = False
    parallel: bool = False
    rope: bool = True
    logit_scales: int = 0
    rows_last: bool = False
    ffn_norm: str = "ffn_norm"
    post_norms: bool = True
    hidden_output: bool = False
    rope_factors: bool = False
    rope_sliding_only: bool = False
    residual_first: bool = False


KNOWN: dict[str, Traits] = {
    "llama": Traits(rope_factors=True),
    "mistral3": Traits(rope_factors=True),
    "granite": Traits(rope_factors=True, logit_scales=1),
    "granitemoe": Traits(rope_factors=True, logit_scales=1),
    "smollm3": Traits(),
    "qwen2": Traits(),
    "qwen3": Traits(),
    "qwen2moe": Traits(normalise_experts=False),
    "qwen3moe": Traits(),
    "gemma": Traits(activation="gelu", embedding_scaled=True, scaled_q=True),
    "gemma2": Traits(activation="gelu", embedding_scaled=True, scaled_q=True, logit_scales=3),
    "gemma3": Traits(activation="gelu", embedding_scaled=True, scaled_q=True),
    "phi3": Traits(activation="swiglu", scaled_q=True, rope_factors=True, residual_first=True),
    "gpt-oss": Traits(
        gating="softmax_weight",
        normalise_experts=False,
        rows_last=True,
        ffn_norm="post_attention_norm",
        post_norms=False,
        hidden_output=True,
    ),
    "command-r": Traits(parallel=True, logit_scales=1),
    "cohere2": Traits(parallel=True, logit_scales=1, rope_factors=True, rope_sliding_only=True),
}


def build_graph(shape: ModelShape, config: GraphConfig) -> Graph:
    """The graph that llama_context reserves for a full micro-batch.

    Raises UnknownGraphError if the model lacks a tensor that its architecture has, or if its sizes
    contradict each other: a header can say anything.
    """
    parts = StateParts(shape, config)
    build = FAMILIES.get(shape.architecture)
    try:
        if build is not None:
            return build(parts)
        return _transformer(parts, KNOWN.get(shape.architecture) or _guess(shape))
    except (ZeroDivisionError, IndexError, GraphTooLargeError) as error:
        raise UnknownGraphError(f"the sizes of this {shape.architecture} cannot be") from error


# What a transformer's layer may consist of, by the beginnings of the tensors' names.
_USUAL = ("attn_", "ffn_", "post_attention_norm", "post_ffw_norm", "exp_probs_b", "layer_output")


def _guess(shape: ModelShape) -> Traits:
    """Traits of an architecture that is not known, from its tensors.

    Raises UnknownGraphError if they are not those of a transformer.
    """
    layer = shape.layers[shape.trunk_layers - 1]
    strange = [name for name in layer.tensors if not name.startswith(_USUAL)]
    if strange or any(entry.recurrent for entry in shape.layers):
        raise UnknownGraphError(
            f"{shape.architecture} is not known, and no plain transformer: {', '.join(strange)}"
        )
    up, down = layer.tensors.get("ffn_up.weight"), layer.tensors.get("ffn_down.weight")
    fused = up is not None and down is not None and up.shape[1] == 2 * down.shape[0]
    post = "post_attention_norm.weight" in layer.tensors
    return Traits(
        activation="swiglu" if fused else "silu",
        parallel="ffn_norm.weight" not in layer.tensors and not post and up is not None,
        scaled_q=True,
        logit_scales=1,
    )


def _attention_inputs(parts: StateParts) -> tuple[Caches, Caches]:
    """Inputs of the full and of the sliding caches; the same where no layer slides."""
    full = parts.attention_input()
    if not parts.shape.sliding_window:
        return full, full
    return full, parts.attention_input(sliding=True)


def _rotated(
    parts: StateParts, index: int, current: Tensor, *, rope: bool = True, factors: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V, normed and rotated."""
    q, k, v = parts.qkv(index, current)
    norm_q = parts.weight(index, "attn_q_norm.weight")
    norm_k = parts.weight(index, "attn_k_norm.weight")
    if norm_q is not None:
        q = parts.norm(q, norm_q)
    if rope:
        q = parts.rope(index, q, factors=factors)
    if norm_k is not None:
        k = parts.norm(k, norm_k)
    if rope:
        k = parts.rope(index, k, factors=factors)
    return q, k, v


def _transformer(parts: StateParts, traits: Traits) -> Graph:
    current = parts.input_embedding()
    if traits.embedding_scaled:
        current = like("scale", current)
    caches = _attention_inputs(parts)
    rows = parts.output_rows()
    for index in parts.indices:
        picked = rows if index == parts.last and not traits.rows_last else None
        residual = current
        normed = parts.layer_norm(index, "attn_norm", current)
        attended = _attend(parts, traits, index, normed, caches)
        if picked is not None:
            attended = get_rows(attended, picked)
            residual = get_rows(residual, picked)
            if traits.parallel:
                normed = get_rows(normed, picked)
        if traits.parallel:
            current = parts.feed_forward(index, normed, traits.activation)
            current = like("add", like("add", current, residual), attended)
        else:
            current = _feed(parts, traits, index, attended, residual)
    hidden = current
    if traits.rows_last:
        current = get_rows(current, rows)
    graph = parts.output(current, scaled=traits.logit_scales)
    if traits.hidden_output:
        hidden.is_output = True
    return graph


def _attend(
    parts: StateParts, traits: Traits, index: int, current: Tensor, caches: tuple[Caches, Caches]
) -> Tensor:
    """The attention of a layer, if it has any."""
    layer = parts.layer(index)
    if not layer.heads or not {"attn_q.weight", "attn_qkv.weight"} & set(layer.tensors):
        return current
    q, k, v = _rotated(
        parts,
        index,
        current,
        rope=traits.rope and (layer.sliding or not traits.rope_sliding_only),
        factors=traits.rope_factors,
    )
    if traits.scaled_q:
        q = like("scale", q)
    return parts.cached_attention(
        index,
        caches[1] if layer.sliding else caches[0],
        q,
        k,
        v,
        key_first=parts.shape.sliding_window > 0,
    )


def _feed(
    parts: StateParts, traits: Traits, index: int, attended: Tensor, residual: Tensor
) -> Tensor:
    """The feed-forward of a layer, dense or of experts, and the sums around it."""
    scaled = bool(parts.shape.parameters.get("residual_scale"))
    post = parts.weight(index, "post_attention_norm.weight") if traits.post_norms else None
    if post is not None:
        attended = parts.norm(attended, post)
    if scaled:
        attended = like("scale", attended)
    between = like("add", attended, residual)
    current = between
    if parts.weight(index, f"{traits.ffn_norm}.weight") is not None or post is None:
        current = parts.layer_norm(index, traits.ffn_norm, between)
    if parts.weight(index, "ffn_gate_inp.weight") is not None:
        current = parts.mixture(
            index,
            current,
            traits.activation,
            normalise=traits.normalise_experts,
            gating=traits.gating,
        )
    elif parts.weight(index, "ffn_up.weight") is not None:
        current = parts.feed_forward(index, current, traits.activation)
    post = parts.weight(index, "post_ffw_norm.weight") if traits.post_norms else None
    if post is not None:
        current = parts.norm(current, post, pin=False)
    if scaled:
        current = like("scale", current)
    if traits.residual_first:
        return like("add", between, current)
    return like("add", current, between)


def _mamba(parts: StateParts) -> Graph:
    layer_input = parts.input_embedding()
    states = parts.state_input()
    rows = parts.output_rows()
    block = parts.mamba2 if parts.shape.architecture == "mamba2" else parts.mamba
    for index in parts.indices:
        current = parts.layer_norm(index, "attn_norm", layer_input)
        current = block(index, states, current)
        if index == parts.last:
            current = get_rows(current, rows)
            layer_input = get_rows(layer_input, rows)
        layer_input = like("add", current, layer_input)
    return parts.output(layer_input)


def _hybrid(parts: StateParts) -> Graph:
    """granite-hybrid, and jamba, which has mamba layers of the first kind."""
    shape = parts.shape
    scaled = bool(shape.parameters.get("residual_scale"))
    rope = shape.architecture == "granitehybrid" and shape.flag("rope.scaling.finetuned", True)
    layer_input = parts.input_embedding()
    states = parts.state_input()
    caches = parts.attention_input()
    rows = parts.output_rows()
    for index in parts.indices:
        residual = layer_input
        current = parts.layer_norm(index, "attn_norm", layer_input)
        if not parts.layer(index).recurrent:
            q, k, v = _rotated(parts, index, current, rope=rope, factors=True)
            current = parts.cached_attention(index, caches, q, k, v)
        elif shape.architecture == "jamba":
            current = parts.mamba(index, states, current)
        else:
            current = parts.mamba2(index, states, current)
        if index == parts.last:
            current = get_rows(current, rows)
            residual = get_rows(residual, rows)
        if scaled:
            current = like("scale", current)
        between = like("add", current, residual)
        current = parts.layer_norm(index, "ffn_norm", between)
        if parts.weight(index, "ffn_gate_inp.weight") is not None:
            current = parts.mixture(index, current)
        else:
            current = parts.feed_forward(index, current)
        if scaled:
            current = like("scale", current)
        layer_input = like("add", current, between)
    return parts.output(layer_input, scaled=1 if shape.parameters.get("logit_scale") else 0)


def _falcon_h1(parts: StateParts) -> Graph:
    """Attention and state space side by side in each layer."""
    layer_input = parts.input_embedding()
    states = parts.state_input()
    caches = parts.attention_input()
    rows = parts.output_rows()
    for index in parts.indices:
        residual = layer_input
        current = parts.layer_norm(index, "attn_norm", layer_input)
        q, k, v = _rotated(parts, index, current)
        attended = parts.cached_attention(index, caches, q, k, v)
        current = parts.layer_norm(index, "attn_norm", layer_input)
        scanned = parts.mamba2(index, states, current)
        current = like("add", attended, scanned)
        residual = like("add", current, residual)
        if index == parts.last:
            current = get_rows(current, rows)
            residual = get_rows(residual, rows)
        current = parts.layer_norm(index, "ffn_norm", residual)
        current = parts.feed_forward(index, current)
        layer_input = like("add", current, residual)
    return parts.output(layer_input)


def _shortconv(parts: StateParts, index: int, states: StateInput, current: Tensor) -> Tensor:
    width = parts.n_embd
    sequences = parts.config.sequences
    current = reshape(current, width, parts.seq_tokens, sequences)
    joined = mul_mat(parts.need(index, "shortconv.in_proj.weight"), current)
    b, c, x = (columns(joined, width) for _ in range(3))
    mixed = parts.convolution(index, states, like("mul", b, x), width, kernel="shortconv.conv")
    result = mul_mat(parts.need(index, "shortconv.out_proj.weight"), like("mul", c, mixed))
    return reshape(result, width, parts.tokens)


def _lfm2(parts: StateParts) -> Graph:
    shape = parts.shape
    gating: Gating = "sigmoid" if shape.parameter("expert_gating_func") == 2 else "softmax"
    current = parts.input_embedding()
    states = parts.state_input()
    full, sliding = _attention_inputs(parts)
    rows = parts.output_rows()

    for index in parts.indices:
        layer = parts.layer(index)
        before = current
        current = parts.layer_norm(index, "attn_norm", current)
        if layer.recurrent:
            current = _shortconv(parts, index, states, current)
        else:
            q, k, v = parts.qkv(index, current)
            q = parts.norm(q, parts.weight(index, "attn_q_norm.weight"))
            k = parts.norm(k, parts.weight(index, "attn_k_norm.weight"))
            q = parts.rope(index, q, factors=False)
            k = parts.rope(index, k, factors=False)
            current = parts.cached_attention(
                index,
                sliding if layer.sliding else full,
                q,
                k,
                v,
                key_first=shape.sliding_window > 0,
            )
        if index == parts.last:
            current = get_rows(current, rows)
            before = get_rows(before, rows)
        current = like("add", before, current)
        normed = parts.layer_norm(index, "ffn_norm", current)
        if parts.weight(index, "ffn_gate_inp.weight") is not None:
            fed = parts.experts(index, normed, gating=gating)
        else:
            fed = parts.feed_forward(index, normed)
        current = like("add", current, fed)
    name = "output_norm" if "output_norm.weight" in shape.tensors else "token_embd_norm"
    return parts.output(current, norm=name)


def _bert(parts: StateParts) -> Graph:
    """Encoders: no cache, all tokens see each other."""
    config = parts.config
    current = _bert_embedding(parts)
    mask = new_input("f16" if config.flash else "f32", parts.tokens, parts.tokens)
    rows = parts.output_rows()
    for index in parts.indices:
        residual = current
        current = _bert_attention(parts, index, current, mask)
        if index == parts.last:
            current = get_rows(current, rows)
            residual = get_rows(residual, rows)
        current = like("add", current, residual)
        current = parts.layer_norm(index, "attn_output_norm", current)
        if parts.weight(index, "attn_norm_2.weight") is not None:
            current = like("add", current, residual)
            current = parts.layer_norm(index, "attn_norm_2", current)
        current = like("add", _bert_feed_forward(parts, index, current), current)
        current = parts.layer_norm(index, "layer_output_norm", current)
    parts.graph.expand(current)
    parts.pool(current)
    current.is_output = True
    return parts.graph


def _bert_embedding(parts: StateParts) -> Tensor:
    current = parts.input_embedding()
    types = parts.model_weight("token_types.weight", parts.config.cpu)
    if types is not None:
        current = like("add", current, view(types, parts.n_embd))
    if parts.shape.architecture == "bert":
        table = parts.need_of_model("position_embd.weight", parts.config.cpu)
        current = like("add", get_rows(table, parts.positions()), current)
    first = parts.config.layers[0]
    return parts.norm(
        current,
        parts.model_weight("token_embd_norm.weight", first),
        parts.model_weight("token_embd_norm.bias", first),
    )


def _bert_attention(parts: StateParts, index: int, current: Tensor, mask: Tensor) -> Tensor:
    q, k, v = parts.qkv(index, current)

    def normed(name: str, tensor: Tensor) -> Tensor:
        if parts.weight(index, f"{name}.weight") is None:
            return tensor
        flat = reshape(tensor, tensor.shape[0] * tensor.shape[1], parts.tokens)
        return reshape(parts.layer_norm(index, name, flat), *tensor.shape)

    q, k = normed("attn_q_norm", q), normed("attn_k_norm", k)
    if parts.shape.architecture in {"nomic-bert", "nomic-bert-moe", "jina-bert-v3"}:
        q = parts.rope(index, q, factors=False)
        k = parts.rope(index, k, factors=False)
    for entry in (q, k, v):
        parts.graph.expand(entry)
    current = parts.attention(q, k, v, mask, transposed=False)
    return parts.linear(index, "attn_output", current)


def _bert_feed_forward(parts: StateParts, index: int, current: Tensor) -> Tensor:
    name = parts.shape.architecture
    every = parts.shape.parameter("moe_every_n_layers")
    if every and index % every == 1:
        return parts.experts(index, current, "gelu", normalise=False)
    if name in {"bert", "nomic-bert-moe", "jina-bert-v3"}:
        return parts.feed_forward(index, current, "gelu", gated=False)
    if name == "jina-bert-v2":
        fused = parts.weight(index, "ffn_gate.weight") is None
        return parts.feed_forward(index, current, "geglu" if fused else "gelu")
    return parts.feed_forward(index, current)


def _deepseek2(parts: StateParts) -> Graph:
    shape = parts.shape
    latent = bool(shape.parameter("attention.key_length_mla"))
    gating: Gating = "sigmoid" if shape.parameter("expert_gating_func") == 2 else "softmax"
    normalise = shape.flag("expert_weights_norm", False)
    layer_input = parts.input_embedding()
    caches = parts.attention_input()
    rows = parts.output_rows()
    attend = _latent_attention if latent else _unfolded_attention
    for index in parts.indices:
        residual = layer_input
        current = parts.layer_norm(index, "attn_norm", layer_input)
        current = attend(parts, index, caches, current)
        if index == parts.last:
            current = get_rows(current, rows)
            residual = get_rows(residual, rows)
        between = like("add", current, residual)
        current = parts.layer_norm(index, "ffn_norm", between)
        if parts.weight(index, "ffn_gate_inp.weight") is not None:
            current = parts.mixture(index, current, normalise=normalise, gating=gating)
        else:
            current = parts.feed_forward(index, current)
        layer_input = like("add", current, between)
    return parts.output(layer_input)


def _compressed(
    parts: StateParts, index: int, current: Tensor, key: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, the normed latent, and the rotated part of the keys."""
    layer = parts.layer(index)
    if parts.weight(index, "attn_q.weight") is None:
        q = mul_mat(parts.need(index, "attn_q_a.weight"), current)
        q = parts.norm(q, parts.weight(index, "attn_q_a_norm.weight"))
        q = mul_mat(parts.need(index, "attn_q_b.weight"), q)
    else:
        q = mul_mat(parts.need(index, "attn_q.weight"), current)
    q = reshape(q, key, layer.heads, parts.tokens)
    joined = mul_mat(parts.need(index, "attn_kv_a_mqa.weight"), current)
    turned = columns(joined, parts.shape.parameter("rope.dimension_count"), 1)
    turned = parts.rope(index, turned, factors=False)
    latent = columns(joined, parts.shape.parameter("attention.kv_lora_rank"))
    return q, parts.norm(latent, parts.weight(index, "attn_kv_a_norm.weight")), turned


def _latent_attention(parts: StateParts, index: int, caches: Caches, current: Tensor) -> Tensor:
    """MLA with absorption: the cache holds the latent and the rotated part."""
    key = parts.shape.parameter("attention.key_length_mla")
    turned = parts.shape.parameter("rope.dimension_count")
    q, latent, k_turned = _compressed(parts, index, current, key)
    q_straight = columns(q, key - turned)
    q_turned = parts.rope(index, columns(q, turned), factors=False)
    absorbed = mul_mat(parts.need(index, "attn_k_b.weight"), permute(q_straight, 0, 2, 1, 3))
    query = concat(permute(absorbed, 0, 2, 1, 3), q_turned, 0)
    value = reshape(latent, latent.shape[0], 1, parts.tokens)
    return parts.latent_attention(
        index,
        caches,
        q=query,
        k=concat(value, k_turned, 0),
        v=value,
        expand=parts.need(index, "attn_v_b.weight"),
    )


def _unfolded_attention(parts: StateParts, index: int, caches: Caches, current: Tensor) -> Tensor:
    """MLA of older files: keys and values are unfolded before they are kept."""
    layer: LayerShape = parts.layer(index)
    turned = parts.shape.parameter("rope.dimension_count")
    q, latent, k_turned = _compressed(parts, index, current, layer.key_length)
    straight = layer.key_length - turned
    both = mul_mat(parts.need(index, "attn_kv_b.weight"), latent)
    both = reshape(both, straight + layer.value_length, layer.heads, parts.tokens)
    k_straight = columns(both, straight)
    v = cont(columns(both, layer.value_length))
    q = parts.rope(index, q, factors=False)
    k = concat(k_straight, repeat(k_turned, turned, layer.heads, parts.tokens), 0)
    return parts.cached_attention(index, caches, q, k, v)


FAMILIES: dict[str, Callable[[StateParts], Graph]] = {
    "mamba": _mamba,
    "mamba2": _mamba,
    "granitehybrid": _hybrid,
    "jamba": _hybrid,
    "falcon-h1": _falcon_h1,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2,
    "bert": _bert,
    "nomic-bert": _bert,
    "nomic-bert-moe": _bert,
    "jina-bert-v2": _bert,
    "jina-bert-v3": _bert,
    "deepseek2": _deepseek2,
    "gemma3n": gemma3n,
}
# Architectures whose graphs are followed and measured; of others the memory is approximate.
EXACT = frozenset(
    {
        "cohere2",
        "command-r",
        "deepseek2",
        "falcon-h1",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gpt-oss",
        "granite",
        "granitehybrid",
        "lfm2",
        "llama",
        "mamba",
        "mamba2",
        "nomic-bert",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3moe",
    }
)
