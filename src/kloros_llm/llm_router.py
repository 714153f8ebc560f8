"""`LLMRouter`: the engine for a mode, and the next one where that does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from .adapter import LlamaAdapter
from .endpoints import (
    LLMMode,
    LLMService,
    candidates,
    host_services,
    mode_model,
    ollama_service,
    services_or_ollama,
)
from .errors import (
    LlmBusyError,
    LlmConfigurationError,
    LlmConnectionError,
    LlmError,
    LlmHttpError,
    LlmInterruptedError,
    LlmLoadingError,
    LlmModelNotFoundError,
    LlmProtocolError,
    LlmTimeoutError,
    LlmUsageError,
)
from .gateway.engines.pieces import Ending, Piece
from .health import Health, engine_health
from .reasoning_backend import ReasoningBackend
from .reranking import Ranked
from .text_stream import Events, Start, TextStream
from .timeouts import Clock, Timeouts
from .wire import Cancel, normal_url

T = TypeVar("T")
Backend = Literal["auto", "llama", "ollama"]

_RETRIES: Final = 1

_log = logging.getLogger(__name__)


class LLMRouter(ReasoningBackend):
    """All engines of the host. Safe to use from several threads.

    `backend` "llama" knows the environment's and the plan's (endpoints.py), "ollama" Ollama
    alone, "auto" the former and Ollama (or the gateway) last. `services` are taken instead of
    them: LLMService, or a URL a mode. `verify` is that of `requests`, for https.

    Every call of ReasoningBackend takes as keywords `mode`, else `mode` of the router holds;
    `prefer_remote`: those of mode "remote" first, who are not asked otherwise; `on_answer`,
    called with the LLMService whose answer begins. An engine that is down, busy or loads is
    passed over before the first piece, and asked last for `retry_after_s`; one that loads is
    waited for where no other answers.
    """

    def __init__(
        self,
        backend: Backend = "auto",
        *,
        mode: str = LLMMode.LIVE,
        services: Mapping[str, str | LLMService] | Iterable[LLMService] | None = None,
        plan: str | Path | None = None,
        model: str | None = None,
        system_prompt: str = "",
        temperature: float | None = None,
        timeout: float | Timeouts = 120.0,
        options: Mapping[str, Any] | None = None,
        retry_after_s: float = 5.0,
        verify: bool | str = True,
    ) -> None:
        self.mode = mode
        self.services = _services(backend, services, plan)
        self.timeout = timeout
        self._model = model
        self._settings: dict[str, Any] = {
            "system_prompt": system_prompt,
            "temperature": temperature,
            "timeout": timeout,
            "options": options,
            "verify": verify,
        }
        self._verify = verify
        self._retry_after_s = retry_after_s
        self._down_until: dict[str, float] = {}
        self._adapters: dict[tuple[LLMService, str | None], LlamaAdapter] = {}
        self._lock = threading.Lock()
        candidates(self.services, mode)

    # who answers

    def get_service(self, mode: str | None = None) -> LLMService:
        """Who is asked first in a mode. Raises LlmConfigurationError."""
        return self._in_order(mode)[0]

    def adapter(self, mode: str | None = None) -> LlamaAdapter:
        """That engine alone, without a fall-back."""
        return self._adapter(self.get_service(mode), mode)

    def _in_order(self, mode: str | None, prefer_remote: bool = False) -> list[LLMService]:
        now = time.monotonic()
        with self._lock:
            down = {url for url, until in self._down_until.items() if until > now}
        remote = [one for one in self.services if one.is_remote] if prefer_remote else []
        found = candidates(self.services, mode or self.mode)
        found = (*remote, *(service for service in found if service not in remote))
        return sorted(found, key=lambda service: service.url in down)

    def _adapter(self, service: LLMService, mode: str | None) -> LlamaAdapter:
        # Ollama has the models that the plan's instances serve under the same names.
        model = self._model or service.model or mode_model(self.services, mode or self.mode)
        with self._lock:
            adapter = self._adapters.get((service, model))
            if adapter is None:
                # It is kept: which engine it is need not be found out again.
                adapter = self._adapters[service, model] = LlamaAdapter(
                    service.url,
                    model,
                    api_key=service.api_key,
                    engine=service.engine,
                    retries=_RETRIES,
                    **self._settings,
                )
            return adapter

    def start(
        self, asked: Mapping[str, Any], kwargs: Mapping[str, Any], *, may_wait: bool = True
    ) -> Start:
        said = dict(kwargs)
        mode = said.pop("mode", None)
        prefer_remote = bool(said.pop("prefer_remote", False))
        on_answer = said.pop("on_answer", None)
        in_order = [
            (service, self._adapter(service, mode))
            for service in self._in_order(mode, prefer_remote)
        ]
        # A wrong call is wrong at once, and for all.
        starts = [
            (service, adapter, adapter.start(asked, said, may_wait=False))
            for service, adapter in in_order
        ]

        def events(clock: Clock, cancel: Cancel) -> Events:
            failures: list[LlmError] = []
            loading: list[tuple[LLMService, LlamaAdapter]] = []
            for service, adapter, start in starts:
                error = yield from self._attempt(service, start(clock, cancel), on_answer)
                if error is None:
                    return
                failures.append(error)
                if isinstance(error, LlmLoadingError):
                    loading.append((service, adapter))
            for service, adapter in loading[:1] if may_wait else ():
                start = adapter.start(asked, said)
                error = yield from self._attempt(service, start(clock, cancel), on_answer)
                if error is None:
                    return
            raise _all_failed(failures)

        return events

    def _attempt(
        self, service: LLMService, events: Events, on_answer: Callable[[LLMService], object] | None
    ) -> Generator[Piece | Ending, None, LlmError | None]:
        """Its answer; the value is what another engine may do better at."""
        began = False
        try:
            for event in events:
                if not began:
                    began = True
                    self._is_up(service)
                    if on_answer is not None:
                        on_answer(service)
                yield event
        except LlmError as error:
            if began or not _is_the_engines(error):
                raise
            self._passes_over(service, error)
            return error
        return None

    def embed(self, texts: str | Sequence[str], **kwargs: Any) -> list[list[float]]:
        """A vector for each text, by an instance for embeddings, else by Ollama's."""
        services = [service for service in self.services if service.embeddings]
        services += self._perhaps_ollama()
        return self._ask(services, "embeds", lambda adapter: adapter.embed(texts, **kwargs))

    def rerank(self, query: str, documents: Sequence[str], **kwargs: Any) -> list[Ranked]:
        """The documents, those first that suit the query best, by an instance for reranking."""
        services = [service for service in self.services if service.rerank]
        services += self._perhaps_ollama()
        return self._ask(
            services, "reranks", lambda adapter: adapter.rerank(query, documents, **kwargs)
        )

    def _perhaps_ollama(self) -> list[LLMService]:
        return [one for one in self.services if one.engine != "llama" and not one.is_remote]

    def _ask(
        self, services: Sequence[LLMService], work: str, ask: Callable[[LlamaAdapter], T]
    ) -> T:
        if not services:
            raise LlmConfigurationError(
                f"no instance of this host {work}; the inventory says which"
            )
        failures: list[LlmError] = []
        for service in services:
            try:
                return ask(self._adapter(service, None))
            except LlmError as error:
                if not _is_the_engines(error):
                    raise
                self._passes_over(service, error)
                failures.append(error)
        raise _all_failed(failures)

    def _passes_over(self, service: LLMService, error: LlmError) -> None:
        _log.warning("%s does not answer (%s)", service.name, error)
        with self._lock:
            self._down_until[service.url] = time.monotonic() + self._retry_after_s

    def _is_up(self, service: LLMService) -> None:
        with self._lock:
            self._down_until.pop(service.url, None)

    # how they are

    def health(self) -> dict[str, Health]:
        """How each engine is, by its name; all are asked at the same time. Never raises."""
        with ThreadPoolExecutor(max_workers=max(1, min(16, len(self.services)))) as pool:
            found = pool.map(self._health_of, self.services)
            return {
                service.name: health for service, health in zip(self.services, found, strict=True)
            }

    def _health_of(self, service: LLMService) -> Health:
        return engine_health(service.url, api_key=service.api_key, verify=self._verify)

    def check_service_health(self, mode: str | None = None) -> tuple[bool, str]:
        """Whether the engine for a mode is ready, and if not, why."""
        health = self._health_of(candidates(self.services, mode or self.mode)[0])
        return bool(health), health.detail

    def get_available_services(self) -> dict[str, Any]:
        """Who is asked first in each mode, as plain data."""
        local = {}
        for mode in LLMMode:
            service = candidates(self.services, mode)[0]
            local[mode.value] = {
                "name": service.name,
                "port": service.port,
                "model": service.model,
                "description": service.description,
                "url": service.url,
            }
        remote = next((service for service in self.services if service.is_remote), None)
        known = {"enabled": remote is not None}
        return {
            "local": local,
            "remote": known | ({"model": remote.model, "url": remote.url} if remote else {}),
        }

    # KLoROS's way to ask

    def query(
        self,
        prompt: str,
        mode: str | None = None,
        prefer_remote: bool = True,
        stream: bool = False,
        **kwargs: Any,
    ) -> tuple[bool, str | TextStream, str]:
        """Whether it worked, the answer or what went wrong, and whose it is: "remote",
        "local:<instance>" or "error".

        With `prefer_remote`, the engines of mode "remote" are asked first, where there are any
        (KLOROS_LLM_URL_REMOTE), without it never. Of a stream, whose it is means who is asked
        first, and its errors come while it is read.
        """
        answered: list[LLMService] = []
        kwargs |= {"prefer_remote": prefer_remote, "on_answer": answered.append}
        ok, answer = self.query_local_llm(prompt, mode, stream, **kwargs)
        if not ok:
            return False, answer, "error"
        first = answered or self._in_order(mode, prefer_remote)
        return True, answer, "remote" if first[0].is_remote else f"local:{first[0].name}"

    def query_local_llm(
        self, prompt: str, mode: str | None = None, stream: bool = False, **kwargs: Any
    ) -> tuple[bool, str | TextStream]:
        """Whether it worked, and the answer or what went wrong."""
        try:
            return True, self.generate(prompt, stream=stream, mode=mode, **kwargs)
        except LlmError as error:
            return False, str(error)


