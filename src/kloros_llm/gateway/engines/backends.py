"""Nothing lost: requests reach an engine that can serve them, or wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from ..config import Config
from .attempts import FAILURES, SERVER_BUSY, Attempts, LoadClock, Target
from .backend_numbers import BackendNumbers
from .engine import Engine
from .engine_errors import EngineGoneError
from .engine_pool import EnginePool
from .watch import State

__all__ = ["KEEP_ALIVE_NS", "SERVER_BUSY", "Backends", "LoadClock", "Loaded", "State", "Target"]

KEEP_ALIVE_NS = 300_000_000_000
"""Ollama's default: a router's model stays so long after its last request."""

T = TypeVar("T")


class Closable(Protocol):
    """An answer that holds a connection."""

    def close(self) -> object:
        """Gives it up."""


C = TypeVar("C", bound=Closable)


@dataclass(frozen=True)
class Loaded:
    """A model in memory. `expires_at` None: it stays."""

    instance: str
    model: str
    expires_at: datetime | None


class Backends:
    """All instances. `start` before use, `close` at the end, in one event loop.

    A request takes the first of its target's instances that is up, or the fallback of one that
    is down or whose breaker is open; where none can take it, it waits, within the limits.

    `stream`, `call`, `open` and `ready` raise ApiError(503) where too many wait or it waited too
    long; EngineError as the engine answered; EngineStalledError; EngineGoneError where the engine
    broke off twice before the first item, or once after it.
    """

    def __init__(self, config: Config, *, keep_alive_ns: int = KEEP_ALIVE_NS) -> None:
        self._pool = EnginePool(config, keep_alive_ns)

    async def start(self) -> None:
        """Asks every instance once, and goes on asking beside the requests.

        Raises OSError where an instance's API key cannot be read.
        """
        await self._pool.start()

    async def close(self) -> None:
        """Sends away what waits, and closes every connection."""
        await self._pool.close()

    @property
    def numbers(self) -> BackendNumbers:
        """What is counted."""
        return self._pool.numbers

    def state(self, instance: str) -> State:
        """An instance as it was last seen. KeyError: there is none of that name."""
        return self._pool.members[instance].watch.state()

    def states(self) -> Mapping[str, State]:
        """All instances."""
        return {name: member.watch.state() for name, member in self._pool.members.items()}

    def breaker_openings(self) -> Mapping[str, int]:
        """How often each instance's breaker has opened."""
        return {name: member.breaker.opened for name, member in self._pool.members.items()}

    def loaded(self) -> list[Loaded]:
        """The models in memory as last seen, by instance."""
        return [
            Loaded(name, model, member.router.expires_at(model) if member.router else None)
            for name, member in self._pool.members.items()
            for model in member.watch.models()
        ]

    async def ready(
        self, target: Target, *, loading: LoadClock, keep_alive_ns: int | None = None
    ) -> Engine:
        """Waits until an engine can serve it; a router has loaded it then."""
        attempts = Attempts(self._pool, target, loading, keep_alive_ns)
        lease = await attempts.take()
        attempts.leave(lease)
        return lease.engine

    async def read_folders(self, folders: Collection[Path]) -> None:
        """Has the routers whose models lie in these folders read them anew. Returns when they have,
        and have ended what is no longer there; who does not answer is asked again later.
        """
        routers = [
            member.router
            for member in self._pool.members.values()
            if member.router is not None
            and member.instance.pulled_models_dir in folders
            and not self._pool.closing
        ]
        await asyncio.gather(*(router.read_folder() for router in routers))

    def unload(self, target: Target) -> None:
        """Has routers end the model, after the requests under way; dedicated ones keep it."""
        for name in target.instances:
            router = self._pool.members[name].router
            if router is not None:
                router.expire(target.persona.model.engine_name)

    async def stream(
        self,
        target: Target,
        start: Callable[[Engine], AsyncGenerator[T]],
        *,
        loading: LoadClock,
        keep_alive_ns: int | None = None,
    ) -> AsyncGenerator[T]:
        """What `start` yields. Whoever stops early closes it (contextlib.aclosing): that closes
        the connection at once, and llama-server stops generating.
        """
        attempts = Attempts(self._pool, target, loading, keep_alive_ns)
        while True:
            lease = await attempts.take()
            try:
                async with aclosing(start(lease.engine)) as items:
                    async for item in items:
                        if not lease.began:
                            attempts.began(lease)
                        yield item
                attempts.succeeded(lease)
                return
            except FAILURES as error:
                attempts.failed(lease, error)
            finally:
                attempts.leave(lease)

    async def call(
        self,
        target: Target,
        ask: Callable[[Engine], Awaitable[T]],
        *,
        loading: LoadClock,
        keep_alive_ns: int | None = None,
    ) -> T:
        """What `ask` returns."""
        attempts = Attempts(self._pool, target, loading, keep_alive_ns)
        while True:
            lease = await attempts.take()
            try:
                result = await ask(lease.engine)
                attempts.succeeded(lease)
                return result
            except FAILURES as error:
                attempts.failed(lease, error)
            finally:
                attempts.leave(lease)

    @asynccontextmanager
    async def open(
        self,
        target: Target,
        ask: Callable[[Engine], Awaitable[C]],
        *,
        loading: LoadClock,
        keep_alive_ns: int | None = None,
    ) -> AsyncIterator[C]:
        """An answer to pass on, as Engine.open gives it; closed at the end. Where it breaks off
        while it is read, EngineGoneError(began=True). What `ask` reads of it already, and loses,
        is asked for again.
        """
        attempts = Attempts(self._pool, target, loading, keep_alive_ns)
        response: C | None = None
        while response is None:
            lease = await attempts.take()
            try:
                response = await ask(lease.engine)
                attempts.began(lease)
            except FAILURES as error:
                attempts.failed(lease, error)
            finally:
                if response is None:
                    attempts.leave(lease)
        try:
            yield response
            attempts.succeeded(lease)
        except EngineGoneError as error:
            error.began = True
            attempts.failed(lease, error)
        finally:
            response.close()
            attempts.leave(lease)
