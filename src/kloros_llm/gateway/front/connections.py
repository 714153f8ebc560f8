"""One listener's connections: bounds on slow and oversized senders, and the way they end."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import http
import logging
import socket
import ssl
import termios
from collections.abc import Iterable
from typing import Any, Protocol, cast

from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from ..config import Limits

_log = logging.getLogger(__name__)

_BACKLOG = 4096
# Of a header. It bounds one that comes behind a request at work, or behind a body in chunks, where
# its bytes are not counted.
_MOST_FIELDS = 1024
# Longer than clients and proxies keep a pooled connection without using it.
_IDLE_S = 600.0
# A connection that is used steadily is told to close with its next answer. One is closed that was
# idle for twice the time between its last two requests, within these bounds.
_DRAIN_IDLE_S = 0.25
_DRAIN_MOST_IDLE_S = 1.0
_DRAIN_FRESH_S = 2.0
_DRAIN_STEP_S = 0.02
_ENDING_S = 2.0
# Clients that close without a word of TLS are common; asyncio waits 30 s for it.
_TLS_END_S = 1.0


class Observer(Protocol):
    """Who is told of connections: metrics and the access log."""

    def connected(self, change: int) -> None:
        """One more (1) or one less (-1)."""

    def ended(self, reason: str) -> None:
        """A connection was ended for what its client did: "slow header", "bad request", …"""

    def answered(self, request: web.BaseRequest, status: int) -> None:
        """An answer is written to its end."""


class End(enum.Enum):
    """Why a handler is cancelled, where it is not because its client went away."""

    SLOW_BODY = "slow body"
    BAD_BODY = "bad body"
    RESTART = "restart"


class _Phase(enum.Enum):
    FRESH = enum.auto()  # no request yet
    IDLE = enum.auto()  # between two requests
    HEADER = enum.auto()  # a part of a header is here
    BUSY = enum.auto()  # from the end of a header to the end of the answer


class _NoAccessLog(AbstractAccessLogger):
    """What aiohttp would write: the gateway's own lines say more."""

    @property
    def enabled(self) -> bool:
        return False

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        raise NotImplementedError("aiohttp asks no logger that is not enabled")


