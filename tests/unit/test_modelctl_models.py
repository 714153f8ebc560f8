"""modelctl: models that come, are listed, proven, replaced and removed."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from testbed.stand_in_hub import StandInHub
from tests.unit.modelctl_host import ModelctlHost, is_root, write_model

SOURCE = "hf://acme/tiny-GGUF/tiny.gguf"


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    write_model(tmp_path / "hub/acme/tiny-GGUF/tiny.gguf")
    write_model(tmp_path / "hub/acme/tiny-GGUF/other.gguf", seed=1)
    with StandInHub(tmp_path / "hub") as running:
        yield running


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_upstream(hub: StandInHub, seed: int = 7) -> None:
    write_model(hub.store.root / "acme/tiny-GGUF/tiny.gguf", seed=seed)


def test_pull_list_show(host: ModelctlHost, hub: StandInHub) -> None:
    pulled = host.run("pull", SOURCE, "--name", "tiny:1b", HF_ENDPOINT=hub.url)
    assert pulled.code == 0, pulled.err
    file = host.models / "tiny.gguf"
    digest = sha256(file)
    assert file.read_bytes() == (hub.store.root / "acme/tiny-GGUF/tiny.gguf").read_bytes()
    size = f"{file.stat().st_size / 1000:.1f} kB"
    assert pulled.lines == [f"tiny:1b  {size}  version {digest[:12]}  {file}  (verified)"]
    (listed,) = host.run("list", "--json").json["models"]
    assert listed == {
        "name": "tiny:1b",
        "aliases": [],
        "file": "tiny.gguf",
        "path": str(file),
        "paths": [str(file)],
        "size_bytes": file.stat().st_size,
        "quantisation": "F16",
        "architecture": "llama",
        "version": digest[:12],
        "previous": None,
        "versions": [digest[:12]],
        "revision": hub.store.commit("acme/tiny-GGUF"),
        "source": f"{SOURCE}@main",
        "verified": True,
        "damaged": False,
        "used_by": [],
    }
    heading, row = host.run("list").lines
    assert heading.split() == ["name", "aliases", "size", "quantisation", "version", "used", "by"]
    assert row.split()[0] == "tiny:1b"
    shown = host.run("show", "tiny:1b")
    assert "trained context  2048 tokens" in shown.out
    assert "\x1b" not in shown.out
    assert "Tiny \N{REPLACEMENT CHARACTER}[31mLlama" in shown.out
    data = host.run("show", "tiny:1b", "--json", "--metadata", "--tensors").json
    assert data["facts"]["architecture"] == "llama"
    assert data["record"]["files"][0]["sha256"] == digest
    assert [version["active"] for version in data["versions"]] == [True]
    assert data["metadata"]["llama.block_count"] == 2
    assert data["tensors"][0] == {
        "name": "token_embd.weight",
        "type": "F16",
        "shape": [64, 256],
        "bytes": 64 * 256 * 2,
    }


def test_a_second_pull_fetches_nothing(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    hub.forget_requests()
    change_upstream(hub)
    again = host.run("pull", SOURCE, "--json", HF_ENDPOINT=hub.url)
    (model,) = again.json["models"]
    assert (again.code, model["action"], model["bytes_fetched"]) == (0, "none", 0)
    assert hub.requests == []


def test_pull_several_and_say_which_failed(host: ModelctlHost, hub: StandInHub) -> None:
    ran = host.run(
        "pull",
        SOURCE,
        "hf://acme/tiny-GGUF/missing.gguf",
        "hf://acme/tiny-GGUF/other.gguf",
        "--json",
        HF_ENDPOINT=hub.url,
    )
    assert ran.code == 6
    assert [model["name"] for model in ran.json["models"]] == ["tiny", "other"]
    (failed,) = ran.json["failed"]
    assert failed["source"] == "hf://acme/tiny-GGUF/missing.gguf"
    assert failed["exit_code"] == 6
    assert "HTTP 404" in failed["error"]
    assert (host.models / "other.gguf").is_file()


def test_pull_a_planned_model_by_its_alias(host: ModelctlHost, hub: StandInHub) -> None:
    host.write_plan([host.planned_model("tiny:1b", SOURCE, "main")], models_hf_endpoint=hub.url)
    ran = host.run("pull", "main", "--json")
    assert (ran.code, ran.json["models"][0]["name"]) == (0, "tiny:1b")
    (listed,) = host.run("list", "--json").json["models"]
    assert listed["aliases"] == ["main"]


def test_pull_of_what_nobody_knows(host: ModelctlHost) -> None:
    ran = host.run("pull", "nothing:1b")
    assert ran.code == 3
    assert "neither a source" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["hf://acme/tiny-GGUF"], 2, ".gguf"),
        (["ftp:x"], 3, "neither a source"),
        ([SOURCE, "--sha256", "12"], 2, "64 hexadecimal digits"),
        ([SOURCE, f"{SOURCE}@x", "--name", "x"], 2, "--name: only with a single source"),
        ([f"{SOURCE}@v1", "--revision", "v2"], 2, "--revision"),
        ([SOURCE, "--sha256", "0" * 64], 7, "sha256"),
        ([SOURCE, "--file", "a/b.gguf"], 2, "slash"),
        ([SOURCE, "--reserve-mib", "9999999999"], 1, "are free"),
        ([SOURCE, "--token-file", "/nonexistent/token"], 3, "/nonexistent/token"),
    ],
)
def test_refused_pulls(
    host: ModelctlHost, hub: StandInHub, words: list[str], code: int, said: str
) -> None:
    ran = host.run("pull", *words, HF_ENDPOINT=hub.url)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert list(host.models.glob("*.gguf")) == []


def test_a_pull_never_replaces_another_model(host: ModelctlHost, hub: StandInHub) -> None:
    write_model(hub.store.root / "other/tiny-GGUF/tiny.gguf", seed=3)
    assert host.run("pull", SOURCE, "--name", "one", HF_ENDPOINT=hub.url).code == 0
    before = (host.models / "tiny.gguf").read_bytes()
    other = "hf://other/tiny-GGUF/tiny.gguf"
    ran = host.run("pull", other, "--name", "two", HF_ENDPOINT=hub.url)
    assert ran.code == 4
    assert "is model 'one'" in ran.err
    assert (host.models / "tiny.gguf").read_bytes() == before
    named = host.run("pull", other, "--name", "two", "--file", "two.gguf", HF_ENDPOINT=hub.url)
    assert named.code == 0
    assert len(host.run("list", "--json").json["models"]) == 2


def test_a_pull_never_replaces_a_model_of_another_source(
    host: ModelctlHost, hub: StandInHub
) -> None:
    """Also where both would get their name from the file's."""
    write_model(hub.store.root / "other/tiny-GGUF/tiny.gguf", seed=3)
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    first = sha256(host.models / "tiny.gguf")
    other = "hf://other/tiny-GGUF/tiny.gguf"
    ran = host.run("pull", other, HF_ENDPOINT=hub.url)
    assert (ran.code, "--name tiny" in ran.err) == (4, True)
    assert sha256(host.models / "tiny.gguf") == first
    assert host.run("pull", other, "--name", "tiny", HF_ENDPOINT=hub.url).code == 0
    assert sha256(host.models / "tiny.gguf") != first


