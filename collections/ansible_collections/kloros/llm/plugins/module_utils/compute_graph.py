# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""ggml's graphs without the numbers: tensors with shapes and sizes, in the order they are computed.

Enough of ggml to know how much memory a graph takes. Source: llama.cpp v0.5.0-dev,
`ggml/src/ggml.c` (shapes of results, ggml_visit_parents_graph) and `ggml-impl.h`.
"""

from __future__ import annotations

from math import prod

Shape = tuple[int, int, int, int]

# Of the graphs that are followed none has a tenth; a hostile header could ask for millions.
MAX_NODES = 40_000

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
    a, b, c, d = (*sizes, 1, 1, 1, 1)[:4]
    return a, b, c, d


def _contiguous(shape: Shape, type_: str) -> Shape:
    block_bytes, block = TYPES.get(type_, (1, 1))
    row = shape[0] // block * block_bytes
    return block_bytes, row, row * shape[1], row * shape[1] * shape[2]


class Tensor:
    """One tensor: `op` "none" is a leaf; `root` the tensor that a view looks at.

    `place`: the backend whose buffer holds it already (weights, caches), None if the graph's
    allocator gives it room; `weight`: that buffer holds weights. `strides` in bytes as ggml's `nb`.
    `pinned`: a backend that llama.cpp wishes it to run on; `layer`: of an attention, which one.
    """

    __slots__ = (
        "is_input",
        "is_output",
        "layer",
        "op",
        "pinned",
        "place",
        "root",
        "shape",
        "size",
        "sources",
        "strides",
        "type",
        "weight",
    )

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
        strides: Shape | None = None,
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
        self.strides = strides or _contiguous(shape, type_)
        self.pinned: int | None = None
        self.layer = -1

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """ggml_nbytes: from the first to the last byte, gaps of a view included."""
        if not all(self.shape):
            return 0
        block_bytes, block = TYPES.get(self.type, (1, 1))
        if block == 1:
            size = block_bytes
            for count, stride in zip(self.shape, self.strides, strict=True):
                size += (count - 1) * stride
            return size
        size = self.shape[0] * self.strides[0] // block
        for count, stride in zip(self.shape[1:], self.strides[1:], strict=True):
            size += (count - 1) * stride
        return size


class GraphTooLargeError(Exception):
    """No model's graph has so many nodes."""


class Graph:
    """Nodes and leaves in ggml's order: a tensor's sources before it, left to right.

    Raises GraphTooLargeError beyond MAX_NODES.
    """

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
        if len(self.nodes) > MAX_NODES:
            raise GraphTooLargeError(f"a graph of more than {MAX_NODES} nodes")
        return tensor


def new_input(type_: str, *sizes: int) -> Tensor:
    """A tensor that is filled from outside before each run."""
    return Tensor("none", shape4(*sizes), type_, is_input=True)


def view(source: Tensor, *sizes: int, op: str = "view", strides: Shape | None = None) -> Tensor:
    """A view with another shape, without gaps unless `strides` are given; it takes no memory."""
    return Tensor(
        op,
        shape4(*sizes),
        source.type,
        (source,),
        root=source.root or source,
        size=0,
        place=source.place,
        strides=strides,
    )


def columns(source: Tensor, *inner: int) -> Tensor:
    """Some columns of each row, those split up into `inner` dimensions."""
    sizes = [*inner, *source.shape[1:]][:4]
    strides = [source.strides[0]]
    for size in inner[:-1]:
        strides.append(strides[-1] * size)
    strides += source.strides[1:]
    a, b, c, d = strides[:4]
    return view(source, *sizes, strides=(a, b, c, d))


def reshape(source: Tensor, *sizes: int) -> Tensor:
    return view(source, *sizes, op="reshape")


def permute(source: Tensor, a: int, b: int, c: int, d: int) -> Tensor:
    """Dimension 0 becomes dimension `a`, and so on."""
    sizes = [0, 0, 0, 0]
    strides = [0, 0, 0, 0]
    for position, to in enumerate((a, b, c, d)):
        sizes[to] = source.shape[position]
        strides[to] = source.strides[position]
    e, f, g, h = strides
    return view(source, *sizes, op="permute", strides=(e, f, g, h))


def transpose(source: Tensor) -> Tensor:
    a, b, c, d = source.shape
    e, f, g, h = source.strides
    return view(source, b, a, c, d, op="transpose", strides=(f, e, g, h))


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
    return columns(Tensor("argsort", source.shape, "i32", (source,)), count)
