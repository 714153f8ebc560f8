"""One engine, whichever it is: which one it is, what it is asked, and asked again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Final, Literal, TypeVar

from . import llama_server, ollama
from .engine_kind import Detected, EngineKind, detect
from .errors import (
    LlmConfigurationError,
    LlmConnectionError,
    LlmContextError,
    LlmError,
    LlmHttpError,
    LlmInterruptedError,
    LlmLoadingError,
    LlmProtocolError,
)
from .gateway.engines.engine_answers import INVALID_ANSWER
from .gateway.engines.engine_errors import EngineError
from .gateway.engines.pieces import Ending, Piece
from .gateway.engines.sse import EventTooLargeError
from .generation import Generation
from .refusals import RouteMissingError, refusal
from .text_stream import Events
from .timeouts import Clock
from .truncation import excess_tokens, shorter_conversation, shorter_text
from .wire import Cancel, Reply, Wire

_BACKOFF_S: Final = 0.2
_LOADING_S: Final = 0.5
_TRUNCATIONS: Final = 3

T = TypeVar("T")
Question = tuple[str, str, Mapping[str, Any] | None]
"""Method, path and body."""

_log = logging.getLogger(__name__)


class _ChangedError(Exception):
    """Another engine answers there than before."""


class EngineClient:
    """One engine. Nothing in it belongs to a request: several threads may use it.

    `kind` "auto" finds out which engine it is, once, and again when it seems to have changed.
    `retries` count requests of which nothing was received.
    """

    def __init__(
        self, wire: Wire, kind: EngineKind | Literal["auto"] = "auto", retries: int = 2
    ) -> None:
        self.wire = wire
        self._retries = retries
        self._pinned = None if kind == "auto" else kind
        self._detected: Detected | None = None

    def kind(self, clock: Clock, cancel: Cancel) -> EngineKind:
        """Which engine it is. Raises LlmError where nobody answers."""
        if self._pinned is not None:
            return self._pinned
        known = self._detected
        if known is None:
            known = self._detected = detect(self.wire, clock, cancel)
        return known.kind

    def events(
        self, wanted: Generation, clock: Clock, cancel: Cancel, *, may_wait: bool = True
    ) -> Events:
        """The pieces of an answer, and its ending last. Raises LlmError, CancelledError.

        What breaks before the first piece is tried again, and an engine that loads waited for
        where that is wished (`may_wait`).
        """

        def once(last: bool) -> Iterator[Piece | Ending]:
            if self.kind(clock, cancel) == "llama":
                return self._from_llama_server(wanted, clock, cancel, last)
            return self._from_ollama(wanted, clock, cancel, last)

        yield from self._patiently(once, clock, cancel, may_wait)

    def ask(
        self, question: Callable[[EngineKind], Question], clock: Clock, cancel: Cancel
    ) -> tuple[EngineKind, Any]:
        """The JSON of a short answer, and who gave it. Raises LlmError, CancelledError."""

        def once(last: bool) -> Iterator[tuple[EngineKind, Any]]:
            kind = self.kind(clock, cancel)
            with self._ask(question(kind), clock, cancel, last) as reply:
                yield kind, reply.data()

        return next(self._patiently(once, clock, cancel))

    def _patiently(
        self,
        once: Callable[[bool], Iterator[T]],
        clock: Clock,
        cancel: Cancel,
        may_wait: bool = True,
    ) -> Generator[T, None, None]:
        failures = 0
        while True:
            began = False
            try:
                for item in self._noticing_a_change(once):
                    began = True
                    yield item
            except LlmLoadingError:
                if began or not (may_wait and clock.may_load):
                    raise
                cancel.sleep(_LOADING_S)
            except (LlmConnectionError, LlmInterruptedError) as error:
                self._detected = None
                failures += 1
                if began or failures > self._retries:
                    raise
                _log.info("%s; trying again", error)
                cancel.sleep(_BACKOFF_S * failures)
            else:
                return
            clock.left()

    def _noticing_a_change(self, once: Callable[[bool], Iterator[T]]) -> Iterator[T]:
        try:
            yield from once(False)
        except _ChangedError:
            self._detected = None
            yield from once(True)

    def _from_ollama(
        self, wanted: Generation, clock: Clock, cancel: Cancel, last: bool
    ) -> Iterator[Piece | Ending]:
        if not wanted.model:
            raise self._no_model(clock, cancel)
        path, body = ollama.request(wanted)
        with self._ask(("POST", path, body), clock, cancel, last) as reply:
            yield from self._read(ollama.read(reply.lines(), self.wire.base_url))

    def _from_llama_server(
        self, wanted: Generation, clock: Clock, cancel: Cancel, last: bool
    ) -> Iterator[Piece | Ending]:
        messages = wanted.conversation()
        for _ in range(_TRUNCATIONS):
            try:
                yield from self._ask_llama_server(wanted, messages, clock, cancel, last)
                return
            except LlmContextError as error:
                if not wanted.truncate or not error.prompt_tokens or wanted.suffix is not None:
                    raise
                wanted, messages = self._shorter(wanted, messages, error, clock, cancel)
                _log.warning("%s; what is oldest in it is left out", error)
        yield from self._ask_llama_server(wanted, messages, clock, cancel, last)

    def _ask_llama_server(
        self,
        wanted: Generation,
        messages: list[dict[str, Any]],
        clock: Clock,
        cancel: Cancel,
        last: bool,
    ) -> Iterator[Piece | Ending]:
        path, body = llama_server.request(wanted, messages)
        with self._ask(("POST", path, body), clock, cancel, last) as reply:
            events = llama_server.read(reply.chunks(), llama_server.reader(wanted))
            yield from self._read(events)

    def _shorter(
        self,
        wanted: Generation,
        messages: list[dict[str, Any]],
        error: LlmContextError,
        clock: Clock,
        cancel: Cancel,
    ) -> tuple[Generation, list[dict[str, Any]]]:
        excess = excess_tokens(error, wanted.options)
        tokens = _Tokenizer(self, wanted.model, clock, cancel)
        if wanted.raw:
            rest = shorter_text(wanted.prompt or "", excess, tokens)
            if rest is None:
                raise error
            return replace(wanted, prompt=rest), messages
        shorter = shorter_conversation(messages, excess, tokens)
        if shorter is None:
            raise error
        return wanted, shorter

    def _read(self, events: Iterator[Piece | Ending]) -> Iterator[Piece | Ending]:
        text = ""
        try:
            with known_form(self.wire.base_url):
                for event in events:
                    if isinstance(event, Piece):
                        text += event.text
                    yield event
                    if isinstance(event, Ending):
                        return
        except EngineError as error:
            if error.kind == INVALID_ANSWER:
                raise LlmProtocolError(f"{self.wire.base_url}: {error}") from error
            raise LlmInterruptedError(f"the answer broke off: {error}", text) from error
        except EventTooLargeError as error:
            raise LlmProtocolError(f"{self.wire.base_url} sends what is no event") from error
        except LlmHttpError as error:
            raise LlmInterruptedError(f"the answer broke off: {error}", text) from error
        raise LlmInterruptedError(
            f"{self.wire.base_url}: the answer ended without its last part", text
        )

    def _ask(self, question: Question, clock: Clock, cancel: Cancel, last: bool) -> closing[Reply]:
        """An answer of status 200. Raises _ChangedError where another engine gave it."""
        method, path, body = question
        reply = self.wire.ask(method, path, body, clock, cancel)
        try:
            known = self._detected
            if known is not None and known.server != reply.server and not last:
                raise _ChangedError
            if reply.status != 200:
                error = refusal(reply.status, reply.data(), self.wire.base_url)
                if isinstance(error, RouteMissingError) and known is not None and not last:
                    raise _ChangedError from error
                raise error
        except BaseException:
            reply.close()
            raise
        return closing(reply)

    def _no_model(self, clock: Clock, cancel: Cancel) -> LlmError:
        names = ", ".join(self.models(clock, cancel)) or "none"
        return LlmConfigurationError(
            f"{self.wire.base_url} needs a model's name; it has: {names}. Give model="
        )

    def models(self, clock: Clock, cancel: Cancel) -> list[str]:
        """The names of the models that it serves. Raises LlmError, CancelledError."""
        kind, data = self.ask(_models_question, clock, cancel)
        with known_form(self.wire.base_url):
            if kind == "llama":
                # A router's ids are those of its preset file; it is asked for the aliases.
                named = (model.get("aliases") or [model["id"]] for model in data["data"])
                return [str(name) for names in named for name in names]
            return [str(model["name"]) for model in data["models"]]


def _models_question(kind: EngineKind) -> Question:
    return "GET", "/v1/models" if kind == "llama" else "/api/tags", None


@contextmanager
def known_form(url: str) -> Iterator[None]:
    """Turns what an unknown answer leads to into LlmProtocolError."""
    try:
        yield
    except LlmError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise LlmProtocolError(f"{url} answered in a form that is not known: {error!r}") from error


class _Tokenizer:
    """The engine's own."""

    def __init__(
        self, client: EngineClient, model: str | None, clock: Clock, cancel: Cancel
    ) -> None:
        self._client = client
        self._model = model  # a router needs it
        self._clock = clock
        self._cancel = cancel

    def tokenize(self, text: str) -> list[int]:
        body = {"model": self._model, "content": text, "add_special": False}
        return list(self._ask("/tokenize", body)["tokens"])

    def detokenize(self, tokens: list[int]) -> str:
        body = {"model": self._model, "tokens": tokens}
        return str(self._ask("/detokenize", body)["content"])

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._client.ask(lambda _: ("POST", path, body), self._clock, self._cancel)[1]
