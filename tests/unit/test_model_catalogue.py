"""Versions, aliases, the way back, and removing: nothing that is used or needed goes away."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.file_lock import file_lock
from ansible_collections.kloros.llm.plugins.module_utils.http_client import HttpClient
from ansible_collections.kloros.llm.plugins.module_utils.model_catalogue import (
    Catalogue,
    CatalogueError,
    InUseError,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_files import (
    Companion,
    read_record,
    record_path,
    wanted_files,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_source import parse_source
from ansible_collections.kloros.llm.plugins.module_utils.model_store import (
    FetchRequest,
    FetchSettings,
    ModelStore,
    StoreError,
)
from ansible_collections.kloros.llm.plugins.module_utils.model_users import Users
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile

from testbed.stand_in_hub import StandInHub
from tests.unit.killed_steps import killed_steps
from tests.unit.test_model_users import MAPPER

TOKEN = "hf_canary_of_the_catalogue"
REPO = "acme/chat-GGUF"


def content(number: int) -> bytes:
    return b"GGUF" + f"version {number} ".encode() * 50_000


def projector(number: int) -> bytes:
    return b"GGUF" + f"projector {number} ".encode() * 1000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    (folder / ".gated").touch()
    with StandInHub(tmp_path / "hub", token=TOKEN) as running:
        publish(running, 1)
        yield running


def publish(hub: StandInHub, number: int) -> None:
    folder = hub.store.root / REPO
    (folder / "chat.gguf").write_bytes(content(number))
    (folder / "mmproj-F16.gguf").write_bytes(projector(1 if number < 3 else number))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    (folder / "instances").mkdir(parents=True)
    return folder


@pytest.fixture
def users(config: Path) -> Users:
    return Users(config)


@pytest.fixture
def catalogue(models: Path, users: Users) -> Catalogue:
    return Catalogue(models, users)


def make_store() -> ModelStore:
    return ModelStore(HttpClient(5, sleep=lambda _: None), ProgressFile(None, "", "bytes"))


@pytest.fixture
def store() -> ModelStore:
    return make_store()


def settings_for(endpoint: str, users: Users) -> FetchSettings:
    return FetchSettings(hf_endpoint=endpoint, hf_token=TOKEN, reserve_bytes=0, users=users)


@pytest.fixture
def settings(hub: StandInHub, users: Users) -> FetchSettings:
    return settings_for(hub.url, users)


def wish(models: Path, settings: FetchSettings, **more: Any) -> FetchRequest:
    files = wanted_files(
        parse_source(f"hf://{REPO}/chat.gguf"),
        mmproj=Companion(parse_source(f"hf://{REPO}/mmproj-F16.gguf")),
    )
    return FetchRequest("chat", models, files, settings, **more)


@pytest.fixture
def pulled(hub: StandInHub, store: ModelStore, models: Path, settings: FetchSettings) -> StandInHub:
    """The first version is in force, put there as the module does: there is no catalogue."""
    store.fetch(wish(models, settings))
    return hub


def update(
    catalogue: Catalogue, settings: FetchSettings, number: int, hub: StandInHub, promote: bool
) -> str:
    publish(hub, number)
    updated = catalogue.update("chat", make_store(), settings, promote=promote)
    assert updated.fetched
    return updated.version


def in_force(models: Path) -> bytes:
    assert (models / "chat.gguf").stat().st_size
    return (models / "chat.gguf").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def inodes(models: Path) -> int:
    """How many different files there are: hard links count once."""
    return len({path.stat().st_ino for path in models.rglob("*.gguf")})


# Derived from records


def test_without_a_catalogue_all_follows_from_the_records(
    pulled: StandInHub, catalogue: Catalogue, models: Path
) -> None:
    (model,) = catalogue.models()
    record = read_record(models / "chat.gguf")
    assert record is not None
    assert (model.name, model.active, model.previous) == ("chat", record.version, None)
    assert model.in_force is not None
    assert model.in_force.digest == record.digest
    assert model.in_force.revision == pulled.store.commit(REPO)
    assert [one.version for one in model.history] == [record.version]
    assert not model.in_force.damaged
    found = catalogue.find("chat")
    assert found.path == models / "chat.gguf"
    assert found.paths == (models / "chat.gguf", models / "chat.mmproj.gguf")
    assert "catalogue.json" not in names(models)


def test_an_old_record_of_a_single_file_is_a_model_too(catalogue: Catalogue, models: Path) -> None:
    (models / "old.gguf").write_bytes(b"GGUF")
    digest = hashlib.sha256(b"GGUF").hexdigest()
    schema_1 = {
        "name": "old",
        "source": "https://h/old.gguf",
        "revision": None,
        "size_bytes": 4,
        "sha256": digest,
        "verified": True,
        "verified_at": "2026-11-01T00:00:00+00:00",
        "mtime_ns": (models / "old.gguf").stat().st_mtime_ns,
    }
    (models / "old.gguf.json").write_text(json.dumps(schema_1))
    found = catalogue.find("old")
    assert (found.version.digest, found.version.damaged) == (digest, False)
    assert found.version.files[0].role == "model"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "models": []}'])
@pytest.mark.usefixtures("pulled")
def test_a_catalogue_that_cannot_be_read_is_derived_anew(
    catalogue: Catalogue, models: Path, text: str
) -> None:
    (models / "catalogue.json").write_text(text)
    assert catalogue.find("chat").model.active
    catalogue.set_alias("main", "chat")
    assert catalogue.find("main").path == models / "chat.gguf"


def test_records_from_elsewhere_do_not_lead_out_of_the_directory(
    catalogue: Catalogue, models: Path, tmp_path: Path, pulled: StandInHub
) -> None:
    victim = tmp_path / "victim.gguf"
    victim.write_bytes(b"GGUF")
    data = json.loads((models / "chat.gguf.json").read_text())
    data["files"][1]["file"] = "../victim.gguf"
    (models / "chat.gguf.json").write_text(json.dumps(data))
    catalogue.remove_files("chat.gguf")
    assert victim.exists()
    assert pulled.requests


@pytest.mark.usefixtures("pulled")
def test_what_is_similar_is_named(catalogue: Catalogue) -> None:
    catalogue.set_alias("main", "chat")
    for wrong, said in [
        ("caht", "did you mean chat"),
        ("xyz", "there are chat, main"),
        ("chat@123", "at least 4 digits"),
        ("chat@ffff", "none begins so; there are"),
    ]:
        with pytest.raises(CatalogueError, match=said):
            catalogue.find(wrong)


def test_two_models_of_one_name(
    pulled: StandInHub, catalogue: Catalogue, store: ModelStore, models: Path, settings: Any
) -> None:
    """The wish named another file: the one that is left over has its file's name now."""
    older = wish(models, settings)
    files = wanted_files(parse_source(f"hf://{REPO}/chat.gguf"), "other.gguf")
    store.fetch(replace(older, files=files))
    record = json.loads((models / "chat.gguf.json").read_text())
    for file in record["files"]:
        file["verified_at"] = "2020-01-01T00:00:00+00:00"
    (models / "chat.gguf.json").write_text(json.dumps(record))
    assert {model.name: model.file for model in catalogue.models()} == {
        "chat": "other.gguf",
        "chat.gguf": "chat.gguf",
    }
    assert catalogue.find("chat.gguf").path == models / "chat.gguf"
    assert pulled.requests


