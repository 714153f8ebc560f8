"""modelctl as a program: its help, its exits, its wheel."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kloros_llm.modelctl import arguments as command_line
from kloros_llm.modelctl.exit_codes import MEANINGS, Exit
from kloros_llm.modelctl.failures import CORE_ERRORS, failure_of
from tests.unit.modelctl_host import ROOT, ModelctlHost, write_model

CORE = ROOT / "collections/ansible_collections/kloros/llm/plugins/module_utils"


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


def commands() -> list[str]:
    (choices,) = (
        action.choices
        for action in command_line.build()._actions
        if action.dest == "command" and action.choices is not None
    )
    return [str(name) for name in choices]


def test_help_documents_every_exit_status(host: ModelctlHost) -> None:
    text = host.run("--help").out
    for code in Exit:
        assert f"{code:>5}  {MEANINGS[code]}" in text
    for variable in ("HF_ENDPOINT", "HF_TOKEN", "https_proxy"):
        assert variable in text


@pytest.mark.parametrize("command", commands())
def test_every_command_has_a_module_and_tells_its_keys(host: ModelctlHost, command: str) -> None:
    assert (ROOT / f"src/kloros_llm/modelctl/commands/{command}.py").is_file()
    ran = host.run(command, "--help")
    assert ran.code == 0
    assert command == "completion" or "\n--json: " in ran.out


@pytest.mark.parametrize(("module", "name"), CORE_ERRORS)
def test_the_cores_errors_are_where_they_are_looked_for(module: str, name: str) -> None:
    error = getattr(importlib.import_module(f"kloros_llm.core.{module}"), name)
    assert issubclass(error, Exception)
    assert (error.__module__, error.__name__) == (f"kloros_llm.core.{module}", name)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "no", "/a"), Exit.NOT_PERMITTED, "/a: no; run it with sudo"),
        (FileNotFoundError(2, "not there", "/a"), Exit.NOT_FOUND, "/a: not there"),
        (OSError(28, "full"), Exit.FAILED, "[Errno 28] full"),
    ],
)
def test_errors_of_the_system(error: Exception, code: Exit, message: str) -> None:
    failure = failure_of(error)
    assert failure is not None
    assert (failure.code, str(failure)) == (code, message)
    assert failure_of(ZeroDivisionError()) is None


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["pull"], ["list", "--nonsense"], ["lis"], ["gc", "--older-than", "x"]],
)
def test_wrong_command_lines(host: ModelctlHost, words: list[str]) -> None:
    ran = host.run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "usage: modelctl" in ran.err
    as_json = host.run(*words, "--json")
    assert (as_json.code, as_json.json["exit_code"]) == (2, 2)
    assert as_json.json["error"] in ran.err


def test_a_failure_is_a_document_too(host: ModelctlHost) -> None:
    for words in (["--json", "show", "nobody"], ["show", "nobody", "--json"]):
        ran = host.run(*words)
        assert ran.json == {
            "error": f"no model is called 'nobody'; {host.models} holds none",
            "exit_code": 3,
        }
        assert (ran.code, ran.err) == (3, f"modelctl: {ran.json['error']}\n")
    assert host.run("show", "nobody").out == ""


def test_options_may_stand_before_the_command(host: ModelctlHost) -> None:
    assert host.run("--json", "list").json["models_dir"] == str(host.models)


def test_whoever_reads_may_go(host: ModelctlHost) -> None:
    write_model(host.models / "tiny.gguf")
    process = host.start("show", host.models / "tiny.gguf", "--json", "--tensors")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_an_interrupt_before_anything_began(host: ModelctlHost) -> None:
    held = host.models / "pipe.gguf"
    os.mkfifo(host.etc / "plan.json")
    process = host.start("list", "--json")  # waits for somebody to write its plan
    while b"kloros_llm.modelctl" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        pass
    writer = os.open(host.etc / "plan.json", os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert json.loads(out)["exit_code"] == 130
    assert "interrupted; nothing is half in place" in err
    assert not held.exists()


# The wheel


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_always_the_same(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_the_core_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for source in CORE.glob("*.py"):
            assert archive.read(f"kloros_llm/core/{source.name}") == source.read_bytes()
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert "kloros_llm/py.typed" in names
    collection = ROOT / "collections/ansible_collections/kloros/llm/galaxy.yml"
    version = re.search(r"(?m)^version: (\S+)$", collection.read_text(encoding="utf-8"))
    assert version is not None
    assert wheel.name == f"kloros_llm-{version[1]}-py3-none-any.whl"


def test_the_wheel_runs_from_where_it_lies(wheel: Path, host: ModelctlHost) -> None:
    """As the launcher on the host runs it: nothing of the environment, nothing installed."""
    write_model(host.models / "tiny.gguf")
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "from kloros_llm.modelctl.main import main\n"
        "sys.exit(main())"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", code, *words],
            env={**host.environment(), "PYTHONPATH": ""},
            cwd=host.root,
            capture_output=True,
            text=True,
            check=False,
        )

    version = run("--version")
    assert re.fullmatch(r"modelctl \d+\.\d+\.\d+\n", version.stdout), version.stderr
    shown = run("show", str(host.models / "tiny.gguf"))
    assert "architecture" in shown.stdout, shown.stderr
    assert "complete -F _modelctl modelctl" in run("completion", "bash").stdout
    assert run("__complete", "promo").stdout == "promote\n"
