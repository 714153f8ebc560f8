"""Who fetches which bytes of a download, what has come, and when to give up. Threads share it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from .transfer_journal import ByteRanges, Range

# Rounds of attempts that bring no new byte; any progress starts the count afresh.
MAX_FRUITLESS_ATTEMPTS = 8
UNKNOWN_SIZE = sys.maxsize
# A worker without work takes over the second half of another's span if it is worth a request,
# and all of it if nothing comes there any more. Less is worth one where it comes so slowly that
# it would last longer.
_MIN_SHARED_BYTES = 2 << 20
_STALLED_S = 5.0
_LASTS_LONG_S = 5.0
_QUIET_S = 10.0
_MIN_CHUNK_BYTES = 2 << 20
_MAX_CHUNK_BYTES = 16 << 20
_TELL_HASHER_BYTES = 1 << 20


def first_chunk_bytes(missing_bytes: int, workers: int) -> int:
    """How much the first of `workers` is to fetch at once where so much is missing."""
    return max(_MIN_CHUNK_BYTES, min(_MAX_CHUNK_BYTES, missing_bytes // (2 * workers)))


@dataclass(eq=False)
class Span:
    """Bytes that one worker fetches: from `at`, which moves, up to `stop`, which may shrink."""

    at: int
    stop: int
    moved_at: float = field(default_factory=time.monotonic)
    began: int = field(init=False)
    began_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.began, self.began_at = self.at, self.moved_at

    @property
    def lasts_s(self) -> float:
        """How long the rest takes at the pace so far; 0 while that cannot be told yet."""
        passed_s, came = self.moved_at - self.began_at, self.at - self.began
        return (self.stop - self.at) * passed_s / came if came and passed_s > _LASTS_LONG_S else 0


class Work:
    """`size_bytes` is UNKNOWN_SIZE where nobody states it; `present` need not be fetched.

    A worker that is alone gets all that is missing in one piece; see `share_among`. No more than
    `max_unsynced_bytes` are written before `synced` is told of them: so much an interruption may
    cost. A checkpoint is due at a third of it, so that nobody waits for a disk that keeps up.
    """

    def __init__(
        self,
        size_bytes: int,
        present: Iterable[Range],
        max_unsynced_bytes: int,
    ) -> None:
        self.over = threading.Event()
        """Set once all bytes are written or `failure` says why they will not be."""
        self.failure: BaseException | None = None
        self._written = ByteRanges(present)
        self._size_bytes = size_bytes
        self._workers = 1
        self._max_unsynced_bytes = max_unsynced_bytes
        self._pending = self._written.missing(size_bytes)
        self._active: set[Span] = set()
        self._fetched_bytes = 0
        self._synced_bytes = 0
        self._told_frontier = 0
        self._round = 0
        self._fruitless = 0
        self._landed_at = time.monotonic()
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._frontier_moved = threading.Condition(lock)
        self._synced = threading.Condition(lock)
        self._much_unsynced = threading.Condition(lock)
        with self._changed:
            self._look_whether_complete()

    # What the threads that fetch ask and tell

    def claim(self) -> Span | None:
        """The next bytes to fetch; waits while others may still leave some. None: go home."""
        with self._changed:
            while not self.over.is_set():
                span = self._next() or self._take_over()
                if span is not None:
                    self._active.add(span)
                    return span
                self._changed.wait(1.0)
        return None

    def claim_everything(self, span: Span, size_bytes: int | None) -> None:
        """The server sends the whole file to the worker that has `span`: nobody else is needed."""
        with self._changed:
            self._size_bytes = UNKNOWN_SIZE if size_bytes is None else size_bytes
            self._pending = []
            span.at, span.stop = 0, self._size_bytes

    def share_among(self, workers: int) -> None:
        """So many fetch from now on, a chunk at a time: what is more goes back to the rest.

        The chunks are handed out in the file's order, and get smaller towards the end, so that
        all end together and the hasher is not far behind.
        """
        with self._changed:
            self._workers = workers
            for span in self._active:
                if span.at < span.stop:
                    span.stop = self._hand_out(span.at, span.stop)
            self._changed.notify_all()

    def wanted(self, span: Span, count: int) -> int:
        """How many of the next `count` bytes are still this worker's."""
        with self._changed:
            return max(0, min(count, span.stop - span.at))

    def landed(self, span: Span, count: int) -> None:
        """The next `count` bytes of `span` are written. Waits while too many are not synced."""
        with self._changed:
            self._written.add(span.at, span.at + count)
            span.at += count
            span.moved_at = time.monotonic()
            self._fetched_bytes += count
            self._fruitless = 0
            self._landed_at = span.moved_at
            frontier = self._written.frontier
            if frontier - self._told_frontier >= _TELL_HASHER_BYTES:
                self._told_frontier = frontier
                self._frontier_moved.notify_all()
            self._look_whether_complete()
            if self._checkpoint_is_due:
                self._much_unsynced.notify_all()
            while self._unsynced_bytes >= self._max_unsynced_bytes and not self.over.is_set():
                self._synced.wait(1.0)

    def is_fetched(self, span: Span) -> bool:
        """Whether nothing of `span` is left to this worker."""
        with self._changed:
            return span.at >= span.stop

    def leave(self, span: Span) -> None:
        """The worker is done with `span`; what is left of it is for anybody."""
        with self._changed:
            self._active.discard(span)
            if span.at < span.stop:
                self._pending = sorted([(span.at, span.stop), *self._pending])
            self._changed.notify_all()

    def end_here(self, span: Span) -> None:
        """The file ends where `span` is now: the server says so, nobody had stated the size."""
        with self._changed:
            self._size_bytes = span.stop = span.at
            self._look_whether_complete()

    # When to give up

    @property
    def round(self) -> int:
        """Attempts that begin in one round and bring nothing count as one."""
        with self._changed:
            return self._round

    def failed_in_vain(self, began_in: int) -> bool:
        """Count an attempt that brought nothing; whether it is time to give up."""
        with self._changed:
            if began_in == self._round:
                self._round += 1
                self._fruitless += 1
            # Whoever still waits for an answer may get one: a server that refuses some
            # connections serves the others.
            quiet_s = time.monotonic() - self._landed_at
            hopeless = not self._active or quiet_s > _QUIET_S
            return hopeless and self._fruitless >= MAX_FRUITLESS_ATTEMPTS

    @property
    def others_fetch(self) -> bool:
        """Whether any worker has a span."""
        with self._changed:
            return bool(self._active)

    def fail(self, failure: BaseException, *, even_when_complete: bool = False) -> None:
        """End the work; the first failure is the one that counts."""
        with self._changed:
            if self.failure is None and (even_when_complete or not self.over.is_set()):
                self.failure = failure
                self._end()

    # What the hasher, the bookkeeper and the watcher ask

    @property
    def done_bytes(self) -> int:
        with self._changed:
            return self._written.total

    @property
    def end_of_written(self) -> int:
        """The first byte behind all that is written."""
        with self._changed:
            return max((stop for _, stop in self._written), default=0)

    @property
    def fetched_bytes(self) -> int:
        """What came now, also what came twice."""
        with self._changed:
            return self._fetched_bytes

    def wait_for_frontier(self, hashed: int) -> int | None:
        """The first missing byte, once it is beyond `hashed`; None where no more will come."""
        with self._frontier_moved:
            while self.failure is None:
                frontier = self._written.frontier
                if frontier > hashed:
                    return frontier
                if self.over.is_set():
                    return None
                self._frontier_moved.wait()
        return None

    def wait_for_checkpoint(self, interval_s: float) -> bool:
        """Whether, after the interval or when much is unsynced, there is anything to sync."""
        with self._much_unsynced:
            if not self.over.is_set() and not self._checkpoint_is_due:
                self._much_unsynced.wait(interval_s)
            return self._unsynced_bytes > 0

    def snapshot(self) -> tuple[ByteRanges, int]:
        """What is written by now, and a mark for `synced`."""
        with self._changed:
            return ByteRanges(self._written), self._fetched_bytes

    def synced(self, mark: int) -> None:
        """All that was written at the snapshot `mark` is on the disk and in the journal."""
        with self._synced:
            self._synced_bytes = max(self._synced_bytes, mark)
            self._synced.notify_all()

    @property
    def _unsynced_bytes(self) -> int:
        return self._fetched_bytes - self._synced_bytes

    @property
    def _checkpoint_is_due(self) -> bool:
        return self._unsynced_bytes >= self._max_unsynced_bytes // 3

    def _next(self) -> Span | None:
        if not self._pending:
            return None
        start, stop = self._pending.pop(0)
        return Span(start, self._hand_out(start, stop))

    def _hand_out(self, start: int, stop: int) -> int:
        """Where the chunk ends that somebody is to get of these bytes; the rest is pending."""
        if self._workers > 1:
            left = stop - start + sum(end - begin for begin, end in self._pending)
            end = min(stop, start + first_chunk_bytes(left, self._workers))
            if stop - end >= _MIN_CHUNK_BYTES // 2:
                self._pending = sorted([(end, stop), *self._pending])
                return end
        return stop

    def _take_over(self) -> Span | None:
        """Some of another worker's span."""
        if self._size_bytes == UNKNOWN_SIZE or not self._active:
            return None
        stalled_since = time.monotonic() - _STALLED_S
        for span in self._active:
            if span.moved_at < stalled_since and span.at < span.stop:
                taken = Span(span.at, span.stop)
                span.stop = span.at
                return taken
        longest = max(self._active, key=lambda span: span.stop - span.at)
        left = longest.stop - longest.at
        if left < _MIN_SHARED_BYTES:
            longest = max(self._active, key=lambda span: span.lasts_s)
            left = longest.stop - longest.at
            if longest.lasts_s < _LASTS_LONG_S or left < 2:
                return None
        taken = Span(longest.stop - left // 2, longest.stop)
        longest.stop = taken.at
        return taken

    def _look_whether_complete(self) -> None:
        if self._written.frontier >= self._size_bytes and not self.over.is_set():
            self._end()

    def _end(self) -> None:
        self.over.set()
        for condition in (self._changed, self._frontier_moved, self._synced, self._much_unsynced):
            condition.notify_all()
