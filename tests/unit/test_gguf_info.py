"""Module gguf_info through a real ansible-playbook."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.module_utils.gguf_bytes import MemoryBytes
from ansible_collections.kloros.llm.plugins.module_utils.gguf_facts import model_facts
from ansible_collections.kloros.llm.plugins.module_utils.gguf_files import GgufModel, GgufShard
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import read_header
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    FileRecord,
    Record,
    write_record,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_shape import ModelShape
from ansible_collections.kloros.llm.plugins.modules import gguf_info

from testbed.stand_in_hub import StandInHub
from tests.unit.gguf_maker import U16, U32, GgufMaker
from tests.unit.play_runner import PlayRunner

TOKEN = "hf_canary_token"
SOURCE = "hf://acme/gated-GGUF/tiny.gguf"


def tiny() -> GgufMaker:
    """A llama of two layers, with everything that llama.cpp wants."""
    maker = GgufMaker()
    maker.string("general.architecture", "llama")
    maker.string("general.type", "model")
    maker.string("general.name", "Tiny Llama")
    maker.string("general.size_label", "9K")
    maker.number("general.file_type", U32, 7)
    maker.number("llama.context_length", U32, 2048)
    maker.number("llama.embedding_length", U32, 32)
    maker.number("llama.block_count", U32, 2)
    maker.number("llama.feed_forward_length", U32, 64)
    maker.number("llama.attention.head_count", U32, 4)
    maker.number("llama.attention.head_count_kv", U32, 2)
    maker.string("tokenizer.ggml.model", "gpt2")
    maker.strings("tokenizer.ggml.tokens", map(str, range(100)))
    maker.string("tokenizer.chat_template", "{{ messages }}")
    maker.tensor("token_embd.weight", (32, 100), "Q8_0")
    for layer in range(2):
        maker.tensor(f"blk.{layer}.attn_norm.weight", (32,))
        maker.tensor(f"blk.{layer}.attn_q.weight", (32, 32), "Q8_0")
        maker.tensor(f"blk.{layer}.attn_k.weight", (32, 16), "Q8_0")
        maker.tensor(f"blk.{layer}.attn_v.weight", (32, 16), "Q8_0")
        maker.tensor(f"blk.{layer}.attn_output.weight", (32, 32), "Q8_0")
    maker.tensor("output_norm.weight", (32,))
    return maker


FACTS = {
    "name": "Tiny Llama",
    "kind": "model",
    "architecture": "llama",
    "size_label": "9K",
    "quantisation": "Q8_0",
    "parameters": 32 * 100 + 2 * (32 + 2 * 32 * 32 + 2 * 32 * 16) + 32,
    "context_trained": 2048,
    "size_bytes": len(tiny().file()),
    "files": [{"name": "tiny.gguf", "size_bytes": len(tiny().file())}],
    "version": 3,
    "byte_order": "little",
    "tensors": 12,
    "bytes_by_type": {"Q8_0": (32 * 100 + 2 * (2 * 32 * 32 + 2 * 32 * 16)) // 32 * 34, "F32": 384},
    "tokenizer": "gpt2",
    "vocabulary": 100,
    "chat_template": True,
    "shape_detail": "",
}


def facts_of(maker: GgufMaker) -> dict[str, Any]:
    header = read_header(MemoryBytes(maker.file()))
    return model_facts(GgufModel(header, (GgufShard("/m/x.gguf", None, header),)))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "hub" / "acme" / "gated-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(tiny().file())
    (folder / ".gated").touch()
    with StandInHub(tmp_path / "hub", token=TOKEN) as running:
        yield running


@pytest.fixture
def file(hub: StandInHub) -> Path:
    return hub.store.root / "acme" / "gated-GGUF" / "tiny.gguf"


@pytest.mark.parametrize("options", [[], ["--check", "--diff"]])
def test_a_file_on_the_host(runner: PlayRunner, file: Path, options: list[str]) -> None:
    played = runner.play("gguf_info", {"path": str(file)}, options=options)
    assert (played.rc, played.result["changed"]) == (0, False), played.output
    wanted = FACTS | {"revision": None, "requests": 0, "fetched_bytes": 0}
    assert {name: played.result[name] for name in wanted} == wanted
    shape = ModelShape.from_data(played.result["shape"])
    assert shape.to_data() == played.result["shape"]
    assert (shape.layer_count, shape.context_trained, shape.vocabulary) == (2, 2048, 100)
    documented = yaml.safe_load(gguf_info.RETURN)
    ansible_adds = {"changed", "failed", "ansible_facts", "warnings", "deprecations"}
    assert set(documented) - {"problem"} == set(played.result) - ansible_adds
    assert played.result["on_host"] is True
    assert played.result["data_bytes"] == sum(played.result["bytes_by_type"].values())


def test_a_model_on_a_hub(runner: PlayRunner, hub: StandInHub, file: Path) -> None:
    runner.settings["HF_ENDPOINT"] = hub.url
    played = runner.play(
        "gguf_info", {"source": SOURCE, "hf_token": TOKEN}, options=["-vvv", "--check"]
    )
    assert (played.rc, played.result["changed"]) == (0, False), played.output
    wanted = FACTS | {
        "revision": hub.store.commit("acme/gated-GGUF"),
        "requests": 2,
        "fetched_bytes": file.stat().st_size,
    }
    assert {name: played.result[name] for name in wanted} == wanted
    assert len(hub.requests) == 2
    assert TOKEN not in played.output
    assert runner.left_over() == []


def recorded(path: Path, source: str) -> str:
    """Write the record of a file that is in place; its digest."""
    state = path.stat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = FileRecord(
        file=path.name,
        role="model",
        source=source,
        revision=None,
        size_bytes=state.st_size,
        sha256=digest,
        verified=True,
        verified_at="2026-11-23T00:00:00+00:00",
        mtime_ns=state.st_mtime_ns,
    )
    write_record(path.parent, Record("tiny", source, None, (file,)))
    return digest


def test_a_file_from_another_source_is_not_what_will_be_there(
    runner: PlayRunner, tmp_path: Path
) -> None:
    """Its successor is what counts, before it is fetched; a digest that agrees keeps the file."""
    here, there = tmp_path / "m.gguf", tmp_path / "new.gguf"
    here.write_bytes(tiny().file())
    there.write_bytes(tiny().file().replace(b"Tiny Llama", b"Other Lama"))
    digest = recorded(here, "file:/old.gguf")
    new = {"path": str(here), "source": f"file:{there}"}
    same = {"path": str(here), "source": "file:/old.gguf"}
    gone = {"path": str(here), "source": "file:/gone.gguf", "report_problems": True}
    played = runner.play("gguf_info", new, same, new | {"sha256": digest}, gone)
    names = [result.get("name") for result in played.results]
    assert names == ["Other Lama", "Tiny Llama", "Tiny Llama", None]
    assert "/gone.gguf" in played.results[3]["problem"]
    here.touch()  # Touched since: only reading it whole would tell.
    assert runner.play("gguf_info", new).result["name"] == "Tiny Llama"


def test_a_damaged_file_is_read_at_its_source(runner: PlayRunner, tmp_path: Path) -> None:
    here, there = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    there.write_bytes(tiny().file())
    here.write_bytes(tiny().file()[:200])
    both = {"path": str(here), "source": f"file:{there}", "report_problems": True}
    neither = both | {"source": "file:/gone.gguf"}
    read, problem = runner.play("gguf_info", both, neither).results
    assert read["name"] == "Tiny Llama"
    assert str(here) in problem["problem"]
    assert "/gone.gguf" in problem["problem"]


FAILURES: list[tuple[dict[str, Any], str]] = [
    ({}, "one of the following is required: path, source"),
    ({"path": "/nonexistent/m.gguf"}, "/nonexistent/m.gguf: No such file or directory"),
    ({"path": "", "source": ""}, "both 'path' and 'source' are empty"),
    ({"path": "/m\0.gguf"}, "no path of a file"),
    ({"source": "http://127.0.0.1:9/m.gguf", "timeout_s": 0}, "waited for 0 seconds; needed"),
    ({"path": "/dev"}, "/dev: not a regular file"),
    ({"path": "/etc/passwd"}, "this is no GGUF file: it begins with b'root'"),
    ({"source": "s3://b/m.gguf"}, "accepted: hf://OWNER/REPOSITORY"),
    ({"source": "hf://acme/gated-GGUF/none.gguf", "hf_token": TOKEN}, "check owner, repository"),
    ({"source": SOURCE}, "give a read token"),
    ({"source": SOURCE, "hf_endpoint": "mirror"}, "is not a base URL"),
]


def test_failures_say_what_to_do(runner: PlayRunner, hub: StandInHub, tmp_path: Path) -> None:
    runner.settings["HF_ENDPOINT"] = hub.url
    first = tmp_path / "m-00001-of-00002.gguf"
    maker = tiny()
    maker.number("split.no", U16, 0)
    maker.number("split.count", U16, 2)
    first.write_bytes(maker.file())
    missing = str(first).replace("00001-of", "00002-of")
    failures = [*FAILURES, ({"path": str(first)}, f"{missing}: No such file or directory")]
    args = [args for args, _ in failures]
    played = runner.play("gguf_info", *args, options=["-v"], ignore_errors=True)
    for result, (_, message) in zip(played.results, failures, strict=True):
        assert result["failed"]
        assert message in result["msg"]
        assert "Traceback" not in result["msg"]


def test_host_before_offline_folder_before_network(
    runner: PlayRunner, hub: StandInHub, file: Path, tmp_path: Path
) -> None:
    runner.settings["HF_ENDPOINT"] = hub.url
    folder = tmp_path / "offline"
    missing = str(tmp_path / "missing.gguf")
    both = {"path": missing, "source": SOURCE, "hf_token": TOKEN, "report_problems": True}
    offline = both | {"offline_dir": str(folder), "offline": True}
    remote, none, gated = runner.play(
        "gguf_info", both, offline, both | {"hf_token": "wrong"}
    ).results
    assert (remote["on_host"], remote["name"]) == (False, "Tiny Llama")
    assert set(none) & {"problem", "shape"} == {"problem"}
    assert (
        f"put it at {folder}/acme/gated-GGUF/tiny.gguf or {folder}/missing.gguf" in none["problem"]
    )
    assert "the token was sent" in gated["problem"]
    hub.forget_requests()
    (folder / "acme/gated-GGUF").mkdir(parents=True)
    (folder / "acme/gated-GGUF/tiny.gguf").write_bytes(file.read_bytes())
    there = both | {"path": str(file)}
    taken, own = runner.play("gguf_info", offline, there).results
    assert (taken["on_host"], own["on_host"]) == (True, True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda m: m.string("general.architecture", "clip"), "projector"),
        (lambda m: m.string("general.type", "mmproj"), "projector"),
        (lambda m: m.string("general.type", "adapter"), "adapter"),
        (lambda m: m.string("adapter.type", "lora"), "adapter"),
        (lambda m: m.string("general.type", "imatrix"), "imatrix"),
        (lambda m: m.string("general.type", "vocoder"), "other"),
    ],
)
def test_what_is_no_language_model_has_no_shape(
    change: Callable[[GgufMaker], None], kind: str
) -> None:
    maker = GgufMaker()
    change(maker)
    facts = facts_of(maker)
    assert (facts["kind"], facts["shape"]) == (kind, None)
    assert facts["shape_detail"] == f"a file of kind '{kind}' is no language model"


def test_texts_of_strangers_are_short_and_command_no_terminal() -> None:
    maker = GgufMaker()
    maker.string("general.architecture", "llama\x1b[2J")
    maker.string("general.name", "\x1b]0;owned\x07 line\n" + "x" * 10_000)
    facts = facts_of(maker)
    assert facts["name"].startswith("\ufffd]0;owned\ufffd line\ufffdx")
    assert len(facts["name"]) == 200
    assert facts["architecture"] == "llama\ufffd[2J"
    assert facts["shape_detail"].isprintable()


def test_a_header_that_says_nothing() -> None:
    maker = GgufMaker()
    maker.number("general.name", U32, 7)
    maker.tensor("t", (32, 4), "Q5_0")
    maker.tensor("norm", (4,))
    facts = facts_of(maker)
    assert facts["kind"] == "model"
    assert facts["quantisation"] == "Q5_0"
    assert facts["shape"] is None
    assert "general.architecture" in facts["shape_detail"]
    silent = ("name", "architecture", "size_label", "context_trained", "tokenizer", "vocabulary")
    assert all(facts[name] is None for name in silent)
    assert facts["files"] == [{"name": "x.gguf", "size_bytes": None}]
    assert facts["size_bytes"] is None
    assert facts["chat_template"] is False