class Connection(web.RequestHandler):
    """aiohttp's connection with a time and a size for headers, which it has not.

    The application tells it when a request begins (`began`).
    """

    __slots__ = (
        "_body",
        "_gap_s",
        "_handler",
        "_header_bytes",
        "_header_tail",
        "_header_timer",
        "_idle_since",
        "_phase",
        "_server_of",
        "end_reason",
    )

    def __init__(self, server: ListenerServer, manager: web.Server) -> None:
        limits = server.limits
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_IDLE_S,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=_MOST_FIELDS,
            lingering_time=2.0,
            # A small body could become a large one.
            auto_decompress=False,
            access_log=_log,
            access_log_class=_NoAccessLog,
        )
        self._server_of = server
        self._phase = _Phase.FRESH
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._header_tail = b""
        self._idle_since = 0.0
        self._gap_s = _DRAIN_MOST_IDLE_S  # unknown before the second request
        self._body: StreamReader | None = None
        self._handler: asyncio.Task[Any] | None = None
        self.end_reason: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._idle_since = asyncio.get_running_loop().time()
        self._server_of.connections.add(self)
        self._server_of.unmade -= 1
        self._server_of.observer.connected(1)
        self._expect_header()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_header_timer()
        self._server_of.connections.discard(self)
        self._server_of.observer.connected(-1)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase is not _Phase.BUSY and data and not self._header_part(data):
            return
        super().data_received(data)
        self._refuse_as_go()
        # aiohttp puts what its parser cannot read behind the request at work, and lets this one
        # wait for the rest of its body for ever.
        if (
            self._messages
            and not isinstance(self._messages[-1][0], RawRequestMessage)
            and self._body is not None
            and not self._body.is_eof()
        ):
            self.end(End.BAD_BODY)

    def _refuse_as_go(self) -> None:
        """What aiohttp takes or trips over: HTTP/0.9 and HTTP/2 in the form of HTTP/1, which it
        would answer under their name, and expectations that nobody knows.
        """
        for index, (message, _) in enumerate(self._messages):
            if not isinstance(message, RawRequestMessage):
                continue
            expected = message.headers.get("Expect", "")
            if message.version.major != 1:
                status = http.HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            elif expected and expected.lower() != "100-continue":
                status = http.HTTPStatus.EXPECTATION_FAILED
            else:
                continue
            problem = BadHttpMessage(status.phrase)
            refused = _ErrInfo(status=status.value, exc=problem, message=problem.message)
            self._messages[index] = (refused, EMPTY_PAYLOAD)

    def _header_part(self, data: bytes) -> bool:
        """False where the header has become too large."""
        if not self._header_bytes:
            # Empty lines before a request mean nothing (RFC 9112, 2.2).
            data = data.lstrip(b"\r\n")
            if not data:
                return True
        if self._phase is _Phase.IDLE:
            self._gap_s = asyncio.get_running_loop().time() - self._idle_since
            self._expect_header()
        self._phase = _Phase.HEADER
        seen = self._header_tail + data
        end = seen.find(b"\r\n\r\n")
        if end >= 0:
            size = self._header_bytes - len(self._header_tail) + end
            self._stop_header_timer()
            self._phase = _Phase.BUSY
            self._header_bytes = 0
            self._header_tail = b""
        else:
            self._header_bytes += len(data)
            size = self._header_bytes
            self._header_tail = seen[-3:]
        if size <= self._server_of.limits.header_bytes:
            return True
        self._refuse(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return False

    def _expect_header(self) -> None:
        self._header_timer = asyncio.get_running_loop().call_later(
            self._server_of.limits.header_s, self._header_late
        )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_late(self) -> None:
        # As Go's server: closed without a word, there is no request to answer.
        self._header_timer = None
        if self._phase is _Phase.HEADER:
            self._server_of.observer.ended("slow header")
        self.force_close()

    def _refuse(self, status: http.HTTPStatus) -> None:
        """Answer outside of aiohttp, which has no request to answer yet."""
        self._stop_header_timer()
        self._server_of.observer.ended(status.phrase.lower())
        if self.transport is not None:
            text = f"{status.value} {status.phrase}"
            self.transport.write(
                f"HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Connection: close\r\n\r\n{text}".encode()
            )
        self.force_close()

    @property
    def draining(self) -> bool:
        """Whether this answer is the connection's last one."""
        return self._server_of.draining

    def began(self, body: StreamReader) -> None:
        """A request with this body is handled, in the current task."""
        self._stop_header_timer()
        self._body = body
        self._phase = _Phase.BUSY
        self._handler = asyncio.current_task()
        self.end_reason = None

    def handled(self) -> None:
        """The handler is through; its answer may still be on the way."""
        self._handler = None
        self._body = None

    def end(self, reason: End) -> None:
        """Cancel the handler, if one is at work; it finds `end_reason`."""
        if self._handler is not None and self.end_reason is None:
            self.end_reason = reason
            self._handler.cancel()

    def log_access(
        self, request: web.BaseRequest, response: web.StreamResponse, time: float | None
    ) -> None:
        # aiohttp calls it when an answer is written to its end, whatever it was.
        del time
        # What comes of a body that nobody wanted is no header.
        request.content.on_eof(self._await_next)
        self._server_of.observer.answered(request, response.status)

    def _await_next(self) -> None:
        self._phase = _Phase.IDLE
        self._header_bytes = 0
        self._header_tail = b""
        self._idle_since = asyncio.get_running_loop().time()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, as Go's server gives it."""
        del message
        if isinstance(exc, LineTooLong):
            status = 431
        if isinstance(exc, ConnectionError):
            raise exc  # the client is gone: nobody is left to be answered
        if status == 500:
            _log.error("unexpected error outside of a handler", exc_info=exc)
        else:
            self._server_of.observer.ended("bad request")
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is sent, no other can follow")
        response = web.Response(
            status=status,
            body=f"{status} {http.HTTPStatus(status).phrase}".encode(),
            headers={"Content-Type": "text/plain; charset=utf-8", "Server": "kloros-llm"},
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What no handler caught. Not that a client left while aiohttp read on behind an answer
        for the rest of its body: nobody is left to be answered.
        """
        error = kw.get("exc_info")
        if self.transport is None and isinstance(error, RuntimeError | ConnectionError):
            return
        super().log_exception(*args, **kw)

    def close_if_idle(self, now: float) -> None:
        """Close it unless a request is there, on its way, or may still be."""
        quiet_s = now - self._idle_since
        idle_s = min(max(_DRAIN_IDLE_S, 2 * self._gap_s), _DRAIN_MOST_IDLE_S)
        if (self._phase is _Phase.IDLE and quiet_s >= idle_s) or (
            self._phase is _Phase.FRESH and quiet_s >= _DRAIN_FRESH_S
        ):
            self._close_quietly()

    def _close_quietly(self) -> None:
        """Close it, unless bytes are here unread: a request, and closing would lose it."""
        if self.transport is not None:
            connected = self.transport.get_extra_info("socket")
            unread = fcntl.ioctl(connected.fileno(), termios.FIONREAD, b"\0\0\0\0")
            if any(unread):
                return
            if self.ssl_context is None:
                # The loop closes in its next turn; a client that looks now must see the end.
                with contextlib.suppress(OSError), connected.dup() as own:
                    own.shutdown(socket.SHUT_WR)
        self.force_close()


class ListenerServer:
    """An application on its listening sockets."""

    def __init__(
        self,
        application: web.Application,
        sockets: Iterable[socket.socket],
        limits: Limits,
        observer: Observer,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits
        self.observer = observer
        self.connections: set[Connection] = set()
        self.draining = False
        self.unmade = 0
        """Connections that were accepted and not made: TLS was not agreed on, or not yet."""
        self._accepted_at = 0.0
        self._sockets = tuple(sockets)
        self._tls = tls
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Accept connections."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            server = await loop.create_server(
                self._accept,
                sock=listening,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.header_s if self._tls else None,
                ssl_shutdown_timeout=_TLS_END_S if self._tls else None,
            )
            self._servers.append(server)

    def _accept(self) -> Connection:
        self.unmade += 1
        self._accepted_at = asyncio.get_running_loop().time()
        return Connection(self, cast(web.Server, self._runner.server))

    async def stop_accepting(self) -> None:
        """Close this process's listening sockets; those that systemd holds stay open there."""
        self.draining = True
        loop = asyncio.get_running_loop()
        # With asyncio's own loop a connection that was accepted in this turn attaches itself to
        # the server in the next; a closed server would drop it. uvloop does both at once.
        if isinstance(loop, asyncio.SelectorEventLoop):
            for server in self._servers:
                for listening in server.sockets:
                    loop.remove_reader(listening.fileno())
            for _ in range(3):
                await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def drain(self, until: float) -> None:
        """Let answers end by themselves until that time of the loop, then end them."""
        loop = asyncio.get_running_loop()
        while (now := loop.time()) < until and (self.connections or self._is_greeted(now)):
            for connection in tuple(self.connections):
                connection.close_if_idle(now)
            await asyncio.sleep(_DRAIN_STEP_S)
        for connection in tuple(self.connections):
            connection.end(End.RESTART)
        last = loop.time() + _ENDING_S
        while self.connections and loop.time() < last:
            for connection in tuple(self.connections):
                connection.close_if_idle(loop.time())
            await asyncio.sleep(_DRAIN_STEP_S)
        for connection in tuple(self.connections):
            connection.force_close()

    def _is_greeted(self, now: float) -> bool:
        """Whether a client may be about to agree on TLS; who fails to do so is not told of."""
        return self.unmade > 0 and now - self._accepted_at < _DRAIN_FRESH_S

    async def close(self) -> None:
        """Release everything."""
        await self._runner.cleanup()
