"""One request's way to an engine: choosing, waiting, and what is tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..errors import ApiError
from ..models.personas import Persona
from .backend_numbers import ErrorKind
from .breaker import TRY_S
from .engine import Engine
from .engine_answers import INVALID_ANSWER
from .engine_errors import (
    EngineError,
    EngineGoneError,
    EngineLoadingError,
    EngineRefusedError,
    EngineStalledError,
)
from .engine_pool import EnginePool, Member

_PAUSE_S = 0.1

SERVER_BUSY = "server busy, please try again.  maximum pending requests exceeded"

Failure: TypeAlias = EngineError | EngineLoadingError | EngineGoneError
FAILURES = (EngineError, EngineLoadingError, EngineGoneError)


class Target(Protocol):
    """What is to be served: catalogue.Served."""

    @property
    def persona(self) -> Persona:
        """Its model's engine_name is the one that routers know."""

    @property
    def instances(self) -> tuple[str, ...]:
        """In order of preference."""


class LoadClock:
    """How long a request waited until an engine could take it: Ollama's load_duration."""

    __slots__ = ("_waited_ns",)

    def __init__(self) -> None:
        self._waited_ns = 0

    def add(self, waited_ns: int) -> None:
        """It waited once more."""
        self._waited_ns += waited_ns

    @property
    def ns(self) -> int:
        """Nanoseconds; never 0, as with Ollama."""
        return max(1, self._waited_ns)


@dataclass
class Lease:
    """One attempt on an engine. `tries`: its outcome decides on a half-open breaker."""

    member: Member
    engine: Engine
    tries: bool
    began: bool = False


