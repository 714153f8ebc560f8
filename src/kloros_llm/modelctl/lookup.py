"""From what the user names (a name here, a planned one, a path, a source) to the header."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from ..core.gguf_bytes import MemoryBytes
from ..core.gguf_files import GgufModel, read_model, read_model_file, read_model_source
from ..core.gguf_header_files import Header, fetch_headers, headers_of
from ..core.http_client import HttpClient
from ..core.model_catalogue import Found, UnknownNameError
from ..core.model_source import Source, parse_source
from .exit_codes import Exit, ModelctlError
from .host import Host, hub_client, hub_endpoint, hub_token

_SCHEME = re.compile(r"(hf|https?|file|ollama):")


@dataclass(frozen=True)
class Place:
    """Where a model is: a path here, or a source elsewhere (then `path` is None)."""

    name: str
    path: Path | None
    source: Source | None = None
    found: Found | None = None

    def __str__(self) -> str:
        return str(self.path or self.source)


def is_source(text: str) -> bool:
    """Whether a text is meant as a source (`qwen2.5:7b` is a name)."""
    return _SCHEME.match(text) is not None


def place_of(host: Host, what: str) -> Place:
    """Where that is what the user names. Raises ModelctlError, CatalogueError, SourceError."""
    if is_source(what):
        return _place_of_source(what, parse_source(what))
    path = Path(what)
    if "/" in what or path.is_file():
        if not path.is_file():
            raise ModelctlError(f"{what} is no file", Exit.NOT_FOUND)
        return Place(path.name, path)
    try:
        found = host.catalogue.find(what)
    except (UnknownNameError, ModelctlError):
        planned = host.plan.model(what) if host.plan else None
        if planned is None:
            raise
        return _place_of_source(what, parse_source(planned.source))
    return Place(found.model.name, found.path, found=found)


def _place_of_source(name: str, source: Source) -> Place:
    path = Path(source.location) if source.kind == "file" else None
    return Place(name, path, source)


def read(host: Host, place: Place, arguments: Namespace) -> GgufModel:
    """The header. Raises ModelctlError, GgufError, HttpError, OSError."""
    if place.path is not None:
        return read_model_file(place.path)
    return read_model_source(*_hub(host, place, arguments))


def read_with_bytes(
    host: Host, place: Place, arguments: Namespace
) -> tuple[GgufModel, tuple[Header, ...]]:
    """The header, and its bytes as well; raises as `read`."""
    if place.path is not None:
        model = read_model_file(place.path)
        return model, headers_of(model)
    headers = fetch_headers(*_hub(host, place, arguments))
    known = {header.file_name: header for header in headers}

    def open_fetched(name: str) -> MemoryBytes:
        return MemoryBytes(known[name].content, known[name].size_bytes, str(place.source))

    return read_model(open_fetched, headers[0].file_name), headers


def _hub(
    host: Host, place: Place, arguments: Namespace
) -> tuple[Source, HttpClient, str, str | None]:
    """What both ways of reading a header from afar are called with."""
    if place.source is None:
        raise ValueError("a model that is here has no place elsewhere")
    endpoint, token = hub_endpoint(host, arguments), hub_token(arguments)
    return place.source, hub_client(arguments), endpoint, token
