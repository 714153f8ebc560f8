"""Around every handler: identity, access, errors in the client's form, limits, the account."""

from __future__ import annotations

import asyncio
import http
import logging
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from ..errors import ApiError, error_body, error_line, family_of
from ..ollama_api.answering import BROKEN_OFF
from .access import UNAUTHORIZED, Access, Headers
from .access_log import RECORD, AccessLog, RequestRecord, access_line
from .body_clock import BodyClock
from .connections import Connection, End
from .metrics import GatewayMetrics
from .unrouted import unrouted

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CLIENT_GONE = 499
_LOGGED_BODY = 64 << 10
_TOLD_S = 1.0
_MALFORMED = "malformed request body"
_NAMED = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII).fullmatch

_HEADERS: web.RequestKey[Headers] = web.RequestKey("headers", tuple)
_RESPONSE: web.RequestKey[web.StreamResponse] = web.RequestKey("response", web.StreamResponse)


def route_of(request: web.BaseRequest) -> str:
    """The route's path as it was declared: a bounded number of values."""
    if not isinstance(request, web.Request):
        return "other"
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"


class Guard:
    """The middleware of one listener, and the observer of its connections.

    `uploads` are routes whose bodies may have any size and may take as long as they need, as
    long as they come. `log_bodies`: the access log tells what was asked.
    """

    def __init__(
        self,
        listener: str,
        access: Access,
        metrics: GatewayMetrics,
        access_log: AccessLog,
        *,
        body_bytes: int,
        body_s: float,
        uploads: frozenset[str] = frozenset(),
        log_bodies: bool = False,
    ) -> None:
        self._listener = listener
        self._metrics = metrics
        self._access_log = access_log
        self.access = access
        """Replaced when its files are read anew."""
        self._body_bytes = body_bytes
        self._body_s = body_s
        self._uploads = uploads
        self._log_bodies = log_bodies

    def connected(self, change: int) -> None:
        """See connections.Observer."""
        self._metrics.connections.labels(self._listener).inc(change)

    def ended(self, reason: str) -> None:
        """See connections.Observer."""
        self._metrics.refused.labels(self._listener, reason).inc()

    def answered(self, request: web.BaseRequest, status: int) -> None:
        """See connections.Observer."""
        record = request.get(RECORD)
        if record is not None:
            self._account(request, record, record.status or status)

    def _account(self, request: web.BaseRequest, record: RequestRecord, status: int) -> None:
        route = route_of(request)
        self._metrics.request(record, route, status)
        self._access_log.write(
            access_line(
                record,
                method=request.method,
                route=route if route != "other" else request.path[:200],
                status=status,
                client=request.remote or "",
            )
        )

    async def prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal handler: headers of an answer, just before they are sent."""
        record = request.get(RECORD)
        if record is None:
            return
        request[_RESPONSE] = response
        headers = response.headers
        headers["X-Request-Id"] = record.id
        for name, value in request.get(_HEADERS, ()):
            headers.add(name, value)
        headers.pop("Server", None)
        if response.content_length == 0 and response.content_type == "application/octet-stream":
            headers.pop("Content-Type", None)  # aiohttp's own; Ollama's empty answers have none
        if cast(Connection, request.protocol).draining:
            response.force_close()
            headers["Connection"] = "close"

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """All that is asked of this listener comes through here."""
        asked_id = request.headers.get("X-Request-Id", "")
        record = RequestRecord(
            asked_id if _NAMED(asked_id) else secrets.token_hex(8), self._listener
        )
        request[RECORD] = record
        connection = cast(Connection, request.protocol)
        running = self._metrics.running.labels(self._listener)
        connection.began(request.content)
        running.inc()
        try:
            return await self._answer(request, handler)
        except asyncio.CancelledError:
            if connection.end_reason is None:
                self._account(request, record, _CLIENT_GONE)
                raise
            cast("asyncio.Task[object]", asyncio.current_task()).uncancel()
            return await self._cut_short(request, connection.end_reason)
        except ConnectionError:
            # The client went away between two writes.
            record.status = _CLIENT_GONE
            connection.force_close()
            return request.get(_RESPONSE) or web.Response(status=_CLIENT_GONE)
        finally:
            connection.handled()
            running.dec()

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        clock: BodyClock | None = None
        try:
            if (refusal := self._refusal(request)) is not None:
                return refusal
            if request.can_read_body and not request.content.is_eof():
                upload = route_of(request) in self._uploads
                if not upload and (request.content_length or 0) > self._body_bytes:
                    raise ApiError(413, "http: request body too large")
                connection = cast(Connection, request.protocol)
                clock = BodyClock(request.content, self._body_s, connection.end, steady=upload)
            return await handler(request)
        except ApiError as error:
            return await self._failed(request, error)
        except web.HTTPException as error:
            return await self._http_exception(request, error)
        except web.RequestPayloadError:
            return await self._failed(request, ApiError(400, _MALFORMED))
        except ConnectionError:
            raise
        except Exception as error:
            record = request[RECORD]
            _log.error(
                "request %s: %s %s\n%s",
                record.id,
                request.method,
                route_of(request),
                _trace(error, texts=self._log_bodies),
            )
            return await self._failed(
                request, ApiError(500, f"internal error, logged under request id {record.id}")
            )
        finally:
            if clock is not None:
                clock.stop()
            if self._log_bodies:
                await self._keep_body(request)

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The answer to who may not ask, or to a CORS preflight."""
        asked = request.headers
        decision = self.access.decide(
            request.method,
            asked.get("Host", ""),
            asked.get("Origin", ""),
            asked.get("Authorization", ""),
            asked.get("X-Api-Key", ""),
        )
        request[_HEADERS] = decision.headers
        if decision.status is None:
            return None
        if decision.status == 401:
            raise ApiError(401, UNAUTHORIZED)
        return web.Response(status=decision.status)

    async def _http_exception(
        self, request: web.Request, error: web.HTTPException
    ) -> web.StreamResponse:
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            return await self._failed(request, ApiError(413, "http: request body too large"))
        if request.match_info.http_exception is not None:
            return unrouted(request, error)
        phrase = http.HTTPStatus(error.status).phrase.lower()
        return await self._failed(request, ApiError(error.status, phrase))

    async def _failed(self, request: web.Request, error: ApiError) -> web.StreamResponse:
        """The error as an answer, or at the end of the answer that has begun."""
        begun = request.get(_RESPONSE)
        if begun is not None and begun.prepared:
            return await self._break_off(request, begun, error.text)
        body = error_body(family_of(request.path), error.status, error.text)
        return web.Response(
            status=error.status, body=body.data, headers={"Content-Type": body.content_type}
        )

    async def _cut_short(self, request: web.Request, reason: End) -> web.StreamResponse:
        if reason is End.SLOW_BODY:
            self.ended(reason.value)
            error = ApiError(408, "the request's body took too long")
        elif reason is End.BAD_BODY:
            self.ended(reason.value)
            error = ApiError(400, _MALFORMED)
        elif request.get(_RESPONSE) is not None:
            error = ApiError(500, BROKEN_OFF)
        else:
            error = ApiError(503, "the server is restarting, please try again")
        response = await self._failed(request, error)
        response.force_close()
        return response

    async def _break_off(
        self, request: web.Request, begun: web.StreamResponse, text: str
    ) -> web.StreamResponse:
        """Ollama's error line where the form of the stream has one, else a broken connection."""
        last = {
            "application/x-ndjson": lambda: error_line(text),
            "text/event-stream": lambda: _error_event(request.path, text),
        }.get(begun.content_type)
        try:
            async with asyncio.timeout(_TOLD_S):
                if last is not None:
                    await begun.write(last())
                    await begun.write_eof()
                    return begun
        except (ConnectionError, TimeoutError, RuntimeError):
            # Gone, not reading, or already at its end.
            pass
        # An end that looks like one would make half an answer a whole one.
        cast(Connection, request.protocol).force_close()
        return begun

    async def _keep_body(self, request: web.Request) -> None:
        if request.content.is_eof() and route_of(request) not in self._uploads:
            body = await request.read()
            request[RECORD].body = body[:_LOGGED_BODY].decode("utf-8", "replace")


def _trace(error: BaseException, *, texts: bool) -> str:
    """Where it was raised. Its text may hold what a client asked: only where that is logged."""
    if texts:
        return "".join(traceback.format_exception(error)).rstrip()
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.insert(0, at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "".join(
        f"Traceback (most recent call last):\n{''.join(traceback.format_tb(one.__traceback__))}"
        f"{type(one).__module__}.{type(one).__qualname__}\n"
        for one in chain
    ).rstrip()


def _error_event(path: str, text: str) -> bytes:
    family = family_of(path)
    data = error_body(family, 500, text).data.strip()
    name = b"event: error\n" if family == "anthropic" else b""
    return b"%sdata: %s\n\n" % (name, data)
