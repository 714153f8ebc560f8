# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""ggml's graphs without the numbers: tensors with shapes and sizes, in the order they are computed.

Enough of ggml to know how much memory a graph takes. Source: llama.cpp v0.5.0-dev, `ggml/src/ggml.c`
(shapes of results, ggml_visit_parents_graph) and `ggml-impl.h`.
"""

from __future__ import annotations

from math import prod

Shape = tuple[int, int, int, int]

# Bytes of a block, elements of a block: the types that computed tensors and caches have.
TYPES = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "i32": (4, 1),
    "i64": (8, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}

VIEW_OPS = frozenset({"view", "reshape", "permute", "transpose"})
# The result may take the place of an operand (ggml-alloc.c ggml_op_can_inplace).
INPLACE_OPS = frozenset(
    {
        "fill",
        "scale",
        "add",
        "add_id",
        "sub",
        "mul",
        "div",
        "sqr",
        "sqrt",
        "unary",
        "rope",
        "rms_norm",
        "clamp",
        "soft_max",
    }
)


def shape4(*sizes: int) -> Shape:
    """`sizes` with ones up to four dimensions."""
    a, b, c, d = (*sizes, 1, 1, 1)[:4]
    return a, b, c, d


class Tensor:
    """One tensor: `op` "none" is a leaf; `root` the tensor that a view looks at.

    `place`: the backend whose buffer holds it already (weights, caches), None if the graph's
    allocator gives it room; `weight`: that buffer holds weights. `pinned`: a backend it is forced to.
    """

    __slots__ = ("is_input", "is_output", "op", "pinned", "place", "root", "shape", "size",
                 "sources", "type", "weight")

    def __init__(
        self,
        op: str,
        shape: Shape,
        type_: str = "f32",
        sources: tuple[Tensor, ...] = (),
        *,
        root: Tensor | None = None,
        size: int | None = None,
        place: int | None = None,
        weight: bool = False,
        is_input: bool = False,
    ) -> None:
        self.op = op
        self.shape = shape
        self.type = type_
        self.sources = sources
        self.root = root
        if size is None:
            block_bytes, block = TYPES[type_]
            size = prod(shape) // block * block_bytes
        self.size = size
        self.place = place
        self.weight = weight
        self.is_input = is_input
        self.is_output = False
        self.pinned: int | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)


class Graph:
    """Nodes and leaves in ggml's order: a tensor's sources before it, left to right."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[int] = set()
        self._keep: list[Tensor] = []

    def expand(self, tensor: Tensor) -> Tensor:
        """ggml_build_forward_expand. Returns the tensor."""
        stack: list[tuple[Tensor, int]] = []
        if id(tensor) not in self._seen:
            self._seen.add(id(tensor))
            self._keep.append(tensor)
            stack.append((tensor, 0))
        while stack:
            current, position = stack.pop()
            if position < len(current.sources):
                stack.append((current, position + 1))
                source = current.sources[position]
                if id(source) not in self._seen:
                    self._seen.add(id(source))
                    self._keep.append(source)
                    stack.append((source, 0))
            elif current.op == "none":
                self.leafs.append(current)
            else:
                self.nodes.append(current)
        return tensor


def new_input(type_: str, *sizes: int) -> Tensor:
    """A tensor that is filled from outside before each run."""
    return Tensor("none", shape4(*sizes), type_, is_input=True)


def view(source: Tensor, *sizes: int, op: str = "view") -> Tensor:
    """A view with another shape; it takes no memory."""
    return Tensor(
        op,
        shape4(*sizes),
        source.type,
        (source,),
        root=source.root or source,
        size=0,
        place=source.place,
    )


def reshape(source: Tensor, *sizes: int) -> Tensor:
    return view(source, *sizes, op="reshape")


def permute(source: Tensor, a: int, b: int, c: int, d: int) -> Tensor:
    """Dimension 0 becomes dimension `a`, and so on."""
    sizes = [0, 0, 0, 0]
    for to, size in zip((a, b, c, d), source.shape, strict=True):
        sizes[to] = size
    return view(source, *sizes, op="permute")


def transpose(source: Tensor) -> Tensor:
    a, b, c, d = source.shape
    return view(source, b, a, c, d, op="transpose")


def like(op: str, source: Tensor, *others: Tensor | None) -> Tensor:
    """An operation whose result looks like its first operand (add, mul, scale, rope, norms, …)."""
    return Tensor(op, source.shape, source.type, (source, *(o for o in others if o is not None)))


def cont(source: Tensor, *sizes: int) -> Tensor:
    return Tensor("cont", shape4(*sizes) if sizes else source.shape, source.type, (source,))


def cast(source: Tensor, type_: str) -> Tensor:
    return Tensor("cpy", source.shape, type_, (source,))


def mul_mat(weight: Tensor, source: Tensor) -> Tensor:
    _, b, c, d = source.shape
    return Tensor("mul_mat", (weight.shape[1], b, c, d), "f32", (weight, source))


def mul_mat_id(weight: Tensor, source: Tensor, experts: Tensor) -> Tensor:
    shape = (weight.shape[1], experts.shape[0], source.shape[2], 1)
    return Tensor("mul_mat_id", shape, "f32", (weight, source, experts))


def get_rows(source: Tensor, rows: Tensor) -> Tensor:
    a, b, c, _ = rows.shape
    type_ = "i32" if source.type == "i32" else "f32"
    return Tensor("get_rows", (source.shape[0], a, b, c), type_, (source, rows))


def set_rows(target: Tensor, source: Tensor, rows: Tensor) -> Tensor:
    """Rows written into a cache: a view of it."""
    return Tensor(
        "set_rows",
        target.shape,
        target.type,
        (source, rows, target),
        root=target.root or target,
        size=0,
        place=target.place,
    )


def cpy(source: Tensor, target: Tensor) -> Tensor:
    """A copy into a cache: a view of it."""
    return Tensor(
        "cpy",
        target.shape,
        target.type,
        (source, target),
        root=target.root or target,
        size=0,
        place=target.place,
    )


def concat(a: Tensor, b: Tensor, dimension: int) -> Tensor:
    sizes = list(a.shape)
    sizes[dimension] += b.shape[dimension]
    return Tensor("concat", shape4(*sizes), a.type, (a, b))


def repeat(source: Tensor, *sizes: int) -> Tensor:
    return Tensor("repeat", shape4(*sizes), source.type, (source,))


def sum_rows(source: Tensor) -> Tensor:
    _, b, c, d = source.shape
    return Tensor("sum_rows", (1, b, c, d), source.type, (source,))


def glu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """A gated unit; without `up` the two halves of `gate`."""
    if up is not None:
        return Tensor("glu", gate.shape, gate.type, (gate, up))
    a, b, c, d = gate.shape
    return Tensor("glu", (a // 2, b, c, d), gate.type, (gate,))


def top_k(source: Tensor, count: int) -> Tensor:
    """ggml_argsort_top_k: all indices are sorted, a view shows the first."""
    order = Tensor("argsort", source.shape, "i32", (source,))
    _, b, c, d = source.shape
    return view(order, count, b, c, d)
