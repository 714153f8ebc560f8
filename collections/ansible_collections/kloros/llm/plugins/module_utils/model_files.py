"""What a model consists of: one file or its shards, and the files that belong to it.

The record of a model is `<first file>.json` beside it. Schema 2 lists all files; schema 1, of
single files only, is still read.

Companions are named after the model, since many repositories call theirs the same:
`<stem>.mmproj.gguf`, `<stem>.draft.gguf`, `<stem>.lora-1.gguf`, where the stem is the first file's
name without `.gguf` and without `-00001-of-000NN`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .model_source import (
    Source,
    SourceError,
    all_shards,
    check_file_name,
    default_file,
    shard_of,
)
from .store_files import beside, keep_attributes, read_json, write_json

SCHEMA = 2
VERSION_DIGITS = 12

Role = Literal["model", "mmproj", "draft", "lora"]


@dataclass(frozen=True)
class WantedFile:
    """One file that is wanted under the name `file`. `sha256` is in lower case."""

    source: Source
    file: str
    role: Role = "model"
    sha256: str | None = None


@dataclass(frozen=True)
class Companion:
    """A file that belongs to a model: its projector, draft model or adapter.

    `file` None: the name is derived from the model's.
    """

    source: Source
    sha256: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class FileRecord:
    """What is known of one file in the store.

    `revision` is the commit, where a Hub states one. `verified` says that `sha256` was given from
    outside (by the wish or the Hub) and matched; otherwise it was only computed here.
    `verified_at` (UTC, ISO 8601) is when the bytes were last read whole. `sha256` is None only in
    a plan for something that nobody states a digest of. `damaged`: when last read whole, the bytes
    were others than those recorded.
    """

    file: str
    role: Role
    source: str
    revision: str | None
    size_bytes: int
    sha256: str | None
    verified: bool
    verified_at: str
    mtime_ns: int
    damaged: bool = False

    def facts(self) -> dict[str, Any]:
        """What matters in a comparison: all but the times."""
        return {k: v for k, v in asdict(self).items() if k not in ("verified_at", "mtime_ns")}


@dataclass(frozen=True)
class Record:
    """A model in the store. `files` begins with the one that a server is told to open.

    `dropped` are names of files that belonged to it once and were in use when it was replaced.
    """

    name: str
    source: str
    revision: str | None
    files: tuple[FileRecord, ...]
    aliases: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def first(self) -> FileRecord:
        return self.files[0]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def sha256(self) -> str | None:
        """Of the first file."""
        return self.first.sha256

    @property
    def digest(self) -> str | None:
        """Of the whole model: a single file's own; else of what `sha256sum` would tell of all.

        File names play no part in it. None where a file's is not known.
        """
        digests = [file.sha256 for file in self.files]
        if len(digests) == 1 or None in digests:
            return digests[0] if len(digests) == 1 else None
        lines = [f"{file.sha256}  {file.role}\n" for file in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def version(self) -> str | None:
        """What a version of this content is called."""
        return self.digest[:VERSION_DIGITS] if self.digest else None

    @property
    def verified(self) -> bool:
        return all(file.verified for file in self.files)

    @property
    def damaged(self) -> bool:
        return any(file.damaged for file in self.files)

    @property
    def verified_at(self) -> str:
        """When the file that was read longest ago was read."""
        return min(file.verified_at for file in self.files)

    def file(self, name: str) -> FileRecord | None:
        """The file of that name."""
        return next((file for file in self.files if file.file == name), None)

    def paths(self, directory: Path) -> list[Path]:
        """Where its files lie, the first one first."""
        return [directory / file.file for file in self.files]

    def facts(self) -> dict[str, Any]:
        """What matters in a comparison: all but the times."""
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "source": self.source,
            "revision": self.revision,
            "files": [file.facts() for file in self.files],
        }

    def to_data(self) -> dict[str, Any]:
        """The record as JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def record_path(path: Path) -> Path:
    """Where the record of the model whose first file is `path` lies."""
    return beside(path, ".json")


def read_record(path: Path) -> Record | None:
    """The record of the model whose first file is `path`; None where none can be read."""
    data = read_json(record_path(path))
    record = None if data is None else record_from_data(data, path.name)
    return record if record and record.first.file == path.name else None


def write_record(directory: Path, record: Record) -> None:
    """Write it beside the first file, at once and durably."""
    path = record_path(directory / record.first.file)
    with keep_attributes(path):
        write_json(path, record.to_data())


