#!/usr/bin/python
# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: live_command
short_description: Run one long command and show how far it is
version_added: 0.1.0
description:
  - Runs a command such as a build. Its output goes to a log file; its progress, read from that
    output, is shown in the output of the play while it works.
  - When the command fails, the message carries its own error, cut out of the log.
  - There is no shell in between. The command reads from nowhere and runs in the C(C.UTF-8) locale
    unless O(environment) says otherwise.
options:
  argv:
    description: The program and its arguments.
    type: list
    elements: str
    required: true
  chdir:
    description: Directory to run in.
    type: path
  environment:
    description: Environment variables to set for the command, besides those of the connection.
    type: dict
    default: {}
  log_path:
    description: File to append the output to. Its directory must exist.
    type: path
    required: true
  label:
    description:
      - What the progress is called.
      - By default the name of the program.
    type: str
  progress_regex:
    description:
      - Python regular expression that finds the progress in a line of output. Its group C(done) is
        the number of finished steps, C(total) that of all; without a group C(total) the number is a
        percentage.
      - The default fits Ninja.
    type: str
    default: '^\[\s*(?P<done>\d+)/(?P<total>\d+)\]'
  progress_unit:
    description: What O(progress_regex) counts.
    type: str
    choices: [steps, bytes]
    default: steps
  creates:
    description:
      - Path that the command makes. Where it exists, nothing is run.
      - A command that ends well without having made it has failed.
    type: path
  lock_path:
    description:
      - File to lock while the command runs. A second run with the same file waits for the first,
        then looks at O(creates) again.
      - The lock is also held by the command itself, so that it outlives a killed module.
    type: path
  timeout_s:
    description: Seconds after which the command and all its children are killed; 0 is no limit.
    type: int
    default: 0
  progress_file:
    description:
      - File in which the module keeps saying how far it is.
      - Set by the action plugin of the same name; if it is given, nothing is shown in the play.
    type: path
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Without O(creates) a change is foreseen always.
  diff_mode:
    support: none
  platform:
    support: full
    platforms: linux
author:
  - The kloros-llm contributors
"""

EXAMPLES = r"""
- name: Build
  kloros.llm.live_command:
    argv: [cmake, --build, build, --parallel, "4"]
    chdir: /var/cache/kloros-llm/build
    environment:
      CCACHE_DIR: /var/cache/kloros-llm/ccache
    log_path: /var/cache/kloros-llm/build.log
    label: llama.cpp
    lock_path: /var/cache/kloros-llm/build.lock
    creates: /var/cache/kloros-llm/build/bin/llama-server
    timeout_s: 7200
"""

RETURN = r"""
rc:
  description: The command's exit status; negative is the signal that ended it.
  returned: when the command was run
  type: int
  sample: 0
duration_s:
  description: How long the command ran.
  returned: when the command was run
  type: float
  sample: 512.3
steps_total:
  description: Number of steps (or bytes) that the output last spoke of; V(null) where of none.
  returned: when the command was run
  type: int
  sample: 220
log_path:
  description: Where the whole output is.
  returned: always
  type: str
  sample: /var/cache/kloros-llm/build.log
msg:
  description: Why nothing was run, or on failure the command's own error.
  returned: when nothing was run, or on failure
  type: str
"""

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kloros.llm.plugins.module_utils.file_lock import file_lock
from ansible_collections.kloros.llm.plugins.module_utils.progress import ProgressFile

EXCERPT_LINES = 40
LINES_BEFORE_ERROR = 3
LINE_CHARS = 500
KILL_GRACE_S = 10.0
# What the command's left-over children may still say after its end.
DRAIN_S = 1.0
ERROR_LINE = re.compile(
    r"^FAILED:|\berror:|^CMake Error|undefined reference to|^make(\[\d+\])?: \*\*\*", re.IGNORECASE
)


class ErrorExcerpt:
    """Picks, line by line, the part of an output that tells why it failed."""

    def __init__(self) -> None:
        self._recent: deque[str] = deque(maxlen=EXCERPT_LINES)
        self._found: list[str] = []

    def feed(self, line: str) -> None:
        """The next line, without its end."""
        line = line if len(line) <= LINE_CHARS else line[:LINE_CHARS] + " …"
        if self._found:
            if len(self._found) < EXCERPT_LINES:
                self._found.append(line)
            return
        if ERROR_LINE.search(line):
            self._found = [*list(self._recent)[-LINES_BEFORE_ERROR:], line]
        self._recent.append(line)

    def text(self) -> str:
        """From shortly before the first error on, else the last lines; 40 lines at most."""
        return "\n".join(self._found or self._recent)


class StepReader:
    """Reads progress out of lines."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def read(self, line: str) -> tuple[int, int] | None:
        """(done, total), or None where the line says nothing of it."""
        match = self._pattern.search(line)
        if match is None:
            return None
        groups = match.groupdict()
        return int(groups["done"]), int(groups.get("total") or 100)


class TimedOutError(Exception):
    """The command took longer than allowed and was killed."""


