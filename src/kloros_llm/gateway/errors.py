"""Errors that a client is told."""

from __future__ import annotations


class ApiError(Exception):
    """An answer with `status` and, as `text`, what Ollama says in such a case."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
