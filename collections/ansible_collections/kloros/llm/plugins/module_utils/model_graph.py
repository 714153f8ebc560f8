# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""The parts that llama.cpp builds its graphs of: attention, feed-forward, experts.

Source: llama.cpp v0.5.0-dev, `src/llama-graph.cpp` (llm_graph_context), `src/llama-kv-cache.cpp`
(get_k, cpy_k, …). Operations stand in the same order: where a tensor is
freed decides what can take its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .compute_graph import (
    Graph,
    Tensor,
    cast,
    columns,
    cont,
    get_rows,
    glu,
    like,
    mul_mat,
    mul_mat_id,
    new_input,
    permute,
    reshape,
    set_rows,
    shape4,
    sum_rows,
    top_k,
    transpose,
    view,
)
from .model_shape import LayerShape, ModelShape, TensorShape

Activation = Literal["silu", "gelu", "relu", "relu_sqr", "swiglu", "geglu"]
Gating = Literal["softmax", "sigmoid", "softmax_weight"]

_ROTATION = 64  # the smallest Hadamard matrix for quantised caches
QUANTISED_CACHES = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})


class UnknownGraphError(LookupError):
    """The model lacks what the graph of its architecture needs."""


@dataclass(frozen=True)
class GraphConfig:
    """What a graph depends on beside the model.

    `tokens`: of the micro-batch; `sequences`: slots; `outputs`: tokens whose logits are computed;
    `cells`, `swa_cells`: of a stream of the caches; `layers`: the backend of each layer's weights,
    `output`: of the output's, `cpu`: the CPU's number; `kv_offload`: caches lie with their layer.
    `indices`: the layers to build. `transposed_values`: the cache keeps V by element, as it does
    where flash attention was off from the start.
    """

    tokens: int
    sequences: int
    streams: int
    outputs: int
    cells: int
    swa_cells: int
    cache_type_k: str
    cache_type_v: str
    flash: bool
    transposed_values: bool
    layers: tuple[int, ...]
    output: int
    cpu: int
    cpu_moe_layers: int
    kv_offload: bool
    embeddings: bool
    pooling: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Caches:
    """The inputs of one attention cache: mask, and where new rows go."""

    mask: Tensor
    k_rows: Tensor
    v_rows: Tensor
    k_rotation: Tensor | None
    v_rotation: Tensor | None


