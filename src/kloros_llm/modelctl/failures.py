"""What the core raises, as the message and the exit status of `modelctl`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..core.gguf_reader import GgufError
from ..core.http_client import HttpError
from ..core.memory_model import MemoryModelError
from ..core.model_catalogue import InUseError
from ..core.model_shape import ModelShapeError
from ..core.model_source import SourceError
from ..core.model_store import StoreError
from .exit_codes import Exit, ModelctlError


def failure_of(error: Exception) -> ModelctlError | None:
    """The failure that an exception of the core stands for; None for what nobody expected."""
    if isinstance(error, ModelctlError):
        return error
    code = _code_of(error)
    if code is None:
        return None
    message = str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        if code == Exit.NOT_PERMITTED:
            message += "; run it with sudo"
    return ModelctlError(message, code)


def _code_of(error: Exception) -> Exit | None:
    codes: tuple[tuple[type[Exception], Exit], ...] = (
        (InUseError, Exit.IN_USE),
        (HttpError, Exit.NETWORK),
        (SourceError, Exit.USAGE),
        (GgufError, Exit.DAMAGED),
        (ModelShapeError, Exit.DAMAGED),
        (MemoryModelError, Exit.FAILED),
        (StoreError, Exit.FAILED),
        (PermissionError, Exit.NOT_PERMITTED),
        (FileNotFoundError, Exit.NOT_FOUND),
        (OSError, Exit.FAILED),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), None)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Turns what the core raises into ModelctlError; a closed pipe is the caller's matter."""
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is None or failure is error:
            raise
        raise failure from error
