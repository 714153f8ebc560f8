"""Putting all files of a model in place as one step, and keeping versions beside it.

A model of several files cannot be replaced by one rename. So `<first file>.staged` says first what
is to come: the record to be, and under which temporary name each file waits. Whoever finds it goes
on from there (`finish`), and either all files are replaced or none is. The first file comes last:
it is the name that a server opens.

`versions/<first 12 digits of the digest>/` holds further versions: hard links, and a record as
beside any model. What is called here must be called under the model's lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .model_files import (
    FileRecord,
    Record,
    read_record,
    record_from_data,
    record_path,
    write_record,
)
from .model_source import Source, SourceError, check_file_name, parse_source
from .store_files import (
    beside,
    is_same_file,
    read_json,
    share,
    stat_or_none,
    sync_directory,
    write_json,
)

VERSIONS_DIR = "versions"


@dataclass(frozen=True)
class _Staged:
    record: Record
    waiting: dict[str, str]
    """Final name -> temporary name, in the order of placement."""


def staged_path(first: Path) -> Path:
    """Where the note of an unfinished placement lies."""
    return beside(first, ".staged")


def is_intact(file: FileRecord, path: Path) -> bool:
    """Whether the file at `path` is the recorded one, as far as size and time tell."""
    state = stat_or_none(path)
    return (
        state is not None
        and not file.damaged
        and (file.size_bytes, file.mtime_ns) == (state.st_size, state.st_mtime_ns)
    )


def may_be(path: Path, source: Source, sha256: str | None = None) -> bool:
    """Whether a file of the store is the one that `source` names, as far as records tell.

    False where there is none, or where a record says that these bytes came from elsewhere and have
    another digest than `sha256`: then they will be replaced. Without a record, or of a file that
    was touched since, nothing is known against it.
    """
    if not path.exists():
        return False
    for record_file in path.parent.glob("*.json"):
        record = read_record(record_file.with_suffix(""))
        file = record.file(path.name) if record else None
        if file and is_intact(file, path) and not _is_of(file, source, sha256):
            return False
    return True


def _is_of(file: FileRecord, source: Source, sha256: str | None) -> bool:
    try:
        return file.sha256 == sha256 if sha256 else parse_source(file.source) == source
    except SourceError:
        return False


def is_whole(record: Record, directory: Path) -> bool:
    """Whether all files of the record lie in `directory` untouched."""
    return all(is_intact(file, directory / file.file) for file in record.files)


def place(directory: Path, record: Record, waiting: Mapping[str, Path]) -> None:
    """Put the files of `record` in place: `waiting` says where those lie that are not there yet.

    They lie in `directory`, proven and on the disk, with the times that the record states.
    """
    first = directory / record.first.file
    order = sorted(waiting, key=lambda name: name == first.name)
    staged = {name: waiting[name].name for name in order}
    write_json(staged_path(first), {"record": record.to_data(), "waiting": staged})
    _carry_out(directory, _Staged(record, staged))


def finish(first: Path) -> Record | None:
    """Go on with an interrupted placement of the model whose first file is `first`.

    The record in force afterwards; None where nothing was begun, or where what was waiting is gone
    (then the note is dropped: what is there is proven anew by whoever wants it).
    """
    data = read_json(staged_path(first))
    if data is None:
        staged_path(first).unlink(missing_ok=True)
        return None
    staged = _staged_from(data, first)
    directory = first.parent
    if staged is None or not _can_go_on(directory, staged):
        staged_path(first).unlink()
        return None
    _carry_out(directory, staged)
    return staged.record


def _staged_from(data: Mapping[str, object], first: Path) -> _Staged | None:
    record, waiting = data.get("record"), data.get("waiting")
    if not isinstance(record, dict) or not isinstance(waiting, dict):
        return None
    parsed = record_from_data(record, first.name)
    if parsed is None or parsed.first.file != first.name:
        return None
    names = {str(final): str(temporary) for final, temporary in waiting.items()}
    for final, temporary in names.items():
        if parsed.file(final) is None or temporary not in (f"{final}.part", f"{final}.swap"):
            return None
    return _Staged(parsed, names)


def _can_go_on(directory: Path, staged: _Staged) -> bool:
    for file in staged.record.files:
        temporary = staged.waiting.get(file.file)
        places = [directory / file.file] + ([directory / temporary] if temporary else [])
        if not any(is_intact(file, place) for place in places):
            return False
    return True


def _carry_out(directory: Path, staged: _Staged) -> None:
    for final, temporary in staged.waiting.items():
        waiting, target = directory / temporary, directory / final
        file = staged.record.file(final)
        if file is not None and is_intact(file, waiting):
            waiting.replace(target)
        # Where both names were hard links to one file, rename(2) does nothing and says nothing.
        if is_same_file(waiting, target):
            waiting.unlink()
    sync_directory(directory)
    write_record(directory, staged.record)
    staged_path(directory / staged.record.first.file).unlink()
    sync_directory(directory)


def remove_files(directory: Path, names: Iterable[str]) -> None:
    """Remove plain files, those that are there."""
    for name in names:
        (directory / check_file_name(name)).unlink(missing_ok=True)


# Versions


def version_directory(directory: Path, version: str) -> Path:
    """Where a version that is not in force lies."""
    return directory / VERSIONS_DIR / version


def keep_version(directory: Path, record: Record, origin: Path) -> Path | None:
    """Link the files of `record`, which lie in `origin`, into their version's directory.

    The directory; None where they are not whole there, or have no digest. The record is written
    last: a version without one is no version yet.
    """
    version = record.version
    if version is None or not is_whole(record, origin):
        return None
    target = version_directory(directory, version)
    known = read_record(target / record.first.file)
    if known and is_whole(known, target):
        return target
    make_directory(directory, target)
    for file in record.files:
        if not is_intact(file, target / file.file):
            (target / file.file).unlink(missing_ok=True)
            share(origin / file.file, target / file.file)
    sync_directory(target)
    write_record(target, record)
    return target


def make_directory(directory: Path, target: Path) -> None:
    """Make `target` inside the models' `directory`, as open as that one is."""
    like = directory.stat()
    for path in (
        *reversed(target.relative_to(directory).parents[:-1]),
        target.relative_to(directory),
    ):
        made = directory / path
        if not made.is_dir():
            made.mkdir()
            with contextlib.suppress(PermissionError):
                os.chown(made, like.st_uid, like.st_gid)
            made.chmod(stat.S_IMODE(like.st_mode))


