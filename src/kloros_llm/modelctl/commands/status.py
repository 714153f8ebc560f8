"""`modelctl status`: whether all is well."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from ...core.disk_space import existing_parent, mount_point
from ...core.nvidia_smi import Gpu, GpuInfo, gpu_info
from ..exit_codes import Exit
from ..host import Host
from ..instance_states import instance_states
from ..output import emit, fields, say, size_text, table
from .ps import instance_table


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    gpus = gpu_info()
    states = instance_states(host.chosen_instances(arguments.instances), gpus)
    ok = all(state.ready for state in states)
    disk = _disk(host.models_dir)
    release = _release(host)
    if arguments.json:
        emit(
            {
                "ok": ok,
                "instances": [state.to_data() for state in states],
                "disk": disk,
                "gpus": gpus,
                "llama_cpp": {"release": release},
            }
        )
        return Exit.OK if ok else Exit.FAILED
    if states:
        say([*instance_table(states), ""])
    troubled = [state for state in states if not state.ready]
    for state in troubled:
        reason = state.note or f"systemd says {state.unit.active} ({state.unit.sub})"
        say(f"{state.instance.name}: {reason}; modelctl logs {state.instance.name}")
    say(
        fields(
            [
                ("instances", f"{len(states) - len(troubled)} of {len(states)} ready"),
                ("llama.cpp", release or "none installed"),
                ("models", f"{host.models_dir}: {size_text(disk['models_bytes'])}"),
                (
                    "disk",
                    f"{disk['mount']}: {size_text(disk['free_bytes'])} free of "
                    f"{size_text(disk['total_bytes'])}",
                ),
                ("GPUs", gpus["detail"]),
            ]
        )
    )
    if gpus["gpus"]:
        say(["", *_gpu_table(gpus)])
    return Exit.OK if ok else Exit.FAILED


def _disk(directory: Path) -> dict[str, Any]:
    state = os.statvfs(existing_parent(directory))
    sizes: dict[tuple[int, int], int] = {}
    for path in directory.rglob("*") if directory.is_dir() else ():
        # Versions are hard links: each inode counts once, by the blocks that it takes.
        if path.is_file() and not path.is_symlink():
            entry = path.stat()
            sizes[entry.st_dev, entry.st_ino] = entry.st_blocks * 512
    return {
        "path": str(directory),
        "mount": str(mount_point(directory)),
        "free_bytes": state.f_bavail * state.f_frsize,
        "total_bytes": state.f_blocks * state.f_frsize,
        "models_bytes": sum(sizes.values()),
    }


def _release(host: Host) -> str | None:
    """The name of the release of llama.cpp that is in use."""
    current = host.llama_cpp_dir / "current"
    try:
        return current.resolve(strict=True).name
    except OSError:
        return None


def _gpu_table(gpus: GpuInfo) -> list[str]:
    rows = [
        [
            gpu["index"],
            gpu["name"],
            _mib(gpu["memory_total_mib"]),
            _mib(gpu["memory_free_mib"]),
            _holders(gpu),
        ]
        for gpu in gpus["gpus"]
    ]
    return table(["GPU", "name", "total", "free", "used by"], rows, right="total,free")


def _mib(mib: int | None) -> str | None:
    return None if mib is None else f"{mib:,} MiB"


def _holders(gpu: Gpu) -> str | None:
    told = [
        f"{process['name'] or 'process'} ({process['pid']}"
        + (")" if process["used_mib"] is None else f", {process['used_mib']:,} MiB)")
        for process in gpu["processes"]
    ]
    return ", ".join(told) or None
