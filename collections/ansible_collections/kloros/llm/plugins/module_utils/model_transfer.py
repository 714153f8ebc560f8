"""One download into a part file, over as many connections as it takes.

The part is made in its whole size at once. One connection begins. It stays alone while it is fast
by itself, or while bytes wait for this machine and not the other way round: more would only wait
for each other, since the kernel lets one at a time write to a file. Otherwise the bytes that are
missing are handed out in chunks, in the file's order, to threads that keep one connection each;
whoever finds nothing left takes over half of what another has still to get. Meanwhile one thread
hashes what is there without a gap, reading it from the page cache, and one syncs the part and
keeps the journal beside it (transfer_journal), which an interrupted download goes on from. Its
bytes are read again for the hash, since hashlib cannot store a hash that is half done.

A server that does not answer ranges is read in one go. Memory: one buffer a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .http_client import Connection, HttpClient, HttpError, Response, display_url
from .part_file import PartFile
from .progress import ProgressFile
from .store_files import stat_or_none
from .transfer_journal import Entry, Range, TransferJournal, Version
from .transfer_work import UNKNOWN_SIZE, Span, Work, first_chunk_bytes

DEFAULT_CONNECTIONS = 16
# A connection that would get less costs more than it brings.
_MIN_CONNECTION_BYTES = 4 << 20
_BUFFER_BYTES = 1 << 20
_HASH_BUFFER_BYTES = 1 << 20
_CHECKPOINT_S = 0.5
_WATCH_S = 0.2
# When a connection is to stay alone: it brings so much, which is about what can be hashed without
# SHA instructions; or so much lies ready at each read that this machine is what is slow.
_FAST_BYTES_PER_S = 250_000_000
_READY_BYTES = _BUFFER_BYTES // 8
_TRIAL_S = 0.03
# Less than this to hash at the end is over before anybody could read about it.
_WORTH_TELLING_BYTES = 256 << 20
# From the second on over one connection: a server may serve different versions to different ones.
_MAX_RESTARTS = 4
# How a signed address, remembered from a redirect, is refused once it has expired.
_EXPIRED = (400, 401, 403, 404, 410)
_TOO_MANY_CONNECTIONS = (429, 503)


class TransferError(Exception):
    """What the server sends contradicts what is stated of the file."""


class _StartAnewError(Exception):
    """What is in the part does not go with what the server sends now."""


@dataclass(frozen=True)
class Download:
    """What to get where. `source` names it across runs; `url` may be pinned to a commit.

    `size_bytes` None: nobody states it (then `sha256` is given). `part` is the file to fill.
    """

    name: str
    source: str
    url: str
    size_bytes: int | None
    sha256: str | None
    part: Path
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Received:
    """`fetched` bytes came now, `resumed` were in the part before."""

    sha256: str
    fetched_bytes: int
    resumed_bytes: int


def part_size_bytes(download: Download) -> int:
    """What is safely in the part file, whatever it belongs to."""
    entry = TransferJournal(download.part).read()
    return _total(entry.ranges) if entry else 0


def resumable_bytes(download: Download) -> int:
    """What need not be fetched again, as far as can be said before asking the server."""
    entry = _resumable(download)
    return _total(entry.ranges) if entry else 0


def missing_disk_bytes(download: Download) -> int:
    """What the part file will still take of the disk: blocks reserved for it count as taken."""
    total = download.size_bytes or 0
    state = stat_or_none(download.part)
    if state is None or _resumable(download) is None:
        return total
    return max(0, total - 512 * state.st_blocks)


def drop_part(download: Download) -> None:
    """Remove the part and what is known of it."""
    # In this order: a journal without its part is ignored, a part without its journal as well.
    TransferJournal(download.part).remove()
    download.part.unlink(missing_ok=True)


def transfer(
    client: HttpClient,
    progress: ProgressFile,
    download: Download,
    check_space: Callable[[int], None],
    connections: int = DEFAULT_CONNECTIONS,
) -> Received:
    """Fill the part file; it is whole and on the disk at the return.

    `check_space` is called with the number of bytes that the disk must still take before the first
    is written. At most `connections` are used, fewer for small files. Raises HttpError,
    TransferError, OSError; the part stays for the next attempt. Other threads may run other
    transfers with the same client, not with the same `progress`.
    """
    fetched_bytes = 0
    reason = ""
    for restart in range(_MAX_RESTARTS + 1):
        if _resumable(download) is None:
            drop_part(download)
        if restart == 0 and download.size_bytes is not None:
            check_space(missing_disk_bytes(download))
        attempt = _Attempt(client, progress, download, connections if restart < 2 else 1)
        try:
            received = attempt.run()
        except _StartAnewError as error:
            reason = str(error)
            fetched_bytes += attempt.fetched_bytes
            drop_part(download)
        else:
            return Received(
                received.sha256, fetched_bytes + received.fetched_bytes, received.resumed_bytes
            )
    raise TransferError(
        f"{reason}; so it was {_MAX_RESTARTS + 1} times, each time from the start: the file "
        "changes on the server, or the server cannot resume; try again later or use another "
        "endpoint"
    )


def _total(ranges: tuple[Range, ...]) -> int:
    return sum(stop - start for start, stop in ranges)


def _resumable(download: Download) -> Entry | None:
    entry = TransferJournal(download.part).read()
    if entry is None or download.size_bytes is None:
        return None
    known = entry.version
    if (known.source, known.size_bytes) != (download.source, download.size_bytes):
        return None
    if known.sha256 or download.sha256:
        return entry if known.sha256 == download.sha256 else None
    return entry if known.validator else None


class _Address:
    """Where the bytes are. What the source redirects to is remembered until it is refused."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._direct: tuple[str, str | None] | None = None
        self._lock = threading.Lock()

    def ask(self, connection: Connection, headers: dict[str, str]) -> Response:
        tried = None
        while (direct := self._direct) is not None and direct != tried:
            try:
                return connection.request("GET", direct[0], headers=headers, token=direct[1])
            except HttpError as error:
                if error.status not in _EXPIRED:
                    raise
            tried = direct
            with self._lock:
                if self._direct == direct:
                    self._direct = None
        response = connection.request("GET", self._url, headers=headers, token=self._token)
        if response.url != self._url:
            self._direct = (response.url, self._token if response.trusted else None)
        return response


