"""Who uses a model's file is found, and nobody who does not."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.model_users import (
    User,
    Users,
    describe,
    instance_names,
)
from ansible_collections.kloros.llm.plugins.module_utils.systemd_env import (
    join_args,
    render_env_file,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    (folder / "instances").mkdir(parents=True)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "m $1.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    return path


def write_env(config: Path, name: str, **variables: str) -> None:
    (config / "instances" / f"{name}.env").write_text(render_env_file(variables, "managed"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lora", "{path}"],
        ["--lora", "/x.gguf,{path}"],
        ["--lora-scaled", "{path}:0.5"],
        ["--mmproj={path}"],
    ],
)
def test_options_of_an_env_file(config: Path, model: Path, arguments: list[str]) -> None:
    write_env(config, "main", LLAMA_ARG_MODEL=str(model))
    given = [argument.format(path=model) for argument in arguments]
    write_env(config, "other", LLAMA_ARG_MODEL="/y.gguf", LLAMA_EXTRA_ARGS=join_args(given))
    found = Users(config, proc=config).of([model])
    assert instance_names(found) == ["main", "other"]
    assert describe(found) == "instance main, instance other"
    assert {user.path for user in found} == {str(model)}


def test_similar_names_are_others(config: Path, model: Path) -> None:
    write_env(config, "a", LLAMA_ARG_MODEL=f"{model}.json")
    write_env(config, "b", LLAMA_ARG_MODEL=f"/other{model}")
    write_env(config, "c", LLAMA_ARG_MODEL=str(model.with_name("xm $1.gguf")))
    (config / "instances" / "d.env").write_text(f"# LLAMA_ARG_MODEL={model}\n")
    assert Users(config, proc=config).of([model]) == []


def test_the_plan_and_the_caller(config: Path, model: Path) -> None:
    plan = {
        "models": [{"name": "m", "path": str(model)}],
        "instances": [
            {"name": "main", "model_files": [str(model)]},
            {"name": "other", "model_files": ["/z.gguf"]},
        ],
    }
    (config / "plan.json").write_text(json.dumps(plan))
    users = Users(config, proc=config, named=(str(model), "/z.gguf"))
    assert users.of([model]) == [
        User("plan", "main", str(model)),
        User("wish", "", str(model)),
    ]
    assert users.of([]) == []


def test_another_spelling_of_the_path(config: Path, model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model.parent)
    write_env(config, "main", LLAMA_ARG_MODEL=str(model))
    assert instance_names(Users(config, proc=config).of([link / model.name])) == ["main"]


def test_a_link_that_leads_to_the_file(config: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model.parent)
    (tmp_path / "current.gguf").symlink_to(model)
    (tmp_path / "other.gguf").symlink_to(model.with_name("other.gguf"))
    write_env(config, "a", LLAMA_ARG_MODEL=str(tmp_path / "link" / model.name))
    write_env(config, "b", LLAMA_EXTRA_ARGS=f"--mmproj={tmp_path}/current.gguf")
    write_env(config, "c", LLAMA_ARG_MODEL=str(tmp_path / "other.gguf"))
    assert instance_names(Users(config, proc=config).of([model])) == ["a", "b"]


MAPPER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process_that_has_it_mapped_under_a_former_name(config: Path, model: Path) -> None:
    kept = model.with_name("kept.gguf")
    kept.hardlink_to(model)
    process = subprocess.Popen(
        [sys.executable, "-c", MAPPER, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        model.unlink()
        (found,) = Users(config).of([kept])
        assert (found.kind, found.pid) == ("process", process.pid)
        assert str(process.pid) in describe([found])
    finally:
        process.communicate()
    assert Users(config).of([kept]) == []


def test_a_mapping_that_is_gone_counts_no_more(config: Path, model: Path) -> None:
    with model.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert [user.pid for user in Users(config).of([model])] == [os.getpid()]
    mapped.close()
    assert Users(config).of([model]) == []
