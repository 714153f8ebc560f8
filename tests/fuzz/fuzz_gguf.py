"""Feeds broken headers to the GGUF reader.

    PYTHONPATH=collections python -m tests.fuzz.fuzz_gguf --seconds 300

Each input follows from a seed and a number, so that every finding can be made again
(`--seed S --only N` runs one and shows what happens). Inputs run in batches in processes whose
address space is bounded. A batch fails where anything but GgufError comes out, where a header that
was accepted contradicts itself, where more is read than the header may take, where the memory model
cannot deal with an accepted one, or where memory goes beyond 256 MiB.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from ansible_collections.kloros.llm.plugins.module_utils.gguf_facts import model_facts
from ansible_collections.kloros.llm.plugins.module_utils.gguf_files import GgufModel, GgufShard
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import GgufHeader
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import (
    GgufError,
    Limits,
    read_header,
)
from ansible_collections.kloros.llm.plugins.module_utils.memory_model import (
    MemoryModelError,
    RunConfig,
    memory,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape

from tests.unit.gguf_maker import CODES, F32, I32, TYPE_IDS, U8, U32, GgufMaker

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
MEMORY_MIB = 256
# Python, its libraries and its threads' stacks map address space that they never use.
ADDRESS_SPACE_MIB = MEMORY_MIB + 256
BATCH_INPUTS = 2000
BATCH_TIMEOUT_S = 600  # a batch takes some seconds
READ_AT_ONCE_BYTES = 256 * 1024
NUMBERS = (0, 1, 2, 4, 5, 8, 9, 12, 13, 31, 32, 43, 64, 65, 255, 4096, 4097, 65_535, 65_536)
BIG_NUMBERS = tuple(2**power + step for power in (20, 31, 32, 40, 62, 63, 64) for step in (-1, 0))
CONFIGS = (
    RunConfig(0),
    RunConfig(4096, slots=4, devices=("CUDA0", "CUDA1"), cache_type_k="q8_0", cache_type_v="q8_0"),
    RunConfig(512, devices=("CUDA0",), gpu_layers=2, cpu_moe_layers=1, flash_attention="off"),
    RunConfig(512, embeddings=True),
)
FILLS = (b"\0", b"\xff", b"\1\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\1", b"GGUF\3\0\0\0")


@dataclass
class Tally:
    """What a run did. `worst_read_bytes` is the most that one input made the reader read."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    input_bytes: int = 0
    worst_read_bytes: int = 0
    max_rss_mib: int = 0

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.input_bytes += other.input_bytes
        self.worst_read_bytes = max(self.worst_read_bytes, other.worst_read_bytes)
        self.max_rss_mib = max(self.max_rss_mib, other.max_rss_mib)


