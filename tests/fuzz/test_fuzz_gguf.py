"""A short, deterministic run of the GGUF fuzzer, and what the limits let through at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gguf_header import SkippedArray
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import (
    GgufError,
    Limits,
    read_header,
)

from tests.fuzz import fuzz_gguf
from tests.unit.gguf_maker import ARRAY, STRING, GgufMaker

ROOT = Path(__file__).parents[2]

MEASURE = """
import sys
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import read_header
from tests.fuzz.fuzz_gguf import FuzzBytes, peak_mib
content = open(sys.argv[1], "rb").read()
header = read_header(FuzzBytes(content, None, b""))
print(len(header.metadata), len(header.tensors))
print(peak_mib())
"""


def test_broken_headers_are_refused_within_bounds() -> None:
    tally = fuzz_gguf.start_batch(seed=0, first=1, count=450)
    assert tally.inputs == tally.accepted + tally.refused == 450
    # A fuzzer that is never let in, or always, tests nothing.
    assert min(tally.accepted, tally.refused) > 20
    assert tally.max_rss_mib <= fuzz_gguf.MEMORY_MIB


def test_seeds_are_accepted() -> None:
    for seed in fuzz_gguf.seeds():
        assert fuzz_gguf.check(fuzz_gguf.FuzzBytes(seed, 10**6, b"\0"), Limits())


@pytest.mark.parametrize(("name", "tensors"), [("fattest", 65_536), ("many_skipped", 0)])
def test_the_fattest_header_stays_within_256_mib(tmp_path: Path, name: str, tensors: int) -> None:
    path = tmp_path / "header"
    path.write_bytes(getattr(fuzz_gguf, name)())
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'collections'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    counts, memory_mib = done.stdout.splitlines()
    assert counts.split()[1] == str(tensors)
    assert int(memory_mib) <= fuzz_gguf.MEMORY_MIB


def test_what_the_limit_lets_through_is_read_once() -> None:
    strings = 2**23 - 1000
    maker = GgufMaker()
    maker.key("empty", ARRAY, maker.pack("IQ", STRING, strings))
    source = fuzz_gguf.FuzzBytes(maker.header(), 2**40, b"\0")
    assert read_header(source).metadata == {"empty": SkippedArray("str", strings)}
    chunks = Limits().header_bytes // fuzz_gguf.READ_AT_ONCE_BYTES
    assert source.read_bytes <= Limits().header_bytes + 8 * chunks  # a length on the edge, twice
    maker = GgufMaker()
    maker.key("empty", ARRAY, maker.pack("IQ", STRING, 2**23))
    source = fuzz_gguf.FuzzBytes(maker.header(), 2**40, b"\0")
    with pytest.raises(GgufError, match="8388608 strings, but only"):
        read_header(source)
    assert source.read_bytes <= fuzz_gguf.READ_AT_ONCE_BYTES


def test_a_finding_is_told_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_gguf, "BATCH_TIMEOUT_S", 0.5)
    with pytest.raises(AssertionError, match=r"seed 0, input .*: still running after 0.5 s"):
        fuzz_gguf.start_batch(seed=0, first=1, count=10**6)
