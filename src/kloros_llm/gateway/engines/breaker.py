"""A circuit breaker: an engine that keeps breaking off gets no requests for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]

FAILURES_TO_OPEN = 5
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0
TRY_S = 10.0


class Breaker:
    """Closed until FAILURES_TO_OPEN failures in a row; then open for a pause that doubles each
    time; then half-open: one request tries, and its outcome closes or opens it. Where that takes
    longer than TRY_S (it may hang, or its prompt be long), the next one tries too.

    `clock` gives seconds, as time.monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.opened = 0
        self._clock = clock
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until: float | None = None
        self._tried_at: float | None = None

    @property
    def state(self) -> BreakerState:
        """What the next request meets."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def allows(self) -> bool:
        """Whether a request may go now."""
        state = self.state
        return state == "closed" or (
            state == "half-open"
            and (self._tried_at is None or self._clock() >= self._tried_at + TRY_S)
        )

    @property
    def pause_s(self) -> float:
        """Seconds until it is half-open; 0 where it is not open."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def enter(self) -> bool:
        """A request goes. True: it is the one that tries, and must report or release."""
        if self.state == "half-open":
            self._tried_at = self._clock()
            return True
        return False

    def began(self) -> None:
        """The engine began to answer: others may go too, but the next failure opens again."""
        if self._open_until is not None:
            self._failures = FAILURES_TO_OPEN - 1
            self._open_until = None
            self._tried_at = None

    def succeed(self) -> None:
        """The engine answered to the end."""
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._open_until = None
        self._tried_at = None

    def fail(self) -> bool:
        """The engine broke off. True: this opened the breaker."""
        self._failures += 1
        half_open = self.state == "half-open"
        self._tried_at = None
        if not half_open and (self._open_until is not None or self._failures < FAILURES_TO_OPEN):
            return False
        self._open_until = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.opened += 1
        return True

    def release(self) -> None:
        """The one that tried ended without an outcome: its client left, say."""
        self._tried_at = None

    def restarted(self) -> None:
        """A new process serves there: it is tried at once."""
        if self._open_until is not None:
            self._open_until = self._clock()
            self._tried_at = None
