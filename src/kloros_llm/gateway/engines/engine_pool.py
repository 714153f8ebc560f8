"""The instances with their connections, states, breakers and routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace

import aiohttp

from ..config import Config, Instance, Limits
from .backend_numbers import BackendNumbers
from .breaker import Breaker
from .engine import Connection, Engine
from .router import RouterModels
from .watch import Watch

# llama-server closes a connection that was idle for 5 s (cpp-httplib's default).
_IDLE_S = 4.0
# uvloop's timers go off up to a millisecond early: who then looks would see nothing new.
_LATER_S = 0.01


class Member:
    """An instance with all that belongs to it."""

    def __init__(
        self, instance: Instance, engine: Engine, watch: Watch, router: RouterModels | None
    ) -> None:
        self.instance = instance
        self.watch = watch
        self.breaker = watch.breaker
        self.router = router
        self._engine = engine

    def engine(self, model: str) -> Engine:
        """The engine that serves `model` there."""
        return self._engine if self.router is None else self._engine.for_model(model)


class EnginePool:
    """All instances of the gateway, in one event loop, from `start` to `close`."""

    def __init__(self, config: Config, keep_alive_ns: int) -> None:
        self.members: dict[str, Member] = {}
        self.numbers = BackendNumbers()
        self.limits = config.limits
        self.closing = False
        self._config = config
        self._keep_alive_ns = keep_alive_ns
        self._probes: list[asyncio.Task[None]] = []
        self._sessions: list[aiohttp.ClientSession] = []
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Asks every instance once, and goes on asking beside the requests.

        Raises OSError where an instance's API key cannot be read.
        """
        kept, fresh = new_session(self.limits, reuse=True), new_session(self.limits, reuse=False)
        self._sessions = [kept, fresh]
        for instance in self._config.instances.values():
            self.members[instance.name] = self._member(instance, kept, fresh)
        watches = [member.watch for member in self.members.values()]
        await asyncio.gather(*(watch.probe() for watch in watches))
        self._probes = [asyncio.create_task(watch.run()) for watch in watches]
        for member in self.members.values():
            if member.router is not None and member.instance.pulled_models_dir is not None:
                self._probes.append(asyncio.create_task(member.router.keep_reading()))

    def _member(
        self, instance: Instance, kept: aiohttp.ClientSession, fresh: aiohttp.ClientSession
    ) -> Member:
        key_file = instance.api_key_file
        key = key_file.read_text(encoding="utf-8").strip() if key_file else None
        engine = Engine(instance, kept, fresh, api_key=key)
        watch = Watch(instance, engine.on_fresh_connection(), Breaker(time.monotonic), self.tell)
        if instance.kind == "dedicated":
            return Member(instance, engine, watch, None)
        router = RouterModels(watch, engine.for_model, self._keep_alive_ns)
        return Member(instance, engine, watch, router)

    async def close(self) -> None:
        """Sends away what waits, and closes every connection."""
        self.closing = True
        self.tell()
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for member in self.members.values():
            if member.router is not None:
                member.router.close()
        for session in self._sessions:
            await session.close()

    def candidates(self, names: Sequence[str]) -> list[Member]:
        """Instances in the order in which they are tried: after each its fallbacks."""
        found: dict[str, Member] = {}
        for first in names:
            name: str | None = first
            while name is not None and name not in found:
                found[name] = self.members[name]
                name = found[name].instance.fallback
        return list(found.values())

    def tell(self) -> None:
        """Whatever waits looks again."""
        self._news.set()
        self._news = asyncio.Event()

    def tell_in(self, wait_s: float) -> None:
        """`tell`, not before so much time has gone."""
        asyncio.get_running_loop().call_later(wait_s + _LATER_S, self.tell)

    async def news(self) -> None:
        """Returns at the next `tell`."""
        await self._news.wait()


def new_session(limits: Limits, *, reuse: bool) -> aiohttp.ClientSession:
    """Connections to engines, never by the environment's proxies: trust_env is off by default."""
    connector = (
        aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S)
        if reuse
        else aiohttp.TCPConnector(limit=0, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_s, sock_read=limits.stall_s
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        auto_decompress=False,
        trace_configs=[_tracing()] if reuse else None,
    )


def _tracing() -> aiohttp.TraceConfig:
    """Tells each request whether its connection had served before."""

    async def reused(
        _session: aiohttp.ClientSession,
        context: SimpleNamespace,
        _parameters: aiohttp.TraceConnectionReuseconnParams,
    ) -> None:
        connection: Connection = context.trace_request_ctx
        connection.reused = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(reused)
    return tracing
