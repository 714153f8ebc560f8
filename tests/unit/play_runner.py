"""Runs a task through a real ansible-playbook on this machine, in folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


@dataclass(frozen=True)
class Played:
    """What a run printed, and the registered result of each task."""

    rc: int
    output: str
    results: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        (only,) = self.results
        return only

    @property
    def progress_lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("testhost | ")]


@dataclass(frozen=True)
class Task:
    """A task that differs from the others of its play: `module` with its whole name."""

    module: str
    args: dict[str, Any]
    keywords: dict[str, Any] = field(default_factory=dict)


class PlayRunner:
    """Plays live in `folder`, and so do Ansible's temporary files: see `remote_tmp`, `async_dir`
    and `tmp` (what TMPDIR is for the host's commands).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remote_tmp = folder / "remote_tmp"
        self.async_dir = folder / "async"
        self.tmp = folder / "tmp"
        self.config = folder / "ansible.cfg"
        self.tmp.mkdir(parents=True)
        self.config.touch()
        self.settings: dict[str, str] = {}

    def start(
        self,
        module: str,
        *all_args: dict[str, Any] | Task,
        options: Sequence[str] = (),
        **keywords: Any,
    ) -> subprocess.Popen[str]:
        """One task with `kloros.llm.<module>` for each of `all_args`; `keywords` are the tasks'."""
        given = [
            one if isinstance(one, Task) else Task(f"kloros.llm.{module}", one) for one in all_args
        ]
        tasks = [
            {one.module: one.args, "register": f"result_{number}", **keywords, **one.keywords}
            for number, one in enumerate(given)
        ]
        registered = ", ".join(f"result_{number}" for number in range(len(tasks)))
        keep = {
            "ansible.builtin.copy": {
                "content": f"{{{{ [{registered}] | to_json }}}}",
                "dest": str(self.folder / "results.json"),
                "mode": "0600",
            },
            "check_mode": False,
            "diff": False,
            "no_log": True,
        }
        play = {
            "hosts": "testhost",
            "gather_facts": False,
            "tasks": [{"block": tasks, "always": [keep]}],
        }
        playbook = self.folder / "play.json"
        playbook.write_text(json.dumps([play]))
        inventory = self.folder / "inventory.json"
        variables = {"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}
        inventory.write_text(json.dumps({"all": {"hosts": {"testhost": variables}}}))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_CONFIG": str(self.config),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local_tmp"),
            "ANSIBLE_REMOTE_TMP": str(self.remote_tmp),
            "ANSIBLE_ASYNC_DIR": str(self.async_dir),
            "ANSIBLE_NOCOLOR": "1",
            "TMPDIR": str(self.tmp),
            **self.settings,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "ansible.cli.playbook", "-i", inventory, playbook, *options],
            env=environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Played:
        """Wait for the end."""
        output, _ = process.communicate(timeout=TIMEOUT_S)
        results = self.folder / "results.json"
        assert results.exists(), output
        return Played(process.returncode, output, json.loads(results.read_text()))

    def play(
        self,
        module: str,
        *all_args: dict[str, Any] | Task,
        options: Sequence[str] = (),
        **keywords: Any,
    ) -> Played:
        """`start` and `finish`."""
        return self.finish(self.start(module, *all_args, options=options, **keywords))

    def left_over(self) -> list[str]:
        """Every file that Ansible or the module has left in a temporary folder."""
        folders = (self.remote_tmp, self.async_dir, self.tmp)
        return [str(path) for folder in folders for path in folder.rglob("*")]
