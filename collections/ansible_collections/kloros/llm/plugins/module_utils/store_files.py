"""File operations that the model store needs: durable, atomic, sharing blocks where possible."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
# linux/fs.h: _IOW(0x94, 9, int)
_FICLONE = 0x40049409


def stat_or_none(path: Path) -> os.stat_result | None:
    """The status of `path`, None where nothing is there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def beside(path: Path, suffix: str) -> Path:
    """The file that belongs to `path` and is named after it."""
    return path.with_name(path.name + suffix)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where there is none.

    Raises PermissionError: that one may not read it does not mean that it is not there.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path`, durably and at once."""
    fresh = beside(path, ".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


@contextlib.contextmanager
def keep_attributes(path: Path) -> Iterator[None]:
    """What replaces `path` inside gets its owner and mode, where there was one."""
    state = stat_or_none(path)
    yield
    if state is None:
        return
    # Only root can give a file away; others replace none but their own.
    with contextlib.suppress(PermissionError):
        os.chown(path, state.st_uid, state.st_gid)
        path.chmod(stat.S_IMODE(state.st_mode))


def sync_directory(directory: Path) -> None:
    """Make names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_into(digest: hashlib._Hash, file: BinaryIO, on_progress: Callable[[int], None]) -> int:
    """Feed the rest of `file` to `digest`; the number of bytes, also told on the way."""
    done = 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        done += len(chunk)
        on_progress(done)
    return done


def copy_hashing(source: BinaryIO, target: BinaryIO, on_progress: Callable[[int], None]) -> str:
    """Copy all of `source`; its sha256."""
    digest = hashlib.sha256()
    done = 0
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        on_progress(done)
    return digest.hexdigest()


def try_hard_link(origin: Path, target: Path) -> bool:
    """Share the inode; False where the file system or its rules forbid it."""
    try:
        target.hardlink_to(origin)
    except OSError:
        return False
    return True


def try_reflink(origin: Path, target: Path) -> bool:
    """Share the blocks, copy on write (btrfs, xfs); leaves nothing behind where it fails."""
    try:
        with origin.open("rb") as source, target.open("wb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, source.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def share(origin: Path, target: Path) -> None:
    """Let `target`, which must not be there, be the same file: a hard link, or a reflink.

    Raises OSError where the file system can do neither.
    """
    try:
        target.hardlink_to(origin)
    except OSError:
        if not try_reflink(origin, target):
            raise
        state = origin.stat()
        os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both names are there and mean one inode."""
    here, there = stat_or_none(one), stat_or_none(other)
    return here is not None and there is not None and os.path.samestat(here, there)


def file_digest(path: Path, on_progress: Callable[[int], None]) -> str:
    """The sha256 of all bytes of `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        hash_into(digest, file, on_progress)
    return digest.hexdigest()
