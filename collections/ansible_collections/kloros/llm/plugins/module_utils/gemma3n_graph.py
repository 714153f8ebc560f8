# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""The graph of Gemma 3n: four alternating streams, and an embedding of its own for each layer.

Source: llama.cpp v0.5.0-dev, `src/models/gemma3n.cpp`.
"""

from __future__ import annotations

from .compute_graph import (
    Graph,
    Tensor,
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
from .model_graph import Caches
from .state_graph import StateParts

_STREAMS = 4
_SPARSE_LAYERS = 10


def gemma3n(parts: StateParts) -> Graph:
    current = like("scale", parts.input_embedding())
    caches = (parts.attention_input(), parts.attention_input(sliding=True))
    per_layer = _per_layer_inputs(parts, current)
    streams = _stack(parts, current)
    for index in parts.indices:
        streams = _layer(parts, index, streams, per_layer, caches)
    current = get_rows(_merge(parts, streams), parts.output_rows())
    return parts.output(current, scaled=3)


def _first(tensor: Tensor) -> Tensor:
    """One stream of several, or one layer's slice."""
    return view(tensor, tensor.shape[0], tensor.shape[1])


def _magnitude(tensor: Tensor) -> Tensor:
    return like("sqrt", sum_rows(like("sqr", tensor)))


def _per_layer_inputs(parts: StateParts, current: Tensor) -> Tensor:
    layers, tokens = parts.layer_count, parts.tokens
    table = parts.need_of_model("per_layer_token_embd.weight", parts.config.cpu)
    width = table.shape[0] // layers
    first = parts.config.layers[0]
    picked = get_rows(table, new_input("i32", tokens))
    picked = parts.graph.expand(like("scale", reshape(picked, width, layers, tokens)))
    projection = parts.need_of_model("per_layer_model_proj.weight", first)
    projected = reshape(like("scale", mul_mat(projection, current)), width, layers, tokens)
    projected = parts.norm(
        projected, parts.model_weight("per_layer_proj_norm.weight", first), pin=False
    )
    joined = like("scale", like("add", projected, picked))
    return cont(permute(joined, 0, 2, 1, 3))


def _stack(parts: StateParts, current: Tensor) -> Tensor:
    """One stream becomes four."""
    weight = parts.need_of_model("altup_proj.weight", parts.config.output)
    target = _magnitude(current)
    added = mul_mat(weight, repeat(current, parts.n_embd, parts.tokens, _STREAMS - 1))
    new = _magnitude(added)
    added = like("div", like("mul", added, target), new)
    return concat(current, added, 2)


def _merge(parts: StateParts, streams: Tensor) -> Tensor:
    """Four streams become one."""
    weight = parts.need_of_model("altup_unembd_proj.weight", parts.config.output)
    target = _magnitude(_first(streams))
    merged = mul_mat(weight, view(streams, parts.n_embd, parts.tokens, _STREAMS - 1))
    merged = like("div", like("mul", merged, target), _magnitude(merged))
    current = _first(streams)
    for _ in range(_STREAMS - 1):
        current = like("add", current, _first(merged))
    return like("scale", current)


def _modalities(parts: StateParts, index: int, tensor: Tensor) -> Tensor:
    routed = parts.norm(tensor, parts.need(index, "altup_router_norm.weight"))
    routed = like("scale", routed)
    return like("unary", mul_mat(parts.need(index, "altup_router.weight"), routed))


def _predict(parts: StateParts, index: int, streams: Tensor) -> Tensor:
    coefficients = mul_mat(
        parts.need(index, "altup_predict_coef.weight"), _modalities(parts, index, _first(streams))
    )
    coefficients = reshape(coefficients, _STREAMS, _STREAMS, parts.tokens)
    turned = cont(permute(streams, 1, 2, 0, 3))
    predictions = mul_mat(turned, coefficients)
    predictions = cont(permute(predictions, 0, 2, 1, 3))
    return like("add", predictions, streams)


