"""What `modelctl` prints: tables for people, JSON for programs; never a colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

MIB = 1 << 20


def printable(text: object) -> str:
    """One line without control characters: names and headers come from strangers."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)
    )


def table(heading: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> list[str]:
    """Aligned lines without trailing blanks. None is shown as `-`.

    `right` names the columns (by their heading, comma-separated) that hold numbers.
    """
    cells = [list(heading)]
    cells += [["-" if cell is None else printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    numbers = {heading.index(name) for name in right.split(",") if name}
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def fields(pairs: Sequence[tuple[str, object]]) -> list[str]:
    """`name  value` lines; a pair whose value is None is left out."""
    shown = [(name, printable(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name.ljust(width)}  {value}".rstrip() for name, value in shown]


def size_text(size_bytes: int | None) -> str | None:
    """Decimal units, as the Hub states sizes: `4.68 GB`, `98.4 MB`."""
    if size_bytes is None:
        return None
    for scale, unit, digits in ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 1)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.{digits}f} {unit}"
    return f"{size_bytes} B"


def mib_text(size_bytes: int | None) -> str | None:
    """Memory in MiB, rounded up: `1,234 MiB`."""
    return None if size_bytes is None else f"{-(-size_bytes // MIB):,} MiB"


def say(lines: str | Sequence[str]) -> None:
    """The command's answer, on standard output."""
    for line in [lines] if isinstance(lines, str) else lines:
        print(line)


def tell(message: str) -> None:
    """A word beside the answer, on standard error."""
    print(f"modelctl: {message}", file=sys.stderr)


def emit(data: Any) -> None:
    """The answer for programs: one JSON document."""
    json.dump(data, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
