"""One process at a time: an advisory lock on a file of its own."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_INTERVAL_S = 0.2


@contextmanager
def file_lock(
    path: Path,
    on_wait: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[int]:
    """Hold `path` (flock) and give its descriptor; wait for another holder, as long as it takes.

    `on_wait` is called once before waiting. The file goes away with its last holder, so that no
    lock files are left lying about. Raises OSError where the file cannot be made.
    """
    told = False
    while (descriptor := _try_lock(path)) is None:
        if not told:
            on_wait()
            told = True
        sleep(POLL_INTERVAL_S)
    try:
        yield descriptor
    finally:
        # While it is still held: who waits on this very inode sees that the name is gone.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(descriptor)
        named = path.stat()
        if (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
