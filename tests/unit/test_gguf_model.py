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
from tests.unit.play_runner import PlayRunner, Task

MODEL = b"GGUF" + bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(MODEL).hexdigest()
TOKEN = "hf_canary_token"


@pytest.fixture
def runner(runner: PlayRunner) -> PlayRunner:
    """With pipelining, which is how the project runs; some plays here do without."""
    runner.settings["ANSIBLE_PIPELINING"] = "1"
    return runner


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


def task(args: dict[str, Any], *, check: bool = False, **keywords: Any) -> Task:
    """One of the tasks of a play."""
    return Task("kloros.llm.gguf_model", args, {"check_mode": check, **keywords})


def files_there(folder: Path) -> Task:
    """Between two tasks: what is in a folder, as `matched` and `files` with `path` and `mode`."""
    args = {"paths": str(folder), "file_type": "any", "hidden": True}
    return Task("ansible.builtin.find", args)


def test_check_run_and_second_run(
    runner: PlayRunner, args: dict[str, Any], models: Path, hub: StandInHub
) -> None:
    runner.settings.clear()
    later = args | {"path": str(models / "later")}
    run = runner.play(
        "gguf_model",
        task(later, check=True),
        task(args, check=True, diff=True),
        files_there(models),
        task(args, diff=True),
    )
    assert run.rc == 0, run.output
    nowhere, foreseen, found, done = run.results
    assert (nowhere["changed"], found["matched"]) == (True, 0)
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
    for result in (foreseen, done):
        assert {key: result[key] for key in facts} == facts
        assert result["diff"] == foreseen["diff"]
    assert run.output.count(f'"sha256": "{SHA256}"') == 2
    assert done["diff"]["before"] == {}
    assert run.progress_lines[-1].startswith("testhost | model tiny  100 %  3.1 of 3.1 MB")
    for path in models.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    hub.forget_requests()
    again = runner.play("gguf_model", task(args, check=True), task(args))
    for result in again.results:
        assert (result["changed"], result["bytes_fetched"]) == (False, 0)
    assert (again.rc, again.progress_lines, hub.requests) == (0, [], [])
    assert runner.left_over() == []


def test_a_changed_mode_is_predicted_and_applied(
    runner: PlayRunner, args: dict[str, Any], models: Path
) -> None:
    stricter = args | {"mode": "0600"}
    _, foreseen, found, done = runner.play(
        "gguf_model", args, task(stricter, check=True), files_there(models), stricter
    ).results
    for result in (foreseen, done):
        assert (result["changed"], result["bytes_fetched"]) == (True, 0)
    assert [one["mode"] for one in found["files"]] == ["0640", "0640"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in models.iterdir()} == {0o600}


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
        {"name": "double", "source": args["source"]},
    ]
    run = runner.play(
        "gguf_model",
        task(settings, check=True),
        files_there(models),
        task(settings),
        diff=True,
        ignore_errors=True,
    )
    foreseen, found, done = run.results
    assert found["matched"] == 0
    for result in (foreseen, done):
        assert (result["failed"], result["changed"]) == (True, True)
        assert result["msg"].startswith("4 of 6 models failed:\n- missing: ")
        assert "unknown key url" in result["msg"]
        assert "would lie at" in result["msg"]
        assert f"double: {models}/tiny.gguf is where model tiny lies" in result["msg"]
        big, missing, tiny, *_ = result["results"]
        assert (missing["failed"], "HTTP 404" in missing["msg"]) == (True, True)
        assert (big["name"], big["failed"], big["changed"]) == ("big", False, True)
        assert [(one["role"], Path(one["path"]).name) for one in big["files"]] == [
            ("model", "big-00001-of-00002.gguf"),
            ("model", "big-00002-of-00002.gguf"),
            ("mmproj", "big.mmproj.gguf"),
            ("lora", "big.lora-1.gguf"),
        ]
        assert tiny["digest"] == tiny["sha256"] == SHA256 != big["digest"]
    assert run.output.count(f'"sha256": "{digest}"') >= 2
    for path in models.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert {path.suffix for path in models.iterdir()} == {".gguf", ".json"}
    settings["models"] = [settings["models"][0], settings["models"][2]]
    hub.forget_requests()
    again = runner.play("gguf_model", settings)
    assert (again.rc, again.result["changed"]) == (0, False)
    assert [one["changed"] for one in again.result["results"]] == [False, False]
    assert hub.requests == []
    assert TOKEN not in run.output + again.output
    assert runner.left_over() == []


