"""What the backends count, plain; backend_metrics.py makes Prometheus's families of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

ErrorKind = Literal[
    "refused", "loading", "reused", "gone", "cut", "stalled", "invalid", "client", "server"
]
"""refused: nobody listens. reused: a kept connection was closed. gone, cut: it broke off before,
after the first item. stalled: nothing came for too long. invalid: no answer of llama-server.
client, server: an answer 4xx, 5xx."""


@dataclass
class BackendNumbers:
    """Counters are by instance; `waiting` requests have no engine yet, `rejected` ones found the
    queue full, `expired` ones waited too long; `fallbacks` are by (declared, serving).
    """

    waiting: int = 0
    rejected: int = 0
    expired: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, ErrorKind]] = field(default_factory=Counter)
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
