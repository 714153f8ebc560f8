"""For all tests."""

from __future__ import annotations

import pytest

from tests import llama_server


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the real llama-server where there is none."""
    if item.get_closest_marker("llama_server") and (reason := llama_server.missing()):
        pytest.skip(reason)
