"""`modelctl pull`: get models."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.http_client import HttpClient
from ...core.model_batch import fetch_all
from ...core.model_catalogue import UnknownNameError
from ...core.model_files import (
    Companion,
    FileRecord,
    Record,
    WantedFile,
    read_record,
    stem_of,
    wanted_files,
)
from ...core.model_source import DEFAULT_REVISION, Source, SourceError, parse_source
from ...core.model_store import FetchRequest, ModelStore, Outcome
from ..attributes import Attributes
from ..exit_codes import Exit, ModelctlError
from ..failures import failure_of
from ..host import Host, fetch_settings, hub_client
from ..host_plan import PlannedModel
from ..lookup import is_source
from ..output import emit, say, size_text, tell
from ..terminal_progress import TerminalProgress

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOR_ONE = ("name", "file", "sha256", "revision", "mmproj")


def run(arguments: Namespace) -> int:
    host = Host(arguments)
    if len(arguments.sources) > 1:
        given = [f"--{name}" for name in _FOR_ONE if getattr(arguments, name) is not None]
        if given:
            raise ModelctlError(f"{', '.join(given)}: only with a single source", Exit.USAGE)
    host.prepare_writing(make=True)
    attributes = Attributes.of_models(host.models_dir, host.catalogue)
    settings = fetch_settings(host, arguments, attributes.are_those_of)
    requests = [
        replace(request_for(host, source, arguments), settings=settings)
        for source in arguments.sources
    ]
    refuse_foreign_files(requests, arguments)
    with TerminalProgress() as progress:
        results = _fetch(requests, arguments, progress)
    host.catalogue.refresh()
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    code = Exit.OK
    for source, request, result in zip(arguments.sources, requests, results, strict=True):
        if isinstance(result, Outcome):
            attributes.give(result, request.directory)
            done.append(_data(request, result))
            if not arguments.json:
                say(_text(result))
            continue
        failure = failure_of(result)
        if failure is None:
            raise result
        code = failure.code
        failed.append({"source": source, "error": str(failure), "exit_code": int(code)})
        tell(str(failure))
    if arguments.json:
        emit({"models": done, "failed": failed})
    return code


def _fetch(
    requests: Sequence[FetchRequest], arguments: Namespace, progress: TerminalProgress
) -> Sequence[Outcome | Exception]:
    def client() -> HttpClient:
        return hub_client(arguments, progress.say)

    if len(requests) > 1:
        return fetch_all(requests, client, progress, arguments.parallel)
    try:
        return [ModelStore(client(), progress).fetch(requests[0])]
    except Exception as error:
        if failure_of(error) is None:
            raise
        return [error]


def request_for(host: Host, text: str, arguments: Namespace) -> FetchRequest:
    """What to get where, without the settings. Raises ModelctlError, SourceError."""
    if not is_source(text):
        return _known_request(host, text, arguments)
    source = parse_source(text)
    if arguments.revision is not None:
        if source.kind != "hf" or source.revision != DEFAULT_REVISION:
            raise ModelctlError(
                "--revision goes with a hf:// source that has no @REVISION itself", Exit.USAGE
            )
        source = parse_source(f"{text.removesuffix('@' + DEFAULT_REVISION)}@{arguments.revision}")
    files = wanted_files(
        source,
        arguments.file,
        [_checked_sha256(arguments.sha256)] if arguments.sha256 else [],
        mmproj=Companion(parse_source(arguments.mmproj)) if arguments.mmproj else None,
    )
    here = read_record(host.models_dir / files[0].file)
    if here is None or not _is_origin(here, source):
        return FetchRequest(arguments.name or stem_of(files[0].file), host.models_dir, files)
    # It keeps what it is called, and what belongs to it.
    given = ("model", "mmproj") if arguments.mmproj else ("model",)
    files += _recorded(one for one in here.files if one.role not in given)
    name = arguments.name or here.name
    return FetchRequest(name, host.models_dir, files, aliases=here.aliases)


def _is_origin(record: Record, source: Source) -> bool:
    """Whether a model came from there, of whatever revision."""
    return replace(parse_source(record.source), revision="") == replace(source, revision="")


def _known_request(host: Host, name: str, arguments: Namespace) -> FetchRequest:
    """The request for a model of the plan, or for one that is here already."""
    given = [f"--{option}" for option in _FOR_ONE if getattr(arguments, option) is not None]
    if given:
        raise ModelctlError(
            f"{', '.join(given)}: only with a source; {name!r} is taken for a model's name",
            Exit.USAGE,
        )
    planned = host.plan.model(name) if host.plan else None
    if planned is not None:
        return _planned_request(planned)
    try:
        model = host.catalogue.owner(name)
    except UnknownNameError as error:
        raise ModelctlError(
            f"{name!r} is neither a source (hf://OWNER/REPOSITORY/FILE.gguf, https://..., "
            f"file:/PATH) nor a model of the plan; {error}",
            Exit.NOT_FOUND,
        ) from error
    record = read_record(model.path)
    if record is None:
        raise ModelctlError(f"{model.path} has no record of where it came from", Exit.NOT_FOUND)
    files = _recorded(record.files)
    return FetchRequest(record.name, host.models_dir, files, aliases=record.aliases)


def _recorded(files: Iterable[FileRecord]) -> tuple[WantedFile, ...]:
    return tuple(WantedFile(parse_source(one.source), one.file, one.role) for one in files)


def _planned_request(model: PlannedModel) -> FetchRequest:
    files = tuple(
        WantedFile(parse_source(file["source"]), file["file"], file["role"], file["sha256"])
        for file in model.files
    )
    return FetchRequest(model.name, model.path.parent, files, aliases=model.aliases)


def _checked_sha256(text: str) -> str:
    digest = text.strip().lower()
    if not _SHA256.fullmatch(digest):
        raise SourceError(f"--sha256 {text}: 64 hexadecimal digits are needed")
    return digest


def refuse_foreign_files(requests: Sequence[FetchRequest], arguments: Namespace) -> None:
    """A pull never replaces a model of another source that happens to have the same file name.

    It does where it is told the name of the very model.
    """
    taken: dict[Path, str] = {}
    for text, request in zip(arguments.sources, requests, strict=True):
        record = read_record(request.path)
        source = str(request.source)
        told_name = arguments.name if is_source(text) else request.name
        if record and record.name != told_name and not _is_origin(record, request.source):
            raise ModelctlError(
                f"{request.path} is model {record.name!r} from {record.source} already; give this "
                "one another file name with --file, or say that it shall take that model's place: "
                f"--name {record.name}",
                Exit.IN_USE,
            )
        if taken.setdefault(request.path, source) != source:
            raise ModelctlError(
                f"two of the sources would both become {request.path}; pull them one by one, with "
                "--file",
                Exit.USAGE,
            )


def _data(request: FetchRequest, outcome: Outcome) -> dict[str, Any]:
    after = outcome.after
    return {
        "name": after.name,
        "path": str(outcome.path),
        "paths": [str(path) for path in after.paths(request.directory)],
        "action": outcome.action,
        "changed": outcome.changed,
        "size_bytes": after.size_bytes,
        "sha256": after.sha256,
        "version": after.version,
        "revision": after.revision,
        "verified": after.verified,
        "bytes_fetched": outcome.bytes_fetched,
        "bytes_resumed": outcome.bytes_resumed,
    }


def _text(outcome: Outcome) -> str:
    after = outcome.after
    size = size_text(after.size_bytes)
    if outcome.action == "fetch":
        proof = "verified" if after.verified else "its source states no digest to compare with"
        return f"{after.name}  {size}  version {after.version}  {outcome.path}  ({proof})"
    how = "was there, and is recorded now" if outcome.action == "record" else "is there already"
    return f"{after.name}  {size}  version {after.version}  {outcome.path}  ({how})"
