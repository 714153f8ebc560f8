"""The GGUF reader against the PyPI package `gguf`, and against input that is wrong."""

from __future__ import annotations

import io
import math
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gguf_bytes import FileBytes, MemoryBytes
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import (
    GgufHeader,
    GgufTensor,
    SkippedArray,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import (
    GgufError,
    Limits,
    read_header,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_types import (
    GGML_TYPES,
    REMOVED_GGML_TYPES,
    file_type_name,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.gguf_maker import (
    ARRAY,
    BOOL,
    F64,
    I32,
    STRING,
    TYPE_IDS,
    U8,
    U32,
    GgufMaker,
    gemma_27b,
    qwen2_32b,
)

MIB = 1024 * 1024
# gguf-py still has an older Q8_1 of 40 bytes; ggml-common.h says two halves and 32 bytes. No file
# holds that type: it is for products only.
REFERENCE_SIZES = {
    kind: sizes
    for kind, sizes in gguf.GGML_QUANT_SIZES.items()
    if kind is not gguf.GGMLQuantizationType.Q8_1
}


def read(content: bytes, limits: Limits | None = None) -> GgufHeader:
    return read_header(MemoryBytes(content), limits)


class CountedBytes:
    """A file in memory that counts what is read of it."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)
        self.size_bytes: int | None = len(content)
        self.description = "counted"
        self.read_bytes = 0
        self.reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        content = self._stream.read(length)
        self.read_bytes += len(content)
        self.reads += 1
        return content

    def close(self) -> None:
        self._stream.close()


# against the reference


def assert_like_the_reference(path: Path) -> GgufHeader:
    """Compare everything with gguf-py's reader."""
    reference = gguf.GGUFReader(path)
    with FileBytes(path) as source:
        header = read_header(source)
    if header.tensors:  # else llama.cpp does not align, and gguf-py does
        assert header.data_offset == reference.data_offset
    assert header.alignment == reference.alignment
    assert header.byte_order == ("big" if reference.endianess == gguf.GGUFEndian.BIG else "little")
    assert header.tensors == tuple(
        GgufTensor(
            tensor.name,
            tuple(int(length) for length in tensor.shape),
            tensor.tensor_type.name,
            tensor.data_offset - reference.data_offset,
            tensor.n_bytes,
        )
        for tensor in reference.tensors
    )
    fields = {
        name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")
    }
    assert list(header.metadata) == list(fields)
    for name, field in fields.items():
        found, wanted = header.metadata[name], field.contents()
        if isinstance(found, SkippedArray):
            assert found.length == len(wanted)
        else:
            assert same(found, wanted), name
            assert type(found) is type(wanted)
    return header


def same(one: Any, other: Any) -> bool:
    """Equal, with NaN equal to itself."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def written(
    path: Path,
    endianess: gguf.GGUFEndian,
    fill: Callable[[gguf.GGUFWriter], None],
) -> None:
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fill_with_everything(writer: gguf.GGUFWriter) -> None:
    writer.add_custom_alignment(64)
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 1.5)
    writer.add_float64("f64", math.pi)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "Grüße, 世界 🦙")
    writer.add_array("llama.attention.head_count_kv", [8, 0, 8, 0])
    writer.add_array("pattern", [True, False, True])
    writer.add_array("floats", [0.25, -0.5])
    writer.add_array("tags", ["a", "", "ü"])
    writer.add_array("tokens", [f"token {number}" for number in range(300)])
    writer.add_array("scores", [float(number) for number in range(5000)])
    for type_id, (_, size) in REFERENCE_SIZES.items():
        data = np.zeros((3, 2 * size), dtype=np.uint8)
        writer.add_tensor(f"tensor.{type_id.name}", data, raw_dtype=type_id)
    writer.add_tensor("four", np.zeros((2, 3, 5, 7), dtype=np.float32))
    writer.add_tensor("one", np.zeros(1, dtype=np.float16))


@pytest.mark.parametrize("endianess", [gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG])
@pytest.mark.parametrize("version", [2, 3])
def test_everything_that_the_reference_writes(
    tmp_path: Path, endianess: gguf.GGUFEndian, version: int
) -> None:
    path = tmp_path / "model.gguf"
    written(path, endianess, fill_with_everything)
    order = "<" if endianess == gguf.GGUFEndian.LITTLE else ">"
    with path.open("r+b") as stream:  # versions 2 and 3 differ in nothing but their number
        stream.seek(4)
        stream.write(struct.pack(f"{order}I", version))
    header = assert_like_the_reference(path)
    assert header.version == version
    assert header.metadata["llama.attention.head_count_kv"] == [8, 0, 8, 0]
    assert header.metadata["tokens"] == SkippedArray("str", 300)
    assert header.metadata["scores"] == SkippedArray("f32", 5000)
    assert header.data_offset + header.data_bytes <= path.stat().st_size


def test_types_are_those_of_the_reference() -> None:
    for type_id, (block, size) in REFERENCE_SIZES.items():
        ours = GGML_TYPES[int(type_id)]
        assert (ours.name, ours.block_elements, ours.block_bytes) == (type_id.name, block, size)


def test_removed_types_keep_their_names() -> None:
    assert {4: "Q4_2", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}.items() <= REMOVED_GGML_TYPES.items()
    assert sorted(GGML_TYPES | REMOVED_GGML_TYPES) == list(range(43))


def test_file_types_are_those_of_the_reference() -> None:
    for file_type in gguf.LlamaFileType:
        if file_type is not gguf.LlamaFileType.GUESSED:
            assert file_type_name(int(file_type)) == file_type.name.partition("_")[2]
            assert file_type_name(int(file_type) | 1024) == file_type_name(int(file_type))
    assert file_type_name(4) is None
    assert file_type_name(-1) is None


# Single characters that UTF-8 can hold, without the empty key that the format forbids.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(bool).filter(lambda name: not name.startswith(("GGUF.", "general.")))
scalars: dict[gguf.GGUFValueType, st.SearchStrategy[Any]] = {
    gguf.GGUFValueType.UINT8: st.integers(0, 2**8 - 1),
    gguf.GGUFValueType.INT8: st.integers(-(2**7), 2**7 - 1),
    gguf.GGUFValueType.UINT16: st.integers(0, 2**16 - 1),
    gguf.GGUFValueType.INT16: st.integers(-(2**15), 2**15 - 1),
    gguf.GGUFValueType.UINT32: st.integers(0, 2**32 - 1),
    gguf.GGUFValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    gguf.GGUFValueType.UINT64: st.integers(0, 2**64 - 1),
    gguf.GGUFValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    gguf.GGUFValueType.FLOAT32: st.floats(width=32),
    gguf.GGUFValueType.FLOAT64: st.floats(),
    gguf.GGUFValueType.BOOL: st.booleans(),
    gguf.GGUFValueType.STRING: texts,
}


@st.composite
def values(draw: st.DrawFn) -> tuple[gguf.GGUFValueType, gguf.GGUFValueType | None, Any]:
    kind = draw(st.sampled_from(sorted(scalars)))
    if draw(st.booleans()):
        return kind, None, draw(scalars[kind])
    elements = draw(st.lists(scalars[kind], min_size=1, max_size=80))
    return gguf.GGUFValueType.ARRAY, kind, elements


@st.composite
def tensors(draw: st.DrawFn) -> tuple[gguf.GGMLQuantizationType, tuple[int, ...]]:
    kind = draw(st.sampled_from(sorted(REFERENCE_SIZES)))
    block, _ = REFERENCE_SIZES[kind]
    outer = draw(st.lists(st.integers(1, 3), max_size=3))
    return kind, (*outer, block * draw(st.integers(1, 3)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    endianess=st.sampled_from(list(gguf.GGUFEndian)),
    metadata=st.dictionaries(names, values(), max_size=6),
    contents=st.dictionaries(texts, tensors(), max_size=5),
)
def test_random_files_read_as_the_reference_reads_them(
    endianess: gguf.GGUFEndian,
    metadata: dict[str, Any],
    contents: dict[str, Any],
) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for key, (kind, element_kind, value) in metadata.items():
            writer.add_key_value(key, value, kind, element_kind)
        for name, (kind, shape) in contents.items():
            block, size = REFERENCE_SIZES[kind]
            data = np.zeros((*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
            writer.add_tensor(name, data, raw_dtype=kind)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        written(path, endianess, fill)
        assert_like_the_reference(path)


# what is kept


def small(order: Literal["<", ">"] = "<") -> GgufMaker:
    maker = GgufMaker(order)
    maker.string("general.architecture", "llama")
    maker.number("llama.block_count", U32, 1)
    maker.numbers("llama.attention.head_count_kv", I32, [2])
    maker.strings("tokenizer.ggml.tokens", ["a", "b"])
    maker.tensor("token_embd.weight", (32, 2), "Q8_0")
    maker.tensor("output.weight", (32, 2), "F16")
    return maker


def test_arrays_are_kept_up_to_their_limits() -> None:
    maker = GgufMaker()
    maker.numbers("kept", I32, list(range(4096)))
    maker.numbers("skipped", I32, list(range(4097)))
    maker.strings("kept strings", map(str, range(64)))
    maker.strings("skipped strings", map(str, range(65)))
    maker.numbers("empty", F64, [])
    maker.strings("empty strings", [])
    maker.number("last", BOOL, 2)
    assert read(maker.file()).metadata == {
        "kept": list(range(4096)),
        "skipped": SkippedArray("i32", 4097),
        "kept strings": [str(number) for number in range(64)],
        "skipped strings": SkippedArray("str", 65),
        "empty": [],
        "empty strings": [],
        "last": True,
    }


def test_a_chat_template_is_kept_and_a_huge_text_is_counted() -> None:
    maker = GgufMaker()
    maker.string("tokenizer.chat_template", "x" * MIB)
    maker.string("tokenizer.huggingface.json", "x" * (MIB + 1))
    maker.strings("one huge", ["a", "x" * (MIB + 1)])
    maker.string("last", "here")
    assert read(maker.file()).metadata == {
        "tokenizer.chat_template": "x" * MIB,
        "tokenizer.huggingface.json": SkippedArray("char", MIB + 1),
        "one huge": SkippedArray("str", 2),
        "last": "here",
    }


def test_many_texts_and_arrays_are_counted_once_enough_are_held() -> None:
    maker = GgufMaker()
    for number in range(4):
        maker.string(f"text {number}", "abcd")
        maker.numbers(f"numbers {number}", U8, [1, 2, 3])
        maker.strings(f"strings {number}", [])
    found = read(maker.file(), Limits(texts_bytes=9, values=7)).metadata
    assert [found[f"text {number}"] for number in range(4)] == [
        "abcd",
        "abcd",
        SkippedArray("char", 4),
        SkippedArray("char", 4),
    ]
    assert found["numbers 1"] == [1, 2, 3]
    assert found["numbers 2"] == SkippedArray("u8", 3)


def test_text_that_is_no_utf8_is_read_all_the_same() -> None:
    maker = GgufMaker()
    maker.string("general.name", b"caf\xe9")
    maker.key(b"odd\xff", STRING, maker.text("x"))
    maker.key(b"odd\xfe", STRING, maker.text("y"))
    assert read(maker.file()).metadata == {
        "general.name": "caf\N{REPLACEMENT CHARACTER}",
        "odd\\xff": "x",
        "odd\\xfe": "y",
    }


def test_a_scalar_tensor_has_one_element() -> None:
    maker = small()
    maker.tensor("scale", (), "F32")
    assert read(maker.file()).tensors[-1] == GgufTensor("scale", (), "F32", 224, 4)


def test_without_tensors_nothing_is_aligned() -> None:
    maker = GgufMaker()
    maker.string("general.type", "model")
    header = read(maker.file())
    assert header.data_offset == len(maker.file())
    assert header.data_bytes == 0


def test_of_a_part_of_a_file_only_the_header_is_checked() -> None:
    maker = small()
    with pytest.raises(GgufError, match="it is cut short"):
        read(maker.header())
    source = MemoryBytes(maker.header(), size_bytes=None)
    assert len(read_header(source).tensors) == 2


@pytest.mark.parametrize(("make", "strings"), [(qwen2_32b, 303_451), (gemma_27b, 262_144)])
def test_a_real_vocabulary_is_read_once_and_not_held(
    make: Callable[[], GgufMaker], strings: int
) -> None:
    source = CountedBytes(make().header())
    assert source.size_bytes
    size_bytes, source.size_bytes = source.size_bytes, None
    tracemalloc.start()
    try:
        header = read_header(source)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    skipped = [
        value
        for value in header.metadata.values()
        if isinstance(value, SkippedArray) and value.element_type == "str"
    ]
    assert sum(array.length for array in skipped) == strings
    assert peak_bytes < 6 * MIB
    # What straddles two chunks is read twice: one string at most.
    assert source.read_bytes <= size_bytes + source.reads * 64
    assert source.reads <= size_bytes / (256 * 1024) + 2


# what is refused


def edited(change: Callable[[GgufMaker], object], order: Literal["<", ">"] = "<") -> bytes:
    maker = small(order)
    change(maker)
    return maker.file()


def lie(**facts: Any) -> Callable[[GgufMaker], None]:
    def change(maker: GgufMaker) -> None:
        for name, value in facts.items():
            setattr(maker, name, value)

    return change


def array_head(maker: GgufMaker, type_id: int, length: int) -> None:
    maker.key("liar", ARRAY, maker.pack("IQ", type_id, length))


F32_ID = TYPE_IDS["F32"]
REFUSED: dict[str, tuple[Callable[[GgufMaker], object], str]] = {
    "not GGUF": (lie(magic=b"GGML"), "byte 0: this is no GGUF file: it begins with b'GGML'"),
    "web page": (lie(magic=b"<!DO"), "perhaps a web page"),
    "LFS pointer": (lie(magic=b"vers"), "Git LFS"),
    "zeros": (lie(magic=bytes(4)), "a download that never arrived"),
    "version 1": (lie(version=1), "byte 4: GGUF version 1; only 2 and 3"),
    "version 4": (lie(version=4), "byte 4: GGUF version 4"),
    "version 0": (lie(version=0), "byte 4: GGUF version 0"),
    "too many tensors": (lie(tensor_count=2**64 - 1), "byte 8: 18446744073709551615 tensors"),
    "more tensors than bytes": (lie(tensor_count=60_000), "byte 8: 60000 tensors need at least"),
    "too many keys": (lie(key_count=2**63), "byte 16: 9223372036854775808 keys"),
    "more keys than bytes": (lie(key_count=60_000), "byte 16: 60000 keys need at least"),
    "key without a name": (lambda m: m.number("", U32, 1), "key 4 has no name"),
    "key twice": (lambda m: m.number("llama.block_count", U32, 1), "'llama.block_count' is there"),
    "long key": (lambda m: m.number("x" * 65_536, U32, 1), "has 65536 bytes; at most 65535"),
    "endless key": (
        lambda m: m.keys.append(m.pack("Q", 2**63) + bytes(20)),
        "the name of key 4 has 9223372036854775808 bytes",
    ),
    "type of value": (lambda m: m.key("odd", 13, b""), "value of 'odd' has the unknown type 13"),
    "endless string": (
        lambda m: m.key("odd", STRING, m.pack("Q", 2**64 - 1)),
        "needs 18446744073709551615 bytes, but only",
    ),
    "type of elements": (lambda m: array_head(m, 77, 1), "an array of the unknown type 77"),
    "array of arrays": (lambda m: array_head(m, ARRAY, 1), "an array of arrays"),
    "endless array": (lambda m: array_head(m, F64, 2**61), "(2305843009213693952 elements) needs"),
    "endless strings": (lambda m: array_head(m, STRING, 2**61), "2305843009213693952 strings"),
    "string in array": (
        lambda m: m.key("odd", ARRAY, m.pack("IQ", STRING, 70) + m.pack("70Q", 2**40, *[0] * 69)),
        "string 0 of the value of 'odd' would end at byte",
    ),
    "alignment 0": (lambda m: m.number("general.alignment", U32, 0), "is 0; needed: a power"),
    "alignment 48": (lambda m: m.number("general.alignment", U32, 48), "is 48; needed: a power"),
    "alignment i32": (lambda m: m.number("general.alignment", I32, 32), "has the type 5"),
    "alignment bool": (lambda m: m.number("general.alignment", BOOL, 1), "has the type 7"),
    "tensor twice": (lambda m: m.tensor("output.weight", (32,)), "'output.weight' is there twice"),
    "5 dimensions": (lambda m: m.tensor("t", (1,) * 5), "'t' has 5 dimensions; at most 4"),
    "2^32-1 dimensions": (
        lambda m: m.tensors.append(m.text("t") + m.pack("I", 2**32 - 1) + bytes(80)),
        "has 4294967295 dimensions",
    ),
    "no elements": (lambda m: m.tensor("t", (0, 4)), "the impossible shape [0, 4]"),
    "too many elements": (
        lambda m: m.raw_tensor("t", (2**32, 2**31), F32_ID, 0),
        "the impossible shape [4294967296, 2147483648]",
    ),
    "half a block": (
        lambda m: m.raw_tensor("t", (48, 2), TYPE_IDS["Q4_0"], 192),
        "rows of 48 elements, which are no whole number of Q4_0 blocks (32 elements)",
    ),
    "unknown type": (lambda m: m.raw_tensor("t", (4,), 43, 192), "'t' has the unknown type 43"),
    "unaligned": (lambda m: m.raw_tensor("t", (4,), F32_ID, 200), "offset 200, which is no"),
    "overlap": (
        lambda m: m.raw_tensor("t", (4,), F32_ID, 96),
        "the data of tensor 't' overlaps that of tensor 'output.weight'",
    ),
    "same place": (lambda m: m.raw_tensor("t", (4,), F32_ID, 0), "overlaps that of tensor"),
    "beyond the end": (lambda m: m.raw_tensor("t", (2**40,), F32_ID, 224), "it is cut short"),
    "offset beyond": (lambda m: m.raw_tensor("t", (4,), F32_ID, 2**64 - 32), "it is cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_headers_are_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(GgufError) as caught:
        read(edited(change))
    text = str(caught.value)
    assert message in text
    assert text.startswith("memory: byte ")
    assert len(text) < 500


@pytest.mark.parametrize("type_id", sorted(REMOVED_GGML_TYPES))
def test_removed_types_are_named(type_id: int) -> None:
    with pytest.raises(GgufError, match=f"type {REMOVED_GGML_TYPES[type_id]}, which llama.cpp has"):
        read(edited(lambda maker: maker.raw_tensor("t", (32,), type_id, 192)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_file_cut_anywhere_is_refused(order: Literal["<", ">"]) -> None:
    whole = edited(lambda maker: maker.strings("many", map(str, range(70))), order)
    assert read(whole).tensors
    for length in range(len(whole)):
        with pytest.raises(GgufError, match=r"^memory: byte \d+: "):
            read(whole[:length])


def test_a_source_that_ends_early_is_told_apart() -> None:
    content = small().file()
    source = MemoryBytes(content[:100], size_bytes=len(content))
    with pytest.raises(GgufError, match="the file is cut short"):
        read_header(source)


def test_a_header_has_its_limit_also_in_a_big_file(tmp_path: Path) -> None:
    maker = GgufMaker()
    maker.key("liar", ARRAY, maker.pack("IQ", STRING, 2**32))
    path = tmp_path / "model.gguf"
    path.write_bytes(maker.header())
    with path.open("r+b") as stream:
        stream.truncate(2**40)
    with (
        FileBytes(path) as source,
        pytest.raises(GgufError, match="but only 67108"),
    ):
        read_header(source)


def test_names_have_a_limit_together() -> None:
    maker = GgufMaker()
    for number in range(3):
        maker.number(f"key {number}", U32, 1)
    assert len(read(maker.file(), Limits(names_bytes=15)).metadata) == 3
    with pytest.raises(GgufError, match="the names take 15 bytes; at most 14 are accepted"):
        read(maker.file(), Limits(names_bytes=14))


@pytest.mark.parametrize(
    ("limits", "message"),
    [(Limits(keys=3), "byte 16: 4 keys; at most 3"), (Limits(tensors=1), "byte 8: 2 tensors; at")],
)
def test_keys_and_tensors_are_counted(limits: Limits, message: str) -> None:
    assert read(small().file(), Limits(keys=4, tensors=2)).tensors
    with pytest.raises(GgufError, match=message):
        read(small().file(), limits)


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    with pytest.raises(GgufError) as caught:
        read(edited(lambda maker: maker.raw_tensor("\x1b[31m\n", (5,), TYPE_IDS["Q4_0"], 0)))
    assert str(caught.value).isprintable()


def test_a_gap_between_tensors_is_no_error() -> None:
    maker = small()
    maker.raw_tensor("later", (4,), F32_ID, 4096)
    maker.data_bytes = 4112
    assert read(maker.file()).data_bytes == 4112


def test_tensors_may_lie_in_any_order() -> None:
    maker = GgufMaker()
    maker.raw_tensor("second", (4,), F32_ID, 32)
    maker.raw_tensor("first", (4,), F32_ID, 0)
    maker.data_bytes = 48
    assert [tensor.name for tensor in read(maker.file()).tensors] == ["second", "first"]
