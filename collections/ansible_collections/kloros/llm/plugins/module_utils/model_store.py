"""The store of model files: fetch, prove, then put in place.

Beside a model's `<file>` lie its record `<file>.json` and, while it is on its way, `<file>.part`
with its journal, `<file>.staged` and `<file>.lock`. The names of a model's further files are in
its record; see `model_files`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .disk_space import MIB, free_bytes, mount_point
from .file_lock import file_lock
from .http_client import HttpClient, HttpError, Response, display_url
from .model_files import (
    FileRecord,
    Record,
    Role,
    WantedFile,
    read_record,
    write_record,
)
from .model_placement import finish, is_intact, keep_version, place, staged_path
from .model_source import (
    DEFAULT_HF_ENDPOINT,
    Source,
    is_commit,
    offline_places,
    parse_source,
    resolve_url,
)
from .model_transfer import (
    Download,
    Received,
    TransferError,
    drop_part,
    missing_disk_bytes,
    part_size_bytes,
    resumable_bytes,
    transfer,
)
from .model_users import Users
from .progress import ProgressFile
from .store_files import (
    beside,
    copy_hashing,
    file_digest,
    stat_or_none,
    try_hard_link,
    try_reflink,
)

GGUF_MAGIC = b"GGUF"
DEFAULT_RESERVE_BYTES = 1024 * MIB
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(Exception):
    """The model is not in place; the message says what was found and what to do."""


class ContentError(StoreError):
    """What the source has is not what it should be: another digest, or no GGUF file."""


class AnswerError(StoreError):
    """The source gives no answer that can be used, or contradicts itself."""


def _may_always_link(_: os.stat_result) -> bool:
    return True


class SpaceClaims:
    """What downloads that run at the same time in this process have yet to write.

    Each looks at the free space for itself; without this, two would count on the same bytes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[Path, tuple[int, int, Sequence[Path]]] = {}

    def claim(
        self, owner: Path, missing_bytes: int, parts: Sequence[Path], check: Callable[[int], None]
    ) -> None:
        """Call `check` with what others have yet to write; where it does not raise, claim."""
        with self._lock:
            check(sum(self._outstanding(one) for one in self._claims if one != owner))
            self._claims[owner] = (missing_bytes, _allocated_bytes(parts), parts)

    def release(self, owner: Path) -> None:
        """Nothing more is written for `owner`."""
        with self._lock:
            self._claims.pop(owner, None)

    def _outstanding(self, owner: Path) -> int:
        missing_bytes, allocated_then, parts = self._claims[owner]
        return max(0, missing_bytes - (_allocated_bytes(parts) - allocated_then))


def _allocated_bytes(paths: Sequence[Path]) -> int:
    states = (stat_or_none(path) for path in paths)
    return sum(state.st_blocks * 512 for state in states if state)


@dataclass(frozen=True)
class FetchSettings:
    """How to fetch, whatever the model.

    `may_link` says of a file on the host whether the store may share its inode, owner and mode
    included. What lies in `offline_dir`, as `<owner>/<repository>/<path>` or by its name alone, is
    taken from there; with `offline` nothing else is asked. `users` tells what must not go away.
    """

    hf_endpoint: str = DEFAULT_HF_ENDPOINT
    hf_token: str | None = field(default=None, repr=False)
    reserve_bytes: int = DEFAULT_RESERVE_BYTES
    may_link: Callable[[os.stat_result], bool] = _may_always_link
    offline_dir: Path | None = None
    offline: bool = False
    users: Users = field(default_factory=Users)
    claims: SpaceClaims = field(default_factory=SpaceClaims)


@dataclass(frozen=True)
class FetchRequest:
    """A model that is wanted; `files` as `wanted_files` gives them.

    `latest`: also ask the source where record and files agree. `keep_previous`: what is replaced
    stays as a version. `attributes_of`: the file whose owner and mode new files take over where
    they have no predecessor of their own name.
    """

    name: str
    directory: Path
    files: tuple[WantedFile, ...]
    settings: FetchSettings = field(default_factory=FetchSettings)
    aliases: tuple[str, ...] = ()
    latest: bool = False
    keep_previous: bool = False
    attributes_of: Path | None = None

    @property
    def source(self) -> Source:
        return self.files[0].source

    @property
    def path(self) -> Path:
        """The file that a server is told to open."""
        return self.directory / self.files[0].file

    @property
    def paths(self) -> list[Path]:
        return [self.directory / wanted.file for wanted in self.files]