class FuzzBytes:
    """Some bytes, then `fill` again and again up to `size_bytes` (without end if that is None)."""

    description = "fuzz"

    def __init__(self, content: bytes, size_bytes: int | None, fill: bytes) -> None:
        self.content = content
        self.size_bytes = size_bytes
        self.fill = fill
        self.read_bytes = 0

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise AssertionError(f"asked for {length} bytes at {offset}")
        found = self.content[offset : offset + length]
        if self.fill and len(found) < length:
            missing = length - len(found)
            if self.size_bytes is not None:
                missing = max(0, min(missing, self.size_bytes - offset - len(found)))
            found += (self.fill * (missing // len(self.fill) + 1))[:missing]
        self.read_bytes += len(found)
        return found

    def close(self) -> None:
        """Nothing is held."""


# seeds


def _model(maker: GgufMaker) -> bytes:
    maker.string("general.architecture", "llama")
    maker.string("general.name", "Grüße 🦙")
    maker.number("general.alignment", U32, 32)
    for number, code in enumerate(CODES):
        maker.number(f"scalar.{number}", code, 1)
    maker.number("llama.block_count", U32, 2)
    maker.number("llama.context_length", U32, 4096)
    maker.number("llama.embedding_length", U32, 64)
    maker.number("llama.feed_forward_length", U32, 128)
    maker.number("llama.attention.head_count", U32, 4)
    maker.numbers("llama.attention.head_count_kv", I32, [2, 0])
    maker.number("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
    maker.strings("tokenizer.ggml.tokens", [f"token {number}" for number in range(100)])
    maker.numbers("tokenizer.ggml.scores", F32, [0.5] * 100)
    maker.strings("tags", ["a", "b"])
    maker.tensor("token_embd.weight", (64, 100), "Q4_0")
    for layer in range(2):
        maker.tensor(f"blk.{layer}.attn_q.weight", (64, 64), "Q8_0")
        maker.tensor(f"blk.{layer}.ffn_up_exps.weight", (64, 128, 2), "MXFP4")
    maker.tensor("output_norm.weight", (64,), "F32")
    return maker.header()


def _every_type() -> bytes:
    maker = GgufMaker()
    for name in TYPE_IDS:
        maker.tensor(name, (256, 2), name)
    return maker.header()


def _other_kinds() -> Iterator[bytes]:
    for architecture, kind in (("clip", "mmproj"), ("qwen3moe", "model"), ("mamba", "model")):
        maker = GgufMaker()
        maker.string("general.architecture", architecture)
        maker.string("general.type", kind)
        maker.number(f"{architecture}.block_count", U32, 3)
        maker.number(f"{architecture}.embedding_length", U32, 64)
        maker.number(f"{architecture}.ssm.state_size", U32, 16)
        maker.number(f"{architecture}.ssm.inner_size", U32, 128)
        maker.number(f"{architecture}.ssm.conv_kernel", U32, 4)
        maker.tensor("blk.2.ssm_in.weight", (64, 128))
        yield maker.header()


@cache
def seeds() -> tuple[bytes, ...]:
    """Headers that are right."""
    return (
        _model(GgufMaker()),
        _model(GgufMaker(version=2)),
        _model(GgufMaker(">")),
        _every_type(),
        *_other_kinds(),
        GgufMaker().header(),
    )


@cache
def fields(seed: bytes) -> tuple[int, ...]:
    """Where a count, a length or a type may stand: small numbers of four or eight bytes."""
    little = (at for at in range(4, len(seed) - 8) if seed[at] and not any(seed[at + 2 : at + 4]))
    big = (at for at in range(4, len(seed) - 8) if seed[at + 3] and not any(seed[at : at + 2]))
    return (*little, *big)


def fattest() -> bytes:
    """As much as the limits let through of everything that is held."""
    maker = GgufMaker()
    limits = Limits()
    for number in range(40):
        maker.string(f"text.{number}", ("🦙" + "\0" * 64) * (limits.string_bytes // 68))
    for number in range(limits.values // limits.array_values):
        maker.numbers(f"values.{number}", I32, range(10**6, 10**6 + limits.array_values))
    while len(maker.keys) < limits.keys:
        maker.number(f"{len(maker.keys):05d}".ljust(60, "."), U32, 10**6)
    for number in range(limits.tensors):
        maker.tensor(f"{number:05d}".ljust(60, "."), (300, 301, 302, 1))
    return maker.header()


def many_skipped() -> bytes:
    """Many small arrays that are just too long to keep."""
    maker = GgufMaker()
    for number in range(300):
        maker.numbers(f"values.{number}", U8, [1] * 4097)
        maker.strings(f"strings.{number}", [""] * 65)
    return maker.header()


# mutation


def make_input(seed: int, number: int) -> FuzzBytes:
    """The input `number` of a run."""
    rng = random.Random(f"{seed} {number}")  # noqa: S311 - for tests
    base = rng.choice(seeds())
    content = bytearray(base)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(MUTATIONS)(rng, content, base)
    size_bytes: int | None = len(content)
    fill = b""
    end = rng.randrange(20)
    if end < 12:  # a file as big as it should be, if the header still says so
        size_bytes, fill = len(content) + rng.choice((0, 10**5, 10**6)), b"\0"
    elif end < 15:
        size_bytes = None
    elif end < 18:
        size_bytes, fill = 2**40, rng.choice(FILLS)
    elif end < 19:
        size_bytes, fill = None, rng.choice(FILLS)
    return FuzzBytes(bytes(content), size_bytes, fill)


def _number(rng: random.Random, length: int) -> int:
    if rng.random() < 0.5:
        return rng.choice(NUMBERS) % 2**16
    return rng.choice(BIG_NUMBERS) if length == 8 else rng.getrandbits(8 * length)


def _set_field(rng: random.Random, content: bytearray, base: bytes) -> None:
    places = fields(base)
    at = rng.choice(places) if places else rng.randrange(4, 24)
    length = rng.choice((4, 8))
    order = rng.choice(("little", "little", "big"))
    value = _number(rng, length) % 2 ** (8 * length)
    content[at : at + length] = value.to_bytes(length, "big" if order == "big" else "little")


def _set_count(rng: random.Random, content: bytearray, _base: bytes) -> None:
    at = rng.choice((4, 8, 16))
    content[at : at + 8] = (_number(rng, 8) % 2**64).to_bytes(8, "little")


def _flip(rng: random.Random, content: bytearray, _base: bytes) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, content: bytearray, _base: bytes) -> None:
    at = rng.randrange(len(content) + 1)
    piece = rng.randbytes(rng.randrange(1, 20))
    content[at : at + len(piece)] = piece


def _insert(rng: random.Random, content: bytearray, _base: bytes) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.choice((rng.randbytes(rng.randrange(1, 40)), rng.choice(FILLS) * 9))


def _delete(rng: random.Random, content: bytearray, _base: bytes) -> None:
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.randrange(1, 40)]


def _repeat(rng: random.Random, content: bytearray, _base: bytes) -> None:
    at = rng.randrange(len(content) + 1)
    content[at:at] = content[at : at + rng.randrange(200)] * rng.randrange(1, 20)


def _cut(rng: random.Random, content: bytearray, _base: bytes) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _splice(rng: random.Random, content: bytearray, _base: bytes) -> None:
    other = rng.choice(seeds())
    content[rng.randrange(len(content) + 1) :] = other[rng.randrange(len(other)) :]


MUTATIONS = (
    *(_set_field,) * 8,
    *(_set_count,) * 2,
    *(_flip,) * 4,
    _overwrite,
    _insert,
    _delete,
    _repeat,
    _cut,
    _splice,
)


# the check of one input


def limits_for(number: int) -> Limits:
    """Most inputs stop after 1 MiB, or a run of filling would take all the time."""
    return Limits() if number % 500 == 0 else Limits(header_bytes=MIB)


def check(source: FuzzBytes, limits: Limits) -> bool:
    """Whether the header was accepted. Raises AssertionError where the reader misbehaves."""
    most = limits.header_bytes
    if source.size_bytes is not None:
        most = min(most, source.size_bytes)
    try:
        header = read_header(source, limits)
    except GgufError as error:
        if len(str(error)) > 1000 or not str(error).isprintable():
            raise AssertionError(f"a bad message: {error!r}") from error
        return False
    finally:
        # A header's end is read in whole chunks; what straddles two chunks is read twice, and is
        # no longer than a text that is kept.
        if source.read_bytes > 2 * most + 2 * READ_AT_ONCE_BYTES:
            raise AssertionError(f"read {source.read_bytes} bytes of a header of at most {most}")
    _check_header(header, source.size_bytes)
    return True


def _check_header(header: GgufHeader, size_bytes: int | None) -> None:
    names = [tensor.name for tensor in header.tensors]
    if len(set(names)) != len(names):
        raise AssertionError("a tensor twice")
    for tensor in header.tensors:
        if len(tensor.shape) > 4 or prod(tensor.shape) < 1 or tensor.size_bytes < 1:
            raise AssertionError(f"an impossible tensor: {tensor}")
        if tensor.offset % header.alignment:
            raise AssertionError(f"unaligned: {tensor}")
    end = header.data_offset + header.data_bytes
    if size_bytes is not None and header.tensors and end > size_bytes:
        raise AssertionError("tensors beyond the end of the file")
    facts = model_facts(GgufModel(header, (GgufShard("m.gguf", size_bytes, header),)))
    json.dumps(facts, allow_nan=False)
    if len(facts["shape_detail"]) > 1000 or not facts["shape_detail"].isprintable():
        raise AssertionError(f"a bad message: {facts['shape_detail']!r}")
    if facts["shape"] is not None:
        check_memory(ModelShape.from_data(facts["shape"]))


def check_memory(shape: ModelShape) -> None:
    """Raises AssertionError where the memory model's answer cannot be."""
    for config in CONFIGS:
        try:
            rows = memory(shape, config)
        except MemoryModelError as error:
            if len(str(error)) > 1000:
                raise AssertionError(f"a long message: {error}") from error
            continue
        for row in rows:
            for size in (row.weights_bytes, row.kv_bytes, row.compute_bytes):
                if not isinstance(size, int) or size < 0:
                    raise AssertionError(f"{config}: {row}")


# runs


def peak_mib() -> int:
    """The most main memory that this process took; getrusage() counts that of its parent too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def run_batch(seed: int, first: int, count: int, progress: Path) -> Tally:
    """Check inputs in this process, its address space bounded."""
    tally = Tally()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MIB * MIB,) * 2)
    with progress.open("w", encoding="utf-8") as stream:
        for number in range(first, first + count):
            stream.seek(0)
            stream.write(f"{number}\n")
            stream.flush()
            source = make_input(seed, number)
            accepted = check(source, limits_for(number))
            tally.add(Tally(1, accepted, not accepted, len(source.content), source.read_bytes))
    tally.max_rss_mib = peak_mib()
    if tally.max_rss_mib > MEMORY_MIB:
        raise AssertionError(f"{tally.max_rss_mib} MiB were taken")
    return tally


def start_batch(seed: int, first: int, count: int) -> Tally:
    """`run_batch` in a process of its own. Raises AssertionError with what failed."""
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "number"
        command = [sys.executable, "-m", "tests.fuzz.fuzz_gguf", "--batch", str(first), str(count)]
        command += ["--seed", str(seed), "--progress", str(progress)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={"PYTHONPATH": f"{ROOT / 'collections'}:{ROOT}"},
                timeout=BATCH_TIMEOUT_S,
                check=False,
            )
            failure = done.stderr if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = f"still running after {BATCH_TIMEOUT_S} s"
        if failure:
            number = progress.read_text().strip() if progress.exists() else "?"
            raise AssertionError(f"seed {seed}, input {number}: {failure}")
        return Tally(**json.loads(done.stdout))


def run_for(seconds: float, seed: int, processes: int) -> Tally:
    """Batches until the time is over. Raises AssertionError with the first failure."""
    end = time.monotonic() + seconds
    tally = Tally()
    first = 0
    with ThreadPoolExecutor(processes) as pool:
        while time.monotonic() < end:
            starts = [first + batch * BATCH_INPUTS for batch in range(processes)]
            first = starts[-1] + BATCH_INPUTS
            for one in pool.map(lambda start: start_batch(seed, start, BATCH_INPUTS), starts):
                tally.add(one)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, help="one input, in this process")
    parser.add_argument("--batch", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    result: Any
    try:
        if given.batch:
            result = asdict(run_batch(given.seed, given.batch[0], given.batch[1], given.progress))
        elif given.only is not None:
            source = make_input(given.seed, given.only)
            print(source.content, source.size_bytes, source.fill)
            result = {"accepted": check(source, limits_for(given.only))}
        else:
            result = asdict(run_for(given.seconds, given.seed, given.processes))
    except Exception:
        traceback.print_exc()
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
