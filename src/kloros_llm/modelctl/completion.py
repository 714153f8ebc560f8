"""What fits at the end of an unfinished command line, found in the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import arguments as command_line

FILES = ":files"
"""The only answer where the shell shall offer files itself."""


@dataclass
class _State:
    """How far the finished words have led."""

    parser: argparse.ArgumentParser
    command: str = ""
    option: argparse.Action | None = None
    positionals: list[str] = field(default_factory=list)
    models_dir: Path | None = None
    plan: Path | None = None
    only_positionals: bool = False


def answer(words: Sequence[str]) -> None:
    """Print what fits, one a line; `words` follow the program's name, the last is unfinished."""
    *finished, current = words or [""]
    for candidate in candidates(finished, current):
        print(candidate)


def candidates(finished: Sequence[str], current: str) -> list[str]:
    """What may stand in place of `current`, sorted; or FILES alone."""
    state = _walk(finished)
    flag, equals, value = current.partition("=")
    if equals and flag.startswith("--"):
        action = _option(state.parser, flag)
        found = _values(state, action, value) if action else []
        return found if found == [FILES] else [f"{flag}={one}" for one in found]
    if state.option is not None:
        return _values(state, state.option, current)
    if current.startswith("-") and not state.only_positionals:
        return sorted(flag for flag in _flags(state.parser) if flag.startswith(current))
    action = _positional(state)
    return _values(state, action, current) if action else []


def _walk(words: Iterable[str]) -> _State:
    state = _State(command_line.build())
    for word in words:
        if state.option is not None:
            _remember(state, state.option, word)
            state.option = None
        elif word == "--" and not state.only_positionals:
            state.only_positionals = True
        elif word.startswith("-") and not state.only_positionals:
            flag, equals, value = word.partition("=")
            action = _option(state.parser, flag)
            if action is not None and action.nargs != 0:
                if equals:
                    _remember(state, action, value)
                else:
                    state.option = action
        else:
            commands = _commands(state.parser)
            if commands and word in commands:
                state.parser, state.command = commands[word], word
            else:
                state.positionals.append(word)
    return state


def _remember(state: _State, action: argparse.Action, value: str) -> None:
    if action.dest == "models_dir":
        state.models_dir = Path(value)
    elif action.dest == "plan":
        state.plan = Path(value)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _option(parser: argparse.ArgumentParser, flag: str) -> argparse.Action | None:
    return next((one for one in parser._actions if flag in one.option_strings), None)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def _positional(state: _State) -> argparse.Action | None:
    """The positional argument that comes next."""
    left = len(state.positionals)
    for action in state.parser._actions:
        if action.option_strings:
            continue
        if not left or action.nargs in ("*", "+"):
            return action
        left -= 1
    return None


def _values(state: _State, action: argparse.Action, current: str) -> list[str]:
    if action.dest in command_line.COMPLETES_FILES:
        return [FILES]
    if action.choices is not None:
        return sorted(str(one) for one in action.choices if str(one).startswith(current))
    kind = command_line.COMPLETES.get((state.command, action.dest))
    if kind is None:
        return []
    if kind == "known" and ("/" in current or current.startswith(".")):
        return [FILES]
    from .names import names  # noqa: PLC0415 - options and commands are told without the core

    found = names(kind, state.positionals, state.plan, state.models_dir)
    taken = set(state.positionals) if action.nargs in ("*", "+") else set()
    return sorted(one for one in found - taken if one.startswith(current))
