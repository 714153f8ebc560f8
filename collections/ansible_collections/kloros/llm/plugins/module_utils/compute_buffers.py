# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""How much each backend reserves to compute a graph: ggml's scheduler and allocator, replayed.

Source: llama.cpp v0.5.0-dev, `ggml/src/ggml-backend.cpp` (ggml_backend_sched_split_graph),
`ggml/src/ggml-alloc.c` (ggml_gallocr_alloc_graph_impl, ggml_dyn_tallocr_alloc) and
`ggml/src/ggml-cuda/ggml-cuda.cu` (offload_op, get_alloc_size). As in the engine's own dry run,
norms are not pinned to their layer's device: ggml_backend_sched_reserve_size forgets such wishes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .compute_graph import INPLACE_OPS, TYPES, VIEW_OPS, Graph, Tensor

_OFFLOAD_BATCH = 32  # ggml-cuda.cu op_offload_min_batch_size
_ENDLESS = 1 << 62


@dataclass(frozen=True)
class Backends:
    """`devices` CUDA devices, in order of priority, and the CPU after them.

    `copies`: 4 where several devices work as a pipeline, else 1 (GGML_SCHED_MAX_COPIES).
    `cuda`: the devices size tensors as CUDA does; False: as a plain buffer.
    """

    devices: int
    copies: int = 1
    op_offload: bool = True
    cuda: bool = True

    @property
    def cpu(self) -> int:
        return self.devices


def _quantised(type_: str) -> bool:
    return TYPES.get(type_, (1, 32))[1] > 1