@dataclass(frozen=True)
class Outcome:
    """What was done, or in a plan what would be.

    `action`: nothing; only the record is written (the right bytes were there); or files are
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
class NewestFile:
    """What a file's source names now."""

    file: str
    role: Role
    size_bytes: int | None
    sha256: str | None
    revision: str | None


@dataclass(frozen=True)
class UpdateCheck:
    """Whether the source names another content than the recorded one.

    `available` None: it could not be told, and `detail` says why.
    """

    available: bool | None
    newest: tuple[NewestFile, ...]
    detail: str


@dataclass(frozen=True)
class _Version:
    """The version of a file that its source names now: at `url`, or at `origin` on the host."""

    url: str
    size_bytes: int | None
    sha256: str | None
    revision: str | None
    origin: Path | None = None


_NOTHING_KNOWN = _Version("", None, None, None)


@dataclass(frozen=True)
class _State:
    """A wanted file: `there` where it is in place, else `version` says what is to be got."""

    wanted: WantedFile
    there: FileRecord | None
    version: _Version | None = None


_Missing = tuple[WantedFile, _Version]
"""A file that is to be got, and what its source names."""

_Pins = dict[tuple[str, str], str]
"""(repository, revision) -> the commit at which all files of a model are looked at."""


class ModelStore:
    """`client` reaches the network; `progress` is told how far things are."""

    def __init__(self, client: HttpClient, progress: ProgressFile) -> None:
        self._client = client
        self._progress = progress
        self._digests: dict[tuple[int, int, int], str] = {}

    def plan(self, request: FetchRequest) -> Outcome:
        """What `fetch` would do. Writes nothing; raises StoreError or HttpError as it would."""
        with _told_plainly(request):
            states = self._sort_out(request)
            if any(state.there is None for state in states):
                return _foreseen(request, states)
            return _settled_outcome(request, states)

    def fetch(self, request: FetchRequest) -> Outcome:
        """Have the model in place, proven. Raises StoreError or HttpError."""
        with _told_plainly(request):
            if not request.latest and _is_unread(request):
                states = [_State(one, self._settled(request, one)) for one in request.files]
                if all(state.there for state in states):
                    outcome = _settled_outcome(request, states)
                    if not outcome.changed:
                        return outcome
            if not request.directory.is_dir():
                raise StoreError(f"the directory {request.directory} does not exist; make it first")
            with file_lock(beside(request.path, ".lock"), lambda: self._tell_waiting(request)):
                return self._fetch_alone(request)

    def check_update(self, record: Record, settings: FetchSettings) -> UpdateCheck:
        """Ask the sources of a recorded model what they name now; nothing is downloaded.

        Trouble with the network or a source is told in the answer, never raised.
        """
        try:
            wanted = tuple(
                WantedFile(parse_source(file.source), file.file, file.role) for file in record.files
            )
            if all(is_commit(one.source.revision) for one in wanted):
                return UpdateCheck(False, (), "the source is pinned to a commit")
            request = FetchRequest(record.name, Path("/"), wanted, settings)
            versions = self._look_at_all(request, wanted, {})
        except (HttpError, StoreError, ValueError, OSError) as error:
            return UpdateCheck(None, (), str(error))
        newest = tuple(
            NewestFile(one.file, one.role, found.size_bytes, found.sha256, found.revision)
            for one, found in zip(wanted, versions, strict=True)
        )
        verdicts = [_is_newer(*pair) for pair in zip(record.files, newest, strict=True)]
        if True in verdicts:
            changed = [one.file for one, newer in zip(newest, verdicts, strict=True) if newer]
            return UpdateCheck(
                True, newest, f"the source names other content: {', '.join(changed)}"
            )
        if None in verdicts:
            return UpdateCheck(
                None, newest, "the source states no digest, so nothing but the size can be compared"
            )
        return UpdateCheck(False, newest, "the source names what is here")

    def _tell_waiting(self, request: FetchRequest) -> None:
        self._progress.start(f"model {request.name} (waiting for another process that gets it)")

    def _fetch_alone(self, request: FetchRequest) -> Outcome:
        finish(request.path)
        states = self._sort_out(request)
        for state in states:
            if state.there:
                drop_part(_download(request, state.wanted, _NOTHING_KNOWN))
        if any(state.there is None for state in states):
            try:
                return self._replace(request, states)
            finally:
                request.settings.claims.release(request.path)
        outcome = _settled_outcome(request, states)
        if not outcome.changed:
            return outcome
        after = _with_former_files(outcome)
        write_record(request.directory, after)
        return replace(
            outcome, after=clear_dropped(request.directory, after, request.settings.users)
        )

    # What is there

    def _sort_out(self, request: FetchRequest) -> list[_State]:
        """Every wanted file: in place, or what is to be got. No network where all are in place."""
        there: list[FileRecord | None] = [
            None if request.latest else self._settled(request, wanted) for wanted in request.files
        ]
        if None not in there:
            return [_State(*pair) for pair in zip(request.files, there, strict=True)]
        pins = _pins_of(request, there)
        try:
            return self._look(request, there, pins)
        except HttpError as error:
            if not pins or error.status != 404:
                raise
        # What is missing is not in the commit of what is there: all of them at the newest one.
        return self._look(request, [None] * len(there), {})

    def _look(
        self, request: FetchRequest, there: Sequence[FileRecord | None], pins: _Pins
    ) -> list[_State]:
        missing = [one for one, file in zip(request.files, there, strict=True) if file is None]
        versions = dict(zip(missing, self._look_at_all(request, missing, pins), strict=True))
        states = []
        for wanted, file in zip(request.files, there, strict=True):
            version = versions.get(wanted)
            found = file or (self._adoptable(request, wanted, version) if version else None)
            states.append(_State(wanted, found, version))
        return states

    def _settled(self, request: FetchRequest, wanted: WantedFile) -> FileRecord | None:
        """The file's record where no network is needed for it."""
        path = request.directory / wanted.file
        state = stat_or_none(path)
        if state is None:
            return None
        known = _known(request, wanted)
        if known and known.source != str(wanted.source):
            known = None
        digest = wanted.sha256 or (known.sha256 if known else None)
        if digest is None or digest != self._digest(request, wanted, state):
            return None
        proven = wanted.sha256 is not None or (known is not None and known.verified)
        if known and is_intact(known, path):
            return replace(known, role=wanted.role, verified=proven)
        revision = known.revision if known else None
        return _file_record(wanted, state, digest, revision, verified=proven)

    def _adoptable(
        self, request: FetchRequest, wanted: WantedFile, version: _Version
    ) -> FileRecord | None:
        """The record where the file that is there already is what the source names."""
        path = request.directory / wanted.file
        state = stat_or_none(path)
        if state is None or version.size_bytes != state.st_size:
            return None
        known = _known(request, wanted)
        if version.sha256 is None:
            # Asked for the newest of something that states no digest: its size must do.
            same = known is not None and known.source == str(wanted.source)
            if not (request.latest and same and known and is_intact(known, path)):
                return None
            return None if version.origin and _is_younger(version.origin, state) else known
        if version.sha256 != self._digest(request, wanted, state):
            return None
        fresh = _file_record(wanted, state, version.sha256, version.revision, verified=True)
        if known and is_intact(known, path):
            # Not read anew: what the record says of the last reading still holds.
            return replace(fresh, verified_at=known.verified_at)
        return fresh

    def _digest(self, request: FetchRequest, wanted: WantedFile, state: os.stat_result) -> str:
        """sha256 of the file in place: the record's where the file is unchanged since."""
        path = request.directory / wanted.file
        known = _known(request, wanted)
        if known and known.sha256 and is_intact(known, path):
            return known.sha256
        key = (state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = self._hash_file(request, path)
        return self._digests[key]

    def _hash_file(self, request: FetchRequest, path: Path) -> str:
        self._progress.start(f"model {request.name} (checking)", path.stat().st_size)
        return file_digest(path, self._progress.update)

    # What the source names

    def _look_at_all(
        self, request: FetchRequest, files: Sequence[WantedFile], pins: _Pins
    ) -> list[_Version]:
        """Every file at the same commit of its repository: the first one asked for decides."""
        known = dict(pins)
        versions = []
        for wanted in files:
            version = self._look_at(request, wanted, known)
            if wanted.source.kind == "hf" and version.revision and not version.origin:
                known.setdefault(_pin_key(wanted.source), version.revision)
            versions.append(version)
        return versions

    def _look_at(self, request: FetchRequest, wanted: WantedFile, pins: _Pins) -> _Version:
        if wanted.source.kind == "file":
            return _look_at_file(request, wanted, Path(wanted.source.location))
        origin = _offline_origin(request, wanted)
        if origin:
            return _look_at_file(request, wanted, origin)
        settings = request.settings
        if settings.offline:
            raise StoreError(
                f"model {request.name}: {wanted.source} would have to come from the network, and "
                f"'offline' forbids that; {_offline_places(settings, wanted)}"
            )
        pin = pins.get(_pin_key(wanted.source)) if wanted.source.kind == "hf" else None
        url = resolve_url(wanted.source, settings.hf_endpoint, pin)
        response = self._ask_head(url, _token(request, wanted))
        hub = response.hub
        if pin and hub.commit and hub.commit != pin:
            raise AnswerError(
                f"{display_url(url)}: asked for commit {pin}, the Hub answers with {hub.commit}; "
                "the Hub or mirror contradicts itself: try again later or use another endpoint"
            )
        size_bytes = response.total_size if hub.size_bytes is None else hub.size_bytes
        if wanted.sha256 and hub.sha256 and wanted.sha256 != hub.sha256:
            raise ContentError(
                f"{display_url(url)}: the Hub states sha256 {hub.sha256}, the wish says "
                f"{wanted.sha256}; correct the wish's sha256, or pin the revision it belongs to"
            )
        sha256 = wanted.sha256 or hub.sha256
        if size_bytes is None and sha256 is None:
            raise StoreError(
                f"{display_url(url)}: the server does not state the size, so a cut transfer could "
                "not be told from a whole one; give the file's sha256"
            )
        commit = hub.commit or pin
        pinned = resolve_url(wanted.source, settings.hf_endpoint, commit)
        return _Version(pinned, size_bytes, sha256, commit)

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

    # Getting it

    def _replace(self, request: FetchRequest, states: Sequence[_State]) -> Outcome:
        before = read_record(request.path)
        missing = _missing(states)
        downloads = [_download(request, *pair) for pair in missing]
        _check_space(request, missing)
        files = {state.wanted.file: state.there for state in states}
        fetched = resumed = 0
        for index, (wanted, version) in enumerate(missing):
            received = self._get(request, missing, index)
            _prove(request, wanted, version, downloads[index], received.sha256)
            state = _make_ready(request, wanted, downloads[index])
            proven = version.sha256 is not None
            files[wanted.file] = _file_record(
                wanted, state, received.sha256, version.revision, verified=proven
            )
            fetched += received.fetched_bytes
            resumed += received.resumed_bytes
        after = _record(request, [file for file in files.values() if file])
        outcome = Outcome("fetch", request.path, before, after, fetched, resumed)
        if request.keep_previous and before and before.version != after.version:
            keep_version(request.directory, before, request.directory)
        after = _with_former_files(outcome)
        waiting = {pair[0].file: one.part for pair, one in zip(missing, downloads, strict=True)}
        place(request.directory, after, waiting)
        for download in downloads:
            drop_part(download)
        return replace(
            outcome, after=clear_dropped(request.directory, after, request.settings.users)
        )

    def _get(
        self,
        request: FetchRequest,
        missing: Sequence[_Missing],
        index: int,
    ) -> Received:
        wanted, version = missing[index]
        download = _download(request, wanted, version)
        if len(missing) > 1:
            name = f"{request.name} ({index + 1} of {len(missing)})"
            download = replace(download, name=name)
        if version.origin:
            return self._take_file(request, version.origin, download, missing[index:])
        return transfer(
            self._client,
            self._progress,
            download,
            lambda missing_bytes: _check_space(request, missing[index:], missing_bytes),
        )

    def _take_file(
        self,
        request: FetchRequest,
        origin: Path,
        download: Download,
        missing: Sequence[_Missing],
    ) -> Received:
        origin = origin.resolve()
        drop_part(download)
        if (_would_link(request, origin) and try_hard_link(origin, download.part)) or try_reflink(
            origin, download.part
        ):
            return Received(self._hash_file(request, download.part), 0, 0)
        size_bytes = origin.stat().st_size
        _check_space(request, missing, size_bytes)
        self._progress.start(f"model {download.name}", size_bytes)
        with origin.open("rb") as source, download.part.open("wb") as target:
            digest = copy_hashing(source, target, self._progress.update)
            target.flush()
            os.fsync(target.fileno())
        return Received(digest, size_bytes, 0)


def clear_dropped(directory: Path, record: Record, users: Users) -> Record:
    """Remove the files that no longer belong to the model and that nobody uses.

    The record as it is written then. A file that is in use stays, and the record remembers it.
    """
    kept = []
    for name in record.dropped:
        path = directory / name
        if read_record(path) or not path.exists():
            continue
        if users.of([path]):
            kept.append(name)
        else:
            path.unlink()
    if tuple(kept) == record.dropped:
        return record
    cleared = replace(record, dropped=tuple(kept))
    write_record(directory, cleared)
    return cleared


def _with_former_files(outcome: Outcome) -> Record:
    """The record to be, which first remembers every file that belonged to the model before."""
    before, after = outcome.before, outcome.after
    if before is None:
        return after
    former = {file.file for file in before.files} | set(before.dropped)
    return replace(after, dropped=tuple(sorted(former - {file.file for file in after.files})))


def _known(request: FetchRequest, wanted: WantedFile) -> FileRecord | None:
    record = read_record(request.path)
    return record.file(wanted.file) if record else None


def _is_unread(request: FetchRequest) -> bool:
    """Whether record and files agree, so that no byte needs reading to know the digests.

    A lock says that another process is at work, or was killed and has left something behind.
    """
    if staged_path(request.path).exists() or beside(request.path, ".lock").exists():
        return False
    known = [(_known(request, wanted), request.directory / wanted.file) for wanted in request.files]
    return all(file is not None and is_intact(file, path) for file, path in known)


def _settled_outcome(request: FetchRequest, states: Sequence[_State]) -> Outcome:
    before = read_record(request.path)
    after = _record(request, [state.there for state in states if state.there])
    if before:
        after = replace(after, dropped=before.dropped)
    return Outcome("none" if after == before else "record", request.path, before, after)


def _missing(states: Sequence[_State]) -> list[_Missing]:
    return [
        (state.wanted, state.version)
        for state in states
        if state.there is None and state.version is not None
    ]


def _foreseen(request: FetchRequest, states: Sequence[_State]) -> Outcome:
    missing = _missing(states)
    _check_space(request, missing)
    files = []
    for state in states:
        version = state.version or _NOTHING_KNOWN
        foreseen = FileRecord(
            file=state.wanted.file,
            role=state.wanted.role,
            source=str(state.wanted.source),
            revision=version.revision,
            size_bytes=version.size_bytes or 0,
            sha256=version.sha256,
            verified=version.sha256 is not None,
            verified_at="",
            mtime_ns=0,
        )
        files.append(state.there or foreseen)
    return Outcome(
        "fetch",
        request.path,
        read_record(request.path),
        _record(request, files),
        sum(_missing_bytes(request, *pair) for pair in missing),
    )


def _missing_disk_bytes(request: FetchRequest, wanted: WantedFile, version: _Version) -> int:
    """What the disk must still take for a file; nothing where it would be linked."""
    if version.origin:
        return _missing_bytes(request, wanted, version)
    return missing_disk_bytes(_download(request, wanted, version))


def _missing_bytes(request: FetchRequest, wanted: WantedFile, version: _Version) -> int:
    """What has to be got of a file; nothing where it would be linked."""
    if version.origin:
        return 0 if _would_link(request, version.origin) else version.size_bytes or 0
    return (version.size_bytes or 0) - resumable_bytes(_download(request, wanted, version))


def _pin_key(source: Source) -> tuple[str, str]:
    return source.repository, source.revision


def _pins_of(request: FetchRequest, there: Sequence[FileRecord | None]) -> _Pins:
    """The commits of what is in place: what is missing comes from the same."""
    pins: _Pins = {}
    for wanted, file in zip(request.files, there, strict=True):
        if file and file.revision and wanted.source.kind == "hf":
            pins.setdefault(_pin_key(wanted.source), file.revision)
    return pins


def _token(request: FetchRequest, wanted: WantedFile) -> str | None:
    """A Hub's token is nobody else's business."""
    return request.settings.hf_token if wanted.source.kind == "hf" else None


def _download(request: FetchRequest, wanted: WantedFile, version: _Version) -> Download:
    return Download(
        request.name,
        str(wanted.source),
        version.url,
        version.size_bytes,
        version.sha256,
        beside(request.directory / wanted.file, ".part"),
        _token(request, wanted),
    )


def _look_at_file(request: FetchRequest, wanted: WantedFile, origin: Path) -> _Version:
    path = request.directory / wanted.file
    try:
        with origin.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StoreError(
            f"file:{origin}: {error.strerror}; the file must lie on the host itself and be "
            "readable there"
        ) from error
    if not origin.is_file():
        raise StoreError(f"file:{origin} is not a regular file; give the model file itself")
    if origin.resolve() == path.resolve():
        raise StoreError(f"file:{origin} is the model's own place; give where it comes from")
    revision = wanted.source.revision if is_commit(wanted.source.revision) else None
    return _Version(f"file:{origin}", size_bytes, wanted.sha256, revision, origin)


def _offline_origin(request: FetchRequest, wanted: WantedFile) -> Path | None:
    """The file in the offline folder that stands for the source."""
    return next(
        (
            path
            for path in offline_places(wanted.source, wanted.file, request.settings.offline_dir)
            if path.is_file()
        ),
        None,
    )


def _offline_places(settings: FetchSettings, wanted: WantedFile) -> str:
    places = offline_places(wanted.source, wanted.file, settings.offline_dir)
    if not places:
        return "give 'offline_dir', the folder on the host that holds the files"
    return f"put the file at {' or '.join(str(path) for path in places)}"


def _is_younger(origin: Path, state: os.stat_result) -> bool:
    """Whether `origin` was written after the file in place, which came from it."""
    there = origin.stat()
    return not os.path.samestat(there, state) and there.st_mtime_ns > state.st_mtime_ns


def _is_newer(file: FileRecord, newest: NewestFile) -> bool | None:
    """Whether a source names other content than the recorded one; None: it does not tell."""
    if newest.sha256 and file.sha256:
        return newest.sha256 != file.sha256
    if newest.size_bytes is not None and newest.size_bytes != file.size_bytes:
        return True
    if newest.revision and newest.revision == file.revision:
        return False
    return None


def _would_link(request: FetchRequest, origin: Path) -> bool:
    there = stat_or_none(origin)
    directory = stat_or_none(request.directory)
    if there is None or directory is None:
        return False
    return there.st_dev == directory.st_dev and request.settings.may_link(there)


def _prove(
    request: FetchRequest, wanted: WantedFile, version: _Version, download: Download, digest: str
) -> None:
    path = request.directory / wanted.file
    if version.sha256 is not None:
        if digest == version.sha256:
            return
        drop_part(download)
        raise ContentError(
            f"model {request.name}: what came from {wanted.source} has sha256 {digest}, needed is "
            f"{version.sha256}; it was removed and {path} is as it was. Try again; if it "
            "stays so, the source or the expected sha256 is wrong"
        )
    # Without a digest the magic is the only proof that this is no error page.
    with download.part.open("rb") as file:
        start = file.read(len(GGUF_MAGIC))
    if wanted.file.endswith(".gguf") and start != GGUF_MAGIC:
        drop_part(download)
        raise ContentError(
            f"model {request.name}: what came from {wanted.source} is no GGUF file (it starts "
            f"with {start!r}); give the address of the file itself, not of a page about it"
        )


def _make_ready(request: FetchRequest, wanted: WantedFile, download: Download) -> os.stat_result:
    """Give a proven part its attributes and bring it to the disk; its status then."""
    predecessors = [request.directory / wanted.file, request.attributes_of]
    like = next((state for path in predecessors if path and (state := stat_or_none(path))), None)
    with download.part.open("rb") as file:
        if like:
            _take_over_attributes(like, file.fileno())
        os.fsync(file.fileno())
        return os.fstat(file.fileno())


def _take_over_attributes(like: os.stat_result, descriptor: int) -> None:
    """Owner and mode; never on an inode that is shared."""
    if os.fstat(descriptor).st_nlink > 1:
        return
    # Only root can give a file away; others replace none but their own.
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


def _check_space(
    request: FetchRequest, missing: Sequence[_Missing], first_missing_bytes: int | None = None
) -> None:
    """Whether all that is missing fits; claims the space.

    `first_missing_bytes` is what the disk is now known to have to take for the first of them.
    """
    needs = [_missing_disk_bytes(request, *pair) for pair in missing]
    if first_missing_bytes is not None:
        needs[0] = first_missing_bytes
    elif all(version.origin and _would_link(request, version.origin) for _, version in missing):
        return
    missing_bytes = sum(needs)
    total_bytes = sum(version.size_bytes or 0 for _, version in missing)

    def check(others_bytes: int) -> None:
        needed = missing_bytes + others_bytes + request.settings.reserve_bytes
        free = free_bytes(request.directory)
        if free >= needed:
            return
        others = f", {_mib(others_bytes)} MiB of other downloads" if others_bytes else ""
        raise StoreError(
            f"model {request.name}: {_mib(needed)} MiB are needed in {request.directory} "
            f"({_mib(missing_bytes)} of {_mib(total_bytes)} MiB to get{others} and a reserve of "
            f"{_mib(request.settings.reserve_bytes)} MiB), {_mib(free)} MiB are free on "
            f"{mount_point(request.directory)}; free some space, lower reserve_mib or use another "
            "directory"
        )

    parts = [_download(request, *pair).part for pair in missing]
    request.settings.claims.claim(request.path, missing_bytes, parts, check)


@contextlib.contextmanager
def _told_plainly(request: FetchRequest) -> Iterator[None]:
    """Turns what the system says into what the reader can act on."""
    try:
        yield
    except TransferError as error:
        raise AnswerError(f"model {request.name}: {error}") from error
    except OSError as error:
        if error.errno not in _DISK_FULL:
            where = error.filename or request.directory
            raise StoreError(
                f"model {request.name}: {error.strerror or error} ({where}); check owner, mode "
                "and state of the file system"
            ) from error
        downloads = [_download(request, wanted, _NOTHING_KNOWN) for wanted in request.files]
        kept = [one for one in downloads if part_size_bytes(one)]
        raise StoreError(
            f"model {request.name}: the disk is full ({error.strerror} on "
            f"{mount_point(request.directory)}); {_mib(sum(map(part_size_bytes, kept)))} MiB are "
            f"kept in {', '.join(str(one.part) for one in kept) or 'no file'} and the next run "
            "goes on from there; free some space"
        ) from error


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)


def _file_record(
    wanted: WantedFile,
    state: os.stat_result,
    sha256: str,
    revision: str | None,
    *,
    verified: bool,
) -> FileRecord:
    return FileRecord(
        file=wanted.file,
        role=wanted.role,
        source=str(wanted.source),
        revision=revision,
        size_bytes=state.st_size,
        sha256=sha256,
        verified=verified,
        verified_at=now_text(),
        mtime_ns=state.st_mtime_ns,
    )


def _record(request: FetchRequest, files: Sequence[FileRecord]) -> Record:
    return Record(
        request.name, str(request.source), files[0].revision, tuple(files), request.aliases
    )


def now_text() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
