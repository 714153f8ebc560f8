"""Makes GGUF headers byte by byte: right ones, wrong ones, and ones as big as real models'."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from ansible_collections.kloros.llm.plugins.module_utils.gguf_types import GGML_TYPES

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"} | {
    U64: "Q",
    I64: "q",
    F64: "d",
}
TYPE_IDS = {ggml_type.name: number for number, ggml_type in GGML_TYPES.items()}


class GgufMaker:
    """Collects keys and tensors; counts, version and magic can be told to lie."""

    def __init__(self, order: Literal["<", ">"] = "<", version: int = 3) -> None:
        self.order = order
        self.version = version
        self.magic = b"GGUF"
        self.alignment = 32
        self.keys: list[bytes] = []
        self.tensors: list[bytes] = []
        self.key_count: int | None = None
        self.tensor_count: int | None = None
        self.data_bytes = 0

    def pack(self, code: str, *values: float) -> bytes:
        return struct.pack(self.order + code, *values)

    def text(self, value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return self.pack("Q", len(raw)) + raw

    def key(self, name: str | bytes, type_id: int, value: bytes) -> None:
        self.keys.append(self.text(name) + self.pack("I", type_id) + value)

    def number(self, name: str, type_id: int, value: float) -> None:
        self.key(name, type_id, self.pack(CODES[type_id], value))

    def string(self, name: str, value: str | bytes) -> None:
        self.key(name, STRING, self.text(value))

    def numbers(self, name: str, type_id: int, values: Sequence[float]) -> None:
        head = self.pack("IQ", type_id, len(values))
        self.key(name, ARRAY, head + self.pack(f"{len(values)}{CODES[type_id]}", *values))

    def strings(self, name: str, values: Iterable[str]) -> None:
        packed = [self.text(value) for value in values]
        self.key(name, ARRAY, self.pack("IQ", STRING, len(packed)) + b"".join(packed))

    def raw_tensor(
        self, name: str | bytes, shape: Sequence[int], type_id: int, offset: int
    ) -> None:
        self.tensors.append(
            self.text(name)
            + self.pack(f"I{len(shape)}Q", len(shape), *shape)
            + self.pack("IQ", type_id, offset)
        )

    def tensor(self, name: str, shape: Sequence[int], type_name: str = "F32") -> None:
        """A tensor behind the others, as the format wants it."""
        type_id = TYPE_IDS[type_name]
        ggml_type = GGML_TYPES[type_id]
        elements = 1
        for length in shape:
            elements *= length
        self.raw_tensor(name, shape, type_id, self.data_bytes)
        size = elements // ggml_type.block_elements * ggml_type.block_bytes
        self.data_bytes += size + -size % self.alignment

    def header(self) -> bytes:
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        keys = len(self.keys) if self.key_count is None else self.key_count
        begin = self.magic + self.pack("IQQ", self.version, tensors, keys)
        raw = begin + b"".join(self.keys) + b"".join(self.tensors)
        return raw + bytes(-len(raw) % self.alignment if self.tensors else 0)

    def file(self) -> bytes:
        return self.header() + bytes(self.data_bytes)

    def write_sparse(self, path: Path) -> int:
        """The whole file without taking its space on the disk; its size."""
        header = self.header()
        path.write_bytes(header)
        with path.open("r+b") as stream:
            stream.truncate(len(header) + self.data_bytes)
        return len(header) + self.data_bytes


def word(number: int) -> str:
    """Some text of a vocabulary's usual length."""
    return f"Ġ{number:x}" if number % 3 else f"tok{number * 7919 % 100003:x}"


@cache
def qwen2_32b() -> GgufMaker:
    """A header like that of qwen2.5-32b: 152 064 tokens, 151 387 merges, 64 layers of Q4_K.

    Do not change it: it is made once.
    """
    maker = GgufMaker()
    maker.string("general.architecture", "qwen2")
    maker.string("general.type", "model")
    maker.string("general.name", "Stand-in 32B")
    maker.string("general.size_label", "32B")
    maker.number("general.file_type", U32, 15)
    maker.number("qwen2.block_count", U32, 64)
    maker.number("qwen2.context_length", U32, 131072)
    maker.number("qwen2.embedding_length", U32, 5120)
    maker.number("qwen2.feed_forward_length", U32, 27648)
    maker.number("qwen2.attention.head_count", U32, 40)
    maker.number("qwen2.attention.head_count_kv", U32, 8)
    maker.string("tokenizer.ggml.model", "gpt2")
    maker.strings("tokenizer.ggml.tokens", map(word, range(152_064)))
    maker.numbers("tokenizer.ggml.token_type", I32, [1] * 152_064)
    maker.strings("tokenizer.ggml.merges", (f"{word(n)} {word(n + 9)}" for n in range(151_387)))
    maker.string("tokenizer.chat_template", "{% for message in messages %}" * 80)
    maker.tensor("token_embd.weight", (5120, 152_064), "Q4_K")
    for layer in range(64):
        block = f"blk.{layer}."
        maker.tensor(block + "attn_norm.weight", (5120,))
        maker.tensor(block + "attn_q.weight", (5120, 5120), "Q4_K")
        maker.tensor(block + "attn_k.weight", (5120, 1024), "Q4_K")
        maker.tensor(block + "attn_v.weight", (5120, 1024), "Q6_K")
        maker.tensor(block + "attn_output.weight", (5120, 5120), "Q4_K")
        maker.tensor(block + "ffn_norm.weight", (5120,))
        maker.tensor(block + "ffn_gate.weight", (5120, 27648), "Q4_K")
        maker.tensor(block + "ffn_up.weight", (5120, 27648), "Q4_K")
        maker.tensor(block + "ffn_down.weight", (27648, 5120), "Q6_K")
    maker.tensor("output_norm.weight", (5120,))
    maker.tensor("output.weight", (5120, 152_064), "Q6_K")
    return maker


@cache
def gemma_27b() -> GgufMaker:
    """A header like that of gemma-3-27b: 262 144 tokens with scores and types, 62 layers of Q8_0.

    Do not change it: it is made once.
    """
    maker = GgufMaker()
    maker.string("general.architecture", "gemma3")
    maker.number("gemma3.block_count", U32, 62)
    maker.number("gemma3.context_length", U32, 131072)
    maker.number("gemma3.embedding_length", U32, 5376)
    maker.string("tokenizer.ggml.model", "llama")
    maker.strings("tokenizer.ggml.tokens", map(word, range(262_144)))
    maker.numbers("tokenizer.ggml.scores", F32, [-1000.0] * 262_144)
    maker.numbers("tokenizer.ggml.token_type", I32, [1] * 262_144)
    maker.tensor("token_embd.weight", (5376, 262_144), "Q8_0")
    for layer in range(62):
        for matrix in ("gate", "up"):
            maker.tensor(f"blk.{layer}.ffn_{matrix}.weight", (5376, 21504), "Q8_0")
        maker.tensor(f"blk.{layer}.ffn_down.weight", (21504, 5376), "Q8_0")
    maker.tensor("output_norm.weight", (5376,))
    return maker
