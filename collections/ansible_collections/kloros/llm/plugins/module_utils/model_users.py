"""Who uses a model's files: the instances' env files, the plan on the host, running processes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .store_files import read_json, stat_or_none
from .systemd_env import split_args

CONFIG_DIR = Path("/etc/kloros-llm")

# What may stand beside a path in an option's value: `--lora a.gguf,b.gguf:0.5`, `--x="a.gguf"`.
_BOUNDARY = "[,:=\"']"
_Finder = Callable[[str], str | None]
_UNIT = re.compile(r"([^/]+\.service)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class User:
    """Something that uses `path`: an instance's env file, a planned instance, a process.

    `name` is the instance's, or the process's unit (else its command). `wish`: the caller said so.
    """

    kind: Literal["instance", "plan", "process", "wish"]
    name: str
    path: str
    pid: int | None = None

    def __str__(self) -> str:
        if self.kind == "process":
            return f"process {self.pid} ({self.name})"
        if self.kind == "wish":
            return "an instance of the inventory"
        return f"instance {self.name}" + (" of the plan" if self.kind == "plan" else "")


@dataclass(frozen=True)
class Users:
    """Where to look. `named` are paths that the caller knows to be in use.

    Processes of other users are seen by root only.
    """

    config_dir: Path = CONFIG_DIR
    proc: Path = Path("/proc")
    named: tuple[str, ...] = ()

    def of(self, paths: Iterable[Path]) -> list[User]:
        """Who uses any of these files, each once; instances first."""
        wanted = list(paths)
        if not wanted:
            return []
        mentioned = _finder(wanted)
        found: dict[tuple[str, str, int | None], User] = {}
        for user in (
            *_instances(self.config_dir, mentioned),
            *_planned(self.config_dir, mentioned),
            *(User("wish", "", path) for path in self.named if mentioned(path)),
            *_processes(self.proc, wanted),
        ):
            found.setdefault((user.kind, user.name, user.pid), user)
        return list(found.values())


def instance_names(users: Sequence[User]) -> list[str]:
    """The instances among them, sorted."""
    return sorted({user.name for user in users if user.kind in ("instance", "plan")})


def describe(users: Sequence[User]) -> str:
    """All of them in words; an instance that is both planned and there is named once."""
    names = {user.name for user in users if user.kind == "instance"}
    return ", ".join(
        str(user) for user in users if not (user.kind == "plan" and user.name in names)
    )


def _finder(paths: Sequence[Path]) -> _Finder:
    """What tells which of the files a text mentions, as it is spelled there."""
    real = {os.path.realpath(path) for path in paths}
    words = "|".join(re.escape(text) for text in sorted({*map(str, paths), *real}))
    pattern = re.compile(f"(?:^|(?<={_BOUNDARY}))({words})(?=$|{_BOUNDARY})")

    def mentioned(text: str) -> str | None:
        match = pattern.search(text)
        if match:
            return match[1]
        # Links may lead there.
        pieces = (piece for piece in re.split(_BOUNDARY, text) if piece.startswith("/"))
        return next((piece for piece in pieces if os.path.realpath(piece) in real), None)

    return mentioned


def _instances(config_dir: Path, mentioned: _Finder) -> Iterator[User]:
    for path in sorted(config_dir.glob("instances/*.env")):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        match = _first(mentioned, _values(text))
        if match:
            yield User("instance", path.stem, match)


def _values(env_file: str) -> Iterator[str]:
    """Every value of an env file, and each argument in it."""
    for line in env_file.splitlines():
        if line.lstrip().startswith(("#", ";")) or "=" not in line:
            continue
        value = line.partition("=")[2].strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            # systemd: within double quotes a backslash escapes these only.
            value = re.sub(r'\\(["\\`$])', r"\1", value[1:-1])
        yield value
        yield from split_args(value)


def _planned(config_dir: Path, mentioned: _Finder) -> Iterator[User]:
    plan = read_json(config_dir / "plan.json")
    instances = plan.get("instances") if plan else None
    for instance in instances if isinstance(instances, list) else []:
        match = _first(mentioned, _strings(instance))
        if match:
            name = instance.get("name") if isinstance(instance, dict) else None
            yield User("plan", str(name or json.dumps(instance)[:60]), match)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        yield from split_args(value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _first(mentioned: _Finder, texts: Iterable[str]) -> str | None:
    return next((found for text in texts if (found := mentioned(text))), None)


def _processes(proc: Path, paths: Sequence[Path]) -> Iterator[User]:
    """Processes that have one of the files mapped, also under a name that it had before."""
    states = [(path, state) for path in paths if (state := stat_or_none(path))]
    inodes = {str(state.st_ino): (path, state.st_dev) for path, state in states}
    if not inodes:
        return
    for folder in proc.glob("[0-9]*"):
        try:
            maps = (folder / "maps").read_text(errors="replace")
        except OSError:
            continue
        for line in maps.splitlines():
            # address perms offset dev inode path
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or fields[4] not in inodes:
                continue
            path, device = inodes[fields[4]]
            mapped = fields[5].removesuffix(" (deleted)")
            # On btrfs and overlayfs the device told here is not the one that stat(2) tells.
            if fields[3] == _device(device) or Path(mapped).name == path.name:
                yield User("process", _process_name(folder), str(path), int(folder.name))
                break


def _device(number: int) -> str:
    return f"{os.major(number):02x}:{os.minor(number):02x}"


def _process_name(folder: Path) -> str:
    for name, pattern in (("cgroup", _UNIT), ("comm", re.compile(r"(.+)"))):
        try:
            match = pattern.search((folder / name).read_text(errors="replace"))
        except OSError:
            continue
        if match:
            return match[1]
    return "?"