class GraphParts:
    """llm_graph_context: a graph under construction."""

    def __init__(self, shape: ModelShape, config: GraphConfig) -> None:
        self.shape = shape
        self.config = config
        self.graph = Graph()
        self.n_embd = shape.embedding_length
        self.layer_count = shape.trunk_layers
        self.indices = config.indices
        self.last = shape.trunk_layers - 1
        sequences = config.sequences
        self.tokens = -(-config.tokens // sequences) * sequences
        self.seq_tokens = self.tokens // sequences
        self.rms = "attention.layer_norm_rms_epsilon" in shape.parameters
        self.soft_cap = shape.architecture in {"gemma2", "grok"}
        self._weights: dict[str, Tensor] = {}
        self._positions: Tensor | None = None

    # Weights

    def _weight(self, name: str, tensor: TensorShape, place: int) -> Tensor:
        known = self._weights.get(name)
        if known is None:
            known = Tensor(
                "none",
                shape4(*tensor.shape),
                tensor.type.lower(),
                size=tensor.size_bytes,
                place=place,
                weight=True,
            )
            self._weights[name] = known
        return known

    def weight(self, index: int, name: str) -> Tensor | None:
        """A layer's tensor, by its name without "blk.N."."""
        layer = self.shape.layers[index]
        tensor = layer.tensors.get(name)
        if tensor is None:
            return None
        place = self.config.layers[index]
        if index < self.config.cpu_moe_layers and tensor in layer.experts:
            place = self.config.cpu
        return self._weight(f"{index}.{name}", tensor, place)

    def need(self, index: int, name: str) -> Tensor:
        """A tensor without which the layer cannot be computed."""
        found = self.weight(index, name)
        if found is None:
            raise UnknownGraphError(f"layer {index} has no tensor {name}")
        return found

    def model_weight(self, name: str, place: int) -> Tensor | None:
        tensor = self.shape.tensors.get(name)
        return None if tensor is None else self._weight(f"{name}@{place}", tensor, place)

    def need_of_model(self, name: str, place: int) -> Tensor:
        """A tensor of no layer without which the model cannot be computed."""
        found = self.model_weight(name, place)
        if found is None:
            raise UnknownGraphError(f"the model has no tensor {name}")
        return found

    # Inputs

    def input_embedding(self) -> Tensor:
        tokens = new_input("i32", self.tokens)
        table = self.need_of_model("token_embd.weight", self.config.cpu)
        current = self.graph.expand(get_rows(table, tokens))
        # The path for embeddings instead of tokens is part of the graph, though unused.
        self.graph.expand(new_input("f32", self.n_embd, self.tokens))
        if self.shape.parameters.get("embedding_scale"):
            current = self.graph.expand(like("scale", current))
        return current

    def positions(self) -> Tensor:
        if self._positions is None:
            sections = self.shape.parameters.get("rope.dimension_sections")
            each = 4 if isinstance(sections, list) and any(sections[:2]) else 1
            self._positions = new_input("i32", self.tokens * each)
        return self._positions

    def output_rows(self) -> Tensor:
        return new_input("i32", self.config.outputs)

    def _rotation(self, lengths: set[int], cache_type: str, *, largest: bool) -> Tensor | None:
        """The rotation that spreads outliers before a cache is quantised."""
        if cache_type not in QUANTISED_CACHES or len(lengths) != 1:
            return None
        length = next(iter(lengths))
        if length == 0 or length % _ROTATION:
            return None
        size = _ROTATION
        while largest and length % (size * 2) == 0:
            size *= 2
        return new_input("f32", size, size)

    def attention_input(self, *, sliding: bool = False) -> Caches:
        config = self.config
        layers = [layer for layer in self.shape.layers if layer.cached and layer.sliding == sliding]
        cells = config.swa_cells if sliding else config.cells
        rows = self.tokens
        if config.transposed_values:
            rows *= max((x.value_length * x.kv_heads for x in self.shape.layers), default=1)
        return Caches(
            mask=new_input(
                "f16" if config.flash else "f32",
                cells,
                self.tokens // config.streams,
                1,
                config.streams,
            ),
            k_rows=new_input("i64", self.tokens),
            v_rows=new_input("i64", rows),
            k_rotation=self._rotation(
                {layer.key_length for layer in layers}, config.cache_type_k, largest=True
            ),
            v_rotation=self._rotation(
                {layer.value_length for layer in layers}, config.cache_type_v, largest=False
            ),
        )

    # Small parts

    def norm(
        self,
        current: Tensor,
        weight: Tensor | None,
        bias: Tensor | None = None,
        *,
        rms: bool | None = None,
        pin: bool = True,
    ) -> Tensor:
        use_rms = self.rms if rms is None else rms
        current = like("rms_norm" if use_rms else "norm", current)
        if weight is not None and pin:
            current.pinned = weight.place
        if weight is not None:
            current = like("mul", current, weight)
        if bias is not None:
            current = like("add", current, bias)
        return current

    def layer_norm(self, index: int, name: str, current: Tensor) -> Tensor:
        return self.norm(
            current,
            self.weight(index, f"{name}.weight"),
            self.weight(index, f"{name}.bias"),
        )

    def rope(self, index: int, current: Tensor, *, factors: bool = True) -> Tensor:
        weight = None
        if factors:
            for name in ("rope_freqs.weight", "rope_factors_short.weight"):
                weight = weight or self.model_weight(name, self.config.layers[index])
        return like("rope", current, self.positions(), weight)

    def linear(self, index: int, name: str, current: Tensor) -> Tensor:
        """A matrix of the layer, and its bias if there is one."""
        current = mul_mat(self.need(index, f"{name}.weight"), current)
        bias = self.weight(index, f"{name}.bias")
        return current if bias is None else like("add", current, bias)

    def rotate(self, current: Tensor, rotation: Tensor) -> Tensor:
        size = rotation.shape[0]
        source = current.sources[0] if current.op == "view" else None
        rows = current.elements // size
        if source is not None and source.elements != current.elements:
            flat = cont(current, size, rows)
        else:
            flat = reshape(current, size, rows)
        return reshape(mul_mat(rotation, flat), *current.shape)

    # Attention

    def qkv(self, index: int, current: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer = self.shape.layers[index]
        key, value = layer.key_length, layer.value_length
        tokens = self.tokens
        if self.weight(index, "attn_qkv.weight") is not None:
            joined = self.linear(index, "attn_qkv", current)
            return (
                columns(joined, key, layer.heads),
                columns(joined, key, layer.kv_heads),
                columns(joined, value, layer.kv_heads),
            )
        q = self.linear(index, "attn_q", current)
        k = self.linear(index, "attn_k", current)
        v = self.linear(index, "attn_v", current)
        return (
            reshape(q, q.shape[0] // layer.heads, layer.heads, tokens),
            reshape(k, k.shape[0] // layer.kv_heads, layer.kv_heads, tokens),
            reshape(v, v.shape[0] // layer.kv_heads, layer.kv_heads, tokens),
        )

    def _cache(self, index: int, elements: int, cells: int, type_: str, name: str) -> Tensor:
        key = f"cache {name} {index}"
        known = self._weights.get(key)
        if known is None:
            place = self.config.layers[index] if self.config.kv_offload else self.config.cpu
            known = Tensor("none", shape4(elements, cells, self.config.streams), type_, place=place)
            self._weights[key] = known
        return known

    def cached_attention(
        self,
        index: int,
        caches: Caches,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        owner: int | None = None,
        output: bool = True,
        key_first: bool = False,
    ) -> Tensor:
        """build_attn with a KV cache. `owner`: the layer whose cache is read, if another's."""
        config = self.config
        graph = self.graph
        layer = self.shape.layers[index]
        if caches.k_rotation is not None:
            q = self.rotate(q, caches.k_rotation)
            k = None if k is None else self.rotate(k, caches.k_rotation)
        if caches.v_rotation is not None and v is not None:
            v = self.rotate(v, caches.v_rotation)
        graph.expand(q)
        for entry in (k, v) if key_first else (v, k):
            if entry is not None:
                graph.expand(entry)
        cells = config.swa_cells if layer.sliding else config.cells
        width_v = layer.value_length * layer.kv_heads
        if config.transposed_values:
            width_v = max((x.value_length * x.kv_heads for x in self.shape.layers), default=1)
        at = index if owner is None else owner
        cache_k = self._cache(
            at, layer.key_length * layer.kv_heads, cells, config.cache_type_k, "k"
        )
        cache_v = self._cache(at, width_v, cells, config.cache_type_v, "v")
        if k is not None:
            graph.expand(self._store(cache_k, k, caches.k_rows))
        if v is not None:
            graph.expand(self._store_value(cache_v, v, caches.v_rows))
        key = view(cache_k, layer.key_length, layer.kv_heads, cells, config.streams)
        value = view(cache_v, layer.value_length, layer.kv_heads, cells, config.streams)
        sinks = self.weight(index, "attn_sinks.weight")
        current = self.attention(q, key, value, caches.mask, sinks=sinks, index=index)
        if caches.v_rotation is not None:
            current = self.rotate(current, caches.v_rotation)
        return self.linear(index, "attn_output", current) if output else current

    def _store(self, cache: Tensor, rows: Tensor, where: Tensor) -> Tensor:
        elements = rows.shape[0] * rows.shape[1]
        stride = rows.strides[2]
        flat = view(rows, elements, rows.shape[2], strides=(4, stride, stride * rows.shape[2], 0))
        target = cache
        if self.config.streams > 1:
            target = reshape(cache, elements, cache.shape[1] * cache.shape[2])
        return set_rows(target, flat, where)

    def _store_value(self, cache: Tensor, rows: Tensor, where: Tensor) -> Tensor:
        if not self.config.transposed_values:
            return self._store(cache, rows, where)
        elements = rows.shape[0] * rows.shape[1]
        source = rows.sources[0] if rows.op == "view" else None
        if source is not None and source.elements != rows.elements:
            flat = cont(rows, elements, rows.shape[2])
        else:
            flat = reshape(rows, elements, rows.shape[2])
        if elements < cache.shape[0]:
            flat = Tensor("pad", shape4(cache.shape[0], rows.shape[2]), "f32", (flat,))
        return set_rows(reshape(cache, 1, cache.elements), reshape(flat, 1, flat.elements), where)

    def latent_attention(
        self, index: int, caches: Caches, *, q: Tensor, k: Tensor, v: Tensor, expand: Tensor
    ) -> Tensor:
        """build_attn of MLA: the cache holds the latent only, values are a view of it."""
        config = self.config
        for entry in (q, v, k):
            self.graph.expand(entry)
        cache = self._cache(index, k.shape[0] * k.shape[1], config.cells, config.cache_type_k, "k")
        self.graph.expand(self._store(cache, k, caches.k_rows))
        key = view(cache, k.shape[0], k.shape[1], config.cells, config.streams)
        value = view(key, v.shape[0], k.shape[1], config.cells, config.streams)
        current = self.attention(
            q, key, value, caches.mask, expand=expand, transposed=False, index=index
        )
        return self.linear(index, "attn_output", current)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        *,
        sinks: Tensor | None = None,
        expand: Tensor | None = None,
        transposed: bool | None = None,
        index: int = -1,
    ) -> Tensor:
        """build_attn_mha. `transposed`: the cache keeps values by element, as without flash."""
        streams = k.shape[3]
        length, heads, tokens = q.shape[:3]
        if transposed is None:
            transposed = self.config.transposed_values
        q = permute(view(q, length, heads, tokens // streams, streams), 0, 2, 1, 3)
        k = permute(k, 0, 2, 1, 3)
        v = permute(v, 0, 2, 1, 3)
        if self.config.flash:
            if k.type == "f32":
                k, v = cast(k, "f16"), cast(v, "f16")
            shape = (v.shape[0], q.shape[2], q.shape[1], q.shape[3])
            sources = (q, k, v, mask) if sinks is None else (q, k, v, mask, sinks)
            current = Tensor("flash_attn", shape, "f32", sources)
            current.layer = index
            if expand is not None:
                current = mul_mat(expand, permute(current, 0, 2, 1, 3))
                current = cont(permute(current, 0, 2, 1, 3))
            a, b, c, d = current.shape
            return self.graph.expand(reshape(current, a * b, c * d))
        scores = mul_mat(k, q)
        if self.soft_cap:
            scores = like("scale", like("unary", like("scale", scores)))
        scores = like("soft_max", scores, mask, sinks)
        if not transposed:
            v = cont(transpose(v))
        else:
            v = view(v, v.shape[1], v.shape[0], v.shape[2], v.shape[3])
        current = mul_mat(v, scores)
        if expand is not None:
            current = mul_mat(expand, current)
        current = permute(current, 0, 2, 1, 3)
        a, b, c, d = current.shape
        current = cont(current, a * b, c * d)
        return self.graph.expand(current)

    # Feed-forward

    def feed_forward(
        self,
        index: int,
        current: Tensor,
        activation: Activation = "silu",
        *,
        suffix: str = "",
        gated: bool = True,
    ) -> Tensor:
        """build_ffn. `suffix` "_shexp": the shared experts' matrices."""
        up = self.linear(index, f"ffn_up{suffix}", current)
        gate = None
        if gated and self.weight(index, f"ffn_gate{suffix}.weight") is not None:
            gate = self.linear(index, f"ffn_gate{suffix}", current)
        if activation in {"swiglu", "geglu"}:
            current = glu(up)
        elif gate is not None:
            current = glu(gate, up)
        else:
            current = like("unary", up)
            if activation == "relu_sqr":
                current = like("sqr", current)
        return self.linear(index, f"ffn_down{suffix}", current)

    def experts(
        self,
        index: int,
        current: Tensor,
        activation: Activation = "silu",
        *,
        normalise: bool = True,
        gating: Gating = "softmax",
    ) -> Tensor:
        """build_moe_ffn."""
        used = self.shape.layers[index].experts_used
        width, tokens = current.shape[:2]
        selected, weights = self._route(index, current, normalise=normalise, gating=gating)
        hidden = self._experts_hidden(
            index, reshape(current, width, 1, tokens), selected, activation
        )
        results = self._expert(index, "ffn_down_exps", hidden, selected)
        results = self.graph.expand(like("mul", results, weights))
        stride = results.strides[2]
        parts = [
            self.graph.expand(view(results, width, tokens, strides=(4, stride, stride * tokens, 0)))
            for _ in range(used)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.expand(like("add", total, part))
        return cont(total) if used == 1 else total

    def _route(
        self, index: int, current: Tensor, *, normalise: bool, gating: Gating
    ) -> tuple[Tensor, Tensor]:
        """Which experts each token goes to, and with what weights."""
        used = self.shape.layers[index].experts_used
        tokens = current.shape[1]
        logits = self.linear(index, "ffn_gate_inp", current)
        operation = {"softmax": "soft_max", "sigmoid": "unary"}.get(gating)
        probabilities = like(operation, logits) if operation else logits
        bias = self.weight(index, "exp_probs_b.bias")
        selection = probabilities if bias is None else like("add", probabilities, bias)
        groups = self.shape.parameter("expert_group_count")
        if groups > 1:
            selection = self._grouped(selection, groups)
        selected = top_k(selection, used)
        weights = get_rows(reshape(probabilities, 1, logits.shape[0], tokens), selected)
        if gating == "softmax_weight":
            weights = reshape(weights, used, tokens)
            weights = reshape(like("soft_max", weights), 1, used, tokens)
        if normalise:
            weights = reshape(weights, used, tokens)
            total = like("clamp", sum_rows(weights))
            weights = reshape(like("div", weights, total), 1, used, tokens)
        scale = self.shape.parameters.get("expert_weights_scale", 0)
        if isinstance(scale, int | float) and scale not in (0, 1):
            weights = like("scale", weights)
        return selected, self.graph.expand(weights)

    def _expert(self, index: int, name: str, source: Tensor, selected: Tensor) -> Tensor:
        result = mul_mat_id(self.need(index, f"{name}.weight"), source, selected)
        bias = self.weight(index, f"{name}.bias")
        return result if bias is None else like("add_id", result, bias, selected)

    def _experts_hidden(
        self, index: int, current: Tensor, selected: Tensor, activation: Activation
    ) -> Tensor:
        if self.weight(index, "ffn_gate_up_exps.weight") is not None:
            both = self._expert(index, "ffn_gate_up_exps", current, selected)
            half = both.shape[0] // 2
            return glu(columns(both, half), columns(both, half))
        up = self._expert(index, "ffn_up_exps", current, selected)
        if self.weight(index, "ffn_gate_exps.weight") is not None:
            return glu(self._expert(index, "ffn_gate_exps", current, selected), up)
        hidden = like("unary", up)
        return like("sqr", hidden) if activation == "relu_sqr" else hidden

    def _grouped(self, selection: Tensor, groups: int) -> Tensor:
        """Only the best groups of experts stay eligible (DeepSeek V3)."""
        count, tokens = selection.shape[:2]
        used = self.shape.parameter("expert_group_used_count")
        grouped = reshape(selection, count // groups, groups, tokens)
        best = top_k(grouped, 2)
        scores = get_rows(reshape(grouped, 1, count // groups, groups, tokens), best)
        scores = sum_rows(reshape(scores, scores.shape[1], scores.shape[2], scores.shape[3]))
        chosen = top_k(reshape(scores, scores.shape[1], scores.shape[2]), used)
        kept = get_rows(grouped, chosen)
        filled = set_rows(like("fill", grouped), kept, chosen)
        return reshape(filled, count, tokens)

    def mixture(
        self,
        index: int,
        current: Tensor,
        activation: Activation = "silu",
        *,
        normalise: bool = True,
        gating: Gating = "softmax",
    ) -> Tensor:
        """Experts, and the shared ones if there are any."""
        routed = self.experts(index, current, activation, normalise=normalise, gating=gating)
        if self.weight(index, "ffn_up_shexp.weight") is None:
            return routed
        shared = self.feed_forward(index, current, activation, suffix="_shexp")
        gate = self.weight(index, "ffn_gate_inp_shexp.weight")
        if gate is not None:
            shared = like("mul", shared, like("unary", mul_mat(gate, current)))
        return like("add", routed, shared)

    # The end

    def output(
        self, current: Tensor, *, norm: str = "output_norm", scaled: int = 0, normed: bool = True
    ) -> Graph:
        """Final norm and logits. `scaled`: how many scalings follow the logits."""
        place = self.config.output
        if normed:
            current = self.norm(
                current,
                self.model_weight(f"{norm}.weight", place),
                self.model_weight(f"{norm}.bias", place),
                pin=False,
            )
        embedding = current
        matrix = self.model_weight("output.weight", place)
        if matrix is None:
            matrix = self.need_of_model("token_embd.weight", place)
        logits = mul_mat(matrix, current)
        bias = self.model_weight("output.bias", place)
        if bias is not None:
            logits = like("add", logits, bias)
        for _ in range(scaled):
            logits = like("scale", logits)
        self.graph.expand(logits)
        self.pool(embedding)
        # Set after the graph is built, as llama.cpp does.
        logits.is_output = embedding.is_output = True
        return self.graph

    def pool(self, embedding: Tensor) -> None:
        """build_pooling, for embeddings."""
        if not self.config.embeddings:
            return
        sequences = self.config.sequences
        kind = self.config.pooling
        if kind == "mean":
            mean = new_input("f32", self.tokens, sequences)
            pooled = mul_mat(cont(transpose(embedding)), mean)
        elif kind in {"cls", "last", "rank"}:
            pooled = get_rows(embedding, new_input("i32", sequences))
        else:
            pooled = embedding
        self.graph.expand(pooled)
        pooled.is_output = True

    def layer(self, index: int) -> LayerShape:
        return self.shape.layers[index]
