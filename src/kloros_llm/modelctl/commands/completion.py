"""`modelctl completion`: what makes a shell complete modelctl."""

from __future__ import annotations

from argparse import Namespace
from importlib.resources import files

from ..exit_codes import Exit
from ..output import say


def run(arguments: Namespace) -> int:
    script = files(__package__).joinpath(f"completion.{arguments.shell}")
    say(script.read_text(encoding="utf-8").rstrip("\n"))
    return Exit.OK
