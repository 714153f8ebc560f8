"""`modelctl rm`: remove models."""

from __future__ import annotations

from argparse import Namespace

from ...core.model_catalogue import CatalogueError, Removal
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
        _check(host, name)
    removals: list[Removal] = []
    failure: ModelctlError | None = None
    for name in arguments.names:
        try:
            removals.append(_remove(host, name, dry_run=arguments.dry_run))
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


def _check(host: Host, name: str) -> None:
    """Raises ModelctlError where nothing has that name."""
    if not (host.models_dir / name).is_file() or "/" in name:
        host.find(name)


def _remove(host: Host, name: str, *, dry_run: bool) -> Removal:
    model, at, version = name.rpartition("@")
    if not at or (host.models_dir / name).is_file():
        return host.catalogue.remove(name, dry_run=dry_run)
    try:
        return host.catalogue.remove_version(model, version, dry_run=dry_run)
    except CatalogueError as error:
        # The version is there: what is refused is taking away what a name stands for.
        raise ModelctlError(str(error), Exit.IN_USE) from error
