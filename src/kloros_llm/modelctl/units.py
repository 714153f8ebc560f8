"""systemd's view of the instances' units, in one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..core.host_facts import run

_PROPERTIES: Final = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "MemoryCurrent",
    "NRestarts",
    "ActiveEnterTimestamp",
)
_LARGEST: Final = 2**63  # systemd states 2^64 - 1 for what it does not know


@dataclass(frozen=True)
class Unit:
    """A unit now. `pid` is None where nothing runs; `memory_bytes` where systemd does not say."""

    load: str
    active: str
    sub: str
    result: str
    pid: int | None
    memory_bytes: int | None
    restarts: int
    active_since: str | None


UNKNOWN: Final = Unit("unknown", "unknown", "unknown", "", None, None, 0, None)


def unit_states(units: Sequence[str]) -> dict[str, Unit]:
    """The state of each unit; `UNKNOWN` where systemd does not answer."""
    if not units:
        return {}
    status, output = run(["systemctl", "show", f"--property={','.join(_PROPERTIES)}", *units])
    found = dict.fromkeys(units, UNKNOWN)
    if status != 0:
        return found
    for block in output.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id") in found:
            found[values["Id"]] = Unit(
                load=values.get("LoadState", "unknown"),
                active=values.get("ActiveState", "unknown"),
                sub=values.get("SubState", "unknown"),
                result=values.get("Result", ""),
                pid=_number(values.get("MainPID")) or None,
                memory_bytes=_number(values.get("MemoryCurrent")),
                restarts=_number(values.get("NRestarts")) or 0,
                active_since=values.get("ActiveEnterTimestamp") or None,
            )
    return found


def try_restart(units: Sequence[str]) -> str | None:
    """Restart those of the units that run; what systemctl says where it fails, else None."""
    # A restart waits until the model is loaded and answers.
    status, output = run(["systemctl", "try-restart", *units], timeout_s=3600)
    return None if status == 0 else output.strip() or f"systemctl ended with {status}"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) < _LARGEST else None
