"""`modelctl ps`: the instances, and how they are."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from ...core.nvidia_smi import gpu_info
from ..exit_codes import Exit
from ..host import Host
from ..instance_states import InstanceState, instance_states
from ..output import emit, mib_text, say, table, tell


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    instances = host.chosen_instances(arguments.instances)
    on_gpus = any(instance.gpus for instance in instances)
    states = instance_states(instances, gpu_info() if on_gpus else None)
    if arguments.json:
        emit({"instances": [state.to_data() for state in states]})
    elif states:
        say(instance_table(states))
        for state in states:
            if state.note:
                tell(f"{state.instance.name}: {state.note}")
    else:
        tell("the plan has no instances")
    return Exit.OK


def instance_table(states: Sequence[InstanceState]) -> list[str]:
    """The instances as lines."""
    rows = []
    for state in states:
        data = state.to_data()
        busy = "?" if data["slots_busy"] is None else data["slots_busy"]
        gpu_mib = data["gpu_memory_mib"]
        rows.append(
            [
                data["name"],
                data["model"] or " ".join(data["models"]),
                data["state"],
                data["pid"],
                f"{busy}/{data['slots']}",
                data["context_tokens"],
                mib_text(data["memory_bytes"]),
                None if gpu_mib is None else f"{gpu_mib:,} MiB",
                data["url"],
            ]
        )
    heading = ["instance", "model", "state", "pid", "busy", "context", "memory", "GPU", "URL"]
    return table(heading, rows, right="pid,busy,context,memory,GPU")