class Attempts:
    """Leases for one request: `take`, then `began`, `succeeded`, `failed` as it goes, then
    `leave`; all again where `failed` returned.
    """

    def __init__(
        self, pool: EnginePool, target: Target, clock: LoadClock, keep_alive_ns: int | None
    ) -> None:
        self._pool = pool
        self._numbers = pool.numbers
        self._clock = clock
        self._keep_alive_ns = keep_alive_ns
        self._model = target.persona.model.engine_name
        self._name = target.persona.model.name
        self._declared = target.instances
        self._candidates = pool.candidates(target.instances)
        if not self._candidates:
            raise ApiError(
                503,
                f"no instance serves model '{self._name}': it is installed, but neither named by "
                "an instance in llama_instances nor served by a router",
            )
        self._left_s = pool.limits.wait_s
        self._broke_off = False
        self._fresh = False
        self._pause = False

    async def take(self) -> Lease:
        """Waits until an engine can take it. Raises ApiError(503); EngineError from a load."""
        began = time.perf_counter_ns()
        try:
            member = self._choose()
            if member is None or self._pause or self._left_s <= 0 or not self._is_loaded(member):
                member = await self._wait()
        finally:
            waited_ns = time.perf_counter_ns() - began
            self._clock.add(waited_ns)
            self._left_s -= waited_ns / 1e9
        return self._lease(member)

    def _choose(self) -> Member | None:
        """The first of the model's own instances that is up; else the first fallback that is, or
        none where an instance that is loading comes before it.
        """
        usable = [
            member
            for member in self._candidates
            if member.watch.status != "down" and member.breaker.allows
        ]
        for member in usable:
            if member.watch.status == "up" and member.instance.name in self._declared:
                return member
        return usable[0] if usable and usable[0].watch.status == "up" else None

    def _is_loaded(self, member: Member) -> bool:
        return member.router is None or member.router.is_loaded(self._model)

    async def _wait(self) -> Member:
        with self._in_queue():
            try:
                async with asyncio.timeout(self._left_s):
                    return await self._awaited()
            except TimeoutError:
                self._numbers.expired += 1
                raise ApiError(503, SERVER_BUSY) from None

    @contextmanager
    def _in_queue(self) -> Iterator[None]:
        if self._numbers.waiting >= self._pool.limits.queue:
            self._numbers.rejected += 1
            raise ApiError(503, SERVER_BUSY)
        self._numbers.waiting += 1
        for member in self._candidates:
            member.watch.awaited += 1
        try:
            yield
        finally:
            self._numbers.waiting -= 1
            for member in self._candidates:
                member.watch.awaited -= 1

    async def _awaited(self) -> Member:
        while True:
            if self._pool.closing:
                raise ApiError(503, SERVER_BUSY)
            if self._pause:
                # It says that it loads, whatever the probes say, or is about to be gone.
                self._pause = False
                await asyncio.sleep(_PAUSE_S)
            member = self._choose()
            if member is None:
                for candidate in self._candidates:
                    if candidate.watch.status != "up":
                        candidate.watch.look()
                await self._pool.news()
            elif member.router is None or self._is_loaded(member):
                return member
            else:
                try:
                    await member.router.load(self._model, self._name)
                    return member
                except (EngineLoadingError, EngineGoneError) as error:
                    self._failed(member, error)
                    self._pause = True

    def _lease(self, member: Member) -> Lease:
        name = member.instance.name
        if name not in self._declared:
            self._numbers.fallbacks[self._declared[0], name] += 1
        self._numbers.requests[name] += 1
        self._numbers.running[name] += 1
        if member.router is not None:
            member.router.enter(self._model, self._keep_alive_ns)
        engine = member.engine(self._model)
        if self._fresh:
            engine = engine.on_fresh_connection()
        tries = member.breaker.enter()
        if tries:
            self._pool.tell_in(TRY_S)
        return Lease(member, engine, tries)

    def leave(self, lease: Lease) -> None:
        """The attempt is over, whatever came of it."""
        self._numbers.running[lease.member.instance.name] -= 1
        if lease.member.router is not None:
            lease.member.router.leave(self._model)
        if lease.tries and not lease.began:
            lease.member.breaker.release()
            self._pool.tell()

    def began(self, lease: Lease) -> None:
        """The engine began to answer."""
        lease.began = True
        if lease.member.breaker.state != "closed":
            lease.member.breaker.began()
            self._pool.tell()

    def succeeded(self, lease: Lease) -> None:
        """The engine answered to the end."""
        self.began(lease)
        lease.member.breaker.succeed()

    def failed(self, lease: Lease, error: Failure) -> None:
        """Raises `error`, or returns where the request may be tried again. ApiError(404) where a
        router has meanwhile forgotten what clients had pulled: its name for that means nothing to
        them.
        """
        member = lease.member
        self._failed(member, error)
        if isinstance(error, EngineError) and self._is_forgotten(error):
            raise ApiError(404, f"model '{self._name}' not found") from error
        if isinstance(error, EngineLoadingError):
            self._pause = True
        elif isinstance(error, EngineError) or self._is_final(error) or lease.began:
            raise error
        self._numbers.retries[member.instance.name] += 1

    def _is_forgotten(self, error: EngineError) -> bool:
        return self._model != self._name and error.message == f"model '{self._model}' not found"

    def _is_final(self, error: EngineGoneError) -> bool:
        """Twice broken off is enough: it may be the request that breaks the engine. What nobody
        took, and what a connection that was being closed lost, does not count.
        """
        if isinstance(error, EngineRefusedError):
            return False
        if error.began or isinstance(error, EngineStalledError):
            return True
        self._fresh = True
        if error.reused:
            return False
        # An engine that is killed may still take connections, to drop them, when it has dropped
        # this one: they would be both tries.
        self._pause = True
        broke_off, self._broke_off = self._broke_off, True
        return broke_off

    def _failed(self, member: Member, error: Failure) -> None:
        """What it tells of the instance."""
        kind = _kind(error)
        self._numbers.errors[member.instance.name, kind] += 1
        if kind == "refused":
            member.watch.see("down")
        elif kind == "loading" and member.router is None:
            member.watch.see("loading")
        elif kind in {"gone", "cut", "stalled", "invalid"}:
            member.watch.look()
            if member.breaker.fail():
                self._pool.tell_in(member.breaker.pause_s)


def _kind(error: Failure) -> ErrorKind:
    if isinstance(error, EngineLoadingError):
        return "loading"
    if isinstance(error, EngineGoneError):
        return _kind_of_gone(error)
    if error.kind == INVALID_ANSWER:
        return "invalid"
    return "client" if error.status < 500 else "server"


def _kind_of_gone(error: EngineGoneError) -> ErrorKind:
    if isinstance(error, EngineRefusedError):
        return "refused"
    if isinstance(error, EngineStalledError):
        return "stalled"
    if error.began:
        return "cut"
    return "reused" if error.reused else "gone"
