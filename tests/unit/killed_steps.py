"""Runs a function again and again, each time killed one step further on.

A step is whatever changes a directory: a file that is made, written to, renamed, linked or removed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KILLED = 137
_ROOT = Path(__file__).parents[2]
_EVENTS = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class KilledSteps:
    """A process that forks for each try, so that nothing is imported twice."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def is_killed(self, step: int, directory: Path, *args: str) -> bool:
        """Whether the function was killed after so many steps; False: it came to its end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\t".join([str(step), str(directory), *args]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, KILLED), "the function failed by itself; see its traceback"
        return code == KILLED


@contextmanager
def killed_steps(module: str, function: str) -> Iterator[KilledSteps]:
    """`function` of `module` is called with the directory and the further arguments."""
    command = [sys.executable, "-c", _SERVER, module, function]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield KilledSteps(process)
        finally:
            assert process.stdin
            process.stdin.close()


_SERVER = f"""
import sys
sys.path[:0] = {sys.path!r}
from tests.unit.killed_steps import serve
serve(*sys.argv[1:])
"""


def serve(module: str, function: str) -> None:
    """Answer each line of the standard input with the exit status of one try."""
    act = getattr(importlib.import_module(module), function)
    for line in sys.stdin:
        step, directory, *args = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            _count_down(int(step), directory)
            act(Path(directory), *args)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _count_down(steps: int, directory: str) -> None:
    left = steps

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        changes = event in _EVENTS and any(str(arg).startswith(directory) for arg in args)
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITING:
            changes = str(args[0]).startswith(directory)
        if changes:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    sys.addaudithook(hook)
