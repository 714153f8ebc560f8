"""Whether an engine is ready to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .engine_kind import LLAMA_SERVER, EngineKind
from .errors import LlmConnectionError, LlmError, LlmTimeoutError
from .timeouts import Clock, timeouts_of
from .wire import Cancel, Wire

PROBE_TIMEOUT_S: Final = 2.0

State = Literal["ready", "loading", "unreachable", "refused"]


@dataclass(frozen=True)
class Health:
    """How an engine is. It is true where it is ready.

    "refused" is an answer that is neither: a missing key, or another program. `detail` says more
    where it is not ready; `engine` is None where it cannot be told.
    """

    url: str
    state: State
    engine: EngineKind | None = None
    detail: str = ""

    def __bool__(self) -> bool:
        return self.state == "ready"


def engine_health(
    url: str,
    *,
    timeout: float = PROBE_TIMEOUT_S,
    api_key: str | None = None,
    verify: bool | str = True,
) -> Health:
    """How the engine at `url` is: llama.cpp's /health first, then Ollama's /api/tags.

    Never raises, and takes twice `timeout` seconds at most.
    """
    try:
        wire = Wire(url, api_key, verify)
    except LlmError as error:
        return Health(url, "refused", detail=str(error))
    try:
        return _ask(wire, timeout)
    except (LlmConnectionError, LlmTimeoutError) as error:
        return Health(wire.base_url, "unreachable", detail=str(error))
    except LlmError as error:
        return Health(wire.base_url, "refused", detail=str(error))


def _ask(wire: Wire, timeout: float) -> Health:
    url = wire.base_url
    bounds = timeouts_of(timeout, streaming=False)
    with wire.ask("GET", "/health", None, Clock(bounds), Cancel()) as reply:
        said = reply.data()
        is_ok = reply.status == 200 and isinstance(said, dict) and said.get("status") == "ok"
        if reply.status == 503:
            return Health(url, "loading", "llama", "it loads its model")
        if is_ok and reply.server == LLAMA_SERVER:
            return Health(url, "ready", "llama")
    # The gateway may answer /health as well; Ollama does not know it.
    with wire.ask("GET", "/api/tags", None, Clock(bounds), Cancel()) as reply:
        said = reply.data()
        if reply.status == 200 and isinstance(said, dict) and "models" in said:
            return Health(url, "ready", "ollama")
        if is_ok:
            return Health(url, "ready", "llama")
        if reply.status in (401, 403):
            return Health(url, "refused", detail="it asks for an API key")
        return Health(
            url, "refused", detail=f"/health and /api/tags are no engine's (status {reply.status})"
        )


def check_llama_health(
    url: str,
    timeout: float = PROBE_TIMEOUT_S,
    api_key: str | None = None,
    verify: bool | str = True,
) -> bool:
    """Whether llama-server, or Ollama, is ready there; one that loads its model is not."""
    return bool(engine_health(url, timeout=timeout, api_key=api_key, verify=verify))
