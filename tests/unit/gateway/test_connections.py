"""Connections of a listener: slow and oversized senders, and how they end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from kloros_llm.gateway.config import Limits
from kloros_llm.gateway.front.activation import bound_sockets
from kloros_llm.gateway.front.connections import Connection, End, ListenerServer


@dataclass
class Seen:
    """What an observer was told."""

    connections: int = 0
    ended_for: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def connected(self, change: int) -> None:
        self.connections += change

    def ended(self, reason: str) -> None:
        self.ended_for.append(reason)

    def answered(self, request: web.BaseRequest, status: int) -> None:
        assert request.protocol.transport is not None
        self.statuses.append(status)


class Lab:
    """A listener with four routes, and what a test needs to talk to it byte by byte."""

    def __init__(self, limits: Limits) -> None:
        self.seen = Seen()
        self.go = asyncio.Event()
        self.ends: list[End | None] = []
        application = web.Application(middlewares=[self._watch])
        application.router.add_get("/quick", self._quick)
        application.router.add_post("/echo", self._echo)
        application.router.add_get("/stream", self._stream)
        sockets = bound_sockets("127.0.0.1", 0)
        self.port: int = sockets[0].getsockname()[1]
        self.server = ListenerServer(application, sockets, limits, self.seen)

    @web.middleware
    async def _watch(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.began(request.content)
        try:
            return await handler(request)
        except asyncio.CancelledError:
            self.ends.append(connection.end_reason)
            raise
        finally:
            connection.handled()

    async def _quick(self, _: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await self.go.wait()
        await response.write(b"last")
        return response

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)


def in_lab(test: Callable[[Lab], Awaitable[None]], limits: Limits | None = None) -> Lab:
    async def run() -> Lab:
        lab = Lab(limits or Limits())
        await lab.server.start()
        try:
            async with asyncio.timeout(30):
                await test(lab)
        finally:
            lab.go.set()
            await lab.server.stop_accepting()
            await lab.server.drain(asyncio.get_running_loop().time())
            await lab.server.close()
        assert lab.seen.connections == 0
        return lab

    return asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Header and body of an answer with a Content-Length."""
    header = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in header.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    return header, await reader.readexactly(length)


GET = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "kept alive"])
def test_a_header_that_comes_too_slowly_ends_the_connection(before: bytes) -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        if before:
            writer.write(before)
            assert (await answer(reader))[1] == b"quick"
        writer.write(b"GET /quick HTTP/1.1\r\nHo")
        assert await reader.read() == b""  # closed without a word

    lab = in_lab(test, Limits(header_s=0.2))
    assert lab.seen.ended_for == ["slow header"]


def test_bytes_that_trickle_do_not_prolong_the_time_for_a_header() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()

        async def trickle() -> None:
            for letter in b"GET /quick HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000:
                writer.write(bytes([letter]))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert await reader.read() == b""
        assert not trickling.done()
        trickling.cancel()

    assert in_lab(test, Limits(header_s=0.3)).seen.ended_for == ["slow header"]


def test_a_connection_that_says_nothing_is_closed() -> None:
    async def test(lab: Lab) -> None:
        reader, _ = await lab.connect()
        assert await reader.read() == b""

    assert in_lab(test, Limits(header_s=0.2)).seen.ended_for == []


def test_an_idle_connection_outlives_the_time_for_headers() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[1] == b"quick"
            await asyncio.sleep(0.4)

    assert in_lab(test, Limits(header_s=0.1)).seen.statuses == [200, 200]


@pytest.mark.parametrize(
    "header",
    [
        b"GET /quick HTTP/1.1\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /quick HTTP/1.1\r\n" + b"X-Many: aaaaaaaaaaaaaaaaaaaa\r\n" * 1000 + b"\r\n",
        b"GET /quick HTTP/1.1\r\n" + b"X-Endless: a\r\n" * 100_000,
    ],
    ids=["one field", "path", "many fields", "no end"],
)
@pytest.mark.parametrize("pieces", [1, 50])
def test_a_header_that_is_too_large_is_refused(header: bytes, pieces: int) -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        step = len(header) // pieces + 1
        for start in range(0, len(header), step):
            writer.write(header[start : start + step])
            await asyncio.sleep(0)
        said = b""
        try:
            while part := await reader.read(4096):
                said += part
        except ConnectionResetError:
            # There were more bytes on the way: the kernel then drops what it had to say.
            pass
        assert said == b"" or said.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")

    lab = in_lab(test)
    assert lab.seen.ended_for == ["request header fields too large"]
    assert lab.seen.statuses == []


def test_a_body_that_comes_behind_its_answer_is_no_header() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert (await answer(reader))[0].startswith(b"HTTP/1.1 404 ")
        for _ in range(100):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.001)
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[1] == b"quick"

    assert in_lab(test).seen.ended_for == []


