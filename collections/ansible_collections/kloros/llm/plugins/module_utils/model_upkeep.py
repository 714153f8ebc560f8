"""Reading what is there again, and finding what nobody needs any more."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

from .model_files import FileRecord, read_record, record_path, write_record
from .model_placement import VERSIONS_DIR, versions_there
from .model_store import now_text
from .model_versions import CATALOGUE_FILE, Model, Version, records_in_force
from .progress import ProgressFile
from .store_files import beside, file_digest, is_same_file, stat_or_none

# What the store keeps beside a file on its way, and forgets only when it is killed.
SIDECARS = (".part", ".part.*", ".staged", ".staged.new", ".swap", ".json.new", ".lock")
_LEFT_BEHIND = ("*.part", "*.part.*", "*.swap", "*.new", "*.lock")


@dataclass(frozen=True)
class Verified:
    """What reading all bytes of one file told."""

    name: str
    version: str
    path: Path
    role: str
    state: Literal["good", "damaged", "missing"]
    size_bytes: int
    detail: str


@dataclass(frozen=True)
class GarbageItem:
    """One path that is garbage; a directory stands for all that is in it."""

    path: Path
    why: str
    freed_bytes: int


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be."""

    items: tuple[GarbageItem, ...]
    freed_bytes: int


@dataclass(frozen=True)
class Proof:
    """What the bytes of a file are."""

    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass
class Prover:
    """Reads files, each inode once."""

    progress: ProgressFile
    _digests: dict[tuple[int, int, int, int], str] = field(default_factory=dict)

    def prove(self, path: Path, name: str) -> Proof | None:
        """None where the file is not there or cannot be read."""
        state = stat_or_none(path)
        if state is None:
            return None
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self.progress.start(f"model {name} (verifying {path.name})", state.st_size)
            try:
                self._digests[key] = file_digest(path, self.progress.update)
            except OSError:
                return None
        return Proof(self._digests[key], state.st_size, state.st_mtime_ns)


def mark(directory: Path, version: Version, first: str, proofs: dict[str, Proof | None]) -> None:
    """Write what was found into the version's record in `directory`, unless that is another now."""
    record = read_record(directory / first)
    if record is None or record.version != version.id:
        return
    files = []
    for file in record.files:
        proof = proofs.get(file.file)
        if proof is None or not is_same_file(directory / file.file, version.directory / file.file):
            files.append(file)
        elif proof.sha256 == file.sha256:
            mtime_ns = proof.mtime_ns
            files.append(replace(file, mtime_ns=mtime_ns, verified_at=now_text(), damaged=False))
        else:
            files.append(replace(file, verified_at=now_text(), damaged=True))
    write_record(directory, replace(record, files=tuple(files)))


def verdict(model: Model, version: Version, file: FileRecord, proof: Proof | None) -> Verified:
    """What a proof says of a recorded file."""
    path = version.directory / file.file
    state: Literal["good", "damaged", "missing"] = "good"
    detail = "as recorded"
    if not file.verified:
        detail += "; that digest was computed here, nobody else has stated one"
    if proof is None:
        state, detail = "missing", "not there or not readable; fetch the model again"
    elif proof.sha256 != file.sha256:
        state = "damaged"
        detail = (
            f"sha256 is {proof.sha256} ({proof.size_bytes} bytes), recorded is {file.sha256} "
            f"({file.size_bytes} bytes); fetch the model again"
        )
    return Verified(model.name, version.id, path, file.role, state, file.size_bytes, detail)


def is_needed(model: Model, version: Version, before: float) -> bool:
    """Whether a version stays for its own sake.

    It does where it is in force or was before that; where it was rolled back from, and so may be
    wanted again; where it is the newest, and so may not have been promoted yet; and where it was
    added, or went out of force, after `before` (Unix seconds). A damaged one is good for nothing.
    """
    if version.id in (model.active, model.previous):
        return True
    if version.damaged:
        return False
    if version.id in (model.versions[0].id, *model.rolled_back):
        return True
    ends = (
        following.at
        for one, following in pairwise(model.history)
        if one.version == version.id != following.version
    )
    return max(map(_seconds, (version.added_at, *ends))) > before


def _seconds(text: str) -> float:
    """A time of a record, in Unix seconds; 0 for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def version_files(version: Version, first: str) -> list[Path]:
    """All files of a version that is kept, the record last."""
    return [*version.paths, record_path(version.directory / first)]


def left_behind(directory: Path, before: float) -> Iterator[tuple[Path, str, list[Path]]]:
    """What interrupted work has left and nobody has touched since `before` (Unix seconds).

    (path, why it is garbage, all files of it.)
    """
    for path, why in sorted(_suspects(directory).items()):
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        states = [state for one in inside if (state := stat_or_none(one))]
        if states and max(state.st_mtime for state in states) <= before:
            yield path, why, [one for one in inside if one.is_file()]


def _suspects(directory: Path) -> dict[Path, str]:
    found = {
        path: "left by interrupted work"
        for pattern in _LEFT_BEHIND
        for path in directory.glob(pattern)
    }
    for path in directory.glob("*.json"):
        first = path.with_suffix("")
        if path.name != CATALOGUE_FILE and read_record(first) and not first.exists():
            found[path] = "the record of a model that is not there"
    versions = directory / VERSIONS_DIR
    whole = {place for place, _ in versions_there(directory)}
    for path in versions.glob("*"):
        if path.name.startswith(".new-"):
            found[path] = "an update that was never finished"
        elif path.is_dir() and path not in whole:
            found[path] = "a version that was never finished"
    return found


def no_longer_belonging(directory: Path) -> list[tuple[Path, str]]:
    """Files that a model had once and that were in use when it was replaced: (path, why)."""
    return [
        (directory / name, f"belonged to {record.name} once")
        for record in records_in_force(directory).values()
        for name in record.dropped
        if (directory / name).is_file()
    ]


def is_busy(directory: Path) -> bool:
    """Whether a model is being fetched: then every part may be somebody's."""
    return any(_is_held(lock) for lock in directory.glob("*.lock"))


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sidecars(path: Path) -> list[Path]:
    """What the store keeps beside a file on its way; the lock is not among them."""
    escaped = "".join(f"[{char}]" if char in "*?[" else char for char in path.name)
    found = (one for suffix in SIDECARS for one in path.parent.glob(escaped + suffix))
    return sorted(one for one in found if one != beside(path, ".lock"))


def freed_bytes(paths: Iterable[Path]) -> int:
    """What removing these names frees: files of which no other name is left."""
    names: dict[tuple[int, int], int] = {}
    states: dict[tuple[int, int], os.stat_result] = {}
    for path in dict.fromkeys(paths):
        state = stat_or_none(path)
        if state:
            key = (state.st_dev, state.st_ino)
            names[key] = names.get(key, 0) + 1
            states[key] = state
    return sum(
        states[key].st_blocks * 512 for key, count in names.items() if count >= states[key].st_nlink
    )
