# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""Shows how far a module is while it runs on the host.

The module runs under Ansible's own async wrapper, and so survives a broken connection. Meanwhile
this side reads the progress file that the module keeps, and prints a line now and then.
"""

from __future__ import annotations

import json
import posixpath
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.kloros.llm.plugins.module_utils.progress import (
    Progress,
    parse,
    percent,
    render,
)

# Short at first: most runs find nothing to do and end at once.
POLL_INTERVALS_S = (0.2, 0.4, 0.8, 1.6)
POLL_INTERVAL_S = 2.0
SHOW_EVERY_PERCENT = 5
SHOW_EVERY_S = 15.0
MAX_OUTAGE_S = 300.0
# The wrapper wants a limit; the modules have time-outs of their own.
JOB_LIMIT_S = 7 * 24 * 3600
# Looks this many times for a job that is gone before believing it.
LOST_LOOKS = 3
_MARK = "kloros-llm-progress"
_ASYNC_KEYS = ("ansible_job_id", "started", "finished", "results_file")


@dataclass(frozen=True)
class Look:
    """What one look at the host gave. `now` is in the host's clock."""

    now: float
    job_is_alive: bool
    progress: Progress | None
    job_runs: bool


class Watcher:
    """Decides when a line is worth printing: every 5 percent, every 15 s, each new stage."""

    def __init__(self, host: str, show: Callable[[str], None]) -> None:
        self._host = host
        self._show = show
        self._shown: Progress | None = None
        self._shown_at = float("-inf")

    def see(self, progress: Progress, now: float) -> None:
        """The latest observation, `now` in the host's clock."""
        if not self._is_news(progress, now):
            return
        self._shown, self._shown_at = progress, now
        self._show(f"{self._host} | {render(progress, now)}")

    def _is_news(self, progress: Progress, now: float) -> bool:
        shown = self._shown
        if shown is None or progress["label"] != shown["label"]:
            return True
        here, before = percent(progress) or 0, percent(shown) or 0
        if here == 100 and before == 100:
            return False
        return here - before >= SHOW_EVERY_PERCENT or now - self._shown_at >= SHOW_EVERY_S


def look_command(progress_file: str, results_file: str, job_id: str) -> str:
    """A shell command that tells time, progress and state of the job at once."""
    progress, results = shlex.quote(progress_file), shlex.quote(results_file)
    # The wrapper has the job's number as one of its arguments, and lives as long as the module
    # does. The brackets keep grep from finding its own argument.
    number = shlex.quote(f"[{job_id[0]}]{job_id[1:].split('.', maxsplit=1)[0]}")
    alive = f"grep -qszx {number} /proc/[0-9]*/cmdline"
    return (
        f"echo; echo {_MARK} $(date +%s.%N) $({alive} && echo alive || echo gone); "
        f"cat {progress} 2>/dev/null; echo; head -c 512 {results} 2>/dev/null; echo"
    )


def parse_look(output: str) -> Look | None:
    """What `look_command` printed; None where it is not whole."""
    lines = output.splitlines()
    for index, line in enumerate(lines):
        words = line.split()
        if words[:1] == [_MARK] and len(words) == 3 and len(lines) > index + 2:
            progress, job = lines[index + 1 : index + 3]
            return Look(float(words[1]), words[2] == "alive", parse(progress), _runs(job))
    return None


def _runs(job: str) -> bool:
    """Whether a job file is the wrapper's placeholder (not yet the module's own result)."""
    try:
        state = json.loads(job)
    except ValueError:
        return False
    return isinstance(state, dict) and bool(state.get("started")) and not state.get("finished")


