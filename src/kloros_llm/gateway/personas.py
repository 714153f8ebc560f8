"""What a name that clients use stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from .config import Model


@dataclass(frozen=True)
class Persona:
    """A model with what a Modelfile says of it. `name` is shown as Ollama shows it, with a tag.

    `digest` is 64 hexadecimal digits; `origin` tells whether gateway.toml, a client (`create`,
    `copy`) or nobody but the model itself made it.
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
    origin: Literal["config", "created", "model"]
