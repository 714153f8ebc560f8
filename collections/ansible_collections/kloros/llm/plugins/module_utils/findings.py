"""What is wrong, said so that the person who meets it can act on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypedDict


class Finding(TypedDict):
    """One thing that a check met.

    `key` is the inventory path or the place on the host, `found` what is there, `needed` what
    would be accepted, `cure` what to do next.
    """

    level: Literal["error", "warning"]
    key: str
    found: str
    needed: str
    cure: str


def error(key: str, found: str, needed: str, cure: str) -> Finding:
    """A finding that must stop the play before the first change."""
    return {"level": "error", "key": key, "found": found, "needed": needed, "cure": cure}


def warning(key: str, found: str, needed: str, cure: str) -> Finding:
    """A finding that the play may go on with."""
    return {"level": "warning", "key": key, "found": found, "needed": needed, "cure": cure}


def render(findings: Iterable[Finding]) -> list[str]:
    """All findings, errors first, as lines of one message (Ansible prints a list line-wise)."""
    lines: list[str] = []
    for finding in sorted(findings, key=lambda item: item["level"] != "error"):
        lines.append(f"{finding['level'].upper()} {finding['key']}: {finding['found']}")
        lines.append(f"    needed: {finding['needed']}")
        lines.append(f"    do:     {finding['cure']}")
    return lines
