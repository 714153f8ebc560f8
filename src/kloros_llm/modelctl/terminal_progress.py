"""How far a download is, on a terminal: a bar that moves; elsewhere: a line now and then."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import Final, TextIO

from ..core.progress import Progress, ProgressFile, percent, render
from .output import printable

_REDRAW_S: Final = 0.1
_PLAIN_LINE_S: Final = 10.0
_BAR: Final = 24


class TerminalProgress(ProgressFile):
    """What the core tells of a long step, shown on `stream` (standard error).

    Close it (or leave its `with`) before anything else is printed.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(None, "", "bytes")
        self._stream = stream or sys.stderr
        self._lively = self._stream.isatty()
        self._lock = threading.Lock()
        self._drawn_at = float("-inf")
        self._open_line = False
        self._shown: Progress | None = None

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        """A new stage: the rate counts from here."""
        with self._lock:
            now = time.time()
            self._shown = {
                "label": printable(label),
                "done": done,
                "done_at_start": done,
                "total": total,
                "unit": "bytes",
                "started_at": now,
                "updated_at": now,
            }
            self._draw(now, force=True)

    def update(self, done: int, total: int | None = None) -> None:
        """`done` bytes so far; `total` where it became known."""
        with self._lock:
            if self._shown is None:
                return
            now = time.time()
            was_done = self._shown["done"] == self._shown["total"]
            self._shown["done"] = done
            if total is not None:
                self._shown["total"] = total
            self._draw(now, force=done == self._shown["total"] and not was_done)

    def say(self, message: str) -> None:
        """A line of its own, the bar going on below it."""
        with self._lock:
            self._end_line()
            self._stream.write(f"{printable(message)}\n")
            self._stream.flush()

    def close(self) -> None:
        """The last state stays to be read."""
        with self._lock:
            self._end_line()

    def _draw(self, now: float, *, force: bool) -> None:
        shown = self._shown
        if shown is None:
            return
        if not force and now - self._drawn_at < (_REDRAW_S if self._lively else _PLAIN_LINE_S):
            return
        self._drawn_at = now
        if not self._lively:
            self._stream.write(f"{render(shown, now)}\n")
        else:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{_with_bar(shown, now)[:width]}\x1b[K")
            self._open_line = True
            if shown["total"] and shown["done"] >= shown["total"]:
                self._end_line()
        self._stream.flush()

    def _end_line(self) -> None:
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False


def _with_bar(shown: Progress, now: float) -> str:
    share = percent(shown)
    if share is None:
        return render(shown, now)
    full = _BAR * share // 100
    bar = f"[{'#' * full}{'.' * (_BAR - full)}]"
    label = f"{shown['label']}  {bar}"
    return render({**shown, "label": label}, now)
