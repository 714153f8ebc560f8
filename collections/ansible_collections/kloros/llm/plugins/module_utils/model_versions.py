"""What models and versions a directory holds: derived from records, completed by the catalogue.

The truth about what is in force are the records beside the models (`model_files`), and about what
is kept those in `versions/` (`model_placement`). `catalogue.json` adds what no record holds: when
a version was added, the order in which versions were in force, and aliases. Where it is missing or
unreadable, everything is derived from the records.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .model_files import VERSION_DIGITS, FileRecord, Record, read_record
from .model_placement import is_whole, version_directory, versions_there
from .model_source import check_file_name
from .model_store import StoreError
from .model_users import User

CATALOGUE_FILE = "catalogue.json"
SCHEMA = 1
MIN_PREFIX = 4


class CatalogueError(StoreError):
    """What was asked of the catalogue cannot be; the message says why and what would be."""


class UnknownNameError(CatalogueError):
    """There is no model, alias or version of that name."""


class InUseError(CatalogueError):
    """Something uses what would go away: `users`, or else a name that stands for it."""

    def __init__(self, message: str, users: Sequence[User] = ()) -> None:
        super().__init__(message)
        self.users = list(users)


@dataclass(frozen=True)
class Version:
    """One content of a model. `directory` is where its files lie.

    `digest` as `Record.digest`; `id` its first 12 digits. `verified`: all digests were stated by
    somebody else and matched. `damaged`: a file is missing, altered or was found damaged.
    """

    id: str
    digest: str
    revision: str | None
    source: str
    size_bytes: int
    added_at: str
    files: tuple[FileRecord, ...]
    directory: Path
    verified: bool
    damaged: bool

    @property
    def paths(self) -> list[Path]:
        return [self.directory / file.file for file in self.files]


@dataclass(frozen=True)
class Activation:
    """A version came into force at `at` (UTC, ISO 8601)."""

    version: str
    at: str


@dataclass(frozen=True)
class Model:
    """A model by its name. `path` is the file that servers open, whatever version is in force.

    `versions`: newest first. `history`: oldest first, ending with the one in force; `previous` is
    the one that a rollback would bring back. `rolled_back`: those that rollbacks have put out of
    force, until a version comes into force that has never been.
    """

    name: str
    file: str
    path: Path
    versions: tuple[Version, ...]
    active: str | None
    previous: str | None
    history: tuple[Activation, ...]
    rolled_back: tuple[str, ...]
    aliases: tuple[str, ...]

    def version(self, version: str | None) -> Version | None:
        """The version of that id."""
        return next((one for one in self.versions if one.id == version), None)

    @property
    def in_force(self) -> Version | None:
        return self.version(self.active)


@dataclass(frozen=True)
class Alias:
    """A further name of a model. `version` None: it follows the version in force."""

    alias: str
    model: str
    version: str | None
    previous: str | None


@dataclass(frozen=True)
class Found:
    """What a name means. `path` is the file to open, `paths` all of its files."""

    model: Model
    version: Version
    path: Path
    paths: tuple[Path, ...]
    alias: Alias | None


@dataclass
class Entry:
    """What catalogue.json holds of a model; `added` in the order in which they were added."""

    added: dict[str, str] = field(default_factory=dict)
    history: list[Activation] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)

    def came_into_force(self, version: str, at: str) -> None:
        """Note it, at the end of the history."""
        if version in self.rolled_back:
            self.rolled_back.remove(version)
        elif all(one.version != version for one in self.history):
            self.rolled_back.clear()
        self.history.append(Activation(version, at))

    def roll_back(self, version: str) -> None:
        """Have the history as it was when `version`, its last entry, was in force before."""
        for index in range(len(self.history) - 2, -1, -1):
            if self.history[index].version == version:
                undone = [one.version for one in self.history[index:] if one.version != version]
                self.rolled_back = list(dict.fromkeys([*self.rolled_back, *undone]))
                self.history = self.history[: index + 1]
                return


@dataclass
class Stored:
    """What catalogue.json holds. `entries` are keyed by the models' first files, whose names last.

    An alias has the name of the first file as its `model` here.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": SCHEMA,
            "models": {
                file: {
                    "added": entry.added,
                    "history": [{"version": one.version, "at": one.at} for one in entry.history],
                    "rolled_back": entry.rolled_back,
                }
                for file, entry in sorted(self.entries.items())
            },
            "aliases": {
                alias: {"file": one.model, "version": one.version, "previous": one.previous}
                for alias, one in sorted(self.aliases.items())
            },
        }


