"""What each listener lists and serves, answered from memory.

A listener lists what its instances serve, and beside it what clients made that nobody serves
there. A model of gateway.toml that nobody serves is only installed: clients take the first
preferred name that is listed, so no port may list what it cannot serve. It can still be named in
FROM.

What clients brought is served by the routers that look for it (Instance.pulled_models_dir): their
folders follow what a look has found, and then they are asked to look anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ...core.model_files import record_path
from ...modelctl.host_plan import DEFAULT_PLAN
from ..config import Config, Listener, Model
from ..errors import ApiError
from ..go_text import quote
from ..ollama_api.json_text import compact
from ..ollama_api.model_names import INVALID_NAME, name_key
from .blobs import BlobStore, not_written
from .model_facts import ModelFacts
from .personas import Created, Persona, PersonaStore
from .pull_sources import PullSources
from .pulled_models import folders_of, keep_folder, links_of
from .pulls import Line, Pulled, Pulls
from .survey import EMPTY, Entry, FactsCache, Survey, look, made_from, stamp_of

POLL_S: Final = 2.0
# How the routes word a name that is not there.
NOT_FOUND: Final = "model '{name}' not found"
NOT_FOUND_TRY_PULLING: Final = "model {quoted} not found, try pulling it first"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A name on a listener. `instances` are in order of preference, those of the listener only."""

    persona: Persona
    instances: tuple[str, ...]


@dataclass(frozen=True)
class _View:
    """What a listener shows; `listed` is newest first."""

    by_key: Mapping[str, Served]
    listed: tuple[Served, ...]
    tags: bytes


@dataclass(frozen=True)
class _State:
    survey: Survey
    views: Mapping[Listener, _View]


