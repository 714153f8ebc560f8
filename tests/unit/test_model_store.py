"""A model is in place only when it is whole and proven; everything else can be continued."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils import part_file
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient, HttpError
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    read_record,
    record_path,
    wanted_files,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_source import parse_source
from ansible_collections.kloros.llm.plugins.module_utils.model_store import (
    FetchRequest,
    FetchSettings,
    ModelStore,
    Outcome,
    StoreError,
)
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile
from ansible_collections.kloros.llm.plugins.module_utils.transfer_journal import (
    ByteRanges,
    TransferJournal,
    Version,
)
from ansible_collections.kloros.llm.plugins.module_utils.transfer_work import (
    MAX_FRUITLESS_ATTEMPTS,
)

from testbed.stand_in_hub import Faults, StandInHub
from tests.unit.stand_in_web import Asked, Reply, StandInWeb, ranged

MODEL = b"GGUF" + bytes(range(256)) * 12_000  # 3 MB: several chunks of every reader
SHA256 = hashlib.sha256(MODEL).hexdigest()
HF_SOURCE = "hf://acme/tiny-GGUF/tiny.gguf"
TOKEN = "hf_stand_in"


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def store(slept: list[float]) -> ModelStore:
    return ModelStore(HttpClient(5, sleep=slept.append), ProgressFile(None, "", "bytes"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    for repo in ("tiny-GGUF", "gated-GGUF"):
        folder = tmp_path / "hub" / "acme" / repo
        folder.mkdir(parents=True)
        (folder / "tiny.gguf").write_bytes(MODEL)
    (folder / ".gated").touch()
    with StandInHub(tmp_path / "hub", token=TOKEN) as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def wish(models: Path, source: str, endpoint: str = "http://127.0.0.1:9") -> FetchRequest:
    return FetchRequest(
        name="tiny",
        directory=models,
        files=wanted_files(parse_source(source), "tiny.gguf"),
        settings=FetchSettings(hf_endpoint=endpoint, reserve_bytes=0),
    )


def with_settings(request: FetchRequest, **changes: Any) -> FetchRequest:
    return replace(request, settings=replace(request.settings, **changes))


def with_sha256(request: FetchRequest, sha256: str) -> FetchRequest:
    first, *rest = request.files
    return replace(request, files=(replace(first, sha256=sha256), *rest))


def names(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir())


def body_requests(hub: StandInHub) -> list[str | None]:
    """The ranges of all requests that were answered with bytes."""
    return [r.range for r in hub.requests if r.method == "GET" and r.status in (200, 206)]


def assert_in_place(outcome: Outcome, models: Path, content: bytes = MODEL) -> None:
    assert (models / "tiny.gguf").read_bytes() == content
    assert names(models) == ["tiny.gguf", "tiny.gguf.json"]
    record = read_record(models / "tiny.gguf")
    assert record == outcome.after
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.size_bytes == len(content)


def test_a_first_fetch_from_the_hub(store: ModelStore, hub: StandInHub, models: Path) -> None:
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert (outcome.action, outcome.bytes_fetched, outcome.bytes_resumed) == (
        "fetch",
        len(MODEL),
        0,
    )
    assert outcome.after.verified
    assert outcome.after.revision == hub.store.commit("acme/tiny-GGUF")
    assert outcome.after.source == HF_SOURCE + "@main"
    # Pinned: what is downloaded is the commit that was looked at.
    hub_get = next(r for r in hub.requests if r.listener == "hub" and r.method == "GET")
    assert f"/resolve/{outcome.after.revision}/" in hub_get.path


def test_a_second_run_reads_neither_network_nor_file(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    store.fetch(request)
    hub.forget_requests()
    # Other bytes under the same size and time: only a run that reads the file could notice.
    path = models / "tiny.gguf"
    state = path.stat()
    path.write_bytes(bytes(len(MODEL)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    for act in (store.fetch, store.plan):
        assert act(request).action == "none"
    assert hub.requests == []


def test_a_plan_writes_nothing_and_comes_true(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    plan = store.plan(request)
    assert names(models) == []
    outcome = store.fetch(request)
    assert plan.changed
    assert plan.after.facts() == outcome.after.facts()
    assert plan.bytes_fetched == outcome.bytes_fetched


def test_a_plan_needs_no_directory(store: ModelStore, hub: StandInHub, models: Path) -> None:
    request = wish(models / "later", HF_SOURCE, hub.url)
    assert store.plan(request).action == "fetch"
    with pytest.raises(StoreError, match="does not exist"):
        store.fetch(request)


@pytest.mark.parametrize("act", [ModelStore.plan, ModelStore.fetch])
def test_an_unreachable_source(
    store: ModelStore, models: Path, act: Callable[[ModelStore, FetchRequest], Outcome]
) -> None:
    with pytest.raises(HttpError, match="check the address"):
        act(store, wish(models, HF_SOURCE))
    assert names(models) == []


def test_a_cut_is_resumed_in_the_same_run(
    store: ModelStore, hub: StandInHub, models: Path, slept: list[float]
) -> None:
    hub.faults = Faults(cut_after_bytes=1_000_000, cut_times=2)
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert outcome.bytes_fetched == len(MODEL)
    assert body_requests(hub) == [None, "bytes=1000000-", "bytes=2000000-"]
    assert slept == [1, 1]


def test_an_interrupted_download_is_resumed_by_the_next_run(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    hub.faults = Faults(cut_after_bytes=1_000_000)
    with StandInHubOutage(hub), pytest.raises(HttpError):
        store.fetch(request)
    assert names(models) == ["tiny.gguf.part", "tiny.gguf.part.json"]
    assert kept_bytes(models) == 1_000_000
    hub.forget_requests()
    planned = store.plan(request)
    outcome = store.fetch(request)
    assert_in_place(outcome, models)
    assert outcome.bytes_resumed == 1_000_000
    assert planned.bytes_fetched == outcome.bytes_fetched == len(MODEL) - 1_000_000
    assert body_requests(hub) == ["bytes=1000000-"]


class StandInHubOutage:
    """After the first cut nothing works until the exit."""

    def __init__(self, hub: StandInHub) -> None:
        self._hub = hub

    def __enter__(self) -> None:
        take_cut = self._hub.take_cut

        def cut_and_go_down(length: int) -> int | None:
            cut = take_cut(length)
            if cut is not None:
                self._hub.faults = Faults(fail_status=503)
            return cut

        self._hub.take_cut = cut_and_go_down  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._hub.take_cut
        self._hub.faults = Faults()


def test_a_whole_part_needs_no_byte_more(store: ModelStore, hub: StandInHub, models: Path) -> None:
    leave_part(models, MODEL, sha256=SHA256, size_bytes=len(MODEL))
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert (outcome.bytes_fetched, outcome.bytes_resumed) == (0, len(MODEL))
    assert body_requests(hub) == []


def kept_bytes(models: Path) -> int:
    """What the journal says of the part."""
    entry = TransferJournal(models / "tiny.gguf.part").read()
    return sum(stop - start for start, stop in entry.ranges) if entry else 0


def leave_part(models: Path, content: bytes, **identity: Any) -> None:
    """What an interrupted run leaves behind."""
    (models / "tiny.gguf.part").write_bytes(content)
    known: dict[str, Any] = {
        "source": HF_SOURCE + "@main",
        "size_bytes": len(MODEL),
        "sha256": None,
        "etag": None,
        "last_modified": None,
    }
    journal = TransferJournal(models / "tiny.gguf.part")
    journal.write(Version(**(known | identity)), ByteRanges([(0, len(content))]))


@pytest.mark.parametrize(
    "identity",
    [
        {"sha256": "00" * 32},
        {"sha256": SHA256, "size_bytes": 5},
        {"sha256": SHA256, "source": "hf://other/repo/tiny.gguf@main"},
        {"sha256": None},
    ],
)
def test_a_part_of_another_version_is_not_continued(
    store: ModelStore, hub: StandInHub, models: Path, identity: dict[str, object]
) -> None:
    leave_part(models, b"GGUFother", **identity)
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert outcome.bytes_resumed == 0
    assert body_requests(hub) == [None]


def test_a_part_without_its_identity_is_not_continued(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    leave_part(models, MODEL[:1000])
    (models / "tiny.gguf.part.json").write_text("{")
    assert store.fetch(wish(models, HF_SOURCE, hub.url)).bytes_resumed == 0


def test_a_damaged_part_is_found_out(store: ModelStore, hub: StandInHub, models: Path) -> None:
    leave_part(models, b"X" * 1000, sha256=SHA256)
    request = wish(models, HF_SOURCE, hub.url)
    with pytest.raises(StoreError, match=SHA256):
        store.fetch(request)
    assert names(models) == []
    assert_in_place(store.fetch(request), models)


def test_a_corrupted_byte_is_refused_and_the_old_file_stays(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    (models / "tiny.gguf").write_bytes(b"GGUF old")
    hub.faults = Faults(corrupt_at=2_000_000)
    wrong = bytearray(MODEL)
    wrong[2_000_000] ^= 0xFF
    with pytest.raises(StoreError) as caught:
        store.fetch(wish(models, HF_SOURCE, hub.url))
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert names(models) == ["tiny.gguf"]
    assert (models / "tiny.gguf").read_bytes() == b"GGUF old"


def test_a_range_answered_with_everything_restarts(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    hub.faults = Faults(cut_after_bytes=1_000_000, cut_times=1, ignore_range=True)
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert outcome.bytes_fetched == len(MODEL) + 1_000_000


@pytest.mark.parametrize("stated", [len(MODEL) - 1, len(MODEL) + 1, 0])
def test_a_hub_that_lies_about_the_size(
    store: ModelStore, hub: StandInHub, models: Path, stated: int
) -> None:
    hub.faults = Faults(linked_size_bytes=stated)
    with pytest.raises(StoreError, match=f"{len(MODEL)} bytes are announced.* {stated} is stated"):
        store.fetch(wish(models, HF_SOURCE, hub.url))
    assert "tiny.gguf" not in names(models)
    hub.faults = Faults()
    assert_in_place(store.fetch(wish(models, HF_SOURCE, hub.url)), models)


@pytest.mark.parametrize("act", [ModelStore.plan, ModelStore.fetch])
def test_a_wish_that_contradicts_the_hub_fails_before_a_byte(
    store: ModelStore,
    hub: StandInHub,
    models: Path,
    act: Callable[[ModelStore, FetchRequest], Outcome],
) -> None:
    with pytest.raises(StoreError, match=f"the Hub states sha256 {SHA256}"):
        act(store, with_sha256(wish(models, HF_SOURCE, hub.url), "00" * 32))
    assert body_requests(hub) == []


def test_a_gated_repository(store: ModelStore, hub: StandInHub, models: Path) -> None:
    request = wish(models, "hf://acme/gated-GGUF/tiny.gguf", hub.url)
    with pytest.raises(HttpError, match="gguf_models_hf_token"):
        store.fetch(request)
    with pytest.raises(HttpError, match="wrong or expired") as caught:
        store.fetch(with_settings(request, hf_token="hf_canary"))
    assert "hf_canary" not in str(caught.value)
    assert_in_place(store.fetch(with_settings(request, hf_token=TOKEN)), models)
    assert [r.authorization for r in hub.requests if r.listener == "cdn"] == [False]
    assert not any(TOKEN in path.read_text() for path in models.glob("*.json"))
    assert TOKEN not in repr(with_settings(request, hf_token=TOKEN))


def test_a_missing_file(store: ModelStore, hub: StandInHub, models: Path) -> None:
    with pytest.raises(HttpError, match=r"HTTP 404.*check owner"):
        store.fetch(wish(models, "hf://acme/tiny-GGUF/other.gguf", hub.url))


def test_too_many_requests(
    store: ModelStore, hub: StandInHub, models: Path, slept: list[float]
) -> None:
    hub.faults = Faults(fail_status=429, fail_times=2, retry_after="7")
    assert_in_place(store.fetch(wish(models, HF_SOURCE, hub.url)), models)
    assert slept == [7, 7]


def test_a_changed_source_is_fetched_anew(store: ModelStore, hub: StandInHub, models: Path) -> None:
    store.fetch(wish(models, HF_SOURCE, hub.url))
    other = MODEL + b"more"
    (hub.store.root / "acme" / "tiny-GGUF" / "other.gguf").write_bytes(other)
    request = wish(models, "hf://acme/tiny-GGUF/other.gguf", hub.url)
    assert store.plan(request).action == "fetch"
    outcome = store.fetch(request)
    assert_in_place(outcome, models, other)
    assert outcome.before is not None
    assert outcome.before.sha256 == SHA256


def test_a_changed_source_of_the_same_content_changes_only_the_record(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    store.fetch(wish(models, HF_SOURCE, hub.url))
    hub.forget_requests()
    request = wish(models, "hf://acme/gated-GGUF/tiny.gguf", hub.url)
    outcome = store.fetch(with_settings(request, hf_token=TOKEN))
    assert outcome.action == "record"
    assert body_requests(hub) == []
    assert_in_place(outcome, models)


def test_a_renamed_model_changes_only_the_record(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    store.fetch(request)
    hub.forget_requests()
    outcome = store.fetch(replace(request, name="new"))
    assert (outcome.action, outcome.after.name) == ("record", "new")
    assert hub.requests == []


def test_a_file_without_a_record_is_adopted_by_the_wished_digest(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    (models / "tiny.gguf").write_bytes(MODEL)
    request = with_sha256(wish(models, HF_SOURCE, hub.url), SHA256)
    assert store.plan(request).action == "record"
    outcome = store.fetch(request)
    assert outcome.action == "record"
    assert_in_place(outcome, models)
    assert hub.requests == []
    assert store.fetch(request).action == "none"


def test_a_file_without_a_record_is_adopted_by_the_hubs_digest(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    (models / "tiny.gguf").write_bytes(MODEL)
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert outcome.after.revision
    assert body_requests(hub) == []


def test_a_touched_file_is_hashed_again_and_kept(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    first = store.fetch(request)
    hub.forget_requests()
    os.utime(models / "tiny.gguf", ns=(1, 1))
    outcome = store.fetch(request)
    assert (outcome.action, outcome.after.revision) == ("record", first.after.revision)
    assert outcome.after.verified
    assert hub.requests == []
    assert store.fetch(request).action == "none"


def test_a_changed_file_is_fetched_again(store: ModelStore, hub: StandInHub, models: Path) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    store.fetch(request)
    (models / "tiny.gguf").write_bytes(MODEL[:-1] + b"!")
    outcome = store.fetch(request)
    assert outcome.action == "fetch"
    assert_in_place(outcome, models)


def test_the_successor_takes_over_owner_and_mode(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    path = models / "tiny.gguf"
    path.write_bytes(b"GGUF old")
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    before = path.stat()
    store.fetch(wish(models, HF_SOURCE, hub.url))
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


# A disk that is too small


@pytest.mark.parametrize("act", [ModelStore.plan, ModelStore.fetch])
def test_too_little_space_is_told_before_the_first_byte(
    store: ModelStore,
    hub: StandInHub,
    models: Path,
    act: Callable[[ModelStore, FetchRequest], Outcome],
) -> None:
    reserve_mib = 1 << 40
    request = with_settings(wish(models, HF_SOURCE, hub.url), reserve_bytes=reserve_mib << 20)
    with pytest.raises(StoreError) as caught:
        act(store, request)
    message = str(caught.value)
    assert f"{reserve_mib + 3} MiB are needed" in message
    assert "MiB are free on /" in message
    assert body_requests(hub) == []
    assert names(models) == []


def test_a_disk_that_fills_midway_keeps_the_part(
    store: ModelStore,
    models: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "as on a file system that cannot reserve blocks")

    monkeypatch.setattr(part_file, "_fallocate", cannot)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", models], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", models], check=True))
    filler = models / "filler"

    def answer(asked: Asked) -> Reply:
        if asked.method == "GET" and asked.first_byte is None:
            filler.write_bytes(bytes(2 << 20))
        return ranged(asked, MODEL, ETag='"1"')

    with StandInWeb(answer) as web:
        wanted = wish(models, web.url + "/tiny.gguf")
        with pytest.raises(StoreError, match="the disk is full") as caught:
            store.fetch(wanted)
        assert str(models) in str(caught.value)
        assert names(models) == ["filler", "tiny.gguf.part", "tiny.gguf.part.json"]
        filler.unlink()
        outcome = store.fetch(wanted)
    assert_in_place(outcome, models)
    assert outcome.bytes_resumed > 1 << 20


def test_a_file_size_limit_is_told_at_once(hub: StandInHub, models: Path) -> None:
    limit = 1_000_000
    ran = fetch_in_a_process(
        hub, models, preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ).communicate()[0]
    assert b"the disk is full" in ran
    # All blocks are reserved at the start: it is told before a byte is fetched.
    assert body_requests(hub) == []
    assert names(models) == []
    assert fetch_in_a_process(hub, models).communicate()[0].startswith(b"fetch 3072004 0")
    assert (models / "tiny.gguf").read_bytes() == MODEL


# Other processes

FETCHER = f"""
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient
from ansible_collections.kloros.llm.plugins.module_utils.model_store import ModelStore, StoreError
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile
from tests.unit.test_model_store import HF_SOURCE, wish
endpoint, models, progress = sys.argv[1:]
store = ModelStore(HttpClient(5), ProgressFile(progress or None, "", "bytes"))
try:
    outcome = store.fetch(wish(Path(models), HF_SOURCE, endpoint))
    print(outcome.action, outcome.bytes_fetched, outcome.bytes_resumed)
