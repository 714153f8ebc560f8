"""`modelctl alias`: further names of models."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from ...core.model_catalogue import Alias
from ..exit_codes import Exit, ModelctlError
from ..host import Host
from ..output import emit, say, table, tell


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    alias, target = arguments.alias, arguments.target
    if arguments.remove and (alias is None or target is not None):
        raise ModelctlError("--remove goes with an alias alone", Exit.USAGE)
    if alias is None:
        _show(host.catalogue.aliases(), as_json=arguments.json)
        return Exit.OK
    if target is None and not arguments.remove:
        raise ModelctlError(f"for which model shall {alias!r} stand? Name it", Exit.USAGE)
    host.prepare_writing()
    if arguments.remove:
        changed = host.catalogue.remove_alias(alias)
    else:
        changed = host.catalogue.set_alias(alias, target)
    if arguments.json:
        emit({"aliases": [asdict(changed)]})
    elif arguments.remove:
        say(f"{alias} stands for nothing now")
    else:
        say(f"{alias} stands for {_target(changed)} now")
    return Exit.OK


def _show(aliases: Sequence[Alias], *, as_json: bool) -> None:
    if as_json:
        emit({"aliases": [asdict(one) for one in aliases]})
    elif aliases:
        rows = [[one.alias, _target(one), one.previous] for one in aliases]
        say(table(["alias", "stands for", "before"], rows))
    else:
        tell("there are no aliases")


def _target(alias: Alias) -> str:
    return f"{alias.model}@{alias.version}" if alias.version else alias.model
