"""What a name that clients use stands for, and the store of those that clients made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from ...core.store_files import sync_directory
from ..config import Model
from ..ollama_api.model_names import name_key
from .layers import ADAPTER, MESSAGES, MODEL, PARAMS, PROJECTOR, TEXTS, Layer, text_layer

_SCHEMA: Final = 1
_LOG = logging.getLogger(__name__)

Origin = Literal["config", "created", "model"]


@dataclass(frozen=True)
class Persona:
    """A model with what a Modelfile says of it. `name` is shown as Ollama shows it, with a tag.

    `digest` is 64 hexadecimal digits; `origin` tells whether gateway.toml, a client (`create`,
    `copy`, `pull`) or nobody but the model itself made it. `layers` are what `digest` is of, and
    `size_bytes` is their size. An instance that serves it has the `adapters` loaded.
    """

    name: str
    model: Model
    system: str
    template: str | None
    parameters: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...]
    license: tuple[str, ...]
    parent: str
    digest: str
    modified_at: datetime
    origin: Origin
    adapters: tuple[Path, ...] = ()
    layers: tuple[Layer, ...] = ()
    size_bytes: int = 0
    requires: str = ""
    capabilities: tuple[str, ...] = ("completion",)


@dataclass(frozen=True)
class Created:
    """A name that a client made. `model` is the name of a model of the store or of gateway.toml.

    Of `layers` only the texts are kept; those of the model's files are looked up when it is
    read. `owned`: the model came by this API, and goes with the last name that means it.
    `instances` None: its model's.
    """

    name: str
    model: str
    layers: tuple[Layer, ...]
    modified_at: datetime
    owned: bool = False
    requires: str = ""
    adapters: tuple[Path, ...] = ()
    instances: tuple[str, ...] | None = None


class PersonaStore:
    """One JSON file a name in `directory`, replaced atomically; nothing here is asynchronous."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self) -> dict[str, Created]:
        """All of them, by key. A file that is none is left alone, with a line in the log."""
        found: dict[str, Created] = {}
        for path in sorted(self.directory.glob("*.json")):
            try:
                key, created = _from_data(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                _LOG.warning("%s is no record of a created model: %s", path, error)
                continue
            found[key] = created
        return found

    def save(self, key: str, created: Created) -> None:
        """Keep it under `key`, in the place of what was there. Raises OSError."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                json.dump(_to_data(key, created), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        sync_directory(path.parent)

    def remove(self, key: str) -> None:
        """Forget it. Raises OSError."""
        self._path(key).unlink(missing_ok=True)
        sync_directory(self.directory)

    def _path(self, key: str) -> Path:
        # A name may be longer than a file's may be, and hold a slash.
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"


def _to_data(key: str, created: Created) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "key": key,
        "name": created.name,
        "model": created.model,
        "modified_at": created.modified_at.isoformat(),
        "owned": created.owned,
        "requires": created.requires,
        "adapters": list(map(str, created.adapters)),
        "instances": created.instances,
        "layers": [
            {
                "type": layer.media_type,
                "from": layer.parent,
                "text": layer.text,
                "digest": layer.digest,
                "size": layer.size_bytes,
            }
            for layer in created.layers
        ],
    }


def _from_data(data: Mapping[str, Any]) -> tuple[str, Created]:
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']}")
    key = str(data["key"])
    if name_key(str(data["name"])) != key:
        raise ValueError(f"{data['name']!r} is not the name of {key!r}")
    modified_at = datetime.fromisoformat(data["modified_at"])
    instances = data.get("instances")
    if not isinstance(instances, list | None):
        raise ValueError(f"{instances!r} are no instances")
    return key, Created(
        name=str(data["name"]),
        model=str(data["model"]),
        layers=tuple(_layer(one) for one in data["layers"]),
        modified_at=modified_at if modified_at.tzinfo else modified_at.replace(tzinfo=UTC),
        owned=bool(data.get("owned", False)),
        requires=str(data.get("requires", "")),
        adapters=tuple(map(Path, data.get("adapters", ()))),
        instances=None if instances is None else tuple(map(str, instances)),
    )


def _layer(data: Mapping[str, Any]) -> Layer:
    media_type, parent, text = str(data["type"]), str(data["from"]), data["text"]
    if media_type in TEXTS:
        layer = text_layer(media_type, str(text), parent)
        if media_type in (PARAMS, MESSAGES):
            json.loads(str(text))
        return layer
    if media_type == ADAPTER:
        return Layer(media_type, str(data["digest"]), int(data["size"]), parent)
    if media_type not in (MODEL, PROJECTOR):
        raise ValueError(media_type)
    return Layer(media_type, "", 0, parent)