except StoreError as error:
    print(error)
"""


def fetch_in_a_process(
    hub: StandInHub,
    models: Path,
    progress: Path | str = "",
    preexec: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER, hub.url, models, progress],
        stdout=subprocess.PIPE,
        preexec_fn=preexec,  # noqa: PLW1509 - no threads hold locks that the child needs
        cwd=Path(__file__).parents[2],
    )


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("what was waited for did not happen")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_kill_9_loses_nothing(store: ModelStore, hub: StandInHub, models: Path) -> None:
    hub.faults = Faults(bytes_per_s=2_000_000)
    had = 0
    for _ in range(3):
        killed = fetch_in_a_process(hub, models)
        wait_until(lambda had=had: kept_bytes(models) > had)  # type: ignore[misc]
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert kept_bytes(models) >= had
        had = kept_bytes(models)
        assert not (models / "tiny.gguf").exists()
    hub.faults = Faults()
    outcome = store.fetch(wish(models, HF_SOURCE, hub.url))
    assert_in_place(outcome, models)
    assert outcome.bytes_resumed == had
    assert outcome.bytes_fetched == len(MODEL) - had


def test_two_processes_fetch_one_model_once(hub: StandInHub, models: Path, tmp_path: Path) -> None:
    hub.faults = Faults(bytes_per_s=3_000_000)
    progress = tmp_path / "progress"
    first = fetch_in_a_process(hub, models)
    wait_until(lambda: size_of(models / "tiny.gguf.part") > 0)
    second = fetch_in_a_process(hub, models, progress)
    wait_until(lambda: "waiting for another process" in read_or_empty(progress))
    said = [process.communicate()[0].split()[0] for process in (first, second)]
    assert said == [b"fetch", b"none"]
    assert body_requests(hub) == [None]
    assert names(models) == ["tiny.gguf", "tiny.gguf.json"]


def read_or_empty(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# Plain servers


def plain(models: Path, web: StandInWeb) -> FetchRequest:
    return wish(models, web.url + "/m/tiny.gguf")


def test_a_plain_download_is_recorded_as_unverified(store: ModelStore, models: Path) -> None:
    with StandInWeb(lambda asked: ranged(asked, MODEL)) as web:
        request = plain(models, web)
        planned = store.plan(request)
        outcome = store.fetch(request)
        assert_in_place(outcome, models)
        assert (planned.after.sha256, planned.after.verified) == (None, False)
        assert not outcome.after.verified
        count = len(web.asked)
        proven = store.fetch(with_sha256(request, SHA256))
        assert (proven.action, proven.after.verified) == ("record", True)
        assert len(web.asked) == count


def test_the_token_is_for_the_hub_only(store: ModelStore, models: Path) -> None:
    with StandInWeb(lambda asked: ranged(asked, MODEL)) as web:
        store.fetch(with_settings(plain(models, web), hf_token=TOKEN))
    assert not any("authorization" in asked.headers for asked in web.asked)


@pytest.mark.parametrize(
    "heeds_if_range",
    [True, False],
)
def test_a_file_that_changes_during_the_download_starts_anew(
    store: ModelStore, models: Path, heeds_if_range: bool
) -> None:
    newer = b"GGUF" + bytes(len(MODEL) - 4)

    def answer(asked: Asked) -> Reply:
        if asked.method == "HEAD":
            return Reply(headers={"Content-Length": str(len(MODEL))})
        if not any(one.method == "GET" for one in web.asked[:-1]):
            return Reply(200, MODEL, {"ETag": '"1"'}, cut_after=1000)
        if heeds_if_range and asked.headers.get("if-range") == '"1"':
            return Reply(200, newer, {"ETag": '"2"'})
        return ranged(asked, newer, ETag='"2"')

    with StandInWeb(answer) as web:
        assert_in_place(store.fetch(plain(models, web)), models, newer)
        gets = [asked.first_byte for asked in web.asked if asked.method == "GET"]
        assert gets == [None, 1000, None]


def test_a_wrong_range_is_not_appended(store: ModelStore, models: Path) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.method == "HEAD" or asked.first_byte is None:
            cut = 1000 if len(web.asked) < 3 else None
            return Reply(200, MODEL, {"ETag": '"1"'}, cut_after=cut)
        total = len(MODEL)
        headers = {"Content-Range": f"bytes 500-{total - 1}/{total}", "ETag": '"1"'}
        return Reply(206, MODEL[500:], headers)

    with StandInWeb(answer) as web:
        assert_in_place(store.fetch(plain(models, web)), models)


def test_a_416_restarts(store: ModelStore, models: Path) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.first_byte is not None:
            return Reply(416)
        cut = 1000 if len(web.asked) < 3 else None
        return Reply(200, MODEL, {"ETag": '"1"'}, cut_after=cut)

    with StandInWeb(answer) as web:
        assert_in_place(store.fetch(plain(models, web)), models)


def test_a_server_without_head(store: ModelStore, models: Path) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(405) if asked.method == "HEAD" else ranged(asked, MODEL)

    with StandInWeb(answer) as web:
        assert_in_place(store.fetch(plain(models, web)), models)


def test_an_unknown_size_needs_a_digest(store: ModelStore, models: Path) -> None:
    with StandInWeb(lambda _: Reply(body=MODEL, states_length=False)) as web:
        with pytest.raises(StoreError, match="give the file's sha256"):
            store.fetch(plain(models, web))
        outcome = store.fetch(with_sha256(plain(models, web), SHA256))
        assert_in_place(outcome, models)
        (models / "tiny.gguf").unlink()
        web.answer = lambda _: Reply(body=MODEL, states_length=False, cut_after=1000)
        with pytest.raises(StoreError, match=SHA256):
            store.fetch(with_sha256(plain(models, web), SHA256))


def test_a_web_page_is_no_model(store: ModelStore, models: Path) -> None:
    page = StandInWeb(lambda asked: ranged(asked, b"<!DOCTYPE html>"))
    with page as web, pytest.raises(StoreError, match="is no GGUF file"):
        store.fetch(plain(models, web))
    assert names(models) == []


def test_a_server_that_always_cuts_is_given_up(
    store: ModelStore, models: Path, slept: list[float]
) -> None:
    cutter = StandInWeb(lambda asked: replace(ranged(asked, MODEL, ETag='"1"'), cut_after=0))
    with cutter as web, pytest.raises(HttpError, match="the connection ended after 0 of"):
        store.fetch(plain(models, web))
    assert len(slept) == MAX_FRUITLESS_ATTEMPTS - 1


# Files on the host


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin.gguf"
    path.write_bytes(MODEL)
    return path


def test_a_file_is_linked(store: ModelStore, models: Path, origin: Path) -> None:
    request = wish(models, f"file:{origin}")
    # No space is needed for a link.
    outcome = store.fetch(with_settings(request, reserve_bytes=1 << 60))
    assert_in_place(outcome, models)
    assert (models / "tiny.gguf").samefile(origin)
    assert (outcome.bytes_fetched, outcome.after.verified) == (0, False)
    assert store.plan(replace(request, name="other")).action == "record"


def test_a_file_that_is_linked_already(store: ModelStore, models: Path, origin: Path) -> None:
    request = wish(models, f"file:{origin}")
    store.fetch(request)
    record_path(models / "tiny.gguf").unlink()
    assert_in_place(store.fetch(request), models)


def test_a_file_that_must_not_be_shared_is_copied(
    store: ModelStore, models: Path, origin: Path
) -> None:
    outcome = store.fetch(with_settings(wish(models, f"file:{origin}"), may_link=lambda _: False))
    assert_in_place(outcome, models)
    assert not (models / "tiny.gguf").samefile(origin)
    assert origin.stat().st_nlink == 1


def test_a_link_leads_to_the_file_itself(store: ModelStore, models: Path, origin: Path) -> None:
    link = origin.with_name("link.gguf")
    link.symlink_to(origin)
    assert_in_place(store.fetch(wish(models, f"file:{link}")), models)
    assert not (models / "tiny.gguf").is_symlink()


def test_a_wrong_file_is_refused_and_left_alone(
    store: ModelStore, models: Path, origin: Path
) -> None:
    (models / "tiny.gguf").write_bytes(b"GGUF old")
    with pytest.raises(StoreError, match="needed is 0000"):
        store.fetch(with_sha256(wish(models, f"file:{origin}"), "00" * 32))
    assert names(models) == ["tiny.gguf"]
    assert origin.read_bytes() == MODEL


def test_files_that_cannot_be_taken(store: ModelStore, models: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must lie on the host itself"):
        store.plan(wish(models, f"file:{tmp_path}/missing.gguf"))
    (models / "tiny.gguf").write_bytes(MODEL)
    with pytest.raises(StoreError, match="the model's own place"):
        store.fetch(wish(models, f"file:{models}/tiny.gguf"))
