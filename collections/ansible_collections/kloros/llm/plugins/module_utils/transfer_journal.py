"""What of a part file can be trusted after any interruption.

The part is as long as the whole file from the start, so its length says nothing. Beside it lies
`<part>.json`: which version of what the bytes belong to, and which ranges of it are there. Bytes
are first synced to the disk and only then entered, and the entry is synced in its turn; so what
it says is true after `kill -9` and after a power cut, and what it does not say is fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .store_files import beside, stat_or_none, sync_directory

# Some four hundred ranges; there are hardly more than connections.
_LINE_BYTES = 16 << 10

Range = tuple[int, int]
"""First byte and the one after the last."""


class ByteRanges:
    """A set of bytes, kept as sorted ranges that neither touch nor overlap."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._starts, self._stops, strict=True))

    def add(self, start: int, stop: int) -> None:
        """Have the bytes from `start` up to `stop` in the set as well."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    @property
    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    @property
    def frontier(self) -> int:
        """The first byte that is missing."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, size_bytes: int) -> list[Range]:
        """What of a file of this size is not in the set, in order."""
        gaps = []
        at = 0
        for start, stop in zip(self._starts, self._stops, strict=True):
            if at < min(start, size_bytes):
                gaps.append((at, min(start, size_bytes)))
            at = stop
        if at < size_bytes:
            gaps.append((at, size_bytes))
        return gaps


@dataclass(frozen=True)
class Version:
    """Which bytes these are. `etag` is a strong one; `sha256` what the Hub or the wish states."""

    source: str
    size_bytes: int | None
    sha256: str | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range is asked with."""
        return self.etag or self.last_modified

    def is_same(self, other: Version) -> bool:
        """Whether bytes of the one go with bytes of the other: proven, not only likely."""
        if (self.source, self.size_bytes) != (other.source, other.size_bytes):
            return False
        if self.sha256 or other.sha256:
            return self.sha256 == other.sha256
        return self.validator is not None and self.validator == other.validator

    def contradicts(self, other: Version) -> bool:
        """Whether two answers of one download cannot be of the same bytes."""
        if self.etag and other.etag:
            return self.etag != other.etag
        return bool(
            self.last_modified and other.last_modified and self.last_modified != other.last_modified
        )


@dataclass(frozen=True)
class Entry:
    """All that the journal says."""

    version: Version
    ranges: tuple[Range, ...]


class TransferJournal:
    """The journal of the part file `part`; one thread at a time uses it.

    Two lines of a fixed length, written in turn, each with a checksum and a number: whichever is
    whole and newer counts. So a write that is cut short leaves the other, and a full disk does
    not keep anybody from writing down what has come, as a new file would need a block.
    """

    def __init__(self, part: Path) -> None:
        self._part = part
        self.path = beside(part, ".json")
        self._number: int | None = None

    def read(self) -> Entry | None:
        """What was there at the last checkpoint; None where nothing can be trusted."""
        found = self._newest()
        state = stat_or_none(self._part)
        if found is None or state is None:
            return None
        data = found[1]
        try:
            ranges = [(int(start), int(stop)) for start, stop in data.pop("ranges")]
            version = Version(**data)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if any(not 0 <= start < stop <= state.st_size for start, stop in ranges):
            return None
        return Entry(version, tuple(ByteRanges(ranges)))

    def write(self, version: Version, ranges: ByteRanges) -> None:
        """Have this said from now on, durably; the bytes must have been synced before."""
        if self._number is None:
            self._number = self._number_to_go_on_from()
        number = self._number + 1
        line = _line(number, asdict(version), list(ranges))
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, line, number % 2 * _LINE_BYTES)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        # Only now: after a failure the same line is written again, never the one that is whole.
        self._number = number

    def remove(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self._number = None

    def _number_to_go_on_from(self) -> int:
        newest = self._newest()
        if newest is not None:
            return newest[0]
        with self.path.open("wb") as file:
            file.write(b" " * (2 * _LINE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # The part's name as well: it was made before.
        sync_directory(self.path.parent)
        return 0

    def _newest(self) -> tuple[int, dict[str, Any]] | None:
        try:
            with self.path.open("rb") as file:
                lines = [file.read(_LINE_BYTES) for _ in range(2)]
        except FileNotFoundError:
            return None
        numbered = [found for found in map(_parsed, lines) if found is not None]
        return max(numbered, key=lambda found: found[0], default=None)


def _line(number: int, version: dict[str, Any], ranges: list[Range]) -> bytes:
    """One line of the journal; of ever so many ranges the first ones that fit."""
    while True:
        content = json.dumps({"number": number, **version, "ranges": ranges}, sort_keys=True)
        line = f"{_checksum(content)} {content}".encode()
        if len(line) < _LINE_BYTES:
            return line.ljust(_LINE_BYTES - 1) + b"\n"
        if not ranges:
            raise ValueError(f"{len(content)} characters do not fit into a journal's line")
        ranges = ranges[: len(ranges) // 2]


def _parsed(line: bytes) -> tuple[int, dict[str, Any]] | None:
    try:
        checksum, content = line.decode().strip().split(" ", 1)
        if checksum != _checksum(content):
            return None
        data = json.loads(content)
        return int(data.pop("number")), data
    except (ValueError, KeyError):
        return None


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
