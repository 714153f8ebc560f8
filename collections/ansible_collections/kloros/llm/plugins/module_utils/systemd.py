"""systemd's view of a unit, and what runs under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypedDict

from .host_facts import run

UNIT_DIR: Final = "/etc/systemd/system"
CONFIG_DIR: Final = "/etc/kloros-llm"
GATEWAY_STATE_DIR: Final = "/var/lib/kloros-llm/gateway"
PULLED_MODELS_DIR: Final = f"{GATEWAY_STATE_DIR}/pulled"
"""Where the gateway has links to what clients pulled, and routers for all models look for it."""
UNIT_PREFIX: Final = "kloros-llama-"
MARK: Final = "(kloros-llm, role llama_instances)"
"""Stands in the first line of every unit that the role writes."""
GATEWAY_UNIT_PREFIX: Final = "kloros-llm-gateway"
GATEWAY_SERVICE: Final = f"{GATEWAY_UNIT_PREFIX}.service"
_GATEWAY_MARK: Final = "(kloros-llm, role ollama_gateway)"

_PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "NeedDaemonReload",
    "Result",
    "InvocationID",
)


class UnitState(TypedDict):
    """A unit as systemd sees it; `main_pid` is 0 where nothing runs."""

    load: str
    active: str
    sub: str
    file_state: str
    main_pid: int
    needs_reload: bool
    result: str
    invocation: str


def instance_units() -> tuple[list[str], list[str]]:
    """The units with this project's prefix: (those that it wrote, others)."""
    return _units(f"{UNIT_PREFIX}*.service", MARK)


def gateway_units() -> list[str]:
    """The units of the gateway that its role has written: a service, and sockets."""
    return [
        *_units(GATEWAY_SERVICE, _GATEWAY_MARK)[0],
        *_units(f"{GATEWAY_UNIT_PREFIX}-*.socket", _GATEWAY_MARK)[0],
    ]


def _units(pattern: str, mark: str) -> tuple[list[str], list[str]]:
    own: list[str] = []
    foreign: list[str] = []
    for path in sorted(Path(UNIT_DIR).glob(pattern)):
        try:
            first = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
        except OSError:
            first = ""
        (own if mark in first else foreign).append(path.name)
    return own, foreign


def unit_state(unit: str) -> UnitState:
    """Ask systemd for a unit; one that is not there has the load state `not-found`."""
    _, output = run(["systemctl", "show", f"--property={','.join(_PROPERTIES)}", unit])
    values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return {
        "load": values.get("LoadState", "not-found"),
        "active": values.get("ActiveState", "inactive"),
        "sub": values.get("SubState", "dead"),
        "file_state": values.get("UnitFileState", ""),
        "main_pid": int(values.get("MainPID", "0") or 0),
        "needs_reload": values.get("NeedDaemonReload") == "yes",
        "result": values.get("Result", ""),
        "invocation": values.get("InvocationID", ""),
    }


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.decode(errors="replace") for entry in raw.split(b"\0") if b"=" in entry)
    return dict(entry.split("=", 1) for entry in entries)


def last_words(unit: str, since: float, lines: int = 25) -> list[str]:
    """The last lines that a unit wrote to the journal since a time (seconds since the epoch).

    systemd's own messages are left out: they say that it failed, not why.
    """
    argv = ["journalctl", f"--unit={unit}", f"--since=@{int(since)}", "--output=json", "--quiet"]
    # The journal may lag behind the exit of the process by a moment.
    run(["journalctl", "--sync"])
    _, output = run([*argv, "--no-pager", "--output-fields=MESSAGE,_PID,SYSLOG_IDENTIFIER"])
    messages: list[str] = []
    for line in output.splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if entry.get("_PID") == "1":
            continue
        message = entry.get("MESSAGE")
        if isinstance(message, list):  # journalctl writes bytes that are not UTF-8 as numbers
            message = bytes(message).decode(errors="replace")
        if message:
            messages.append(_plain(str(message)))
    return messages[-lines:]


def _plain(message: str) -> str:
    """What llama-server's structured log says, as people read it."""
    try:
        entry = json.loads(message)
    except ValueError:
        return message
    if isinstance(entry, dict) and entry.get("type") == "log":
        return str(entry.get("msg", "")).rstrip("\n")
    return message
