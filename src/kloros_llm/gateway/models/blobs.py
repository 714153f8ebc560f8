"""Contents that clients upload for `create`: files named by their digest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from ...core.disk_space import MIB, free_bytes
from ...core.store_files import sync_directory
from ..errors import ApiError
from ..go_text import quote

INVALID_DIGEST: Final = "invalid digest format"
# What uploads leave free on the disk.
RESERVE_BYTES: Final = 1024 * MIB
KEPT_UNUSED_S: Final = 24 * 3600.0
_LOOK_EVERY_S: Final = 600.0
_WRITE_BYTES: Final = 4 * MIB
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_INCOMING: Final = ".incoming-"


class BlobStore:
    """`reserve_bytes` stay free on the disk, whatever is uploaded.

    What nobody has made a model of within a day is removed, and what was broken off within the
    same time.
    """

    def __init__(self, directory: Path, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.directory = directory
        self._reserve_bytes = reserve_bytes
        self._looked_at = float("-inf")

    def prepare(self) -> None:
        """Make the directory. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the content of a digest is or would be. Raises ApiError 400 for what is none."""
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise ApiError(400, INVALID_DIGEST)
        return self.directory / f"sha256-{match[1]}"

    def has(self, digest: str) -> bool:
        """Whether the content is here. Raises ApiError 400."""
        return self.path(digest).is_file()

    def remove(self, digest: str) -> None:
        """Forget a content, for instance since a model has been made of it."""
        self.path(digest).unlink(missing_ok=True)

    async def receive(
        self, digest: str, chunks: AsyncIterable[bytes], size_bytes: int | None
    ) -> None:
        """Keep what `chunks` give; `size_bytes` is what the client announces.

        What has another digest is kept under its own, as Ollama does. Raises ApiError: 400 where
        the digest is another, 500 where there is no room, OSError.
        """
        self.path(digest)
        self._check_room(size_bytes or 0)
        fresh = self.directory / f"{_INCOMING}{uuid.uuid4().hex}"
        hasher = hashlib.sha256()
        try:
            with await asyncio.to_thread(fresh.open, "xb") as file:
                waiting = bytearray()
                async for chunk in chunks:
                    waiting += chunk
                    if len(waiting) >= _WRITE_BYTES:
                        self._check_room(len(waiting))
                        await asyncio.to_thread(_take, file, hasher, bytes(waiting))
                        waiting.clear()
                self._check_room(len(waiting))
                await asyncio.to_thread(_take, file, hasher, bytes(waiting), last=True)
            found = hasher.hexdigest()
            await asyncio.to_thread(fresh.replace, self.directory / f"sha256-{found}")
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()
        await asyncio.to_thread(sync_directory, self.directory)
        if digest != f"sha256:{found}":
            raise ApiError(400, f'digest mismatch, expected {quote(digest)}, got "sha256:{found}"')

    def _check_room(self, size_bytes: int) -> None:
        free = free_bytes(self.directory)
        if size_bytes + self._reserve_bytes > free:
            raise ApiError(
                500,
                f"no space left on device: {size_bytes} bytes are to be written and "
                f"{self._reserve_bytes} to stay free, but only {free} are",
            )

    def forget_old(self) -> None:
        """Remove what nobody has used for a day; looks every ten minutes, however often asked."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        for path in self._old(time.time() - KEPT_UNUSED_S):
            with contextlib.suppress(OSError):
                path.unlink()

    def _old(self, before: float) -> Iterator[Path]:
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < before:
                    yield Path(entry.path)


def not_written(error: OSError) -> ApiError:
    """What a client is told where its content or name could not be kept."""
    why = error.strerror or str(error)
    return ApiError(500, f"{error.filename}: {why}" if error.filename else why.lower())


def _take(file: BinaryIO, hasher: hashlib._Hash, data: bytes, *, last: bool = False) -> None:
    file.write(data)
    hasher.update(data)
    if last:
        file.flush()
        os.fsync(file.fileno())
