"""JSON as Go's encoding/json writes it: compact, with `<`, `>` and `&` escaped."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

# The accelerated encoder leaves other than ASCII as it is, which is what Go does.
_quoted: Callable[[str], str] = json.encoder.encode_basestring
_needs_care = re.compile("[<>&\u2028\u2029\ud800-\udfff]").search
_ESCAPED = str.maketrans(
    {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
        **{chr(lone): "\ufffd" for lone in range(0xD800, 0xE000)},
    }
)


def string(text: str) -> str:
    """`text` in quotes."""
    quoted = _quoted(text)
    return quoted.translate(_ESCAPED) if _needs_care(quoted) else quoted


def compact(value: Any) -> str:
    """Any value, keys in the order that they have."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return written.translate(_ESCAPED) if _needs_care(written) else written


class _Second:
    """The last second's text, since a stream asks for it with every token."""

    digits: str = ""
    text: str = ""


def timestamp() -> str:
    """Now, in UTC, as Go's RFC3339Nano: without the zeros at the end."""
    nanoseconds = str(time.time_ns())
    seconds, fraction = nanoseconds[:-9], nanoseconds[-9:].rstrip("0")
    if seconds != _Second.digits:
        _Second.text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(seconds)))
        _Second.digits = seconds
    return f"{_Second.text}.{fraction}Z" if fraction else f"{_Second.text}Z"