def put_version_in_force(directory: Path, record: Record, origin: Path) -> None:
    """Make the version `record`, whose files lie in `origin`, the one at the models' own paths."""
    waiting = {}
    for file in record.files:
        swap = beside(directory / file.file, ".swap")
        swap.unlink(missing_ok=True)
        share(origin / file.file, swap)
        waiting[file.file] = swap
    sync_directory(directory)
    place(directory, record, waiting)


def forget_version(directory: Path, record: Record) -> None:
    """Remove a version's files, its record first."""
    target = version_directory(directory, record.version or "")
    record_path(target / record.first.file).unlink(missing_ok=True)
    remove_files(target, (file.file for file in record.files))
    remove_if_empty(target)


def remove_if_empty(directory: Path) -> None:
    """Remove a version's directory and the one of all versions, where nothing is in them."""
    for one in (directory, directory.parent):
        with contextlib.suppress(OSError):
            one.rmdir()


def remove_tree(directory: Path) -> None:
    """Remove a directory of the store's own with all that is in it."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory)


def versions_there(directory: Path) -> list[tuple[Path, Record]]:
    """Every version that is kept: where it lies, and its record."""
    found = []
    for path in sorted((directory / VERSIONS_DIR).glob("*/*.json")):
        if path.parent.name.startswith("."):
            continue
        record = read_record(path.with_suffix(""))
        if record and record.version == path.parent.name:
            found.append((path.parent, record))
    return found
