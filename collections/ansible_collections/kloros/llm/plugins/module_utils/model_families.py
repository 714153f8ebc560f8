# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""llama.cpp's graphs by architecture, as far as memory needs them.

Source: llama.cpp v0.5.0-dev, `src/models/*.cpp`. KNOWN architectures follow their source operation
by operation; others are taken for a transformer whose tensors say what it has, which is close.
"""

from __future__ import annotations

from dataclasses import dataclass

from .compute_graph import (
    Graph,
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
    sum_rows,
    transpose,
    view,
)
from .model_graph import Activation, Caches, Gating, GraphConfig, GraphParts
from .model_shape import ModelShape


@dataclass(frozen=True)
class Traits:
    """What the tensors of a transformer do not say.

    `norm_before_rope`: Q and K are normed before they are rotated. `scaled_q`: Q is scaled by an
    operation of its own. `parallel`: attention and feed-forward read the same norm.
    `logit_scales`: operations on the logits. `rows_last`: the tokens to answer are picked after the
    last layer, not within it. `ffn_norm`: the tensor before the feed-forward. `hidden_output`: the
    last layer's result is kept. `interleaved`: each of Q and K is finished before the next.
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
    "phi3": Traits(activation="swiglu", scaled_q=True, rope_factors=True),
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

RECURRENT_FAMILY = frozenset({"mamba", "mamba2"})
BERT_FAMILY = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"})
LATENT_FAMILY = frozenset({"deepseek2"})
SHORTCONV_FAMILY = frozenset({"lfm2", "lfm2moe"})
HYBRID_FAMILY = frozenset({"granitehybrid", "jamba"})

EXACT = (
    frozenset(KNOWN)
    | RECURRENT_FAMILY
    | BERT_FAMILY
    | LATENT_FAMILY
    | SHORTCONV_FAMILY
    | frozenset({"granitehybrid", "falcon-h1", "gemma3n"})
)


def build_graph(shape: ModelShape, config: GraphConfig) -> Graph:
    """The graph that llama_context reserves for a full micro-batch."""
    parts = GraphParts(shape, config)
    name = shape.architecture
    if name in RECURRENT_FAMILY:
        return _mamba(parts)
    if name in BERT_FAMILY:
        return _bert(parts)
    if name in LATENT_FAMILY:
        return _deepseek2(parts)
    if name in SHORTCONV_FAMILY:
        return _lfm2(parts)
    if name in HYBRID_FAMILY:
        return _hybrid(parts)
    if name == "falcon-h1":
        return _falcon_h1(parts)
    if name == "gemma3n":
        return _gemma3n(parts)
    return _transformer(parts, KNOWN.get(name, Traits()))


def _attention_inputs(parts: GraphParts) -> tuple[Caches, Caches]:
    """Inputs of the full and of the sliding caches; the same where no layer slides."""
    full = parts.attention_input()
    if not parts.shape.sliding_window:
        return full, full
    return full, parts.attention_input(sliding=True)