def stored_from(data: Mapping[str, Any] | None) -> Stored:
    """What JSON says; what of it cannot be read is left out."""
    stored = Stored()
    if data is None or data.get("schema") != SCHEMA:
        return stored
    unreadable = (AttributeError, KeyError, TypeError, ValueError)
    with contextlib.suppress(*unreadable):
        for file, entry in data["models"].items():
            with contextlib.suppress(*unreadable):
                history = [Activation(str(o["version"]), str(o["at"])) for o in entry["history"]]
                added = {str(version): str(at) for version, at in entry["added"].items()}
                rolled_back = [str(version) for version in entry.get("rolled_back", ())]
                stored.entries[check_file_name(file)] = Entry(added, history, rolled_back)
    with contextlib.suppress(*unreadable):
        for alias, entry in data["aliases"].items():
            with contextlib.suppress(*unreadable):
                stored.aliases[alias] = Alias(
                    alias, str(entry["file"]), entry["version"], entry["previous"]
                )
    return stored


class Survey:
    """The models in a directory. `stored` is completed by what the records tell.

    `models` and `records` are keyed by the names of the models' first files; `records` holds those
    in force. `aliases` are sorted by name.
    """

    def __init__(self, directory: Path, stored: Stored) -> None:
        self._directory = directory
        self._stored = stored
        self.records = records_in_force(directory)
        kept: dict[str, dict[str, tuple[Path, Record]]] = {}
        for place, record in versions_there(directory):
            kept.setdefault(record.first.file, {})[place.name] = (place, record)
        files = sorted({*self.records, *kept})
        for gone in [file for file in stored.entries if file not in files]:
            del stored.entries[gone]
        names = _names(self.records, kept)
        bare = {file: self._model(file, names[file], kept.get(file, {})) for file in files}
        self.aliases = self._aliases(bare)
        self.models = {
            file: replace(
                model,
                aliases=tuple(one.alias for one in self.aliases if one.model == model.name),
            )
            for file, model in bare.items()
        }

    def by_name(self, name: str) -> Model | None:
        """The model of that name, or of that first file."""
        named = (model for model in self.models.values() if model.name == name)
        return next(named, self.models.get(name))

    def alias(self, name: str) -> Alias | None:
        """The alias of that name."""
        return next((one for one in self.aliases if one.alias == name), None)

    def owner(self, text: str) -> tuple[Model, Alias | None, str | None]:
        """(model, alias, version asked for) of NAME, ALIAS, FILE, or one of them with @VERSION.

        Raises CatalogueError, which names what is similar.
        """
        candidates: list[tuple[str, str | None]] = [(text, None)]
        if "@" in text:
            before, _, digits = text.rpartition("@")
            candidates.append((before, digits))
        for name, wanted in candidates:
            model = self.by_name(name)
            if model:
                return model, None, wanted
            alias = self.alias(name)
            if alias and (owner := self.by_name(alias.model)):
                return owner, alias, wanted
        known = [model.name for model in self.models.values()]
        known += [alias.alias for alias in self.aliases]
        close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
        raise UnknownNameError(
            f"no model is called '{text}'; {hint if known else f'{self._directory} holds none'}"
        )

    def find(self, text: str) -> Found:
        """What a name means now. Raises CatalogueError."""
        model, alias, wanted = self.owner(text)
        named = wanted or (alias.version if alias else None)
        wanted = named or model.active
        if wanted is None:
            raise UnknownNameError(
                f"no version of {model.name} is in force; kept are "
                f"{ids_of(model.versions)}: promote one of them"
            )
        version = pick(model, wanted)
        kept = version_directory(self._directory, version.id)
        if named and read_record(kept / model.file):
            # Where it stays, whatever comes into force.
            version = replace(version, directory=kept)
        return Found(model, version, version.directory / model.file, tuple(version.paths), alias)

    def _model(self, file: str, name: str, kept: dict[str, tuple[Path, Record]]) -> Model:
        record = self.records.get(file)
        active = record.version if record else None
        contents = dict(kept)
        if record and active:
            contents[active] = (self._directory, record)
        by_age = sorted(contents.items(), key=lambda item: (item[1][1].verified_at, item[0]))
        entry = self._stored.entries.get(file)
        if entry is None:
            # Nothing is known of the order: what is kept was in force before, the oldest first.
            former = [(version, one) for version, (_, one) in by_age if version != active]
            entry = Entry(history=[Activation(version, one.verified_at) for version, one in former])
            self._stored.entries[file] = entry
        for version, (_, one) in by_age:
            entry.added.setdefault(version, one.verified_at)
        if record and active and (not entry.history or entry.history[-1].version != active):
            entry.came_into_force(active, record.verified_at)
        versions = [
            _version(version, entry.added[version], *content)
            for version, content in contents.items()
        ]
        # Within one second the order in which they were noted tells.
        order = {version: index for index, version in enumerate(entry.added)}
        versions.sort(key=lambda one: (one.added_at, order[one.id]), reverse=True)
        usable = {one.id for one in versions if not one.damaged}
        before = [one.version for one in reversed(entry.history) if one.version != active]
        return Model(
            name=name,
            file=file,
            path=self._directory / file,
            versions=tuple(versions),
            active=active,
            previous=next((version for version in before if version in usable), None),
            history=tuple(entry.history),
            rolled_back=tuple(entry.rolled_back),
            aliases=(),
        )

    def _aliases(self, models: Mapping[str, Model]) -> list[Alias]:
        taken = {model.name for model in models.values()}
        found: dict[str, Alias] = {}
        for file, record in self.records.items():
            for alias in record.aliases:
                found[alias] = Alias(alias, models[file].name, None, None)
        for alias, one in self._stored.aliases.items():
            model = models.get(one.model)
            if model and (one.version is None or model.version(one.version)):
                found[alias] = replace(one, model=model.name)
        return [found[alias] for alias in sorted(found) if alias not in taken]