def test_a_model_that_is_pulled_again_stays_what_it_is(host: ModelctlHost, hub: StandInHub) -> None:
    """Name, aliases and companions are the inventory's; a pull of the same source takes none."""
    host.write_plan([host.planned_model("tiny:1b", SOURCE, "main")], models_hf_endpoint=hub.url)
    assert host.run("pull", "tiny:1b").code == 0
    eye = f"file:{hub.store.root}/acme/tiny-GGUF/other.gguf"
    assert host.run("pull", SOURCE, "--mmproj", eye).code == 0
    for words in ([], ["--revision", hub.store.commit("acme/tiny-GGUF")]):
        (pulled,) = host.run("pull", SOURCE, *words, "--json").json["models"]
        assert (pulled["name"], len(pulled["paths"])) == ("tiny:1b", 2)
    (listed,) = host.run("list", "--json").json["models"]
    assert (listed["name"], listed["aliases"]) == ("tiny:1b", ["main"])
    assert (host.models / "tiny.mmproj.gguf").is_file()
    (renamed,) = host.run("pull", SOURCE, "--name", "mine", "--json").json["models"]
    assert renamed["name"] == "mine"


def test_aliases(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    first = sha256(host.models / "tiny.gguf")[:12]
    assert "no aliases" in host.run("alias").err
    assert host.run("alias", "main", "tiny").lines == ["main stands for tiny now"]
    set_now = host.run("alias", "stable", f"tiny@{first[:6]}", "--json")
    stable = {"alias": "stable", "model": "tiny", "version": first, "previous": None}
    assert set_now.json == {"aliases": [stable]}
    change_upstream(hub)
    assert host.run("update", "--promote", HF_ENDPOINT=hub.url).code == 0
    second = sha256(host.models / "tiny.gguf")[:12]
    paths = [host.run("show", name, "--json").json["path"] for name in ("main", "stable")]
    assert [sha256(Path(path))[:12] for path in paths] == [second, first]
    assert host.run("promote", "stable", second, "--json").json["before"] == first
    assert host.run("alias").lines[2].split() == ["stable", f"tiny@{second}", first]
    assert host.run("rollback", "stable", "--json").json["after"] == first

    refused = host.run("rm", "main", "--json")
    assert (refused.code, "modelctl alias --remove main" in refused.json["error"]) == (1, True)
    assert host.run("alias", "--remove", "main").lines == ["main stands for nothing now"]
    assert [one["alias"] for one in host.run("alias", "--json").json["aliases"]] == ["stable"]
    for words, code in (
        (["--remove", "main"], 3),
        (["--remove", "stable", "tiny"], 2),
        (["--remove"], 2),
        (["new"], 2),
        (["new", "nobody"], 3),
        (["new", "tiny@ffffff"], 3),
        (["tiny", "tiny"], 1),
    ):
        assert host.run("alias", *words).code == code, words


def test_a_name_may_look_like_a_version(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, "--name", "odd@1234", HF_ENDPOINT=hub.url).code == 0
    done = host.run("rm", "odd@1234")
    assert (done.code, done.lines[0].startswith("removed odd@1234")) == (0, True), done.err


def test_pull_of_a_file_and_a_revision(host: ModelctlHost, hub: StandInHub, tmp_path: Path) -> None:
    write_model(tmp_path / "here.gguf", seed=5)
    assert host.run("pull", f"file:{tmp_path}/here.gguf").code == 0
    assert (host.models / "here.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()
    commit = hub.store.commit("acme/tiny-GGUF")
    ran = host.run("pull", SOURCE, "--revision", commit, HF_ENDPOINT=hub.url)
    assert ran.code == 0, ran.err
    (tiny,) = [m for m in host.run("list", "--json").json["models"] if m["name"] == "tiny"]
    assert tiny["source"] == f"{SOURCE}@{commit}"


def test_pull_of_all_shards(host: ModelctlHost, hub: StandInHub) -> None:
    folder = hub.store.root / "acme/split-GGUF"
    folder.mkdir(parents=True)
    for number in (1, 2):
        writer = gguf.GGUFWriter(folder / f"big-{number:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    ran = host.run("pull", "hf://acme/split-GGUF/big-00001-of-00002.gguf", HF_ENDPOINT=hub.url)
    assert ran.code == 0, ran.err
    (model,) = host.run("list", "--json").json["models"]
    assert model["name"] == "big"
    assert [Path(path).name for path in model["paths"]] == [
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
    ]


def test_update_promote_rollback(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    first = sha256(host.models / "tiny.gguf")[:12]
    (unchanged,) = host.run("update", "--check", "--json", HF_ENDPOINT=hub.url).json["models"]
    assert unchanged["available"] is False
    change_upstream(hub)
    hub.forget_requests()
    checked = host.run("update", "--check", "--json", HF_ENDPOINT=hub.url)
    assert (checked.code, checked.json["models"][0]["available"]) == (0, True)
    assert {request.method for request in hub.requests} == {"HEAD"}

    updated = host.run("update", "--json", HF_ENDPOINT=hub.url)
    (model,) = updated.json["models"]
    second = sha256(hub.store.root / "acme/tiny-GGUF/tiny.gguf")[:12]
    assert (model["fetched"], model["version"], model["promoted"]) == (True, second, False)
    assert f"modelctl promote tiny {second}" in model["detail"]
    assert sha256(host.models / "tiny.gguf")[:12] == first

    env = host.etc / "instances/live.env"
    env.parent.mkdir()
    env.write_text(f"LLAMA_ARG_MODEL={host.models}/tiny.gguf\n")
    host.write_plan([], [host.planned_instance("live", host.models / "tiny.gguf")])
    promoted = host.run("promote", "tiny", second[:6], "--json")
    assert promoted.json["after"] == second
    assert promoted.json["restart"] == ["kloros-llama-live.service"]
    assert promoted.json["restarted"] == []
    assert "sudo systemctl try-restart kloros-llama-live.service" in promoted.err
    assert sha256(host.models / "tiny.gguf")[:12] == second
    assert host.calls == []

    back = host.run("rollback", "tiny", "--restart")
    assert back.code == 0, back.err
    assert back.lines == [f"tiny stands for version {first} now (before: {second})"]
    assert sha256(host.models / "tiny.gguf")[:12] == first
    assert host.calls == ["systemctl try-restart kloros-llama-live.service"]

    host.fail_restarts()
    failed = host.run("promote", "tiny", second, "--restart")
    assert failed.code == 1
    assert "the restart failed: Job failed" in failed.err
    assert host.run("promote", "tiny", second).lines == [
        f"tiny stands for version {second} already"
    ]


def test_update_with_promote(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    change_upstream(hub)
    ran = host.run("update", "tiny", "--promote", HF_ENDPOINT=hub.url)
    second = sha256(hub.store.root / "acme/tiny-GGUF/tiny.gguf")
    assert (ran.code, ran.lines) == (0, [f"tiny  version {second[:12]} is in use now"])
    assert sha256(host.models / "tiny.gguf") == second


def test_versions_that_are_not_there(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    unknown = host.run("promote", "tiny", "ffffffff")
    assert (unknown.code, "names no version" in unknown.err) == (3, True)
    nothing = host.run("rollback", "tiny")
    assert (nothing.code, "no earlier version" in nothing.err) == (3, True)
    assert host.run("update", "--check", "--promote").code == 2
    assert host.run("update", "--restart").code == 2


def test_update_without_the_hub(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    hub.faults.fail_status = 404
    checked = host.run("update", "--check", "--json", HF_ENDPOINT=hub.url)
    assert (checked.code, checked.json["models"][0]["available"]) == (6, None)
    ran = host.run("update", "--json", HF_ENDPOINT=hub.url)
    assert (ran.code, ran.json["models"]) == (6, [])
    assert "404" in ran.json["failed"][0]["error"]


def test_rm_refuses_what_is_in_use(host: ModelctlHost, hub: StandInHub) -> None:
    for name in ("tiny", "other"):
        assert host.run("pull", f"hf://acme/tiny-GGUF/{name}.gguf", HF_ENDPOINT=hub.url).code == 0
    host.write_plan([], [host.planned_instance("live", host.models / "tiny.gguf")])
    (other, tiny) = host.run("list", "--json").json["models"]
    assert (tiny["used_by"], other["used_by"]) == (["live"], [])

    ran = host.run("rm", "tiny", "other", "--json")
    assert ran.code == 4
    assert "in use by instance live" in ran.err
    assert [one["name"] for one in ran.json["removed"]] == ["other"]
    assert (host.models / "tiny.gguf").is_file()
    assert not (host.models / "other.gguf").exists()


def test_rm_checks_all_names_first_and_can_only_say(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    wrong = host.run("rm", "tiny", "tinny")
    assert (wrong.code, "did you mean tiny" in wrong.err) == (3, True)
    said = host.run("rm", "tiny", "--dry-run")
    assert (said.code, said.lines[0].startswith("would remove tiny")) == (0, True)
    assert (host.models / "tiny.gguf").is_file()
    done = host.run("rm", "tiny")
    assert (done.code, done.lines[0].startswith("removed tiny")) == (0, True)
    assert [path.suffix for path in host.models.iterdir() if path.suffix != ".lock"] in (
        [],
        [".json"],
    )
    assert host.run("list", "--json").json["models"] == []


def test_rm_of_a_version(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    first = sha256(host.models / "tiny.gguf")[:12]
    change_upstream(hub)
    assert host.run("update", HF_ENDPOINT=hub.url).code == 0
    second = sha256(hub.store.root / "acme/tiny-GGUF/tiny.gguf")[:12]
    assert host.run("rm", f"tiny@{first}").code == 4
    assert host.run("rm", "tiny@123456").code == 3
    assert host.run("rm", f"tiny@{second}").code == 0
    assert host.run("list", "--json").json["models"][0]["versions"] == [first]


def test_verify_finds_a_flipped_byte_and_pull_heals(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    good = host.run("verify", "--json")
    assert (good.code, good.json["ok"]) == (0, True)
    file = host.models / "tiny.gguf"
    state = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    bad = host.run("verify", "tiny")
    assert bad.code == 7
    assert bad.lines[1].endswith("damaged")
    assert "sha256 is" in bad.err
    assert host.run("list", "--json").json["models"][0]["damaged"] is True
    assert "DAMAGED" in host.run("show", "tiny").out
    healed = host.run("pull", "tiny", HF_ENDPOINT=hub.url)
    assert healed.code == 0, healed.err
    assert host.run("verify").code == 0
    assert host.run("verify", "nobody").code == 3


def test_gc_removes_what_was_left_behind(host: ModelctlHost) -> None:
    part = host.models / "gone.gguf.part"
    part.write_bytes(b"x" * 1000)
    assert host.run("gc", "--json").json["items"] == []
    said = host.run("gc", "--older-than", "0", "--dry-run", "--json").json
    assert [item["path"] for item in said["items"]] == [str(part)]
    assert (said["dry_run"], part.exists()) == (True, True)
    done = host.run("gc", "--older-than", "0")
    assert (done.code, part.exists()) == (0, False)
    assert done.lines[-1].endswith("freed")


def test_show_a_source_reads_only_its_header(host: ModelctlHost, hub: StandInHub) -> None:
    write_model(hub.store.root / "acme/tiny-GGUF/large.gguf", megabytes=24)
    data = host.run("show", "hf://acme/tiny-GGUF/large.gguf", "--json", HF_ENDPOINT=hub.url).json
    assert data["facts"]["architecture"] == "llama"
    assert (data["path"], data["record"], data["versions"]) == (None, None, [])
    assert [request.range for request in hub.requests if request.listener == "cdn"] == [
        f"bytes=0-{4 * 2**20 - 1}"
    ]
    assert list(host.models.iterdir()) == []


def test_show_of_a_planned_model_and_of_a_path(host: ModelctlHost, hub: StandInHub) -> None:
    host.write_plan([host.planned_model("tiny:1b", SOURCE)])
    assert "layers           2" in host.run("show", "tiny:1b", HF_ENDPOINT=hub.url).out
    assert host.run("show", hub.store.root / "acme/tiny-GGUF/tiny.gguf").code == 0
    assert host.run("show", "/nonexistent.gguf").code == 3
    assert host.run("show", "nobody").code == 3


def test_show_of_what_is_no_gguf(host: ModelctlHost, tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_text("<!DOCTYPE html>" * 10)
    ran = host.run("show", file)
    assert (ran.code, "no GGUF file" in ran.err) == (7, True)


def test_files_that_this_project_did_not_put_there(host: ModelctlHost) -> None:
    write_model(host.models / "foreign.gguf")
    ran = host.run("list", "--json")
    assert (ran.json["models"], ran.json["unrecorded"]) == (
        [],
        [str(host.models / "foreign.gguf")],
    )
    assert "foreign.gguf was not put there" in host.run("list").err


def test_no_models_directory(host: ModelctlHost, hub: StandInHub) -> None:
    shutil.rmtree(host.models)
    ran = host.run("list")
    assert (ran.code, "is not there" in ran.err) == (3, True)
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    assert (host.models / "tiny.gguf").is_file()


@pytest.mark.skipif(not is_root(), reason="only root can give files to others")
def test_new_files_are_as_the_directory_and_its_models_are(
    host: ModelctlHost, hub: StandInHub
) -> None:
    os.chown(host.models, 1234, 1235)
    before = os.umask(0o077)
    try:
        assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
        model = host.models / "tiny.gguf"
        for path in (model, host.models / "tiny.gguf.json"):
            state = path.stat()
            assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (1234, 1235, 0o644)
        assert (host.models / "catalogue.json").stat().st_mode & 0o777 == 0o644
        model.chmod(0o640)
        other = "hf://acme/tiny-GGUF/other.gguf"
        assert host.run("pull", other, HF_ENDPOINT=hub.url).code == 0
    finally:
        os.umask(before)
    state = (host.models / "other.gguf").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (1234, 1235, 0o640)


@pytest.mark.skipif(not is_root(), reason="only root can link to what is not its own")
def test_a_link_never_changes_its_origin(host: ModelctlHost, tmp_path: Path) -> None:
    os.chown(host.models, 1234, 1235)
    origin = tmp_path / "mine.gguf"
    write_model(origin)
    origin.chmod(0o600)
    assert host.run("pull", f"file:{origin}").code == 0
    assert (origin.stat().st_uid, origin.stat().st_mode & 0o777) == (0, 0o600)
    assert (host.models / "mine.gguf").stat().st_uid == 1234


@pytest.mark.parametrize(
    "words",
    [
        ["pull", SOURCE],
        ["rm", "tiny"],
        ["verify"],
        ["update"],
        ["promote", "tiny", "123456"],
        ["rollback", "tiny"],
        ["alias", "main", "tiny"],
        ["gc"],
    ],
    ids=lambda words: words[0],
)
def test_who_may_not_write_is_told_so(host: ModelctlHost, words: list[str]) -> None:
    write_model(host.models / "tiny.gguf")
    host.models.chmod(0o555)
    ran = host.run_without_rights(*words)
    assert (ran.code, "run it with sudo" in ran.err) == (8, True), ran.err
    assert host.run_without_rights("list").code == 0


def test_a_record_that_one_may_not_read_is_not_taken_for_none(
    host: ModelctlHost, hub: StandInHub
) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    (host.models / "tiny.gguf.json").chmod(0)
    ran = host.run_without_rights("list", "--json")
    assert (ran.code, ran.json["exit_code"]) == (8, 8)
    assert "tiny.gguf.json: Permission denied; run it with sudo" in ran.json["error"]


def test_a_version_is_kept_until_it_is_promoted(host: ModelctlHost, hub: StandInHub) -> None:
    assert host.run("pull", SOURCE, HF_ENDPOINT=hub.url).code == 0
    change_upstream(hub)
    assert host.run("update", HF_ENDPOINT=hub.url).code == 0
    assert host.run("gc", "--older-than", "0", "--json").json["items"] == []
    assert len(host.run("list", "--json").json["models"][0]["versions"]) == 2


def test_without_a_plan_and_with_a_broken_one(host: ModelctlHost) -> None:
    assert host.run("list", "--plan", host.root / "nowhere.json").code == 3
    host.plan.write_text("{")
    assert "is no JSON" in host.run("list").err
    host.plan.write_text('{"schema": 99}')
    ran = host.run("list")
    assert (ran.code, "no plan that this modelctl knows" in ran.err) == (1, True)


def test_what_json_cannot_say_is_shown_as_text(host: ModelctlHost, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma3n")
    writer.add_array("gemma3n.activation_sparsity_scale", [1.5, -math.inf])  # as real files have it
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ran = host.run("show", path, "--json", "--metadata")
    assert ran.json["metadata"]["gemma3n.activation_sparsity_scale"] == [1.5, "-inf"]
