"""A download comes whole over many connections, and goes on after whatever interrupted it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import model_transfer, part_file
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError
from ansible_collections.kloros.llm.plugins.module_utils.model_transfer import (
    Download,
    Received,
    TransferError,
    drop_part,
    missing_disk_bytes,
    part_size_bytes,
    resumable_bytes,
    transfer,
)
from ansible_collections.kloros.llm.plugins.module_utils.part_file import PartFile
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile, parse
from ansible_collections.kloros.llm.plugins.module_utils.transfer_journal import (
    ByteRanges,
    TransferJournal,
    Version,
)
from ansible_collections.kloros.llm.plugins.module_utils.transfer_work import (
    MAX_FRUITLESS_ATTEMPTS,
    Span,
    Work,
    first_chunk_bytes,
)
from hypothesis import given
from hypothesis import strategies as st

from testbed.stand_in_hub import Faults, StandInHub
from tests.unit.stand_in_web import Asked, Reply, StandInWeb, ranged

SIZE_BYTES = 32 << 20
CONNECTIONS = 4
CHUNK_BYTES = first_chunk_bytes(SIZE_BYTES, CONNECTIONS)
# So slow a connection does not stay alone.
SLOW_BYTES_PER_S = 20_000_000
REPO = "acme/big-GGUF"
TOKEN = "hf_canary_of_the_transfer"


@pytest.fixture(scope="session")
def content() -> bytes:
    return b"GGUF" + random.Random(4).randbytes(SIZE_BYTES - 4)  # noqa: S311 - the same every time


@pytest.fixture(scope="session")
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def hub_root(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    (root / REPO).mkdir(parents=True)
    (root / REPO / "big.gguf").write_bytes(content)
    (root / REPO / ".gated").touch()
    return root


@pytest.fixture
def hub(hub_root: Path) -> Iterator[StandInHub]:
    with StandInHub(hub_root, token=TOKEN) as running:
        yield running


@pytest.fixture
def client() -> HttpClient:
    return HttpClient(10, sleep=lambda _: time.sleep(0.01))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "big.gguf.part"


@pytest.fixture
def download(hub: StandInHub, part: Path, sha256: str) -> Download:
    url = f"{hub.url}/{REPO}/resolve/main/big.gguf"
    return Download("big", "hf://big", url, SIZE_BYTES, sha256, part, TOKEN)


def get(client: HttpClient, download: Download, connections: int = CONNECTIONS) -> Received:
    quiet = ProgressFile(None, "", "bytes")
    return transfer(client, quiet, download, lambda _: None, connections)


def of_web(web: StandInWeb, part: Path, content: bytes, sha256: str | None = None) -> Download:
    return Download("big", "web", f"{web.url}/big.gguf", len(content), sha256, part)


def bodies(hub: StandInHub) -> list[str | None]:
    """The ranges of the CDN's answers, sorted by where they begin."""
    asked = [r.range for r in hub.requests if r.listener == "cdn" and r.status in (200, 206)]
    return sorted(asked, key=lambda text: int(text[6:].partition("-")[0]) if text else 0)


def leave_half(client: HttpClient, download: Download, hub: StandInHub) -> int:
    """An attempt that ends in an outage; how much of it can be built on."""
    take = hub.take_failure

    def outage(listener: Any) -> Any:
        if hub.bytes_served > SIZE_BYTES // 2:
            hub.faults = Faults(fail_status=404)
        return take(listener)

    hub.faults = Faults(bytes_per_s=SLOW_BYTES_PER_S)
    hub.take_failure = outage  # type: ignore[method-assign]
    with pytest.raises(HttpError, match="404"):
        get(client, download)
    del hub.take_failure
    hub.faults = Faults()
    return resumable_bytes(download)


# The plain way