def lines_of(process: subprocess.Popen[bytes], log: IO[bytes], deadline: float) -> Iterator[str]:
    """The output of `process`, line by line, while it is also written to `log`.

    Ends with the process, even where a child of its own keeps the pipe open. Raises
    TimedOutError past `deadline` (monotonic).
    """
    pipe = process.stdout
    if pipe is None:
        raise ValueError("the process was started without a pipe for its output")
    rest = b""
    ended_at: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if ended_at is None and process.poll() is not None:
                ended_at = now
            if now > deadline:
                raise TimedOutError
            if selector.select(0.2):
                data = os.read(pipe.fileno(), 1 << 16)
                if not data:
                    break
                log.write(data)
                log.flush()
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                yield from _texts(lines)
            elif ended_at is not None and now - ended_at > DRAIN_S:
                break
    yield from _texts([rest] if rest else [])


def _texts(lines: Iterable[bytes]) -> Iterator[str]:
    return (line.decode("utf-8", "replace") for line in lines)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all its children: asked first, forced after a while."""
    for number, grace_s in ((signal.SIGTERM, KILL_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)


def run(params: dict[str, Any], progress: ProgressFile, lock: int | None) -> dict[str, Any]:
    """Run the command to its end. Returns the module's result, `failed` included."""
    steps = StepReader(re.compile(params["progress_regex"]))
    label = params["label"] or Path(params["argv"][0]).name
    excerpt = ErrorExcerpt()
    limit_s = params["timeout_s"] or float("inf")
    progress.start(label)
    total: int | None = None
    problem = ""
    started = time.monotonic()
    environment = {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        **{name: str(value) for name, value in params["environment"].items()},
    }
    with Path(params["log_path"]).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - running the play's command is the purpose
            params["argv"],
            cwd=params["chdir"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            for line in lines_of(process, log, started + limit_s):
                excerpt.feed(line)
                state = steps.read(line)
                if state:
                    done, total = state
                    progress.update(done, total)
        except TimedOutError:
            problem = f"was killed after {limit_s} s (timeout_s)"
            kill_group(process)
        except BaseException:
            kill_group(process)
            raise
        rc = process.wait()
    result = {
        "changed": True,
        "rc": rc,
        "duration_s": round(time.monotonic() - started, 1),
        "steps_total": total,
        "log_path": params["log_path"],
    }
    if rc and not problem:
        problem = f"ended with {rc}"
    if not problem and params["creates"] and not Path(params["creates"]).exists():
        problem = f"ended well, but has not made {params['creates']}"
    if problem:
        result["failed"] = True
        result["msg"] = (
            f"{label}: '{shlex.join(params['argv'])}' {problem}; the whole output is in "
            f"{params['log_path']}. It says:\n{excerpt.text()}"
        )
    return result


def nothing_to_do(params: dict[str, Any]) -> dict[str, Any] | None:
    """The result where what the command makes is there."""
    if not params["creates"] or not Path(params["creates"]).exists():
        return None
    return {
        "changed": False,
        "msg": f"{params['creates']} exists",
        "log_path": params["log_path"],
    }


def settle(params: dict[str, Any], progress: ProgressFile) -> dict[str, Any]:
    """Run the command where it is needed, alone with its lock."""
    if not params["lock_path"]:
        return nothing_to_do(params) or run(params, progress, None)
    label = params["label"] or Path(params["argv"][0]).name

    def tell() -> None:
        progress.start(f"{label} (waiting for another run of it)")

    with file_lock(Path(params["lock_path"]), tell) as lock:
        return nothing_to_do(params) or run(params, progress, lock)


def check_pattern(text: str) -> str | None:
    """What is wrong with a `progress_regex`, or None."""
    try:
        names = re.compile(text).groupindex
    except re.error as error:
        return f"progress_regex is no regular expression: {error}"
    return None if "done" in names else "progress_regex has no group named 'done'"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "chdir": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
            "log_path": {"type": "path", "required": True},
            "label": {"type": "str"},
            "progress_regex": {
                "type": "str",
                "default": r"^\[\s*(?P<done>\d+)/(?P<total>\d+)\]",
            },
            "progress_unit": {"type": "str", "choices": ["steps", "bytes"], "default": "steps"},
            "creates": {"type": "path"},
            "lock_path": {"type": "path"},
            "timeout_s": {"type": "int", "default": 0},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params: dict[str, Any] = module.params
    problem = check_pattern(params["progress_regex"])
    if problem or not params["argv"]:
        module.fail_json(msg=problem or "argv is empty: give the program and its arguments")
    done = nothing_to_do(params)
    if done or module.check_mode:
        module.exit_json(**(done or {"changed": True, "log_path": params["log_path"]}))
    label = params["label"] or params["argv"][0]
    progress = ProgressFile(params["progress_file"], label, params["progress_unit"])
    try:
        result = settle(params, progress)
    except OSError as error:
        module.fail_json(
            msg=f"{params['argv'][0]}: {error.strerror} ({error.filename}); check argv, chdir, "
            "log_path and lock_path"
        )
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
