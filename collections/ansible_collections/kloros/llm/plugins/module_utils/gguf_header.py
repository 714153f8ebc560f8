"""What a GGUF header says, as data; `gguf_reader` makes it from bytes.

Format: ggml's `docs/gguf.md` and `gguf.h`, versions 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["little", "big"]


@dataclass(frozen=True)
class SkippedArray:
    """An array that is too long to keep (a vocabulary): what its elements are, and how many."""

    element_type: str
    length: int


Scalar = bool | int | float | str
Value = Scalar | list[Scalar] | SkippedArray


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table.

    `shape` is in GGUF's order: the innermost dimension first, as ggml's `ne`. `type` is ggml's
    name of the type in capitals ("F16", "Q4_K", "MXFP4"). `offset` counts from the start of the
    data section. `size_bytes` is the exact size of the data without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file. `data_offset` is where the tensors' data begins, in bytes."""

    version: int
    byte_order: ByteOrder
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    data_offset: int

    @property
    def data_bytes(self) -> int:
        """The size of the data section: up to the end of the last tensor, without its padding."""
        return max((tensor.offset + tensor.size_bytes for tensor in self.tensors), default=0)
