"""The running gateway: listeners, signals, reload, drain."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import resource
import signal
import ssl
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket

import uvloop

from ..config import Config, ConfigError, Listener, read_config
from ..engines.backend_metrics import BackendSource
from ..engines.backends import Backends
from ..models.catalogue import Catalogue
from .access import Access, read_api_keys
from .access_log import AccessLog
from .activation import SocketError, bound_sockets, inherited_sockets, place_of, sockets_for
from .application import UPLOAD_ROUTES, make_application
from .connections import ListenerServer
from .guard import Guard
from .metrics import GatewayMetrics, metrics_application
from .notify import Notifier
from .services import Services

_log = logging.getLogger(__name__)

# What may change without a restart: who is called what.
_RELOADED = frozenset({"models", "personas"})


def allow_open_files() -> None:
    """As many open files as the system lets this process have: two a request under way."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def collect_garbage_seldom() -> None:
    """What is imported lives as long as the process, and tokens make next to no cycles: Python's
    own threshold (700 objects) takes 5 to 15 % of the time of many streams, measured with 256.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def let_the_event_loop_in() -> None:
    """Of the milliseconds that it waits for a thread which parses or renders, Python's default is
    5, and a request takes several turns. Measured: /api/tags beside 8 bodies of 2 million numbers
    takes 5 ms with that and 1.4 ms so (medians).
    """
    sys.setswitchinterval(0.001)


def tls_context(listener: Listener) -> ssl.SSLContext | None:
    """None for a listener without TLS. Raises OSError, or ValueError for what is in its files."""
    if listener.tls_certificate is None or listener.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(listener.tls_certificate, listener.tls_key)
    except ssl.SSLError as error:
        raise ValueError(
            f"{listener.tls_certificate} and {listener.tls_key} are no certificate with its key "
            f"({error.reason or error}); both are needed in PEM, the certificate's chain in the "
            "first"
        ) from error
    return context


def access_of(listener: Listener) -> Access:
    """The rules for a listener's clients. Raises OSError or ValueError for its file of keys."""
    keys = read_api_keys(listener.api_key_file) if listener.api_key_file else ()
    return Access(listener.address, listener.origins, keys)


def open_sockets(
    config: Config, inherited: Mapping[str, list[socket]]
) -> list[tuple[Listener, list[socket]]]:
    """Each listener's sockets. Raises SocketError."""
    opened = [
        (one, sockets_for(one.address, one.port, one.socket_name, inherited))
        for one in config.listeners
    ]
    for name in inherited.keys() - {one.socket_name for one in config.listeners}:
        _log.warning(
            "systemd passed the socket %s, which no listener of gateway.toml has as its "
            "socket_name: whoever connects to it waits",
            name,
        )
    return opened


