"""Module live_command: progress, the command's own error, time-out, lock."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile
from ansible_collections.kloros.llm.plugins.modules.live_command import (
    EXCERPT_LINES,
    ErrorExcerpt,
    StepReader,
    check_pattern,
    run,
    settle,
)

from tests.unit.play_runner import PlayRunner

NINJA = r"^\[\s*(?P<done>\d+)/(?P<total>\d+)\]"


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    return {
        "argv": ["true"],
        "chdir": str(tmp_path),
        "environment": {},
        "log_path": str(tmp_path / "log"),
        "label": "step",
        "progress_regex": NINJA,
        "creates": None,
        "lock_path": None,
        "timeout_s": 0,
    }


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def run_it(params: dict[str, Any], progress: Path | None = None) -> dict[str, Any]:
    return run(params, ProgressFile(str(progress) if progress else None, "", "steps"), None)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("what was waited for did not happen")


def test_a_command_that_ends_well(params: dict[str, Any], tmp_path: Path) -> None:
    params["argv"] = shell('pwd; echo "$A $LC_ALL"; cat; echo "[12/12] done"')
    params["environment"] = {"A": 1}
    Path(params["log_path"]).write_text("earlier\n")
    progress = tmp_path / "progress"
    result = run_it(params, progress)
    assert (result["rc"], result["changed"], result["steps_total"]) == (0, True, 12)
    assert "failed" not in result
    log = Path(params["log_path"]).read_text()
    assert log == f"earlier\n{tmp_path}\n1 C.UTF-8\n[12/12] done\n"
    seen = json.loads(progress.read_text())
    assert (seen["label"], seen["done"], seen["total"], seen["unit"]) == ("step", 12, 12, "steps")
    assert progress.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("pattern", "line", "steps"),
    [
        (NINJA, "[12/220] Building CXX object x.o", (12, 220)),
        (NINJA, "[ 3/9] Linking", (3, 9)),
        (NINJA, "note: [12/220]", None),
        (r"^\[\s*(?P<done>\d+)%\]", "[ 45%] Building", (45, 100)),
    ],
)
def test_steps(pattern: str, line: str, steps: tuple[int, int] | None) -> None:
    assert StepReader(re.compile(pattern)).read(line) == steps


def test_patterns_that_cannot_work() -> None:
    assert check_pattern(NINJA) is None
    assert "no group named 'done'" in str(check_pattern(r"(?P<total>\d+)"))
    assert "no regular expression" in str(check_pattern("(?P<done>"))


def test_a_failure_carries_the_first_error(params: dict[str, Any]) -> None:
    params["argv"] = shell(
        "for i in $(seq 100); do echo step $i; done; echo 'FAILED: a.o'; echo 'cc -c a.c';"
        "echo \"a.c:3:1: error: 'x' undeclared\"; for i in $(seq 100); do echo later $i; done;"
        "exit 3"
    )
    result = run_it(params)
    assert (result["rc"], result["failed"]) == (3, True)
    lines = result["msg"].splitlines()
    assert "ended with 3" in lines[0]
    assert params["log_path"] in lines[0]
    assert lines[1:8] == [
        "step 98",
        "step 99",
        "step 100",
        "FAILED: a.o",
        "cc -c a.c",
        "a.c:3:1: error: 'x' undeclared",
        "later 1",
    ]
    assert len(lines) == 1 + EXCERPT_LINES


def test_a_failure_without_an_error_line_carries_the_end(params: dict[str, Any]) -> None:
    params["argv"] = shell("for i in $(seq 100); do echo line $i; done; printf end; exit 1")
    lines = run_it(params)["msg"].splitlines()
    assert (lines[1], lines[-1]) == ("line 62", "end")


def test_an_excerpt_is_bounded() -> None:
    excerpt = ErrorExcerpt()
    for _ in range(1000):
        excerpt.feed("error: " + "x" * 10_000)
    assert len(excerpt.text()) < 30_000


def test_a_command_that_does_not_make_its_file_has_failed(params: dict[str, Any]) -> None:
    params["creates"] = params["chdir"] + "/made"
    assert "has not made" in run_it(params)["msg"]
    params["argv"] = ["touch", "made"]
    assert "failed" not in run_it(params)


def alive(pid_file: Path) -> bool:
    """Whether the process runs; a zombie that nobody reaps does not."""
    try:
        state = Path(f"/proc/{pid_file.read_text().strip()}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_a_time_out_kills_the_whole_family(params: dict[str, Any], tmp_path: Path) -> None:
    # The grandchild ignores the polite signal.
    params["argv"] = shell(
        "(trap '' TERM; echo started; sh -c 'echo $PPID' > grandchild; while :; do sleep 1; done) &"
        "wait"
    )
    params["timeout_s"] = 1
    result = run_it(params)
    assert result["failed"]
    assert "killed after 1 s" in result["msg"]
    wait_until(lambda: not alive(tmp_path / "grandchild"))


def test_a_child_that_keeps_the_output_open_does_not_hold_up(
    params: dict[str, Any], tmp_path: Path
) -> None:
    params["argv"] = shell("sleep 600 & echo $! > child; echo done")
    assert run_it(params)["rc"] == 0
    child = tmp_path / "child"
    assert alive(child)
    os.kill(int(child.read_text()), 9)


def test_a_second_run_waits_and_does_not_build_twice(
    params: dict[str, Any], tmp_path: Path
) -> None:
    params |= {
        "argv": shell("echo run >> runs; while ! test -e go; do sleep 0.05; done; touch made"),
        "creates": str(tmp_path / "made"),
        "lock_path": str(tmp_path / "lock"),
    }
    script = (
        f"import sys, json; sys.path[:0] = {sys.path!r}\n"
        "from tests.unit.test_live_command import settle, ProgressFile\n"
        "params = json.loads(sys.argv[1])\n"
        "print(settle(params, ProgressFile(sys.argv[2], '', 'steps'))['changed'])"
    )
    progress = [tmp_path / "progress1", tmp_path / "progress2"]

    def start(number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(params), progress[number]],
            stdout=subprocess.PIPE,
        )

    first = start(0)
    wait_until((tmp_path / "runs").exists)
    second = start(1)
    wait_until(lambda: progress[1].exists() and "waiting" in progress[1].read_text())
    (tmp_path / "go").touch()
    assert [process.communicate()[0] for process in (first, second)] == [b"True\n", b"False\n"]
    assert (tmp_path / "runs").read_text() == "run\n"
    assert not (tmp_path / "lock").exists()


def test_nothing_is_run_when_the_file_is_there(params: dict[str, Any], tmp_path: Path) -> None:
    params |= {"argv": ["false"], "creates": str(tmp_path), "lock_path": str(tmp_path / "lock")}
    result = settle(params, ProgressFile(None, "", "steps"))
    assert (result["changed"], result["msg"]) == (False, f"{tmp_path} exists")


def test_through_a_play(runner: PlayRunner, params: dict[str, Any], tmp_path: Path) -> None:
    made = tmp_path / "made"
    script = 'for i in 1 2 3 4; do echo "[$i/4] step"; sleep 1; done; touch made'
    args = params | {"argv": shell(script), "creates": str(made), "label": "llama.cpp"}
    foreseen = runner.play("live_command", args, options=["--check"])
    assert foreseen.result["changed"]
    assert not made.exists()
    done = runner.play("live_command", args)
    assert (done.rc, done.result["rc"], done.result["changed"]) == (0, 0, True)
    assert any(
        re.fullmatch(r"testhost \| llama.cpp  \d+ %  \d of 4 steps  ETA \d:\d\d", line)
        for line in done.progress_lines
    )
    for options in (["--check"], []):
        assert not runner.play("live_command", args, options=options).result["changed"]
    assert runner.left_over() == []


def test_failures_through_a_play(
    runner: PlayRunner, params: dict[str, Any], tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"argv": shell("echo 'x.cc:1: error: bad'; exit 3")}, "x.cc:1: error: bad"),
        ({"argv": ["no-such-program"]}, "No such file or directory (no-such-program)"),
        ({"log_path": "/nonexistent/log"}, "No such file or directory (/nonexistent/log)"),
        ({"progress_regex": "x"}, "no group named 'done'"),
        ({"argv": []}, "argv is empty"),
    ]
    run = runner.play("live_command", *[params | case for case, _ in cases], ignore_errors=True)
    for result, (_, said) in zip(run.results, cases, strict=True):
        assert result["failed"]
        assert said in result["msg"]
    assert run.results[0]["rc"] == 3
    assert run.results[0]["log_path"] == str(tmp_path / "log")
    assert runner.left_over() == []


def test_bytes_are_shown_as_such(runner: PlayRunner, params: dict[str, Any]) -> None:
    script = "for i in 1 2 3 4; do echo Progress ${i}000000 of 4000000; sleep 1; done"
    args = params | {
        "argv": shell(script),
        "progress_regex": r"^Progress (?P<done>\d+) of (?P<total>\d+)$",
        "progress_unit": "bytes",
    }
    done = runner.play("live_command", args)
    assert (done.rc, done.result["steps_total"]) == (0, 4000000)
    assert any(" of 4.0 MB  " in line for line in done.progress_lines)
