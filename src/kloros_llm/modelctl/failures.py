"""What the core raises, as the message and the exit status of `modelctl`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from .exit_codes import Exit, ModelctlError

# By module and name: from a wheel, loading the whole core would take longer than most commands.
CORE_ERRORS: Final = {
    ("model_versions", "InUseError"): Exit.IN_USE,
    ("model_versions", "UnknownNameError"): Exit.NOT_FOUND,
    ("http_client", "HttpError"): Exit.NETWORK,
    ("model_source", "SourceError"): Exit.USAGE,
    ("gguf_reader", "GgufError"): Exit.DAMAGED,
    ("model_shape", "ModelShapeError"): Exit.DAMAGED,
    ("memory_model", "MemoryModelError"): Exit.FAILED,
    ("model_store", "ContentError"): Exit.DAMAGED,
    ("model_store", "AnswerError"): Exit.NETWORK,
    ("model_store", "StoreError"): Exit.FAILED,
}


def failure_of(error: Exception) -> ModelctlError | None:
    """The failure that an exception of the core stands for; None for what nobody expected."""
    if isinstance(error, ModelctlError):
        return error
    if isinstance(error, OSError):
        return _system_failure(error)
    for kind in type(error).__mro__:
        code = CORE_ERRORS.get((kind.__module__.rpartition(".")[2], kind.__name__))
        if code is not None:
            return ModelctlError(str(error), code)
    return None


def _system_failure(error: OSError) -> ModelctlError:
    message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, PermissionError):
        return ModelctlError(f"{message}; run it with sudo", Exit.NOT_PERMITTED)
    found = not isinstance(error, FileNotFoundError)
    return ModelctlError(message, Exit.FAILED if found else Exit.NOT_FOUND)


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
