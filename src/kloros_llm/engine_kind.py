"""Telling llama-server from Ollama (or the gateway, which answers as Ollama)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .errors import LlmProtocolError
from .refusals import refusal
from .timeouts import Clock
from .wire import Cancel, Wire

EngineKind = Literal["llama", "ollama"]
LLAMA_SERVER: Final = "llama.cpp"
"""llama-server's own `Server` header."""


@dataclass(frozen=True)
class Detected:
    """Which engine it was; `server` is the header by which a change is noticed."""

    kind: EngineKind
    server: str


def detect(wire: Wire, clock: Clock, cancel: Cancel) -> Detected:
    """Which engine answers there, also while it loads.

    Raises LlmError where nobody does, where a key is missing, and where it is neither.
    """
    with wire.ask("GET", "/api/version", None, clock, cancel) as reply:
        server = reply.server
        if server == LLAMA_SERVER:
            return Detected("llama", server)
        data = reply.data()
        if reply.status == 200 and isinstance(data, dict) and "version" in data:
            return Detected("ollama", server)
        status = reply.status
    if status in (401, 403) or status >= 500:
        raise refusal(status, data, wire.base_url)
    # One behind a proxy, which puts its own name there.
    with wire.ask("GET", "/health", None, clock, cancel) as reply:
        health = reply.data()
        if reply.status == 200 and isinstance(health, dict) and health.get("status") == "ok":
            return Detected("llama", server)
        if reply.status == 503:
            raise refusal(reply.status, health, wire.base_url)
    raise LlmProtocolError(
        f"{wire.base_url} is neither llama-server nor Ollama: GET /api/version was answered with "
        f"status {status}, GET /health with {reply.status}"
    )