class Gateway:
    """All listeners of one process. `path` is gateway.toml, `config` what it says."""

    def __init__(self, path: Path, config: Config, notifier: Notifier) -> None:
        self._path = path
        self._config = config
        self._notifier = notifier
        self._metrics = GatewayMetrics()
        self._catalogue = Catalogue(config)
        self._guards: list[tuple[Listener, Guard, ssl.SSLContext | None]] = []
        self._servers: list[ListenerServer] = []
        self._status = ""

    async def run(self, sockets: list[tuple[Listener, list[socket]]]) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError and ValueError for files it needs."""
        async with AsyncExitStack() as stack:
            access_log = AccessLog(sys.stdout)
            stack.callback(access_log.close)
            self._metrics.log_lines_dropped.set_function(lambda: access_log.dropped)
            stack.push_async_callback(self._catalogue.close)
            await self._catalogue.start()
            backends = Backends(self._config)
            stack.push_async_callback(backends.close)
            await backends.start()
            self._catalogue.have_read = backends.read_folders
            self._metrics.ask(BackendSource(backends))
            metrics_server = await self._start_metrics(stack)
            for listener, listening in sockets:
                await self._start(stack, listener, listening, backends, access_log)
            places = [place_of(one) for _, listening in sockets for one in listening]
            self._status = f"serving on {', '.join(places)}"
            _log.info("%s", self._status)
            await self._until_stopped()
            self._notifier.stopping(f"waiting for {self._open()} connections")
            await self._drain()
            if metrics_server is not None:
                await metrics_server.stop_accepting()
                await metrics_server.drain(asyncio.get_running_loop().time())

    async def _start_metrics(self, stack: AsyncExitStack) -> ListenerServer | None:
        where = self._config.metrics
        if where is None:
            return None
        server = ListenerServer(
            metrics_application(self._metrics, where.address),
            bound_sockets(where.address, where.port),
            self._config.limits,
            self._metrics.own_listener,
        )
        stack.push_async_callback(server.close)
        await server.start()
        return server

    async def _start(
        self,
        stack: AsyncExitStack,
        listener: Listener,
        listening: list[socket],
        backends: Backends,
        access_log: AccessLog,
    ) -> None:
        limits = self._config.limits
        guard = Guard(
            f"{listener.address}:{listener.port}",
            access_of(listener),
            self._metrics,
            access_log,
            body_bytes=limits.body_bytes,
            body_s=limits.body_s,
            uploads=UPLOAD_ROUTES,
            log_bodies=self._config.log_prompts,
        )
        services = Services(self._config, listener, self._catalogue, backends, self._metrics)
        tls = tls_context(listener)
        server = ListenerServer(
            make_application(services, guard, limits.body_bytes), listening, limits, guard, tls
        )
        stack.push_async_callback(server.close)
        await server.start()
        self._guards.append((listener, guard, tls))
        self._servers.append(server)

    async def _until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        stop, reload = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        beside = [asyncio.create_task(self._reload_when(reload))]
        if self._notifier.watchdog_s:
            beside.append(asyncio.create_task(self._stay_alive(self._notifier.watchdog_s / 2)))
        self._notifier.ready(self._status)
        await stop.wait()
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl+C ends it at once
        beside[0].cancel()
        await asyncio.wait(beside[:1])
        # systemd's watchdog goes on while the service stops: `beside` ends with the loop.

    async def _stay_alive(self, every_s: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(every_s)

    async def _reload_when(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            self._notifier.reloading()
            try:
                await self._reload()
            except Exception:
                _log.exception("gateway.toml could not be read anew; what was in force stays so")
            self._notifier.ready(self._status)

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(read_config, self._path)
            await asyncio.to_thread(self._reload_credentials)
        except (ConfigError, OSError, ValueError) as error:
            _log.error("%s\nWhat was in force stays so.", error)
            return
        changed = [
            field.name
            for field in dataclasses.fields(Config)
            if getattr(config, field.name) != getattr(self._config, field.name)
        ]
        needs_restart = sorted(set(changed) - _RELOADED)
        if needs_restart:
            _log.warning(
                "%s: %s changed, which takes a restart (systemctl restart kloros-llm-gateway); "
                "until then nothing of the file's changes is in force",
                self._path,
                ", ".join(needs_restart),
            )
            return
        before, self._catalogue.config = self._catalogue.config, config
        try:
            await self._catalogue.refresh()
        except BaseException:
            self._catalogue.config = before
            raise
        self._config = config
        _log.info("%s is in force: %s", self._path, ", ".join(changed) or "nothing changed")

    def _reload_credentials(self) -> None:
        """All of them or none. Raises OSError and ValueError."""
        accesses = [access_of(listener) for listener, _, _ in self._guards]
        for listener, _, _ in self._guards:
            # A context that has been given half a pair serves nobody any more.
            tls_context(listener)
        for (listener, guard, tls), access in zip(self._guards, accesses, strict=True):
            guard.access = access
            if tls and listener.tls_certificate:
                tls.load_cert_chain(listener.tls_certificate, listener.tls_key)

    def _open(self) -> int:
        return sum(len(server.connections) for server in self._servers)

    async def _drain(self) -> None:
        limits = self._config.limits
        until = asyncio.get_running_loop().time() + limits.drain_s
        await asyncio.gather(*(server.stop_accepting() for server in self._servers))
        _log.info("stopping: %d connections, at most %g s", self._open(), limits.drain_s)
        await asyncio.gather(*(server.drain(until) for server in self._servers))


def serve(path: Path) -> int:
    """Run the gateway. Returns an exit status: 78 (sysexits' EX_CONFIG) is not worth a retry."""
    notifier = Notifier(os.environ)
    try:
        config = read_config(path)
        allow_open_files()
        sockets = open_sockets(config, inherited_sockets(os.environ))
        collect_garbage_seldom()
        let_the_event_loop_in()
        # A third less CPU a token than asyncio's own loop, measured with 256 streams.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Gateway(path, config, notifier).run(sockets))
    except ConfigError as error:
        _log.error("%s", error)
        return 78
    except (SocketError, OSError, ValueError) as error:
        _log.error("%s", error)
        return 1
    return 0
