"""Free space, asked before the first byte is written."""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1 << 20


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write where `path` is or will be."""
    state = os.statvfs(existing_parent(path))
    return state.f_bavail * state.f_frsize


def mount_point(path: Path) -> Path:
    """The mount that `path` is or will be on."""
    path = existing_parent(path).resolve()
    while not path.is_mount():
        path = path.parent
    return path
