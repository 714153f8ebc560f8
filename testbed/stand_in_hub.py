#!/usr/bin/env python3
"""A small server that answers as the Hugging Face Hub does, with faults on demand.

The root folder holds `<owner>/<repo>/<path>`. Large files are answered with a redirect to a second
listener, the "CDN", as the Hub does; text files (`.md`, `.json`, `.txt`, `.gitattributes`) come
from the Hub itself and carry no sha256, because they are not in Git LFS.

A repository that holds a file named `.gated` asks for the token. `<file>.sha256` beside a file
states its digest, for files whose content nobody reads. Faults are set on the running
object (`hub.faults.cut_after_bytes = 1000`) or by HTTP:

    GET    /_stand_in/faults      the faults in force
    PATCH  /_stand_in/faults      change the ones named in the JSON body
    DELETE /_stand_in/faults      back to none
    GET    /_stand_in/requests    every request answered so far
    DELETE /_stand_in/requests    forget them
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

Listener = Literal["hub", "cdn"]
TEXT_SUFFIXES = (".md", ".json", ".txt", ".gitattributes")
PIECES_PER_S = 50
NOT_FOR_EVERYONE = ".gated"
STATED_DIGEST = ".sha256"


@dataclass
class Faults:
    """What goes wrong. None and False are "nothing"; a `*_times` of None is "every time"."""

    cut_after_bytes: int | None = None
    """Close the connection after this many bytes of a longer body."""
    cut_times: int | None = None
    corrupt_at: int | None = None
    """Flip the byte at this offset of every file served (not of text files)."""
    fail_status: int | None = None
    """Answer this status (429, 503 …) instead; 416 and 404 work as well."""
    fail_times: int | None = None
    fail_on: str = "any"
    """Which listener answers `fail_status`: hub, cdn or any."""
    retry_after: str | None = None
    """The Retry-After header that goes with `fail_status`: seconds or an HTTP date."""
    bytes_per_s: int | None = None
    """Bandwidth of one connection."""
    latency_s: float = 0.0
    """Wait so long before every answer."""
    max_connections: int | None = None
    """Refuse what comes over further connections to the CDN with `busy_status`, and hang up."""
    busy_status: int = 503
    signed_requests: int | None = None
    """A signed address opens so many requests (with bodies) and is refused from then on."""
    redirect_loop: bool = False
    """Redirect every file to itself."""
    shift_range_bytes: int = 0
    """Answer a range with another one that begins so many bytes later."""
    new_etag_after: int | None = None
    """The CDN gives another ETag from the answer with this number on (counted from 0)."""
    ignore_range: bool = False
    """Answer 200 with the whole file, as servers without ranges do."""
    linked_size_bytes: int | None = None
    """State this X-Linked-Size instead of the true one."""


@dataclass(frozen=True)
class RequestRecord:
    """One request as it came in, and the status it was answered with."""

    listener: Listener
    method: str
    path: str
    range: str | None
    authorization: bool
    status: int
    client_port: int = 0
    """The same for requests over one connection."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a repository. `sha256` and `oid` (the git blob) are hexadecimal."""

    path: Path
    name: str
    size_bytes: int
    sha256: str
    oid: str

    @property
    def in_lfs(self) -> bool:
        """Tell whether the Hub would keep it in Git LFS."""
        return not self.name.endswith(TEXT_SUFFIXES)


class Answer(Exception):  # noqa: N818 (an answer, not always an error)
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.body = message.encode()


def blob_id(content: bytes) -> str:
    """Return git's id of a blob."""
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


class Store:
    """The files under the root; hashes are remembered by path, size and modification time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._lock = threading.Lock()

    def repository(self, repo: str) -> Path:
        """Return the repository's folder; `repo` is `<owner>/<name>`.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = self._inside(self.root, repo)
        if repo.count("/") != 1 or not folder.is_dir():
            raise FileNotFoundError(repo)
        return folder

    def file(self, repo: str, name: str) -> StoredFile:
        """Return one file of a repository.

        Raises:
            FileNotFoundError: there is none.
        """
        path = self._inside(self.repository(repo), name)
        if not path.is_file() or path.name == NOT_FOR_EVERYONE:
            raise FileNotFoundError(name)
        size = path.stat().st_size
        sha256 = self._sha256(path)
        if name.endswith(TEXT_SUFFIXES):
            oid = blob_id(path.read_bytes())
        else:
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
            )
            oid = blob_id(pointer.encode())
        return StoredFile(path, name, size, sha256, oid)

    def files(self, repo: str) -> list[StoredFile]:
        """Return every file of a repository, sorted by name."""
        folder = self.repository(repo)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        own = [name for name in names if not name.endswith((NOT_FOR_EVERYONE, STATED_DIGEST))]
        return [self.file(repo, name) for name in own]

    def commit(self, repo: str) -> str:
        """Return the repository's only commit: 40 hex digits that follow from its content."""
        listing = [repo, *(f"{file.name} {file.sha256}" for file in self.files(repo))]
        return hashlib.sha1("\n".join(listing).encode(), usedforsecurity=False).hexdigest()

    def _sha256(self, path: Path) -> str:
        stated = path.with_name(path.name + STATED_DIGEST)
        if stated.exists():
            return stated.read_text().strip()
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._digests:
                with path.open("rb") as stream:
                    self._digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            return self._digests[key]

    @staticmethod
    def _inside(folder: Path, name: str) -> Path:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise FileNotFoundError(name)
        return folder.joinpath(*parts)


