"""The store of model files: fetch, prove, then put in place.

Beside `<file>` lie its record `<file>.json` and, while it is on its way, `<file>.part`,
`<file>.part.json` and `<file>.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .disk_space import MIB, free_bytes, mount_point
from .file_lock import file_lock
from .http_client import HttpClient, HttpError, Response, display_url
from .model_source import DEFAULT_HF_ENDPOINT, Source, resolve_url
from .model_transfer import (
    Download,
    Received,
    TransferError,
    drop_part,
    part_size_bytes,
    resumable_bytes,
    transfer,
)
from .progress import ProgressFile
from .store_files import (
    beside,
    copy_hashing,
    hash_into,
    read_json,
    stat_or_none,
    sync_directory,
    try_hard_link,
    try_reflink,
    write_json,
)

GGUF_MAGIC = b"GGUF"
DEFAULT_RESERVE_BYTES = 1024 * MIB
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(Exception):
    """The model is not in place; the message says what was found and what to do."""


def _may_always_link(_: os.stat_result) -> bool:
    return True


@dataclass(frozen=True)
class FetchRequest:
    """One model file that is wanted. `sha256` is in lower case.

    `may_link` says of a `file:` source's status whether the store may share its inode, owner and
    mode included.
    """

    name: str
    source: Source
    directory: Path
    file_name: str
    sha256: str | None = None
    hf_endpoint: str = DEFAULT_HF_ENDPOINT
    hf_token: str | None = field(default=None, repr=False)
    reserve_bytes: int = DEFAULT_RESERVE_BYTES
    may_link: Callable[[os.stat_result], bool] = _may_always_link

    @property
    def path(self) -> Path:
        return self.directory / self.file_name


@dataclass(frozen=True)
class Record:
    """What is known of a file in the store.

    `revision` is the commit, where a Hub states one. `verified` says that `sha256` was given from
    outside (by the wish or the Hub) and matched; otherwise it was only computed here.
    `verified_at` (UTC, ISO 8601) is when the bytes were last read whole. `sha256` is None only in
    a plan for something that nobody states a digest of.
    """

    name: str
    source: str
    revision: str | None
    size_bytes: int
    sha256: str | None
    verified: bool
    verified_at: str
    mtime_ns: int

    def facts(self) -> dict[str, Any]:
        """What matters in a comparison: all but the times."""
        return {k: v for k, v in asdict(self).items() if k not in ("verified_at", "mtime_ns")}


@dataclass(frozen=True)
class Outcome:
    """What was done, or in a plan what would be.

    `action`: nothing; only the record is written (the right bytes were there); or the file is
    fetched. `bytes_fetched` come from the source, `bytes_resumed` from an earlier attempt; both
    are 0 for what is linked.
    """

    action: Literal["none", "record", "fetch"]
    path: Path
    before: Record | None
    after: Record
    bytes_fetched: int = 0
    bytes_resumed: int = 0

    @property
    def changed(self) -> bool:
        return self.action != "none"


@dataclass(frozen=True)
class _Version:
    """The version that a source names now."""

    url: str
    size_bytes: int | None
    sha256: str | None
    revision: str | None


def record_path(path: Path) -> Path:
    """Where the record of the model file `path` lies."""
    return beside(path, ".json")


def read_record(path: Path) -> Record | None:
    """The record of the model file `path`; None where there is none that can be read."""
    data = read_json(record_path(path))
    if data is None:
        return None
    try:
        return Record(
            name=str(data["name"]),
            source=str(data["source"]),
            revision=None if data["revision"] is None else str(data["revision"]),
            size_bytes=int(data["size_bytes"]),
            sha256=str(data["sha256"]),
            verified=bool(data["verified"]),
            verified_at=str(data["verified_at"]),
            mtime_ns=int(data["mtime_ns"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


class ModelStore:
    """`client` reaches the network; `progress` is told how far things are."""

    def __init__(self, client: HttpClient, progress: ProgressFile) -> None:
        self._client = client
        self._progress = progress
        self._digests: dict[tuple[int, int, int], str] = {}

    def plan(self, request: FetchRequest) -> Outcome:
        """What `fetch` would do. Writes nothing; raises StoreError or HttpError as it would."""
        with _told_plainly(request):
            settled = self._settled(request)
            if settled:
                return settled
            version = self._look_at(request)
            return self._adoptable(request, version) or self._foreseen(request, version)

    def fetch(self, request: FetchRequest) -> Outcome:
        """Have the model in place, proven. Raises StoreError or HttpError."""
        with _told_plainly(request):
            if _is_unread(request):
                settled = self._settled(request)
                if settled and not settled.changed:
                    return settled
            if not request.directory.is_dir():
                raise StoreError(f"the directory {request.directory} does not exist; make it first")
            with file_lock(beside(request.path, ".lock"), lambda: self._tell_waiting(request)):
                return self._fetch_alone(request)

    def _tell_waiting(self, request: FetchRequest) -> None:
        self._progress.start(f"model {request.name} (waiting for another process that gets it)")

    def _fetch_alone(self, request: FetchRequest) -> Outcome:
        outcome = self._settled(request)
        if outcome is None:
            version = self._look_at(request)
            outcome = self._adoptable(request, version) or self._replace(request, version)
        if outcome.changed:
            write_json(record_path(request.path), asdict(outcome.after))
        return outcome

    # What is there

    def _settled(self, request: FetchRequest) -> Outcome | None:
        """The outcome where no network is needed for it."""
        state = stat_or_none(request.path)
        if state is None:
            return None
        record = read_record(request.path)
        source = str(request.source)
        if record and record.source != source:
            record = None
        wanted = request.sha256 or (record.sha256 if record else None)
        if wanted is None or wanted != self._digest(request, state):
            return None
        if record and _is_intact(record, state):
            proven = record.verified or request.sha256 is not None
            after = replace(record, name=request.name, verified=proven)
        else:
            proven = request.sha256 is not None or (record is not None and record.verified)
            revision = record.revision if record else None
            after = _record(request, state, wanted, revision, verified=proven)
        before = read_record(request.path)
        return Outcome("none" if after == before else "record", request.path, before, after)

    def _adoptable(self, request: FetchRequest, version: _Version) -> Outcome | None:
        """The outcome where the file that is there already is what the source names."""
        state = stat_or_none(request.path)
        if state is None or version.sha256 is None or version.size_bytes != state.st_size:
            return None
        if version.sha256 != self._digest(request, state):
            return None
        after = _record(request, state, version.sha256, version.revision, verified=True)
        return Outcome("record", request.path, read_record(request.path), after)

    def _digest(self, request: FetchRequest, state: os.stat_result) -> str:
        """sha256 of the file in place: the record's where the file is unchanged since."""
        record = read_record(request.path)
        if record and record.sha256 and _is_intact(record, state):
            return record.sha256
        key = (state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = self._hash_file(request, request.path)
        return self._digests[key]

    def _hash_file(self, request: FetchRequest, path: Path) -> str:
        self._progress.start(f"model {request.name} (checking)", path.stat().st_size)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            hash_into(digest, file, self._progress.update)
        return digest.hexdigest()

    # What the source names

    def _look_at(self, request: FetchRequest) -> _Version:
        if request.source.kind == "file":
            return _look_at_file(request)
        url = resolve_url(request.source, request.hf_endpoint)
        response = self._ask_head(url, _token(request))
        hub = response.hub
        size_bytes = response.total_size if hub.size_bytes is None else hub.size_bytes
        if request.sha256 and hub.sha256 and request.sha256 != hub.sha256:
            raise StoreError(
                f"{display_url(url)}: the Hub states sha256 {hub.sha256}, the wish says "
                f"{request.sha256}; correct the wish's sha256, or pin the revision it belongs to"
            )
        sha256 = request.sha256 or hub.sha256
        if size_bytes is None and sha256 is None:
            raise StoreError(
                f"{display_url(url)}: the server does not state the size, so a cut transfer could "
                "not be told from a whole one; give the file's sha256"
            )
        pinned = resolve_url(request.source, request.hf_endpoint, hub.commit)
        return _Version(pinned, size_bytes, sha256, hub.commit)

    def _ask_head(self, url: str, token: str | None) -> Response:
        try:
            with self._client.request(
                "HEAD", url, token=token, stop_at_foreign_redirect=True
            ) as response:
                if response.status == 200 or response.hub.size_bytes is not None:
                    return response
        except HttpError as error:
            if error.status not in (400, 403, 405, 501):
                raise
        # Signed URLs and some servers refuse HEAD: one byte tells the size as well.
        with self._client.request(
            "GET", url, headers={"Range": "bytes=0-0"}, token=token
        ) as response:
            return response

    def _foreseen(self, request: FetchRequest, version: _Version) -> Outcome:
        size_bytes = version.size_bytes or 0
        missing = size_bytes - resumable_bytes(_download(request, version))
        if _would_link(request):
            missing = 0
        else:
            _check_space(request, missing, size_bytes)
        after = Record(
            request.name,
            str(request.source),
            version.revision,
            size_bytes,
            version.sha256,
            version.sha256 is not None,
            verified_at="",
            mtime_ns=0,
        )
        return Outcome("fetch", request.path, read_record(request.path), after, missing)

    # Getting it

    def _replace(self, request: FetchRequest, version: _Version) -> Outcome:
        before = read_record(request.path)
        download = _download(request, version)
        if request.source.kind == "file":
            received = self._take_file(request, download)
        else:
            received = transfer(
                self._client,
                self._progress,
                download,
                lambda missing: _check_space(request, missing, version.size_bytes or 0),
            )
        _prove(request, version, download, received.sha256)
        state = _put_in_place(request, download)
        verified = version.sha256 is not None
        after = _record(request, state, received.sha256, version.revision, verified=verified)
        return Outcome(
            "fetch",
            request.path,
            before,
            after,
            received.fetched_bytes,
            received.resumed_bytes,
        )

    def _take_file(self, request: FetchRequest, download: Download) -> Received:
        origin = Path(request.source.location).resolve()
        drop_part(download)
        if (_would_link(request) and try_hard_link(origin, download.part)) or try_reflink(
            origin, download.part
        ):
            return Received(self._hash_file(request, download.part), 0, 0)
        size_bytes = download.size_bytes or 0
        _check_space(request, size_bytes, size_bytes)
        self._progress.start(f"model {request.name}", size_bytes)
        with origin.open("rb") as source, download.part.open("wb") as target:
            digest = copy_hashing(source, target, self._progress.update)
            copied = target.tell()
        return Received(digest, copied, 0)


def _token(request: FetchRequest) -> str | None:
    """A Hub's token is nobody else's business."""
    return request.hf_token if request.source.kind == "hf" else None


def _download(request: FetchRequest, version: _Version) -> Download:
    return Download(
        request.name,
        str(request.source),
        version.url,
        version.size_bytes,
        version.sha256,
        beside(request.path, ".part"),
        _token(request),
    )


def _look_at_file(request: FetchRequest) -> _Version:
    origin = Path(request.source.location)
    try:
        with origin.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StoreError(
            f"{request.source}: {error.strerror}; the file must lie on the host itself and be "
            "readable there"
        ) from error
    if not origin.is_file():
        raise StoreError(f"{request.source} is not a regular file; give the model file itself")
    if origin.resolve() == request.path.resolve():
        raise StoreError(f"{request.source} is the model's own place; give where it comes from")
    return _Version(str(request.source), size_bytes, request.sha256, None)


def _would_link(request: FetchRequest) -> bool:
    if request.source.kind != "file":
        return False
    origin = stat_or_none(Path(request.source.location))
    directory = stat_or_none(request.directory)
    if origin is None or directory is None:
        return False
    return origin.st_dev == directory.st_dev and request.may_link(origin)


def _prove(request: FetchRequest, version: _Version, download: Download, digest: str) -> None:
    if version.sha256 is not None:
        if digest == version.sha256:
            return
        drop_part(download)
        raise StoreError(
            f"model {request.name}: what came from {request.source} has sha256 {digest}, needed is "
            f"{version.sha256}; it was removed and {request.path} is as it was. Try again; if it "
            "stays so, the source or the expected sha256 is wrong"
        )
    # Without a digest the magic is the only proof that this is no error page.
    with download.part.open("rb") as file:
        start = file.read(len(GGUF_MAGIC))
    if request.file_name.endswith(".gguf") and start != GGUF_MAGIC:
        drop_part(download)
        raise StoreError(
            f"model {request.name}: what came from {request.source} is no GGUF file (it starts "
            f"with {start!r}); give the address of the file itself, not of a page about it"
        )


def _put_in_place(request: FetchRequest, download: Download) -> os.stat_result:
    with download.part.open("rb") as file:
        _take_over_attributes(request.path, file.fileno())
        os.fsync(file.fileno())
    download.part.replace(request.path)
    # Where both names were hard links to one file, rename(2) does nothing and says nothing.
    drop_part(download)
    sync_directory(request.directory)
    return request.path.stat()


def _take_over_attributes(predecessor: Path, descriptor: int) -> None:
    """Owner and mode of the file that is replaced; never on an inode that is shared."""
    state = stat_or_none(predecessor)
    if state is None or os.fstat(descriptor).st_nlink > 1:
        return
    # Only root can give a file away; others replace none but their own.
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, state.st_uid, state.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(state.st_mode))


