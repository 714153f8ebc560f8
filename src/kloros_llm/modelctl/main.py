"""The way in and the only ways out: every expected failure is one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from . import arguments as command_line
from .exit_codes import Exit, ModelctlError
from .failures import told_plainly
from .output import emit, printable, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `argv` (without the program's name); the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        except ModelctlError as error:
            return _fail(words, error)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return _fail(words, ModelctlError(_interrupted(words), Exit.INTERRUPTED))
    except BrokenPipeError:
        # Else Python would try to write the rest at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.PIPE_CLOSED


def _run(words: list[str]) -> int:
    if words[:1] == ["__complete"]:
        from .completion import answer  # noqa: PLC0415 - a key press need not load the rest

        answer(words[1:])
        return Exit.OK
    parsed = command_line.build().parse_args(words)
    with told_plainly():
        module = importlib.import_module(f".commands.{parsed.command}", __package__)
        status = int(module.run(parsed))
        sys.stdout.flush()
        return status


def _fail(words: Sequence[str], error: ModelctlError) -> int:
    """Say why nothing was answered: to people, and as JSON where that was asked for."""
    for line in str(error).splitlines():
        tell(printable(line))
    if "--json" in words:
        emit({"error": str(error), "exit_code": int(error.code)})
        sys.stdout.flush()
    return error.code


def _interrupted(words: Sequence[str]) -> str:
    if {"pull", "update"} & set(words):
        return "interrupted; what has come is kept, and the same command goes on where it was"
    return "interrupted; nothing is half in place"