def records_in_force(directory: Path) -> dict[str, Record]:
    """First file -> record, of all models in a directory whose first file is there."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        record = read_record(path.with_suffix("")) if path.name != CATALOGUE_FILE else None
        if record and (directory / record.first.file).is_file():
            found[record.first.file] = record
    return found


def pick(model: Model, digits: str) -> Version:
    """The version of a model by its id or the beginning of it. Raises CatalogueError."""
    digits = digits.strip().lower()[:VERSION_DIGITS]
    matching = [one for one in model.versions if one.id.startswith(digits)]
    if len(digits) >= MIN_PREFIX and len(matching) == 1:
        return matching[0]
    why = f"{'none' if not matching else 'more than one'} begins so"
    if len(digits) < MIN_PREFIX:
        why = f"at least {MIN_PREFIX} digits are needed"
    raise UnknownNameError(
        f"'{digits}' names no version of {model.name}: {why}; there are {ids_of(model.versions)}"
    )


def ids_of(versions: Sequence[Version]) -> str:
    """The versions' ids, for people."""
    return ", ".join(one.id for one in versions) or "none"


def _names(
    records: Mapping[str, Record], kept: Mapping[str, Mapping[str, tuple[Path, Record]]]
) -> dict[str, str]:
    """First file -> name. Of two models of one name the newest has it, the other its file's."""
    claims = {file: (1, record.verified_at, record.name) for file, record in records.items()}
    for file, versions in kept.items():
        newest = max((one for _, one in versions.values()), key=lambda one: one.verified_at)
        claims.setdefault(file, (0, newest.verified_at, newest.name))
    names: dict[str, str] = {}
    for file in sorted(claims, key=lambda file: (claims[file], file), reverse=True):
        name = claims[file][-1]
        names[file] = file if name in names.values() else name
    return names


def _version(version: str, added_at: str, directory: Path, record: Record) -> Version:
    return Version(
        id=version,
        digest=record.digest or "",
        revision=record.revision,
        source=record.source,
        size_bytes=record.size_bytes,
        added_at=added_at,
        files=record.files,
        directory=directory,
        verified=record.verified,
        damaged=not is_whole(record, directory),
    )
