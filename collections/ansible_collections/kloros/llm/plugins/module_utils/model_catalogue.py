"""The catalogue of models: names, aliases, versions, which one is in force, and the way back.

What there is follows from the records; see `model_versions`. `catalogue.json` in the models'
directory is first written by something that changes what no record holds.

Locks: an update's own, a model's (`<first file>.lock`), then the catalogue's, which is only held
for a moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .file_lock import file_lock
from .model_files import (
    VERSION_DIGITS,
    Record,
    WantedFile,
    read_record,
    record_path,
    write_record,
)
from .model_placement import (
    VERSIONS_DIR,
    finish,
    forget_version,
    is_intact,
    is_whole,
    keep_version,
    make_directory,
    put_version_in_force,
    remove_if_empty,
    remove_tree,
    version_directory,
    versions_there,
)
from .model_source import check_file_name, parse_source, shard_of
from .model_store import (
    AnswerError,
    FetchRequest,
    FetchSettings,
    ModelStore,
    NewestFile,
    Outcome,
    clear_dropped,
    now_text,
)
from .model_upkeep import (
    Garbage,
    GarbageItem,
    Prover,
    Verified,
    freed_bytes,
    is_busy,
    is_needed,
    left_behind,
    mark,
    no_longer_belonging,
    sidecars,
    verdict,
    version_files,
)
from .model_users import User, Users, describe
from .model_versions import (
    CATALOGUE_FILE,
    Activation,
    Alias,
    CatalogueError,
    Found,
    InUseError,
    Model,
    Stored,
    Survey,
    UnknownNameError,
    Version,
    ids_of,
    pick,
    records_in_force,
    stored_from,
)
from .progress import ProgressFile
from .store_files import (
    beside,
    keep_attributes,
    read_json,
    share,
    sync_directory,
    write_json,
)

_OF_THE_INVENTORY = "comes from the inventory (gguf_models)"

__all__ = [
    "Activation",
    "Alias",
    "Catalogue",
    "CatalogueError",
    "Found",
    "Garbage",
    "GarbageItem",
    "InUseError",
    "Model",
    "Removal",
    "Switch",
    "UnknownNameError",
    "Updated",
    "Verified",
    "Version",
]


@dataclass(frozen=True)
class Switch:
    """A name means another version now. `users` have the old one open or name its path."""

    name: str
    before: str | None
    after: str
    path: Path
    changed: bool
    users: tuple[User, ...] = ()


@dataclass(frozen=True)
class Updated:
    """`version` is the newest one; `fetched` says that it had to be got. `detail` says why not."""

    name: str
    fetched: bool
    version: str
    detail: str
    outcome: Outcome | None = None
    switch: Switch | None = None


@dataclass(frozen=True)
class Removal:
    """What was removed, or would be. Bytes that other names still hold are not freed."""

    name: str
    paths: tuple[Path, ...]
    freed_bytes: int

    @property
    def changed(self) -> bool:
        return bool(self.paths)


def _say_nothing(_: str) -> None:
    """Nobody wants to know that one waits."""


class Catalogue:
    """The models in `directory`. `users` tells what must not go away.

    `on_wait` is called with a reason before waiting for another process.
    """

    def __init__(
        self,
        directory: Path,
        users: Users | None = None,
        on_wait: Callable[[str], None] = _say_nothing,
    ) -> None:
        self.directory = directory
        self._users = users or Users()
        self._on_wait = on_wait
        self._path = directory / CATALOGUE_FILE

    # Looking

    def models(self) -> list[Model]:
        """All models, by name."""
        return sorted(self._survey().models.values(), key=lambda model: model.name)

    def aliases(self) -> list[Alias]:
        """All aliases, those that records hold included, by name."""
        return self._survey().aliases

    def unrecorded(self) -> list[Path]:
        """Files called `*.gguf` that belong to no model."""
        known = {path for model in self.models() for one in model.versions for path in one.paths}
        there = self.directory.glob("*.gguf")
        return sorted(path for path in there if path not in known and path.is_file())

    def find(self, text: str) -> Found:
        """What `NAME`, an alias, a file name or any of them with `@VERSION` means.

        Raises CatalogueError, which names what is similar.
        """
        return self._survey().find(text)

    def owner(self, text: str) -> Model:
        """The model that a name, an alias or a file name belongs to, in force or not."""
        return self._survey().owner(text)[0]

    # Aliases

    def set_alias(self, alias: str, target: str) -> Alias:
        """Let `alias` mean `NAME` (and follow it) or `NAME@VERSION`."""
        if not alias or alias != alias.strip() or "@" in alias or not alias.isprintable():
            raise CatalogueError(
                f"'{alias}' cannot be an alias; needed: printable text without '@' and without "
                "blanks around it"
            )
        model, _, wanted = self._survey().owner(target)
        if wanted:
            self._keep(model, pick(model, wanted))
        with self._changing() as (stored, survey):
            if any(alias in (model.name, model.file) for model in survey.models.values()):
                raise CatalogueError(f"'{alias}' is a model's own name; choose another alias")
            if survey.alias(alias) and alias not in stored.aliases:
                raise CatalogueError(f"'{alias}' {_OF_THE_INVENTORY}; change it there")
            model, via, wanted = survey.owner(target)
            version = pick(model, wanted).id if wanted else (via.version if via else None)
            before = stored.aliases.get(alias)
            previous = before.version if before and before.model == model.file else None
            if previous == version:
                previous = before.previous if before else None
            fresh = Alias(alias, model.file, version, previous)
            stored.aliases[alias] = fresh
            return replace(fresh, model=model.name)

    def _keep(self, model: Model, version: Version) -> None:
        """Have a version at a path of its own, also while it is in force."""
        with self._model_lock(model.file):
            record = read_record(model.path)
            if record and record.version == version.id:
                keep_version(self.directory, record, self.directory)

    def remove_alias(self, alias: str) -> Alias:
        """Forget an alias that was set here; those in records belong to the inventory."""
        with self._changing() as (stored, survey):
            shown = survey.alias(alias)
            if shown is None:
                known = ", ".join(one.alias for one in survey.aliases) or "none"
                raise UnknownNameError(f"'{alias}' is no alias; there are {known}")
            if alias not in stored.aliases:
                raise CatalogueError(f"'{alias}' {_OF_THE_INVENTORY}; remove it there")
            del stored.aliases[alias]
            return shown

    # Versions

    def promote(self, name: str, version: str) -> Switch:
        """Let `name` mean `version` (its id or the beginning of it).

        For a model, or an alias that follows it, the version comes into force: its files take the
        place of the ones that servers open. Running servers keep the old ones until they are
        restarted: see `users`. For an alias with a version of its own only the alias changes.
        """
        model, alias, _ = self._survey().owner(name)
        target = pick(model, version)
        if alias and alias.version:
            return self._switch_alias(alias, model, target)
        return self._put_in_force(model, target.id)

    def rollback(self, name: str) -> Switch:
        """Let `name` mean what it meant before."""
        model, alias, _ = self._survey().owner(name)
        if alias and alias.version:
            target = model.version(alias.previous)
            if target is None:
                raise UnknownNameError(f"alias {alias.alias} has no earlier version to go back to")
            return self._switch_alias(alias, model, target)
        if model.previous is None:
            raise UnknownNameError(
                f"{model.name} has no earlier version to go back to; kept are "
                f"{ids_of(model.versions)}"
            )
        return self._put_in_force(model, model.previous, back=True)

    def _switch_alias(self, alias: Alias, model: Model, target: Version) -> Switch:
        old = model.version(alias.version)
        path = target.directory / model.file
        if target.id == alias.version:
            return Switch(alias.alias, alias.version, target.id, path, changed=False)
        with self._changing() as (stored, _):
            stored.aliases[alias.alias] = Alias(alias.alias, model.file, target.id, alias.version)
        users = self._users.of(old.paths) if old else []
        return Switch(alias.alias, alias.version, target.id, path, True, tuple(users))

    def _put_in_force(self, model: Model, version: str, *, back: bool = False) -> Switch:
        with self._model_lock(model.file):
            current = read_record(model.path)
            before = current.version if current else None
            users: list[User] = []
            changed = before != version or not (current and is_whole(current, self.directory))
            if changed:
                users = self._users.of(current.paths(self.directory) if current else [model.path])
                self._swap(model, current, version)
            with self._changing() as (stored, _):
                entry = stored.entries[model.file]
                if back:
                    entry.roll_back(version)
                elif changed and before != version:
                    # Its own record tells when its bytes were read, not that it is in force now.
                    entry.history[-1] = Activation(version, now_text())
            return Switch(model.name, before, version, model.path, changed, tuple(users))

    def _swap(self, model: Model, current: Record | None, version: str) -> None:
        origin = version_directory(self.directory, version)
        target = read_record(origin / model.file)
        if target is None or not is_whole(target, origin):
            raise CatalogueError(
                f"version {version} of {model.name} is not whole in {origin}; verify it, and fetch "
                "it anew with an update"
            )
        if current:
            keep_version(self.directory, current, self.directory)
            former = {file.file for file in current.files} | set(current.dropped)
            former -= {file.file for file in target.files}
            target = replace(
                target, name=current.name, aliases=current.aliases, dropped=tuple(sorted(former))
            )
        put_version_in_force(self.directory, target, origin)
        clear_dropped(self.directory, target, self._users)

    def update(
        self, name: str, store: ModelStore, settings: FetchSettings, *, promote: bool = False
    ) -> Updated:
        """Fetch what the model's source names now, beside the version in force.

        Raises StoreError and HttpError. What an interrupted update has got is used by the next.
        """
        model, _, _ = self._survey().owner(name)
        incoming = version_directory(self.directory, f".new-{_short(model.file)}")
        with file_lock(
            beside(model.path, ".update.lock"), self._waiting(f"{model.name} is being updated")
        ):
            try:
                updated = self._update_alone(model, incoming, store, settings)
                remove_tree(incoming)
            finally:
                remove_if_empty(incoming)
        if promote and updated.version != model.active:
            return replace(updated, switch=self._put_in_force(model, updated.version))
        return updated

    def _update_alone(
        self, model: Model, incoming: Path, store: ModelStore, settings: FetchSettings
    ) -> Updated:
        record = read_record(model.path)
        if record is None:
            raise UnknownNameError(f"no version of {model.name} is in force; fetch the model")
        check = store.check_update(record, settings)
        if check.available is None and not check.newest:
            raise AnswerError(f"model {model.name}: {check.detail}")
        if not check.available:
            return Updated(model.name, False, record.version or "", check.detail)
        version = _kept_already(model, record, check.newest)
        if version:
            return Updated(model.name, False, version, "the newest version is kept already")
        request = self._seed(model, record, check.newest, incoming, settings)
        outcome = store.fetch(request)
        # Before the new version is there: it has never been in force.
        self.refresh()
        kept = keep_version(self.directory, outcome.after, incoming)
        if kept is None:
            raise CatalogueError(
                f"what was fetched of {model.name} into {incoming} changed meanwhile; try again"
            )
        with self._changing() as (stored, _):
            stored.entries[model.file].added[kept.name] = now_text()
        return Updated(model.name, True, kept.name, check.detail, outcome)

    def _seed(
        self,
        model: Model,
        record: Record,
        newest: Sequence[NewestFile],
        incoming: Path,
        settings: FetchSettings,
    ) -> FetchRequest:
        """Share what has not changed with `incoming`; what is to be fetched there."""
        make_directory(self.directory, incoming)
        with file_lock(beside(incoming / model.file, ".lock")):
            finish(incoming / model.file)
        if read_record(incoming / model.file) is None:
            for file, one in zip(record.files, newest, strict=True):
                path = self.directory / file.file
                if one.sha256 == file.sha256 and is_intact(file, path):
                    (incoming / file.file).unlink(missing_ok=True)
                    share(path, incoming / file.file)
            # It spares reading what is shared.
            write_record(incoming, record)
        wanted = tuple(
            WantedFile(parse_source(file.source), file.file, file.role) for file in record.files
        )
        return FetchRequest(
            record.name,
            incoming,
            wanted,
            settings,
            record.aliases,
            latest=True,
            attributes_of=model.path,
        )

    # Removing

    def remove(self, name: str, *, dry_run: bool = False) -> Removal:
        """Remove a model with all its versions and aliases; or the version of NAME@VERSION.

        Raises InUseError where something uses what would go, CatalogueError for an alias: a whole
        model does not go by a name that was only lent to it.
        """
        try:
            model, alias, version = self._survey().owner(name)
        except UnknownNameError:
            if "/" in name or not (self.directory / name).is_file():
                raise
            return self.remove_files(name, dry_run=dry_run)
        if version:
            return self.remove_version(model.name, version, dry_run=dry_run)
        if alias:
            raise CatalogueError(
                f"'{name}' is an alias of {model.name}: remove the model by its own name, or the "
                f"alias alone (modelctl alias --remove {name})"
            )
        return self.remove_files(model.file, dry_run=dry_run)

    def remove_files(
        self, first: str, further: Iterable[str] = (), *, dry_run: bool = False
    ) -> Removal:
        """Remove the model whose first file is called `first`, whatever is there of it.

        `further` are names of files that belong to it besides those that its record lists. Nothing
        is removed where nothing is there.
        """
        names = [check_file_name(name) for name in (first, *further)]
        if not self.directory.is_dir():
            return Removal(first, (), 0)
        if dry_run:
            return self._doomed(first, names)
        with self._model_lock(first):
            removal = self._doomed(first, names)
            for path in removal.paths:
                path.unlink(missing_ok=True)
            sync_directory(self.directory)
            versions = self.directory / VERSIONS_DIR
            for place in [*versions.glob("*"), versions / "any"]:
                remove_if_empty(place)
            if self._path.exists():
                with self._changing() as (stored, _):
                    stored.entries.pop(first, None)
                    for alias in [one for one in stored.aliases.values() if one.model == first]:
                        del stored.aliases[alias.alias]
        return removal

    def _doomed(self, first: str, names: Sequence[str]) -> Removal:
        """All that goes with a model, its record last: until then it is known what there is."""
        record = read_record(self.directory / first)
        files = self._files_of(first, record, names)
        kept = [
            (place, one) for place, one in versions_there(self.directory) if one.first.file == first
        ]
        versions = [path for place, one in kept for path in one.paths(place)]
        there = [path for path in (*versions, *files) if path.is_file()]
        name = record.name if record else first
        users = self._users.of(there)
        if users:
            raise InUseError(
                f"model {name} is in use by {describe(users)}; nothing was removed. Point them at "
                "another model or stop them first",
                users,
            )
        notes = [record_path(place / first) for place, _ in kept]
        notes += [path for file in files for path in sidecars(file)]
        notes.append(record_path(self.directory / first))
        doomed = [*there, *(path for path in dict.fromkeys(notes) if path.is_file())]
        return Removal(name, tuple(doomed), freed_bytes(doomed))

    def _files_of(self, first: str, record: Record | None, names: Sequence[str]) -> list[Path]:
        """The files of a model in the directory; the first one last. None is another model's."""
        known = list(names)
        if record:
            known += [file.file for file in record.files] + list(record.dropped)
        shard = shard_of(first)
        if shard and shard.number == 1:
            known += [shard.file_name(number) for number in range(1, shard.count + 1)]
        others = {
            file.file
            for other, one in records_in_force(self.directory).items()
            for file in one.files
            if other != first
        }
        wanted = [name for name in dict.fromkeys(known) if name not in others]
        wanted.sort(key=lambda name: name == first)
        return [self.directory / name for name in wanted]

    def remove_version(self, name: str, version: str, *, dry_run: bool = False) -> Removal:
        """Remove one version that is not in force and that no alias points at."""
        survey = self._survey()
        model, _, _ = survey.owner(name)
        target = pick(model, version)
        pins = [one.alias for one in survey.aliases if one.version == target.id]
        if target.id == model.active or pins:
            why = f"alias {', '.join(pins)} points at it" if pins else "it is in force"
            raise InUseError(f"version {target.id} of {model.name} stays: {why}")
        users = self._users.of(target.paths)
        if users:
            raise InUseError(
                f"version {target.id} of {model.name} is in use by {describe(users)}", users
            )
        paths = version_files(target, model.file)
        removal = Removal(f"{model.name}@{target.id}", tuple(paths), freed_bytes(paths))
        if not dry_run:
            self._forget(model.file, target.id)
        return removal

    def _forget(self, first: str, version: str) -> None:
        with self._model_lock(first):
            record = read_record(version_directory(self.directory, version) / first)
            if record:
                forget_version(self.directory, record)
            with self._changing() as (stored, _):
                entry = stored.entries.get(first)
                if entry:
                    entry.added.pop(version, None)
                    entry.history = [one for one in entry.history if one.version != version]

    # Proving and tidying

    def verify(
        self, name: str | None = None, progress: ProgressFile | None = None
    ) -> list[Verified]:
        """Read all bytes of a model, or of all, and compare; the records say so afterwards."""
        survey = self._survey()
        models = [survey.owner(name)[0]] if name is not None else self.models()
        prover = Prover(progress or ProgressFile(None, "", "bytes"))
        found = []
        for model in models:
            for version in model.versions:
                proofs = {
                    file.file: prover.prove(version.directory / file.file, model.name)
                    for file in version.files
                }
                with self._model_lock(model.file):
                    places = {version.directory, version_directory(self.directory, version.id)}
                    for place in places:
                        mark(place, version, model.file, proofs)
                found += [
                    verdict(model, version, file, proofs[file.file]) for file in version.files
                ]
        return found

    def gc(self, older_than_days: float = 7.0, *, dry_run: bool = False) -> Garbage:
        """Remove versions that nobody needs, and what interrupted work left behind long ago.

        See `is_needed` for the versions that stay; those that something uses do as well. While a
        model is being fetched, nothing is taken for left behind.
        """
        before = time.time() - older_than_days * 86400
        items = self._unneeded(before, dry_run=dry_run)
        if not is_busy(self.directory):
            if not dry_run:
                for path in self.directory.glob("*.staged"):
                    self._finish(path.name.removesuffix(".staged"))
            items += self._left_behind(before, dry_run=dry_run)
        return Garbage(tuple(items), sum(item.freed_bytes for item in items))

    def _unneeded(self, before: float, *, dry_run: bool) -> list[GarbageItem]:
        survey = self._survey()
        pinned = {version for one in survey.aliases for version in (one.version, one.previous)}
        items = []
        for model in survey.models.values():
            for version in model.versions:
                inside = version.directory != self.directory
                if not inside or version.id in pinned or is_needed(model, version, before):
                    continue
                if self._users.of(version.paths):
                    continue
                why = "damaged" if version.damaged else "no longer needed"
                freed = freed_bytes(version_files(version, model.file))
                items.append(
                    GarbageItem(version.directory, f"version of {model.name}: {why}", freed)
                )
                if not dry_run:
                    self._forget(model.file, version.id)
        return items

    def _left_behind(self, before: float, *, dry_run: bool) -> list[GarbageItem]:
        found = [*left_behind(self.directory, before)]
        found += [(path, why, [path]) for path, why in no_longer_belonging(self.directory)]
        items = []
        for path, why, files in found:
            if self._users.of(files):
                continue
            items.append(GarbageItem(path, why, freed_bytes(files)))
            if not dry_run and path.is_dir():
                remove_tree(path)
            elif not dry_run:
                path.unlink(missing_ok=True)
        if not dry_run:
            remove_if_empty(self.directory / VERSIONS_DIR / "any")
        return items

    # What is stored

    def refresh(self) -> None:
        """Write down what is in force now, so that the order of versions is known later."""
        with self._changing():
            pass

    def _survey(self) -> Survey:
        return Survey(self.directory, stored_from(read_json(self._path)))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Stored, Survey]]:
        """What is stored, completed by a survey; written back at the end where it has changed."""
        with file_lock(
            beside(self._path, ".lock"), self._waiting("the catalogue is being changed")
        ):
            data = read_json(self._path)
            stored = stored_from(data)
            yield stored, Survey(self.directory, stored)
            Survey(self.directory, stored)
            if stored.to_data() != data:
                with keep_attributes(self._path):
                    write_json(self._path, stored.to_data())

    @contextlib.contextmanager
    def _model_lock(self, first: str) -> Iterator[None]:
        """Alone with a model, what was begun with it being finished first."""
        path = self.directory / first
        with file_lock(beside(path, ".lock"), self._waiting(f"another process works on {first}")):
            finish(path)
            yield

    def _finish(self, first: str) -> None:
        with self._model_lock(first):
            pass

    def _waiting(self, reason: str) -> Callable[[], None]:
        return lambda: self._on_wait(reason)


def _kept_already(model: Model, record: Record, newest: Sequence[NewestFile]) -> str | None:
    """The version that the source names, where it is kept and whole."""
    files = [
        replace(file, sha256=one.sha256) for file, one in zip(record.files, newest, strict=True)
    ]
    version = model.version(replace(record, files=tuple(files)).version)
    return version.id if version and not version.damaged else None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_DIGITS]
