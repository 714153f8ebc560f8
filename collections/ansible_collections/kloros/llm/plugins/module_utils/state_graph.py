# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""Layers with a state instead of a cache: Mamba, Mamba 2, short convolutions.

Source: llama.cpp v0.5.0-dev, `src/llama-graph.cpp` (build_rs) and `src/models/mamba-base.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .compute_graph import (
    Tensor,
    columns,
    concat,
    cont,
    cpy,
    get_rows,
    glu,
    like,
    mul_mat,
    new_input,
    reshape,
    shape4,
    transpose,
    view,
)
from .model_graph import GraphParts


@dataclass(frozen=True)
class StateInput:
    """Which recurrent states a batch reads."""

    main: Tensor
    extra: Tensor


class StateParts(GraphParts):
    """A graph that may have such layers."""

    def state_input(self) -> StateInput:
        copy = new_input("i32", self.config.sequences)
        return StateInput(view(copy, self.config.sequences), view(copy, 0))

    def _state(self, index: int, elements: int, name: str) -> Tensor:
        return self._cache_state(f"state {name} {index}", index, elements)

    def _cache_state(self, key: str, index: int, elements: int) -> Tensor:
        known = self._weights.get(key)
        if known is None:
            place = self.config.layers[index] if self.config.kv_offload else self.config.cpu
            known = Tensor("none", shape4(elements, self.config.sequences), "f32", place=place)
            self._weights[key] = known
        return known

    def _prepare_states(self, states: Tensor) -> Tensor:
        """build_rs up to where the states are read: clears one state."""
        rows = reshape(states, *states.shape[:2])
        cleared = view(rows, 0)
        self.graph.expand(
            Tensor(
                "scale", cleared.shape, "f32", (cleared,), root=states, size=0, place=states.place
            )
        )
        return rows

    def _keep_states(self, inputs: StateInput, states: Tensor, rows: Tensor) -> None:
        """build_rs after it: copies the states that this batch does not touch (none of them)."""
        extra = get_rows(rows, inputs.extra)
        self.graph.expand(cpy(extra, view(states, states.shape[0], 0)))

    def read_states(self, inputs: StateInput, states: Tensor) -> Tensor:
        rows = self._prepare_states(states)
        result = self.graph.expand(get_rows(rows, inputs.main))
        self._keep_states(inputs, states, rows)
        return result

    def scan(
        self,
        inputs: StateInput,
        states: Tensor,
        shape: tuple[int, int, int],
        operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        """build_rs around ggml_ssm_scan: outputs, and behind them the new states.

        `operands`: x, dt, A, B, C.
        """
        rows = self._prepare_states(states)
        source = reshape(rows, *shape, self.config.sequences)
        elements = operands[0].elements + states.shape[0] * self.config.sequences
        result = Tensor("ssm_scan", shape4(elements), "f32", (source, *operands, inputs.main))
        self.graph.expand(result)
        self._keep_states(inputs, states, rows)
        return result

    def convolution(
        self, index: int, inputs: StateInput, x: Tensor, width: int, kernel: str = "ssm_conv1d"
    ) -> Tensor:
        """Rolling state before `x`, {width, tokens, sequences}; the last columns go back to it."""
        weight = self.need(index, f"{kernel}.weight")
        steps = weight.shape[0] - 1
        sequences = self.config.sequences
        states = self._state(index, steps * width, "r")
        before = reshape(self.read_states(inputs, states), steps, width, sequences)
        joined = concat(before, transpose(x), 0)
        last = columns(joined, steps)
        self.graph.expand(cpy(last, view(states, steps * width, sequences)))
        return Tensor(
            "ssm_conv", shape4(width, self.seq_tokens, sequences), "f32", (joined, weight)
        )

    def mamba(self, index: int, inputs: StateInput, current: Tensor) -> Tensor:
        """build_mamba_layer."""
        shape = self.shape
        inner = shape.parameter("ssm.inner_size")
        state = shape.parameter("ssm.state_size")
        rank = shape.parameter("ssm.time_step_rank")
        tokens, sequences = self.seq_tokens, self.config.sequences
        conv_states = self.need(index, "ssm_conv1d.weight")
        steps = conv_states.shape[0] - 1
        states = self._state(index, steps * inner, "r")
        before = reshape(self.read_states(inputs, states), steps, inner, sequences)
        current = reshape(current, current.shape[0], tokens, sequences)
        xz = mul_mat(self.need(index, "ssm_in.weight"), current)
        x = columns(xz, inner)
        z = columns(xz, inner)
        joined = concat(before, transpose(x), 0)
        self.graph.expand(cpy(columns(joined, steps), view(states, steps * inner * sequences)))
        x = Tensor("ssm_conv", shape4(inner, tokens, sequences), "f32", (joined, conv_states))
        x = like("unary", like("add", x, self.weight(index, "ssm_conv1d.bias")))
        projected = mul_mat(self.need(index, "ssm_x.weight"), x)
        dt = columns(projected, rank)
        b = columns(projected, state, 1)
        c = columns(projected, state, 1)
        if shape.flag("ssm.dt_b_c_rms", False) or self.weight(index, "ssm_dt_norm.weight"):
            dt = self.norm(dt, self.weight(index, "ssm_dt_norm.weight"))
            b = self.norm(b, self.weight(index, "ssm_b_norm.weight"))
            c = self.norm(c, self.weight(index, "ssm_c_norm.weight"))
        else:
            dt = cont(dt)
        dt = mul_mat(self.need(index, "ssm_dt.weight"), dt)
        dt = like("add", dt, self.weight(index, "ssm_dt.bias"))
        heads = reshape(x, 1, inner, tokens, sequences)
        scan_states = self._state(index, state * inner, "s")
        y_all = self.scan(
            inputs,
            scan_states,
            (state, 1, inner),
            (heads, dt, self.need(index, "ssm_a"), b, c),
        )
        self.graph.expand(
            cpy(
                view(y_all, state * inner * sequences),
                view(scan_states, state * inner * sequences),
            )
        )
        y = view(y_all, inner, tokens, sequences)
        y = like("add", y, like("mul", x, self.need(index, "ssm_d")))
        y = glu(cont(z), y)
        result = mul_mat(self.need(index, "ssm_out.weight"), y)
        return reshape(result, result.shape[0], tokens * sequences)

    def mamba2(self, index: int, inputs: StateInput, current: Tensor) -> Tensor:
        """build_mamba2_layer."""
        shape = self.shape
        inner = shape.parameter("ssm.inner_size")
        state = shape.parameter("ssm.state_size")
        heads = shape.parameter("ssm.time_step_rank")
        groups = shape.parameter("ssm.group_count")
        length = inner // heads
        width = inner + 2 * groups * state
        tokens, sequences = self.seq_tokens, self.config.sequences
        weight = self.need(index, "ssm_conv1d.weight")
        steps = weight.shape[0] - 1
        states = self._state(index, steps * width, "r")
        before = reshape(self.read_states(inputs, states), steps, width, sequences)
        projected = mul_mat(self.need(index, "ssm_in.weight"), current)
        projected = reshape(projected, projected.shape[0], tokens, sequences)
        z = columns(projected, length, heads)
        xbc = columns(projected, width)
        dt = columns(projected, heads)
        joined = concat(before, transpose(xbc), 0)
        self.graph.expand(cpy(columns(joined, steps), view(states, steps * width, sequences)))
        xbc = Tensor("ssm_conv", shape4(width, tokens, sequences), "f32", (joined, weight))
        xbc = like("unary", like("add", xbc, self.weight(index, "ssm_conv1d.bias")))
        x = columns(xbc, length, heads)
        b = columns(xbc, state, groups)
        c = columns(xbc, state, groups)
        dt = like("add", cont(dt), self.need(index, "ssm_dt.bias"))
        scan_states = self._state(index, state * inner, "s")
        y_all = self.scan(
            inputs,
            scan_states,
            (state, length, heads),
            (x, dt, self.need(index, "ssm_a"), b, c),
        )
        self.graph.expand(
            cpy(
                view(y_all, state * inner, sequences, 1),
                view(scan_states, state * inner, sequences, 1),
            )
        )
        y = view(y_all, length, heads, tokens, sequences)
        y = like("add", y, like("mul", x, self.need(index, "ssm_d")))
        y = glu(cont(z), y)
        norm = self.weight(index, "ssm_norm.weight")
        if norm is not None:
            y = reshape(y, inner // groups, groups, tokens, sequences)
            y = self.norm(y, norm, rms=True)
        y = reshape(y, inner, tokens * sequences)
        return mul_mat(self.need(index, "ssm_out.weight"), y)
