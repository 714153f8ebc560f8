"""What is read from a host, on this very machine."""

from __future__ import annotations

import os
import socket
import sys

from ansible_collections.kloros.llm.plugins.module_utils import host_facts


def test_own_listener_is_found_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = [item for item in host_facts.listeners() if item["port"] == port]
    assert found["address"] == "127.0.0.1"
    assert found["pid"] == os.getpid()
    assert found["process"]
    assert port not in [item["port"] for item in host_facts.listeners()]


def test_own_listener_on_ipv6_is_found() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        (found,) = [item for item in host_facts.listeners() if item["port"] == port]
    assert found["address"] == "::1"


def test_connections_are_not_listeners() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1\n"
        "   1: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 12 1\n"
        "   2: broken\n"
    )
    if sys.byteorder == "little":
        assert host_facts.parse_listening({"tcp": table}) == {11: (8080, "127.0.0.1")}


def test_operating_system() -> None:
    text = '# c\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nID=debian\nPRETTY_NAME="Debian 13"\n'
    assert host_facts.operating_system(text) == {
        "id": "debian",
        "version": "13",
        "name": "Debian 13",
    }
    assert host_facts.operating_system("")["id"] == "unknown"
    assert host_facts.operating_system()["id"] != "unknown"


def test_disk_of_a_path_that_is_not_there() -> None:
    disk = host_facts.disk("/proc/self/nowhere/at/all")
    assert disk["exists"] is False
    assert disk["mount"] == "/proc"
    assert host_facts.disk("/") == host_facts.disk("/") | {"exists": True, "mount": "/"}


def test_users() -> None:
    root = host_facts.user("root")
    assert root is not None
    assert (root["uid"], root["group"]) == (0, "root")
    assert host_facts.user("nobody-of-that-name") is None


def test_packages_and_programs() -> None:
    assert host_facts.missing_packages(["dpkg", "no-such-package"]) == ["no-such-package"]
    assert host_facts.missing_packages([]) == []
    versions = host_facts.program_versions([sys.executable, "no-such-program"])
    assert str(versions[sys.executable]).startswith("Python 3.")
    assert versions["no-such-program"] is None


def test_a_command_that_hangs_is_ended() -> None:
    assert host_facts.run(["sleep", "30"], timeout_s=0.2) == (124, "sleep: no answer within 0.2 s")


def test_machine() -> None:
    machine = host_facts.machine()
    assert machine["cpus"] >= 1
    assert machine["memory_mib"] > 100
    assert len(machine["cpu_digest"]) in (7, 12)
