"""What is known of an instance without asking: probes run beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from ..config import Instance
from .breaker import Breaker, BreakerState
from .engine import Engine
from .engine_errors import (
    EngineError,
    EngineGoneError,
    EngineLoadingError,
    EngineStalledError,
)

Status = Literal["up", "loading", "down"]

_UP_S = 2.0
_DOWN_S = 0.5
_AWAITED_S = 0.1
_LOADED = frozenset({"loaded", "sleeping"})


@dataclass(frozen=True)
class State:
    """An instance as it was seen last. `models` are loaded there, by their names in gateway.toml;
    `since` is when `status` began.
    """

    status: Status
    since: datetime
    breaker: BreakerState
    models: tuple[str, ...]


class Watch:
    """Keeps an instance's state. `prober` opens a connection a probe; `changed` is called
    whenever something waiting for the instance should look again.
    """

    def __init__(
        self,
        instance: Instance,
        prober: Engine,
        breaker: Breaker,
        changed: Callable[[], None],
    ) -> None:
        self.instance = instance
        self.breaker = breaker
        self.status: Status = "down"
        self.since = datetime.now(UTC)
        self.awaited = 0
        self._prober = prober
        self._changed = changed
        self._models: Mapping[str, Mapping[str, Any]] = {}
        self._look = asyncio.Event()

    def state(self) -> State:
        """The state, as it is known now."""
        return State(self.status, self.since, self.breaker.state, self.models())

    def models(self) -> tuple[str, ...]:
        """What it has loaded."""
        if self.status != "up":
            return ()
        if self.instance.kind == "router":
            return tuple(
                name for name, model in self._models.items() if model.get("value") in _LOADED
            )
        return (self.instance.model,) if self.instance.model else ()

    def router_model(self, name: str) -> Mapping[str, Any]:
        """What a router said last of a model: `value`, `failed`, `exit_code`."""
        return self._models.get(name, {})

    def see(self, status: Status) -> None:
        """A request or a probe met the instance so."""
        if status != self.status:
            if status == "up":
                self.breaker.restarted()
            self.status = status
            self.since = datetime.now(UTC)
            self._changed()
        if status != "up":
            self.look()

    def look(self) -> None:
        """Has the next probe come soon."""
        self._look.set()

    async def probe(self) -> None:
        """Asks the instance once. Where it takes long to answer, it is busy: nothing changes."""
        try:
            if self.instance.kind == "router":
                await self.read_models()
                self.see("up")
            else:
                self.see("up" if await self._prober.health() == "ok" else "loading")
        except EngineStalledError:
            return
        except EngineLoadingError:
            self.see("loading")
        except (EngineGoneError, EngineError):
            # An error that no llama-server gives to a probe: something else listens there.
            self.see("down")

    async def read_folder(self) -> None:
        """Has a router look anew for its models."""
        await self._prober.read_folder()
        await self.read_models()

    async def read_models(self) -> None:
        """Asks a router what it has loaded."""
        before = self.models()
        self._models = await self._prober.models()
        if self.models() != before:
            self._changed()

    async def run(self) -> None:
        """Probes until it is cancelled: seldom while all is well, often while one waits."""
        while True:
            # Never more often than this, however often requests tell that it is gone.
            await asyncio.sleep(_AWAITED_S)
            pause_s = _UP_S if self.status == "up" else _AWAITED_S if self.awaited else _DOWN_S
            try:
                async with asyncio.timeout(pause_s - _AWAITED_S):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            await self.probe()
