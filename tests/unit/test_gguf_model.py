"""Module gguf_model through a real ansible-playbook."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.modules.gguf_model import has_attributes

from testbed.stand_in_hub import Faults, StandInHub
from tests.unit.play_runner import PlayRunner

MODEL = b"GGUF" + bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(MODEL).hexdigest()
TOKEN = "hf_canary_token"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "hub" / "acme" / "gated-GGUF"
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


@pytest.fixture
def args(hub: StandInHub, models: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "source": "hf://acme/gated-GGUF/tiny.gguf",
        "path": str(models),
        "hf_endpoint": hub.url,
        "hf_token": TOKEN,
        "reserve_mib": 0,
        "mode": "0640",
    }


def test_check_run_and_second_run(
    runner: PlayRunner, args: dict[str, Any], models: Path, hub: StandInHub
) -> None:
    foreseen = runner.play("gguf_model", args, options=["--check", "--diff"])
    assert foreseen.rc == 0, foreseen.output
    assert list(models.iterdir()) == []

    done = runner.play("gguf_model", args, options=["--diff"])
    assert done.rc == 0, done.output
    assert (models / "tiny.gguf").read_bytes() == MODEL
    facts = {
        "changed": True,
        "path": str(models / "tiny.gguf"),
        "size_bytes": len(MODEL),
        "sha256": SHA256,
        "revision": hub.store.commit("acme/gated-GGUF"),
        "verified": True,
        "bytes_fetched": len(MODEL),
        "bytes_resumed": 0,
    }
    for run in (foreseen, done):
        assert {key: run.result[key] for key in facts} == facts
        assert run.result["diff"] == foreseen.result["diff"]
        assert f'"sha256": "{SHA256}"' in run.output
    assert done.result["diff"]["before"] == {}
    assert done.progress_lines[-1].startswith("testhost | model tiny  100 %  3.1 of 3.1 MB")
    for path in models.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    hub.forget_requests()
    for options in (["--check"], []):
        again = runner.play("gguf_model", args, options=options)
        assert (again.rc, again.result["changed"], again.result["bytes_fetched"]) == (0, False, 0)
        assert again.progress_lines == []
    assert hub.requests == []
    assert runner.left_over() == []


def test_a_changed_mode_is_predicted_and_applied(
    runner: PlayRunner, args: dict[str, Any], models: Path
) -> None:
    runner.play("gguf_model", args)
    args["mode"] = "0600"
    for options, mode in ((["--check"], 0o640), ([], 0o600)):
        run = runner.play("gguf_model", args, options=options)
        assert (run.result["changed"], run.result["bytes_fetched"]) == (True, 0)
        for path in models.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_several_models_shards_and_companions(
    runner: PlayRunner, args: dict[str, Any], models: Path, hub: StandInHub
) -> None:
    repository = hub.store.root / "acme" / "gated-GGUF"
    for number in (1, 2):
        (repository / f"big-0000{number}-of-00002.gguf").write_bytes(MODEL + bytes([number]))
    (repository / "mmproj-F16.gguf").write_bytes(b"GGUF projector")
    settings = {key: args[key] for key in args if key not in ("name", "source")}
    eyes = "hf://acme/gated-GGUF/mmproj-F16.gguf"
    digest = hashlib.sha256(b"GGUF projector").hexdigest()
    settings["models"] = [
        {
            "name": "big",
            "source": "hf://acme/gated-GGUF/big-00001-of-00002.gguf",
            "sha256": None,
            "mmproj": {"source": eyes, "sha256": digest},
            "lora": [eyes],
            "aliases": ["main"],
            "path": str(models / "big-00001-of-00002.gguf"),
        },
        {"name": "missing", "source": "hf://acme/gated-GGUF/missing.gguf"},
        {"name": "tiny", "source": args["source"], "sha256": SHA256, "file": None},
        {"name": "faulty", "source": args["source"], "mmproj": {"source": eyes, "url": "x"}},
        {"name": "elsewhere", "source": args["source"], "path": "/elsewhere/tiny.gguf"},
    ]
    foreseen = runner.play("gguf_model", settings, options=["--check", "--diff"])
    assert foreseen.result["failed"]
    assert list(models.iterdir()) == []
    done = runner.play("gguf_model", settings, options=["--diff"])
    for run in (foreseen, done):
        assert run.result["changed"]
        assert run.result["msg"].startswith("3 of 5 models failed:\n- missing: ")
        assert "unknown key url" in run.result["msg"]
        assert "would lie at" in run.result["msg"]
        big, missing, tiny, *_ = run.result["results"]
        assert (missing["failed"], "HTTP 404" in missing["msg"]) == (True, True)
        assert (big["name"], big["failed"], big["changed"]) == ("big", False, True)
        assert [(one["role"], Path(one["path"]).name) for one in big["files"]] == [
            ("model", "big-00001-of-00002.gguf"),
            ("model", "big-00002-of-00002.gguf"),
            ("mmproj", "big.mmproj.gguf"),
            ("lora", "big.lora-1.gguf"),
        ]
        assert tiny["digest"] == tiny["sha256"] == SHA256 != big["digest"]
        assert f'"sha256": "{digest}"' in run.output
    for path in models.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert {path.suffix for path in models.iterdir()} == {".gguf", ".json"}
    settings["models"] = [settings["models"][0], settings["models"][2]]
    hub.forget_requests()
    again = runner.play("gguf_model", settings)
    assert (again.rc, again.result["changed"]) == (0, False)
    assert [one["changed"] for one in again.result["results"]] == [False, False]
    assert hub.requests == []
    assert TOKEN not in foreseen.output + done.output + again.output
    assert runner.left_over() == []


def test_what_is_new_is_told_and_taken(
    runner: PlayRunner, args: dict[str, Any], models: Path, hub: StandInHub
) -> None:
    args["check_update"] = True
    first = runner.play("gguf_model", args)
    assert first.result["update_available"] is False
    newer = MODEL + b"newer"
    (hub.store.root / "acme" / "gated-GGUF" / "tiny.gguf").write_bytes(newer)
    told = runner.play("gguf_model", args)
    assert (told.result["changed"], told.result["update_available"]) == (False, True)
    assert told.result["update_files"][0]["size_bytes"] == len(newer)
    assert (models / "tiny.gguf").read_bytes() == MODEL
    args["hf_endpoint"] = "http://127.0.0.1:9"
    unreachable = runner.play("gguf_model", args)
    assert (unreachable.rc, unreachable.result["update_available"]) == (0, None)
    assert "no answer" in unreachable.result["update_detail"]
    args |= {"hf_endpoint": hub.url, "state": "latest", "keep_previous": True}
    foreseen = runner.play("gguf_model", args, options=["--check"])
    assert (foreseen.result["changed"], foreseen.result["update_available"]) == (True, True)
    taken = runner.play("gguf_model", args)
    assert (taken.result["changed"], taken.result["update_available"]) == (True, False)
    assert (models / "tiny.gguf").read_bytes() == newer
    (kept,) = models.glob("versions/*/tiny.gguf")
    assert kept.read_bytes() == MODEL
    assert (models / "catalogue.json").exists()


def test_absent(runner: PlayRunner, args: dict[str, Any], models: Path, tmp_path: Path) -> None:
    config = tmp_path / "etc"
    (config / "instances").mkdir(parents=True)
    env = config / "instances" / "main.env"
    env.write_text(f"LLAMA_ARG_MODEL={models}/tiny.gguf\n")
    runner.play("gguf_model", args)
    (models / "foreign").touch()
    gone = {"name": "tiny", "path": str(models), "state": "absent", "config_dir": str(config)}
    refused = runner.play("gguf_model", gone, ignore_errors=True)
    assert refused.result["failed"]
    assert "in use by instance main; nothing was removed" in refused.result["msg"]
    assert refused.result["users"] == ["instance main"]
    env.unlink()
    wished = runner.play(
        "gguf_model", gone | {"in_use": [f"{models}/tiny.gguf"]}, ignore_errors=True
    )
    assert wished.result["users"] == ["an instance of the inventory"]
    assert (models / "tiny.gguf").exists()
    removed = [f"{models}/tiny.gguf", f"{models}/tiny.gguf.json"]
    for options in (["--check"], []):
        run = runner.play("gguf_model", gone, options=options)
        assert (run.rc, run.result["changed"]) == (0, True)
        assert run.result["removed"] == removed
        assert run.result["freed_bytes"] >= len(MODEL)
    assert [path.name for path in models.iterdir()] == ["foreign"]
    for more in ({}, {"file": "tiny.gguf"}, {"source": args["source"]}, {"name": "foreign"}):
        run = runner.play("gguf_model", gone | more)
        assert (run.rc, run.result["changed"], run.result["removed"]) == (0, False, [])
    assert [path.name for path in models.iterdir()] == ["foreign"]


def test_an_offline_folder(
    runner: PlayRunner, args: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "offline" / "acme" / "gated-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(MODEL)
    args |= {"offline": True, "offline_dir": str(tmp_path / "offline")}
    args["hf_endpoint"] = "http://127.0.0.1:9"
    run = runner.play("gguf_model", args)
    assert (run.rc, run.result["verified"]) == (0, False), run.output
    assert (models / "tiny.gguf").read_bytes() == MODEL


FAILURES: list[tuple[dict[str, Any], str]] = [
    ({"source": "s3://b/m.gguf"}, "accepted: hf://OWNER/REPOSITORY"),
    ({"sha256": "abc"}, "is not 64 hexadecimal digits"),
    ({"sha256": "00" * 32}, "the Hub states sha256"),
    ({"hf_endpoint": "mirror"}, "is not a base URL"),
    ({"file": "a/b.gguf"}, "cannot be the model's file name"),
    ({"path": "/nonexistent/models"}, "does not exist"),
    ({"hf_token": "hf_wrong_token"}, "the token was sent and does not open this"),
    ({"reserve_mib": 1 << 40}, "MiB are needed"),
    ({"bogus": 1}, "Unsupported parameters"),
    ({"models": []}, "parameters are mutually exclusive"),
    ({"source": None}, "there is no source"),
    ({"sha256": ["00" * 32] * 2}, "has one file, but 2 sha256 are given"),
    ({"mmproj": 7}, "needed: a source, or a dictionary"),
    ({"offline": True}, "'offline' forbids that"),
]


def test_failures_are_the_modules_own(
    runner: PlayRunner, args: dict[str, Any], models: Path
) -> None:
    all_args = [args | change for change, _ in FAILURES]
    run = runner.play("gguf_model", *all_args, ignore_errors=True)
    for result, (_, said) in zip(run.results, FAILURES, strict=True):
        assert result["failed"]
        assert said in result["msg"]
        assert not {"ansible_job_id", "started", "finished", "results_file"} & set(result)
    assert list(models.iterdir()) == []
    assert runner.left_over() == []


def test_a_missing_directory_is_fine_in_check_mode(
    runner: PlayRunner, args: dict[str, Any], models: Path
) -> None:
    run = runner.play("gguf_model", args | {"path": str(models / "later")}, options=["--check"])
    assert (run.rc, run.result["changed"]) == (0, True)


def test_the_token_appears_nowhere(
    runner: PlayRunner, args: dict[str, Any], hub: StandInHub, models: Path
) -> None:
    hub.faults = Faults(bytes_per_s=600_000)
    # The play itself must not be where the token is found.
    secret = runner.folder / "secret.yml"
    secret.write_text(f"token: {TOKEN}")
    args["hf_token"] = "{{ token }}"
    process = runner.start("gguf_model", args, options=["-vvvvv", "-e", f"@{secret}"])
    part = models / "tiny.gguf.part"
    while not part.exists() or part.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.05)
    assert token_in_process_list() == []
    holders = [
        path
        for folder in (runner.remote_tmp, runner.async_dir, runner.tmp, models)
        for path in folder.rglob("*")
        if path.is_file() and TOKEN in path.read_bytes().decode(errors="replace")
    ]
    assert [path.name for path in holders] == ["AnsiballZ_gguf_model.py"]
    assert stat.S_IMODE(holders[0].parent.stat().st_mode) == 0o700
    assert "progress" in [path.name for path in runner.tmp.rglob("*")]
    run = runner.finish(process)
    assert run.rc == 0, run.output
    assert len(run.progress_lines) >= 3
    assert TOKEN not in run.output
    assert TOKEN not in str(run.result)
    assert runner.left_over() == []
    assert not any(TOKEN in path.read_text() for path in models.glob("*.json"))


def token_in_process_list() -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (process / name).read_bytes().decode(errors="replace")
            except OSError:
                continue
            if TOKEN in text:
                found.append(f"{process}/{name}")
    return found


def test_a_loop_over_models(runner: PlayRunner, args: dict[str, Any], models: Path) -> None:
    """With pipelining, which is how the project runs; the other plays here do without."""
    runner.settings["ANSIBLE_PIPELINING"] = "1"
    args |= {"name": "{{ item }}", "file": "{{ item }}.gguf"}
    run = runner.play("gguf_model", args, loop=["one", "two"])
    assert run.rc == 0, run.output
    assert [item["path"] for item in run.result["results"]] == [
        str(models / "one.gguf"),
        str(models / "two.gguf"),
    ]
    assert {line.split()[3] for line in run.progress_lines} == {"one", "two"}
    assert runner.left_over() == []


@pytest.mark.parametrize(
    ("owner", "group", "mode", "same"),
    [
        (None, None, None, True),
        ("{uid}", "{gid}", "0640", True),
        (None, None, "640", True),
        ("{uid}", None, "0644", False),
        ("424242", None, None, False),
        (None, "424242", None, False),
        ("no-such-user", None, None, False),
        (None, None, "u=rw,g=r,o=", False),
    ],
)
def test_when_a_file_may_be_shared(
    tmp_path: Path, owner: str | None, group: str | None, mode: str | None, same: bool
) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o640)
    here = {"uid": os.geteuid(), "gid": path.stat().st_gid}
    wished = [text and text.format(**here) for text in (owner, group)]
    assert has_attributes(path.stat(), wished[0], wished[1], mode) is same
