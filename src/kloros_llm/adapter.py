"""`LlamaAdapter`: one engine, llama-server or Ollama, asked the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .engine_client import EngineClient, known_form
from .engine_kind import EngineKind
from .errors import LlmUnsupportedError, LlmUsageError
from .generation import Generation, images_of
from .health import PROBE_TIMEOUT_S, Health, engine_health
from .reasoning_backend import ReasoningBackend
from .refusals import RouteMissingError
from .reranking import Ranked
from .sampling import is_option, like, merged
from .text_stream import Start
from .timeouts import Clock, Timeouts, timeouts_of
from .wire import Cancel, Wire

_FIELDS = ("format", "think", "suffix", "keep_alive")


class LlamaAdapter(ReasoningBackend):
    """One engine at `base_url`: llama-server, Ollama, or the gateway. Safe to use from threads.

    `model` (or `model_name`) is needed by Ollama and by a llama-server in router mode alone.
    `system_prompt`, `temperature` and `options` (Ollama's names) hold where a call says nothing
    else; where nobody does, Ollama's defaults hold, whatever the engine's own are. `timeout` is
    a number, taken as `requests` takes it, or Timeouts. `engine` "auto" finds out which it is,
    and notices a change. `retries` are of requests of which nothing was received. `verify` is
    that of `requests`, for https.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        system_prompt: str = "",
        temperature: float | None = None,
        timeout: float | Timeouts = 120.0,
        *,
        model_name: str | None = None,
        api_key: str | None = None,
        engine: EngineKind | Literal["auto"] = "auto",
        options: Mapping[str, Any] | None = None,
        retries: int = 2,
        verify: bool | str = True,
    ) -> None:
        if engine not in ("auto", "llama", "ollama"):
            raise LlmUsageError(f"engine is 'auto', 'llama' or 'ollama', not {engine!r}")
        wire = Wire(base_url, api_key, verify)
        self.base_url = wire.base_url
        self.model = model or model_name
        self.system_prompt = system_prompt
        self.temperature = temperature
        self.timeout = timeout
        self.options = dict(options or {})
        self._api_key = api_key
        self._verify = verify
        self._client = EngineClient(wire, engine, retries)

    @property
    def model_name(self) -> str | None:
        """The same as `model`."""
        return self.model

    def __repr__(self) -> str:
        return f"LlamaAdapter({self.base_url!r}, model={self.model!r})"

    def start(
        self, asked: Mapping[str, Any], kwargs: Mapping[str, Any], *, may_wait: bool = True
    ) -> Start:
        wanted = self._wanted(asked, kwargs)
        return lambda clock, cancel: self._client.events(wanted, clock, cancel, may_wait=may_wait)

    def _wanted(self, asked: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Generation:
        said = dict(kwargs)
        said.pop("timeout", None)
        for name in ("images", "raw", "suffix"):
            if "messages" in asked and said.get(name):
                raise LlmUsageError(f"{name} is for generate(); a conversation has its messages")
        raw = bool(said.pop("raw", False))
        system = said.pop("system", None)
        if raw and system:
            raise LlmUsageError("raw takes the text as it is: no system prompt goes with it")
        default_system = "" if raw else self.system_prompt
        fields = {
            **asked,
            "raw": raw,
            "model": said.pop("model", None) or self.model,
            "system": default_system if system is None else system,
            "images": images_of(said.pop("images", None)),
            "truncate": said.pop("truncate", True) is not False,
            **{name: said.pop(name) for name in _FIELDS if name in said},
        }
        options = said.pop("options", None)
        for name in said:
            if not is_option(name):
                raise TypeError(f"there is no argument or option {name!r}{like(name)}")
        own = {"temperature": self.temperature}
        return Generation(**fields, options=merged(self.options, own, options, said))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | None = None,
        timeout: float | Timeouts | None = None,
    ) -> list[list[float]]:
        """A vector of length 1 for each text, in their order."""
        inputs = [texts] if isinstance(texts, str) else list(texts)
        if not inputs:
            return []
        named = {"model": model or self.model, "input": inputs}
        kind, data = self._client.ask(
            lambda kind: ("POST", "/v1/embeddings" if kind == "llama" else "/api/embed", named),
            *self._call(timeout),
        )
        with known_form(self.base_url):
            if kind == "llama":
                ordered = sorted(data["data"], key=lambda one: int(one["index"]))
                vectors = [list(one["embedding"]) for one in ordered]
            else:
                vectors = [list(vector) for vector in data["embeddings"]]
            if len(vectors) != len(inputs):
                raise ValueError(f"{len(vectors)} vectors for {len(inputs)} texts")
        return vectors

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
        timeout: float | Timeouts | None = None,
    ) -> list[Ranked]:
        """The documents, those first that suit the query best, `top_n` of them at most.

        llama-server has it where it was started with --reranking; Ollama has not.
        """
        if not documents:
            return []
        body = {"model": model or self.model, "query": query, "documents": list(documents)}
        try:
            _, data = self._client.ask(lambda _: ("POST", "/v1/rerank", body), *self._call(timeout))
        except RouteMissingError as error:
            raise LlmUnsupportedError(
                f"{self.base_url} does not rerank; a llama-server started with --reranking does",
                error.status,
            ) from error
        with known_form(self.base_url):
            ranked = [
                Ranked(one["index"], float(one["relevance_score"]), documents[one["index"]])
                for one in data["results"]
            ]
        return sorted(ranked, key=lambda one: one.score, reverse=True)[:top_n]

    def list_models(self) -> list[str]:
        """The names of the models that the engine serves."""
        return self._client.models(*self._call(PROBE_TIMEOUT_S))

    def _call(self, timeout: float | Timeouts | None) -> tuple[Clock, Cancel]:
        timeout = self.timeout if timeout is None else timeout
        return Clock(timeouts_of(timeout, streaming=False)), Cancel()

    # what it is

    def health(self, timeout: float = PROBE_TIMEOUT_S) -> Health:
        """How the engine is, now. Never raises."""
        return engine_health(
            self.base_url, timeout=timeout, api_key=self._api_key, verify=self._verify
        )

    def health_check(self) -> bool:
        """Whether it is ready to answer."""
        return bool(self.health())

    @property
    def engine(self) -> EngineKind:
        """Which engine it is. Raises LlmError where nobody answers."""
        return self._client.kind(*self._call(PROBE_TIMEOUT_S))
