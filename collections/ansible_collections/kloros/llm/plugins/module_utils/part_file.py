"""The file that a download fills from several places at once."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
# tmpfs holds back those who write while it reserves: not for long.
_RESERVE_BYTES = 2 << 20


class PartFile:
    """`path`, opened for reading and writing, made if it is not there.

    Threads may share it: every read and write says where. Close it, or use it as a context
    manager, when none of them uses it any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def resize(self, size_bytes: int) -> None:
        """Make the file so long; what lies beyond is given back to the disk."""
        os.ftruncate(self._descriptor, size_bytes)

    def reserve(self, size_bytes: int, is_over: Callable[[], bool]) -> None:
        """Have the blocks for so many bytes, where the file system can reserve any.

        Others may read and write meanwhile; `is_over` ends it early. Raises OSError (ENOSPC,
        EDQUOT, EFBIG) where they do not fit.
        """
        for offset in range(0, size_bytes, _RESERVE_BYTES):
            if is_over():
                return
            try:
                _fallocate(self._descriptor, offset, min(_RESERVE_BYTES, size_bytes - offset))
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    return
                raise

    def write(self, data: memoryview, offset: int) -> None:
        """Put all of `data` at `offset`."""
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            data = data[count:]
            offset += count

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; less than all of it only at the end of the file."""
        return os.preadv(self._descriptor, [buffer], offset)

    def is_in_place(self) -> bool:
        """Whether `path` still names this file; somebody may have removed or replaced it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Return once everything written so far would survive a power cut."""
        os.fdatasync(self._descriptor)


def _fallocate(descriptor: int, offset: int, length: int) -> None:
    # posix_fallocate(3) writes into every block where the file system cannot reserve (NFS 3, some
    # FUSE): slow, and for nothing. The system call says so instead.
    try:
        reserve = ctypes.CDLL(None, use_errno=True).fallocate64
    except (AttributeError, OSError):
        os.posix_fallocate(descriptor, offset, length)
        return
    extent = (ctypes.c_int64(offset), ctypes.c_int64(length))
    while reserve(ctypes.c_int(descriptor), ctypes.c_int(0), *extent):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