def _rotated(
    parts: GraphParts, index: int, current: Tensor, *, rope: bool = True, factors: bool = False
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


def _transformer(parts: GraphParts, traits: Traits) -> Graph:
    residual_scaled = bool(parts.shape.parameters.get("residual_scale"))
    current = parts.input_embedding()
    if traits.embedding_scaled:
        current = like("scale", current)
    full, sliding = _attention_inputs(parts)
    rows = parts.output_rows()
    last = parts.last
    layer_input = current
    for index in parts.indices:
        layer = parts.layer(index)
        residual = layer_input
        current = parts.layer_norm(index, "attn_norm", layer_input)
        normed = current
        if layer.heads and (
            parts.weight(index, "attn_q.weight") is not None
            or parts.weight(index, "attn_qkv.weight") is not None
        ):
            q, k, v = _rotated(parts, index, current, rope=traits.rope, factors=traits.rope_factors)
            if traits.scaled_q:
                q = like("scale", q)
            current = parts.cached_attention(
                index,
                sliding if layer.sliding else full,
                q,
                k,
                v,
                key_first=parts.shape.sliding_window > 0,
            )
        if index == last and not traits.rows_last:
            current = get_rows(current, rows)
            residual = get_rows(residual, rows)
            if traits.parallel:
                normed = get_rows(normed, rows)
        if traits.parallel:
            attended = current
            current = parts.feed_forward(index, normed, traits.activation)
            layer_input = like("add", like("add", current, residual), attended)
            continue
        post = parts.weight(index, "post_attention_norm.weight") if traits.post_norms else None
        if post is not None:
            current = parts.norm(current, post, pin=False)
        if residual_scaled:
            current = like("scale", current)
        between = like("add", current, residual)
        norm = traits.ffn_norm
        if parts.weight(index, f"{norm}.weight") is None and post is not None:
            current = between
        else:
            current = parts.layer_norm(index, norm, between)
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
        if residual_scaled:
            current = like("scale", current)
        layer_input = like("add", current, between)
    current = layer_input
    hidden = current
    if traits.rows_last:
        current = get_rows(current, rows)
    graph = parts.output(current, scaled=traits.logit_scales)
    if traits.hidden_output:
        hidden.is_output = True
    return graph


def _mamba(parts: GraphParts) -> Graph:
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


def _hybrid(parts: GraphParts) -> Graph:
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


def _falcon_h1(parts: GraphParts) -> Graph:
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


def _lfm2(parts: GraphParts) -> Graph:
    shape = parts.shape
    sequences = parts.config.sequences
    width = shape.embedding_length
    gating: Gating = "sigmoid" if shape.parameter("expert_gating_func") == 2 else "softmax"
    current = parts.input_embedding()
    states = parts.state_input()
    full, sliding = _attention_inputs(parts)
    rows = parts.output_rows()

    def shortconv(index: int, current: Tensor) -> Tensor:
        current = reshape(current, width, parts.seq_tokens, sequences)
        joined = mul_mat(parts.need(index, "shortconv.in_proj.weight"), current)
        b, c, x = (columns(joined, width) for _ in range(3))
        mixed = parts.convolution(index, states, like("mul", b, x), width, kernel="shortconv.conv")
        result = mul_mat(parts.need(index, "shortconv.out_proj.weight"), like("mul", c, mixed))
        return reshape(result, width, parts.tokens)

    for index in parts.indices:
        layer = parts.layer(index)
        before = current
        current = parts.layer_norm(index, "attn_norm", current)
        if layer.recurrent:
            current = shortconv(index, current)
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


def _bert(parts: GraphParts) -> Graph:
    """Encoders: no cache, all tokens see each other."""
    shape = parts.shape
    name = shape.architecture
    graph = parts.graph
    config = parts.config
    current = parts.input_embedding()
    types = parts.model_weight("token_types.weight", config.cpu)
    if types is not None:
        current = like("add", current, view(types, parts.n_embd))
    if name == "bert":
        table = parts.need_of_model("position_embd.weight", config.cpu)
        current = like("add", get_rows(table, parts.positions()), current)
    first = config.layers[0]
    current = parts.norm(
        current,
        parts.model_weight("token_embd_norm.weight", first),
        parts.model_weight("token_embd_norm.bias", first),
    )
    mask = new_input("f16" if config.flash else "f32", parts.tokens, parts.tokens)
    rows = parts.output_rows()
    every = shape.parameter("moe_every_n_layers")
    layer_input = current
    for index in parts.indices:
        q, k, v = parts.qkv(index, layer_input)
        if parts.weight(index, "attn_q_norm.weight") is not None:
            flat = reshape(q, q.shape[0] * q.shape[1], parts.tokens)
            q = reshape(parts.layer_norm(index, "attn_q_norm", flat), *q.shape)
        if parts.weight(index, "attn_k_norm.weight") is not None:
            flat = reshape(k, k.shape[0] * k.shape[1], parts.tokens)
            k = reshape(parts.layer_norm(index, "attn_k_norm", flat), *k.shape)
        if name in {"nomic-bert", "nomic-bert-moe", "jina-bert-v3"}:
            q = parts.rope(index, q, factors=False)
            k = parts.rope(index, k, factors=False)
        for entry in (q, k, v):
            graph.expand(entry)
        current = parts.attention(q, k, v, mask, transposed=False)
        current = parts.linear(index, "attn_output", current)
        if index == parts.last:
            current = get_rows(current, rows)
            layer_input = get_rows(layer_input, rows)
        current = like("add", current, layer_input)
        current = parts.layer_norm(index, "attn_output_norm", current)
        if parts.weight(index, "attn_norm_2.weight") is not None:
            current = like("add", current, layer_input)
            current = parts.layer_norm(index, "attn_norm_2", current)
        before = current
        if every and index % every == 1:
            current = parts.experts(index, current, "gelu", normalise=False)
        elif name in {"bert", "nomic-bert-moe", "jina-bert-v3"}:
            current = parts.feed_forward(index, current, "gelu", gated=False)
        elif name == "jina-bert-v2":
            fused = parts.weight(index, "ffn_gate.weight") is None
            current = parts.feed_forward(index, current, "geglu" if fused else "gelu")
        else:
            current = parts.feed_forward(index, current)
        current = like("add", current, before)
        layer_input = parts.layer_norm(index, "layer_output_norm", current)
    graph.expand(layer_input)
    parts.pool(layer_input)
    layer_input.is_output = True
    return graph


def _deepseek2(parts: GraphParts) -> Graph:
    shape = parts.shape
    tokens = parts.tokens
    latent = shape.parameter("attention.kv_lora_rank")
    turned = shape.parameter("rope.dimension_count")
    mla = shape.parameter("attention.key_length_mla")
    gating: Gating = "sigmoid" if shape.parameter("expert_gating_func") == 2 else "softmax"
    normalise = shape.flag("expert_weights_norm", False)
    layer_input = parts.input_embedding()
    caches = parts.attention_input()
    rows = parts.output_rows()
    for index in parts.indices:
        layer = parts.layer(index)
        key = mla or layer.key_length
        straight = key - turned
        heads = layer.heads
        residual = layer_input
        current = parts.layer_norm(index, "attn_norm", layer_input)
        if parts.weight(index, "attn_q.weight") is None:
            q = mul_mat(parts.need(index, "attn_q_a.weight"), current)
            q = parts.norm(q, parts.weight(index, "attn_q_a_norm.weight"))
            q = mul_mat(parts.need(index, "attn_q_b.weight"), q)
        else:
            q = mul_mat(parts.need(index, "attn_q.weight"), current)
        q = reshape(q, key, heads, tokens)
        joined = mul_mat(parts.need(index, "attn_kv_a_mqa.weight"), current)
        compressed = columns(joined, latent)
        k_turned = parts.rope(index, columns(joined, turned, 1), factors=False)
        compressed = parts.norm(compressed, parts.weight(index, "attn_kv_a_norm.weight"))
        if mla:
            q_straight = columns(q, straight)
            q_turned = parts.rope(index, columns(q, turned), factors=False)
            absorbed = mul_mat(
                parts.need(index, "attn_k_b.weight"), permute(q_straight, 0, 2, 1, 3)
            )
            query = concat(permute(absorbed, 0, 2, 1, 3), q_turned, 0)
            value = reshape(compressed, latent, 1, tokens)
            current = parts.latent_attention(
                index,
                caches,
                query,
                concat(value, k_turned, 0),
                value,
                parts.need(index, "attn_v_b.weight"),
            )
        else:
            both = mul_mat(parts.need(index, "attn_kv_b.weight"), compressed)
            both = reshape(both, straight + layer.value_length, heads, tokens)
            k_straight = columns(both, straight)
            v = cont(columns(both, layer.value_length))
            q = parts.rope(index, q, factors=False)
            k = concat(k_straight, repeat(k_turned, turned, heads, tokens), 0)
            current = parts.cached_attention(index, caches, q, k, v)
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


_ALTUP = 4
_ALTUP_ACTIVE = 0
_SPARSE_LAYERS = 10


def _gemma3n(parts: GraphParts) -> Graph:
    shape = parts.shape
    config = parts.config
    tokens = parts.tokens
    width = shape.embedding_length
    layers = parts.layer_count

    def slice_of(tensor: Tensor) -> Tensor:
        return view(tensor, tensor.shape[0], tensor.shape[1])

    def magnitude(tensor: Tensor) -> Tensor:
        return like("sqrt", sum_rows(like("sqr", tensor)))

    def modalities(index: int, tensor: Tensor) -> Tensor:
        routed = parts.norm(tensor, parts.need(index, "altup_router_norm.weight"))
        routed = like("scale", routed)
        return like("unary", mul_mat(parts.need(index, "altup_router.weight"), routed))

    def predict(index: int, tensor: Tensor) -> Tensor:
        coefficients = mul_mat(
            parts.need(index, "altup_predict_coef.weight"), modalities(index, slice_of(tensor))
        )
        coefficients = reshape(coefficients, _ALTUP, _ALTUP, tokens)
        turned = cont(permute(tensor, 1, 2, 0, 3))
        predictions = mul_mat(turned, coefficients)
        predictions = cont(permute(predictions, 0, 2, 1, 3))
        return like("add", predictions, tensor)

    def correct(index: int, predictions: Tensor, activated: Tensor) -> Tensor:
        routed = modalities(index, activated)
        innovation = like("sub", activated, slice_of(predictions))
        coefficients = mul_mat(parts.need(index, "altup_correct_coef.weight"), routed)
        coefficients = cont(transpose(like("scale", coefficients)), 1, tokens, _ALTUP)
        innovation = repeat(innovation, width, tokens, _ALTUP)
        return like("add", like("mul", innovation, coefficients), predictions)

    def sparse(tensor: Tensor) -> Tensor:
        mean = Tensor("mean", (1, *tensor.shape[1:]), "f32", (tensor,))
        spread = like("sqrt", like("scale", sum_rows(like("sqr", like("sub", tensor, mean)))))
        cutoff = like("add", mean, like("scale", spread))
        return like("unary", like("sub", tensor, cutoff))

    layer_input = like("scale", parts.input_embedding())
    full, sliding = _attention_inputs(parts)
    table = parts.need_of_model("per_layer_token_embd.weight", config.cpu)
    narrow = table.shape[0] // layers
    per_layer = get_rows(table, new_input("i32", tokens))
    per_layer = parts.graph.expand(like("scale", reshape(per_layer, narrow, layers, tokens)))
    first = config.layers[0]
    projection = parts.need_of_model("per_layer_model_proj.weight", first)
    projected = reshape(like("scale", mul_mat(projection, layer_input)), narrow, layers, tokens)
    projected = parts.norm(projected, parts.model_weight("per_layer_proj_norm.weight", first))
    per_layer = like("scale", like("add", projected, per_layer))
    per_layer = cont(permute(per_layer, 0, 2, 1, 3))

    up = parts.need_of_model("altup_proj.weight", config.output)
    down = parts.need_of_model("altup_unembd_proj.weight", config.output)
    target = magnitude(layer_input)
    added = mul_mat(up, repeat(layer_input, width, tokens, _ALTUP - 1))
    added = like("div", like("mul", added, target), magnitude(added))
    layer_input = concat(layer_input, added, 2)

    owners = [index for index in range(layers) if shape.layers[index].cached]
    for index in parts.indices:
        layer = parts.layer(index)
        predictions = predict(index, layer_input)
        active = slice_of(predictions)
        current = parts.layer_norm(index, "attn_norm", active)
        laurel = mul_mat(parts.need(index, "laurel_l.weight"), current)
        laurel = mul_mat(parts.need(index, "laurel_r.weight"), laurel)
        laurel = parts.norm(laurel, parts.need(index, "laurel_post_norm.weight"))
        laurel = like("add", laurel, current)
        caches = sliding if layer.sliding else full
        if layer.cached:
            q, k, v = parts.qkv(index, current)
            q = parts.norm(q, parts.need(index, "attn_q_norm.weight"))
            k = parts.norm(k, parts.need(index, "attn_k_norm.weight"))
            v = like("rms_norm", v)
            q = parts.rope(index, q, factors=False)
            k = parts.rope(index, k, factors=False)
            current = parts.cached_attention(index, caches, q, k, v, key_first=True)
        else:
            q = mul_mat(parts.need(index, "attn_q.weight"), current)
            q = reshape(q, layer.key_length, layer.heads, tokens)
            q = parts.norm(q, parts.need(index, "attn_q_norm.weight"))
            q = parts.rope(index, q, factors=False)
            owner = len(owners) - (2 if layer.sliding else 1)
            current = parts.cached_attention(index, caches, q, None, None, owner=owner)
        current = parts.norm(current, parts.need(index, "post_attention_norm.weight"))
        current = like("add", current, active)
        joined = like("scale", like("add", current, laurel))
        current = parts.layer_norm(index, "ffn_norm", joined)
        wide = mul_mat(parts.need(index, "ffn_up.weight"), current)
        gate = mul_mat(parts.need(index, "ffn_gate.weight"), current)
        if index < _SPARSE_LAYERS:
            gate = sparse(gate)
        current = like("mul", wide, like("unary", gate))
        current = mul_mat(parts.need(index, "ffn_down.weight"), current)
        current = parts.norm(current, parts.need(index, "post_ffw_norm.weight"), pin=False)
        corrected = correct(index, predictions, like("add", current, joined))
        side = like("mul", slice_of(corrected), parts.need(index, "altup_correct_scale.weight"))
        side = like("unary", mul_mat(parts.need(index, "inp_gate.weight"), side))
        side = like("mul", side, slice_of(per_layer))
        side = mul_mat(parts.need(index, "proj.weight"), side)
        side = parts.norm(side, parts.need(index, "post_norm.weight"))
        rest = view(corrected, width, tokens, _ALTUP - 1)
        layer_input = concat(slice_of(corrected), like("add", rest, side), 2)

    target = magnitude(slice_of(layer_input))
    merged = mul_mat(down, view(layer_input, width, tokens, _ALTUP - 1))
    merged = like("div", like("mul", merged, target), magnitude(merged))
    current = slice_of(layer_input)
    for _ in range(_ALTUP - 1):
        current = like("add", current, slice_of(merged))
    current = get_rows(like("scale", current), parts.output_rows())
    return parts.output(current, scaled=3)