def _services(
    backend: str,
    given: Mapping[str, str | LLMService] | Iterable[LLMService] | None,
    plan: str | Path | None,
) -> tuple[LLMService, ...]:
    if backend not in ("auto", "llama", "ollama"):
        raise LlmUsageError(f"backend is 'auto', 'llama' or 'ollama', not {backend!r}")
    if given is not None:
        if not isinstance(given, Mapping):
            return tuple(given)
        return tuple(
            one if isinstance(one, LLMService) else LLMService(mode, normal_url(one), modes=(mode,))
            for mode, one in given.items()
        )
    if backend == "ollama":
        return (ollama_service(),)
    if backend == "auto":
        found = services_or_ollama(plan)
        last = replace(ollama_service(), modes=())
        return found if any(one.url == last.url for one in found) else (*found, last)
    found = host_services(plan)
    if not found:
        raise LlmConfigurationError(
            "no llama-server is known: this host has no plan (site.yml writes it), and "
            "KLOROS_LLM_URL is not set"
        )
    return found


def _is_the_engines(error: LlmError) -> bool:
    """Whether another engine may do better."""
    if isinstance(error, LlmTimeoutError):
        return error.phase == "connect"
    if isinstance(error, LlmHttpError):
        return isinstance(error, LlmBusyError | LlmModelNotFoundError) or error.status >= 500
    return isinstance(error, LlmConnectionError | LlmInterruptedError | LlmProtocolError)


def _all_failed(failures: Sequence[LlmError]) -> LlmError:
    if len(failures) == 1:
        return failures[0]
    return LlmConnectionError("no engine answers: " + "; ".join(map(str, failures)))


_router: LLMRouter | None = None
_router_lock = threading.Lock()


def get_router() -> LLMRouter:
    """The one router of this process, of the host's own engines."""
    global _router  # noqa: PLW0603
    with _router_lock:
        if _router is None:
            _router = LLMRouter()
        return _router
