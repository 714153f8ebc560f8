"""An answer as it comes: an iterator of pieces that can be closed from anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Self

from .errors import LlmConnectionError, LlmInterruptedError
from .gateway.engines.pieces import Ending, Piece, ToolCall
from .generation import Answer
from .timeouts import Clock, Timeouts
from .wire import Cancel, CancelledError

Events = Generator[Piece | Ending, None, None]
Start = Callable[[Clock, Cancel], Events]


class TextStream(Iterator[str]):
    """The pieces of one answer's text.

    Nothing is asked before the first piece is. `close()`, from any thread, also while another
    waits for a piece, ends the iteration and the engine's work on it; so does dropping the
    stream. `thinking`, `tool_calls` and `text` hold what has come so far, `ending` what it took,
    when it is over; it stays None where the stream was closed.
    """

    def __init__(self, start: Start, timeouts: Timeouts) -> None:
        self.text = ""
        self.thinking = ""
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.ending: Ending | None = None
        self._cancel = Cancel()
        self._start = start
        self._timeouts = timeouts
        self._clock: Clock | None = None
        self._events: Events | None = None
        self._reading = threading.Lock()

    def __next__(self) -> str:
        with self._reading:
            while self.ending is None and not self._cancel.cancelled:
                event = self._next_event()
                if isinstance(event, Ending):
                    self.ending = event
                elif event is not None:
                    self.thinking += event.thinking
                    self.tool_calls += event.tool_calls
                    if event.text:
                        self.text += event.text
                        return event.text
            raise StopIteration

    def _next_event(self) -> Piece | Ending | None:
        if self._clock is None or self._events is None:
            self._clock = Clock(self._timeouts)
            self._events = self._start(self._clock, self._cancel)
        elif self.text or self.thinking or self.tool_calls:
            self._clock.wait_for_next_piece()
        try:
            return next(self._events)
        except StopIteration:
            raise LlmInterruptedError("the answer has no ending", self.text) from None
        except CancelledError:
            return None
        except LlmConnectionError as error:
            if not (self.text or self.thinking):
                raise
            raise LlmInterruptedError(f"the answer broke off: {error}", self.text) from error

    def answer(self) -> Answer:
        """All of it, waited for. Raises LlmInterruptedError where it was closed."""
        for _ in self:
            pass
        if self.ending is None:
            raise LlmInterruptedError("the answer was cancelled", self.text)
        return Answer(self.text, self.thinking, self.tool_calls, self.ending)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._cancel.cancelled

    def close(self) -> None:
        """End it, here and at the engine. A piece that is waited for comes no more."""
        self._cancel.cancel()
        # The reader's thread, if there is one, is awake now and drops its connection itself.
        if self._reading.acquire(blocking=False):
            try:
                if self._events is not None:
                    self._events.close()
            finally:
                self._reading.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Without it, the connection would stay until the garbage collector finds its response.
        if hasattr(self, "_reading"):
            self.close()
