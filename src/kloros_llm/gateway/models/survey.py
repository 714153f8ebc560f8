"""All names that there are, and what each stands for: one look at everything, not asynchronous.

Where two say something of one name, gateway.toml's personas win over its models and their aliases,
and these over what clients made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ...core.model_files import record_path
from ...core.model_versions import records_in_force
from ..config import Config, Model, PersonaSettings
from ..ollama_api.model_names import display_name, name_key
from .capabilities import capabilities_of
from .layers import (
    ADAPTER,
    MODEL,
    PROJECTOR,
    SYSTEM,
    TEMPLATE,
    Changes,
    Layer,
    config_layer,
    from_parent,
    licenses_of,
    manifest_of,
    messages_of,
    overlay,
    parameters_of,
    text_of,
)
from .model_facts import ModelFacts, file_layer, read_facts
from .personas import Created, Origin, Persona
from .pulled_models import router_id, routers_of

_LOG = logging.getLogger(__name__)
_FILES: Final = (MODEL, PROJECTOR)


@dataclass(frozen=True)
class Entry:
    """One name. `instances` serve it, on whatever listener, in order of preference."""

    key: str
    persona: Persona
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What a look at everything has found. `entries` and `models` are by key.

    `models` holds all that are installed, also those that no client sees, and `bare` what they
    are without a persona; `created` what clients made; `digests` are the contents that need no
    upload, and `files` those of them that are the models' files; `configured` are the keys of
    gateway.toml's names; `pulled` are the models that routers find in their folders, by the ids
    that they have there.
    """

    entries: Mapping[str, Entry]
    models: Mapping[str, Model]
    facts: Mapping[Path, ModelFacts]
    created: Mapping[str, Created]
    digests: frozenset[str]
    files: Mapping[str, Path]
    bare: Mapping[str, Entry]
    configured: frozenset[str]
    pulled: Mapping[str, Model]


EMPTY: Final = Survey({}, {}, {}, {}, frozenset(), {}, {}, frozenset(), {})


def made_from(entry: Entry, name: str, *, owned: bool) -> Created:
    """A client's name that means the same as `entry` does now."""
    persona = entry.persona
    return Created(
        name=name,
        model=persona.model.name,
        layers=persona.layers,
        modified_at=datetime.now(UTC),
        owned=owned,
        requires=persona.requires,
        adapters=persona.adapters,
        instances=None if entry.instances == persona.model.instances else entry.instances,
    )