class LiveProgressAction(ActionBase):
    """Base of actions whose module has the option `progress_file`."""

    _supports_async = True
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the module of the action's own name; its result comes back unchanged."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        asked_for_async = bool(self._task.async_val) and not self._connection.has_native_async
        if self._task.check_mode or self._task.async_val or self._task.args.get("progress_file"):
            plain: dict[str, Any] = self._execute_module(
                task_vars=task_vars, wrap_async=asked_for_async
            )
            return plain
        directory = self._make_private_directory()
        results_file = ""
        payload = None
        try:
            started, payload = self._start(f"{directory}/progress", task_vars)
            results_file = str(started.get("results_file", ""))
            if not results_file:
                return started
            return self._wait(started, f"{directory}/progress", task_vars)
        finally:
            self._clean_up([directory, results_file], payload)

    def _make_private_directory(self) -> str:
        # As the user that the module runs as; the task's own temporary directory may belong to
        # the user that logs in.
        made = self._low_level_execute_command("umask 077 && mktemp -d -t kloros-llm.XXXXXXXXXX")
        lines = made["stdout"].strip().splitlines()
        if made["rc"] != 0 or not lines:
            raise AnsibleActionFail(
                f"no temporary directory could be made on the host: {made['stderr'].strip()}"
            )
        return str(lines[-1])

    def _start(
        self, progress_file: str, task_vars: dict[str, Any]
    ) -> tuple[dict[str, Any], str | None]:
        """(the wrapper's answer, the temporary directory of the module's code)."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        payload = self._connection._shell.tmpdir
        self._task.async_val = JOB_LIMIT_S
        try:
            started = self._execute_module(
                module_args=dict(self._task.args, progress_file=progress_file),
                task_vars=task_vars,
                wrap_async=True,
            )
        finally:
            self._task.async_val = 0
            # The wrapper's answer turns this off, since the wrapper tidies up itself; _clean_up
            # does not wait for that.
            self._cleanup_remote_tmp = True
        return started, payload

    def _wait(
        self, started: dict[str, Any], progress_file: str, task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        show = (lambda _: None) if self._task.no_log else Display().display
        watcher = Watcher(str(task_vars.get("inventory_hostname", "")), show)
        command = look_command(progress_file, started["results_file"], started["ansible_job_id"])
        intervals = iter(POLL_INTERVALS_S)
        answered_at = time.monotonic()
        lost = 0
        while True:
            time.sleep(next(intervals, POLL_INTERVAL_S))
            try:
                look = parse_look(self._low_level_execute_command(command)["stdout"])
                if look and look.progress:
                    watcher.see(look.progress, look.now)
                result = None if look is None or look.job_runs else self._ask(started, task_vars)
            except AnsibleConnectionFailure as failure:
                self._bear_outage(failure, answered_at)
                continue
            if look is not None:
                answered_at = time.monotonic()
                lost = 0 if look.job_is_alive else lost + 1
            elif time.monotonic() - answered_at > MAX_OUTAGE_S:
                raise AnsibleActionFail("the host gives no usable answer about the running job")
            if result is not None:
                return result
            if lost >= LOST_LOOKS:
                raise AnsibleActionFail(
                    "the job is gone from the host without a result: killed, for want of memory "
                    "perhaps, or by a reboot; run the play again: it goes on with what is there"
                )

    def _ask(self, started: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """The module's result without what the async wrapper adds; None while it runs."""
        status: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={
                "jid": started["ansible_job_id"],
                "_async_dir": posixpath.dirname(started["results_file"]),
            },
            task_vars=task_vars,
            wrap_async=False,
        )
        if not status.get("finished") and status.get("_ansible_parsed", True):
            return None
        return {key: value for key, value in status.items() if key not in _ASYNC_KEYS}

    def _bear_outage(self, failure: AnsibleConnectionFailure, answered_at: float) -> None:
        """Make ready for another try, or give up."""
        if time.monotonic() - answered_at > MAX_OUTAGE_S:
            raise failure
        Display().vvv(f"the connection broke while the job runs on, trying again: {failure}")
        reset = getattr(self._connection, "reset", None)
        if reset is not None:
            try:
                reset()
            except AnsibleConnectionFailure as again:
                Display().vvv(f"the connection could not be reset: {again}")

    def _clean_up(self, paths: list[str], payload: str | None) -> None:
        """Remove what this action made on the host; never hides the module's result."""
        try:
            doomed = " ".join(shlex.quote(path) for path in paths if path)
            self._low_level_execute_command(f"rm -rf {doomed}")
            # The wrapper would remove it up to 5 s later; it may hold secrets, so do not wait. The
            # call forgets the directory that polling uses, which ActionBase.cleanup is to remove.
            in_use = self._connection._shell.tmpdir
            if payload:
                self._remove_tmp_path(payload)
            self._connection._shell.tmpdir = in_use
        except AnsibleConnectionFailure as failure:
            Display().warning(f"temporary files were left on the host: {failure}")