class Catalogue:
    """Start it before the first request. All that reads files runs in worker threads."""

    def __init__(
        self, config: Config, *, plan: Path = DEFAULT_PLAN, poll_s: float = POLL_S
    ) -> None:
        self._config = config
        self.blobs = BlobStore(config.state_dir / "blobs")
        self.changing = asyncio.Lock()
        """Held while created names are changed; never while a client is written to."""
        self._sources = PullSources(config, plan)
        self.fetching = self._sources.settings
        self._pulls = Pulls(self._sources, self._take_pulled)
        self._store = PersonaStore(config.state_dir / "personas")
        self._cache = FactsCache()
        self.have_read: Callable[[frozenset[Path]], Awaitable[None]] = _nobody_reads
        """Called with routers' folders that have changed: has the routers read them."""
        self._withdrawn: set[Path] = set()
        self._folder_problems: dict[Path, str] = {}
        self._looking = asyncio.Lock()
        self._poll_s = poll_s
        self._stamp: object = None
        self._watcher: asyncio.Task[None] | None = None
        self._state = _state(config, EMPTY)

    @property
    def config(self) -> Config:
        """What gateway.toml says. Its models and personas may change; `refresh` heeds them."""
        return self._config

    @config.setter
    def config(self, config: Config) -> None:
        self._config = self._sources.config = config

    async def start(self) -> None:
        """Look at everything, then watch for changes. Raises OSError for an unusable state_dir."""
        await asyncio.to_thread(self.blobs.prepare)
        await self.refresh()
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Watch no longer, and end the pulls that are under way."""
        await self._pulls.close()
        if self._watcher:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None

    async def refresh(self) -> None:
        """Look at everything again; what has not changed is not read again.

        It is done to the end though the caller is cancelled, as where a client goes away: its
        thread goes on in any case, and routers must hear of what that changes.
        """
        await asyncio.shield(self._refresh())

    async def _refresh(self) -> None:
        async with self._looking:
            self._state, self._stamp, changed = await asyncio.to_thread(self._look)
            if changed:
                # Within: who finds nothing changed may rely on it that routers know it all.
                await self.have_read(changed)

    def _look(self) -> tuple[_State, object, frozenset[Path]]:
        stamp = self._current_stamp()
        survey = look(self.config, self._store.load(), self._cache, self._withdrawn)
        changed = self._keep_folders(survey)
        # What could not be written is tried again at the next round.
        return _state(self.config, survey), None if self._folder_problems else stamp, changed

    def _keep_folders(self, survey: Survey) -> frozenset[Path]:
        """Those of the routers' folders that the look has changed."""
        wanted = {name: links_of(survey.facts[one.path]) for name, one in survey.pulled.items()}
        changed, problems = set(), {}
        for folder in folders_of(self.config):
            try:
                if keep_folder(folder, wanted):
                    changed.add(folder)
            except OSError as error:
                problems[folder] = f"{folder}: no links to pulled models for routers: {error}"
                if problems[folder] != self._folder_problems.get(folder):
                    _LOG.error("%s", problems[folder])
        self._folder_problems = problems
        return frozenset(changed)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                if await asyncio.to_thread(self._current_stamp) != self._stamp:
                    await self.refresh()
                await asyncio.to_thread(self.blobs.forget_old)
            except Exception:
                # What is known stays in force; the next round may succeed.
                _LOG.exception("the models could not be looked at")

    def _current_stamp(self) -> object:
        """Changes with any file that a survey reads. A renamed file changes its directory."""
        paths: list[Path | None] = [self.config.models_dir, self._store.directory]
        for model in self.config.models.values():
            paths += (model.path, model.mmproj, record_path(model.path))
        return tuple(map(stamp_of, paths))

    # What clients ask

    def tags(self, listener: Listener) -> tuple[Served, ...]:
        """Everything that the listener lists, newest first."""
        return self._state.views[listener].listed

    def tags_json(self, listener: Listener) -> bytes:
        """The answer of /api/tags."""
        return self._state.views[listener].tags

    def find(self, listener: Listener, name: str, missing: str = NOT_FOUND) -> Served:
        """What a name means for a generation on this listener.

        Raises ApiError: 400 for an invalid name, or one that no instance serves, 404 with the
        wording `missing` for one that is not there.
        """
        served = self.named(listener, name, missing)
        if not served.instances:
            raise ApiError(
                400,
                f"model '{name}' is installed, but no instance serves it: name it in the "
                "inventory (gguf_models), give it to an instance or a router of llama_instances, "
                "and run the playbook",
            )
        return served

    def named(self, listener: Listener, name: str, missing: str = NOT_FOUND) -> Served:
        """As `find`, and what is listed without being served as well."""
        key = name_key(name)
        if key is None and name:
            raise ApiError(400, INVALID_NAME)
        served = self._state.views[listener].by_key.get(key or "")
        if served is None:
            raise ApiError(404, missing.format(name=name, quoted=quote(name)))
        return served

    def facts(self, model: Model) -> ModelFacts:
        """What its files say; empty where they cannot be read."""
        return self._state.survey.facts.get(model.path) or ModelFacts()

    # What changes of names need

    def base(self, name: str) -> Entry | None:
        """What FROM may name: all that is known, on whatever listener, and what is installed."""
        key = name_key(name) or ""
        survey = self._state.survey
        return survey.entries.get(key) or survey.bare.get(key)

    def in_memory(self, engine_name: str) -> Entry | None:
        """What is meant by the name that an engine has for a model."""
        survey = self._state.survey
        pulled = survey.pulled.get(engine_name)
        if pulled is None:
            return self.base(engine_name)
        # Its own name may be gone, or mean another model by now.
        key = name_key(pulled.name) or ""
        entries = survey.entries
        for entry in (entries.get(key), *entries.values(), survey.bare.get(key)):
            if entry and entry.persona.model.path == pulled.path:
                return entry
        return None

    def bare(self, name: str) -> Entry | None:
        """An installed model by its name, whatever a persona of that name says."""
        return self._state.survey.bare.get(name_key(name) or "")

    def installed(self, name: str) -> Model | None:
        """The model of this name or alias, whoever serves it."""
        return self._state.survey.models.get(name_key(name) or "")

    @property
    def configured_keys(self) -> frozenset[str]:
        """The keys of the names that gateway.toml gives."""
        return self._state.survey.configured

    def is_configured(self, model: Model) -> bool:
        """Whether gateway.toml names the model."""
        return any(one.path == model.path for one in self.config.models.values())

    def instances_of(self, name: str) -> tuple[str, ...]:
        """Those that serve a name, whatever the listener."""
        entry = self.base(name)
        return entry.instances if entry else ()

    def created(self, name: str) -> Created | None:
        """What a client made under this name."""
        return self._state.survey.created.get(name_key(name) or "")

    def others_of(self, model: Model, name: str) -> list[str]:
        """The names other than `name` that mean a model or are made from it."""
        key = name_key(name)
        return [
            entry.persona.name
            for entry in self._state.survey.entries.values()
            if entry.persona.model.path == model.path and entry.key != key
        ]

    def has_content(self, digest: str) -> bool:
        """Whether a digest ("sha256:…") is that of a layer of a name or of an installed model."""
        return digest in self._state.survey.digests

    def file_with(self, digest: str) -> Path | None:
        """Where an installed model has a file of this digest."""
        return self._state.survey.files.get(digest)

    def model_with(self, digest: str) -> Model | None:
        """The installed model whose first file has this digest."""
        survey = self._state.survey
        for model in survey.models.values():
            layers = survey.facts[model.path].layers
            if layers and layers[0].digest == digest:
                return model
        return None

    @asynccontextmanager
    async def withdrawn(self, model: Model) -> AsyncIterator[None]:
        """No router serves it meanwhile, as far as it comes by this API, nor has its files open.
        Where the block fails all is as before. Call it with `changing` held.
        """
        self._withdrawn.add(model.path)
        try:
            await self.refresh()
            yield
        except BaseException:
            self._withdrawn.discard(model.path)
            await self.refresh()
            raise
        self._withdrawn.discard(model.path)

    async def save(self, created: Created) -> None:
        """Make the name mean this. Call it with `changing` held. Raises ApiError."""
        key = name_key(created.name)
        if key is None:
            raise ApiError(400, INVALID_NAME)
        await self._change(self._store.save, key, created)

    async def forget(self, name: str) -> None:
        """Forget a created name. Call it with `changing` held. Raises ApiError."""
        await self._change(self._store.remove, name_key(name) or "")

    async def _change(self, change: Callable[..., None], *arguments: object) -> None:
        try:
            await asyncio.to_thread(change, *arguments)
        except OSError as error:
            raise not_written(error) from error
        await self.refresh()

    async def pull(self, name: str) -> AsyncGenerator[Line]:
        """Have a model here, line by line as Ollama tells it. Raises ApiError."""
        hub = name.startswith("hf://")
        key = name if hub else name_key(name)
        if key is None:
            raise ApiError(400, INVALID_NAME)
        created = self.created(name)
        known = self.installed(name) if created is None or key in self.configured_keys else None
        async with aclosing(self._pulls.lines(key, name, known)) as lines:
            async for line in lines:
                yield line

    async def _take_pulled(self, pulled: Pulled) -> None:
        """Let clients see what they have pulled."""
        async with self.changing:
            await self.refresh()
            name = pulled.wanted.name
            entry = self.bare(pulled.outcome.after.name)
            if entry is None or name_key(name) in self.configured_keys:
                return
            before = self.created(name)
            owned = pulled.by_clients or bool(before and before.owned)
            await self.save(made_from(entry, name, owned=owned))


