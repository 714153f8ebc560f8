"""The scenario's hosts and wishes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from testbed.host_tests import connect, hosts, hub, journal, load, play  # noqa: F401 - fixtures

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"


@pytest.fixture(scope="session")
def inventory() -> Path:
    return INVENTORY


@pytest.fixture(scope="session", params=hosts(INVENTORY))
def host(request: pytest.FixtureRequest) -> Host:
    """Each test host, as root."""
    return connect(INVENTORY, request.param)


@pytest.fixture
def wishes() -> dict[str, Any]:
    """The instances that the scenario's inventory wishes for."""
    instances: dict[str, Any] = load(INVENTORY / "group_vars/all.yml")["llama_instances"]
    return instances


@pytest.fixture
def models() -> dict[str, Any]:
    """The models that the scenario's inventory wishes for."""
    found: dict[str, Any] = load(INVENTORY / "group_vars/all.yml")["gguf_models"]
    return found
