"""The scheduler and the allocator of ggml, replayed on graphs small enough to do by hand."""

from __future__ import annotations

from ansible_collections.kloros.llm.plugins.module_utils.compute_buffers import (
    Backends,
    attention_backends,
    compute_buffers,
)
from ansible_collections.kloros.llm.plugins.module_utils.compute_graph import (
    Graph,
    Tensor,
    columns,
    cont,
    get_rows,
    like,
    mul_mat,
    new_input,
    permute,
    transpose,
    view,
)

CPU = Backends(devices=0)
ROW = 64 * 4  # bytes of 64 floats


def weight(rows: int, place: int, columns_: int = 64) -> Tensor:
    return Tensor("none", (columns_, rows, 1, 1), "f32", place=place, weight=True)


def graph_of(*results: Tensor) -> Graph:
    graph = Graph()
    for result in results:
        graph.expand(result)
    return graph


def test_sources_come_before_what_they_are_used_for() -> None:
    first, second = new_input("f32", 64), new_input("f32", 64)
    left, right = like("scale", first), like("sqr", second)
    total = like("add", left, right)
    graph = graph_of(total, left)
    assert graph.leafs == [first, second]
    assert graph.nodes == [left, right, total]


def test_an_operation_in_place_takes_no_more() -> None:
    source = new_input("f32", 64, 10)
    chain = like("scale", like("rms_norm", like("scale", source)))
    assert compute_buffers(graph_of(chain), CPU) == [10 * ROW]


def test_what_is_used_again_is_not_overwritten() -> None:
    source = new_input("f32", 64, 10)
    scaled = like("scale", source)
    graph = graph_of(like("add", like("sqr", scaled), scaled))
    assert compute_buffers(graph, CPU) == [20 * ROW]


def test_a_view_keeps_what_it_looks_at() -> None:
    source = like("scale", new_input("f32", 64, 10))
    half = columns(source, 32)
    squared = like("sqr", source)
    graph = graph_of(squared, cont(half))
    # source, squared, and the copied half at the end
    assert compute_buffers(graph, CPU) == [25 * ROW]


def test_room_is_used_again_where_it_fits_best() -> None:
    matrix = weight(64, 0)
    first = mul_mat(matrix, new_input("f32", 64, 8))
    second = mul_mat(matrix, first)
    third = mul_mat(matrix, second)
    # the input's room is taken by the second result, the first one's by the third
    assert compute_buffers(graph_of(third), CPU) == [16 * ROW]


def test_an_output_is_never_freed() -> None:
    matrix = weight(64, 0)
    first = mul_mat(matrix, new_input("f32", 64, 8))
    second = mul_mat(matrix, first)
    graph = graph_of(mul_mat(matrix, second))
    first.is_output = True
    assert compute_buffers(graph, CPU) == [24 * ROW]


def test_rooms_are_aligned() -> None:
    small = new_input("i32", 3)
    graph = graph_of(get_rows(weight(10, 0), small))
    assert compute_buffers(graph, CPU) == [32 + 3 * ROW]


def test_an_input_is_copied_to_the_device_that_needs_it() -> None:
    backends = Backends(devices=1)
    graph = graph_of(mul_mat(weight(64, 0), new_input("f32", 64, 8)))
    assert compute_buffers(graph, backends) == [16 * ROW, 8 * ROW]


def test_a_pipeline_keeps_four_copies() -> None:
    backends = Backends(devices=1, copies=4)
    graph = graph_of(mul_mat(weight(64, 0), new_input("f32", 64, 8)))
    assert compute_buffers(graph, backends) == [(4 * 8 + 8) * ROW, 4 * 8 * ROW]


def test_large_batches_go_to_the_device_and_their_weights_with_them() -> None:
    backends = Backends(devices=1)
    matrix = weight(64, 1)
    few = graph_of(mul_mat(matrix, new_input("f32", 64, 31)))
    assert compute_buffers(few, backends) == [0, 62 * ROW]
    many = graph_of(mul_mat(weight(64, 1), new_input("f32", 64, 32)))
    assert compute_buffers(many, backends) == [(64 + 32 + 32) * ROW, 32 * ROW]
    stays = Backends(devices=1, op_offload=False)
    again = graph_of(mul_mat(weight(64, 1), new_input("f32", 64, 32)))
    assert compute_buffers(again, stays) == [0, 64 * ROW]


def test_a_view_with_gaps_is_copied_with_them() -> None:
    wide = mul_mat(weight(128, 1), new_input("f32", 64, 8))
    half = columns(wide, 64)
    graph = graph_of(mul_mat(weight(16, 0), half))
    gap = 64 * 4
    copied = 8 * 2 * ROW - gap
    assert compute_buffers(graph, Backends(devices=1)) == [
        copied + 8 * 16 * 4,
        (8 + 16) * ROW,
    ]


def attention(cache_place: int, type_: str = "f16") -> tuple[Graph, Tensor]:
    query = mul_mat(weight(64, 0), new_input("f32", 64, 2))
    cache = Tensor("none", (64, 256, 1, 1), type_, place=cache_place)
    key = permute(view(cache, 64, 1, 256), 0, 2, 1, 3)
    value = permute(view(cache, 64, 1, 256), 0, 2, 1, 3)
    current = Tensor("flash_attn", (64, 1, 2, 1), "f32", (query, key, value))
    current.layer = 0
    return graph_of(mul_mat(weight(64, 0), view(current, 64, 2))), current


def test_attention_runs_between_what_is_on_the_device() -> None:
    graph, _ = attention(0)
    assert attention_backends(graph, Backends(devices=1)) == {0: 0}


def test_cuda_converts_a_quantised_cache_beside_the_result() -> None:
    plain = compute_buffers(attention(0)[0], Backends(devices=1))[0]
    quantised = compute_buffers(attention(0, "q8_0")[0], Backends(devices=1))[0]
    assert quantised - plain >= 64 * 256 * 2
    assert compute_buffers(attention(0, "q8_0")[0], Backends(devices=1, cuda=False))[0] == plain


def test_transposing_changes_nothing_but_the_way() -> None:
    source = like("scale", new_input("f32", 64, 10))
    turned = transpose(source)
    assert turned.shape == (10, 64, 1, 1)
    assert turned.span == source.span == 10 * ROW
