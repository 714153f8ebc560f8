"""Server-sent events as llama-server writes them, taken apart for little CPU a token.

Source of the format: WHATWG HTML, "Server-sent events", parsing an event stream.
"""

from __future__ import annotations

from collections.abc import Sequence

EVENT_LIMIT = 16 << 20
"""The largest event that is held, in bytes: what sends more is no llama-server."""


class EventTooLargeError(Exception):
    """More than EVENT_LIMIT bytes came without an event's end."""


class EventParser:
    """The data of whole events out of a body that comes in any pieces.

    It cuts at bytes that no UTF-8 sequence contains, so characters may be split over pieces too.
    Comments (pings) and fields other than data are dropped; so is an event without its end.
    """

    __slots__ = ("_carriage_return", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._carriage_return = False

    def feed(self, chunk: bytes) -> Sequence[bytes]:
        """The data of the events that `chunk` completes. Raises EventTooLargeError."""
        if self._carriage_return or b"\r" in chunk:
            chunk = self._with_newlines(chunk)
        if self._rest:
            rest = self._rest
            searched = max(0, len(rest) - 1)
            rest += chunk
            end = rest.rfind(b"\n\n", searched)
            if end < 0:
                if len(rest) > EVENT_LIMIT:
                    raise EventTooLargeError
                return ()
            chunk = bytes(rest[: end + 2])
            del rest[: end + 2]
        elif not chunk.endswith(b"\n\n"):
            end = chunk.rfind(b"\n\n") + 2
            if end < 2:
                self._rest += chunk
                return ()
            self._rest += chunk[end:]
            chunk = chunk[:end]
        # Usual: one event with one line of data.
        if chunk.count(b"\n") == 2 and chunk.startswith(b"data: "):
            return (chunk[6:-2],)
        events = (_data(event) for event in chunk.split(b"\n\n"))
        return [data for data in events if data]

    def _with_newlines(self, chunk: bytes) -> bytes:
        """A line may end with CR, LF or both; JSON text holds neither of them bare."""
        if self._carriage_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._carriage_return = chunk.endswith(b"\r") or (self._carriage_return and not chunk)
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)