def record_from_data(data: Mapping[str, Any], file_name: str) -> Record | None:
    """What JSON says; schema 1, which does not name its file, is about `file_name`.

    None for what is no record. A record of a later schema is none either: its model is then proven
    anew.
    """
    try:
        if data.get("schema", 1) == 1:
            only = _file_from_data({**data, "file": file_name, "role": "model"})
            return Record(str(data["name"]), only.source, only.revision, (only,))
        if data["schema"] != SCHEMA:
            return None
        files = tuple(_file_from_data(file) for file in data["files"])
        if not files:
            return None
        return Record(
            name=str(data["name"]),
            source=str(data["source"]),
            revision=_text_or_none(data["revision"]),
            files=files,
            aliases=tuple(str(alias) for alias in data.get("aliases", ())),
            dropped=tuple(check_file_name(str(name)) for name in data.get("dropped", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _file_from_data(data: Mapping[str, Any]) -> FileRecord:
    role = data["role"]
    if role not in get_args(Role):
        raise ValueError(role)
    return FileRecord(
        # A name from a file on the disk: never a way out of the directory.
        file=check_file_name(str(data["file"])),
        role=role,
        source=str(data["source"]),
        revision=_text_or_none(data["revision"]),
        size_bytes=int(data["size_bytes"]),
        sha256=str(data["sha256"]),
        verified=bool(data["verified"]),
        verified_at=str(data["verified_at"]),
        mtime_ns=int(data["mtime_ns"]),
        damaged=bool(data.get("damaged", False)),
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def wanted_files(
    source: Source,
    file: str | None = None,
    sha256: Sequence[str] = (),
    *,
    mmproj: Companion | None = None,
    draft: Companion | None = None,
    lora: Sequence[Companion] = (),
) -> tuple[WantedFile, ...]:
    """All files of a model, the one to open first; shards in order, then the companions.

    `file` is the first file's name. `sha256` holds nothing, or one digest a file of the model
    itself, in order. Raises SourceError.
    """
    sources = all_shards(source)
    names = _names(sources, check_file_name(file or default_file(source)))
    if sha256 and len(sha256) != len(sources):
        raise SourceError(
            f"{source} has {_files(len(sources))}, but {len(sha256)} sha256 are given; give "
            "one for each file in order, or none"
        )
    wanted = [
        WantedFile(one, name, sha256=sha256[index] if sha256 else None)
        for index, (one, name) in enumerate(zip(sources, names, strict=True))
    ]
    stem = stem_of(names[0])
    if mmproj:
        wanted.append(_wanted_companion(mmproj, f"{stem}.mmproj.gguf", "mmproj"))
    if draft:
        wanted.append(_wanted_companion(draft, f"{stem}.draft.gguf", "draft"))
    for number, adapter in enumerate(lora, 1):
        wanted.append(_wanted_companion(adapter, f"{stem}.lora-{number}.gguf", "lora"))
    taken = [one.file for one in wanted]
    for name in taken:
        if taken.count(name) > 1:
            raise SourceError(
                f"two files of the model of {source} would be called '{name}'; give one of them "
                "another name with 'file'"
            )
    return tuple(wanted)


def stem_of(file_name: str) -> str:
    """What companions of the model in `file_name` are named after."""
    shard = shard_of(file_name)
    return shard.stem if shard else file_name.removesuffix(".gguf")


def _names(sources: Sequence[Source], first: str) -> list[str]:
    shard = shard_of(first)
    if len(sources) == 1 and (shard is None or shard.count == 1):
        return [first]
    if len(sources) == 1:
        raise SourceError(
            f"the file name '{first}' says that the model is split, but {sources[0]} is one "
            "file; give it another name with 'file'"
        )
    if shard is None or (shard.number, shard.count) != (1, len(sources)):
        raise SourceError(
            f"the file name '{first}' does not fit a model of {_files(len(sources))}: llama.cpp "
            "finds the parts of a split model by their names; call it "
            f"NAME-00001-of-{len(sources):05}.gguf, or give no name"
        )
    return [shard.file_name(number) for number in range(1, shard.count + 1)]


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _wanted_companion(companion: Companion, default_name: str, role: Role) -> WantedFile:
    if len(all_shards(companion.source)) > 1:
        raise SourceError(
            f"{companion.source} is split: a {role} file must be one file; give one that is whole"
        )
    name = check_file_name(companion.file or default_name)
    return WantedFile(companion.source, name, role, companion.sha256)
