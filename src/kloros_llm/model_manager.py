"""`ModelManager`: the models of this host, as `modelctl` has them, for programs."""

from __future__ import annotations

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from .core.disk_space import existing_parent
from .core.model_store import FetchRequest, ModelStore
from .core.model_versions import UnknownNameError
from .core.progress import ProgressFile
from .endpoints import host_plan
from .errors import ModelError
from .modelctl.arguments import build
from .modelctl.attributes import Attributes
from .modelctl.commands.list import facts
from .modelctl.commands.pull import refuse_foreign_files, request_for
from .modelctl.exit_codes import ModelctlError
from .modelctl.failures import told_plainly
from .modelctl.host import Host, fetch_settings, hub_client
from .modelctl.lookup import is_source

OnProgress = Callable[[str, int, int | None], object]
"""Called with what is being done, how many bytes of it are, and how many it will be."""

_TELL_BYTES: Final = 1 << 20

_log = logging.getLogger(__name__)


class ModelManager:
    """The models in `model_dir`: the plan's directory unless another is given.

    Names are those of `modelctl list`, aliases, files, and of the plan; `name@version` is one
    version. It works on what is on the disk, and may be used from several threads and beside
    `modelctl` and Ansible. All raise ModelError.
    """

    def __init__(
        self,
        model_dir: str | Path | None = None,
        *,
        plan: str | Path | None = None,
        hf_endpoint: str | None = None,
        hf_token: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._hf_endpoint = hf_endpoint
        self._hf_token = hf_token
        self._on_progress = on_progress
        known = host_plan(plan)
        self._plan = known.path if known else None
        self._given_dir = Path(model_dir) if model_dir else None
        self.model_dir = self._host().models_dir

    def get_model_path(self, model_name: str, *, download: bool = True) -> Path | None:
        """Where a model is: its first file. None where nobody knows it.

        With `download`, one that is not here is fetched if the plan has it or it is a source
        (`hf://OWNER/REPOSITORY/FILE.gguf`, an https URL).
        """
        with _told():
            path = self._path(model_name)
            if path is not None or not download:
                return path
            planned = self._host().plan
            if not is_source(model_name) and not (planned and planned.model(model_name)):
                return None
            return self._fetch(model_name, {})

    def list_models(self) -> list[dict[str, Any]]:
        """The models that are here, with the keys that `modelctl list --json` gives them."""
        with _told():
            host = self._host()
            if not host.models_dir.is_dir():
                return []
            return [facts(host, model) for model in host.catalogue.models()]

    def download_model(
        self,
        model_name: str,
        *,
        name: str | None = None,
        file: str | None = None,
        sha256: str | None = None,
        revision: str | None = None,
        mmproj: str | None = None,
    ) -> bool:
        """Fetch a model of the plan, or a source, as `modelctl pull` does: resumed, proven, in
        one step in place. True: it is here now, whether it was before or not.

        For a source: `name` and `file` are what it is called here, `sha256` what it must have,
        `mmproj` the source of its projector.
        """
        given = {
            "name": name,
            "file": file,
            "sha256": sha256,
            "revision": revision,
            "mmproj": mmproj,
        }
        with _told():
            self._fetch(model_name, given)
        return True

    def _path(self, model_name: str) -> Path | None:
        host = self._host()
        if is_source(model_name) or not host.models_dir.is_dir():
            return None
        try:
            return host.catalogue.find(model_name).path
        except UnknownNameError:
            return None

    def _fetch(self, model_name: str, given: dict[str, str | None]) -> Path:
        arguments = self._arguments(given)
        host = self._host()
        if not os.access(existing_parent(host.models_dir), os.W_OK | os.X_OK):
            raise ModelError(f"{host.models_dir} is not this user's to write")
        host.models_dir.mkdir(parents=True, exist_ok=True)
        attributes = Attributes.of_models(host.models_dir, host.catalogue)
        settings = fetch_settings(host, arguments, attributes.are_those_of)
        if self._hf_token:
            settings = replace(settings, hf_token=self._hf_token)
        request: FetchRequest = replace(request_for(host, model_name, arguments), settings=settings)
        arguments.sources = [model_name]
        refuse_foreign_files([request], arguments)
        store = ModelStore(hub_client(arguments, _log.info), _Told(self._on_progress))
        outcome = store.fetch(request)
        attributes.give(outcome, request.directory)
        host.catalogue.refresh()
        return outcome.path

    def _host(self) -> Host:
        with _told():
            return Host(Namespace(plan=self._plan, models_dir=self._given_dir))

    def _arguments(self, given: dict[str, str | None]) -> Namespace:
        """modelctl's own defaults, and what is said here."""
        arguments = build().parse_args(["pull", "."])
        for key, value in {**given, "hf_endpoint": self._hf_endpoint}.items():
            setattr(arguments, key, value)
        return arguments


class _Told(ProgressFile):
    """Tells a function, once a mebibyte."""

    def __init__(self, tell: OnProgress | None) -> None:
        super().__init__(None, "", "bytes")
        self._tell = tell
        self._told_bytes = 0

    def start(self, label: str, total: int | None = None, done: int = 0) -> None:
        super().start(label, total, done)
        self._say(done)

    def update(self, done: int, total: int | None = None) -> None:
        super().update(done, total)
        if done - self._told_bytes >= _TELL_BYTES or done == self._progress["total"]:
            self._say(done)

    def _say(self, done: int) -> None:
        self._told_bytes = done
        if self._tell is not None:
            self._tell(self._progress["label"], done, self._progress["total"])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        with told_plainly():
            yield
    except ModelctlError as error:
        raise ModelError(str(error)) from error
