"""How `modelctl` ends, for the scripts that call it."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses; their meanings stand in `modelctl --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    IN_USE = 4
    DOES_NOT_FIT = 5
    NETWORK = 6
    DAMAGED = 7
    NOT_PERMITTED = 8
    INTERRUPTED = 130
    PIPE_CLOSED = 141


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done; for fit: it fits",
    Exit.FAILED: "failed; the message says what was found and what to do",
    Exit.USAGE: "the command line is wrong",
    Exit.NOT_FOUND: "there is no such model, version, instance or file here",
    Exit.IN_USE: "an instance or another process uses it; nothing was changed",
    Exit.DOES_NOT_FIT: "fit: it does not fit",
    Exit.NETWORK: "network, Hub or server: no usable answer",
    Exit.DAMAGED: "content is not what it should be (sha256, a broken GGUF file)",
    Exit.NOT_PERMITTED: "not permitted; run it with sudo",
    Exit.INTERRUPTED: "interrupted; a download goes on where it was with the next pull",
    Exit.PIPE_CLOSED: "whoever read the output has gone",
}


class ModelctlError(Exception):
    """What ends a command; the message is for people, `code` for programs."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
