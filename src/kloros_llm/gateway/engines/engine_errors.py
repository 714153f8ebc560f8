"""How a call of a llama-server fails."""

from __future__ import annotations


class EngineError(Exception):
    """It answered with an error. `body` is its JSON as it came, `kind` its `type`.

    `prompt_tokens` and `context_tokens` are stated where the prompt is too long.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "",
        body: str = "",
        prompt_tokens: int | None = None,
        context_tokens: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.body = body
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class EngineLoadingError(Exception):
    """It is there and loads its model."""


class EngineGoneError(Exception):
    """Nobody listens, or the connection broke; `began` tells whether after the first byte.

    `reused` is true where the connection had served before: llama-server closes such ones
    whenever it likes, so that it says nothing of the server.
    """

    def __init__(self, message: str, *, began: bool, reused: bool = False) -> None:
        super().__init__(message)
        self.began = began
        self.reused = reused


class EngineRefusedError(EngineGoneError):
    """Nobody listens there: nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, began=False)


class EngineStalledError(EngineGoneError):
    """It is connected and sent nothing for too long."""