class FactsCache:
    """Headers are read again only where a file, or the record of it, has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, Path | None], tuple[object, ModelFacts]] = {}

    def of(self, model: Model) -> ModelFacts:
        """The facts, read now where they are not known."""
        key = (model.path, model.mmproj)
        stamp = tuple(map(stamp_of, (model.path, model.mmproj, record_path(model.path))))
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            facts = read_facts(model)
            if facts.problem:
                _LOG.warning("model %s: %s", model.name, facts.problem)
            known = self._known[key] = (stamp, facts)
        return known[1]

    def keep_only(self, models: Iterable[Model]) -> None:
        """Forget the others."""
        kept = {(model.path, model.mmproj) for model in models}
        self._known = {key: known for key, known in self._known.items() if key in kept}


def stamp_of(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    if path is None:
        return None
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ino


def look(
    config: Config,
    created: Mapping[str, Created],
    cache: FactsCache,
    withdrawn: Collection[Path] = (),
) -> Survey:
    """Survey everything. Of what clients pulled, no router serves the models `withdrawn`."""
    return _Surveyor(config, created, cache, withdrawn).survey()


class _Surveyor:
    def __init__(
        self,
        config: Config,
        created: Mapping[str, Created],
        cache: FactsCache,
        withdrawn: Collection[Path],
    ) -> None:
        self._config = config
        self._created = created
        stored = list(_stored_models(config))
        models = [*config.models.values(), *stored]
        self._facts = {model.path: cache.of(model) for model in models}
        cache.keep_only(models)
        stored = [one if one.path in withdrawn else self._routed(one) for one in stored]
        self._pulled = {one.router_id: one for one in stored if one.router_id}
        self._models = _by_key([*config.models.values(), *stored])
        self._settings = {
            key: settings
            for settings in config.personas.values()
            if (key := _key(settings.name)) is not None
        }
        self._entries: dict[str, Entry] = {}

    def survey(self) -> Survey:
        for key in self._settings:
            self._configured(key, ())
        for model in self._config.models.values():
            for name in (model.name, *model.aliases):
                self._add_model(name, model)
        configured = frozenset(self._entries)
        for key, created in self._created.items():
            if key not in self._entries:
                self._add_created(key, created)
        layers = [layer for entry in self._entries.values() for layer in entry.persona.layers]
        files = {
            layer.digest: path
            for facts in self._facts.values()
            for layer, path in zip(facts.layers, facts.paths, strict=True)
        }
        digests = frozenset(layer.digest for layer in layers) | files.keys()
        bare = {key: self._bare(key, model) for key, model in self._models.items()}
        return Survey(
            self._entries,
            self._models,
            self._facts,
            self._created,
            digests,
            files,
            bare,
            configured,
            self._pulled,
        )

    def _routed(self, model: Model) -> Model:
        """The model as the routers serve it that look for what clients brought, if any do."""
        facts, routers = self._facts[model.path], routers_of(self._config)
        if facts.problem or not routers:
            return model
        return replace(model, instances=routers, router_id=router_id(model, facts))

    def _add_model(self, name: str, model: Model) -> None:
        key = _key(name)
        if key is None or key in self._entries:
            return
        own = self._entries.get(_key(model.name) or "")
        if own and own.persona.model.path == model.path:
            # An alias means what the model's own name means, a persona of that name included.
            persona = replace(own.persona, name=display_name(name))
            self._entries[key] = Entry(key, persona, own.instances)
            return
        self._entries[key] = self._bare(key, model, name)

    def _bare(self, key: str, model: Model, name: str = "") -> Entry:
        """A model with nothing said of it."""
        layers = self._facts[model.path].layers
        persona = self._persona(name or model.name, model, layers, "model")
        return Entry(key, persona, model.instances)

    def _configured(self, key: str, above: tuple[str, ...]) -> Entry | None:
        """The entry of a persona of gateway.toml; `above` are those that are made from it."""
        if key in self._entries:
            return self._entries[key]
        settings = self._settings[key]
        from_key = _key(settings.from_) or ""
        if from_key in above:
            _LOG.warning("persona %s is made from itself", settings.name)
            return None
        base: Entry | None = None
        # A persona may have its model's name: then that name means the model with the persona.
        if from_key != key and from_key in self._settings:
            base = self._configured(from_key, (*above, key))
        elif from_key in self._models:
            base = self._bare(from_key, self._models[from_key])
        if base is None:
            _LOG.warning("persona %s: there is no %s", settings.name, settings.from_)
            return None
        layers = base.persona.layers
        if from_key != key:
            layers = from_parent(layers, display_name(settings.from_))
        layers += tuple(file_layer(ADAPTER, path) for path in settings.adapters)
        persona = self._persona(
            settings.name,
            base.persona.model,
            overlay(layers, _changes(settings)),
            "config",
            adapters=(*base.persona.adapters, *settings.adapters),
        )
        chosen = base.instances if settings.instances is None else settings.instances
        entry = self._entries[key] = Entry(key, persona, chosen)
        return entry

    def _add_created(self, key: str, created: Created) -> None:
        model = self._models.get(_key(created.model) or "")
        if model is None:
            _LOG.warning("%s: its model %s is not installed", created.name, created.model)
            return
        persona = self._persona(
            created.name,
            model,
            _with_files(created.layers, self._facts[model.path]),
            "created",
            adapters=created.adapters,
            modified_at=created.modified_at,
            requires=created.requires,
        )
        chosen = model.instances
        if created.instances is not None:
            # The inventory may have lost those that served it when it was made. Adapters are
            # loaded by these alone.
            left = tuple(one for one in created.instances if one in self._config.instances)
            chosen = left or (() if created.adapters else model.instances)
        self._entries[key] = Entry(key, persona, chosen)

    def _persona(
        self,
        name: str,
        model: Model,
        layers: Sequence[Layer],
        origin: Origin,
        *,
        adapters: tuple[Path, ...] = (),
        modified_at: datetime | None = None,
        requires: str = "",
    ) -> Persona:
        facts = self._facts[model.path]
        config = config_layer(
            facts.family, facts.parameter_size, facts.quantization_level, requires
        )
        manifest = manifest_of(config, layers)
        template = text_of(layers, TEMPLATE)
        return Persona(
            name=display_name(name),
            model=model,
            system=text_of(layers, SYSTEM) or "",
            template=template,
            parameters=parameters_of(layers),
            messages=messages_of(layers),
            license=licenses_of(layers),
            parent=next((layer.parent for layer in layers if layer.media_type == MODEL), ""),
            digest=manifest.digest,
            modified_at=modified_at or datetime.fromtimestamp(facts.modified_ns / 1e9, UTC),
            origin=origin,
            adapters=adapters,
            layers=tuple(layers),
            size_bytes=manifest.size_bytes,
            requires=requires,
            capabilities=capabilities_of(facts, template),
        )


def _stored_models(config: Config) -> Iterator[Model]:
    """The models of the store that gateway.toml does not know."""
    known = {os.path.realpath(model.path) for model in config.models.values()}
    try:
        records = records_in_force(config.models_dir)
    except OSError as error:
        _LOG.warning("the models' directory: %s", error)
        return
    for first, record in records.items():
        path = config.models_dir / first
        if os.path.realpath(path) in known:
            continue
        projector = next((file.file for file in record.files if file.role == "mmproj"), None)
        yield Model(
            name=record.name,
            path=path,
            aliases=record.aliases,
            mmproj=config.models_dir / projector if projector else None,
        )


def _by_key(models: Iterable[Model]) -> dict[str, Model]:
    """Own names before aliases, gateway.toml's models before others."""
    models = list(models)
    found: dict[str, Model] = {}
    for names in ([(model.name,) for model in models], [model.aliases for model in models]):
        for model, texts in zip(models, names, strict=True):
            for text in texts:
                key = _key(text)
                if key is not None:
                    found.setdefault(key, model)
    return found


def _key(name: str) -> str | None:
    key = name_key(name)
    if key is None:
        _LOG.warning("%r is no name that clients could use", name)
    return key


def _changes(settings: PersonaSettings) -> Changes:
    return Changes(
        template=settings.template or "",
        system=settings.system or "",
        license=settings.license,
        parameters=settings.parameters,
        messages=settings.messages,
    )


def _with_files(layers: Iterable[Layer], facts: ModelFacts) -> tuple[Layer, ...]:
    """The layers with those of the model's files as they are now."""
    result: list[Layer] = []
    for kind in layers:
        if kind.media_type not in _FILES:
            result.append(kind)
        elif all(one.media_type != kind.media_type for one in result):
            files = (one for one in facts.layers if one.media_type == kind.media_type)
            result += [replace(one, parent=kind.parent) for one in files]
    return tuple(result)
