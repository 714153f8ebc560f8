"""What systemd is told of the service's state (sd_notify(3), by hand: it is one datagram)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends states to `NOTIFY_SOCKET`; without one it does nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the abstract namespace's leading zero byte.
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_s = _watchdog_s(environment)

    def ready(self, status: str) -> None:
        """It serves."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """It reads its configuration anew; `ready` ends that (Type=notify-reload)."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reading gateway.toml anew")

    def stopping(self, status: str) -> None:
        """It ends."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        """The event loop turns (WatchdogSec=)."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._path:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A manager that does not listen must not hold up or end the service.
            sender.setblocking(False)
            try:
                sender.sendto(text.encode(), self._path)
            except OSError:
                return


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
