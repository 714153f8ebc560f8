"""A streamed answer's parts, written straight to its connection."""

from __future__ import annotations

from aiohttp import web

_FULL_BYTES = 64 << 10  # asyncio's own limit, from which on drain() waits


class ChunkWriter:
    """For an answer that is prepared. Each part is sent at once, as a chunk of its own.

    StreamResponse.write looks at everything anew for each part, which takes a tenth of a
    token's CPU. It sends the first part, along with the headers, and all parts of an answer
    to HTTP/1.0, which knows no chunks.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response
        self._transport = request.transport
        self._chunked = response.headers.get("Transfer-Encoding") == "chunked"
        self._begun = False

    async def write(self, part: bytes) -> None:
        """Raises ConnectionError where the client is gone; waits for one that reads slowly."""
        if not self._begun or not self._chunked:
            self._begun = True
            await self._response.write(part)
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client closed the connection")
        transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        if transport.get_write_buffer_size() > _FULL_BYTES:
            await self._request.writer.drain()
