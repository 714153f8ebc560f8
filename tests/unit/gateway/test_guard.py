"""What surrounds every handler, through real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, web

from kloros_llm.gateway.config import Limits
from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.front.access import Access
from kloros_llm.gateway.front.access_log import RECORD, AccessLog
from kloros_llm.gateway.front.activation import bound_sockets
from kloros_llm.gateway.front.connections import ListenerServer
from kloros_llm.gateway.front.guard import Guard
from kloros_llm.gateway.front.metrics import GatewayMetrics
from tests.unit.gateway.prometheus_numbers import numbers

_LIMITS = Limits(body_bytes=1000, body_s=0.5)
_KEY = "c29tZSBrZXk"


class Lab:
    """A guarded listener with handlers that fail in every way."""

    def __init__(self, *, keys: tuple[bytes, ...] = (), log_bodies: bool = False) -> None:
        self.metrics = GatewayMetrics()
        self.output = io.StringIO()
        self._access_log = AccessLog(self.output)
        self.go = asyncio.Event()
        sockets = bound_sockets("127.0.0.1", 0)
        self.port: int = sockets[0].getsockname()[1]
        guard = Guard(
            "here",
            Access("127.0.0.1", ("https://known.example",), keys, hostname="astraea"),
            self.metrics,
            self._access_log,
            body_bytes=_LIMITS.body_bytes,
            body_s=_LIMITS.body_s,
            uploads=frozenset({"/upload"}),
            log_bodies=log_bodies,
        )
        application = web.Application(
            middlewares=[guard.middleware], client_max_size=_LIMITS.body_bytes
        )
        application.on_response_prepare.append(guard.prepared)
        route = application.router.add_route
        for method in ("HEAD", "GET"):
            route(method, "/", self._alive)
        for path in ("/api/echo", "/v1/echo", "/v1/messages"):
            route("POST", path, self._echo)
        route("GET", "/api/echo", self._alive)
        for path in ("/api/refused", "/v1/refused", "/v1/messages/refused"):
            route("GET", path, self._refused)
        route("GET", "/api/broken", self._broken)
        route("GET", "/api/stream", self._stream)
        route("GET", "/v1/stream", self._stream)
        route("DELETE", "/api/empty", self._empty)
        route("POST", "/upload", self._upload)
        self.server = ListenerServer(application, sockets, _LIMITS, guard)

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        request[RECORD].model = "asked"
        return web.Response(body=body)

    async def _refused(self, _: web.Request) -> web.Response:
        raise ApiError(404, "model 'x' not found")

    async def _broken(self, _: web.Request) -> web.Response:
        what = "private"
        try:
            return web.Response(text=str(1 / 0))
        except ZeroDivisionError as error:
            raise KeyError(what) from error

    async def _empty(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return web.Response(text=str(size))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        kind = "application/x-ndjson" if request.path.startswith("/api") else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(b'{"done":false}\n')
        match request.query.get("then"):
            case "wait":
                await self.go.wait()
            case "api error":
                raise ApiError(500, "it broke")
            case _:
                raise KeyError("a secret")
        return response

    def lines(self) -> list[dict[str, Any]]:
        self._access_log.close()
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


def in_lab(
    test: Callable[[Lab, ClientSession], Awaitable[None]],
    *,
    keys: tuple[bytes, ...] = (),
    log_bodies: bool = False,
) -> Lab:
    async def run() -> Lab:
        lab = Lab(keys=keys, log_bodies=log_bodies)
        await lab.server.start()
        async with ClientSession() as session, asyncio.timeout(30):
            await test(lab, session)
        lab.go.set()
        await lab.server.stop_accepting()
        await lab.server.drain(asyncio.get_running_loop().time())
        await lab.server.close()
        return lab

    return asyncio.run(run())


def test_every_answer_has_an_id_and_only_headers_that_ollama_has() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.get(lab.url("/"), headers={"X-Request-Id": "mine-1"}) as answer:
            assert answer.headers["X-Request-Id"] == "mine-1"
            assert "Server" not in answer.headers
            assert await answer.text() == "Ollama is running"
        async with session.get(lab.url("/"), headers={"X-Request-Id": "a b\t<"}) as answer:
            assert len(answer.headers["X-Request-Id"]) == 16
        async with session.head(lab.url("/")) as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, "17")
        async with session.delete(lab.url("/api/empty")) as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, "0")
            assert "Content-Type" not in answer.headers

    assert in_lab(test).lines()[0]["id"] == "mine-1"


def test_an_error_has_the_form_of_its_api() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        told = {}
        for path in ("/api/refused", "/v1/refused", "/v1/messages/refused"):
            async with session.get(lab.url(path)) as answer:
                assert answer.status == 404
                told[path] = json.loads(await answer.read())
        assert told["/api/refused"] == {"error": "model 'x' not found"}
        assert told["/v1/refused"]["error"]["type"] == "not_found_error"
        assert told["/v1/messages/refused"]["type"] == "error"

    in_lab(test)


@pytest.mark.parametrize("prompts", [False, True])
def test_what_nobody_expected_is_logged_and_not_told(
    caplog: pytest.LogCaptureFixture, prompts: bool
) -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.get(lab.url("/api/broken"), headers={"X-Request-Id": "me"}) as answer:
            assert answer.status == 500
            assert await answer.json() == {"error": "internal error, logged under request id me"}

    with caplog.at_level(logging.ERROR):
        in_lab(test, log_bodies=prompts)
    assert "request me: GET /api/broken" in caplog.text
    assert "in _broken" in caplog.text
    assert "KeyError" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    # Its text may hold what was asked.
    assert ("private" in caplog.text) is prompts


@pytest.mark.parametrize(
    ("path", "method", "status", "allow"),
    [
        ("/api/nothere", "GET", 404, None),
        ("/nothere/", "POST", 404, None),
        ("/", "POST", 405, "HEAD, GET"),
        ("/api/echo", "DELETE", 405, "GET, POST"),
        ("/api/empty", "HEAD", 405, "DELETE"),
        ("/api/empty", "OPTIONS", 405, "DELETE"),
    ],
)
def test_unknown_paths_and_methods_are_answered_as_gin_does(
    path: str, method: str, status: int, allow: str | None
) -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.request(method, lab.url(path)) as answer:
            assert answer.status == status
            assert answer.headers["Content-Type"] == "text/plain"
            assert answer.headers.get("Allow") == allow
            text = "404 page not found" if status == 404 else "405 method not allowed"
            assert await answer.text() == ("" if method == "HEAD" else text)

    in_lab(test)


@pytest.mark.parametrize(
    ("method", "path", "status", "place"),
    [
        ("GET", "/api/refused/", 301, "/api/refused"),
        ("GET", "/api/refused/?a=b&c=d", 301, "/api/refused?a=b&c=d"),
        ("POST", "/v1/echo/?a=b", 307, "/v1/echo?a=b"),
        ("POST", "//api/echo", 307, "/api/echo"),
        ("GET", "//elsewhere.example/x", 307, "/elsewhere.example/x"),
        ("GET", "/api/%2e%2e/api//echo", 307, "/api/echo"),
    ],
)
def test_a_path_that_is_nearly_right_is_shown_the_way(
    method: str, path: str, status: int, place: str
) -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        head, body = (await reader.read()).decode().split("\r\n\r\n")
        header = head.split("\r\n")
        assert header[0].split(" ")[1] == str(status)
        phrase = "Moved Permanently" if status == 301 else "Temporary Redirect"
        link = f'<a href="{place.replace("&", "&amp;")}">{phrase}</a>.\n\n'
        assert body == (link if method == "GET" else "")
        assert f"Location: {place}" in header

    in_lab(test)


@pytest.mark.parametrize(
    ("host", "origin", "method", "status", "allowed_origin"),
    [
        ("127.0.0.1:11434", "", "GET", 200, None),
        ("localhost:11434", "", "GET", 200, None),
        ("ASTRAEA", "", "GET", 200, None),
        ("kloros.local", "", "GET", 200, None),
        ("192.168.1.7:11434", "", "GET", 200, None),
        ("[::1]:11434", "", "GET", 200, None),
        ("rebound.example", "", "GET", 403, None),
        ("8.8.8.8:11434", "", "GET", 403, None),
        ("localhost", "http://localhost:3000", "GET", 200, "http://localhost:3000"),
        ("localhost", "https://known.example", "GET", 200, "https://known.example"),
        ("localhost", "app://anything", "GET", 200, "app://anything"),
        ("localhost", "https://evil.example", "GET", 403, None),
        ("rebound.example", "http://rebound.example", "GET", 403, None),
        ("localhost", "http://localhost:3000", "OPTIONS", 204, "http://localhost:3000"),
        ("localhost", "https://evil.example", "OPTIONS", 403, None),
        ("localhost", "", "OPTIONS", 204, None),
        ("127.0.0.1", "", "OPTIONS", 405, None),
    ],
)
def test_host_and_origin_through_http(
    host: str, origin: str, method: str, status: int, allowed_origin: str | None
) -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        async with session.request(method, lab.url("/"), headers=headers) as answer:
            assert answer.status == status
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed_origin
            if status in (204, 403):
                assert await answer.read() == b""
                assert "Content-Type" not in answer.headers

    in_lab(test)


def test_an_unknown_origin_cannot_even_see_what_is_not_there() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        evil = {"Origin": "https://evil.example"}
        async with session.get(lab.url("/nothere"), headers=evil) as answer:
            assert answer.status == 403

    in_lab(test)


def test_without_its_key_nothing_is_told() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        for path in ("/", "/nothere", "/v1/refused"):
            async with session.get(lab.url(path)) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "unauthorized" in await answer.text()
        bearer = {"Authorization": f"Bearer {_KEY}"}
        async with session.get(lab.url("/"), headers=bearer) as answer:
            assert answer.status == 200

    in_lab(test, keys=(hashlib.sha256(_KEY.encode()).digest(),))


@pytest.mark.parametrize("told", [True, False], ids=["length told", "chunked"])
def test_a_body_that_is_too_large_is_refused(told: bool) -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        body = b"x" * 2000

        async def chunks() -> Any:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        async with session.post(lab.url("/api/echo"), data=body if told else chunks()) as answer:
            assert answer.status == 413
            assert await answer.json() == {"error": "http: request body too large"}
        async with session.post(lab.url("/upload"), data=body if told else chunks()) as answer:
            assert (answer.status, await answer.text()) == (200, "2000")

    in_lab(test)


def test_a_body_that_is_announced_as_too_large_is_not_waited_for() -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        head = b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n"
        writer.write(head)
        assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 413 Request Entity Too Large\r\n"

    in_lab(test)


@pytest.mark.parametrize("path", ["/api/echo", "/upload"])
def test_a_body_that_comes_too_slowly_is_refused(path: str) -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())

        async def trickle() -> None:
            for _ in range(900):
                writer.write(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        header = await reader.readuntil(b"\r\n\r\n")
        assert header.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert not trickling.done()
        trickling.cancel()

    lab = in_lab(test)
    counted = numbers(lab.metrics)
    assert counted["kloros_gateway_connections_ended_total", ("here", "slow body")] == 1
    assert counted["kloros_gateway_requests_total", ("408", "", path)] == 1


def test_an_upload_may_take_longer_as_long_as_it_comes() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async def chunks() -> Any:
            for _ in range(24):
                yield b"x" * 4096
                await asyncio.sleep(0.05)

        async with session.post(lab.url("/upload"), data=chunks()) as answer:
            assert (answer.status, await answer.text()) == (200, str(24 * 4096))

    in_lab(test)


def test_a_stream_that_breaks_ends_in_an_error_line() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.get(lab.url("/api/stream?then=api+error")) as answer:
            assert await answer.text() == '{"done":false}\n{"error":"it broke"}\n'
        async with session.get(lab.url("/v1/stream?then=api+error")) as answer:
            last = (await answer.text()).splitlines()[1]
            assert json.loads(last.removeprefix("data: "))["error"]["message"] == "it broke"
        async with session.get(lab.url("/api/stream"), headers={"X-Request-Id": "i"}) as answer:
            last = (await answer.text()).splitlines()[1]
            assert json.loads(last) == {"error": "internal error, logged under request id i"}

    in_lab(test)


def test_a_stream_that_outlasts_the_drain_ends_in_ollama_s_error_line() -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.get(lab.url("/api/stream?then=wait")) as answer:
            assert await answer.content.readline() == b'{"done":false}\n'
            await lab.server.stop_accepting()
            await lab.server.drain(asyncio.get_running_loop().time() + 0.1)
            assert await answer.content.read() == (
                b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
            )

    in_lab(test)


def test_an_answer_while_draining_closes_its_connection() -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        await lab.until(lambda: bool(lab.server.connections))
        await lab.server.stop_accepting()
        until = asyncio.get_running_loop().time() + 20
        draining = asyncio.create_task(lab.server.drain(until))
        await asyncio.sleep(0.05)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await reader.read()
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"Ollama is running")
        await draining

    in_lab(test)


@pytest.mark.parametrize("path", ["/api/stream?then=wait", "/upload"])
def test_a_client_that_goes_away_is_counted_as_such(path: str) -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        method = "GET" if "stream" in path else "POST"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode()
        )
        if method == "GET":
            writer.write(b"123456789")
            await reader.readuntil(b"}\n")
        else:
            await lab.until(
                lambda: (
                    numbers(lab.metrics).get(("kloros_gateway_requests_running", ("here",))) == 1
                )
            )
        writer.transport.abort()
        route = path.split("?", maxsplit=1)[0]
        gone = ("kloros_gateway_requests_total", ("499", "", route))
        await lab.until(lambda: numbers(lab.metrics).get(gone) == 1)
        assert numbers(lab.metrics)["kloros_gateway_requests_running", ("here",)] == 0

    lab = in_lab(test)
    assert [line["status"] for line in lab.lines()] == [499]


@pytest.mark.parametrize("wanted", [False, True])
def test_what_was_asked_is_logged_only_where_that_is_wanted(wanted: bool) -> None:
    async def test(lab: Lab, session: ClientSession) -> None:
        async with session.post(lab.url("/api/echo"), data=b'{"prompt":"private"}') as answer:
            assert answer.status == 200

    lab = in_lab(test, log_bodies=wanted)
    (line,) = lab.lines()
    assert line.get("body") == ('{"prompt":"private"}' if wanted else None)
    assert ("private" in lab.output.getvalue()) is wanted
    assert line["model"] == "asked"


def test_a_malformed_chunk_is_the_client_s_error() -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        writer.write(
            b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await asyncio.sleep(0.05)
        writer.write(b"nonsense\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == b"400"
        assert (await reader.read()) == b'{"error":"malformed request body"}'

    in_lab(test)


def test_nonsense_behind_a_request_does_not_end_it() -> None:
    async def test(lab: Lab, _: ClientSession) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        writer.write(b"GET /api/stream?then=wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"}\n")
        writer.write(b"nonsense\r\n\r\n")
        await asyncio.sleep(0.1)
        lab.go.set()
        answers = await reader.read()
        assert answers.startswith(b"\r\n0\r\n\r\nHTTP/1.")
        assert answers.endswith(b"400 Bad Request")

    assert in_lab(test).lines()[0]["status"] == 200
