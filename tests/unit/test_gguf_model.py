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
