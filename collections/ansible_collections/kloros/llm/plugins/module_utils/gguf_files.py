"""A GGUF model as one or several files: the shards that llama.cpp's gguf-split makes.

Source: llama.cpp 0.5.0-dev, `src/llama.cpp` (llama_split_path), `src/llama-model-loader.cpp` and
`tools/gguf-split`: shards are named `NAME-00001-of-00003.gguf`, the first one holds the metadata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from .gguf_bytes import ByteSource, FileBytes, HttpBytes
from .gguf_header import GgufHeader, GgufTensor, Value
from .gguf_reader import GgufError, Limits, read_header
from .http_client import HttpClient
from .model_source import Source, SourceError, resolve_url, shard_of

# Shards after the first hold no vocabulary.
LATER_FIRST_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class GgufShard:
    """One file. `size_bytes` is that of the whole file, None where a server hides it.

    Of shards after the first, `header` has no metadata: it says nothing of the model.
    """

    name: str
    size_bytes: int | None
    header: GgufHeader


@dataclass(frozen=True)
class GgufModel:
    """All files of a model.

    `header` has the metadata of the first shard and the tensors of all; a tensor's `offset` counts
    in its own shard (see `shards`). `revision` is the commit that a Hub named. `requests` and
    `fetched_bytes` are what reading it took over HTTP.
    """

    header: GgufHeader
    shards: tuple[GgufShard, ...]
    revision: str | None = None
    requests: int = 0
    fetched_bytes: int = 0

    @property
    def size_bytes(self) -> int | None:
        """The size of all files; None where one is not known."""
        total = 0
        for shard in self.shards:
            if shard.size_bytes is None:
                return None
            total += shard.size_bytes
        return total


def shard_names(first_name: str) -> list[str]:
    """The names of all files of a model, given the first: a name, a path, or a URL's path.

    Raises GgufError where `first_name` is a shard but not the first, or none that can be.
    """
    folder, slash, name = first_name.rpartition("/")
    try:
        shard = shard_of(name)
    except SourceError as error:
        raise GgufError(str(error)) from error
    if shard is None:
        return [first_name]
    if shard.number != 1:
        raise GgufError(
            f"{first_name} is shard {shard.number} of {shard.count}; a model is named by its first "
            f"shard, {folder}{slash}{shard.file_name(1)}"
        )
    return [f"{folder}{slash}{shard.file_name(one)}" for one in range(1, shard.count + 1)]


def read_model(
    open_source: Callable[[str], ByteSource], first_name: str, limits: Limits | None = None
) -> GgufModel:
    """Read the headers of all files of a model. `open_source` gets a name of `shard_names`.

    Raises:
        GgufError: a header is unusable, or the shards do not belong together.
        OSError, HttpError: as the sources raise them.
    """
    limits = limits or Limits()
    names = shard_names(first_name)
    shards: list[GgufShard] = []
    requests = fetched_bytes = 0
    revision = None
    left = limits
    for number, name in enumerate(names):
        source = open_source(name)
        try:
            header = read_header(source, left)
        finally:
            source.close()
        shards.append(GgufShard(name, source.size_bytes, header))
        _check_shard(shards, number, len(names))
        if number:
            plain = dataclasses.replace(header, metadata={})
            shards[-1] = dataclasses.replace(shards[-1], header=plain)
        left = _left(left, header)
        if isinstance(source, HttpBytes):
            requests += source.requests
            fetched_bytes += source.fetched_bytes
            revision = revision or source.hub.commit
    header = shards[0].header
    if len(shards) > 1:
        header = dataclasses.replace(header, tensors=_merged(shards))
    return GgufModel(header, tuple(shards), revision, requests, fetched_bytes)


def _left(limits: Limits, header: GgufHeader) -> Limits:
    """What the tensor table of the next shard may take: in all no more than one file's."""
    names_bytes = sum(len(tensor.name.encode()) for tensor in header.tensors)
    return dataclasses.replace(
        limits,
        tensors=limits.tensors - len(header.tensors),
        names_bytes=limits.names_bytes - names_bytes,
    )