def _check_space(request: FetchRequest, missing_bytes: int, total_bytes: int) -> None:
    needed = missing_bytes + request.reserve_bytes
    free = free_bytes(request.directory)
    if free < needed:
        raise StoreError(
            f"model {request.name}: {_mib(needed)} MiB are needed in {request.directory} "
            f"({_mib(missing_bytes)} of {_mib(total_bytes)} MiB to get and a reserve of "
            f"{_mib(request.reserve_bytes)} MiB), {_mib(free)} MiB are free on "
            f"{mount_point(request.directory)}; free some space, lower reserve_mib or use another "
            "directory"
        )


@contextlib.contextmanager
def _told_plainly(request: FetchRequest) -> Iterator[None]:
    """Turns what the system says into what the reader can act on."""
    try:
        yield
    except TransferError as error:
        raise StoreError(f"model {request.name}: {error}") from error
    except OSError as error:
        if error.errno not in _DISK_FULL:
            where = error.filename or request.directory
            raise StoreError(
                f"model {request.name}: {error.strerror or error} ({where}); check owner, mode "
                "and state of the file system"
            ) from error
        kept = part_size_bytes(_download(request, _Version("", None, None, None)))
        raise StoreError(
            f"model {request.name}: the disk is full ({error.strerror} on "
            f"{mount_point(request.directory)}); {_mib(kept)} MiB are kept in "
            f"{beside(request.path, '.part')} and the next run goes on from there; free some space"
        ) from error


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)


def _is_unread(request: FetchRequest) -> bool:
    """Whether record and file agree, so that no byte needs reading to know the digest."""
    record = read_record(request.path)
    state = stat_or_none(request.path)
    return record is not None and state is not None and _is_intact(record, state)


def _is_intact(record: Record, state: os.stat_result) -> bool:
    return (record.size_bytes, record.mtime_ns) == (state.st_size, state.st_mtime_ns)


def _record(
    request: FetchRequest,
    state: os.stat_result,
    sha256: str,
    revision: str | None,
    *,
    verified: bool,
) -> Record:
    return Record(
        name=request.name,
        source=str(request.source),
        revision=revision,
        size_bytes=state.st_size,
        sha256=sha256,
        verified=verified,
        verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        mtime_ns=state.st_mtime_ns,
    )
