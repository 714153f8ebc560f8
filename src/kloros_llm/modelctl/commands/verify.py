"""`modelctl verify`: read models and compare their digests."""

from __future__ import annotations

from argparse import Namespace

from ...core.model_catalogue import Verified
from ..exit_codes import Exit
from ..host import Host
from ..output import emit, say, size_text, table, tell
from ..terminal_progress import TerminalProgress


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    # What is found is written down.
    host.prepare_writing()
    for name in arguments.names:
        host.catalogue.owner(name)
    found: list[Verified] = []
    with TerminalProgress() as progress:
        for name in arguments.names or [None]:
            found += host.catalogue.verify(name, progress)
    bad = [one for one in found if one.state in ("damaged", "missing")]
    if arguments.json:
        emit(
            {
                "ok": not bad,
                "files": [
                    {
                        "name": one.name,
                        "version": one.version,
                        "path": str(one.path),
                        "role": one.role,
                        "state": one.state,
                        "size_bytes": one.size_bytes,
                        "detail": one.detail,
                    }
                    for one in found
                ],
            }
        )
    else:
        rows = [
            [one.name, one.version, one.path.name, size_text(one.size_bytes), one.state]
            for one in found
        ]
        say(table(["name", "version", "file", "size", "state"], rows, right="size") if rows else [])
        for one in bad:
            tell(f"{one.path}: {one.detail}")
        if bad:
            tell("`modelctl pull NAME` gets what is damaged or missing again")
    return Exit.DAMAGED if bad else Exit.OK
