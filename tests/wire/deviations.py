"""The table of where the gateway's answers are not as Ollama's: deviations.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tests.wire.forms import Difference

SCENES = ("dedicated", "router")
_TABLE = Path(__file__).with_name("deviations.toml")


def entries() -> list[dict[str, Any]]:
    """The table as it stands."""
    found: list[dict[str, Any]] = tomllib.loads(_TABLE.read_text("utf-8"))["deviation"]
    return found


def listed(scene: str, exchange: str) -> list[Difference]:
    """What the table says of one exchange."""
    return [
        Difference(*part)
        for one in entries()
        if scene in one["scenes"] and (exchange in one["exchanges"] or one["exchanges"] == ["*"])
        for part in one["parts"]
    ]
