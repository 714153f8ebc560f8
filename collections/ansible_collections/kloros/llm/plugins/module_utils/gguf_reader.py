"""Reads the header of a GGUF file from anything that gives bytes, and trusts none of them.

Format: ggml's `docs/gguf.md` and `ggml/src/gguf.cpp` (llama.cpp 0.5.0-dev), versions 2 and 3.
What llama.cpp refuses to load (arrays in arrays, removed types, a key twice) is refused here too.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .gguf_bytes import ByteSource
from .gguf_header import ByteOrder, GgufHeader, GgufTensor, SkippedArray, Value
from .gguf_types import (
    ARRAY,
    GGML_TYPES,
    REMOVED_GGML_TYPES,
    STRING,
    UINT32,
    VALUE_TYPES,
    GgmlType,
    ValueType,
)

MIB: Final = 1024 * 1024
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMENSIONS: Final = 4
# The first bytes of what people take for GGUF files.
_LOOKS_LIKE: Final = (
    (b"lmgg", "a GGML file of 2023, which llama.cpp does not read any more"),
    (b"fmgg", "a GGMF file of 2023, which llama.cpp does not read any more"),
    (b"tjgg", "a GGJT file of 2023, which llama.cpp does not read any more"),
    (b"PK\x03\x04", "a ZIP archive or PyTorch checkpoint"),
    (b"vers", "perhaps the text that Git LFS keeps instead of the file"),
    (b"<!", "perhaps a web page instead of the file"),
    (b"<ht", "perhaps a web page instead of the file"),
    (b"\0\0\0\0", "a gap: perhaps a download that never arrived"),
)
_MIN_KEY_BYTES: Final = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES: Final = 8 + 4 + 4 + 8
_CHUNK_BYTES: Final = 256 * 1024  # a divisor of what HttpBytes fetches at a time
_INT64_MAX: Final = 2**63 - 1


class GgufError(ValueError):
    """The bytes are no GGUF header that can be used; the message says what was found where."""


@dataclass(frozen=True)
class Limits:
    """What a header may take; the defaults are far above what real models have.

    A header that goes beyond `header_bytes`, `keys`, `tensors`, `name_bytes` (one name) or
    `names_bytes` (all) is refused. What goes beyond the others is counted and skipped: an array
    (`array_values`, `array_strings` elements), a single string (`string_bytes`), and whatever
    comes once `texts_bytes` of strings or `values` array elements are held.
    """

    header_bytes: int = 64 * MIB
    keys: int = 65_536
    tensors: int = 65_536
    name_bytes: int = 65_535
    names_bytes: int = 8 * MIB
    array_values: int = 4096
    array_strings: int = 64
    string_bytes: int = MIB
    texts_bytes: int = 8 * MIB
    values: int = 500_000


def read_header(source: ByteSource, limits: Limits | None = None) -> GgufHeader:
    """Read the header: versions 2 and 3, both byte orders.

    Long arrays become `SkippedArray`, and so do strings that are too long to keep, with the
    element type "char". Bytes that are no UTF-8 become U+FFFD in values; a name with such bytes is
    written with `\\xNN`.
    Tensors that do not fit into `source.size_bytes` are an error; a size of None is not checked.

    Raises:
        GgufError: the bytes are no usable header.
        OSError, HttpError: as the source raises them.
    """
    return _Parser(source, limits or Limits()).header()


class _Cursor:
    """Walks forward through a source in chunks; never asks beyond the header's limit."""

    def __init__(self, source: ByteSource, limit_bytes: int) -> None:
        self._source = source
        self._limit_bytes = limit_bytes
        self._buffer = b""
        self._buffer_start = 0
        self._at = 0  # in the buffer; may be beyond its end after a skip

    @property
    def position(self) -> int:
        return self._buffer_start + self._at

    @property
    def _end(self) -> int:
        """Where nothing more can be read. The source may learn its size with the first bytes."""
        size_bytes = self._source.size_bytes
        return self._limit_bytes if size_bytes is None else min(size_bytes, self._limit_bytes)

    @property
    def remaining_bytes(self) -> int:
        return max(0, self._end - self.position)

    def failure(self, text: str, position: int | None = None) -> GgufError:
        at = self.position if position is None else position
        return GgufError(f"{self._source.description}: byte {at}: {text}")

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes, checked before anything is read."""
        if length > self.remaining_bytes:
            raise self._too_short(length, what)
        if self._at + length > len(self._buffer):
            self._fill(length, what)
        start = self._at
        self._at += length
        return self._buffer[start : self._at]

    def skip(self, length: int, what: str) -> None:
        if length > self.remaining_bytes:
            raise self._too_short(length, what)
        self._at += length

    def skip_strings(self, count: int, length_of_string: struct.Struct, what: str) -> None:
        """Step over `count` strings; nothing of them is kept."""
        unpack_from = length_of_string.unpack_from
        prefix_bytes = length_of_string.size
        left = count
        while left:
            if self._at + prefix_bytes > len(self._buffer):
                if prefix_bytes > self.remaining_bytes:
                    raise self._too_short(prefix_bytes, f"string {count - left} of {what}")
                self._fill(prefix_bytes, what)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - prefix_bytes
            # A tight loop: a vocabulary and its merges are close to a million strings.
            while left and at <= last:
                at += prefix_bytes + unpack_from(buffer, at)[0]
                left -= 1
            end = self._buffer_start + at
            if end > self._end:
                raise self.failure(
                    f"string {count - left - 1} of {what} would end at byte {end}, beyond "
                    f"{self._boundary()}"
                )
            self._at = at

    def _fill(self, length: int, what: str) -> None:
        """Have at least `length` bytes at the position; in whole chunks, as HTTP likes it."""
        position = self.position
        stop = -(-(position + length) // _CHUNK_BYTES) * _CHUNK_BYTES
        self._buffer = self._source.read_at(position, min(stop, self._limit_bytes) - position)
        self._buffer_start, self._at = position, 0
        if len(self._buffer) < length:
            raise self.failure(
                f"the bytes end within {what} (needed {length}, got {len(self._buffer)}); the "
                "file is cut short"
            )

    def _too_short(self, length: int, what: str) -> GgufError:
        return self.failure(
            f"{what} needs {length} bytes, but only {self.remaining_bytes} remain to "
            f"{self._boundary()}"
        )

    def _boundary(self) -> str:
        if self._end == self._source.size_bytes:
            return f"the end of the file ({self._end} bytes)"
        return f"the most that a header may take ({self._end} bytes)"


class _Parser:
    def __init__(self, source: ByteSource, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._cursor = _Cursor(source, limits.header_bytes)
        self._names_bytes = 0
        self._texts_bytes = 0
        self._values = 0
        self._byte_order: ByteOrder = "little"
        self._u32 = struct.Struct("<I")
        self._u64 = struct.Struct("<Q")

    def header(self) -> GgufHeader:
        self._check_magic()
        version = self._read_version()
        tensor_count = self._read_count("tensors", self._limits.tensors, _MIN_TENSOR_BYTES)
        key_count = self._read_count("keys", self._limits.keys, _MIN_KEY_BYTES)
        metadata: dict[str, Value] = {}
        alignment = DEFAULT_ALIGNMENT
        for number in range(key_count):
            key = self._read_key(number, metadata)
            at, type_id = self._cursor.position, self._uint(self._u32, f"the type of {_shown(key)}")
            metadata[key] = value = self._read_value(key, type_id, at)
            if key == "general.alignment":
                alignment = self._checked_alignment(value, type_id, at)
        tensors = self._read_tensors(tensor_count)
        data_offset = self._cursor.position
        if tensors:  # without tensors there is no data section to align
            data_offset += -data_offset % alignment
        self._check_layout(tensors, alignment, data_offset)
        return GgufHeader(
            version, self._byte_order, alignment, metadata, tuple(tensors), data_offset
        )

    # the beginning

    def _check_magic(self) -> None:
        magic = self._cursor.take(4, "the magic number 'GGUF'")
        if magic == b"GGUF":
            return
        hint = next((text for start, text in _LOOKS_LIKE if magic.startswith(start)), "")
        raise self._cursor.failure(
            f"this is no GGUF file: it begins with {magic!r}"
            + (f" ({hint})" if hint else "")
            + ", needed: b'GGUF'",
            0,
        )

    def _read_version(self) -> int:
        at = self._cursor.position
        raw = self._cursor.take(4, "the version")
        # Versions are small: whichever half is empty tells the byte order (gguf.cpp).
        if int.from_bytes(raw, "little") & 0xFFFF == 0:
            self._byte_order = "big"
            self._u32, self._u64 = struct.Struct(">I"), struct.Struct(">Q")
        version = int.from_bytes(raw, self._byte_order)
        if version not in (2, 3):
            raise self._cursor.failure(f"GGUF version {version}; only 2 and 3 can be read", at)
        return version

    def _read_count(self, what: str, limit: int, least_bytes: int) -> int:
        at = self._cursor.position
        count = self._uint(self._u64, f"the number of {what}")
        if count > limit:
            raise self._cursor.failure(f"{count} {what}; at most {limit} are accepted", at)
        if count * least_bytes > self._cursor.remaining_bytes:
            raise self._cursor.failure(
                f"{count} {what} need at least {count * least_bytes} bytes, but only "
                f"{self._cursor.remaining_bytes} follow; the file is cut short or damaged",
                at,
            )
        return count

    # metadata

    def _read_key(self, number: int, known: dict[str, Value]) -> str:
        at = self._cursor.position
        key = self._read_name(f"the name of key {number}")
        if not key:
            raise self._cursor.failure(f"key {number} has no name", at)
        if key in known:
            raise self._cursor.failure(f"key {_shown(key)} is there twice", at)
        return key

    def _read_value(self, key: str, type_id: int, at: int) -> Value:
        what = f"the value of {_shown(key)}"
        value_type = VALUE_TYPES.get(type_id)
        if value_type:
            return self._read_numbers(value_type, 1, what)[0]
        if type_id == STRING:
            length = self._uint(self._u64, f"the length of {what}")
            return self._read_text(length, what)
        if type_id == ARRAY:
            return self._read_array(what)
        raise self._cursor.failure(f"{what} has the unknown type {type_id}", at)

    def _read_array(self, what: str) -> Value:
        at = self._cursor.position
        type_id = self._uint(self._u32, f"the element type of {what}")
        length = self._uint(self._u64, f"the length of {what}")
        if type_id == STRING:
            return self._read_strings(length, what, at)
        if type_id == ARRAY:
            raise self._cursor.failure(
                f"{what} is an array of arrays, which llama.cpp does not read", at
            )
        value_type = VALUE_TYPES.get(type_id)
        if not value_type:
            raise self._cursor.failure(f"{what} is an array of the unknown type {type_id}", at)
        if length > self._limits.array_values or self._values + length > self._limits.values:
            self._cursor.skip(length * value_type.size_bytes, f"{what} ({length} elements)")
            return SkippedArray(value_type.name, length)
        self._values += length
        return list(self._read_numbers(value_type, length, what))

    def _read_strings(self, length: int, what: str, at: int) -> Value:
        if length * self._u64.size > self._cursor.remaining_bytes:
            raise self._cursor.failure(
                f"{what} is said to hold {length} strings, but only "
                f"{self._cursor.remaining_bytes} bytes follow; the file is cut short or damaged",
                at,
            )
        if length > self._limits.array_strings or self._values + length > self._limits.values:
            self._cursor.skip_strings(length, self._u64, what)
            return SkippedArray("str", length)
        self._values += length
        kept: list[bool | int | float | str] = []
        whole = True
        for number in range(length):
            one = f"string {number} of {what}"
            text = self._read_text(self._uint(self._u64, f"the length of {one}"), one)
            if isinstance(text, str):
                kept.append(text)
            else:
                whole = False
        return kept if whole else SkippedArray("str", length)

    def _read_numbers(
        self, value_type: ValueType, count: int, what: str
    ) -> tuple[bool | int | float, ...]:
        raw = self._cursor.take(count * value_type.size_bytes, what)
        order = "<" if self._byte_order == "little" else ">"
        return struct.unpack(f"{order}{count}{value_type.code}", raw)

    def _read_text(self, length: int, what: str) -> str | SkippedArray:
        if (
            length > self._limits.string_bytes
            or self._texts_bytes + length > self._limits.texts_bytes
        ):
            self._cursor.skip(length, f"{what} ({length} bytes of text)")
            return SkippedArray("char", length)
        self._texts_bytes += length
        return self._cursor.take(length, what).decode("utf-8", errors="replace")

    # tensors

    def _read_tensors(self, count: int) -> list[GgufTensor]:
        tensors: list[GgufTensor] = []
        names: set[str] = set()
        for number in range(count):
            at = self._cursor.position
            name = self._read_name(f"the name of tensor {number}")
            if name in names:
                raise self._cursor.failure(f"tensor {_shown(name)} is there twice", at)
            names.add(name)
            tensors.append(self._read_tensor(name))
        return tensors

    def _read_tensor(self, name: str) -> GgufTensor:
        what = f"tensor {_shown(name)}"
        at = self._cursor.position
        dimensions = self._uint(self._u32, f"the number of dimensions of {what}")
        if dimensions > MAX_DIMENSIONS:
            raise self._cursor.failure(
                f"{what} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are possible", at
            )
        shape = tuple(
            self._uint(self._u64, f"dimension {number} of {what}") for number in range(dimensions)
        )
        elements = 1
        for length in shape:
            elements *= length
        if not 0 < elements <= _INT64_MAX:
            raise self._cursor.failure(
                f"{what} has the impossible shape {list(shape)}: needed are 1 to 2^63-1 elements",
                at,
            )
        at = self._cursor.position
        ggml_type = self._checked_type(self._uint(self._u32, f"the type of {what}"), what, at)
        row = shape[0] if shape else 1
        if row % ggml_type.block_elements:
            raise self._cursor.failure(
                f"{what} has rows of {row} elements, which are no whole number of "
                f"{ggml_type.name} blocks ({ggml_type.block_elements} elements)",
                at,
            )
        size_bytes = elements // ggml_type.block_elements * ggml_type.block_bytes
        offset = self._uint(self._u64, f"the offset of {what}")
        return GgufTensor(name, shape, ggml_type.name, offset, size_bytes)

    def _checked_type(self, type_id: int, what: str, at: int) -> GgmlType:
        known = GGML_TYPES.get(type_id)
        if known:
            return known
        removed = REMOVED_GGML_TYPES.get(type_id)
        if removed:
            raise self._cursor.failure(
                f"{what} has the type {removed}, which llama.cpp has removed; a newer file of "
                "this model is needed",
                at,
            )
        raise self._cursor.failure(
            f"{what} has the unknown type {type_id}; perhaps the file was made for a newer or "
            "another program than llama.cpp 0.5.0",
            at,
        )

    def _checked_alignment(self, value: Value, type_id: int, at: int) -> int:
        if type_id != UINT32 or not isinstance(value, int):
            raise self._cursor.failure(
                f"'general.alignment' has the type {type_id}; needed: {UINT32} (u32)", at
            )
        if value <= 0 or value & (value - 1):
            raise self._cursor.failure(
                f"'general.alignment' is {value}; needed: a power of two", at
            )
        return value

    def _check_layout(
        self, tensors: Sequence[GgufTensor], alignment: int, data_offset: int
    ) -> None:
        """Every tensor is aligned, apart from the others, and inside the file."""
        size_bytes = self._source.size_bytes
        end = 0
        before = ""
        for tensor in sorted(tensors, key=lambda one: one.offset):
            what = f"the data of tensor {_shown(tensor.name)}"
            at = data_offset + tensor.offset
            if tensor.offset % alignment:
                raise self._cursor.failure(
                    f"{what} begins at offset {tensor.offset}, which is no multiple of the "
                    f"alignment {alignment}",
                    at,
                )
            if tensor.offset < end:
                raise self._cursor.failure(f"{what} overlaps that of tensor {_shown(before)}", at)
            end, before = tensor.offset + tensor.size_bytes, tensor.name
            if size_bytes is not None and data_offset + end > size_bytes:
                raise self._cursor.failure(
                    f"{what} ({tensor.size_bytes} bytes) would end at byte {data_offset + end}, "
                    f"but the file has {size_bytes}; it is cut short",
                    at,
                )

    # what everything is made of

    def _uint(self, layout: struct.Struct, what: str) -> int:
        (value,) = layout.unpack(self._cursor.take(layout.size, what))
        return int(value)

    def _read_name(self, what: str) -> str:
        at = self._cursor.position
        length = self._uint(self._u64, f"the length of {what}")
        if length > self._limits.name_bytes:
            raise self._cursor.failure(
                f"{what} has {length} bytes; at most {self._limits.name_bytes} are accepted", at
            )
        self._names_bytes += length
        if self._names_bytes > self._limits.names_bytes:
            raise self._cursor.failure(
                f"with {what} the names take {self._names_bytes} bytes; at most "
                f"{self._limits.names_bytes} are accepted",
                at,
            )
        raw = self._cursor.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return repr(raw)[2:-1]  # the codec's own "backslashreplace" takes half a second a MiB


def _shown(name: str) -> str:
    """A name for a message: short, and without control characters."""
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:96]}…'"
