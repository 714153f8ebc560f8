"""The scenario's hosts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from testinfra.host import Host

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from testbed.host_tests import connect, hosts, journal, play  # noqa: F401 - fixtures

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def inventory() -> Path:
    return INVENTORY


@pytest.fixture(scope="session", params=hosts(INVENTORY))
def host(request: pytest.FixtureRequest) -> Host:
    """Each test host, as root."""
    return connect(INVENTORY, request.param)
