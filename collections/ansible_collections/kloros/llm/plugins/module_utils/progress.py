"""How far a long step is: written by the worker on the host, rendered on the controller."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict

Unit = Literal["bytes", "steps"]

WRITE_INTERVAL_S = 0.5


class Progress(TypedDict):
    """One observation. Times are Unix seconds of the host's own clock.

    `done_at_start` is what was there before this run (a resumed download): it counts for the
    percentage and not for the rate. `total` is None where nobody states it.
    """

    label: str
    done: int
    done_at_start: int
    total: int | None
    unit: Unit
    started_at: float
    updated_at: float


class ProgressFile:
    """The worker's side: one JSON object, replaced atomically, at most every 0.5 s.

    `path` None writes nothing. The file is 0600. A file that cannot be written is not an error:
    the watcher may have gone, and the work does not depend on being watched.
    """

    def __init__(
        self, path: str | None, label: str, unit: Unit, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = Path(path) if path else None
        self._clock = clock
        self._written_at = float("-inf")
        now = clock()
        self._progress: Progress = {
            "label": label,
            "done": 0,
            "done_at_start": 0,
            "total": None,
            "unit": unit,
            "started_at": now,
            "updated_at": now,
        }

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        """A new stage: the rate counts from here."""
        self._progress["label"] = label
        self._progress["total"] = total
        self._progress["done"] = self._progress["done_at_start"] = done
        self._progress["started_at"] = self._clock()
        self._write(force=True)

    def update(self, done: int, total: int | None = None) -> None:
        """`done` units so far; `total` where it became known."""
        self._progress["done"] = done
        if total is not None:
            self._progress["total"] = total
        self._write(force=done == self._progress["total"])

    def _write(self, *, force: bool) -> None:
        now = self._clock()
        self._progress["updated_at"] = now
        if self._path is None or (
            # A clock that was set back is not waited for.
            not force and 0 <= now - self._written_at < WRITE_INTERVAL_S
        ):
            return
        self._written_at = now
        fresh = self._path.with_name(self._path.name + ".new")
        with contextlib.suppress(OSError):
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._progress, file)
            fresh.replace(self._path)


def parse(text: str) -> Progress | None:
    """The object that a ProgressFile wrote, or None where `text` is not a whole one."""
    try:
        data = json.loads(text)
        return Progress(
            label=str(data["label"]),
            done=int(data["done"]),
            done_at_start=int(data["done_at_start"]),
            total=None if data["total"] is None else int(data["total"]),
            unit="bytes" if data["unit"] == "bytes" else "steps",
            started_at=float(data["started_at"]),
            updated_at=float(data["updated_at"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def percent(progress: Progress) -> int | None:
    """0 to 100, or None where the total is not known."""
    total = progress["total"]
    if not total:
        return None
    return max(0, min(100, 100 * progress["done"] // total))


def render(progress: Progress, now: float) -> str:
    """One line for people; `now` in the host's clock.

    `model smollm2:135m  45 %  44.2 of 98.4 MB  12.1 MB/s  ETA 0:04`
    `llama.cpp  57 %  125 of 220 steps  ETA 3:10`
    """
    parts = [progress["label"]]
    share = percent(progress)
    if share is not None:
        parts.append(f"{share} %")
    elapsed_s = now - progress["started_at"]
    fresh = progress["done"] - progress["done_at_start"]
    rate = fresh / elapsed_s if elapsed_s > 0 and fresh > 0 else 0.0
    if progress["unit"] == "bytes":
        if progress["done"] or progress["total"]:
            parts.append(_amount_of_bytes(progress["done"], progress["total"]))
        if rate:
            parts.append(f"{rate / 1e6:.1f} MB/s")
    elif progress["total"]:
        parts.append(f"{progress['done']} of {progress['total']} steps")
    if rate and progress["total"]:
        parts.append(f"ETA {_clock_time((progress['total'] - progress['done']) / rate)}")
    return "  ".join(parts)


def _amount_of_bytes(done: int, total: int | None) -> str:
    size = done if total is None else total
    scale, unit = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    amount = f"{done / scale:.1f}"
    return f"{amount} {unit}" if total is None else f"{amount} of {total / scale:.1f} {unit}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
