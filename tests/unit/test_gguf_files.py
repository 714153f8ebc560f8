"""Models in several files, local and remote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gguf_bytes import ByteSource, FileBytes
from ansible_collections.kloros.llm.plugins.module_utils.gguf_files import (
    GgufModel,
    read_model,
    read_model_file,
    read_model_source,
    shard_names,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import GgufError, Limits
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError
from ansible_collections.kloros.llm.plugins.module_utils.model_source import parse_source

from testbed.stand_in_hub import StandInHub
from tests.unit.gguf_maker import I32, U16, U32, GgufMaker, qwen2_32b
from tests.unit.stand_in_web import Asked, Reply, StandInWeb, ranged

TOKEN = "hf_canary"
FIRST = "m-00001-of-00003.gguf"
NAMES = [FIRST, "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
SOURCE = parse_source(f"hf://acme/m/{FIRST}")


def shard(number: int, count: int = 3, tensors: int | None = 3, order: str = "<") -> GgufMaker:
    maker = GgufMaker("<" if order == "<" else ">")
    if number == 0:
        maker.string("general.architecture", "llama")
        maker.string("general.name", "sharded")
    maker.number("split.no", U16, number)
    maker.number("split.count", U16, count)
    if tensors is not None:
        maker.number("split.tensors.count", I32, tensors)
    maker.tensor(f"blk.{number}.weight", (32, number + 1), "Q8_0")
    return maker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "acme" / "m"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(shard(number).file())
    return folder


@pytest.fixture
def hub(folder: Path) -> Iterator[StandInHub]:
    with StandInHub(folder.parents[1], token=TOKEN) as running:
        yield running


@pytest.fixture
def client() -> HttpClient:
    return HttpClient(timeout_s=20, sleep=lambda _: None)


def assert_whole(model: GgufModel) -> None:
    assert model.header.metadata["general.name"] == "sharded"
    assert [tensor.name for tensor in model.header.tensors] == [
        f"blk.{number}.weight" for number in range(3)
    ]
    assert [one.name.rpartition("/")[2] for one in model.shards] == NAMES
    assert [len(one.header.tensors) for one in model.shards] == [1, 1, 1]
    assert model.size_bytes == sum(len(shard(number).file()) for number in range(3))


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("model.gguf", ["model.gguf"]),
        ("a/m-00001-of-00001.gguf", ["a/m-00001-of-00001.gguf"]),
        (FIRST, NAMES),
        ("-00001-of-00003.gguf", ["-00001-of-00003.gguf"]),
        ("m-1-of-3.gguf", ["m-1-of-3.gguf"]),
        ("m-00001-of-00003.gguf.part", ["m-00001-of-00003.gguf.part"]),
    ],
)
def test_names_of_shards(first: str, names: list[str]) -> None:
    assert shard_names(first) == names


def test_a_model_is_named_by_its_first_shard() -> None:
    with pytest.raises(GgufError, match=f"a/{FIRST}"):
        shard_names("a/m-00002-of-00003.gguf")


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "a/m-00001-of-99999.gguf"])
def test_a_number_of_shards_that_cannot_be(name: str) -> None:
    with pytest.raises(GgufError, match="which cannot be"):
        shard_names(name)


def test_shards_are_read_as_one(folder: Path) -> None:
    model = read_model_file(folder / FIRST)
    assert_whole(model)
    assert (model.revision, model.requests, model.fetched_bytes) == (None, 0, 0)


def test_shards_as_gguf_py_writes_them(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"tensor.{number}", np.zeros((2, 3), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = read_model_file(tmp_path / FIRST)
    assert [len(one.header.tensors) for one in model.shards] == [2, 2, 1]
    assert [tensor.name for tensor in model.header.tensors] == [
        f"tensor.{number}" for number in range(5)
    ]
    assert model.header.metadata["split.count"] == 3


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    maker = GgufMaker()
    maker.string("general.architecture", "llama")
    path.write_bytes(maker.file())
    model = read_model_file(path)
    assert model.size_bytes == path.stat().st_size
    assert model.shards[0].header is model.header


@pytest.mark.parametrize(
    ("number", "maker", "message"),
    [
        (0, shard(0, count=2), "one of 3 shards by its name, but its header says split.count = 2"),
        (1, shard(1, count=4), "m-00002-of-00003.gguf is one of 3 shards by its name"),
        (0, GgufMaker(), "its header knows of no shards"),
        (1, shard(2), "says split.no = 2; needed: 1. The shards were mixed up"),
        (0, shard(1), "says split.no = 1; needed: 0"),
        (2, shard(2, order=">"), "is big-endian, the first shard little-endian"),
        (0, shard(0, tensors=4), "says split.tensors.count = 4, but its 3 shards hold 3 tensors"),
        (0, shard(0, tensors=None), "says split.tensors.count = None"),
    ],
)
def test_shards_that_do_not_belong_together(
    folder: Path, number: int, maker: GgufMaker, message: str
) -> None:
    (folder / NAMES[number]).write_bytes(maker.file())
    with pytest.raises(GgufError) as caught:
        read_model_file(folder / FIRST)
    assert message in str(caught.value)
    assert NAMES[number] in str(caught.value)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    maker = shard(2)
    maker.tensor("blk.0.weight", (32,))
    (folder / NAMES[2]).write_bytes(maker.file())
    with pytest.raises(GgufError, match=r"holds the tensor 'blk\.0\.weight' that an earlier"):
        read_model_file(folder / FIRST)


def test_shards_together_may_take_what_one_file_may(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        maker = shard(number, tensors=6)
        maker.tensor(f"{number}" * 1000, (32,))
        (folder / name).write_bytes(maker.file())
    assert len(read_model_file(folder / FIRST, Limits(tensors=6)).header.tensors) == 6
    with pytest.raises(GgufError, match=rf"{NAMES[2]}.*2 tensors; at most 1"):
        read_model_file(folder / FIRST, Limits(tensors=5))
    with pytest.raises(GgufError, match=rf"{NAMES[2]}.*names take"):
        read_model_file(folder / FIRST, Limits(names_bytes=3000))


def test_only_the_first_shard_speaks_for_the_model(folder: Path) -> None:
    model = read_model_file(folder / FIRST)
    assert [bool(one.header.metadata) for one in model.shards] == [True, False, False]


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match=NAMES[1]):
        read_model_file(folder / FIRST)


def test_a_renamed_shard_is_no_model_of_its_own(folder: Path) -> None:
    (folder / FIRST).rename(folder / "model.gguf")
    with pytest.raises(GgufError, match=r"one of 3 shards; .*NAME-00001-of-00003\.gguf"):
        read_model_file(folder / "model.gguf")


def test_shards_share_the_limit_of_tensors(folder: Path) -> None:
    assert_whole(read_model_file(folder / FIRST, Limits(tensors=3)))
    with pytest.raises(GgufError, match="1 tensors; at most 0"):
        read_model_file(folder / FIRST, Limits(tensors=2))


def test_every_source_is_closed(folder: Path) -> None:
    opened: list[FileBytes] = []

    def open_source(name: str) -> ByteSource:
        opened.append(FileBytes(folder / name))
        return opened[-1]

    (folder / NAMES[1]).write_bytes(b"no model")
    with pytest.raises(GgufError, match="this is no GGUF file"):
        read_model(open_source, FIRST)
    assert len(opened) == 2
    for source in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            source.read_at(0, 1)


# remote


def test_remote_shards_take_two_requests_each(hub: StandInHub, client: HttpClient) -> None:
    model = read_model_source(SOURCE, client, hub.url)
    assert_whole(model)
    assert model.requests == len(hub.requests) == 6
    assert model.fetched_bytes == model.size_bytes
    commit = hub.store.commit("acme/m")
    assert model.revision == commit
    asked = [record.path for record in hub.requests if record.listener == "hub"]
    assert asked == [f"/acme/m/resolve/main/{FIRST}"] + [
        f"/acme/m/resolve/{commit}/{name}" for name in NAMES[1:]
    ]


def test_a_first_shard_of_20_gb_and_small_ranges_of_the_others(
    hub: StandInHub, folder: Path, client: HttpClient
) -> None:
    first = qwen2_32b()
    big = GgufMaker()
    big.keys, big.tensors, big.data_bytes = list(first.keys), first.tensors, first.data_bytes
    big.number("split.no", U16, 0)
    big.number("split.count", U16, 3)
    big.number("split.tensors.count", U32, len(first.tensors) + 2)
    path = folder / FIRST
    big.write_sparse(path)
    state = path.stat()
    digest = hashlib.sha256(big.header()).hexdigest()  # hashing 20 GB would take long
    hub.store._digests[path, state.st_size, state.st_mtime_ns] = digest
    model = read_model_source(SOURCE, client, hub.url)
    assert len(model.header.tensors) == len(first.tensors) + 2
    assert [record.range for record in hub.requests if record.listener == "cdn"] == [
        "bytes=0-4194303",
        "bytes=4194304-16777215",
        "bytes=0-262143",
        "bytes=0-262143",
    ]
    assert model.fetched_bytes <= 16 * 1024 * 1024 + 2 * 262144


def test_gated_shards(hub: StandInHub, folder: Path, client: HttpClient) -> None:
    (folder / ".gated").touch()
    with pytest.raises(HttpError, match="give a read token"):
        read_model_source(SOURCE, client, hub.url)
    hub.forget_requests()
    assert_whole(read_model_source(SOURCE, client, hub.url, TOKEN))
    assert [(record.listener, record.authorization) for record in hub.requests] == [
        ("hub", True),
        ("cdn", False),
    ] * 3


def test_a_pinned_revision(hub: StandInHub, client: HttpClient) -> None:
    commit = hub.store.commit("acme/m")
    assert_whole(read_model_source(SOURCE, client, hub.url, revision=commit))
    asked = [record.path for record in hub.requests if record.listener == "hub"]
    assert all(f"/resolve/{commit}/" in path for path in asked)


def test_shards_at_a_url_with_a_query_and_no_token(folder: Path, client: HttpClient) -> None:
    def answer(asked: Asked) -> Reply:
        path, _, query = asked.path.partition("?")
        assert query == "download=true"
        return ranged(asked, (folder / path.rpartition("/")[2]).read_bytes())

    with StandInWeb(answer) as web:
        source = parse_source(f"{web.url}/models/{FIRST}?download=true")
        assert_whole(read_model_source(source, client, "https://hub.example.com", TOKEN))
        assert len(web.asked) == 3
        assert not any("authorization" in asked.headers for asked in web.asked)


def test_a_file_source(folder: Path, client: HttpClient) -> None:
    assert_whole(read_model_source(parse_source(f"file:{folder / FIRST}"), client, ""))
    with pytest.raises(FileNotFoundError):
        read_model_source(parse_source(f"file:{folder}/none.gguf"), client, "")