def read_model_file(path: Path | str, limits: Limits | None = None) -> GgufModel:
    """`read_model` of local files, given the path of the first."""
    return read_model(FileBytes, str(path), limits)


def read_model_source(
    source: Source,
    client: HttpClient,
    hf_endpoint: str,
    token: str | None = None,
    revision: str | None = None,
) -> GgufModel:
    """`read_model` of a source, fetching only the headers. Local files need no `client`.

    `token` goes to the Hub (`hf`) only. All shards are read at the commit of the first.
    Raises also SourceError.
    """
    if source.kind == "file":
        return read_model_file(source.location)
    files = RemoteFiles(source, client, hf_endpoint, token, revision)
    return read_model(files.open, files.first_name)


class RemoteFiles:
    """Opens the files of a model on a server, for `read_model`: all at the commit of the first.

    `token` goes to the Hub (`hf`) only. `source` is no local file.
    """

    def __init__(
        self,
        source: Source,
        client: HttpClient,
        hf_endpoint: str,
        token: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.first_name = source.location if source.kind == "hf" else urlsplit(source.location).path
        self._source = source
        self._client = client
        self._hf_endpoint = hf_endpoint
        self._token = token if source.kind == "hf" else None
        self._revision = revision
        self._first: HttpBytes | None = None

    def open(self, name: str) -> HttpBytes:
        """One of `shard_names`. Raises HttpError when it is read, SourceError."""
        revision = self._revision or (self._first.hub.commit if self._first else None)
        location = name
        if self._source.kind == "url":
            location = urlunsplit(urlsplit(self._source.location)._replace(path=name))
        url = resolve_url(
            dataclasses.replace(self._source, location=location), self._hf_endpoint, revision
        )
        if self._first:
            return HttpBytes(self._client, url, self._token, first_bytes=LATER_FIRST_BYTES)
        self._first = HttpBytes(self._client, url, self._token)
        return self._first


def _check_shard(shards: list[GgufShard], number: int, count: int) -> None:
    """That the last shard read is number `number` (from 0) of `count`."""
    shard = shards[-1]
    metadata = shard.header.metadata
    stated = metadata.get("split.count", 0)
    if count == 1:
        if isinstance(stated, int) and stated > 1:
            raise GgufError(
                f"{shard.name} says it is one of {stated} shards; llama.cpp finds the others by "
                f"name, so it must be called NAME-00001-of-{stated:05d}.gguf"
            )
        return
    if stated != count:
        raise GgufError(
            f"{shard.name} is one of {count} shards by its name, but its header "
            + (f"says split.count = {_told(stated)}" if stated else "knows of no shards")
            + "; the files do not belong together, or one was renamed"
        )
    if metadata.get("split.no") != number:
        raise GgufError(
            f"{shard.name} says split.no = {_told(metadata.get('split.no'))}; needed: {number}. "
            "The shards were mixed up or renamed"
        )
    first = shards[0].header
    if shard.header.byte_order != first.byte_order:
        raise GgufError(
            f"{shard.name} is {shard.header.byte_order}-endian, the first shard "
            f"{first.byte_order}-endian; they do not belong together"
        )


def _told(value: Value | None) -> str:
    """A number for a message; what else stands there may be long."""
    return str(value) if isinstance(value, int | None) else "no number"


def _merged(shards: list[GgufShard]) -> tuple[GgufTensor, ...]:
    tensors: dict[str, GgufTensor] = {}
    for shard in shards:
        for tensor in shard.header.tensors:
            if tensor.name in tensors:
                raise GgufError(
                    f"{shard.name} holds the tensor {tensor.name!r} that an earlier shard holds "
                    "already; they do not belong together"
                )
            tensors[tensor.name] = tensor
    stated = shards[0].header.metadata.get("split.tensors.count")
    if stated != len(tensors):
        raise GgufError(
            f"{shards[0].name} says split.tensors.count = {_told(stated)}, but its "
            f"{len(shards)} shards hold {len(tensors)} tensors; a shard is damaged or of another "
            "model"
        )
    return tuple(tensors.values())
