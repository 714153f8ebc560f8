"""`create_reasoning_backend`: a backend by name, with what the host knows about itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from .adapter import LlamaAdapter
from .endpoints import LLMMode, LLMService, candidates, host_services, mode_model, ollama_service
from .errors import LlmConfigurationError
from .llm_router import LLMRouter
from .reasoning_backend import ReasoningBackend
from .timeouts import Timeouts

_NAMES: Final[Mapping[str, Literal["auto", "llama", "ollama"]]] = {
    "auto": "auto",
    "llama": "llama",
    "llama.cpp": "llama",
    "llamacpp": "llama",
    "ollama": "ollama",
    "llm": "ollama",
    "local": "ollama",
}


def create_reasoning_backend(
    name: str = "auto",
    *,
    mode: str = LLMMode.LIVE,
    base_url: str | None = None,
    model: str | None = None,
    system_prompt: str | None = None,
    temperature: float | None = None,
    timeout: float | Timeouts = 120.0,
    options: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    plan: str | Path | None = None,
    verify: bool | str = True,
) -> ReasoningBackend:
    """The backend of that name for a mode.

    "llama": the llama-server of the mode, of the environment or the plan. "ollama": Ollama, or
    the gateway in its place. "auto": whichever answers, the mode's llama-server first; with
    `base_url`, the engine there, whichever it is. The system prompt is LLM_SYSTEM_PROMPT's where
    none is given. Raises LlmConfigurationError, which is a ValueError, for another name too.
    """
    kind = _NAMES.get(name.lower())
    if kind is None:
        raise LlmConfigurationError(
            f"no reasoning backend is called {name!r}; there are: {', '.join(_NAMES)}"
        )
    prompt = os.environ.get("LLM_SYSTEM_PROMPT", "") if system_prompt is None else system_prompt
    if kind == "auto" and base_url is None:
        return LLMRouter(
            "auto",
            mode=mode,
            plan=plan,
            model=model,
            system_prompt=prompt,
            temperature=temperature,
            timeout=timeout,
            options=options,
            verify=verify,
        )
    service = _service(kind, mode, base_url, plan)
    return LlamaAdapter(
        service.url,
        model or service.model,
        prompt,
        temperature,
        timeout,
        api_key=api_key or service.api_key,
        engine=kind,
        options=options,
        verify=verify,
    )


def _service(kind: str, mode: str, base_url: str | None, plan: str | Path | None) -> LLMService:
    if base_url is not None:
        return LLMService("given", base_url)
    services = host_services(plan)
    if kind == "llama":
        if not services:
            raise LlmConfigurationError(
                "no llama-server is known: this host has no plan (site.yml writes it), "
                "KLOROS_LLM_URL is not set, and no base_url is given"
            )
        return candidates(services, mode)[0]
    # The gateway has the models that the plan's instances serve under the same names.
    return ollama_service(mode_model(services, mode))
