"""The layers that a name is made of, and the manifest that lists them.

A manifest is the one that Ollama would write of the same layers, so that the digest, which
clients take for the model's identity, is the same too. Source: Ollama 0.33, `server/create.go`,
`manifest/`, and the store in the project's facts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..ollama_api import go_values
from ..ollama_api.json_text import compact

_OLLAMA: Final = "application/vnd.ollama.image."
MODEL: Final = f"{_OLLAMA}model"
PROJECTOR: Final = f"{_OLLAMA}projector"
ADAPTER: Final = f"{_OLLAMA}adapter"
TEMPLATE: Final = f"{_OLLAMA}template"
SYSTEM: Final = f"{_OLLAMA}system"
PARAMS: Final = f"{_OLLAMA}params"
MESSAGES: Final = f"{_OLLAMA}messages"
LICENSE: Final = f"{_OLLAMA}license"
TEXTS: Final = frozenset({TEMPLATE, SYSTEM, PARAMS, MESSAGES, LICENSE})
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Layer:
    """`digest` is "sha256:" and 64 hexadecimal digits; `parent` the name that it was taken from.

    `text` is the content; None for the files of a model.
    """

    media_type: str
    digest: str
    size_bytes: int
    parent: str = ""
    text: str | None = None


@dataclass(frozen=True)
class Changes:
    """What a Modelfile says beside FROM; what is empty changes nothing."""

    template: str = ""
    system: str = ""
    license: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()


def text_layer(media_type: str, text: str, parent: str = "") -> Layer:
    """A layer with this content."""
    content = text.encode(errors="replace")
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Layer(media_type, digest, len(content), parent, text)


def from_parent(layers: Iterable[Layer], parent: str) -> tuple[Layer, ...]:
    """The same layers as those that a model made FROM `parent` begins with."""
    return tuple(replace(layer, parent=parent) for layer in layers)


def overlay(layers: Sequence[Layer], changes: Changes) -> tuple[Layer, ...]:
    """`layers` with the changes, in the order in which Ollama puts them.

    Licences are added. Parameters are merged with those of the base, and their layer is made anew
    whether they change or not.
    """
    result = list(layers)
    if changes.template:
        result = [*_without(result, TEMPLATE), text_layer(TEMPLATE, changes.template)]
    if changes.system:
        result = [*_without(result, SYSTEM), text_layer(SYSTEM, changes.system)]
    result += [text_layer(LICENSE, one) for one in changes.license if one]
    parameters = {**parameters_of(result), **changes.parameters}
    if parameters:
        ordered = {key: parameters[key] for key in sorted(parameters)}
        text = f"{go_values.encode(ordered)}\n"
        result = [*_without(result, PARAMS), text_layer(PARAMS, text)]
    if changes.messages:
        text = f"{compact([dict(one) for one in changes.messages])}\n"
        result = [*_without(result, MESSAGES), text_layer(MESSAGES, text)]
    return tuple(result)


def _without(layers: Iterable[Layer], media_type: str) -> list[Layer]:
    return [layer for layer in layers if layer.media_type != media_type]


def text_of(layers: Iterable[Layer], media_type: str) -> str | None:
    """The content of the last layer of this kind."""
    texts = [layer.text for layer in layers if layer.media_type == media_type]
    return texts[-1] if texts else None


def parameters_of(layers: Iterable[Layer]) -> dict[str, Any]:
    """The parameters that the layers hold."""
    value = json.loads(text_of(layers, PARAMS) or "{}")
    return value if isinstance(value, dict) else {}


def messages_of(layers: Iterable[Layer]) -> tuple[Mapping[str, Any], ...]:
    """The messages that the layers hold."""
    value = json.loads(text_of(layers, MESSAGES) or "[]")
    return tuple(one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def licenses_of(layers: Iterable[Layer]) -> tuple[str, ...]:
    """The licences that the layers hold."""
    return tuple(layer.text or "" for layer in layers if layer.media_type == LICENSE)


def config_layer(family: str, parameter_size: str, quantization: str, requires: str = "") -> Layer:
    """What a manifest says of the kind of model."""
    data: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": parameter_size,
        "file_type": quantization,
    }
    if requires:
        data["requires"] = requires
    data |= {"architecture": "amd64", "os": "linux"}
    return text_layer(_CONFIG, f"{compact(data)}\n")


@dataclass(frozen=True)
class Manifest:
    """`digest` are 64 hexadecimal digits; `size_bytes` is of all layers and of the config."""

    digest: str
    size_bytes: int


def manifest_of(config: Layer, layers: Sequence[Layer]) -> Manifest:
    """The manifest that Ollama would write."""
    data = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _entry(config),
        "layers": [_entry(layer) for layer in layers],
    }
    content = f"{compact(data)}\n".encode()
    size_bytes = config.size_bytes + sum(layer.size_bytes for layer in layers)
    return Manifest(hashlib.sha256(content).hexdigest(), size_bytes)


def _entry(layer: Layer) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size_bytes,
    }
    return entry | {"from": layer.parent} if layer.parent else entry