class _Pool:
    """One buffer: ggml_dyn_tallocr with a single chunk."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free: list[list[int]] = [[0, _ENDLESS]]
        self.peak = 0

    def padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        size = self.padded(size)
        best = -1
        best_size = _ENDLESS
        for index in range(len(self.free) - 1):
            room = self.free[index][1]
            if size <= room <= best_size:
                best, best_size = index, room
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if not block[1]:
            del self.free[best]
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        size = self.padded(size)
        free = self.free
        for index, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += size
                if index + 1 < len(free) and block[0] + block[1] == free[index + 1][0]:
                    block[1] += free[index + 1][1]
                    del free[index + 1]
                return
            if offset + size == block[0]:
                block[0] = offset
                block[1] += size
                if index and free[index - 1][0] + free[index - 1][1] == offset:
                    free[index - 1][1] += block[1]
                    del free[index]
                return
        position = next((i for i, block in enumerate(free) if block[0] >= offset), len(free))
        free.insert(position, [offset, size])


@dataclass
class _Split:
    """Nodes computed on one backend without a break, and what is copied to it before."""

    backend: int
    start: int
    inputs: list[Tensor] = field(default_factory=list)


def _batch(node: Tensor) -> int:
    if node.op == "get_rows":
        return 0
    if node.op == "mul_mat":
        return node.shape[1]
    if node.op in {"mul_mat_id", "rope"}:
        return node.shape[2]
    return node.elements // max(node.shape[0], 1)


class _Scheduler:
    """Assigns the nodes of a graph to backends and lists what is allocated, in order.

    `pins`: wishes count; when sizes are measured they do not (see the head of this file).
    """

    def __init__(self, graph: Graph, backends: Backends, *, pins: bool = False) -> None:
        self.pins = pins
        self.graph = graph
        self.backends = backends
        self.cpu = backends.cpu
        self.of: dict[int, int] = {}
        self.copied: dict[tuple[int, int], Tensor] = {}
        self.sources: dict[int, tuple[Tensor, ...]] = {}
        self.splits: list[_Split] = []
        self.keep: list[Tensor] = []

    def _supported(self, tensor: Tensor, backend: int) -> bool:
        """Can the backend read the tensor where it is? The CPU reads main memory only."""
        place = tensor.place
        if place is None:
            place = self.of.get(id(tensor))
        if place is None and tensor.root is not None:
            place = self.of.get(id(tensor.root))
        return place == backend

    def _supports(self, backend: int, node: Tensor) -> bool:
        """A device refuses what lies on another device; main memory is copied to it.

        It does not look behind a view, which has no buffer of its own yet.
        """
        return backend == self.cpu or not any(
            source.root is None
            and source.place is not None
            and source.place not in (self.cpu, backend)
            for source in node.sources
        )

    def _first(self, node: Tensor) -> int | None:
        """Where a node must or should run, without regard to its neighbours."""
        if self.pins and node.pinned is not None:
            return node.pinned
        if node.place is not None:
            return node.place
        if node.is_input:
            return self.cpu
        if node.op in {"rope", "flash_attn"}:
            return None
        weight = next((source for source in node.sources if source.weight), None)
        return None if weight is None else self._beside(weight, node)

    def _beside(self, weight: Tensor, node: Tensor) -> int | None:
        """Where the weight is, or the device that large batches are sent to."""
        if weight.place == self.cpu and self.backends.op_offload and _batch(node) >= _OFFLOAD_BATCH:
            for device in range(self.backends.devices):
                if self._supports(device, node):
                    return device
        return weight.place

    def _expand(self, nodes: list[Tensor], *, skip_cpu: bool) -> None:
        current: int | None = None
        of = self.of
        for node in nodes:
            if node.op in VIEW_OPS:
                continue
            known = of.get(id(node))
            if known is not None:
                current = None if skip_cpu and known == self.cpu else known
            elif current is not None and self._supports(current, node):
                of[id(node)] = current

    def assign(self) -> None:
        """Passes 1 to 4 of ggml_backend_sched_split_graph."""
        nodes = self.graph.nodes
        for tensor in (*self.graph.leafs, *nodes):
            backend = self._first(tensor)
            if backend is not None:
                self.of[id(tensor)] = backend
        backwards = nodes[::-1]
        for skip_cpu in (True, False):
            self._expand(nodes, skip_cpu=skip_cpu)
            self._expand(backwards, skip_cpu=skip_cpu)
        for node in nodes:
            if node.op not in VIEW_OPS and id(node) not in self.of:
                self.of[id(node)] = self._best(node)
        for node in nodes:
            self._inherit(node)

    def _best(self, node: Tensor) -> int:
        """The backend that reads most of the sources where they are."""
        able = [backend for backend in range(self.cpu + 1) if self._supports(backend, node)]
        return max(
            able,
            key=lambda backend: sum(self._supported(source, backend) for source in node.sources),
        )

    def _inherit(self, node: Tensor) -> None:
        """Views go with what they look at, other sources with the node that uses them."""
        of = self.of
        if node.root is not None and id(node) not in of and id(node.root) in of:
            of[id(node)] = of[id(node.root)]
        for source in node.sources:
            if id(source) in of:
                continue
            root = source.root
            if root is not None and id(root) in of:
                of[id(source)] = of[id(root)]
            elif id(node) in of:
                of[id(source)] = of[id(node)]
        of.setdefault(id(node), 0)

    def split(self) -> None:
        of = self.of
        nodes = self.graph.nodes
        current: _Split | None = None
        for index, node in enumerate(nodes):
            if node.op in VIEW_OPS:
                continue
            backend = of[id(node)]
            if current is None:
                current = _Split(backend, 0)
                self.splits.append(current)
            fresh = backend != current.backend or (
                bool(current.inputs)
                and any(
                    source.weight and not self._supported(source, backend)
                    for source in node.sources
                )
            )
            if fresh:
                current = _Split(backend, index)
                self.splits.append(current)
            changed: list[Tensor] = []
            for source in node.sources:
                if of[id(source)] == backend or self._supported(source, backend):
                    changed.append(source)
                    continue
                key = (id(source), backend)
                if key not in self.copied:
                    size = source.size if source.root is None else source.span
                    copy = Tensor("none", source.shape, source.type, size=size)
                    if self.backends.copies > 1:
                        copy.is_input = copy.is_output = True
                    self.copied[key] = copy
                    current.inputs.append(source)
                changed.append(self.copied[key])
            self.sources[id(node)] = tuple(changed)

    def plan(self) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
        """Leaves and nodes in the allocator's order, each with its backend."""
        self.assign()
        self.split()
        of = self.of
        nodes = self.graph.nodes
        order: list[tuple[Tensor, int]] = []
        leafs: list[tuple[Tensor, int]] = []
        copies = self.backends.copies
        if copies > 1:
            for leaf in self.graph.leafs:
                if leaf.is_input:
                    leaf.is_output = True
                    leafs.append((leaf, of[id(leaf)]))
                    leafs += [(self._twin(leaf), of[id(leaf)]) for _ in range(copies - 1)]
        ends = [split.start for split in self.splits[1:]] + [len(nodes)]
        for split, end in zip(self.splits, ends, strict=True):
            for source in split.inputs:
                copy = self.copied[id(source), split.backend]
                dependency = Tensor(
                    "none", source.shape, source.type, (source,), root=source.root or source, size=0
                )
                self.keep.append(dependency)
                order.append((dependency, of[id(source)]))
                order.append((copy, split.backend))
                if copies > 1:
                    leafs.append((copy, split.backend))
                    leafs += [(self._twin(copy), split.backend) for _ in range(copies - 1)]
            order += [(node, of[id(node)]) for node in nodes[split.start : end]]
        leafs += [(leaf, of[id(leaf)]) for leaf in self.graph.leafs if id(leaf) in of]
        return leafs, order

    def _twin(self, tensor: Tensor) -> Tensor:
        twin = Tensor("none", tensor.shape, tensor.type, size=tensor.size)
        self.keep.append(twin)
        return twin


