"""Headers of models laid out as files of full size, for a program that reads nothing else of them.

llama.cpp checks that a file is as long as its tensors need, and in a dry run reads no tensor. A
header that was fetched by range and extended with a hole is therefore as good as the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .gguf_bytes import ByteSource, FileBytes
from .gguf_files import GgufModel, RemoteFiles, read_model, read_model_file
from .gguf_header import GgufHeader
from .http_client import HttpClient
from .model_source import Source, SourceError

_MAX_FILE_BYTES = 1 << 42
"""4 TiB. A hostile header can claim anything, and a file system refuses to make such a hole."""


@dataclass(frozen=True)
class Header:
    """The beginning of a file, all of its GGUF header, and the size of the whole in bytes.

    `file_name` matters for shards: llama.cpp finds the second one by the name of the first.
    """

    file_name: str
    content: bytes
    size_bytes: int


def fetch_headers(
    source: Source, client: HttpClient, hf_endpoint: str, token: str | None = None
) -> tuple[Header, ...]:
    """The headers of all files of a model on a server, in their order, by range requests.

    `token` goes to the Hub (`hf`) only; all shards are read at the commit of the first.

    Raises:
        SourceError: `source` is a local file, which needs no copy of its header.
        GgufError: a header is unusable, or shards do not belong together.
        HttpError: as the client raises it.
    """
    if source.kind == "file":
        raise SourceError(f"{source} is a local file; let it be read where it lies")
    files = RemoteFiles(source, client, hf_endpoint, token)
    opened: list[ByteSource] = []

    def open_and_keep(name: str) -> ByteSource:
        opened.append(files.open(name))
        return opened[-1]

    return _headers(read_model(open_and_keep, files.first_name), opened)


def local_headers(path: Path | str) -> tuple[Header, ...]:
    """The headers of all files of a model on this host, `path` being the first.

    They can be laid out for a program that may not read the files themselves.

    Raises:
        GgufError: a header is unusable, or shards do not belong together.
        OSError: as from opening a file.
    """
    return headers_of(read_model_file(path))


def headers_of(model: GgufModel) -> tuple[Header, ...]:
    """The headers of a model whose files lie on this host; raises OSError, GgufError."""
    found = []
    for shard in model.shards:
        with FileBytes(shard.name) as file:
            content = file.read_at(0, shard.header.data_offset)
            found.append(Header(Path(shard.name).name, content, file.size_bytes))
    return tuple(found)


def lay_out(headers: Mapping[str, Sequence[Header]], folder: Path) -> dict[str, Path]:
    """Write the headers below `folder` as sparse files of full size, a directory a model.

    `headers` maps the path under which a model is known to the headers of its files; the result
    maps it to the file that stands for it, the first. What fails leaves `folder` half filled.
    """
    places: dict[str, Path] = {}
    for number, (path, files) in enumerate(headers.items()):
        directory = folder / str(number)
        directory.mkdir(mode=0o700)
        written = [_write(header, directory) for header in files]
        places[path] = written[0]
    return places


def give_to(folder: Path, uid: int, gid: int) -> None:
    """Make a user the owner of `folder` and all in it. Call it when nothing more is written."""
    for directory, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.chown(Path(directory, name), uid, gid, follow_symlinks=False)
        os.chown(directory, uid, gid, follow_symlinks=False)


def _headers(model: GgufModel, sources: Iterable[ByteSource]) -> tuple[Header, ...]:
    return tuple(
        Header(
            shard.name.rpartition("/")[2],
            source.read_at(0, shard.header.data_offset),
            _file_size(shard.header) if shard.size_bytes is None else shard.size_bytes,
        )
        for shard, source in zip(model.shards, sources, strict=True)
    )


def _file_size(header: GgufHeader) -> int:
    return header.data_offset + header.data_bytes


def _write(header: Header, directory: Path) -> Path:
    if header.size_bytes > _MAX_FILE_BYTES:
        raise SourceError(
            f"{header.file_name} is said to be {header.size_bytes} bytes long; "
            f"at most {_MAX_FILE_BYTES} are believed"
        )
    path = directory / header.file_name
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o400)
        file.write(header.content)
        file.truncate(max(header.size_bytes, len(header.content)))
    return path
