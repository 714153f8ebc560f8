"""The real llama-server that some tests ask, and its small model.

Such a test is marked `needs_llama_server`; `make unit` leaves it out, `make wire` runs it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.cache import cache_folder
from testbed.fetch_inputs import MODEL_MEMBER, MODEL_REPOSITORY

BINARY = os.environ.get("KLOROS_LLAMA_BIN", "")
MODEL = Path(
    os.environ.get("KLOROS_LLAMA_MODEL")
    or cache_folder() / "hub" / MODEL_REPOSITORY / Path(MODEL_MEMBER).name
)
needs_llama_server = pytest.mark.llama_server


def missing() -> str:
    """What there is not, and where it comes from; empty where both are there."""
    if not BINARY:
        return "needs a real llama-server: KLOROS_LLAMA_BIN names it, `make wire` builds one"
    if not MODEL.is_file():
        return f"needs a model: {MODEL} is not there (`python -m testbed.fetch_inputs`)"
    return ""
