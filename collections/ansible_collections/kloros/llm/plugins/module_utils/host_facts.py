"""What there is on a Linux host, read from /proc, /sys and systemd; nothing is changed.

Everything works on a bare Debian with only Python, so that a host can be judged before anything
is installed on it.
"""

from __future__ import annotations

import grp
import hashlib
import os
import platform
import pwd
import re
import socket
import struct
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict

from .disk_space import MIB, free_bytes, mount_point

_LISTEN: Final = "0A"
_UNIT_IN_CGROUP: Final = re.compile(r"/([^/]+\.service)(?:/|$)")


class Listener(TypedDict):
    """A TCP port in use: who holds it (`pid`, `process`, `unit` are None where hidden)."""

    port: int
    address: str
    pid: int | None
    process: str | None
    unit: str | None


class Disk(TypedDict):
    """The file system a path is or would be on, and whether the path is there."""

    exists: bool
    mount: str
    free_mib: int


class User(TypedDict):
    """An account."""

    uid: int
    gid: int
    group: str
    home: str


def run(argv: list[str], timeout_s: float = 20) -> tuple[int, str]:
    """Exit status and standard output and error of a short command.

    127 where there is no such program, 126 where it does not run, 124 where it takes too long.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            argv,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{argv[0]}: no such program"
    except OSError as problem:
        return 126, f"{argv[0]}: {problem.strerror}"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]}: no answer within {timeout_s} s"
    return done.returncode, done.stdout


def operating_system(text: str | None = None) -> dict[str, str]:
    """ID, version and name out of os-release (`text` for tests), e.g. debian, 13."""
    if text is None:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    fields = dict(
        line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#"
    )
    values = {name: value.strip().strip("\"'") for name, value in fields.items()}
    return {
        "id": values.get("ID", "unknown"),
        "version": values.get("VERSION_ID", "unknown"),
        "name": values.get("PRETTY_NAME", "unknown"),
    }


def systemd_version() -> int | None:
    """systemd's version where it is the running init system, else None."""
    if not Path("/run/systemd/system").is_dir():
        return None
    match = re.match(r"systemd (\d+)", run(["systemctl", "--version"])[1])
    return int(match.group(1)) if match else None


def memory_mib() -> int:
    """Memory of the host, or of the container's own limit where that is lower, in MiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ):
        try:
            total = min(total, int(limit.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total // 2**20


def cpu_digest() -> str:
    """A short digest of the CPU's feature flags: the same on CPUs that can run the same code."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:12]
    return "unknown"


def disk(path: str) -> Disk:
    """Free space, for unprivileged users too, on the file system where `path` is or would be."""
    place = Path(path)
    return {
        "exists": place.exists(),
        "mount": str(mount_point(place)),
        "free_mib": free_bytes(place) // MIB,
    }


def user(name: str) -> User | None:
    """The account of that name, or None."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        group = str(entry.pw_gid)
    return {"uid": entry.pw_uid, "gid": entry.pw_gid, "group": group, "home": entry.pw_dir}


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of the Debian packages that are not installed, in the order given."""
    wanted = list(names)
    if not wanted:
        return []
    _, output = run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", *wanted]
    )
    installed = {line.split()[0] for line in output.splitlines() if line.endswith(" installed")}
    return [name for name in wanted if name not in installed]


def program_versions(programs: Iterable[str]) -> dict[str, str | None]:
    """What each program prints for `--version`, None where it is not there."""
    versions: dict[str, str | None] = {}
    for program in programs:
        status, output = run([program, "--version"])
        versions[program] = output.strip() if status == 0 else None
    return versions


def _address(text: str) -> str:
    """The address of a line of /proc/net/tcp or tcp6, whose words are in host byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, packed)


def parse_listening(tables: Mapping[str, str]) -> dict[int, tuple[int, str]]:
    """Listening sockets of /proc/net/tcp-like texts: socket inode to (port, address)."""
    found: dict[int, tuple[int, str]] = {}
    for text in tables.values():
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN:
                address, port = fields[1].split(":")
                found[int(fields[9])] = (int(port, 16), _address(address))
    return found


def _socket_owners(inodes: set[int]) -> dict[int, int]:
    """Socket inode to the lowest process id that holds it; other users' need root."""
    owners: dict[int, int] = {}
    processes = (int(path.name) for path in Path("/proc").glob("[1-9]*"))
    for process in sorted(processes, reverse=True):
        try:
            for link in Path(f"/proc/{process}/fd").iterdir():
                target = str(link.readlink())
                if target.startswith("socket:[") and int(target[8:-1]) in inodes:
                    owners[int(target[8:-1])] = process
        except OSError:
            continue  # it has ended, or it is not ours to look at
    return owners


def folders_in_use(parent: str) -> list[str]:
    """Names of the folders directly below `parent` that running processes execute from."""
    root = Path(parent).resolve()
    found: set[str] = set()
    for link in Path("/proc").glob("[1-9]*/exe"):
        try:
            program = Path(str(link.readlink()).removesuffix(" (deleted)"))
        except OSError:
            continue  # it has ended, or it is the kernel's, or not ours to look at
        if root in program.parents:
            found.add(program.relative_to(root).parts[0])
    return sorted(found)


def children_of(processes: Iterable[int]) -> list[int]:
    """The processes that these have started and that still run."""
    parents = set(processes)
    found = []
    for path in Path("/proc").glob("[1-9]*/stat"):
        try:
            # PID (COMMAND) STATE PARENT …, and the command may hold anything.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) in parents:
            found.append(int(path.parent.name))
    return sorted(found)


def _unit_of(process: int) -> str | None:
    try:
        text = Path(f"/proc/{process}/cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    units = _UNIT_IN_CGROUP.findall(text)
    return units[-1] if units else None


def _name_of(process: int) -> str | None:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def listeners() -> list[Listener]:
    """Every TCP port that is listened on, and by whom, ordered by port."""
    tables = {}
    for name in ("tcp", "tcp6"):
        try:
            tables[name] = Path(f"/proc/net/{name}").read_text(encoding="ascii")
        except OSError:
            continue
    sockets = parse_listening(tables)
    owners = _socket_owners(set(sockets))
    result: list[Listener] = []
    for inode, (port, address) in sockets.items():
        pid = owners.get(inode)
        result.append(
            {
                "port": port,
                "address": address,
                "pid": pid,
                "process": None if pid is None else _name_of(pid),
                "unit": None if pid is None else _unit_of(pid),
            }
        )
    return sorted(result, key=lambda item: (item["port"], item["address"]))


def machine() -> dict[str, Any]:
    """Operating system, architecture, Python, systemd, CPUs and memory."""
    return {
        "os": operating_system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "systemd": systemd_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_digest": cpu_digest(),
        "memory_mib": memory_mib(),
    }
