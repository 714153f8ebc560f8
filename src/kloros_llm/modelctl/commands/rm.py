"""`modelctl rm`: remove models."""

from __future__ import annotations

import contextlib
from argparse import Namespace

from ...core.model_catalogue import InUseError, Removal
from ..exit_codes import Exit, ModelctlError
from ..failures import failure_of
from ..host import Host
from ..output import emit, say, size_text, tell


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    if not arguments.dry_run:
        host.prepare_writing()
    # A name that is not there ends everything before anything is removed.
    for name in arguments.names:
        with contextlib.suppress(InUseError):
            host.catalogue.remove(name, dry_run=True)
    removals: list[Removal] = []
    failure: ModelctlError | None = None
    for name in arguments.names:
        try:
            removals.append(host.catalogue.remove(name, dry_run=arguments.dry_run))
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            tell(str(failure))
    if arguments.json:
        emit(
            {
                "removed": [
                    {
                        "name": one.name,
                        "paths": [str(path) for path in one.paths],
                        "freed_bytes": one.freed_bytes,
                        "changed": one.changed,
                    }
                    for one in removals
                ],
                "dry_run": arguments.dry_run,
            }
        )
    else:
        verb = "would remove" if arguments.dry_run else "removed"
        for one in removals:
            say(f"{verb} {one.name} ({size_text(one.freed_bytes)} freed)")
            say([f"  {path}" for path in one.paths])
    return failure.code if failure else Exit.OK
