"""Listening sockets: those that systemd opened, else own ones.

Sources: sd_listen_fds(3), systemd.socket(5). A socket of systemd stays open there while the
gateway restarts, so that clients wait in its backlog and none is refused.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, MutableMapping

_FIRST_FD = 3
_BACKLOG = 4096


class SocketError(Exception):
    """A listener has no socket. The text says which, what was found and what to do."""


def inherited_sockets(
    environment: MutableMapping[str, str], pid: int | None = None
) -> dict[str, list[socket.socket]]:
    """The sockets that systemd passed to this process, by FileDescriptorName=.

    Its variables are removed, so that no child takes the sockets for its own. Raises SocketError
    where one is no listening stream socket.
    """
    mine = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if mine != str(os.getpid() if pid is None else pid) or not count.isdecimal():
        return {}
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) and names[index] else "unknown"
        found.setdefault(name, []).append(_adopted(_FIRST_FD + index, name))
    return found


def _adopted(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        adopted = socket.socket(fileno=descriptor)
        listening = adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SocketError(
            f"systemd passed file descriptor {descriptor} ({name}), which is no socket "
            f"({error.strerror}): the gateway needs ListenStream= sockets alone"
        ) from error
    if adopted.type != socket.SOCK_STREAM or not listening:
        raise SocketError(
            f"systemd passed the socket {name}, which does not listen for streams: set "
            "ListenStream= and Accept=no in its .socket unit"
        )
    adopted.setblocking(False)
    return adopted


def bound_sockets(address: str, port: int) -> list[socket.socket]:
    """Own listening sockets at an IP address or a host name.

    IPv6 ones are for IPv6 alone, except `::`, which is for IPv4 too, as systemd's and Go's are.
    Raises SocketError.
    """
    try:
        places = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SocketError(
            f"the address {address} of a listener is not known here ({error}): give an address "
            "of this host"
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(places):
            sockets.append(_bound(family, kind, protocol, place))
    except OSError as error:
        for one in sockets:
            one.close()
        raise SocketError(
            f"cannot listen on {address} port {port}: {error.strerror}. "
            f"`ss -ltnp 'sport = :{port}'` shows who does"
        ) from error
    return sockets


def _bound(
    family: int, kind: int, protocol: int, place: tuple[str | int | bytes, ...]
) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, place[0] != "::")
        bound.setblocking(False)
        bound.bind(place)
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def place_of(listening: socket.socket) -> str:
    """`address:port`, as for people."""
    name = listening.getsockname()
    if not isinstance(name, tuple):
        return str(name)
    host, port = str(name[0]), name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def sockets_for(
    address: str, port: int, name: str, inherited: Mapping[str, list[socket.socket]]
) -> list[socket.socket]:
    """The sockets of one listener: systemd's under `name`, else own ones.

    Raises SocketError, also where systemd's listens at another port than gateway.toml says.
    """
    passed = inherited.get(name) if name else None
    if not passed:
        return bound_sockets(address, port)
    for one in passed:
        place = one.getsockname()
        if isinstance(place, tuple) and not _is_place(place, address, port):
            raise SocketError(
                f"systemd's socket {name} listens on {place_of(one)}, gateway.toml says "
                f"{address} port {port}: make ListenStream= of the .socket unit and the listener "
                "equal, what a listener demands of clients depends on its address"
            )
    return passed


def _is_place(place: tuple[str | int | bytes, ...], address: str, port: int) -> bool:
    """Whether it is that port of that address, or, for a loopback one, of another of these."""
    if port and place[1] != port:
        return False
    here = ipaddress.ip_address(str(place[0]).partition("%")[0])
    wanted = ipaddress.ip_address(address.partition("%")[0])
    return here == wanted or (here.is_loopback and wanted.is_loopback)