class _Allocator:
    """ggml_gallocr: gives each tensor of a graph room for as long as it is needed."""

    def __init__(self, backends: Backends, sources: dict[int, tuple[Tensor, ...]]) -> None:
        self.backends = backends
        self.sources = sources
        device_alignment = 128
        self.pools = [
            *(_Pool(device_alignment) for _ in range(backends.devices)),
            _Pool(32),
        ]
        self.children: dict[int, int] = defaultdict(int)
        self.views: dict[int, int] = defaultdict(int)
        self.owned: dict[int, tuple[int, int]] = {}
        self.seen: set[int] = set()

    def _of(self, node: Tensor) -> tuple[Tensor, ...]:
        return self.sources.get(id(node), node.sources)

    def _size(self, tensor: Tensor, backend: int) -> int:
        size = tensor.size
        if backend == self.backends.cpu or not self.backends.cuda:
            return size
        if tensor.op == "flash_attn":
            _, key, value = self._of(tensor)[:3]
            # The kernel for large batches reads f16: room for converted caches.
            if key.type != "f16":
                size = -(-size // 128) * 128 + key.elements * 2
            if value.type != "f16" and value.root is not key.root:
                size = -(-size // 128) * 128 + value.elements * 2
        elif _quantised(tensor.type):
            rest = tensor.shape[0] % 512
            if rest:
                rows = max(tensor.elements // tensor.shape[0], 1)
                size += size // rows * (512 - rest) // tensor.shape[0]
        return size

    def place(self, node: Tensor, backend: int) -> None:
        key = id(node)
        if node.place is not None or node.root is not None or key in self.owned:
            return
        if node.op in INPLACE_OPS:
            for parent in self._of(node):
                held = self.owned.get(id(parent))
                if (
                    held is not None
                    and not parent.is_output
                    and parent.shape == node.shape
                    and parent.type == node.type
                    and self.children[id(parent)] == 1
                    and self.views[id(parent)] == 0
                ):
                    self.owned[key] = held
                    del self.owned[id(parent)]
                    before = self.pools[held[0]].padded(self._size(parent, held[0]))
                    after = self.pools[held[0]].padded(self._size(node, held[0]))
                    if before > after:
                        self.pools[held[0]].give(held[1] + after, before - after)
                    return
        self.owned[key] = backend, self.pools[backend].take(self._size(node, backend))

    def _release(self, tensor: Tensor) -> None:
        if tensor.is_output:
            return
        held = self.owned.pop(id(tensor), None)
        if held is not None:
            self.pools[held[0]].give(held[1], self._size(tensor, held[0]))

    def _count(self, order: list[tuple[Tensor, int]]) -> None:
        """Users and views of each tensor; inputs are placed now, not to be overwritten."""
        for node, backend in order:
            if node.root is not None and node.op != "none":
                self.views[id(node.root)] += 1
            if node.is_input:
                self.place(node, backend)
            for source in self._of(node):
                self.children[id(source)] += 1
                if source.is_input:
                    self.place(source, backend)

    def _used(self, source: Tensor) -> None:
        """One user less: frees what nobody needs any more."""
        children, views = self.children, self.views
        key = id(source)
        children[key] -= 1
        if children[key] or views[key]:
            return
        root = source.root
        if root is None:
            self._release(source)
            return
        views[id(root)] -= 1
        if not views[id(root)] and not children[id(root)]:
            self._release(root)

    def run(self, leafs: list[tuple[Tensor, int]], order: list[tuple[Tensor, int]]) -> list[int]:
        """ggml_gallocr_alloc_graph_impl: the peak of each buffer."""
        for leaf, backend in leafs:
            self.place(leaf, backend)
        self._count(order)
        for node, backend in order:
            sources = self._of(node)
            for source in sources:
                self.place(source, backend)
            self.place(node, backend)
            for source in sources:
                self._used(source)
        return [pool.peak for pool in self.pools]


def attention_backends(graph: Graph, backends: Backends) -> dict[int, int]:
    """On which backend each layer's flash attention would run."""
    scheduler = _Scheduler(graph, backends, pins=True)
    scheduler.assign()
    return {node.layer: scheduler.of[id(node)] for node in graph.nodes if node.op == "flash_attn"}


def compute_buffers(graph: Graph, backends: Backends) -> list[int]:
    """Bytes that each backend reserves for the graph, the CPU's last."""
    scheduler = _Scheduler(graph, backends)
    if backends.devices == 0:
        return _Allocator(backends, {}).run(
            [(leaf, 0) for leaf in graph.leafs], [(node, 0) for node in graph.nodes]
        )
    leafs, order = scheduler.plan()
    return _Allocator(backends, scheduler.sources).run(leafs, order)
