"""`modelctl gc`: remove what nobody needs."""

from __future__ import annotations

from argparse import Namespace

from ..exit_codes import Exit
from ..host import Host
from ..output import emit, say, size_text, table


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    if not arguments.dry_run:
        host.prepare_writing()
    garbage = host.catalogue.gc(arguments.older_than, dry_run=arguments.dry_run)
    if arguments.json:
        emit(
            {
                "items": [
                    {"path": str(item.path), "why": item.why, "freed_bytes": item.freed_bytes}
                    for item in garbage.items
                ],
                "freed_bytes": garbage.freed_bytes,
                "dry_run": arguments.dry_run,
            }
        )
        return Exit.OK
    if garbage.items:
        rows = [[item.path, size_text(item.freed_bytes), item.why] for item in garbage.items]
        say(table(["path", "size", "why"], rows, right="size"))
    verb = "would be freed" if arguments.dry_run else "freed"
    say(f"{size_text(garbage.freed_bytes)} {verb}")
    return Exit.OK
