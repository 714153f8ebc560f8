"""The answer of /api/ps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from ..config import Listener
from ..models.catalogue import Catalogue, details_of, shown_time
from ..ollama_api.json_text import compact

# As far off as Ollama puts it: Go's longest duration, 292 years.
_FOREVER_S: Final = (2**63 - 1) / 1e9


class InMemory(Protocol):
    """A model in memory: backends.Loaded. `expires_at` None: it stays."""

    @property
    def instance(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def expires_at(self) -> datetime | None: ...


def loaded_json(catalogue: Catalogue, listener: Listener, loaded: Iterable[InMemory]) -> bytes:
    """What the listener's instances have in memory, the longest-lived first; each model once.

    `size` and `size_vram` are those that gateway.toml tells, for llama-server tells over HTTP
    neither its buffers nor where they are. Where it tells nothing, `size` is that of the files.
    """
    forever = datetime.fromtimestamp(time.time() + _FOREVER_S, UTC)
    told: dict[str, tuple[datetime, dict[str, Any]]] = {}
    for one in loaded:
        if listener.instances is not None and one.instance not in listener.instances:
            continue
        entry = catalogue.in_memory(one.model)
        if entry is None:
            continue
        instance = catalogue.config.instances[one.instance]
        expires_at = one.expires_at or forever
        persona = entry.persona
        facts = catalogue.facts(persona.model)
        line = {
            "name": persona.name,
            "model": persona.name,
            "size": instance.memory_bytes.get(one.model, facts.size_bytes),
            "digest": persona.digest,
            "details": details_of(persona, facts),
            "expires_at": shown_time(expires_at),
            "size_vram": instance.vram_bytes.get(one.model, 0),
            "context_length": instance.slot_tokens(one.model),
        }
        before = told.get(persona.name)
        if before is None or before[0] < expires_at:
            told[persona.name] = (expires_at, line)
    models = sorted(told.values(), key=lambda pair: pair[0], reverse=True)
    return compact({"models": [line for _, line in models]}).encode()