def _correct(parts: StateParts, index: int, predictions: Tensor, activated: Tensor) -> Tensor:
    routed = _modalities(parts, index, activated)
    innovation = like("sub", activated, _first(predictions))
    coefficients = mul_mat(parts.need(index, "altup_correct_coef.weight"), routed)
    coefficients = cont(transpose(like("scale", coefficients)), 1, parts.tokens, _STREAMS)
    innovation = repeat(innovation, parts.n_embd, parts.tokens, _STREAMS)
    return like("add", like("mul", innovation, coefficients), predictions)


def _sparse(tensor: Tensor) -> Tensor:
    """gaussian_topk."""
    mean = Tensor("mean", (1, *tensor.shape[1:]), "f32", (tensor,))
    spread = like("sqrt", like("scale", sum_rows(like("sqr", like("sub", tensor, mean)))))
    cutoff = like("add", mean, like("scale", spread))
    return like("unary", like("sub", tensor, cutoff))


def _attend(
    parts: StateParts, index: int, current: Tensor, caches: tuple[Caches, Caches]
) -> Tensor:
    """Attention; the upper layers read the cache of the last one that has its own."""
    layer = parts.layer(index)
    used = caches[1] if layer.sliding else caches[0]
    if layer.cached:
        q, k, v = parts.qkv(index, current)
        q = parts.norm(q, parts.need(index, "attn_q_norm.weight"))
        k = parts.norm(k, parts.need(index, "attn_k_norm.weight"))
        v = like("rms_norm", v)
        q = parts.rope(index, q, factors=False)
        k = parts.rope(index, k, factors=False)
        return parts.cached_attention(index, used, q, k, v, key_first=True)
    q = mul_mat(parts.need(index, "attn_q.weight"), current)
    q = reshape(q, layer.key_length, layer.heads, parts.tokens)
    q = parts.norm(q, parts.need(index, "attn_q_norm.weight"))
    q = parts.rope(index, q, factors=False)
    owners = sum(entry.cached for entry in parts.shape.layers)
    owner = owners - (2 if layer.sliding else 1)
    return parts.cached_attention(index, used, q, None, None, owner=owner)


def _layer(
    parts: StateParts,
    index: int,
    streams: Tensor,
    per_layer: Tensor,
    caches: tuple[Caches, Caches],
) -> Tensor:
    predictions = _predict(parts, index, streams)
    active = _first(predictions)
    current = parts.layer_norm(index, "attn_norm", active)
    laurel = mul_mat(parts.need(index, "laurel_l.weight"), current)
    laurel = mul_mat(parts.need(index, "laurel_r.weight"), laurel)
    laurel = parts.norm(laurel, parts.need(index, "laurel_post_norm.weight"))
    laurel = like("add", laurel, current)
    current = _attend(parts, index, current, caches)
    current = parts.norm(current, parts.need(index, "post_attention_norm.weight"))
    current = like("add", current, active)
    joined = like("scale", like("add", current, laurel))
    current = parts.layer_norm(index, "ffn_norm", joined)
    wide = mul_mat(parts.need(index, "ffn_up.weight"), current)
    gate = mul_mat(parts.need(index, "ffn_gate.weight"), current)
    if index < _SPARSE_LAYERS:
        gate = _sparse(gate)
    current = like("mul", wide, like("unary", gate))
    current = mul_mat(parts.need(index, "ffn_down.weight"), current)
    current = parts.norm(current, parts.need(index, "post_ffw_norm.weight"), pin=False)
    corrected = _correct(parts, index, predictions, like("add", current, joined))
    side = like("mul", _first(corrected), parts.need(index, "altup_correct_scale.weight"))
    side = like("unary", mul_mat(parts.need(index, "inp_gate.weight"), side))
    side = like("mul", side, _first(per_layer))
    side = mul_mat(parts.need(index, "proj.weight"), side)
    side = parts.norm(side, parts.need(index, "post_norm.weight"))
    rest = view(corrected, parts.n_embd, parts.tokens, _STREAMS - 1)
    return concat(_first(corrected), like("add", rest, side), 2)