def test_a_header_without_end_behind_a_request_is_refused_too() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\nGET /quick HTTP/1.1\r\nHost: x\r\n")
        await reader.readuntil(b"first")
        for _ in range(1200):
            writer.write(b"X-Long: " + b"a" * 10_000 + b"\r\n")
            await asyncio.sleep(0)
        lab.go.set()
        await lab.until(lambda: bool(lab.seen.ended_for))

    lab = in_lab(test)
    assert (lab.seen.ended_for, lab.seen.statuses) == (["bad request"], [200, 400])


def test_a_body_in_many_pieces_is_no_header() -> None:
    body = b"x" * 300_000

    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        for _ in range(2):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
            for start in range(0, len(body), 1000):
                writer.write(body[start : start + 1000])
                await asyncio.sleep(0)
            assert (await answer(reader))[1] == body

    assert in_lab(test).seen.ended_for == []


def test_empty_lines_before_a_request_are_nothing() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        for _ in range(2):
            writer.write(b"\r\n\r\n")
            await asyncio.sleep(0.02)
            writer.write(GET)
            assert (await answer(reader))[1] == b"quick"
        writer.write(b"\r\n\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"GET")
        assert await reader.read() == b""

    assert in_lab(test, Limits(header_s=0.4)).seen.ended_for == ["slow header"]


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /quick\r\nHost x\r\n\r\n", b"\0\r\n\r\n"],
)
def test_what_is_no_request_is_answered_as_go_does(nonsense: bytes) -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(nonsense)
        said = await reader.read()
        assert said.split(b" ", 1)[1].startswith(b"400 Bad Request\r\n")
        assert b"Content-Type: text/plain; charset=utf-8\r\n" in said
        assert said.endswith(b"\r\n\r\n400 Bad Request")

    assert in_lab(test).seen.ended_for == ["bad request"]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"GET /quick HTTP/2.0\r\nHost: x\r\n", b"505 HTTP Version Not Supported"),
        (b"GET /quick HTTP/0.9\r\nHost: x\r\n", b"505 HTTP Version Not Supported"),
        (b"GET /quick HTTP/1.1\r\nHost: x\r\nExpect: \xff\xfe\r\n", b"417 Expectation Failed"),
    ],
)
def test_what_go_refuses_is_refused_as_http_1(head: bytes, told: bytes) -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(head + b"\r\n")
        said = await reader.read()
        version, said = said.split(b" ", 1)
        assert version in (b"HTTP/1.0", b"HTTP/1.1")
        assert said.startswith(told + b"\r\n")
        assert said.endswith(b"\r\n\r\n" + told)

    assert in_lab(test).seen.ended_for == ["bad request"]


def test_a_client_that_goes_away_cancels_its_handler() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
        writer.close()
        await lab.until(lambda: bool(lab.ends))
        assert lab.ends == [None]

    in_lab(test)


def test_a_drain_lets_an_answer_end_and_closes_idle_connections() -> None:
    async def test(lab: Lab) -> None:
        idle_reader, idle_writer = await lab.connect()
        idle_writer.write(GET)
        await answer(idle_reader)
        reader, writer = await lab.connect()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
        await lab.server.stop_accepting()
        with pytest.raises(ConnectionRefusedError):
            await lab.connect()
        until = asyncio.get_running_loop().time() + 20
        draining = asyncio.create_task(lab.server.drain(until))
        assert await idle_reader.read() == b""
        assert not draining.done()
        lab.go.set()
        assert (await reader.read()).endswith(b"4\r\nlast\r\n0\r\n\r\n")
        await draining
        assert lab.ends == []

    in_lab(test)


def test_a_body_on_its_way_is_received_while_the_listener_drains() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        await lab.until(lambda: bool(lab.server.connections))
        await asyncio.sleep(0.05)
        await lab.server.stop_accepting()
        until = asyncio.get_running_loop().time() + 20
        draining = asyncio.create_task(lab.server.drain(until))
        await asyncio.sleep(0.3)
        writer.write(b"rest")
        assert (await answer(reader))[1] == b"halfrest"
        await draining

    in_lab(test)


def test_a_drain_ends_what_takes_too_long() -> None:
    async def test(lab: Lab) -> None:
        reader, writer = await lab.connect()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
        await lab.server.stop_accepting()
        await lab.server.drain(asyncio.get_running_loop().time() + 0.1)
        assert lab.ends == [End.RESTART]

    in_lab(test)


def test_connections_that_were_just_accepted_are_served_though_the_listener_stops() -> None:
    """Those of the kernel's backlog go to the next process; those that were taken are answered."""

    async def test(lab: Lab) -> None:
        clients = []
        for _ in range(50):
            client = socket.create_connection(("127.0.0.1", lab.port))
            client.sendall(GET)
            clients.append(client)
        # One turn of the loop: all are accepted, none has a transport yet.
        await asyncio.sleep(0)
        taken = asyncio.create_task(lab.server.stop_accepting())
        await taken
        await lab.until(lambda: len(lab.seen.statuses) == len(clients))
        for client in clients:
            client.setblocking(True)
            assert client.recv(1000).endswith(b"quick")
            client.close()

    in_lab(test)
