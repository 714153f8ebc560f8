"""After a name stands for another version: who must be restarted, and restarting them."""

from __future__ import annotations

from typing import Any

from ..core.model_catalogue import Switch
from .exit_codes import Exit
from .host import Host
from .output import emit, say, tell
from .units import try_restart


def finish(host: Host, switch: Switch, *, restart: bool, as_json: bool) -> int:
    """Say what `promote` or `rollback` did, and restart what uses the model if asked to."""
    data, code = restarted(host, switch, restart=restart)
    if as_json:
        emit(data)
    elif switch.changed:
        say(f"{switch.name} stands for version {switch.after} now (before: {switch.before})")
    else:
        say(f"{switch.name} stands for version {switch.after} already")
    return code


def restarted(host: Host, switch: Switch, *, restart: bool) -> tuple[dict[str, Any], Exit]:
    """What happened as plain data, and the exit status; says what is left to do."""
    instances = host.restarts_of(switch.users) if switch.changed else []
    units = [instance.unit for instance in instances]
    problem = None
    if units and restart:
        tell(f"restarting {', '.join(units)}")
        problem = try_restart(units)
    if problem:
        tell(f"the restart failed: {problem}; `modelctl logs {instances[0].name}` tells more")
    elif units and not restart:
        tell(
            f"{', '.join(one.name for one in instances)} still run with the version before; "
            f"to change that: sudo systemctl try-restart {' '.join(units)}"
        )
    data = {
        "name": switch.name,
        "before": switch.before,
        "after": switch.after,
        "path": str(switch.path),
        "changed": switch.changed,
        "restart": units,
        "restarted": units if restart and not problem else [],
        "users": [str(user) for user in switch.users],
    }
    return data, Exit.FAILED if problem else Exit.OK
