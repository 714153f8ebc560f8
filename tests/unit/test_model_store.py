"""A model is in place only when it is whole and proven; everything else can be continued."""

from __future__ import annotations

import errno
import hashlib
import json
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
from ansible_collections.kloros.llm.plugins.module_utils.model_batch import fetch_all
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    Companion,
    Record,
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
    SpaceClaims,
    StoreError,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_users import Users
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
from tests.unit.killed_steps import killed_steps
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
    assert outcome.bytes_resumed > 500_000


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


# Several files


SHARDS = [
    b"GGUF" + bytes([number]) * 700_000 + bytes(range(256)) * 100 * number for number in (1, 2, 3)
]
SHARD_NAMES = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
SPLIT_SOURCE = "hf://acme/split-GGUF/q4/big-00001-of-00003.gguf"
MMPROJ = b"GGUF" + b"projector" * 1000
ADAPTER = b"GGUF" + b"adapter" * 1000


@pytest.fixture
def split(hub: StandInHub) -> StandInHub:
    folder = hub.store.root / "acme" / "split-GGUF"
    (folder / "q4").mkdir(parents=True)
    for name, content in zip(SHARD_NAMES, SHARDS, strict=True):
        (folder / "q4" / name).write_bytes(content)
    (folder / "mmproj-F16.gguf").write_bytes(MMPROJ)
    (folder / "adapter.gguf").write_bytes(ADAPTER)
    return hub


def split_wish(models: Path, endpoint: str, **companions: Any) -> FetchRequest:
    return FetchRequest(
        name="big",
        directory=models,
        files=wanted_files(parse_source(SPLIT_SOURCE), **companions),
        settings=FetchSettings(hf_endpoint=endpoint, reserve_bytes=0, users=Users(models / "etc")),
    )


def companions() -> dict[str, Any]:
    def of(name: str) -> Companion:
        return Companion(parse_source(f"hf://acme/split-GGUF/{name}"))

    return {"mmproj": of("mmproj-F16.gguf"), "lora": [of("adapter.gguf"), of("adapter.gguf")]}


ALL_FILES = {
    **dict(zip(SHARD_NAMES, SHARDS, strict=True)),
    "big.mmproj.gguf": MMPROJ,
    "big.lora-1.gguf": ADAPTER,
    "big.lora-2.gguf": ADAPTER,
}


def assert_all_in_place(models: Path, files: dict[str, bytes] = ALL_FILES) -> Record:
    assert names(models) == sorted([*files, f"{SHARD_NAMES[0]}.json"])
    for name, content in files.items():
        assert (models / name).read_bytes() == content
    record = read_record(models / SHARD_NAMES[0])
    assert record is not None
    assert [(one.file, one.sha256, one.verified) for one in record.files] == [
        (name, hashlib.sha256(content).hexdigest(), True) for name, content in files.items()
    ]
    return record


