"""One download into a part file, over as many connections as it takes.

`<file>.part.json` says which version a part belongs to: only a part of the very same one is
continued, and what is continued is hashed again first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from .http_client import HttpClient, HttpError, Response, display_url
from .progress import ProgressFile
from .store_files import CHUNK_BYTES, beside, hash_into, read_json, stat_or_none, write_json

# Attempts that bring no new byte; any progress starts the count afresh.
MAX_FRUITLESS_ATTEMPTS = 5


class TransferError(Exception):
    """What the server sends contradicts what is stated of the file."""


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

    @property
    def identity_path(self) -> Path:
        return beside(self.part, ".json")


@dataclass(frozen=True)
class Received:
    """`fetched` bytes came now, `resumed` were in the part before."""

    sha256: str
    fetched_bytes: int
    resumed_bytes: int


@dataclass(frozen=True)
class _Identity:
    source: str
    size_bytes: int | None
    sha256: str | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        return self.etag or self.last_modified

    def is_same_version(self, other: _Identity) -> bool:
        if (self.source, self.size_bytes) != (other.source, other.size_bytes):
            return False
        if self.sha256 or other.sha256:
            return self.sha256 == other.sha256
        return self.validator is not None and self.validator == other.validator


def part_size_bytes(download: Download) -> int:
    """What lies in the part file, whatever it belongs to."""
    state = stat_or_none(download.part)
    return state.st_size if state else 0


def resumable_bytes(download: Download) -> int:
    """What of the part file can be built on, as far as can be said before asking the server."""
    known = _read_identity(download)
    size = part_size_bytes(download)
    total = download.size_bytes
    if known is None or total is None or size > total:
        return 0
    if (known.source, known.size_bytes) != (download.source, total):
        return 0
    if known.sha256 or download.sha256:
        return size if known.sha256 == download.sha256 else 0
    return size if known.validator else 0


def drop_part(download: Download) -> None:
    """Remove the part and what is known of it."""
    download.part.unlink(missing_ok=True)
    download.identity_path.unlink(missing_ok=True)


def transfer(
    client: HttpClient,
    progress: ProgressFile,
    download: Download,
    check_space: Callable[[int], None],
) -> Received:
    """Fill the part file; it is whole and on the disk at the return.

    `check_space` is called with the number of missing bytes before the first is written. Raises
    HttpError, TransferError, OSError; the part stays for the next attempt.
    """
    return _Transfer(client, progress, download).run(check_space)


class _Transfer:
    def __init__(self, client: HttpClient, progress: ProgressFile, download: Download) -> None:
        self._client = client
        self._progress = progress
        self._download = download
        self._digest = hashlib.sha256()
        self._done = 0
        self._resumed = 0
        self._fetched = 0

    def run(self, check_space: Callable[[int], None]) -> Received:
        total = self._download.size_bytes
        if total is not None:
            check_space(total - resumable_bytes(self._download))
        with self._open_part() as file:
            if total is None or self._done < total or total == 0:
                self._fill(file)
            file.flush()
            os.fsync(file.fileno())
        return Received(self._digest.hexdigest(), self._fetched, self._resumed)

    def _open_part(self) -> BinaryIO:
        size = resumable_bytes(self._download)
        if not size:
            drop_part(self._download)
            return self._download.part.open("wb")
        file = self._download.part.open("r+b")
        self._progress.start(f"model {self._download.name} (checking what is there)", size)
        self._done = self._resumed = hash_into(self._digest, file, self._progress.update)
        return file

    def _fill(self, file: BinaryIO) -> None:
        fruitless = 0
        while True:
            before = self._done
            try:
                return self._connect(file)
            except HttpError as error:
                if not error.transient:
                    raise
                fruitless = 0 if self._done > before else fruitless + 1
                if fruitless >= MAX_FRUITLESS_ATTEMPTS:
                    raise
                self._client.wait_before_retry(max(1, fruitless), str(error))

    def _connect(self, file: BinaryIO) -> None:
        with self._request(file) as response:
            identity = self._identity_of(response)
            self._agree_on_start(response, identity, file)
            self._check_announced_size(response)
            write_json(self._download.identity_path, asdict(identity))
            self._progress.start(
                f"model {self._download.name}", self._download.size_bytes, self._done
            )
            self._read_body(response, file)
        if self._download.size_bytes is not None and self._done < self._download.size_bytes:
            raise HttpError(
                f"{display_url(response.url)}: the connection ended after {self._done} of "
                f"{self._download.size_bytes} bytes",
                transient=True,
            )

    def _request(self, file: BinaryIO) -> Response:
        headers: dict[str, str] = {}
        if self._done:
            headers["Range"] = f"bytes={self._done}-"
            known = _read_identity(self._download)
            if known and known.validator:
                headers["If-Range"] = known.validator
        try:
            return self._client.request(
                "GET", self._download.url, headers=headers, token=self._download.token
            )
        except HttpError as error:
            if error.status != 416 or not self._done:
                raise
            self._restart(file)
            raise HttpError(str(error), error.status, transient=True) from error

    def _identity_of(self, response: Response) -> _Identity:
        return _Identity(
            self._download.source,
            self._download.size_bytes,
            self._download.sha256,
            response.strong_etag,
            response.last_modified,
        )

    def _agree_on_start(self, response: Response, identity: _Identity, file: BinaryIO) -> None:
        """After this the body begins where the part ends."""
        if response.status != 206:
            if self._done:
                self._restart(file)
            return
        first = response.content_range[0] if response.content_range else None
        known = _read_identity(self._download)
        same = not self._done or (known is not None and identity.is_same_version(known))
        if first != self._done or not same:
            self._restart(file)
            raise HttpError(
                f"{display_url(response.url)}: the server answered with bytes of another range or "
                "version than the one asked for",
                transient=True,
            )

    def _restart(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        self._digest = hashlib.sha256()
        self._done = self._resumed = 0

    def _check_announced_size(self, response: Response) -> None:
        announced = response.total_size
        expected = self._download.size_bytes
        if announced is not None and expected is not None and announced != expected:
            raise TransferError(
                f"{display_url(response.url)}: {announced} bytes are announced, but a size of "
                f"{expected} is stated for this file; the Hub or mirror contradicts itself: try "
                "again later or use another endpoint"
            )

    def _read_body(self, response: Response, file: BinaryIO) -> None:
        limit = self._download.size_bytes
        while chunk := response.read(CHUNK_BYTES):
            if limit is not None and self._done + len(chunk) > limit:
                raise TransferError(
                    f"{display_url(response.url)}: more bytes came than the stated {limit}; the "
                    "server contradicts itself: try again later or use another endpoint"
                )
            file.write(chunk)
            self._digest.update(chunk)
            self._done += len(chunk)
            self._fetched += len(chunk)
            self._progress.update(self._done)


def _read_identity(download: Download) -> _Identity | None:
    data = read_json(download.identity_path)
    try:
        return _Identity(**data) if data is not None else None
    except TypeError:
        return None
