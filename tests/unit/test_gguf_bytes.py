"""The beginning of a remote file: few requests, few bytes, and servers that misbehave."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gguf_bytes import (
    FIRST_BYTES,
    MAX_FRUITLESS,
    MAX_REQUESTS,
    FileBytes,
    HttpBytes,
    MemoryBytes,
)
from ansible_collections.kloros.llm.plugins.module_utils.gguf_reader import GgufError, read_header
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError

from testbed.stand_in_hub import StandInHub
from tests.unit.gguf_maker import GgufMaker, gemma_27b, qwen2_32b
from tests.unit.stand_in_web import Asked, Reply, StandInWeb, ranged, redirect

KIB = 1024
MIB = 1024 * KIB
CONTENT = bytes(range(256)) * 1024  # 256 KiB
TOKEN = "hf_canary"


@pytest.fixture
def client() -> HttpClient:
    return HttpClient(timeout_s=20, sleep=lambda _: None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "acme" / "m"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(CONTENT)
    with StandInHub(tmp_path, token=TOKEN) as running:
        yield running


def address(hub: StandInHub) -> str:
    return f"{hub.url}/acme/m/resolve/main/m.gguf"


def lay(hub: StandInHub, maker: GgufMaker) -> int:
    """Put a model into the hub without taking its space, or the time to hash it; its size."""
    path = hub.store.root / "acme" / "m" / "m.gguf"
    size_bytes = maker.write_sparse(path)
    state = path.stat()
    digest = hashlib.sha256(maker.header()).hexdigest()
    hub.store._digests[path, state.st_size, state.st_mtime_ns] = digest
    return size_bytes


@pytest.mark.parametrize("make", [qwen2_32b, gemma_27b])
def test_the_header_of_20_gb_takes_three_requests_and_16_mib(
    hub: StandInHub, client: HttpClient, make: Callable[[], GgufMaker]
) -> None:
    maker = make()
    size_bytes = lay(hub, maker)
    assert size_bytes > 20e9
    assert len(maker.header()) > FIRST_BYTES
    with HttpBytes(client, address(hub)) as source:
        header = read_header(source)
    assert header == read_header(MemoryBytes(maker.header(), size_bytes))
    assert source.size_bytes == size_bytes
    assert len(hub.requests) == source.requests == 3
    assert source.fetched_bytes == 16 * MIB
    assert [record.range for record in hub.requests] == [
        f"bytes=0-{4 * MIB - 1}",
        f"bytes=0-{4 * MIB - 1}",
        f"bytes={4 * MIB}-{16 * MIB - 1}",
    ]


def test_a_small_file_takes_one_range(hub: StandInHub, client: HttpClient) -> None:
    with HttpBytes(client, address(hub)) as source:
        assert source.size_bytes is None
        assert source.read_at(10, 5) == CONTENT[10:15]
        assert source.read_at(0, 2 * len(CONTENT)) == CONTENT
        assert source.read_at(len(CONTENT), 1) == b""
    assert source.size_bytes == source.fetched_bytes == len(CONTENT)
    assert source.hub.commit == hub.store.commit("acme/m")
    assert len(hub.requests) == source.requests == 2


def test_ranges_grow(hub: StandInHub, client: HttpClient) -> None:
    with HttpBytes(client, address(hub), first_bytes=KIB) as source:
        for offset in range(0, 40 * KIB, 100):
            assert source.read_at(offset, 100) == CONTENT[offset : offset + 100]
    wanted = [(0, 1), (0, 1), (1, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    assert [record.range for record in hub.requests] == [
        f"bytes={first * KIB}-{last * KIB - 1}" for first, last in wanted
    ]


def test_the_token_stays_with_its_host(hub: StandInHub, client: HttpClient) -> None:
    (hub.store.root / "acme" / "m" / ".gated").touch()
    with HttpBytes(client, address(hub), TOKEN, first_bytes=KIB) as source:
        assert source.read_at(0, len(CONTENT)) == CONTENT
    assert [(record.listener, record.authorization) for record in hub.requests] == [
        ("hub", True),
        ("cdn", False),
    ]
    hub.forget_requests()
    with HttpBytes(client, address(hub), TOKEN, first_bytes=KIB) as source:
        source.read_at(0, 1)
        source.read_at(KIB, 1)  # goes to the final address at once
    assert [(record.listener, record.authorization) for record in hub.requests] == [
        ("hub", True),
        ("cdn", False),
        ("cdn", False),
    ]


def test_the_token_goes_to_the_same_host_again(client: HttpClient) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return Reply(401)
        return redirect("/there") if asked.path == "/here" else ranged(asked, CONTENT[:8])

    with StandInWeb(answer) as web, HttpBytes(client, f"{web.url}/here", TOKEN) as source:
        assert source.read_at(0, 8) == CONTENT[:8]


def test_without_its_token_a_gated_file_is_refused(hub: StandInHub, client: HttpClient) -> None:
    (hub.store.root / "acme" / "m" / ".gated").touch()
    with (
        HttpBytes(client, address(hub)) as source,
        pytest.raises(HttpError, match="give a read token"),
    ):
        source.read_at(0, 1)


def test_an_expired_address_is_asked_for_again_once(hub: StandInHub, client: HttpClient) -> None:
    with HttpBytes(client, address(hub), first_bytes=KIB) as source:
        source.read_at(0, 1)
        hub.token = "another, so that signatures change"
        assert source.read_at(0, 3 * KIB) == CONTENT[: 3 * KIB]
        assert [(record.listener, record.status) for record in hub.requests] == [
            ("hub", 302),
            ("cdn", 206),
            ("cdn", 403),
            ("hub", 302),
            ("cdn", 206),
        ]
        assert source.requests == 5
        hub.token = "and another"
        with pytest.raises(HttpError, match="HTTP 403"):
            source.read_at(0, 8 * KIB)


def test_a_server_without_ranges_is_read_as_far_as_needed(
    hub: StandInHub, client: HttpClient
) -> None:
    size_bytes = lay(hub, qwen2_32b())
    hub.faults.ignore_range = True
    with HttpBytes(client, address(hub)) as source:
        header = read_header(source)
    assert source.size_bytes == size_bytes
    assert header.data_offset <= source.fetched_bytes < header.data_offset + MIB
    assert len(hub.requests) == 2


def test_a_server_without_ranges_that_breaks_off_is_asked_again(
    hub: StandInHub, client: HttpClient
) -> None:
    hub.faults.ignore_range = True
    hub.faults.cut_after_bytes = 100 * KIB
    hub.faults.cut_times = 1
    with HttpBytes(client, address(hub)) as source:
        assert source.read_at(0, len(CONTENT)) == CONTENT
    assert source.fetched_bytes == len(CONTENT) + 100 * KIB


def test_what_breaks_off_goes_on_where_it_was(hub: StandInHub, client: HttpClient) -> None:
    hub.faults.cut_after_bytes = 100 * KIB
    with HttpBytes(client, address(hub)) as source:
        assert source.read_at(0, len(CONTENT)) == CONTENT
    assert source.fetched_bytes == len(CONTENT)
    assert [record.range for record in hub.requests if record.listener == "cdn"] == [
        f"bytes={start * KIB}-{4 * MIB - 1}" for start in (0, 100, 200)
    ]


@pytest.mark.parametrize(
    ("body", "requests", "message"),
    [(b"", MAX_FRUITLESS, "byte 0 never came"), (b"x", MAX_REQUESTS, "brought only 16 bytes")],
)
def test_a_server_that_hardly_moves_is_given_up(body: bytes, requests: int, message: str) -> None:
    waits: list[float] = []
    client = HttpClient(timeout_s=20, sleep=waits.append)

    def answer(asked: Asked) -> Reply:
        first = asked.first_byte
        return Reply(206, body, {"Content-Range": f"bytes {first}-{first}/100000"})

    with (
        StandInWeb(answer) as web,
        HttpBytes(client, f"{web.url}/m") as source,
        pytest.raises(HttpError, match=message),
    ):
        source.read_at(0, 1000)
    assert source.requests == requests
    assert waits == ([] if body else [1, 2, 4])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(206, b"abc", {"Content-Range": "bytes 7-9/10"}), "answers with the range"),
        (Reply(206, b"abc"), "answers with the range None"),
        (Reply(204), "HTTP 204 instead of the file's bytes"),
    ],
)
def test_answers_that_make_no_sense(client: HttpClient, reply: Reply, message: str) -> None:
    with (
        StandInWeb(lambda _: reply) as web,
        HttpBytes(client, f"{web.url}/m") as source,
        pytest.raises(HttpError, match=message),
    ):
        source.read_at(0, 4)


def test_more_than_asked_for_is_not_taken(client: HttpClient) -> None:
    def answer(_: Asked) -> Reply:
        return Reply(206, bytes(100 * KIB), {"Content-Range": "bytes 0-102399/102400"})

    with StandInWeb(answer) as web, HttpBytes(client, f"{web.url}/m", first_bytes=KIB) as source:
        assert source.read_at(0, 10) == bytes(10)
        assert source.fetched_bytes == KIB


@pytest.mark.parametrize("hides", ["size", "nothing"])
@pytest.mark.parametrize("what", ["size", "etag"])
def test_a_file_that_changes_is_noticed(client: HttpClient, what: str, hides: str) -> None:
    contents = iter([(CONTENT, '"1"'), (CONTENT + b"x" if what == "size" else CONTENT, '"2"')])

    def answer(asked: Asked) -> Reply:
        body, etag = next(contents)
        first = asked.first_byte or 0
        total = len(body) if hides == "nothing" or what == "size" else "*"
        headers = {"Content-Range": f"bytes {first}-{first + KIB - 1}/{total}"}
        if what == "etag":
            headers["ETag"] = etag
        return Reply(206, body[first : first + KIB], headers)

    with (
        StandInWeb(answer) as web,
        HttpBytes(client, f"{web.url}/m", first_bytes=KIB) as source,
    ):
        assert source.read_at(0, KIB) == CONTENT[:KIB]
        with pytest.raises(HttpError, match="changed while it was being read"):
            source.read_at(KIB, KIB)


def test_a_server_that_hides_the_size_is_read_to_its_end(client: HttpClient) -> None:
    def answer(asked: Asked) -> Reply:
        first = asked.first_byte or 0
        if first >= len(CONTENT):
            return Reply(416, headers={"Content-Range": f"bytes */{len(CONTENT)}"})
        part = CONTENT[first : first + 200 * KIB]
        return Reply(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/*"})

    with StandInWeb(answer) as web, HttpBytes(client, f"{web.url}/m") as source:
        assert source.read_at(0, MIB) == CONTENT
        assert source.size_bytes == len(CONTENT)
        assert source.read_at(0, MIB) == CONTENT
        assert source.requests == 3


def test_a_body_of_unknown_length_is_read_to_its_end(client: HttpClient) -> None:
    reply = Reply(200, CONTENT, states_length=False)
    with StandInWeb(lambda _: reply) as web, HttpBytes(client, f"{web.url}/m") as source:
        assert source.read_at(0, MIB) == CONTENT
        assert source.size_bytes == len(CONTENT)


def test_nothing_is_read_beyond_the_limit(client: HttpClient) -> None:
    reply = Reply(200, bytes(MIB), states_length=False)
    with (
        StandInWeb(lambda _: reply) as web,
        HttpBytes(client, f"{web.url}/m", limit_bytes=100 * KIB) as source,
    ):
        assert source.read_at(0, 100 * KIB) == bytes(100 * KIB)
        with pytest.raises(HttpError, match="at most 102400 bytes are read of a header"):
            source.read_at(100 * KIB, 1)
        assert source.fetched_bytes == 100 * KIB


def test_an_empty_file_is_no_gguf_file(client: HttpClient) -> None:
    with (
        StandInWeb(lambda _: Reply(416, headers={"Content-Range": "bytes */0"})) as web,
        HttpBytes(client, f"{web.url}/m") as source,
        pytest.raises(GgufError, match="the bytes end within the magic number"),
    ):
        read_header(source)


def test_messages_leave_signatures_out(client: HttpClient) -> None:
    with (
        StandInWeb(lambda _: Reply(204)) as web,
        HttpBytes(client, f"{web.url}/m?Signature=secret") as source,
        pytest.raises(HttpError) as caught,
    ):
        source.read_at(0, 4)
    assert "secret" not in str(caught.value) + source.description
    assert f"{web.url}/m: HTTP 204" in str(caught.value)


# local files


def test_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    with FileBytes(path) as source:
        assert source.size_bytes == len(CONTENT)
        assert source.read_at(7, 3) == CONTENT[7:10]
        assert source.read_at(len(CONTENT) - 1, 10) == CONTENT[-1:]


def test_a_path_that_cannot_be_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="no path of a file"):
        FileBytes("/m\0.gguf")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(OSError, match="not a regular file"):
        FileBytes(tmp_path / "odd")