def test_ranges_over_several_kept_connections(
    client: HttpClient, download: Download, hub: StandInHub, content: bytes, sha256: str
) -> None:
    hub.faults = Faults(bytes_per_s=SLOW_BYTES_PER_S)
    received = get(client, download)
    assert download.part.read_bytes() == content
    assert received == Received(sha256, SIZE_BYTES, 0)
    assert resumable_bytes(download) == part_size_bytes(download) == SIZE_BYTES
    ranges = bodies(hub)
    assert len(ranges) > CONNECTIONS
    cdn = [record for record in hub.requests if record.listener == "cdn"]
    assert CONNECTIONS <= len({record.client_port for record in cdn}) < len(cdn)
    # The address that the Hub redirects to is asked for once, and the CDN never sees the token.
    assert [record.status for record in hub.requests if record.listener == "hub"] == [302]
    assert not any(record.authorization for record in cdn)


def test_a_fast_connection_stays_alone(
    client: HttpClient, download: Download, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = Faults(bytes_per_s=SLOW_BYTES_PER_S)
    monkeypatch.setattr(model_transfer, "_FAST_BYTES_PER_S", SLOW_BYTES_PER_S // 2)
    assert get(client, download) == Received(str(download.sha256), SIZE_BYTES, 0)
    assert bodies(hub) == ["bytes=0-"]


def test_a_connection_that_becomes_slow_is_joined(
    client: HttpClient, download: Download, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Work.wanted

    def slow_later(self: Work, span: Span, count: int) -> int:
        if span.at > SIZE_BYTES // 4:
            monkeypatch.setattr(model_transfer, "_FAST_BYTES_PER_S", sys.maxsize)
        return wait(self, span, count)

    hub.faults = Faults(bytes_per_s=SLOW_BYTES_PER_S)
    monkeypatch.setattr(model_transfer, "_FAST_BYTES_PER_S", 1)
    monkeypatch.setattr(Work, "wanted", slow_later)
    assert get(client, download) == Received(str(download.sha256), SIZE_BYTES, 0)
    first, second = (int(str(text)[6:].partition("-")[0]) for text in bodies(hub)[:2])
    assert first == 0
    assert second > SIZE_BYTES // 4


def test_a_small_file_needs_one_request(
    client: HttpClient, download: Download, hub: StandInHub, hub_root: Path, content: bytes
) -> None:
    (hub_root / REPO / "small.gguf").write_bytes(content[:1000])
    url = download.url.replace("big.gguf", "small.gguf")
    digest = hashlib.sha256(content[:1000]).hexdigest()
    small = replace(download, url=url, size_bytes=1000, sha256=digest)
    assert get(client, small, 16).sha256 == digest
    assert bodies(hub) == [None]


def test_progress_reaches_the_end(client: HttpClient, download: Download, tmp_path: Path) -> None:
    path = tmp_path / "progress"
    transfer(client, ProgressFile(str(path), "", "bytes"), download, lambda _: None)
    progress = parse(path.read_text())
    assert progress is not None
    assert (progress["done"], progress["total"]) == (SIZE_BYTES, SIZE_BYTES)


def test_two_downloads_at_once_share_a_client(
    client: HttpClient, download: Download, sha256: str
) -> None:
    both = [replace(download, part=download.part.with_name(name)) for name in ("a", "b")]
    received: list[Received] = []
    threads = [
        threading.Thread(target=lambda one=one: received.append(get(client, one))) for one in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.sha256 for one in received] == [sha256, sha256]


def test_space_is_asked_for_what_is_not_reserved_yet(
    client: HttpClient, download: Download, hub: StandInHub
) -> None:
    asked: list[int] = []
    quiet = ProgressFile(None, "", "bytes")
    leave_half(client, download, hub)
    assert missing_disk_bytes(download) == 0
    transfer(client, quiet, download, asked.append)
    drop_part(download)
    transfer(client, quiet, download, asked.append)
    assert asked == [0, SIZE_BYTES]


# Interruptions


CHILD = f"""
import sys, json
from pathlib import Path
sys.path[:0] = {sys.path!r}
from {transfer.__module__} import Download, HttpClient, ProgressFile, transfer
url, part, sha256, token = sys.argv[1:]
download = Download("big", "hf://big", url, {SIZE_BYTES}, sha256, Path(part), token)
quiet = ProgressFile(None, "", "bytes")
received = transfer(HttpClient(10), quiet, download, lambda _: None, {CONNECTIONS})
print(json.dumps([received.sha256, received.fetched_bytes, received.resumed_bytes]))
"""


def start_child(download: Download) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            CHILD,
            download.url,
            str(download.part),
            str(download.sha256),
            TOKEN,
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def test_kill_9_at_twenty_random_moments(
    download: Download, hub: StandInHub, content: bytes
) -> None:
    moments = random.Random(20)  # noqa: S311 - the same every time
    hub.faults = Faults(bytes_per_s=SLOW_BYTES_PER_S)
    kills = 0
    finished = 0
    had = 0
    while kills < 20:
        before = hub.bytes_served
        enough = before + moments.randrange(SIZE_BYTES * 3 // 4)
        child = start_child(download)
        while child.poll() is None and hub.bytes_served < enough:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[0]
        if said:
            assert json.loads(said)[0] == download.sha256
            assert download.part.read_bytes() == content
            drop_part(download)
            finished, had = finished + 1, 0
            continue
        kills += 1
        has = resumable_bytes(download)
        assert has >= had
        # What was served in vain: not more than one chunk a connection.
        assert (hub.bytes_served - before) - (has - had) <= CHUNK_BYTES * CONNECTIONS
        had = has
    hub.faults = Faults()
    said = start_child(download).communicate()[0]
    assert json.loads(said) == [download.sha256, SIZE_BYTES - had, had]
    assert download.part.read_bytes() == content
    assert finished + had, "no kill left anything to build on"


def test_a_power_cut_at_any_moment(
    client: HttpClient, download: Download, hub: StandInHub, tmp_path: Path, content: bytes
) -> None:
    """What was not synced is gone, and the journal is as it was then."""
    hub.faults = Faults(bytes_per_s=4_000_000)
    running = threading.Thread(target=lambda: get(client, download))
    running.start()
    journal = TransferJournal(download.part)
    states: list[tuple[bytes, bytes]] = []
    while running.is_alive():
        time.sleep(0.4)
        if journal.path.exists():
            said = journal.path.read_bytes()
            states.append((said, download.part.read_bytes()))
    running.join()
    hub.faults = Faults()
    resumed = []
    for number, (said, found) in enumerate(states):
        after = replace(download, part=tmp_path / f"{number}.part")
        TransferJournal(after.part).path.write_bytes(said)
        after.part.write_bytes(found)
        entry = TransferJournal(after.part).read()
        lost = ByteRanges(entry.ranges if entry else ()).missing(SIZE_BYTES)
        with after.part.open("r+b") as file:
            for start, stop in lost:
                file.seek(start)
                file.write(bytes(stop - start))
        resumed.append(get(client, after))
        assert after.part.read_bytes() == content
        assert resumed[-1].sha256 == download.sha256
        after.part.unlink()
    assert any(0 < one.resumed_bytes < SIZE_BYTES for one in resumed)


def test_the_journal_says_only_what_was_synced(
    client: HttpClient, download: Download, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = Faults(bytes_per_s=8_000_000)
    written, synced = ByteRanges(), ByteRanges()
    entries: list[int] = []
    lock = threading.Lock()
    write, sync, enter = PartFile.write, PartFile.sync, TransferJournal.write

    def watched_write(self: PartFile, data: memoryview, offset: int) -> None:
        write(self, data, offset)
        with lock:
            written.add(offset, offset + len(data))

    def watched_sync(self: PartFile) -> None:
        with lock:
            before = list(written)
        sync(self)
        with lock:
            for start, stop in before:
                synced.add(start, stop)

    def watched_enter(self: TransferJournal, version: Version, ranges: ByteRanges) -> None:
        with lock:
            sure = list(synced)
        for start, stop in ranges:
            assert any(first <= start and stop <= end for first, end in sure)
        entries.append(ranges.total)
        enter(self, version, ranges)

    monkeypatch.setattr(PartFile, "write", watched_write)
    monkeypatch.setattr(PartFile, "sync", watched_sync)
    monkeypatch.setattr(TransferJournal, "write", watched_enter)
    get(client, download)
    assert len(entries) > 2
    assert entries[-1] == SIZE_BYTES


def test_an_outage_is_resumed_by_the_next_run(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str
) -> None:
    had = leave_half(client, download, hub)
    assert SIZE_BYTES // 4 < had < SIZE_BYTES
    served = hub.bytes_served
    received = get(client, download)
    assert (received.sha256, received.resumed_bytes) == (sha256, had)
    assert received.fetched_bytes == SIZE_BYTES - had
    assert hub.bytes_served - served < SIZE_BYTES - had + CHUNK_BYTES


def test_a_whole_part_is_only_hashed(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str
) -> None:
    get(client, download)
    hub.forget_requests()
    assert get(client, download) == Received(sha256, 0, SIZE_BYTES)
    assert hub.requests == []


@pytest.mark.parametrize(
    "change",
    [{"source": "hf://other"}, {"sha256": "00" * 32}, {"size_bytes": SIZE_BYTES - 1}],
)
def test_a_part_of_something_else_is_not_built_on(
    client: HttpClient, download: Download, change: dict[str, Any]
) -> None:
    get(client, download)
    assert resumable_bytes(replace(download, **change)) == 0
    assert part_size_bytes(download) == SIZE_BYTES


# Servers that have trouble, or make it


def test_cuts_are_gone_on_from(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str
) -> None:
    hub.faults = Faults(cut_after_bytes=700_000)
    assert get(client, download) == Received(sha256, SIZE_BYTES, 0)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_limits_connections(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str, status: int
) -> None:
    hub.faults = Faults(max_connections=2, busy_status=status, bytes_per_s=SLOW_BYTES_PER_S)
    assert get(client, download, 8).sha256 == sha256
    assert any(record.status == status for record in hub.requests)


def test_retry_after_is_heeded(download: Download, hub: StandInHub, sha256: str) -> None:
    slept: list[float] = []
    hub.faults = Faults(fail_status=429, fail_times=2, retry_after="7")
    assert get(HttpClient(10, sleep=slept.append), download).sha256 == sha256
    assert slept == [7, 7]


def test_trouble_that_stays_is_an_error(download: Download, hub: StandInHub) -> None:
    slept: list[float] = []
    hub.faults = Faults(fail_status=503)
    with pytest.raises(HttpError, match="HTTP 503"):
        get(HttpClient(10, sleep=slept.append), download)
    assert len(hub.requests) == MAX_FRUITLESS_ATTEMPTS
    assert slept == [1, 2, 4, 8, 16, 30, 30]


def test_a_wait_that_is_interrupted(download: Download, hub: StandInHub) -> None:
    """One connection is told to come back in four minutes; nobody waits for it."""
    hub.faults = Faults(max_connections=3, retry_after="240", bytes_per_s=SLOW_BYTES_PER_S)
    assert get(HttpClient(10), download).sha256 == download.sha256


def test_signed_addresses_are_renewed(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str
) -> None:
    hub.faults = Faults(signed_requests=3, bytes_per_s=SLOW_BYTES_PER_S)
    assert get(client, download) == Received(sha256, SIZE_BYTES, 0)
    assert [r.status for r in hub.requests if r.listener == "hub"].count(302) > 1


def test_signed_addresses_that_never_open(
    client: HttpClient, download: Download, hub: StandInHub
) -> None:
    hub.faults = Faults(signed_requests=0)
    with pytest.raises(HttpError, match="the token is never sent there") as caught:
        get(client, download)
    assert "Signature" not in str(caught.value)


def test_ranges_that_are_ignored(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str
) -> None:
    hub.faults = Faults(ignore_range=True)
    assert get(client, download) == Received(sha256, SIZE_BYTES, 0)
    assert len(bodies(hub)) == 1


def test_ranges_other_than_asked_for(
    client: HttpClient, download: Download, hub: StandInHub, content: bytes
) -> None:
    hub.faults = Faults(shift_range_bytes=512)
    assert get(client, download).sha256 == download.sha256
    assert download.part.read_bytes() == content
    assert None in bodies(hub)


@pytest.mark.parametrize("stated", [True, False])
def test_another_version_in_the_middle(
    client: HttpClient, download: Download, hub: StandInHub, sha256: str, stated: bool
) -> None:
    hub.faults = Faults(new_etag_after=3, bytes_per_s=SLOW_BYTES_PER_S)
    wanted = download if stated else replace(download, sha256=None)
    received = get(client, wanted)
    assert (received.sha256, received.resumed_bytes) == (sha256, 0)
    assert received.fetched_bytes >= SIZE_BYTES
    assert len([r for r in bodies(hub) if r and r.startswith("bytes=0-")]) == 2


def test_a_file_that_never_stays_the_same(client: HttpClient, part: Path, content: bytes) -> None:
    def answer(asked: Asked) -> Reply:
        reply = ranged(asked, content, ETag=f'"{len(web.asked)}"')
        return replace(reply, cut_after=1 << 20)

    with (
        StandInWeb(answer) as web,
        pytest.raises(TransferError, match="the file changes on the server"),
    ):
        get(client, of_web(web, part, content))


def test_a_size_that_is_a_lie(client: HttpClient, download: Download) -> None:
    wrong = replace(download, size_bytes=SIZE_BYTES + 1)
    with pytest.raises(TransferError, match=f"{SIZE_BYTES} bytes are announced"):
        get(client, wrong)


def test_more_bytes_than_stated(client: HttpClient, part: Path, content: bytes) -> None:
    flood = Reply(body=content, states_length=False)
    with StandInWeb(lambda _: flood) as web, pytest.raises(TransferError, match="more bytes came"):
        get(client, of_web(web, part, content[:5_000_000]))


def test_a_size_that_nobody_states(
    client: HttpClient, part: Path, content: bytes, sha256: str
) -> None:
    with StandInWeb(lambda _: Reply(body=content, states_length=False)) as web:
        unknown = replace(of_web(web, part, content, sha256), size_bytes=None)
        assert get(client, unknown) == Received(sha256, SIZE_BYTES, 0)
    assert part.read_bytes() == content


def test_a_redirect_loop(client: HttpClient, download: Download, hub: StandInHub) -> None:
    hub.faults = Faults(redirect_loop=True)
    with pytest.raises(HttpError, match="redirect loop"):
        get(client, download)


def test_the_token_is_nowhere(
    client: HttpClient, download: Download, hub: StandInHub, tmp_path: Path
) -> None:
    said = [repr(download)]
    leave_half(client, download, hub)
    for faults in (Faults(signed_requests=0), Faults(redirect_loop=True), Faults(fail_status=418)):
        hub.faults = faults
        with pytest.raises(HttpError) as caught:
            get(client, download)
        said += [str(caught.value), repr(caught.value)]
    hub.faults = Faults()
    with pytest.raises(HttpError, match="wrong or expired") as caught:
        get(client, replace(download, token="hf_canary_wrong"))
    said.append(str(caught.value))
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not any(b"canary" in one for one in files)
    assert not any("canary" in one for one in said)


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    options = f"size={SIZE_BYTES // 2}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_a_disk_that_is_too_small_is_told_soon_and_left_free(
    client: HttpClient, download: Download, hub: StandInHub, small_disk: Path
) -> None:
    hub.faults = Faults(bytes_per_s=1_000_000)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        get(client, replace(download, part=small_disk / "big.part"))
    assert hub.bytes_served < SIZE_BYTES // 4
    assert free_bytes(small_disk) > SIZE_BYTES // 4


def test_a_disk_that_fills_in_the_middle(
    client: HttpClient,
    download: Download,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "as on a file system that cannot reserve blocks")

    monkeypatch.setattr(part_file, "_fallocate", cannot)
    wanted = replace(download, part=small_disk / "big.part")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        get(client, wanted)
    had = resumable_bytes(wanted)
    assert had > SIZE_BYTES // 4
    subprocess.run(["mount", "-o", f"remount,size={2 * SIZE_BYTES}", small_disk], check=True)
    assert get(client, wanted) == Received(str(wanted.sha256), SIZE_BYTES - had, had)


def test_a_part_that_is_cut_short_is_told(
    client: HttpClient, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartFile, "read_into", lambda *_: 0)
    with pytest.raises(TransferError, match="became shorter"):
        get(client, download)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_part_that_is_taken_away_is_told(
    client: HttpClient, download: Download, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    write = PartFile.write

    def take_away(self: PartFile, data: memoryview, offset: int) -> None:
        write(self, data, offset)
        if offset == 0:
            self.path.unlink()
            if replaced:
                self.path.write_bytes(bytes(SIZE_BYTES))

    monkeypatch.setattr(PartFile, "write", take_away)
    with pytest.raises(TransferError, match="removed or replaced"):
        get(client, download)
    monkeypatch.undo()
    assert get(client, download) == Received(str(download.sha256), SIZE_BYTES, 0)


# The journal itself


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_ranges_are_a_set_of_bytes(ranges: list[tuple[int, int]]) -> None:
    found = ByteRanges(ranges)
    expected = {byte for start, stop in ranges for byte in range(start, stop)}
    assert {byte for start, stop in found for byte in range(start, stop)} == expected
    assert found.total == len(expected)
    assert found.frontier == next(byte for byte in range(62) if byte not in expected)
    missing = {byte for start, stop in found.missing(50) for byte in range(start, stop)}
    assert missing == set(range(50)) - expected
    flat = [edge for one in found for edge in one]
    assert flat == sorted(set(flat))


VERSION = Version("hf://big", 100, None, '"1"', None)


def written(part: Path, *states: list[tuple[int, int]]) -> TransferJournal:
    part.write_bytes(bytes(100))
    journal = TransferJournal(part)
    for ranges in states:
        journal.write(VERSION, ByteRanges(ranges))
    return TransferJournal(part)


def ranges_of(journal: TransferJournal) -> tuple[tuple[int, int], ...] | None:
    entry = journal.read()
    return entry.ranges if entry else None


def test_the_rest_of_a_slow_connection_is_shared_however_small() -> None:
    work = Work(1 << 20, (), 1 << 30)
    slow = work.claim()
    assert slow is not None
    work.share_among(2)
    slow.began_at -= 60
    work.landed(slow, 600)
    taken: list[Span | None] = []
    other = threading.Thread(target=lambda: taken.append(work.claim()), daemon=True)
    other.start()
    other.join(5)
    work.fail(OSError("enough"))
    assert [(span.at, span.stop) for span in taken if span] == [(slow.stop, 1 << 20)]
    assert slow.stop == 600 + ((1 << 20) - 600) // 2


def test_the_newest_entry_counts(part: Path) -> None:
    states = [[(0, 10)], [(0, 20)], [(0, 30), (50, 60)]]
    for count in (1, 2, 3):
        journal = written(part, *states[:count])
        assert ranges_of(journal) == tuple(states[count - 1])
        journal.remove()
        assert ranges_of(journal) is None


@pytest.mark.parametrize("offset", [0, 5, 70, 150])
def test_an_entry_that_is_torn_leaves_the_one_before(part: Path, offset: int) -> None:
    journal = written(part, [(0, 10)], [(0, 20)])
    content = bytearray(journal.path.read_bytes())
    newest = content.index(b"[0, 20]") // (16 << 10) * (16 << 10)
    content[newest + offset] ^= 0x55
    journal.path.write_bytes(content)
    assert ranges_of(journal) == ((0, 10),)
    journal.write(VERSION, ByteRanges([(0, 40)]))
    assert ranges_of(TransferJournal(part)) == ((0, 40),)


@pytest.mark.parametrize("spoil", [b"", b"{", b"\xff" * 40_000])
def test_a_journal_that_cannot_be_read_says_nothing(part: Path, spoil: bytes) -> None:
    journal = written(part, [(0, 10)])
    journal.path.write_bytes(spoil)
    assert ranges_of(journal) is None


def test_bytes_beyond_the_part_are_not_believed(part: Path) -> None:
    journal = written(part, [(0, 100)])
    os.truncate(part, 99)
    assert ranges_of(journal) is None


def test_ever_so_many_ranges_fit(part: Path) -> None:
    part.write_bytes(bytes(10_000))
    journal = TransferJournal(part)
    many = ByteRanges((start, start + 1) for start in range(0, 10_000, 2))
    journal.write(VERSION, many)
    kept = ranges_of(journal)
    assert kept is not None
    assert len(kept) > 100
    assert set(kept) < set(many)
