"""The file that a download fills from several places at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Self

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


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
        os.close(self._descriptor)

    def allocate(self, size_bytes: int) -> None:
        """Make the file `size_bytes` long, with its blocks reserved where the file system can.

        Raises OSError (ENOSPC, EDQUOT, EFBIG) where it does not fit; what was taken for it then is
        given back.
        """
        before = os.fstat(self._descriptor).st_size
        if size_bytes == 0:
            return
        try:
            _fallocate(self._descriptor, size_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.ftruncate(self._descriptor, min(before, size_bytes))
                raise
        os.ftruncate(self._descriptor, size_bytes)

    def write(self, data: memoryview, offset: int) -> None:
        """Put all of `data` at `offset`."""
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            data = data[count:]
            offset += count

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; less than all of it only at the end of the file."""
        return os.preadv(self._descriptor, [buffer], offset)

    def sync(self) -> None:
        """Return once everything written so far would survive a power cut."""
        os.fdatasync(self._descriptor)


def _fallocate(descriptor: int, size_bytes: int) -> None:
    # posix_fallocate(3) writes into every block where the file system cannot reserve (NFS 3, some
    # FUSE): slow, and for nothing. The system call says so instead.
    try:
        reserve = ctypes.CDLL(None, use_errno=True).fallocate64
    except (AttributeError, OSError):
        os.posix_fallocate(descriptor, 0, size_bytes)
        return
    arguments = (ctypes.c_int(descriptor), ctypes.c_int(0), ctypes.c_int64(0))
    while reserve(*arguments, ctypes.c_int64(size_bytes)):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
