"""Where this host's engines are: environment, the plan that the playbook wrote, Ollama's address.

| variable | what it says |
|---|---|
| `KLOROS_LLM_URL`, `KLOROS_LLM_URL_<MODE>` | an engine for all modes, or for one; before the plan |
| `KLOROS_LLM_MODEL`, `KLOROS_LLM_MODEL_<MODE>` | the model that is asked of it |
| `KLOROS_LLM_API_KEY`, `KLOROS_LLM_API_KEY_<INSTANCE>` | the key of engines that ask for one |
| `KLOROS_LLM_PLAN` | another plan than /etc/kloros-llm/plan.json |
| `OLLAMA_HOST`, `OLLAMA_MODEL` | Ollama, or the gateway, and a model of it |
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from .engine_kind import EngineKind
from .errors import LlmConfigurationError
from .modelctl.exit_codes import ModelctlError
from .modelctl.host_plan import HostPlan, Instance, read_plan
from .wire import normal_url

OLLAMA_URL: Final = "http://127.0.0.1:11434"
REMOTE: Final = "remote"
"""The mode of an engine elsewhere, which is asked only where that is wished."""


class LLMMode(StrEnum):
    """The modes that KLoROS knows; a plan may name others."""

    LIVE = "live"
    THINK = "think"
    DEEP = "deep"
    CODE = "code"


@dataclass(frozen=True)
class LLMService:
    """One engine. `modes` are those that it serves; none: any, where nobody else does."""

    name: str
    url: str
    model: str | None = None
    modes: tuple[str, ...] = ()
    engine: EngineKind | Literal["auto"] = "auto"
    api_key: str | None = field(default=None, repr=False)
    embeddings: bool = False
    rerank: bool = False

    @property
    def port(self) -> int | None:
        """Of its URL."""
        return urlsplit(self.url).port

    @property
    def is_remote(self) -> bool:
        """Whether it serves the mode "remote"."""
        return REMOTE in self.modes

    @property
    def description(self) -> str:
        """For people."""
        modes = ", ".join(self.modes) or "any mode"
        return f"{self.model or 'its model'} for {modes}"


def ollama_url() -> str:
    """Where Ollama is, or the gateway in its place, by OLLAMA_HOST as Ollama takes it."""
    given = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    if not given or "://" in given:
        return normal_url(given or OLLAMA_URL)
    place, slash, path = given.partition("/")
    if place.count(":") > 1 and not place.startswith("["):
        place = f"[{place}]"
    host, _, port = place.rpartition(":") if re.search(r":\d*$", place) else (place, "", "")
    return normal_url(f"http://{host or '127.0.0.1'}:{port or 11434}{slash}{path}")


def host_services(plan: str | Path | None = None) -> tuple[LLMService, ...]:
    """The engines of the environment, then those of the plan. Raises LlmConfigurationError."""
    return (*_environment_services(), *_planned_services(plan))


def services_or_ollama(plan: str | Path | None = None) -> tuple[LLMService, ...]:
    """The same; on a host without a plan, Ollama for the modes that the environment leaves."""
    return (*_environment_services(), *(_planned_services(plan) or (ollama_service(),)))


def ollama_service(model: str | None = None) -> LLMService:
    """Ollama, or the gateway in its place. It is found out which engine it is."""
    model = model or os.environ.get("OLLAMA_MODEL") or None
    key = os.environ.get("KLOROS_LLM_API_KEY")
    return LLMService("ollama", ollama_url(), model, tuple(LLMMode), api_key=key)


def candidates(services: Sequence[LLMService], mode: str) -> tuple[LLMService, ...]:
    """Who may answer in a mode, the best first: who serves it, who is called so, who serves live.

    Raises LlmConfigurationError for a mode that nobody knows.
    """
    known = {*LLMMode, REMOTE, *(one for service in services for one in service.modes)}
    known |= {service.name for service in services}
    if mode not in known:
        raise LlmConfigurationError(f"no mode is called {mode!r}; there are: {_listed(known)}")
    found = _who_answers(services, mode)
    if not found:
        raise LlmConfigurationError(f"no engine is known that answers in mode {mode!r}")
    return tuple(found)


def mode_model(services: Sequence[LLMService], mode: str) -> str | None:
    """The model of a mode, for an engine that has several: that of the best who names one."""
    return next((one.model for one in _who_answers(services, mode) if one.model), None)


def get_llm_url(mode: str = LLMMode.LIVE, plan: str | Path | None = None) -> str:
    """Where to ask in a mode. Nobody is asked whether it answers. Raises LlmConfigurationError."""
    return candidates(services_or_ollama(plan), mode)[0].url


def _who_answers(services: Sequence[LLMService], mode: str) -> list[LLMService]:
    found = [
        service
        for service in services
        if not (service.embeddings or service.rerank)
        and (service.is_remote if mode == REMOTE else service.modes != (REMOTE,))
    ]
    return sorted(found, key=lambda service: _distance(service, mode))


def _distance(service: LLMService, mode: str) -> int:
    if mode in service.modes:
        return 0
    if service.name == mode:
        return 1
    return 2 if LLMMode.LIVE in (service.name, *service.modes) else 3


def _environment_services() -> list[LLMService]:
    services = []
    for name, url in sorted(os.environ.items()):
        mode = name.removeprefix("KLOROS_LLM_URL_").lower() if url.strip() else ""
        if mode and name.startswith("KLOROS_LLM_URL_"):
            model = _variable("KLOROS_LLM_MODEL", mode)
            services.append(_given(f"environment-{mode}", url, model, (mode,)))
    url = os.environ.get("KLOROS_LLM_URL", "").strip()
    if url:
        modes = tuple(LLMMode)
        services.append(_given("environment", url, os.environ.get("KLOROS_LLM_MODEL"), modes))
    return services


def _given(name: str, url: str, model: str | None, modes: tuple[str, ...]) -> LLMService:
    key = os.environ.get("KLOROS_LLM_API_KEY")
    return LLMService(name, normal_url(url), model or None, modes, api_key=key)


def _planned_services(path: str | Path | None) -> list[LLMService]:
    plan = host_plan(path)
    return [_planned(instance) for instance in plan.instances] if plan else []


def host_plan(path: str | Path | None = None) -> HostPlan | None:
    """The host's plan; None where there is none. Raises LlmConfigurationError."""
    named = path or os.environ.get("KLOROS_LLM_PLAN") or None
    try:
        return read_plan(Path(named) if named else None)
    except ModelctlError as error:
        message = str(error).replace("without --plan", "without KLOROS_LLM_PLAN")
        raise LlmConfigurationError(message) from error


def _planned(instance: Instance) -> LLMService:
    return LLMService(
        name=instance.name,
        url=instance.url,
        model=instance.model or next(iter(instance.models), None),
        modes=instance.modes,
        engine="llama",
        api_key=_key(instance),
        embeddings=instance.embeddings,
        rerank=instance.rerank,
    )


def _key(instance: Instance) -> str | None:
    if instance.key_file is None:
        return None
    given = _variable("KLOROS_LLM_API_KEY", instance.name)
    if given:
        return given
    try:
        return instance.key_file.read_text(encoding="utf-8").strip()
    except OSError:  # only root reads it: the engine's refusal says what to do
        return None


def _variable(name: str, part: str) -> str | None:
    """Of one mode or instance, else of all."""
    own = f"{name}_{re.sub(r'[^A-Za-z0-9]', '_', part).upper()}"
    return os.environ.get(own) or os.environ.get(name) or None


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