async def _nobody_reads(_: frozenset[Path]) -> None:
    """Routers that start later read the folders then."""


def _state(config: Config, survey: Survey) -> _State:
    views = {listener: _view(listener, survey) for listener in config.listeners}
    return _State(survey, views)


def _view(listener: Listener, survey: Survey) -> _View:
    by_key: dict[str, Served] = {}
    for entry in survey.entries.values():
        here = tuple(
            name
            for name in entry.instances
            if listener.instances is None or name in listener.instances
        )
        brought = entry.persona.model.router_id or not entry.instances
        if here or (entry.persona.origin == "created" and brought):
            by_key[entry.key] = Served(entry.persona, here)
    listed = sorted(by_key.values(), key=lambda one: one.persona.modified_at, reverse=True)
    models = [_tag(one.persona, survey.facts[one.persona.model.path]) for one in listed]
    return _View(by_key, tuple(listed), compact({"models": models}).encode())


def _tag(persona: Persona, facts: ModelFacts) -> dict[str, Any]:
    lengths = {
        "context_length": facts.context_length,
        "embedding_length": facts.embedding_length,
    }
    tag: dict[str, Any] = {
        "name": persona.name,
        "model": persona.name,
        "modified_at": shown_time(persona.modified_at),
        "size": persona.size_bytes,
        "digest": persona.digest,
        "details": details_of(persona, facts) | {key: one for key, one in lengths.items() if one},
    }
    return tag | ({"capabilities": persona.capabilities} if persona.capabilities else {})


def details_of(persona: Persona, facts: ModelFacts) -> dict[str, Any]:
    """The `details` of show and ps."""
    return {
        "parent_model": persona.parent,
        "format": "gguf",
        "family": facts.family,
        "families": facts.families or None,
        "parameter_size": facts.parameter_size,
        "quantization_level": facts.quantization_level,
    }


def shown_time(moment: datetime) -> str:
    """As Go's RFC3339Nano: in UTC, without zeros at the end."""
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment.microsecond:06d}".rstrip("0").rstrip(".") + "Z"
