"""From the name that a client wants to pull to the files that it means; runs in worker threads.

Names of gateway.toml and of the plan resolve to their source, `hf.co/OWNER/REPO[:TAG]` and
`hf://…` to the Hub or its mirror. Nothing else is ever asked for: no other host, and no file of
this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ...core.http_client import HttpClient, HttpError
from ...core.model_files import Companion, Record, WantedFile, read_record, wanted_files
from ...core.model_source import DEFAULT_HF_ENDPOINT, Source, parse_source, shard_of
from ...core.model_store import FetchRequest, FetchSettings, StoreError
from ...core.model_users import Users
from ...modelctl.exit_codes import ModelctlError
from ...modelctl.host_plan import DEFAULT_PLAN, HostPlan, read_plan
from ..config import Config, Model
from ..ollama_api.model_names import DEFAULT_TAG, INVALID_NAME, ModelName, parse_name

UNKNOWN: Final = (
    "file does not exist: this server pulls the models of its inventory (gguf_models) and, as "
    "hf.co/OWNER/REPOSITORY:QUANTISATION, those of the Hub"
)
HUB_HOSTS: Final = ("hf.co", "huggingface.co")
_PREFERRED: Final = ("q4_k_m", "q4_0", "q4_k_s", "q5_k_m", "q8_0")
_MOST_LISTING_BYTES: Final = 16 << 20
_QUANT: Final = re.compile(r"(?i)(?:^|[-._])((?:i?q\d|bf16|f16|f32|mxfp4|tq\d)[a-z0-9_]*)$")


@dataclass(frozen=True)
class Wanted:
    """What to fetch. `name` is what clients call it: who pulls a model sees it by that name, also
    where the store had it already.
    """

    request: FetchRequest
    name: str


def is_of_hub(name: str) -> bool:
    """Whether clients give models of the Hub such a name."""
    parsed = parse_name(name)
    return parsed is not None and parsed.host.lower() in HUB_HOSTS


class PullSources:
    """Finds sources. `plan` is that of the host; where it cannot be read, records alone tell."""

    def __init__(self, config: Config, plan: Path = DEFAULT_PLAN) -> None:
        self.config = config
        self._plan_path = plan
        self._endpoint = (config.hf_endpoint or DEFAULT_HF_ENDPOINT).rstrip("/")
        token_file = config.hf_token_file
        self._settings = FetchSettings(
            hf_endpoint=self._endpoint,
            hf_token=token_file.read_text("utf-8").strip() if token_file else None,
            users=Users(config_dir=plan.parent),
        )

    @property
    def settings(self) -> FetchSettings:
        """How models are fetched."""
        return self._settings

    def find(self, text: str, known: Model | None, client: HttpClient) -> Wanted:
        """What `text` means; `known` is the model of that name that is not the clients' own.

        Raises StoreError, HttpError, SourceError.
        """
        if text.startswith("hf://"):
            return self._of_source(parse_source(text))
        name = parse_name(text)
        if name is None:
            raise StoreError(INVALID_NAME)
        if known is not None:
            return Wanted(self._of_known(known), name.display)
        if is_of_hub(text):
            return self._of_hub(name, client)
        planned = self._planned(text)
        if planned is None:
            raise StoreError(UNKNOWN)
        return Wanted(planned, name.display)

    # Names that this host knows

    def _of_known(self, model: Model) -> FetchRequest:
        record = read_record(model.path)
        if record is not None:
            return self._request(record.name, model.path.parent, _recorded(record), record.aliases)
        planned = self._planned(model.name)
        if planned is None:
            raise StoreError(
                f"{model.path} has no record of where it came from, and no plan of this host "
                f"tells of {model.name}"
            )
        return planned

    def _planned(self, name: str) -> FetchRequest | None:
        plan = self._plan()
        model = plan.model(name) if plan else None
        if model is None:
            return None
        files = tuple(
            WantedFile(parse_source(one["source"]), one["file"], one["role"], one["sha256"])
            for one in model.files
        )
        return self._request(model.name, model.path.parent, files, model.aliases)

    def _plan(self) -> HostPlan | None:
        try:
            return read_plan(self._plan_path)
        except ModelctlError:
            return None

    def _request(
        self,
        name: str,
        directory: Path,
        files: tuple[WantedFile, ...],
        aliases: tuple[str, ...] = (),
        *,
        latest: bool = False,
    ) -> FetchRequest:
        return FetchRequest(name, directory, files, self._settings, aliases, latest)

    # The Hub

    def _of_source(self, source: Source) -> Wanted:
        stem = _stem(source.location)
        match = _QUANT.search(stem)
        tag = match[1] if match else re.sub(r"[^A-Za-z0-9_.-]", "-", stem)[:80]
        owner, _, repository = source.repository.partition("/")
        name = parse_name(f"{HUB_HOSTS[0]}/{owner.replace('.', '-')}/{repository}:{tag}")
        if name is None:
            raise StoreError(f"{source} cannot be given a name; pull it with `modelctl pull`")
        return self._fetched(name, source, None)

    def _of_hub(self, name: ModelName, client: HttpClient) -> Wanted:
        files = self._listing(f"{name.namespace}/{name.model}", client)
        chosen = _chosen(files, name.tag)
        if chosen is None:
            found = ", ".join(sorted({_stem(file) for file in _models(files)})) or "no GGUF file"
            raise StoreError(
                f"the repository {name.namespace}/{name.model} has no file for the tag "
                f"{name.tag}; it has {found}"
            )
        source = Source("hf", chosen, f"{name.namespace}/{name.model}", "main")
        beside = _projector(files)
        projector = replace(source, location=beside) if beside else None
        return self._fetched(name, source, projector)

    def _listing(self, repository: str, client: HttpClient) -> list[str]:
        url = f"{self._endpoint}/api/models/{quote(repository)}/tree/main?recursive=true"
        try:
            with client.request("GET", url, token=self._settings.hf_token) as response:
                entries: Any = json.loads(response.read(_MOST_LISTING_BYTES))
        except HttpError as error:
            # The Hub does not tell strangers whether a repository exists.
            if error.status in (401, 403, 404):
                raise StoreError(
                    f"the repository {repository} does not exist, or this server has no token "
                    "that may read it"
                ) from error
            raise
        except ValueError as error:
            raise StoreError(f"{url}: no list of files ({error})") from error
        return [
            entry["path"]
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("path"), str)
        ]

    def _fetched(self, name: ModelName, source: Source, projector: Source | None) -> Wanted:
        directory = self.config.models_dir
        mmproj = Companion(projector) if projector else None
        for file in _file_names(source):
            files = wanted_files(source, file, mmproj=mmproj)
            path = directory / files[0].file
            here = read_record(path)
            if here is None and not path.exists():
                request = self._request(name.display, directory, files, latest=True)
                return Wanted(request, name.display)
            if here is not None and _is_origin(here, source):
                # It keeps what it is called, and what belongs to it. A model of gateway.toml is
                # not the clients' to renew.
                latest = all(path != model.path for model in self.config.models.values())
                files, aliases = _recorded(here), here.aliases
                request = self._request(here.name, directory, files, aliases, latest=latest)
                return Wanted(request, name.display)
        raise StoreError(
            f"{directory} holds other models under all names that {source} could have; pull it "
            "with `modelctl pull --file NAME`"
        )


def _file_names(source: Source) -> tuple[str | None, ...]:
    """What the file may be called in the store: another model may have its usual name."""
    name = _base(source.location)
    repository = source.repository.replace("/", "_")
    return None, f"{repository}_{name}", f"{repository}_{source.location.replace('/', '_')}"


def _recorded(record: Record) -> tuple[WantedFile, ...]:
    return tuple(WantedFile(parse_source(one.source), one.file, one.role) for one in record.files)


def _is_origin(record: Record, source: Source) -> bool:
    return replace(parse_source(record.source), revision="") == replace(source, revision="")


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _stem(path: str) -> str:
    shard = shard_of(_base(path))
    return shard.stem if shard else _base(path).removesuffix(".gguf")


def _is_projector(path: str) -> bool:
    return "mmproj" in _base(path).lower()


def _models(files: Sequence[str]) -> list[str]:
    """The files that models begin with."""
    found = [path for path in files if path.endswith(".gguf") and not _is_projector(path)]
    shards = {path: shard_of(_base(path)) for path in found}
    return [path for path in found if not (shard := shards[path]) or shard.number == 1]


def _chosen(files: Sequence[str], tag: str) -> str | None:
    """The file that a tag means: its name, or its quantisation; "latest" is a usual one."""
    candidates = sorted(_models(files), key=lambda path: (len(path), path))
    if tag == DEFAULT_TAG:
        for usual in _PREFERRED:
            for path in candidates:
                if _has(path, usual):
                    return path
        return candidates[0] if candidates else None
    wanted = tag.lower().removesuffix(".gguf")
    for path in candidates:
        if _stem(path).lower() == wanted:
            return path
    return next((path for path in candidates if _has(path, wanted)), None)


def _has(path: str, quantisation: str) -> bool:
    """Whether a name or its folder tells of this quantisation, and not of a longer one."""
    text = f"{path.rpartition('/')[0]}/{_stem(path)}".lower()
    return re.search(rf"(?:^|[-./]){re.escape(quantisation)}(?:$|[-./])", text) is not None


def _projector(files: Sequence[str]) -> str | None:
    found = sorted(path for path in files if path.endswith(".gguf") and _is_projector(path))
    exact = [path for path in found if re.search(r"(?i)(?<!b)f16", _base(path))]
    return next(iter(exact or found), None)
