"""Pulls under way: two of one model are one, and one that nobody waits for any more ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ...core.http_client import HttpClient, HttpError
from ...core.model_catalogue import Catalogue as ModelCatalogue
from ...core.model_files import FileRecord, read_record
from ...core.model_source import SourceError
from ...core.model_store import FetchRequest, ModelStore, Outcome, StoreError
from ...core.progress import ProgressFile
from ...modelctl.attributes import Attributes
from ..config import Model
from ..errors import ApiError
from .pull_sources import PullSources, Wanted, is_of_hub

_TOLD_EVERY_S: Final = 0.1
_MOST_AT_ONCE: Final = 4
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

Line = Mapping[str, Any]
PULLING: Final[Line] = {"status": "pulling manifest"}


class _NobodyWaitsError(StoreError):
    """All that asked for the model have gone."""


@dataclass(frozen=True)
class Pulled:
    """What came of a pull. `by_clients`: the model is there since clients pulled it."""

    wanted: Wanted
    outcome: Outcome
    by_clients: bool


class Pull:
    """One model on its way. Its lines can be followed from any moment on."""

    def __init__(self) -> None:
        self.followers = 0
        self.wanted_no_more = threading.Event()
        self._past: list[Line] = []
        self._now: Line | None = None
        self._ended: ApiError | None = None
        self._is_over = False
        self._news = asyncio.Event()

    def tell(self, line: Line) -> None:
        """A file is further than it was."""
        self._now = line
        self._wake()

    def add(self, line: Line) -> None:
        """Something that every follower is told."""
        self._now = None
        self._past.append(line)
        self._wake()

    def end(self, error: ApiError | None = None) -> None:
        """Nothing more will come."""
        self._ended, self._is_over = error, True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def lines(self) -> AsyncGenerator[Line]:
        """Everything from the beginning; raises ApiError where it ends so."""
        told = 0
        shown: Line | None = None
        while True:
            news = self._news
            while told < len(self._past):
                yield self._past[told]
                told += 1
            if self._is_over and told == len(self._past):
                break
            if self._now is not None and self._now != shown:
                shown = self._now
                yield shown
            if news is self._news:
                await news.wait()
        if self._ended is not None:
            raise self._ended


class Pulls:
    """All pulls of this process. `finished` is awaited with what came before followers hear it."""

    def __init__(
        self,
        sources: PullSources,
        finished: Callable[[Pulled], Any],
        make_client: Callable[[], HttpClient] = HttpClient,
    ) -> None:
        self._sources = sources
        self._finished = finished
        self._make_client = make_client
        self._under_way: dict[str, tuple[Pull, asyncio.Task[None]]] = {}
        self._places = asyncio.Semaphore(_MOST_AT_ONCE)

    async def lines(self, key: str, text: str, known: Model | None) -> AsyncGenerator[Line]:
        """Pull, or join the pull of the same key; raises ApiError 500 with Ollama's words."""
        if key not in self._under_way:
            pull = Pull()
            task = asyncio.create_task(self._run(key, pull, text, known))
            self._under_way[key] = (pull, task)
        pull = self._under_way[key][0]
        pull.followers += 1
        try:
            async with contextlib.aclosing(pull.lines()) as lines:
                async for line in lines:
                    yield line
        finally:
            pull.followers -= 1
            if not pull.followers:
                pull.wanted_no_more.set()
                # Who comes now begins anew, on what has come so far.
                if self._under_way.get(key, (None,))[0] is pull:
                    del self._under_way[key]

    async def close(self) -> None:
        """End all of them; what has come so far is used by the next one."""
        tasks = []
        for pull, task in self._under_way.values():
            pull.wanted_no_more.set()
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _run(self, key: str, pull: Pull, text: str, known: Model | None) -> None:
        error: ApiError | None = None
        try:
            pull.add(PULLING)
            async with self._places:
                pulled = await self._fetch(pull, text, known)
            pull.add({"status": "verifying sha256 digest"})
            pull.add({"status": "writing manifest"})
            await self._finished(pulled)
            pull.add({"status": "success"})
        except ApiError as problem:
            error = problem
        except Exception:
            _LOG.exception("pull of %s", text)
            error = ApiError(500, "internal server error")
        finally:
            pull.end(error)
            if self._under_way.get(key, (None,))[0] is pull:
                del self._under_way[key]

    async def _fetch(self, pull: Pull, text: str, known: Model | None) -> Pulled:
        loop = asyncio.get_running_loop()
        client = self._make_client()
        progress = _Progress(pull, loop)
        try:
            wanted = await in_thread(lambda: self._sources.find(text, known, client))
            request = wanted.request
            store = ModelStore(client, progress)
            expected = await in_thread(lambda: store.plan(request))
        except (StoreError, SourceError, HttpError, OSError) as error:
            raise ApiError(500, f"pull model manifest: {error}") from error
        progress.expect(expected)
        try:
            return await in_thread(lambda: _fetch(store, wanted, progress))
        except _NobodyWaitsError as error:
            raise ApiError(499, "context canceled") from error
        except (StoreError, HttpError, OSError) as error:
            raise ApiError(500, unwritable(request.directory) or str(error)) from error


