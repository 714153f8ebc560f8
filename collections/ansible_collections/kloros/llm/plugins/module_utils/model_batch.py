"""Several models at once: each for itself, so that one that fails stops no other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from .http_client import HttpClient, HttpError
from .model_store import FetchRequest, ModelStore, Outcome, SpaceClaims, StoreError
from .progress import ProgressFile

Result = Outcome | StoreError | HttpError
_Work = Callable[[ModelStore, FetchRequest], Outcome]


def fetch_all(
    requests: Sequence[FetchRequest],
    make_client: Callable[[], HttpClient],
    progress: ProgressFile,
    parallel: int = 1,
    *,
    plan_only: bool = False,
) -> list[Result]:
    """Fetch every model, or only plan it; what became of each, in the order of `requests`.

    `make_client` is called once a thread. `progress` is told of all together.
    """
    work: _Work = ModelStore.plan if plan_only else ModelStore.fetch
    workers = min(max(1, parallel), len(requests))
    if workers <= 1:
        store = ModelStore(make_client(), progress)
        return [_run(work, store, request) for request in requests]
    claims = SpaceClaims()
    batch = _Batch(
        work,
        [replace(one, settings=replace(one.settings, claims=claims)) for one in requests],
        make_client,
        SharedProgress(progress),
    )
    return batch.run(workers)


def _run(work: _Work, store: ModelStore, request: FetchRequest) -> Result:
    try:
        return work(store, request)
    except (StoreError, HttpError) as error:
        return error


class _Batch:
    def __init__(
        self,
        work: _Work,
        requests: Sequence[FetchRequest],
        make_client: Callable[[], HttpClient],
        progress: SharedProgress,
    ) -> None:
        self._work = work
        self._requests = requests
        self._make_client = make_client
        self._progress = progress
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(requests)):
            self._waiting.put(index)
        self._done: dict[int, Result] = {}
        self._bug: BaseException | None = None

    def run(self, workers: int) -> list[Result]:
        # Daemons: an interrupt ends the program at once, and the store bears that.
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._bug:
            raise self._bug
        return [self._done[index] for index in range(len(self._requests))]

    def _serve(self) -> None:
        try:
            client = self._make_client()
            while self._bug is None:
                try:
                    index = self._waiting.get_nowait()
                except queue.Empty:
                    return
                with self._progress.member() as member:
                    store = ModelStore(client, member)
                    self._done[index] = _run(self._work, store, self._requests[index])
        except BaseException as error:
            # Handed to the thread that waits, which raises it.
            self._bug = error


class SharedProgress:
    """One progress for several workers: the labels of all that are at work, and their sums."""

    def __init__(self, progress: ProgressFile) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._members: list[_Member] = []
        self._label = ""

    def member(self) -> _Member:
        """A worker's own progress; it counts from its entry to its exit."""
        return _Member(self)

    def change(self, member: _Member, *, joins: bool = False, leaves: bool = False) -> None:
        """Called by a member whenever something of it changes."""
        with self._lock:
            if joins:
                self._members.append(member)
            if leaves:
                self._members.remove(member)
            at_work = [one for one in self._members if one.label]
            label = ", ".join(one.label for one in at_work)
            totals = [one.total for one in at_work if one.total is not None]
            total = sum(totals) if len(totals) == len(at_work) else None
            done = sum(one.done for one in at_work)
            if label == self._label:
                self._progress.update(done, total)
            elif label:
                self._progress.start(label, total, done)
            self._label = label


class _Member(ProgressFile):
    def __init__(self, shared: SharedProgress) -> None:
        super().__init__(None, "", "bytes")
        self._shared = shared
        self.label = ""
        self.total: int | None = None
        self.done = 0

    def __enter__(self) -> _Member:
        self._shared.change(self, joins=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.change(self, leaves=True)

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._shared.change(self)

    def update(self, done: int, total: int | None = None) -> None:
        self.done = done
        if total is not None:
            self.total = total
        self._shared.change(self)
