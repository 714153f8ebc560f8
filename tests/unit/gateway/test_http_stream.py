"""HttpStream against servers that write what they like, as they like."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from yarl import URL

from kloros_llm.gateway.engines.http_stream import (
    HttpConnectError,
    HttpStream,
    NotHttpError,
    open_stream,
)
from tests.unit.gateway.gateway_process import free_ports

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = "data: blåe 🌊\n\n".encode() * 3
CHUNKS = b"".join(b"%X ;x=y\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))


def against(
    serve: Serve, use: Callable[[HttpStream], Awaitable[object]], *, stall_s: float | None = 30.0
) -> None:
    """Asks that server, and uses the answer. `serve` is awaited to its end."""

    async def run() -> None:
        served = asyncio.get_running_loop().create_future()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"{}")
                await serve(reader, writer)
            except BaseException as error:
                if not served.done():
                    served.set_exception(error)
                raise
            else:
                served.set_result(None)
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            url = URL(f"http://127.0.0.1:{port}/completion")
            stream = await open_stream(url, {}, b"{}", connect_s=5.0, stall_s=stall_s)
            try:
                await use(stream)
            finally:
                stream.close()
            await served

    asyncio.run(asyncio.wait_for(run(), 60))


def saying(*parts: bytes) -> Serve:
    """Writes these, each by itself, and closes."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.001)

    return serve


async def whole(stream: HttpStream) -> bytes:
    body = b""
    while part := await stream.read():
        body += part
    return body


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + CHUNKS + b"0\r\n\r\n",
        CHUNKED + CHUNKS + b"000\r\nTrailer: x\r\n\r\n",
        HEAD + b"content-length:%d\r\n\r\n" % len(BODY) + BODY + b"more",
        HEAD + b"\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + BODY,
    ],
)
@pytest.mark.parametrize("step", [1, 5, 4096])
def test_a_body_is_the_same_however_it_comes(answer: bytes, step: int) -> None:
    async def use(stream: HttpStream) -> None:
        assert stream.status == 200
        assert stream.content_type == "text/event-stream"
        assert await whole(stream) == BODY
        assert await stream.read() == b""

    parts = [answer[at : at + step] for at in range(0, len(answer), step)]
    against(saying(*parts), use)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 twohundred\r\n\r\n",
        HEAD + b"no header\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        *(
            CHUNKED + size + b"\r\nx\r\n0\r\n\r\n"
            for size in (b"", b"-1", b"+1", b"0x1", b" 1", b"1_0", b"123456789", b"z")
        ),
        CHUNKED + b"1\r\nxy\r\n0\r\n\r\n",
        CHUNKED + b"1;" + b"x" * 5000,
    ],
)
def test_what_is_no_http_is_told_apart(answer: bytes) -> None:
    async def nothing(stream: HttpStream) -> None:
        await whole(stream)

    with pytest.raises(NotHttpError):
        against(saying(answer), nothing)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nConte",
        CHUNKED + CHUNKS,
        CHUNKED + CHUNKS[:-9],
        HEAD + b"Content-Length: 9000\r\n\r\n" + BODY,
    ],
)
def test_an_answer_without_its_end_is_no_whole_one(answer: bytes) -> None:
    received = b""

    async def use(stream: HttpStream) -> None:
        nonlocal received
        while part := await stream.read():
            received += part

    with pytest.raises(ConnectionError):
        against(saying(answer), use)
    # What came before is not lost.
    assert BODY.startswith(received)
    assert bool(received) == (b"data" in answer)


def test_a_silent_server_is_a_timeout_and_a_slow_reader_is_none() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + CHUNKS)
        await reader.read()

    with pytest.raises(TimeoutError):
        against(silent, whole, stall_s=0.2)

    size = 8 << 20

    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + b"x" * size)
        await writer.drain()

    async def later(stream: HttpStream) -> None:
        await asyncio.sleep(0.6)
        assert len(await whole(stream)) == size

    against(much, later, stall_s=0.2)


def test_a_fast_server_waits_for_a_slow_reader() -> None:
    block = b"x" * (1 << 20)
    sent = 0

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"\r\n")
        try:
            while True:
                writer.write(block)
                await writer.drain()
                sent += len(block)
        except ConnectionError:
            return

    async def use(stream: HttpStream) -> None:
        before = -1
        while before != sent:  # until it waits
            before = sent
            await asyncio.sleep(0.3)
        # Sockets hold some MiB each; the stream itself next to nothing.
        assert sum(map(len, stream._parts)) < 1 << 20
        read = 0
        while read < before + 4 * len(block):
            read += len(await stream.read())

    against(endless, use)


def test_closing_reaches_the_server_at_once() -> None:
    async def until_left(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        try:
            assert await reader.read() == b""
        except ConnectionError:
            return

    async def leave(stream: HttpStream) -> None:
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    against(until_left, leave)


def test_nobody_there_and_a_header_that_would_be_two() -> None:
    (port,) = free_ports(1)
    url = URL(f"http://127.0.0.1:{port}/completion")
    with pytest.raises(HttpConnectError):
        asyncio.run(open_stream(url, {}, b"{}", connect_s=5.0, stall_s=None))
    with pytest.raises(ValueError, match="line end"):
        asyncio.run(open_stream(url, {"X": "a\r\nY: b"}, b"{}", connect_s=5.0, stall_s=None))