# Versions


def test_update_promote_and_rollback(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    first = catalogue.find("chat").version.id
    nothing = catalogue.update("chat", make_store(), settings)
    assert (nothing.fetched, nothing.version) == (False, first)
    assert "versions" not in names(models)

    second = update(catalogue, settings, 2, pulled, promote=False)
    assert in_force(models) == content(1)
    assert [one.id for one in catalogue.find("chat").model.versions] == [second, first]
    # The projector did not change: it is there once, under three names.
    assert inodes(models) == 3

    switch = catalogue.promote("chat", second[:6])
    assert (switch.before, switch.after, switch.changed) == (first, second, True)
    assert in_force(models) == content(2)
    assert (models / "chat.mmproj.gguf").read_bytes() == projector(1)
    assert inodes(models) == 3
    assert names(models) == [
        "catalogue.json",
        "chat.gguf",
        "chat.gguf.json",
        "chat.mmproj.gguf",
        "versions",
    ]
    assert not catalogue.promote("chat", second).changed

    third = update(catalogue, settings, 3, pulled, promote=True)
    assert in_force(models) == content(3)
    assert (models / "chat.mmproj.gguf").read_bytes() == projector(3)
    assert [one.version for one in catalogue.find("chat").model.history] == [first, second, third]

    assert catalogue.rollback("chat").after == second
    assert (models / "chat.mmproj.gguf").read_bytes() == projector(1)
    assert catalogue.rollback("chat").after == first
    assert in_force(models) == content(1)
    with pytest.raises(CatalogueError, match="no earlier version"):
        catalogue.rollback("chat")
    catalogue.promote("chat", third)
    assert catalogue.find("chat").model.previous == first
    # The module finds its wish fulfilled by whatever is in force of that source.
    outcome = make_store().plan(wish(models, settings))
    assert outcome.action == "none"


def test_an_update_fetches_only_what_changed(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings
) -> None:
    publish(pulled, 2)
    updated = catalogue.update("chat", make_store(), settings)
    assert updated.outcome is not None
    assert updated.outcome.bytes_fetched == len(content(2))
    publish(pulled, 1)
    back = catalogue.update("chat", make_store(), settings)
    assert (back.fetched, back.version) == (False, catalogue.find("chat").version.id)
    publish(pulled, 2)
    again = catalogue.update("chat", make_store(), settings)
    assert (again.fetched, again.version) == (False, updated.version)


def test_an_update_that_cannot_reach_its_source(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    before = names(models)
    with pytest.raises(StoreError, match="wrong or expired") as caught:
        catalogue.update("chat", make_store(), replace(settings, hf_token="hf_canary_wrong"))
    assert "canary" not in str(caught.value)
    assert names(models) == before
    publish(pulled, 2)
    check = make_store().check_update(
        read_of(models), replace(settings, hf_endpoint="http://127.0.0.1:9")
    )
    assert (check.available, "no answer" in check.detail) == (None, True)


def read_of(models: Path) -> Any:
    record = read_record(models / "chat.gguf")
    assert record is not None
    return record


def test_what_is_new_is_told_without_downloading(
    pulled: StandInHub, settings: FetchSettings, models: Path
) -> None:
    publish(pulled, 2)
    pulled.forget_requests()
    check = make_store().check_update(read_of(models), settings)
    assert check.available
    assert check.detail.endswith("chat.gguf")
    assert [one.sha256 for one in check.newest] == [
        hashlib.sha256(content(2)).hexdigest(),
        hashlib.sha256(projector(1)).hexdigest(),
    ]
    assert {one.method for one in pulled.requests} == {"HEAD"}


def test_running_servers_and_instances_are_named(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path, config: Path
) -> None:
    env = config / "instances" / "main.env"
    env.write_text(f"LLAMA_ARG_MODEL={models}/chat.gguf\n")
    second = update(catalogue, settings, 2, pulled, promote=False)
    first = catalogue.find("chat").version.id
    server = subprocess.Popen(
        [sys.executable, "-c", MAPPER, models / "chat.gguf"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout
        server.stdout.readline()
        switch = catalogue.promote("chat", second)
        assert (switch.users[0].kind, switch.users[0].name) == ("instance", "main")
        assert [user.pid for user in switch.users if user.pid] == [server.pid]
        # It is neither in force nor the one before any more, but a server runs on it.
        update(catalogue, settings, 3, pulled, promote=True)
        assert catalogue.gc(0).items == ()
        with pytest.raises(InUseError, match=f"process {server.pid}"):
            catalogue.remove_version("chat", first)
    finally:
        server.communicate()
    (item,) = catalogue.gc(0, dry_run=True).items
    assert item.path.name == first
    assert catalogue.gc(0).items == (item,)
    assert catalogue.gc(0).items == ()
    assert first not in names(models / "versions")
    assert in_force(models) == content(3)


def test_a_version_that_was_altered_does_not_come_into_force(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    second = update(catalogue, settings, 2, pulled, promote=False)
    (models / "versions" / second / "chat.gguf").write_bytes(b"GGUF altered")
    with pytest.raises(CatalogueError, match="is not whole"):
        catalogue.promote("chat", second)
    assert in_force(models) == content(1)
    # The same update brings it again.
    assert catalogue.update("chat", make_store(), settings, promote=True).fetched
    assert in_force(models) == content(2)


def test_attributes_stay(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    for path in (*models.glob("*.gguf"), models / "chat.gguf.json"):
        path.chmod(0o604)
        if os.geteuid() == 0:
            os.chown(path, 1234, 4321)
    update(catalogue, settings, 2, pulled, promote=True)
    for path in (*models.glob("*.gguf"), models / "chat.gguf.json"):
        state = path.stat()
        assert state.st_mode & 0o7777 == 0o604
        assert os.geteuid() or (state.st_uid, state.st_gid) == (1234, 4321)


def test_what_the_module_replaces_can_be_brought_back(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    first = catalogue.find("chat").version.id
    publish(pulled, 2)
    make_store().fetch(wish(models, settings, latest=True, keep_previous=True))
    assert in_force(models) == content(2)
    assert catalogue.find("chat").model.previous == first
    catalogue.rollback("chat")
    assert in_force(models) == content(1)


# Aliases


def test_aliases_follow_or_stay(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    first = catalogue.find("chat").version.id
    catalogue.set_alias("main", "chat")
    catalogue.set_alias("stable", f"chat@{first[:8]}")
    second = update(catalogue, settings, 2, pulled, promote=True)
    assert catalogue.find("main").version.id == second
    assert catalogue.find("stable").path.read_bytes() == content(1)
    assert catalogue.find("stable").path == models / "versions" / first / "chat.gguf"
    assert catalogue.find(f"main@{first}").version.id == first
    third = update(catalogue, settings, 3, pulled, promote=True)
    assert catalogue.gc(0).items == ()  # `stable` needs the first

    assert catalogue.promote("stable", third).after == third
    assert in_force(models) == content(3)
    assert catalogue.rollback("stable").after == first
    assert catalogue.rollback("main").after == second
    assert in_force(models) == content(2)
    assert [(one.alias, one.version) for one in catalogue.aliases()] == [
        ("main", None),
        ("stable", first),
    ]
    with pytest.raises(CatalogueError, match="alias stable points at it"):
        catalogue.remove_version("chat", first)
    catalogue.remove_alias("stable")
    with pytest.raises(CatalogueError, match="no model is called 'stable'"):
        catalogue.find("stable")
    with pytest.raises(CatalogueError, match="own name"):
        catalogue.set_alias("chat", "chat")
    with pytest.raises(CatalogueError, match="cannot be an alias"):
        catalogue.set_alias("a@b", "chat")


def test_aliases_of_the_wish(
    hub: StandInHub, catalogue: Catalogue, store: ModelStore, settings: FetchSettings, models: Path
) -> None:
    request = wish(models, settings, aliases=("main", "qwen2.5:7b"))
    store.fetch(request)
    assert catalogue.find("qwen2.5:7b").path == models / "chat.gguf"
    with pytest.raises(CatalogueError, match="comes from the inventory"):
        catalogue.remove_alias("main")
    with pytest.raises(CatalogueError, match="comes from the inventory"):
        catalogue.set_alias("main", "chat")
    hub.forget_requests()
    assert store.fetch(replace(request, aliases=("main",))).action == "record"
    assert hub.requests == []
    assert [one.alias for one in catalogue.aliases()] == ["main"]


# Removing


def test_a_model_goes_with_all_that_belongs_to_it(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    update(catalogue, settings, 2, pulled, promote=True)
    catalogue.set_alias("main", "chat")
    foreign = ["chat.gguf.bak", "chat.txt", "chat2.gguf"]
    for name in foreign:
        (models / name).write_bytes(b"GGUF foreign")
    for name in ("chat.gguf.part", "chat.gguf.part.json", "chat.mmproj.gguf.part"):
        (models / name).write_bytes(b"rest")
    with pytest.raises(CatalogueError, match="is an alias of chat"):
        catalogue.remove("main")
    planned = catalogue.remove("chat", dry_run=True)
    assert in_force(models) == content(2)
    done = catalogue.remove("chat")
    assert done == planned
    assert done.freed_bytes > len(content(1)) + len(content(2)) + len(projector(1))
    assert names(models) == sorted(["catalogue.json", *foreign])
    assert (catalogue.models(), catalogue.aliases()) == ([], [])
    assert catalogue.unrecorded() == [models / "chat2.gguf"]
    assert not catalogue.remove_files("chat.gguf").changed
    assert catalogue.remove("chat2.gguf").changed
    with pytest.raises(CatalogueError, match="no model is called"):
        catalogue.remove("chat")


@pytest.mark.usefixtures("pulled")
def test_what_is_used_stays(catalogue: Catalogue, models: Path, config: Path) -> None:
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    env = config / "instances" / "eyes.env"
    env.write_text(f'LLAMA_EXTRA_ARGS="--mmproj {models}/chat.mmproj.gguf"\n')
    for dry_run in (True, False):
        with pytest.raises(InUseError, match="instance eyes; nothing was removed") as caught:
            catalogue.remove("chat", dry_run=dry_run)
    assert [user.name for user in caught.value.users] == ["eyes"]
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before
    env.unlink()
    with pytest.raises(InUseError, match="an instance of the inventory"):
        Catalogue(models, Users(config, named=(f"{models}/chat.gguf",))).remove("chat")
    assert catalogue.remove("chat").changed


def test_shards_without_a_record_go_together(catalogue: Catalogue, models: Path) -> None:
    for number in (1, 2):
        (models / f"big-0000{number}-of-00002.gguf").write_bytes(b"GGUF")
    (models / "big-00001-of-00003.gguf").write_bytes(b"GGUF")
    catalogue.remove("big-00001-of-00002.gguf")
    assert names(models) == ["big-00001-of-00003.gguf"]


def test_another_models_file_is_not_removed(
    pulled: StandInHub, catalogue: Catalogue, store: ModelStore, settings: Any, models: Path
) -> None:
    files = wanted_files(parse_source(f"hf://{REPO}/mmproj-F16.gguf"), "eyes.gguf")
    store.fetch(FetchRequest("eyes", models, files, settings))
    catalogue.remove_files("chat.gguf", ["eyes.gguf"])
    assert names(models) == ["eyes.gguf", "eyes.gguf.json"]
    assert pulled.requests


# Proving and tidying


def test_verify_marks_what_is_damaged_and_the_next_fetch_heals(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    update(catalogue, settings, 2, pulled, promote=False)
    assert {(one.state, one.detail) for one in catalogue.verify()} == {("good", "as recorded")}
    path = models / "chat.gguf"
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"X")
    # Neither size nor time tells.
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not catalogue.find("chat").version.damaged
    bad = [one for one in catalogue.verify("chat") if one.state != "good"]
    assert [(one.path, one.state) for one in bad] == [(path, "damaged")]
    assert catalogue.find("chat").version.damaged
    assert make_store().plan(wish(models, settings)).action == "fetch"
    publish(pulled, 1)
    make_store().fetch(wish(models, settings))
    assert in_force(models) == content(1)
    assert not catalogue.find("chat").version.damaged
    (models / "chat.mmproj.gguf").unlink()
    states = {
        one.path.name: one.state for one in catalogue.verify("chat") if one.path.parent == models
    }
    assert states == {"chat.gguf": "good", "chat.mmproj.gguf": "missing"}


def test_gc_leaves_the_way_forward(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    """What was rolled back from may be wanted again, until something new is in force."""
    first = catalogue.find("chat").version.id
    second = update(catalogue, settings, 2, pulled, promote=True)
    third = update(catalogue, settings, 3, pulled, promote=True)
    catalogue.rollback("chat")
    catalogue.rollback("chat")
    (model,) = catalogue.models()
    assert (model.active, set(model.rolled_back)) == (first, {second, third})
    assert catalogue.gc(0).items == ()
    catalogue.promote("chat", second)
    assert catalogue.models()[0].rolled_back == (third,)
    fourth = update(catalogue, settings, 4, pulled, promote=False)
    assert catalogue.gc(0).items == ()
    catalogue.promote("chat", fourth)
    assert names(models / "versions") == sorted([first, second, third, fourth])
    assert catalogue.gc().items == ()  # they are young
    assert {one.path.name for one in catalogue.gc(0).items} == {first, third}
    assert catalogue.rollback("chat").after == second
    (models / "versions" / fourth / "chat.gguf").write_bytes(b"GGUF altered")
    assert [(one.path.name, one.why) for one in catalogue.gc().items] == [
        (fourth, "version of chat: damaged")
    ]


def test_when_a_version_went_out_of_force_counts(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    first = catalogue.find("chat").version.id
    for number in (2, 3):
        update(catalogue, settings, number, pulled, promote=True)
    stored = json.loads((models / "catalogue.json").read_text())
    entry = stored["models"]["chat.gguf"]
    entry["added"][first] = "2020-01-01T00:00:00+00:00"
    (models / "catalogue.json").write_text(json.dumps(stored))
    assert catalogue.gc(1).items == ()
    for one in entry["history"]:
        one["at"] = "2020-01-02T00:00:00+00:00"
    (models / "catalogue.json").write_text(json.dumps(stored))
    assert [one.path.name for one in catalogue.gc(1).items] == [first]


def test_gc_leaves_what_is_young_busy_or_foreign(
    pulled: StandInHub, catalogue: Catalogue, models: Path
) -> None:
    left = ["x.gguf.part", "x.gguf.part.json", "x.gguf.lock", "gone.gguf.json", "y.swap"]
    record = json.loads((models / "chat.gguf.json").read_text())
    for name in left:
        (models / name).write_text("rest")
    record["files"][0]["file"] = "gone.gguf"
    (models / "gone.gguf.json").write_text(json.dumps(record))
    orphan = models / "versions" / "0123456789ab"
    orphan.mkdir(parents=True)
    (orphan / "chat.gguf").write_bytes(bytes(100_000))
    foreign = models / "notes.json"
    foreign.write_text("{}")
    assert catalogue.gc().items == ()
    old = 1_000_000_000
    for path in (*models.rglob("*"), orphan):
        os.utime(path, (old, old))
    os.utime(models / "chat.gguf", ns=(1, record["files"][0]["mtime_ns"]))
    os.utime(models / "chat.mmproj.gguf", ns=(1, record["files"][1]["mtime_ns"]))
    with file_lock(models / "busy.gguf.lock"):
        assert catalogue.gc(dry_run=True).items == ()
    garbage = catalogue.gc(dry_run=True)
    assert sorted(one.path.name for one in garbage.items) == sorted([*left, orphan.name])
    assert garbage.freed_bytes >= 100_000
    assert catalogue.gc() == garbage
    assert names(models) == ["chat.gguf", "chat.gguf.json", "chat.mmproj.gguf", "notes.json"]
    assert pulled.requests


def test_the_token_is_nowhere(
    pulled: StandInHub, catalogue: Catalogue, settings: FetchSettings, models: Path
) -> None:
    update(catalogue, settings, 2, pulled, promote=True)
    holders = [
        path for path in models.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
    assert holders == []
    assert TOKEN not in repr(wish(models, settings))


# Kills between any two steps


def prepare(models: Path, hub: StandInHub, settings: FetchSettings) -> list[str]:
    """Three versions, the second in force; an alias. Their ids."""
    models.mkdir()
    catalogue = Catalogue(models, settings.users)
    publish(hub, 1)
    make_store().fetch(wish(models, settings))
    versions = [catalogue.find("chat").version.id]
    for number in (2, 3):
        versions.append(update(catalogue, settings, number, hub, promote=number == 2))
    catalogue.set_alias("main", "chat")
    return versions


def act_on(models: Path, action: str, endpoint: str, config: str) -> None:
    """What is killed: in a process of its own."""
    users = Users(Path(config), proc=Path(config))
    catalogue = Catalogue(models, users)
    match action.split():
        case ["promote", version]:
            catalogue.promote("chat", version)
        case ["rollback"]:
            catalogue.rollback("main")
        case ["update"]:
            catalogue.update("chat", make_store(), settings_for(endpoint, users), promote=True)
        case ["remove"]:
            catalogue.remove_files("chat.gguf")
        case ["gc"]:
            catalogue.gc(0)
        case ["verify"]:
            catalogue.verify()


@pytest.mark.parametrize("action", ["promote", "rollback", "update", "remove", "gc", "verify"])
def test_kill_9_between_any_two_steps(
    hub: StandInHub, tmp_path: Path, config: Path, action: str
) -> None:
    users = Users(config, proc=config)
    settings = settings_for(hub.url, users)
    steps = 0
    killed = True
    with killed_steps(__name__, "act_on") as tries:
        versions = prepare(tmp_path / "prepared", hub, settings)
        if action == "update":
            publish(hub, 4)
        elif action == "gc":
            Catalogue(tmp_path / "prepared", users).promote("chat", versions[2])
        while killed:
            assert steps < 200
            models = tmp_path / f"models-{steps}"
            # With its hard links and times.
            subprocess.run(["cp", "-a", tmp_path / "prepared", models], check=True)
            full = f"promote {versions[2]}" if action == "promote" else action
            killed = tries.is_killed(steps, models, full, hub.url, str(config))
            steps += 1
            check_after_kill(models, users, action)
            # Once more, and it is as if nothing had happened.
            if action == "rollback":
                catalogue = Catalogue(models, users)
                if catalogue.find("chat").version.id != versions[0]:
                    catalogue.rollback("main")
            else:
                act_on(models, full, hub.url, str(config))
            check_end(models, users, action, versions)
    assert steps > 3


def check_after_kill(models: Path, users: Users, action: str) -> None:
    """Usable: what the record says is in force is whole, or the next to hold the lock makes it."""
    catalogue = Catalogue(models, users)
    listed = catalogue.models()
    if action == "remove":
        return
    (model,) = listed
    assert model.active
    # A server that starts now opens a whole file, old or new.
    assert (models / "chat.gguf").read_bytes() in [content(number) for number in (1, 2, 3, 4)]
    kept = {one.id for one in model.versions if not one.damaged}
    assert len(kept) >= (2 if action == "gc" else 3) - bool(list(models.glob("*.staged")))
    assert [one.alias for one in catalogue.aliases()] == ["main"]


def check_end(models: Path, users: Users, action: str, versions: list[str]) -> None:
    catalogue = Catalogue(models, users)
    if action == "remove":
        assert names(models) in (["catalogue.json"], [])
        assert catalogue.models() == []
        return
    catalogue.gc(0)
    (model,) = catalogue.models()
    expected = {"promote": 3, "rollback": 1, "update": 4, "gc": 3, "verify": 2}[action]
    assert in_force(models) == content(expected)
    assert (models / "chat.mmproj.gguf").read_bytes() == projector(max(1, expected // 3 * expected))
    assert model.in_force is not None
    assert not model.in_force.damaged
    assert {one.state for one in catalogue.verify()} == {"good"}
    if action in ("promote", "update"):
        assert model.previous == versions[1]
    assert not [
        one
        for one in names(models)
        if one
        not in ("catalogue.json", "chat.gguf", "chat.gguf.json", "chat.mmproj.gguf", "versions")
    ]
    assert not list((models / "versions").glob(".*"))


def test_two_processes_change_the_catalogue(
    pulled: StandInHub, catalogue: Catalogue, models: Path, config: Path
) -> None:
    setter = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from tests.unit.test_model_catalogue import *\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(20):\n"
        "    Catalogue(Path(sys.argv[1])).set_alias(f'{sys.argv[2]}-{number}', 'chat')\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", setter, models, name],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for process in running:
        assert process.stdout
        process.stdout.readline()
    # Both are ready: now they start together.
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    assert [process.returncode for process in running] == [0, 0]
    assert len(catalogue.aliases()) == 40
    assert record_path(models / "chat.gguf").exists()
    assert config.is_dir()
    assert pulled.requests
