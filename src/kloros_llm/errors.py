"""How the client library fails: every error is an LlmError.

Each is one of `requests`' errors too, so that code which caught those goes on catching them.
"""

from __future__ import annotations

import requests


class LlmError(requests.RequestException):
    """Something about a language model did not work; the message says what to do."""


class LlmUsageError(LlmError, ValueError):
    """The call is wrong: no engine is asked such a thing."""


class LlmConfigurationError(LlmError, ValueError):
    """Which engine, or which model of it, cannot be told from what is configured."""


class LlmConnectionError(LlmError, requests.ConnectionError):
    """Nobody answers there, or the connection broke before the first piece of an answer."""


class LlmLoadingError(LlmConnectionError):
    """The engine is there and loads its model."""


class LlmTimeoutError(LlmError, requests.Timeout):
    """It took too long. `phase` is "connect", "first piece", "next piece" or "whole answer"."""

    def __init__(self, message: str, phase: str = "") -> None:
        super().__init__(message)
        self.phase = phase


class LlmInterruptedError(LlmError, requests.ConnectionError):
    """An answer broke off. `text` is what had come of it."""

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class LlmProtocolError(LlmError):
    """What answers there is no engine that this library knows, or does not keep to its form."""


class LlmHttpError(LlmError, requests.HTTPError):
    """The engine refuses; `status` is that of HTTP, 200 where the refusal came in the answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class LlmModelNotFoundError(LlmHttpError):
    """The engine has no such model."""


class LlmAuthenticationError(LlmHttpError):
    """It asks for an API key, or for another one."""


class LlmBusyError(LlmHttpError):
    """It has too much to do."""


class LlmUnsupportedError(LlmHttpError):
    """This engine, or its model, cannot do that."""


class LlmContextError(LlmHttpError):
    """The prompt has more tokens than the context holds; 0 where it was not said how many."""

    def __init__(
        self, message: str, status: int = 400, prompt_tokens: int = 0, context_tokens: int = 0
    ) -> None:
        super().__init__(message, status)
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class ModelError(LlmError):
    """A model's file could not be found or fetched."""