class StandInHub:
    """The running stand-in. As a context manager it serves from entry to exit.

    Args:
        root: folder that holds `<owner>/<repo>/<path>`.
        bind: address both listeners bind to.
        port: the Hub's port; 0 takes a free one.
        token: the token that opens gated repositories.
        faults: what goes wrong from the start.
    """

    def __init__(
        self,
        root: Path,
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int = 0,
        token: str = "hf_stand_in",  # noqa: S107 (opens nothing but this stand-in)
        faults: Faults | None = None,
    ) -> None:
        self.store = Store(Path(root))
        self.token = token
        self.faults = faults or Faults()
        self.bind = bind
        self._records: list[RequestRecord] = []
        self._bytes_served = 0
        self._bodies = 0
        self._connections: set[object] = set()
        self._signed = 0
        self._opened: dict[str, int] = {}
        self._lock = threading.Lock()
        self._hub = _Server((bind, port), self.handler(), self)
        try:
            self._cdn = _Server((bind, cdn_port), CdnHandler, self)
        except OSError:
            self._hub.server_close()
            raise
        self._threads: list[threading.Thread] = []

    @staticmethod
    def handler() -> type[BaseHTTPRequestHandler]:
        """Return what answers on the Hub's port."""
        return HubHandler

    @property
    def port(self) -> int:
        """The Hub's port."""
        return int(self._hub.server_address[1])

    @property
    def cdn_port(self) -> int:
        """The CDN's port."""
        return int(self._cdn.server_address[1])

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://{self.bind}:{self.port}"

    @property
    def requests(self) -> list[RequestRecord]:
        """The requests answered so far, oldest first (control requests left out)."""
        with self._lock:
            return list(self._records)

    @property
    def bytes_served(self) -> int:
        """How many bytes of bodies of files were handed to the network so far."""
        with self._lock:
            return self._bytes_served

    def forget_requests(self) -> None:
        """Start the record anew."""
        with self._lock:
            self._records.clear()
            self._bytes_served = self._bodies = 0

    def start(self) -> None:
        """Serve from threads of this process."""
        for server in (self._hub, self._cdn):
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop serving and free the ports."""
        for server in (self._hub, self._cdn):
            if self._threads:
                server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # what the handlers ask

    def record(self, record: RequestRecord) -> None:
        """Remember a request."""
        with self._lock:
            self._records.append(record)

    def signature(self, path: str) -> str:
        """Return what the CDN wants to see in the query of `path`."""
        return hashlib.sha256(f"{self.token} {path}".encode()).hexdigest()[:32]

    def new_signed_query(self, path: str) -> str:
        """Return a query that opens `path`, as often as the faults allow."""
        with self._lock:
            self._signed += 1
            return f"Expires=3600&Serial={self._signed}&Signature={self.signature(path)}"

    def take_signed_request(self, serial: str) -> bool:
        """Tell whether the signed address with this serial still opens something, and count it."""
        with self._lock:
            self._opened[serial] = self._opened.get(serial, 0) + 1
            allowed = self.faults.signed_requests
            return allowed is None or self._opened[serial] <= allowed

    def enter_connection(self, connection: object) -> bool:
        """Count an open connection to the CDN; False if it is one too many."""
        with self._lock:
            allowed = self.faults.max_connections
            if allowed is not None and len(self._connections - {connection}) >= allowed:
                return False
            self._connections.add(connection)
            return True

    def leave_connection(self, connection: object) -> None:
        """The connection was closed."""
        with self._lock:
            self._connections.discard(connection)

    def count_body(self) -> int:
        """Return how many answers with bodies of files came before this one."""
        with self._lock:
            self._bodies += 1
            return self._bodies - 1

    def count_bytes(self, count: int) -> None:
        """Remember that so many bytes of a file went out."""
        with self._lock:
            self._bytes_served += count

    def take_failure(self, listener: Listener) -> Answer | None:
        """Return the failure to answer with now, if one is due, and count it."""
        with self._lock:
            faults = self.faults
            if faults.fail_status is None or faults.fail_on not in ("any", listener):
                return None
            if faults.fail_times is not None:
                if faults.fail_times <= 0:
                    return None
                faults.fail_times -= 1
            answer = Answer(faults.fail_status, message="the stand-in was told to fail")
            if faults.retry_after is not None:
                answer.headers["Retry-After"] = faults.retry_after
            return answer

    def take_cut(self, length: int) -> int | None:
        """Return after how many bytes to cut a body of `length` bytes, if at all, and count it."""
        with self._lock:
            faults = self.faults
            if faults.cut_after_bytes is None or faults.cut_after_bytes >= length:
                return None
            if faults.cut_times is not None:
                if faults.cut_times <= 0:
                    return None
                faults.cut_times -= 1
            return faults.cut_after_bytes

    def change_faults(self, changes: dict[str, Any]) -> None:
        """Set the faults named in `changes`.

        Raises:
            ValueError: there is no such fault.
        """
        known = [field.name for field in fields(Faults)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ValueError(f"unknown fault {', '.join(unknown)}; known: {', '.join(known)}")
        with self._lock:
            self.faults = replace(self.faults, **changes)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], hub: StandInHub
    ) -> None:
        self.hub = hub
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind would ask the DNS for this machine's name, and may hang there
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stand-in-hub"
    disable_nagle_algorithm = True
    listener: Listener
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: requests are recorded instead."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._handle()

    def do_HEAD(self) -> None:
        """Answer a HEAD."""
        self._handle()

    @property
    def hub(self) -> StandInHub:
        """The stand-in this request came to."""
        return self.server.hub

    def answer(self) -> None:
        """Answer the request.

        Raises:
            Answer: a short answer to send instead.
        """
        raise NotImplementedError

    def _handle(self) -> None:
        self.status = 0
        if self.hub.faults.latency_s:
            time.sleep(self.hub.faults.latency_s)
        try:
            failure = self.hub.take_failure(self.listener)
            if failure:
                raise failure
            self.answer()
        except Answer as answer:
            self.send(answer.status, answer.headers, answer.body)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Send the status line, having recorded the request: the client may look at once."""
        headers = self.headers
        self.hub.record(
            RequestRecord(
                self.listener,
                self.command,
                self.path,
                headers.get("Range"),
                "Authorization" in headers,
                code,
                self.client_address[1],
            )
        )
        super().send_response(code, message)

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send a short answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, file: StoredFile, etag: str, headers: dict[str, str]) -> None:
        """Send a file or the range asked for, with the faults in force.

        Raises:
            Answer: 416, when the range begins beyond the end.
        """
        faults = self.hub.faults
        asked = None if faults.ignore_range else self._range(file.size_bytes, etag)
        if asked and faults.shift_range_bytes:
            start = min(asked[0] + faults.shift_range_bytes, file.size_bytes - 1)
            asked = (start, max(start + 1, asked[1]))
        start, stop = asked or (0, file.size_bytes)
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        if not faults.ignore_range:
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{file.size_bytes}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.take_cut(stop - start)
        corrupt_at = faults.corrupt_at if file.in_lfs else None
        end = stop if cut is None else start + cut
        if faults.bytes_per_s:
            # A slow line holds little; so what counts as served has nearly arrived.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        with file.path.open("rb") as stream:
            for at, count in _paced(start, end, faults.bytes_per_s):
                self._send_piece(stream, at, count, corrupt_at)
        if cut is not None:
            self.close_connection = True

    def _send_piece(self, stream: BinaryIO, at: int, count: int, corrupt_at: int | None) -> None:
        """Send `count` bytes from `at` on, the one at `corrupt_at` flipped."""
        stop = at + count
        if corrupt_at is not None and at <= corrupt_at < stop:
            self._send_piece(stream, at, corrupt_at - at, None)
            (byte,) = os.pread(stream.fileno(), 1, corrupt_at)
            self.wfile.write(bytes([byte ^ 0xFF]))
            self.hub.count_bytes(1)
            at = corrupt_at + 1
        while at < stop:
            # Past Python's buffers: the server is not to be what is measured.
            sent = os.sendfile(self.connection.fileno(), stream.fileno(), at, stop - at)
            if not sent:
                return
            self.hub.count_bytes(sent)
            at += sent

    def _range(self, size: int, etag: str) -> tuple[int, int] | None:
        """Return start and stop (exclusive) of the range asked for; None is the whole file."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if not found or found.groups() == ("", ""):
            return None
        if self.headers.get("If-Range", etag) != etag:
            return None
        first, last = found.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size or (first and last and int(last) < start):
            refusal = Answer(416, message="Range Not Satisfiable")
            refusal.headers = {"Content-Range": f"bytes */{size}"}
            raise refusal
        return start, stop


class CdnHandler(_Handler):
    """Serves bytes to whoever has a signed address; it wants no token."""

    listener = "cdn"

    def finish(self) -> None:
        """Close the connection."""
        self.hub.leave_connection(self)
        super().finish()

    def answer(self) -> None:
        """Send the file."""
        if not self.hub.enter_connection(self):
            self.close_connection = True
            raise Answer(self.hub.faults.busy_status, message="too many connections")
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if query.get("Signature") != [self.hub.signature(url.path)]:
            raise Answer(403, "AccessDenied", "The signature of this address is wrong.")
        if self.command == "GET" and not self.hub.take_signed_request(query["Serial"][0]):
            raise Answer(403, "AccessDenied", "Request has expired")
        owner, name, sha256, path = unquote(url.path).lstrip("/").split("/", 3)
        try:
            file = self.hub.store.file(f"{owner}/{name}", path)
        except FileNotFoundError as error:
            raise Answer(404, message="Not Found") from error
        if file.sha256 != sha256:
            raise Answer(404, message="Not Found")
        etag = file.sha256
        new_after = self.hub.faults.new_etag_after
        if self.command == "GET" and new_after is not None and self.hub.count_body() >= new_after:
            etag += "-another"
        self.send_file(file, f'"{etag}"', {})


class HubHandler(_Handler):
    """Answers for the Hub itself: the API, and where the bytes are."""

    listener = "hub"
    ROUTES = (
        (re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?"), "_tree"),
        (re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?"), "_model"),
        (re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)"), "_resolve"),
    )

    def do_PATCH(self) -> None:
        """Change the faults."""
        self._control()

    def do_DELETE(self) -> None:
        """Reset the faults, or forget the requests."""
        self._control()

    def do_GET(self) -> None:
        """Answer a GET."""
        if self.path.startswith("/_stand_in/"):
            self._control()
        else:
            super().do_GET()

    def answer(self) -> None:
        """Find the route and take it."""
        url = urlsplit(self.path)
        for pattern, method in self.ROUTES:
            found = pattern.fullmatch(url.path)
            if found:
                repo, revision, path = (
                    *(unquote(group or "") for group in found.groups()),
                    "",
                )[:3]
                self._admit(repo, revision or "main")
                getattr(self, method)(repo, path)
                return
        raise Answer(404, message="Not Found")

    def _admit(self, repo: str, revision: str) -> None:
        """Refuse what the Hub refuses: unknown repositories and revisions, missing tokens."""
        given = self.headers.get("Authorization")
        store = self.hub.store
        try:
            folder = store.repository(repo)
        except FileNotFoundError as error:
            # The Hub does not tell a stranger whether a repository exists.
            if given is None:
                raise Answer(401, "RepoNotFound", "Invalid username or password.") from error
            raise Answer(404, "RepoNotFound", "Repository not found") from error
        if (folder / NOT_FOR_EVERYONE).exists() and given != f"Bearer {self.hub.token}":
            restricted = f"Access to model {repo} is restricted"
            if given is None:
                raise Answer(
                    401,
                    "GatedRepo",
                    f"{restricted}. You must have access to it and be authenticated to access it. "
                    "Please log in.",
                )
            raise Answer(403, "GatedRepo", f"{restricted} and you are not in the authorized list.")
        if revision not in ("main", store.commit(repo)):
            raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _resolve(self, repo: str, path: str) -> None:
        try:
            file = self.hub.store.file(repo, path)
        except FileNotFoundError as error:
            raise Answer(404, "EntryNotFound", "Entry not found") from error
        headers = {"X-Repo-Commit": self.hub.store.commit(repo)}
        if not file.in_lfs:
            self.send_file(file, f'"{file.oid}"', headers)
            return
        size = self.hub.faults.linked_size_bytes
        looping = self.hub.faults.redirect_loop
        location = self.path if looping else self._cdn_address(repo, file)
        headers |= {
            "Location": location,
            "Accept-Ranges": "bytes",
            "X-Linked-Etag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size_bytes if size is None else size),
        }
        self.send(302, headers, f"Found. Redirecting to {location}".encode())

    def _cdn_address(self, repo: str, file: StoredFile) -> str:
        """Return a signed address under another host name, where there is one."""
        host = urlsplit(f"//{self.headers.get('Host', self.hub.bind)}").hostname
        other = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}.get(str(host), str(host))
        path = f"/{repo}/{file.sha256}/{quote(file.name)}"
        return f"http://{other}:{self.hub.cdn_port}{path}?{self.hub.new_signed_query(path)}"

    def _model(self, repo: str, _path: str) -> None:
        folder = self.hub.store.repository(repo)
        facts = {
            "id": repo,
            "sha": self.hub.store.commit(repo),
            "private": False,
            "gated": "manual" if (folder / NOT_FOR_EVERYONE).exists() else False,
            "siblings": [{"rfilename": file.name} for file in self.hub.store.files(repo)],
        }
        self._send_json(facts)

    def _tree(self, repo: str, folder: str) -> None:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["0"])[0]
        entries = list(self._entries(repo, folder.strip("/"), recursive in ("1", "true", "True")))
        if folder.strip("/") and not entries:
            message = f'{folder} does not exist on "main"'
            raise Answer(404, "EntryNotFound", message)
        self._send_json(entries)

    def _entries(self, repo: str, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        seen: set[str] = set()
        for file in self.hub.store.files(repo):
            if not file.name.startswith(prefix):
                continue
            parts = file.name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                if name not in seen:
                    seen.add(name)
                    yield {
                        "type": "directory",
                        "oid": blob_id(name.encode()),
                        "size": 0,
                        "path": name,
                    }
            if not recursive and len(parts) > 1:
                continue
            entry: dict[str, Any] = {
                "type": "file",
                "oid": file.oid,
                "size": file.size_bytes,
                "path": file.name,
            }
            if file.in_lfs:
                entry["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": 135}
            yield entry

    def _send_json(self, value: object) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _control(self) -> None:
        """Answer a control request; these are not recorded and never fail by a fault."""
        hub = self.hub
        status = 200
        reply: dict[str, Any] | None = None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.command, self.path:
            case "PATCH", "/_stand_in/faults":
                try:
                    hub.change_faults(dict(json.loads(body)))
                except (ValueError, TypeError) as error:
                    status, reply = 400, {"error": str(error)}
            case "DELETE", "/_stand_in/faults":
                hub.faults = Faults()
            case "DELETE", "/_stand_in/requests":
                hub.forget_requests()
            case "GET", "/_stand_in/requests":
                reply = {
                    "requests": [asdict(record) for record in hub.requests],
                    "bytes_served": hub.bytes_served,
                }
            case "GET", "/_stand_in/faults":
                pass
            case _:
                status, reply = 404, {"error": "no such control route"}
        content = json.dumps(reply if reply is not None else asdict(hub.faults)).encode()
        BaseHTTPRequestHandler.send_response(self, status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _paced(start: int, stop: int, bytes_per_s: int | None) -> Iterator[tuple[int, int]]:
    """Yield offset and length of pieces to send, no faster than `bytes_per_s`.

    The wait after the last piece counts: the connection's next answer comes after it.
    """
    if not bytes_per_s:
        yield start, stop - start
        return
    step = max(1, bytes_per_s // PIECES_PER_S)
    began = time.monotonic()
    for at in range(start, stop, step):
        count = min(step, stop - at)
        yield at, count
        due = began + (at + count - start) / bytes_per_s
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> int:
    """Serve until SIGTERM or SIGINT; the first line of output is the address."""
    parser = argparse.ArgumentParser(description="A server that answers as the Hugging Face Hub.")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--cdn-port", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True, help="holds <owner>/<repo>/<path>")
    parser.add_argument("--pid-file", type=Path, help="written once the server listens")
    parser.add_argument("--token", default="hf_stand_in", help="opens gated repositories")
    given = parser.parse_args()
    if not given.root.is_dir():
        parser.error(f"--root {given.root} is no folder")
    try:
        hub = StandInHub(
            given.root,
            bind=given.bind,
            port=given.port,
            cdn_port=given.cdn_port,
            token=given.token,
        )
    except OSError as error:
        print(
            f"error: cannot listen on {given.bind}:{given.port}: {error.strerror}", file=sys.stderr
        )
        return 1
    serve(hub, hub.url, given.pid_file)
    return 0


def serve(hub: StandInHub, address: str, pid_file: Path | None) -> None:
    """Print the address and serve until SIGTERM or SIGINT; the PID file is there meanwhile."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with hub:
        if pid_file:
            pid_file.write_text(f"{os.getpid()}\n")
        print(address, flush=True)
        stop.wait()
    if pid_file:
        with contextlib.suppress(FileNotFoundError):
            pid_file.unlink()


if __name__ == "__main__":
    sys.exit(main())
