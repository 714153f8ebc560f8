"""Errors that a client is told, and the bodies that its API's family expects."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from .ollama_api.json_text import compact

Family = Literal["ollama", "openai", "anthropic"]

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class ApiError(Exception):
    """An answer with `status` and, as `text`, what Ollama says in such a case."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What to send: `data` under `content_type`."""

    content_type: str
    data: bytes


def family_of(path: str) -> Family:
    """Whose clients ask for `path`."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def error_body(family: Family, status: int, text: str) -> ErrorBody:
    """The body of an answer that is only the error.

    Ollama writes those of /v1 with an encoder that ends with a newline.
    """
    if family == "openai":
        told = {
            "message": text,
            "type": _OPENAI_TYPES.get(status, "api_error"),
            "param": None,
            "code": None,
        }
        return ErrorBody("application/json", (compact({"error": told}) + "\n").encode())
    if family == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        answer = {
            "type": "error",
            "error": {"type": kind, "message": text},
            "request_id": f"req_{secrets.token_hex(12)}",
        }
        return ErrorBody("application/json", (compact(answer) + "\n").encode())
    return ErrorBody("application/json; charset=utf-8", compact({"error": text}).encode())


def error_line(text: str) -> bytes:
    """The line that ends a stream of /api that has begun."""
    return (compact({"error": text}) + "\n").encode()
