"""Sockets from systemd or own ones, and what systemd is told; in real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kloros_llm.gateway.front.activation import (
    SocketError,
    bound_sockets,
    inherited_sockets,
    place_of,
    sockets_for,
)
from kloros_llm.gateway.front.notify import Notifier

_SOURCE = Path(__file__).resolve().parents[3] / "src"
_REPORT = """
import os
from kloros_llm.gateway.front.activation import inherited_sockets, place_of, SocketError
try:
    found = inherited_sockets(os.environ)
except SocketError as error:
    print("refused:", error)
else:
    for name, sockets in found.items():
        for one in sockets:
            print(name, place_of(one), os.get_inheritable(one.fileno()), one.getblocking())
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def started_with(
    *passed: socket.socket, names: str, pid: str = "$$", count: int | None = None
) -> list[str]:
    """Lines of a process that got the sockets from descriptor 3 on, as systemd passes them."""
    descriptors = [os.dup(one.fileno()) for one in passed]
    moves = " ".join(f"{3 + n}<&{old}" for n, old in enumerate(descriptors))
    count = len(passed) if count is None else count
    script = f'LISTEN_PID={pid} LISTEN_FDS={count} LISTEN_FDNAMES={names} exec "$0" -c "$1" {moves}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, _REPORT],
        pass_fds=descriptors,
        env={"PYTHONPATH": str(_SOURCE), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for one in descriptors:
        os.close(one)
    return done.stdout.splitlines()


@pytest.fixture
def listening() -> socket.socket:
    return bound_sockets("127.0.0.1", 0)[0]


def test_systemd_s_sockets_are_found_by_their_names(listening: socket.socket) -> None:
    other = bound_sockets("127.0.0.1", 0)[0]
    sixth = bound_sockets("::1", 0)[0]
    lines = started_with(listening, other, sixth, names="ollama-11434:ollama-11435:ollama-11434")
    assert sorted(lines) == sorted(
        [
            f"ollama-11434 {place_of(listening)} False False",
            f"ollama-11434 {place_of(sixth)} False False",
            f"ollama-11435 {place_of(other)} False False",
            "[]",
        ]
    )


def test_sockets_for_another_process_are_not_taken(listening: socket.socket) -> None:
    assert started_with(listening, names="ollama-11434", pid="1") == ["[]"]


def test_a_socket_without_a_name_is_unknown(listening: socket.socket) -> None:
    assert started_with(listening, names="")[0].startswith("unknown 127.0.0.1:")


def test_what_is_no_listening_stream_socket_is_refused() -> None:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    lines = started_with(datagrams, names="ollama-11434")
    assert lines[0].startswith("refused: systemd passed the socket ollama-11434, which does not")
    connected, _ = socket.socketpair()
    assert "Accept=no" in started_with(connected, names="x")[0]


def test_a_descriptor_that_is_not_there_is_refused(listening: socket.socket) -> None:
    lines = started_with(listening, names="a:b", count=40)
    assert lines[0].startswith("refused: systemd passed file descriptor ")


def test_a_systemd_socket_elsewhere_than_gateway_toml_says_is_refused(
    listening: socket.socket,
) -> None:
    port = listening.getsockname()[1]
    passed = {"ollama": [listening]}
    assert sockets_for("127.0.0.1", port, "ollama", passed) == [listening]
    with pytest.raises(SocketError, match=rf"127.0.0.1 port {port + 1}: make ListenStream="):
        sockets_for("127.0.0.1", port + 1, "ollama", passed)
    # A listener that says it is on loopback asks for no key: the socket must not be elsewhere.
    everywhere = socket.create_server(("0.0.0.0", 0))
    with everywhere, pytest.raises(SocketError, match="depends on its address"):
        sockets_for("127.0.0.1", everywhere.getsockname()[1], "ollama", {"ollama": [everywhere]})


@pytest.mark.parametrize(("address", "takes_both"), [("::", True), ("::1", False)])
def test_all_of_ipv6_is_all_of_ipv4_too(address: str, takes_both: bool) -> None:
    with bound_sockets(address, 0)[0] as one:
        port = one.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert not takes_both
        else:
            assert takes_both


def test_both_loopback_addresses_may_be_one_listener_s() -> None:
    fourth = bound_sockets("127.0.0.1", 0)[0]
    port = fourth.getsockname()[1]
    sixth = bound_sockets("::1", port)[0]
    passed = {"ollama": [fourth, sixth]}
    assert sockets_for("127.0.0.1", port, "ollama", passed) == [fourth, sixth]


def test_without_systemd_a_listener_opens_its_own_socket() -> None:
    assert inherited_sockets({}) == {}
    own = sockets_for("127.0.0.1", 0, "ollama", {})
    with socket.create_connection(own[0].getsockname()):
        pass


def test_a_port_that_is_taken_says_who_can_be_asked(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    with pytest.raises(SocketError, match=f"port {port}: Address already in use. `ss -ltnp"):
        bound_sockets("127.0.0.1", port)


@pytest.mark.parametrize("abstract", [False, True])
def test_states_reach_systemd_s_socket(tmp_path: Path, abstract: bool) -> None:
    path = f"@kloros-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path.replace("@", "\0", 1))
        notifier = Notifier({"NOTIFY_SOCKET": path})
        notifier.ready("serving")
        notifier.reloading()
        notifier.stopping("waiting")
        notifier.alive()
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving"
        reloading = manager.recv(4096).split(b"\n")
        assert reloading[0] == b"RELOADING=1"
        assert reloading[1].startswith(b"MONOTONIC_USEC=")
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=waiting"
        assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_is_not_there_ends_nothing(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")
    Notifier({}).ready("serving")


def test_the_watchdog_is_fed_only_by_whom_it_watches() -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    mine = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(mine).watchdog_s == 3.0
    assert Notifier(mine | {"WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({}).watchdog_s is None
