"""What every command works with: the plan, the models' directory, and the way to the Hub."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..core.disk_space import MIB, existing_parent
from ..core.http_client import HttpClient
from ..core.model_catalogue import Catalogue
from ..core.model_source import DEFAULT_HF_ENDPOINT, check_endpoint
from ..core.model_store import FetchSettings
from ..core.model_users import User, Users
from .exit_codes import Exit, ModelctlError
from .host_plan import (
    DEFAULT_LLAMA_CPP_DIR,
    DEFAULT_MODELS_DIR,
    DEFAULT_PLAN,
    HostPlan,
    Instance,
    read_plan,
)
from .output import tell


class Host:
    """This host, as the options of the command line see it."""

    def __init__(self, arguments: Namespace) -> None:
        self.plan: HostPlan | None = read_plan(arguments.plan)
        planned_dir = self.plan.models_dir if self.plan else DEFAULT_MODELS_DIR
        self.models_dir: Path = arguments.models_dir or planned_dir

    @property
    def instances(self) -> tuple[Instance, ...]:
        return self.plan.instances if self.plan else ()

    @cached_property
    def users(self) -> Users:
        place = self.plan.path if self.plan else DEFAULT_PLAN
        return Users(config_dir=place.parent)

    @property
    def users_but_processes(self) -> Users:
        """Instances alone: to look through all of /proc for each model would take seconds."""
        return replace(self.users, proc=Path(os.devnull))

    @cached_property
    def catalogue(self) -> Catalogue:
        if not self.models_dir.is_dir():
            raise ModelctlError(
                f"the models' directory {self.models_dir} is not there; name it with --models-dir, "
                "or get a first model with `modelctl pull SOURCE`",
                Exit.NOT_FOUND,
            )
        return Catalogue(self.models_dir, self.users, tell)

    @property
    def llama_cpp_dir(self) -> Path:
        """Where the releases of llama.cpp are."""
        return self.plan.llama_cpp_dir if self.plan else DEFAULT_LLAMA_CPP_DIR

    @property
    def server(self) -> Path:
        """The llama-server in use."""
        return self.llama_cpp_dir / "current" / "bin" / "llama-server"

    def need_plan(self) -> HostPlan:
        """The plan. Raises ModelctlError where this host has none."""
        if self.plan is None:
            raise ModelctlError(
                f"{DEFAULT_PLAN} is not there: no playbook has set this host up; run site.yml, or "
                "give --plan",
                Exit.NOT_FOUND,
            )
        return self.plan

    def chosen_instances(self, names: Iterable[str]) -> list[Instance]:
        """The named instances of the plan, or all of them."""
        plan = self.need_plan()
        return [plan.instance(name) for name in names] or list(plan.instances)

    def restarts_of(self, users: Iterable[User]) -> list[Instance]:
        """The plan's instances among those that use a model."""
        names = {user.name for user in users}
        return [one for one in self.instances if one.name in names or one.unit in names]

    def prepare_writing(self, *, make: bool = False) -> None:
        """What a command does before it writes into the models' directory.

        Raises ModelctlError where it may not. `make`: a directory that is not there is made.
        """
        # Servers run as another user and must be able to read what root has pulled.
        os.umask(0o022)
        if not os.access(existing_parent(self.models_dir), os.W_OK | os.X_OK):
            raise ModelctlError(
                f"{self.models_dir} is not yours to write; run it with sudo", Exit.NOT_PERMITTED
            )
        if make:
            self.models_dir.mkdir(parents=True, exist_ok=True)


def hub_client(arguments: Namespace, say: Callable[[str], None] = tell) -> HttpClient:
    """The way to the network; what it waits for is told by `say`."""
    return HttpClient(arguments.timeout, on_wait=lambda reason: say(f"{reason}; waiting"))


def hub_endpoint(host: Host, arguments: Namespace) -> str:
    """The Hub or its mirror: what is asked for, else what the plan says. Raises SourceError."""
    planned = host.plan.hf_endpoint if host.plan else None
    wished = arguments.hf_endpoint or os.environ.get("HF_ENDPOINT") or planned
    return check_endpoint(wished or DEFAULT_HF_ENDPOINT)


def hub_token(arguments: Namespace) -> str | None:
    """The Hub's token, never from the command line. Raises ModelctlError."""
    file: Path | None = arguments.token_file
    if file is None:
        return os.environ.get("HF_TOKEN", "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        code = Exit.NOT_PERMITTED if isinstance(error, PermissionError) else Exit.NOT_FOUND
        raise ModelctlError(f"--token-file {file}: {error.strerror}", code) from error
    except ValueError:
        token = ""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ModelctlError(f"--token-file {file} holds no token: one line of text is needed")
    return token


def fetch_settings(
    host: Host, arguments: Namespace, may_link: Callable[[os.stat_result], bool]
) -> FetchSettings:
    """How models are fetched. Raises SourceError, ModelctlError."""
    return FetchSettings(
        hf_endpoint=hub_endpoint(host, arguments),
        hf_token=hub_token(arguments),
        reserve_bytes=arguments.reserve_mib * MIB,
        may_link=may_link,
        offline_dir=getattr(arguments, "offline_dir", None),
        users=host.users,
    )
