"""How long an answer may take, and how long it has been taking."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

from .errors import LlmTimeoutError, LlmUsageError


@dataclass(frozen=True)
class Timeouts:
    """Bounds in seconds; None is no bound.

    `first_piece_s` runs from the call on, so that waiting for a free slot is part of it;
    `next_piece_s` from the moment the next piece is asked for; `whole_s` bounds the whole answer.
    For `load_s` at most is an engine that loads its model waited for.
    """

    connect_s: float = 2.0
    first_piece_s: float | None = 120.0
    next_piece_s: float | None = 60.0
    whole_s: float | None = None
    load_s: float = 60.0

    def __post_init__(self) -> None:
        bounds = (self.connect_s, self.first_piece_s, self.next_piece_s, self.whole_s)
        if any(bound is not None and bound <= 0 for bound in bounds) or self.load_s < 0:
            raise LlmUsageError(f"{self}: bounds are more than 0 seconds")


def timeouts_of(timeout: float | Timeouts, *, streaming: bool) -> Timeouts:
    """A number is what it is to `requests`: the whole answer's bound, of a stream each piece's."""
    if isinstance(timeout, Timeouts):
        return timeout
    return Timeouts(
        connect_s=min(Timeouts.connect_s, timeout),
        first_piece_s=timeout,
        next_piece_s=timeout,
        whole_s=None if streaming else timeout,
        load_s=max(0.0, min(Timeouts.load_s, timeout)),
    )


class Clock:
    """The time of one call, from now on."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        now = time.monotonic()
        self._load_end = now + timeouts.load_s
        self._whole_end = now + _or_inf(timeouts.whole_s)
        self._piece_end = now + _or_inf(timeouts.first_piece_s)
        self._phase = "first piece"

    def wait_for_next_piece(self) -> None:
        """A piece was had, and the next is asked for now."""
        self._piece_end = time.monotonic() + _or_inf(self.timeouts.next_piece_s)
        self._phase = "next piece"

    def left(self) -> float | None:
        """Seconds that may still be waited; None: for ever. Raises LlmTimeoutError."""
        end = min(self._whole_end, self._piece_end)
        if end == inf:
            return None
        left = end - time.monotonic()
        if left <= 0:
            raise self.expired()
        return left

    def expired(self) -> LlmTimeoutError:
        """The error of whoever waited until the end."""
        if self._whole_end < self._piece_end:
            phase, bound = "whole answer", self.timeouts.whole_s
        elif self._phase == "first piece":
            phase, bound = self._phase, self.timeouts.first_piece_s
        else:
            phase, bound = self._phase, self.timeouts.next_piece_s
        return LlmTimeoutError(f"the {phase} took longer than {bound:g} s", phase)

    @property
    def may_load(self) -> bool:
        """Whether an engine that loads its model is still waited for."""
        return time.monotonic() < self._load_end


def _or_inf(bound: float | None) -> float:
    return inf if bound is None else bound
