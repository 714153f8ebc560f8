"""The progress of a module on a host becomes lines in the play, whatever the connection does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.progress import (
    Progress,
    ProgressFile,
    parse,
    render,
)
from ansible_collections.kloros.llm.plugins.plugin_utils.live_progress import (
    Watcher,
    look_command,
    parse_look,
)

from tests.unit.play_runner import PlayRunner

# Fails as often as a file says, and only while a job is being watched.
FLAKY_CONNECTION = '''
"""A local connection that breaks on demand."""
from pathlib import Path
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
name: stand_in_flaky
short_description: a local connection that breaks on demand
description: [for tests]
extends_documentation_fragment: [connection_pipelining]
"""

COUNTER = Path("{counter}")


class Connection(Local):
    transport = "stand_in_flaky"

    def exec_command(self, cmd, in_data=None, sudoable=True):
        if "kloros-llm-progress" in str(cmd):
            left = int(COUNTER.read_text())
            if left:
                COUNTER.write_text(str(left - 1))
                raise AnsibleConnectionFailure("the line is down")
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)

    def reset(self):
        COUNTER.with_name("resets").open("a").write("reset\\n")
'''


def progress(done: int, total: int | None = 100, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "label": "x",
        "done": done,
        "done_at_start": 0,
        "total": total,
        "unit": "steps",
        "started_at": 0.0,
        "updated_at": 0.0,
    }
    observed = parse(json.dumps(values | changes))
    assert observed is not None
    return observed


@pytest.mark.parametrize(
    ("observed", "now", "line"),
    [
        (
            progress(
                44_200_000, 98_400_000, label="model smollm2:135m", unit="bytes", started_at=10.0
            ),
            14.0,
            "model smollm2:135m  44 %  44.2 of 98.4 MB  11.1 MB/s  ETA 0:05",
        ),
        (
            progress(125, 220, label="llama.cpp"),
            250.0,
            "llama.cpp  56 %  125 of 220 steps  ETA 3:10",
        ),
        (
            progress(9_000_000_000, 20_400_000_000, unit="bytes", done_at_start=8_000_000_000),
            100.0,
            "x  44 %  9.0 of 20.4 GB  10.0 MB/s  ETA 19:00",
        ),
        (progress(1, 10_000), 1.0, "x  0 %  1 of 10000 steps  ETA 2:46:39"),
        (progress(5_000_000, None, unit="bytes"), 2.0, "x  5.0 MB  2.5 MB/s"),
        (progress(0, None), 2.0, "x"),
        (progress(7, 0), 0.0, "x"),
    ],
)
def test_lines(observed: Progress, now: float, line: str) -> None:
    assert render(observed, now) == line


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"label": "x"}', "null"])
def test_what_is_no_progress(text: str) -> None:
    assert parse(text) is None


def test_the_file_is_written_seldom_and_whole(tmp_path: Path) -> None:
    now = [100.0]
    path = tmp_path / "progress"
    worker = ProgressFile(str(path), "x", "bytes", clock=lambda: now[0])
    worker.start("model x", total=1000, done=100)
    seen = []
    for done in range(100, 1001, 100):
        worker.update(done)
        observed = parse(path.read_text())
        assert observed is not None
        seen.append(observed["done"])
        now[0] += 0.2
    assert seen == [100, 100, 100, 400, 400, 400, 700, 700, 700, 1000]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress"]


def test_a_clock_that_is_set_back_is_not_waited_for(tmp_path: Path) -> None:
    now = [10_000.0]
    path = tmp_path / "progress"
    worker = ProgressFile(str(path), "x", "bytes", clock=lambda: now[0])
    worker.start("model x", total=1000)
    now[0] = 100.0
    worker.update(10)
    observed = parse(path.read_text())
    assert observed is not None
    assert observed["done"] == 10


def test_a_worker_works_unwatched(tmp_path: Path) -> None:
    ProgressFile(None, "x", "bytes").start("x")
    ProgressFile(str(tmp_path / "gone" / "progress"), "x", "bytes").start("x")
    assert list(tmp_path.iterdir()) == []


def test_lines_come_when_there_is_news() -> None:
    shown: list[str] = []
    watcher = Watcher("host1", shown.append)
    for now, done in ((0, 0), (2, 4), (4, 5), (6, 9), (8, 10), (22, 11), (22.5, 12), (26, 100)):
        watcher.see(progress(done), now)
    watcher.see(progress(100), 90)
    watcher.see(progress(0, label="y"), 91)
    assert [re.sub("  ETA.*", "", line) for line in shown] == [
        "host1 | x  0 %  0 of 100 steps",
        "host1 | x  5 %  5 of 100 steps",
        "host1 | x  10 %  10 of 100 steps",
        "host1 | x  100 %  100 of 100 steps",
        "host1 | y  0 %  0 of 100 steps",
    ]


def test_a_line_comes_after_a_while_without_news() -> None:
    shown: list[str] = []
    watcher = Watcher("host1", shown.append)
    for now in (0, 5, 14, 15, 29, 30):
        watcher.see(progress(1), now)
    assert len(shown) == 3


def test_looking_at_the_host(tmp_path: Path) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    job = tmp_path / "job"
    number = f"j{os.getpid()}{time.monotonic_ns()}"

    def look() -> tuple[bool, int | None, bool]:
        command = look_command(f"{folder}/progress", str(job), f"{number}.4711")
        output = subprocess.run(
            ["sh", "-c", command], check=True, capture_output=True, text=True
        ).stdout
        seen = parse_look("Welcome to Debian!\n" + output)
        assert seen is not None
        assert abs(seen.now - time.time()) < 60
        return seen.job_is_alive, seen.progress and seen.progress["done"], seen.job_runs

    job.write_text('{"started": true, "finished": false, "ansible_job_id": "j1"}')
    assert look() == (False, None, True)
    # As the wrapper is started: the job's number is an argument of its own.
    with subprocess.Popen(["sh", "-c", "sleep 60; exit", "wrapper", number]) as wrapper:
        assert look() == (True, None, True)
        ProgressFile(str(folder / "progress"), "x", "steps").start("x", 10, 3)
        assert look() == (True, 3, True)
        # ansible-core before 2.19 writes numbers
        job.write_text('{"started": 1, "finished": 0, "ansible_job_id": "j1"}')
        assert look() == (True, 3, True)
        job.write_text('{"changed": true, "msg": "' + "x" * 2000 + '"}')
        assert look() == (True, 3, False)
        wrapper.kill()
    assert look() == (False, 3, False)


@pytest.mark.parametrize("output", ["", "Welcome\n", "kloros-llm-progress 1 alive\n"])
def test_an_answer_that_is_not_whole(output: str) -> None:
    assert parse_look(output) is None


def command(tmp_path: Path, script: str, **changes: Any) -> dict[str, Any]:
    return {
        "argv": ["sh", "-c", script],
        "chdir": str(tmp_path),
        "log_path": str(tmp_path / "log"),
        **changes,
    }


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("what was waited for did not happen")


def test_a_broken_connection_does_not_harm_the_job(runner: PlayRunner, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("3")
    plugins = tmp_path / "connection"
    plugins.mkdir()
    (plugins / "stand_in_flaky.py").write_text(FLAKY_CONNECTION.replace("{counter}", str(counter)))
    runner.settings["ANSIBLE_CONNECTION_PLUGINS"] = str(plugins)
    args = command(tmp_path, "echo run >> runs; echo '[1/2] x'; sleep 5")
    run = runner.play("live_command", args, options=["-e", "ansible_connection=stand_in_flaky"])
    assert (run.rc, run.result["rc"]) == (0, 0), run.output
    assert (tmp_path / "runs").read_text() == "run\n"
    assert (tmp_path / "resets").read_text() == "reset\n" * 3
    assert run.progress_lines
    assert runner.left_over() == []


def test_a_job_that_was_killed_is_told(runner: PlayRunner, tmp_path: Path) -> None:
    """Also what a reboot looks like: no process, and the job's file still says that it runs."""
    process = runner.start("live_command", command(tmp_path, "echo $$ > pid; exec sleep 600"))
    wait_until((tmp_path / "pid").exists)
    subprocess.run(["pkill", "-KILL", "-f", f"{runner.remote_tmp}/.*AnsiballZ"], check=True)
    run = runner.finish(process)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert run.result["failed"]
    assert "run the play again" in run.result["msg"]


def test_no_log_hides_the_progress_as_well(runner: PlayRunner, tmp_path: Path) -> None:
    args = command(tmp_path, "echo '[1/2] x'; sleep 2", label="canary")
    run = runner.play("live_command", args, no_log=True)
    assert run.rc == 0
    assert "canary" not in run.output


def test_a_task_that_is_asynchronous_itself(runner: PlayRunner, tmp_path: Path) -> None:
    args = command(tmp_path, "touch made", creates=str(tmp_path / "made"))
    own: dict[str, Any] = {"async": 60, "poll": 1}
    run = runner.play("live_command", args, **own)
    assert (run.rc, run.result["rc"]) == (0, 0), run.output
    assert run.progress_lines == []


def test_environment_and_become(runner: PlayRunner, tmp_path: Path) -> None:
    """Become is `su` from root to root, which asks for no password and wraps every command."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    runner.settings["ANSIBLE_BECOME_ALLOW_SAME_USER"] = "1"
    run = runner.play(
        "live_command",
        command(tmp_path, 'echo "$CANARY" > said'),
        options=["-e", "ansible_become_method=su", "-vvv"],
        environment={"CANARY": "sung"},
        become=True,
    )
    assert run.rc == 0, run.output
    assert "BECOME-SUCCESS" in run.output
    assert (tmp_path / "said").read_text() == "sung\n"
    assert runner.left_over() == []