def _fetch(store: ModelStore, wanted: Wanted, progress: _Progress) -> Pulled:
    request = wanted.request
    record = read_record(request.path)
    # A gateway that was stopped midway may have left the model without a name.
    by_clients = record is None or (is_of_hub(record.name) and record.name == wanted.name)
    outcome = fetch_for_servers(store, request)
    progress.all_there(outcome)
    return Pulled(wanted, outcome, by_clients)


def fetch_for_servers(store: ModelStore, request: FetchRequest) -> Outcome:
    """Fetch; what comes gets the owner and mode of the models that are there.

    Servers run as another user. Raises StoreError, HttpError, OSError.
    """
    catalogue = ModelCatalogue(request.directory, request.settings.users)
    attributes = Attributes.of_models(request.directory, catalogue)
    outcome = store.fetch(request)
    if outcome.changed:
        attributes.give(outcome, request.directory)
        catalogue.refresh()
    return outcome


def unwritable(directory: Path) -> str:
    """Why nothing can be written there; empty where it can."""
    if not directory.is_dir():
        return f"the models' directory {directory} does not exist"
    if os.access(directory, os.W_OK | os.X_OK):
        return ""
    return (
        f"permission denied: this server may not write {directory}; get or remove models there "
        "with `sudo modelctl`"
    )


class _Progress(ProgressFile):
    """What the store tells, as Ollama's lines; called in the worker's threads."""

    def __init__(self, pull: Pull, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(None, "", "bytes")
        self._pull = pull
        self._loop = loop
        self._missing: list[FileRecord] = []
        self._at_work: FileRecord | None = None
        self._told_at = float("-inf")
        self._total: int | None = None

    def expect(self, outcome: Outcome) -> None:
        """What will come, by the plan; what is there is told of at once."""
        before = {file.file: file for file in outcome.before.files} if outcome.before else {}
        for file in outcome.after.files:
            old = before.get(file.file)
            if outcome.action != "fetch" or (old and old.sha256 == file.sha256):
                self._pull.add(_line(file, file.size_bytes))
            else:
                self._missing.append(file)

    def all_there(self, outcome: Outcome) -> None:
        """Everything has come."""
        for file in outcome.after.files:
            if any(one.file == file.file for one in self._missing):
                self._loop.call_soon_threadsafe(self._pull.add, _line(file, file.size_bytes))
        self._missing = []

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        """A new stage: a file's transfer, or that it is read once more."""
        self._check()
        fitting = [file for file in self._missing if total in (None, file.size_bytes)]
        self._at_work = fitting[0] if fitting and not label.endswith("(checking)") else None
        self._total = total
        self._told_at = float("-inf")
        self.update(done)

    def update(self, done: int, total: int | None = None) -> None:
        """So many bytes of it are here."""
        self._check()
        now = time.monotonic()
        if self._at_work is None or now - self._told_at < _TOLD_EVERY_S:
            return
        self._told_at = now
        line = _line(self._at_work, done, total or self._total)
        self._loop.call_soon_threadsafe(self._pull.tell, line)

    def _check(self) -> None:
        if self._pull.wanted_no_more.is_set():
            raise _NobodyWaitsError("nobody waits for it any more")


def _line(file: FileRecord, done: int, total: int | None = None) -> Line:
    # Clients tell the bars apart by the digest; where the source states none, the file stands in.
    digest = file.sha256 or hashlib.sha256(file.source.encode()).hexdigest()
    line: dict[str, Any] = {
        "status": f"pulling {digest[:12]}",
        "digest": f"sha256:{digest}",
        "total": total or file.size_bytes,
        "completed": done,
    }
    return {key: value for key, value in line.items() if value}


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """The result of `work`, done in a thread of its own that keeps no process from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_Result] = loop.create_future()

    def deliver(value: Any, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except BaseException as problem:
            # Handed to the one who waits, who raises it.
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop may be gone
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=run, name="models", daemon=True).start()
    return await result
