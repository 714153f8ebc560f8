"""`modelctl logs`: what an instance wrote to the journal."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace

from ..exit_codes import Exit, ModelctlError
from ..host import Host


def run(arguments: Namespace) -> int:
    instance = Host(arguments).need_plan().instance(arguments.instance)
    program = shutil.which("journalctl")
    if program is None:
        raise ModelctlError("there is no journalctl here: logs are systemd's", Exit.NOT_FOUND)
    words = [program, f"--unit={instance.unit}", f"--lines={arguments.lines}"]
    if arguments.follow:
        words.append("--follow")
    if arguments.since is not None:
        words.append(f"--since={arguments.since}")
    if arguments.json:
        words.append("--output=json")
    if arguments.json or not sys.stdout.isatty():
        words.append("--no-pager")
    sys.stdout.flush()
    os.execv(program, words)  # noqa: S606 - no shell: the arguments are exactly these