def test_shards_and_companions_are_one_model_of_one_commit(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    request = split_wish(models, split.url, **companions())
    planned = store.plan(request)
    assert names(models) == []
    split.forget_requests()
    outcome = store.fetch(request)
    record = assert_all_in_place(models)
    assert planned.after.facts() == outcome.after.facts() == record.facts()
    assert planned.bytes_fetched == outcome.bytes_fetched == record.size_bytes
    assert [one.role for one in record.files] == ["model"] * 3 + ["mmproj", "lora", "lora"]
    commit = split.store.commit("acme/split-GGUF")
    assert {one.revision for one in record.files} == {commit}
    assert record.digest not in {one.sha256 for one in record.files}
    # Only the very first question is about the branch.
    asked = [one.path for one in split.requests if one.listener == "hub"]
    assert ["/resolve/main/" in path for path in asked] == [True] + [False] * (len(asked) - 1)
    split.forget_requests()
    assert store.fetch(request).action == store.plan(request).action == "none"
    assert split.requests == []


def test_the_first_shard_comes_last(
    store: ModelStore, split: StandInHub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []
    rename = Path.replace

    def noted(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            placed.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    store.fetch(split_wish(models, split.url, **companions()))
    assert sorted(placed) == sorted(ALL_FILES)
    assert placed[-1] == SHARD_NAMES[0]


def test_a_shard_that_fails_leaves_the_model_as_it_was(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    for name in SHARD_NAMES:
        (models / name).write_bytes(b"GGUF old " + name.encode())
    split.faults = Faults(corrupt_at=len(SHARDS[1]) + 10)  # only the third is that long
    with pytest.raises(StoreError, match=r"00003-of-00003.*was removed"):
        store.fetch(split_wish(models, split.url))
    for name in SHARD_NAMES:
        assert (models / name).read_bytes() == b"GGUF old " + name.encode()
    split.faults = Faults()
    outcome = store.fetch(split_wish(models, split.url))
    assert outcome.bytes_resumed == len(SHARDS[0]) + len(SHARDS[1])
    assert outcome.bytes_fetched == len(SHARDS[2])
    assert_all_in_place(models, dict(zip(SHARD_NAMES, SHARDS, strict=True)))


def test_a_missing_shard_is_fetched_alone_and_from_the_same_commit(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    request = split_wish(models, split.url)
    store.fetch(request)
    (models / SHARD_NAMES[1]).unlink()
    split.forget_requests()
    outcome = store.fetch(request)
    assert (outcome.action, outcome.bytes_fetched) == ("fetch", len(SHARDS[1]))
    assert not any("/resolve/main/" in one.path for one in split.requests)
    assert_all_in_place(models, dict(zip(SHARD_NAMES, SHARDS, strict=True)))


def test_where_the_old_commit_is_gone_everything_comes_from_the_new_one(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    request = split_wish(models, split.url)
    store.fetch(request)
    folder = split.store.root / "acme" / "split-GGUF"
    newer = b"GGUF" + b"newer" * 1000
    (folder / "q4" / SHARD_NAMES[2]).write_bytes(newer)
    (models / SHARD_NAMES[1]).unlink()
    outcome = store.fetch(request)
    contents = dict(zip(SHARD_NAMES, [*SHARDS[:2], newer], strict=True))
    record = assert_all_in_place(models, contents)
    assert outcome.bytes_fetched == len(SHARDS[1]) + len(newer)
    assert {one.revision for one in record.files} == {split.store.commit("acme/split-GGUF")}


def test_a_hub_that_answers_with_another_commit(store: ModelStore, models: Path) -> None:
    count = 0

    def answer(_: Asked) -> Reply:
        nonlocal count
        count += 1
        headers = {"X-Repo-Commit": f"{count:040}", "X-Linked-Size": "5"}
        return Reply(302, headers=headers | {"Location": "http://localhost:9/x"})

    with (
        StandInWeb(answer) as web,
        pytest.raises(StoreError, match=r"the Hub answers with 0+2;.*contradicts itself"),
    ):
        store.fetch(split_wish(models, web.url))
    assert names(models) == []


def test_the_space_for_all_files_is_asked_for_before_the_first_byte(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    request = with_settings(split_wish(models, split.url), reserve_bytes=1 << 60)
    total_mib = -(-sum(map(len, SHARDS)) // (1 << 20))
    with pytest.raises(StoreError, match=rf"\({total_mib} of {total_mib} MiB to get"):
        store.fetch(request)
    assert body_requests(split) == []
    assert names(models) == []


def test_a_dropped_companion_goes_when_nobody_uses_it(
    store: ModelStore, split: StandInHub, models: Path, tmp_path: Path
) -> None:
    config = tmp_path / "etc"
    (config / "instances").mkdir(parents=True)
    env = config / "instances" / "main.env"
    env.write_text(f'LLAMA_EXTRA_ARGS="--lora {models}/big.lora-1.gguf,{models}/big.lora-2.gguf"')
    store.fetch(split_wish(models, split.url, **companions()))
    fewer = with_settings(split_wish(models, split.url), users=Users(config))
    outcome = store.fetch(fewer)
    assert outcome.action == "record"
    assert outcome.after.dropped == ("big.lora-1.gguf", "big.lora-2.gguf")
    assert not (models / "big.mmproj.gguf").exists()
    assert (models / "big.lora-1.gguf").read_bytes() == ADAPTER
    assert store.fetch(fewer).action == "none"


def test_a_model_that_is_wished_anew_takes_its_dropped_files_back(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    store.fetch(split_wish(models, split.url, **companions()))
    store.fetch(split_wish(models, split.url))
    split.forget_requests()
    outcome = store.fetch(split_wish(models, split.url, **companions()))
    assert outcome.bytes_fetched == len(MMPROJ) + 2 * len(ADAPTER)
    assert_all_in_place(models)


def test_companions_keep_out_of_each_others_way(
    store: ModelStore, split: StandInHub, models: Path
) -> None:
    """Two models whose repositories call the projector the same."""
    for name in ("one", "two"):
        (split.store.root / "acme" / "split-GGUF" / f"{name}.gguf").write_bytes(
            b"GGUF" + name.encode()
        )
        request = replace(
            split_wish(models, split.url),
            name=name,
            files=wanted_files(
                parse_source(f"hf://acme/split-GGUF/{name}.gguf"), mmproj=companions()["mmproj"]
            ),
        )
        store.fetch(request)
    assert [one for one in names(models) if "mmproj" in one] == [
        "one.mmproj.gguf",
        "two.mmproj.gguf",
    ]


# Kills between any two steps


def fetch_split(models: Path, endpoint: str) -> None:
    """What is killed: in a process of its own."""
    store = ModelStore(HttpClient(5), ProgressFile(None, "", "bytes"))
    request = split_wish(models, endpoint, **companions())
    store.fetch(replace(request, keep_previous=True))


def test_kill_9_between_any_two_steps_of_a_fetch(
    store: ModelStore, split: StandInHub, tmp_path: Path
) -> None:
    """An older model is replaced. After each kill a server finds either the old one or all files
    of the new one, and the next run brings it to the end; what was proven is not
    fetched again.
    """
    older = dict.fromkeys(SHARD_NAMES, b"GGUF older" * 100)
    fetched: list[int] = []
    staged = 0
    killed = True
    with killed_steps(__name__, "fetch_split") as tries:
        while killed:
            assert len(fetched) < 300
            models = tmp_path / f"models-{len(fetched)}"
            models.mkdir()
            for name, content in older.items():
                (models / name).write_bytes(content)
            killed = tries.is_killed(len(fetched), models, split.url)
            first = (models / SHARD_NAMES[0]).read_bytes()
            if first != older[SHARD_NAMES[0]]:
                # The name that servers open is the new one: then all others are.
                assert {name: (models / name).read_bytes() for name in ALL_FILES} == ALL_FILES
            proven = any(models.glob("*.staged"))
            split.forget_requests()
            outcome = store.fetch(split_wish(models, split.url, **companions()))
            assert_all_in_place(models)
            if proven:
                assert body_requests(split) == []
            staged += proven
            fetched.append(outcome.bytes_fetched)
    assert len(fetched) > 30
    assert staged > 6
    assert fetched[-1] == 0


def fetch_plain_shards(models: Path, url: str) -> None:
    """What is killed: three shards of which nobody states a digest."""
    store = ModelStore(HttpClient(5), ProgressFile(None, "", "bytes"))
    files = wanted_files(parse_source(f"{url}/{SHARD_NAMES[0]}"))
    store.fetch(FetchRequest("big", models, files, FetchSettings(reserve_bytes=0)))


def test_kill_9_while_files_without_a_digest_are_put_in_place(tmp_path: Path) -> None:
    """What was there cannot be proven anew: only the note of what was to come tells."""

    def answer(asked: Asked) -> Reply:
        return ranged(asked, b"GGUF" + asked.path.encode() * 100, ETag='"1"')

    steps = staged = 0
    killed = True
    with killed_steps(__name__, "fetch_plain_shards") as tries, StandInWeb(answer) as web:
        while killed:
            assert steps < 100
            models = tmp_path / f"models-{steps}"
            models.mkdir()
            killed = tries.is_killed(steps, models, web.url)
            noted = any(models.glob("*.staged"))
            web.asked.clear()
            fetch_plain_shards(models, web.url)
            assert names(models) == sorted([*SHARD_NAMES, f"{SHARD_NAMES[0]}.json"])
            for name in SHARD_NAMES:
                assert (models / name).read_bytes() == b"GGUF" + f"/{name}".encode() * 100
            if noted:
                assert web.asked == []
            steps += 1
            staged += noted
    assert staged > 3


# An offline folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "offline"
    (path / "acme" / "split-GGUF" / "q4").mkdir(parents=True)
    for name, content in zip(SHARD_NAMES, SHARDS, strict=True):
        (path / "acme" / "split-GGUF" / "q4" / name).write_bytes(content)
    (path / "big.mmproj.gguf").write_bytes(MMPROJ)
    (path / "mmproj-F16.gguf").write_bytes(b"GGUF another model's")
    (path / "adapter.gguf").write_bytes(ADAPTER)
    return path


def test_an_offline_folder_stands_for_the_network(
    store: ModelStore, models: Path, folder: Path
) -> None:
    request = split_wish(models, "http://127.0.0.1:9", **companions())
    request = with_settings(request, offline_dir=folder, offline=True)
    assert store.plan(request).action == "fetch"
    outcome = store.fetch(request)
    assert {name: (models / name).read_bytes() for name in ALL_FILES} == ALL_FILES
    assert (models / SHARD_NAMES[1]).samefile(
        folder / "acme" / "split-GGUF" / "q4" / SHARD_NAMES[1]
    )
    assert (outcome.bytes_fetched, outcome.after.verified) == (0, False)
    assert outcome.after.source == SPLIT_SOURCE + "@main"
    # The same wish, once there is a network, finds it all in place.
    assert store.fetch(with_settings(request, offline=False)).action == "none"


def test_what_an_offline_folder_lacks(store: ModelStore, models: Path, folder: Path) -> None:
    (folder / "adapter.gguf").unlink()
    request = with_settings(
        split_wish(models, "http://127.0.0.1:9", **companions()), offline_dir=folder, offline=True
    )
    with pytest.raises(StoreError, match=r"'offline' forbids that; put the file at .*adapter"):
        store.fetch(request)
    with pytest.raises(StoreError, match="give 'offline_dir'"):
        store.plan(with_settings(request, offline_dir=None))
    assert names(models) == []


def test_a_partly_filled_offline_folder_spares_the_network_what_it_can(
    store: ModelStore, split: StandInHub, models: Path, folder: Path
) -> None:
    (folder / "acme" / "split-GGUF" / "q4" / SHARD_NAMES[2]).unlink()
    request = with_settings(split_wish(models, split.url), offline_dir=folder)
    assert store.fetch(request).bytes_fetched == len(SHARDS[2])


def test_a_wrong_file_in_an_offline_folder(store: ModelStore, models: Path, folder: Path) -> None:
    (folder / "tiny.gguf").write_bytes(b"GGUF wrong")
    request = with_settings(wish(models, HF_SOURCE), offline_dir=folder, offline=True)
    with pytest.raises(StoreError, match=f"needed is {SHA256}"):
        store.fetch(with_sha256(request, SHA256))
    assert names(models) == []
    assert (folder / "tiny.gguf").exists()


# What is newer


def test_latest_asks_and_fetches_what_changed(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    latest = replace(request, latest=True)
    assert store.fetch(latest).action == "fetch"
    hub.forget_requests()
    assert store.fetch(latest).action == "none"
    assert {one.method for one in hub.requests} == {"HEAD"}
    newer = MODEL + b"newer"
    (hub.store.root / "acme" / "tiny-GGUF" / "tiny.gguf").write_bytes(newer)
    assert store.fetch(request).action == "none"
    record = read_record(models / "tiny.gguf")
    assert record is not None
    assert store.check_update(record, request.settings).available
    assert (models / "tiny.gguf").read_bytes() == MODEL
    assert store.plan(latest).action == "fetch"
    assert_in_place(store.fetch(latest), models, newer)


def test_latest_where_nobody_states_a_digest(store: ModelStore, models: Path) -> None:
    body = MODEL
    with StandInWeb(lambda asked: ranged(asked, body)) as web:
        request = replace(plain(models, web), latest=True)
        record = store.fetch(request).after
        assert store.fetch(request).action == "none"
        check = store.check_update(record, request.settings)
        assert (check.available, "states no digest" in check.detail) == (None, True)
        body = MODEL + b"more"
        assert store.check_update(record, request.settings).available
        assert_in_place(store.fetch(request), models, body)


def test_a_pinned_commit_has_no_update(store: ModelStore, hub: StandInHub, models: Path) -> None:
    commit = hub.store.commit("acme/tiny-GGUF")
    request = wish(models, f"{HF_SOURCE}@{commit}", hub.url)
    record = store.fetch(request).after
    hub.forget_requests()
    assert store.check_update(record, request.settings).available is False
    assert hub.requests == []


def test_trouble_with_the_source_is_told_and_not_raised(
    store: ModelStore, hub: StandInHub, models: Path, origin: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    record = store.fetch(request).after
    hub.faults = Faults(fail_status=503)
    check = store.check_update(record, request.settings)
    assert (check.available, "HTTP 503" in check.detail) == (None, True)
    linked = store.fetch(wish(models, f"file:{origin}")).after
    assert store.check_update(linked, request.settings).available is None
    origin.write_bytes(MODEL + b"more")
    assert store.check_update(linked, request.settings).available
    origin.unlink()
    check = store.check_update(linked, request.settings)
    assert (check.available, "must lie on the host" in check.detail) == (None, True)


# Records


def test_a_record_of_the_first_schema_is_as_good(
    store: ModelStore, hub: StandInHub, models: Path
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    (models / "tiny.gguf").write_bytes(MODEL)
    known = {
        "name": "tiny",
        "source": HF_SOURCE + "@main",
        "revision": "0" * 40,
        "size_bytes": len(MODEL),
        "sha256": SHA256,
        "verified": True,
        "verified_at": "2026-11-01T00:00:00+00:00",
        "mtime_ns": (models / "tiny.gguf").stat().st_mtime_ns,
    }
    record_path(models / "tiny.gguf").write_text(json.dumps(known))
    outcome = store.fetch(request)
    assert (outcome.action, outcome.after.revision) == ("none", "0" * 40)
    assert hub.requests == []


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"files": []},
        {"files": [{"file": "tiny.gguf"}]},
        {"dropped": ["../x"]},
        {"files": "x"},
    ],
)
def test_a_record_that_cannot_be_read_is_none(
    store: ModelStore, hub: StandInHub, models: Path, change: dict[str, Any]
) -> None:
    request = wish(models, HF_SOURCE, hub.url)
    store.fetch(request)
    path = record_path(models / "tiny.gguf")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_record(models / "tiny.gguf") is None
    outcome = store.fetch(request)
    assert outcome.action == "record"
    assert_in_place(outcome, models)


# Several models at once


class Watched(ProgressFile):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None, "", "bytes")
        self.seen: list[tuple[str, int, int | None]] = []
        self._label = ""

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        self._label = label
        self.seen.append((label, done, total))

    def update(self, done: int, total: int | None = None) -> None:
        self.seen.append((self._label, done, total))


def test_several_models_at_once(hub: StandInHub, models: Path) -> None:
    for number in range(3):
        name = f"m{number}.gguf"
        (hub.store.root / "acme" / "tiny-GGUF" / name).write_bytes(MODEL + bytes([number]))
    requests = [
        FetchRequest(
            f"m{number}",
            models,
            wanted_files(parse_source(f"hf://acme/tiny-GGUF/m{number}.gguf")),
            FetchSettings(hf_endpoint=hub.url, reserve_bytes=0),
        )
        for number in (0, 1, 9, 2)
    ]
    hub.faults = Faults(bytes_per_s=6_000_000)
    progress = Watched()
    clients: list[HttpClient] = []

    def make_client() -> HttpClient:
        clients.append(HttpClient(5, sleep=lambda _: None))
        return clients[-1]

    planned = fetch_all(requests, make_client, ProgressFile(None, "", "bytes"), 2, plan_only=True)
    assert names(models) == []
    results = fetch_all(requests, make_client, progress, 2)
    assert len(clients) == 4
    for outcomes in (planned, results):
        assert [type(one).__name__ for one in outcomes] == [
            "Outcome",
            "Outcome",
            "HttpError",
            "Outcome",
        ]
    assert names(models) == [f"m{n}.gguf{end}" for n in range(3) for end in ("", ".json")]
    together = [one for one in progress.seen if one[0] == "model m0, model m1"]
    assert max(total or 0 for _, _, total in together) == 2 * len(MODEL) + 2
    again = fetch_all(requests, make_client, progress, 1)
    assert [isinstance(one, Outcome) and one.action for one in again] == [
        "none",
        "none",
        False,
        "none",
    ]


def test_a_bug_in_a_worker_is_not_hidden(hub: StandInHub, models: Path) -> None:
    def broken(_: os.stat_result) -> bool:
        raise RuntimeError("a bug")

    request = wish(models, f"file:{__file__}")
    requests = [with_settings(request, may_link=broken), wish(models, HF_SOURCE, hub.url)]
    with pytest.raises(RuntimeError, match="a bug"):
        fetch_all(requests, lambda: HttpClient(5), ProgressFile(None, "", "bytes"), 2)


def test_downloads_do_not_count_on_the_same_space(models: Path) -> None:
    claims = SpaceClaims()
    seen: list[int] = []
    part = models / "one.part"
    claims.claim(models / "one", 5_000_000, [part], seen.append)
    part.write_bytes(bytes(2 << 20))
    os.sync()
    claims.claim(models / "two", 1, [], seen.append)
    claims.claim(models / "one", 4_000_000, [part], seen.append)
    claims.release(models / "one")
    claims.claim(models / "two", 1, [], seen.append)
    assert seen == [0, 5_000_000 - (2 << 20), 1, 0]

    def refuse(_: int) -> None:
        raise StoreError("no room")

    with pytest.raises(StoreError):
        claims.claim(models / "three", 7, [], refuse)
    claims.claim(models / "four", 0, [], seen.append)
    assert seen[-1] == 1
