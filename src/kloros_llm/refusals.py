"""An engine's answer that is an error, as an exception."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from .errors import (
    LlmAuthenticationError,
    LlmBusyError,
    LlmContextError,
    LlmError,
    LlmHttpError,
    LlmLoadingError,
    LlmModelNotFoundError,
    LlmUnsupportedError,
)

_NO_ROUTE: Final = ("File Not Found", "404 page not found", "405 method not allowed")


class RouteMissingError(LlmUnsupportedError):
    """There is no such route: another engine may have taken its place."""


def refusal(status: int, data: Any, url: str) -> LlmError:
    """What an answer of `status` with `data` (JSON, or a text) means."""
    error = _error_of(data)
    message = str(error.get("message") or f"HTTP status {status}")
    text = f"{url}: {message}"
    kind = str(error.get("type", ""))
    if kind == "exceed_context_size_error":
        return LlmContextError(
            text, status, _natural(error.get("n_prompt_tokens")), _natural(error.get("n_ctx"))
        )
    if status == 503 and "loading model" in message.lower():
        return LlmLoadingError(text)
    if status in (401, 403):
        said = message if error else "the request is refused"
        return LlmAuthenticationError(f"{url}: {said}; give api_key, the right one", status)
    return _kind(status, message)(text, status)


def _kind(status: int, message: str) -> type[LlmHttpError]:
    if status in (429, 503):
        return LlmBusyError
    if status in (404, 405) and message in _NO_ROUTE:
        return RouteMissingError
    # Of llama-server's router it is a 400.
    if "not found" in message and "model" in message:
        return LlmModelNotFoundError
    if status == 501 or "does not support" in message or "is not supported" in message:
        return LlmUnsupportedError
    return LlmHttpError


def _error_of(data: Any) -> Mapping[str, Any]:
    """`{"error": {…}}` of llama-server; Ollama's is a text, which may be that JSON once more."""
    error = data.get("error", data) if isinstance(data, Mapping) else data
    if isinstance(error, str):
        try:
            inner = json.loads(error)
        except ValueError:
            return {"message": error.strip()[:500]} if error.strip() else {}
        return _error_of(inner) if isinstance(inner, Mapping) else {"message": error}
    return error if isinstance(error, Mapping) else {}


def _natural(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