def test_what_is_new_is_told_and_taken(
    runner: PlayRunner, args: dict[str, Any], models: Path, hub: StandInHub
) -> None:
    args["check_update"] = True
    upstream = hub.store.root / "acme" / "gated-GGUF" / "tiny.gguf"
    newer = MODEL + b"newer"
    latest = args | {"state": "latest", "keep_previous": True}
    run = runner.play(
        "gguf_model",
        args,
        Task("ansible.builtin.shell", {"cmd": f"printf newer >> '{upstream}'"}),
        args,
        args | {"hf_endpoint": "http://127.0.0.1:9"},
        task(latest, check=True),
        Task(
            "ansible.builtin.stat",
            {"path": f"{models}/tiny.gguf", "checksum_algorithm": "sha256"},
        ),
        latest,
    )
    assert run.rc == 0, run.output
    first, _, told, unreachable, foreseen, untouched, taken = run.results
    assert first["update_available"] is False
    assert (told["changed"], told["update_available"]) == (False, True)
    assert told["update_files"][0]["size_bytes"] == len(newer)
    assert unreachable["update_available"] is None
    assert "no answer" in unreachable["update_detail"]
    assert (foreseen["changed"], foreseen["update_available"]) == (True, True)
    assert untouched["stat"]["checksum"] == SHA256
    assert (taken["changed"], taken["update_available"]) == (True, False)
    assert (models / "tiny.gguf").read_bytes() == newer
    (kept,) = models.glob("versions/*/tiny.gguf")
    assert kept.read_bytes() == MODEL
    assert (models / "catalogue.json").exists()


def test_absent(runner: PlayRunner, args: dict[str, Any], models: Path, tmp_path: Path) -> None:
    config = tmp_path / "etc"
    (config / "instances").mkdir(parents=True)
    env = config / "instances" / "main.env"
    env.write_text(f"LLAMA_ARG_MODEL={models}/tiny.gguf\n")
    (models / "foreign").touch()
    gone = {"name": "tiny", "path": str(models), "state": "absent", "config_dir": str(config)}
    none = {key: value for key, value in gone.items() if key != "name"} | {
        "models": [
            {"name": "tiny"},
            {"name": "tiny", "file": "tiny.gguf"},
            {"name": "tiny", "source": args["source"]},
            {"name": "foreign"},
        ]
    }
    run = runner.play(
        "gguf_model",
        args | {"aliases": ["lent"]},
        gone | {"name": "lent"},
        gone,
        Task("ansible.builtin.file", {"path": str(env), "state": "absent"}),
        gone | {"in_use": [f"{models}/tiny.gguf"]},
        task(gone, check=True),
        files_there(models),
        gone,
        none,
        ignore_errors=True,
    )
    fetched, lent, refused, _, wished, foreseen, found, done, nothing = run.results
    assert fetched["changed"]
    assert (lent["changed"], lent["removed"]) == (False, [])
    assert refused["failed"]
    assert "in use by instance main; nothing was removed" in refused["msg"]
    assert refused["users"] == ["instance main"]
    assert wished["users"] == ["an instance of the inventory"]
    assert found["matched"] == 3
    removed = [f"{models}/tiny.gguf", f"{models}/tiny.gguf.json"]
    for result in (foreseen, done):
        assert (result["failed"], result["changed"]) == (False, True)
        assert result["removed"] == removed
        assert result["freed_bytes"] >= len(MODEL)
    assert [one["removed"] for one in nothing["results"]] == [[], [], [], []]
    assert (nothing["failed"], nothing["changed"]) == (False, False)
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


OF_A_MODEL: list[tuple[dict[str, Any], str]] = [
    ({"source": "s3://b/m.gguf"}, "accepted: hf://OWNER/REPOSITORY"),
    ({"sha256": "abc"}, "is not 64 hexadecimal digits"),
    ({"sha256": "00" * 32}, "the Hub states sha256"),
    ({"file": "a/b.gguf"}, "cannot be the model's file name"),
    ({"source": None}, "there is no source"),
    ({"sha256": ["00" * 32] * 2}, "has one file, but 2 sha256 are given"),
    ({"mmproj": 7}, "needed: a source, or a dictionary"),
]
OF_A_TASK: list[tuple[dict[str, Any], str]] = [
    ({"hf_endpoint": "mirror"}, "is not a base URL"),
    ({"path": "/nonexistent/models"}, "does not exist"),
    ({"hf_token": "hf_wrong_token"}, "the token was sent and does not open this"),
    ({"reserve_mib": 1 << 40}, "MiB are needed"),
    ({"bogus": 1}, "Unsupported parameters"),
    ({"models": []}, "parameters are mutually exclusive"),
    ({"offline": True}, "'offline' forbids that"),
]


def test_failures_are_the_modules_own(
    runner: PlayRunner, args: dict[str, Any], models: Path
) -> None:
    settings = {key: value for key, value in args.items() if key not in ("name", "source")}
    models_that_fail = [
        {"name": f"m{number}", "source": args["source"], "file": f"m{number}.gguf", **change}
        for number, (change, _) in enumerate(OF_A_MODEL)
    ]
    all_args = [args | change for change, _ in OF_A_TASK]
    run = runner.play(
        "gguf_model", settings | {"models": models_that_fail}, *all_args, ignore_errors=True
    )
    each, *others = run.results
    told = [*each["results"], *others]
    for result, (_, said) in zip(told, [*OF_A_MODEL, *OF_A_TASK], strict=True):
        assert result["failed"]
        assert said in result["msg"]
    for result in run.results:
        assert not {"ansible_job_id", "started", "finished", "results_file"} & set(result)
    assert list(models.iterdir()) == []
    assert runner.left_over() == []


def test_the_token_appears_nowhere(
    runner: PlayRunner, args: dict[str, Any], hub: StandInHub, models: Path
) -> None:
    runner.settings.clear()
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