class _Lone:
    """Whether the first connection is to stay alone; judged from time to time by its reads.

    It counts them, and only what it counts while it is alone matters.
    """

    def __init__(self) -> None:
        self.begun_reads = 0
        self.done_reads = 0
        self.came_bytes = 0
        self._judged: tuple[float, int, int] | None = None
        self._judged_for_s = _TRIAL_S

    def start(self) -> None:
        """Its first bytes are coming, and the server answers ranges: others could join it."""
        self._judged = (time.monotonic(), 0, 0)

    def needs_company(self) -> bool:
        """Whether others are to join it: it is slow, and it waits for the bytes."""
        if self._judged is None:
            return False
        began, done_reads, came_bytes = self._judged
        now = time.monotonic()
        if now - began < self._judged_for_s:
            return False
        self._judged = (now, self.done_reads, self.came_bytes)
        self._judged_for_s = _WATCH_S
        # The read that is under way counts: it may wait for long.
        ready_bytes = (self.begun_reads - done_reads) * _READY_BYTES
        fast_bytes = (now - began) * _FAST_BYTES_PER_S
        return self.came_bytes - came_bytes < min(ready_bytes, fast_bytes)


class _Attempt:
    """The transfer from what the part holds now to its end."""

    def __init__(
        self, client: HttpClient, progress: ProgressFile, download: Download, connections: int
    ) -> None:
        self._client = client
        self._progress = progress
        self._download = download
        self._journal = TransferJournal(download.part)
        entry = _resumable(download)
        present = entry.ranges if entry else ()
        self._resumed_bytes = _total(present)
        self._version = entry.version if entry else None
        size_bytes = UNKNOWN_SIZE if download.size_bytes is None else download.size_bytes
        missing_bytes = size_bytes - self._resumed_bytes
        self._connections = max(1, min(connections, -(-missing_bytes // _MIN_CONNECTION_BYTES)))
        if download.size_bytes is None:
            self._connections = 1
        chunk_bytes = first_chunk_bytes(missing_bytes, self._connections)
        self._work = Work(size_bytes, present, self._connections * chunk_bytes * 3 // 4)
        self._address = _Address(download.url, download.token)
        self._agreeing = threading.Lock()
        self._journalling = threading.Lock()
        self._sync_failure: OSError | None = None
        self._is_too_big = False
        self._server_agreed = False
        self._lone = _Lone()
        self._open: list[Connection] = []
        self._workers: list[threading.Thread] = []
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0

    @property
    def fetched_bytes(self) -> int:
        return self._work.fetched_bytes

    def run(self) -> Received:
        size_bytes = self._download.size_bytes
        with self._opened_part() as file:
            if size_bytes == 0:
                with self._client.request(
                    "GET", self._download.url, token=self._download.token
                ) as response:
                    self._check_announced_size(response)
            self._run_threads(file)
            if not file.is_in_place():
                drop_part(self._download)
                raise TransferError(
                    f"{file.path} was removed or replaced during the download; leave it alone and "
                    "try again"
                )
        return Received(self._digest.hexdigest(), self._work.fetched_bytes, self._resumed_bytes)

    def _opened_part(self) -> PartFile:
        file = PartFile(self._download.part)
        size_bytes = self._download.size_bytes
        if size_bytes is not None:
            try:
                file.resize(size_bytes)
            except OSError:
                file.close()
                if not self._resumed_bytes:
                    drop_part(self._download)
                raise
        return file

    # The threads

    def _run_threads(self, file: PartFile) -> None:
        work = self._work
        # What is complete but cannot be read again is a failure; a connection that breaks is not.
        hasher = self._thread("hash", lambda: self._hash(file), even_when_complete=True)
        helpers = [
            self._thread("journal", lambda: self._keep_journal(file)),
            self._thread("reserve", lambda: self._reserve(file)),
        ]
        try:
            self._progress.start(
                f"model {self._download.name}", self._download.size_bytes, work.done_bytes
            )
            for thread in (*reversed(helpers), hasher):
                thread.start()
            self._start_worker(file)
            self._watch(file)
        except BaseException as error:
            work.fail(error)
            raise
        finally:
            self._end_connections()
            for worker in self._workers:
                worker.join()
            for helper in helpers:
                if helper.ident:
                    helper.join()
            self._finish(file, hasher)
        if work.failure is not None:
            raise work.failure

    def _watch(self, file: PartFile) -> None:
        """Tell of the progress until the end, and have others join a connection that is slow."""
        work = self._work
        is_alone = self._connections > 1
        while not work.over.wait(_TRIAL_S / 3 if is_alone else _WATCH_S):
            self._progress.update(work.done_bytes)
            if is_alone and self._lone.needs_company():
                is_alone = False
                work.share_among(self._connections)
                for _ in range(self._connections - 1):
                    self._start_worker(file)

    def _finish(self, file: PartFile, hasher: threading.Thread) -> None:
        if self._work.failure is None:
            self._checkpoint(file)
            self._progress.update(self._work.done_bytes)
            self._watch_hasher(hasher)
        else:
            with contextlib.suppress(OSError):
                self._checkpoint(file)
            if hasher.ident:
                hasher.join()
            if self._is_too_big:
                # The blocks of what has not come go back: the disk is not to stay full.
                file.resize(self._work.end_of_written)

    def _watch_hasher(self, hasher: threading.Thread) -> None:
        done_bytes = self._work.done_bytes
        if done_bytes - self._hashed_bytes > _WORTH_TELLING_BYTES:
            self._progress.start(
                f"model {self._download.name} (checking)", done_bytes, self._hashed_bytes
            )
            while hasher.is_alive():
                hasher.join(_WATCH_S)
                self._progress.update(self._hashed_bytes)
        hasher.join()

    def _thread(
        self, purpose: str, act: Callable[[], None], *, even_when_complete: bool = False
    ) -> threading.Thread:
        def run() -> None:
            try:
                act()
            except BaseException as error:
                self._work.fail(error, even_when_complete=even_when_complete)

        return threading.Thread(target=run, name=f"{purpose} {self._download.name}", daemon=True)

    def _start_worker(self, file: PartFile) -> None:
        connection = self._client.connection()
        worker = self._thread("fetch", lambda: self._fetch(connection, file))
        self._open.append(connection)
        self._workers.append(worker)
        worker.start()

    def _end_connections(self) -> None:
        for connection in self._open:
            connection.abort()

    def _reserve(self, file: PartFile) -> None:
        size_bytes = self._download.size_bytes
        if size_bytes is None or not missing_disk_bytes(self._download):
            return
        try:
            file.reserve(size_bytes, self._work.over.is_set)
        except OSError:
            self._is_too_big = True
            raise

    def _hash(self, file: PartFile) -> None:
        buffer = memoryview(bytearray(_HASH_BUFFER_BYTES))
        while (frontier := self._work.wait_for_frontier(self._hashed_bytes)) is not None:
            while self._hashed_bytes < frontier and self._work.failure is None:
                left = frontier - self._hashed_bytes
                count = file.read_into(buffer[:left], self._hashed_bytes)
                if not count:
                    raise TransferError(
                        f"{file.path} became shorter during the download; leave it alone and try "
                        "again"
                    )
                self._digest.update(buffer[:count])
                self._hashed_bytes += count

    def _keep_journal(self, file: PartFile) -> None:
        while not self._work.over.is_set():
            if self._work.wait_for_checkpoint(_CHECKPOINT_S):
                self._checkpoint(file)

    def _checkpoint(self, file: PartFile) -> None:
        """Sync what is written, then say so: never the other way round."""
        with self._journalling:
            # After a failed sync the next one may succeed without the bytes (fsync(2)).
            if self._sync_failure is not None:
                raise self._sync_failure
            ranges, mark = self._work.snapshot()
            try:
                file.sync()
            except OSError as error:
                self._sync_failure = error
                raise
            if self._version is not None:
                self._journal.write(self._version, ranges)
            self._work.synced(mark)

    # One thread of those that fetch

    def _fetch(self, connection: Connection, file: PartFile) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        failures = 0
        with connection:
            while (span := self._work.claim()) is not None:
                start, began_in = span.at, self._work.round
                try:
                    self._fetch_span(connection, span, file, buffer)
                    failures = 0
                    continue
                except HttpError as error:
                    connection.close()
                    problem = error
                finally:
                    self._work.leave(span)
                if span.at > start:
                    failures = 0
                failures += 1
                if self._work.over.is_set():
                    return
                if not problem.transient:
                    if problem.status in _TOO_MANY_CONNECTIONS and self._work.others_fetch:
                        return
                    raise problem
                if span.at == start and self._work.failed_in_vain(began_in):
                    raise problem
                self._client.wait_before_retry(
                    failures, str(problem), problem.retry_after_s, self._work.over
                )

    def _fetch_span(
        self, connection: Connection, span: Span, file: PartFile, buffer: memoryview
    ) -> None:
        while not self._work.is_fetched(span):
            with self._ask(connection, span) as response:
                self._agree(response, span, file)
                self._read_body(response, span, file, buffer)

    def _ask(self, connection: Connection, span: Span) -> Response:
        headers: dict[str, str] = {}
        whole = self._download.size_bytes if self._download.size_bytes is not None else UNKNOWN_SIZE
        # Several connections need a server that answers ranges: ask at once whether it does.
        if (span.at, span.stop) != (0, whole) or self._connections > 1:
            last = "" if span.stop >= whole else str(span.stop - 1)
            headers["Range"] = f"bytes={span.at}-{last}"
            # A stated sha256 says more: servers of one file may differ in their ETags.
            if self._version is not None and self._version.validator and not self._version.sha256:
                headers["If-Range"] = self._version.validator
        try:
            return self._address.ask(connection, headers)
        except HttpError as error:
            if error.status != 416 or not headers:
                raise
            raise _StartAnewError(str(error)) from error

    def _agree(self, response: Response, span: Span, file: PartFile) -> None:
        """After this the body begins where `span` is, and belongs to what is there."""
        version = Version(
            self._download.source,
            self._download.size_bytes,
            self._download.sha256,
            response.strong_etag,
            response.last_modified,
        )
        with self._agreeing:
            first, self._server_agreed = not self._server_agreed, True
            if first:
                self._check_announced_size(response)
            if response.status == 206:
                self._agree_on_range(response, span, version, first)
            elif span.at or self._work.done_bytes or len(self._workers) > 1:
                raise _StartAnewError(
                    f"{display_url(response.url)}: a part was asked for and the whole came"
                )
            else:
                stated = self._download.size_bytes
                self._work.claim_everything(span, response.total_size if stated is None else stated)
            if first:
                self._version = version
                self._checkpoint(file)
                if response.status == 206:
                    self._lone.start()

    def _agree_on_range(
        self, response: Response, span: Span, version: Version, first: bool
    ) -> None:
        where, total = response.content_range or (None, None)
        size_bytes = self._download.size_bytes
        known = self._version
        if first:
            fits = known is None or version.is_same(known)
        else:
            fits = known is None or not version.contradicts(known)
        if total is not None and size_bytes is not None:
            fits = fits and total == size_bytes
        if where != span.at or not fits:
            raise _StartAnewError(
                f"{display_url(response.url)}: the server answered with bytes of another range or "
                "version than the one asked for"
            )

    def _check_announced_size(self, response: Response) -> None:
        announced = response.total_size
        expected = self._download.size_bytes
        if announced is not None and expected is not None and announced != expected:
            raise TransferError(
                f"{display_url(response.url)}: {announced} bytes are announced, but a size of "
                f"{expected} is stated for this file; the Hub or mirror contradicts itself: try "
                "again later or use another endpoint"
            )

    def _read_body(
        self, response: Response, span: Span, file: PartFile, buffer: memoryview
    ) -> None:
        received = 0
        while not self._work.is_fetched(span) and not self._work.over.is_set():
            self._lone.begun_reads += 1
            count = response.read_into(buffer)
            self._lone.done_reads += 1
            self._lone.came_bytes += count
            if not count:
                self._look_why_it_ended(response, span, received)
                return
            received += count
            wanted = self._work.wanted(span, count)
            file.write(buffer[:wanted], span.at)
            if span.at + wanted == self._download.size_bytes and response.length is None:
                self._check_that_it_ends(response, wanted < count)
            self._work.landed(span, wanted)

    def _look_why_it_ended(self, response: Response, span: Span, received: int) -> None:
        if span.stop == UNKNOWN_SIZE and response.length is None:
            self._work.end_here(span)
            return
        # A server may answer with less than was asked for, if it says so.
        if received and received == response.length:
            return
        total = self._download.size_bytes
        raise HttpError(
            f"{display_url(response.url)}: the connection ended after {self._work.done_bytes}"
            f"{'' if total is None else f' of {total}'} bytes",
            transient=True,
        )

    def _check_that_it_ends(self, response: Response, has_more: bool) -> None:
        if has_more or response.read_into(memoryview(bytearray(1))):
            raise TransferError(
                f"{display_url(response.url)}: more bytes came than the stated "
                f"{self._download.size_bytes}; the server contradicts itself: try again later or "
                "use another endpoint"
            )
