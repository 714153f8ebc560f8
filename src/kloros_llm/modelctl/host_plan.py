"""What the host is to run: `plan.json`, which the playbook wrote, as `modelctl` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .exit_codes import Exit, ModelctlError

DEFAULT_PLAN: Final = Path("/etc/kloros-llm/plan.json")
DEFAULT_MODELS_DIR: Final = Path("/var/lib/kloros-llm/models")
DEFAULT_LLAMA_CPP_DIR: Final = Path("/opt/llama.cpp")
_SCHEMA: Final = 1


@dataclass(frozen=True)
class Instance:
    """One llama-server of the plan. `model_files` are all files that it loads.

    `key_file` is where its API key lies, readable by root alone; None where it asks for none.
    `modes` are those of the programs that use it. A router has no `model` of its own but `models`.
    """

    name: str
    unit: str
    url: str
    model: str
    aliases: tuple[str, ...]
    model_files: tuple[Path, ...]
    context_tokens: int
    slots: int
    kv_cache: str
    gpus: tuple[str, ...]
    environment: Mapping[str, str]
    key_file: Path | None
    modes: tuple[str, ...]
    embeddings: bool
    rerank: bool
    models: tuple[str, ...]


@dataclass(frozen=True)
class PlannedModel:
    """One model of the plan. `files` each have `file`, `role`, `source` and `sha256`."""

    name: str
    source: str
    path: Path
    aliases: tuple[str, ...]
    files: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class HostPlan:
    """The whole plan, as far as `modelctl` needs it."""

    path: Path
    models_dir: Path
    hf_endpoint: str | None
    llama_cpp_dir: Path
    models: tuple[PlannedModel, ...]
    instances: tuple[Instance, ...]

    def instance(self, name: str) -> Instance:
        """The instance of that name, or of that unit. Raises ModelctlError."""
        for instance in self.instances:
            if name in (instance.name, instance.unit, instance.unit.removesuffix(".service")):
                return instance
        known = ", ".join(instance.name for instance in self.instances) or "none"
        raise ModelctlError(f"no instance is named {name!r}; there are: {known}", Exit.NOT_FOUND)

    def model(self, name: str) -> PlannedModel | None:
        """The model of that name or alias."""
        for model in self.models:
            if name == model.name:
                return model
        return next((model for model in self.models if name in model.aliases), None)


def read_plan(path: Path | None) -> HostPlan | None:
    """The plan of this host; None where no playbook has written one. Raises ModelctlError.

    `path` None is the usual place.
    """
    place = path or DEFAULT_PLAN
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return None
        raise ModelctlError(
            f"{place} is not there; without --plan, {DEFAULT_PLAN} is read", Exit.NOT_FOUND
        ) from None
    except OSError as error:
        raise ModelctlError(
            f"{place}: {error.strerror}; run it with sudo", Exit.NOT_PERMITTED
        ) from error
    except ValueError as error:
        raise ModelctlError(
            f"{place} is no JSON ({error}); run the playbook again, or give --plan"
        ) from error
    try:
        return _plan(place, data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelctlError(
            f"{place} is no plan that this modelctl knows ({error!r}); run the playbook again"
        ) from error


def _plan(place: Path, data: Mapping[str, Any]) -> HostPlan:
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']}")
    return HostPlan(
        path=place,
        models_dir=Path(data["models_dir"]),
        hf_endpoint=data.get("models_hf_endpoint") or None,
        llama_cpp_dir=Path(data["llama_cpp"]["dir"]),
        models=tuple(
            PlannedModel(
                name=str(model["name"]),
                source=str(model["source"]),
                path=Path(model["path"]),
                aliases=tuple(model["aliases"]),
                files=tuple(model["files"]),
            )
            for model in data["models"]
        ),
        instances=tuple(_instance(instance, place.parent) for instance in data["instances"]),
    )


def _instance(data: Mapping[str, Any], config_dir: Path) -> Instance:
    name = str(data["name"])
    return Instance(
        name=name,
        unit=str(data["unit"]),
        url=str(data["url"]),
        model=str(data["model"]),
        aliases=tuple(data["aliases"]),
        model_files=tuple(Path(path) for path in data["model_files"]),
        context_tokens=int(data["context_tokens"]),
        slots=int(data["slots"]),
        kv_cache=str(data["kv_cache"]),
        gpus=tuple(str(gpu["uuid"]) for gpu in data["gpus"]),
        environment={key: str(value) for key, value in data["environment"].items()},
        key_file=config_dir / "credentials" / f"{name}.key" if data["api_key"] else None,
        modes=tuple(data.get("modes", ())),
        embeddings=bool(data.get("embeddings")),
        rerank=bool(data.get("rerank")),
        models=tuple(data.get("models", ())),
    )
