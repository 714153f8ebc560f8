"""Where downloads, images' packages and the hosts' caches are kept, outside the checkout."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the machine's cache folder: KLOROS_LLM_CACHE, or one in the user's cache."""
    if chosen := os.environ.get("KLOROS_LLM_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "kloros-llm"
