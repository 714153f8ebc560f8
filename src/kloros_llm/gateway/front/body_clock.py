"""How long a request's body may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import StreamReader

from .connections import End

# Slower than any network that carries models.
_LEAST_BYTES_S = 16 << 10


class BodyClock:
    """Ends a request whose body is not here after `body_s` seconds.

    `steady`: it may take as long as it needs, but in each `body_s` a part has to come.
    """

    def __init__(
        self, body: StreamReader, body_s: float, end: Callable[[End], None], *, steady: bool
    ) -> None:
        self._body = body
        self._body_s = body_s
        self._end = end
        self._steady = steady
        self._seen = body.total_bytes
        self._timer = self._next()
        body.on_eof(self.stop)

    def stop(self) -> None:
        """The body is here, or nobody wants it any more."""
        self._timer.cancel()

    def _next(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._body_s, self._late)

    def _late(self) -> None:
        came = self._body.total_bytes - self._seen
        if self._steady and came >= _LEAST_BYTES_S * self._body_s:
            self._seen = self._body.total_bytes
            self._timer = self._next()
            return
        self._end(End.SLOW_BODY)
