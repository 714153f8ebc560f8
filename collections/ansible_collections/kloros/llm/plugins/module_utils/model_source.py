"""Where a model comes from: the `source` of a wish, parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

ACCEPTED = (
    "hf://OWNER/REPOSITORY/PATH/FILE.gguf[@REVISION], "
    "https://HOST/PATH/FILE.gguf (or http://), "
    "file:/ABSOLUTE/PATH/FILE.gguf"
)
DEFAULT_HF_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"

# The store keeps these beside a model under the model's own name.
RESERVED_SUFFIXES = (".part", ".json", ".lock", ".new", ".staged", ".swap", ".journal")
# Its own names in the directory of the models.
RESERVED_NAMES = ("catalogue", "versions")

_REPO_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# llama.cpp's llama_split_path(): "%s-%05d-of-%05d.gguf"; it finds the siblings by that name.
_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
MAX_SHARDS = 1000


class SourceError(ValueError):
    """The text is not a source; the message says what would be."""


@dataclass(frozen=True)
class Source:
    """A parsed source.

    `location` is the path inside the repository (`hf`), the URL (`url`) or the absolute path
    (`file`). `repository` ("owner/repo") and `revision` are set for `hf` only.
    """

    kind: Literal["hf", "url", "file"]
    location: str
    repository: str = ""
    revision: str = ""

    def __str__(self) -> str:
        """The canonical text: parsing it gives the same source."""
        if self.kind == "hf":
            return f"hf://{self.repository}/{self.location}@{self.revision}"
        return f"file:{self.location}" if self.kind == "file" else self.location


@dataclass(frozen=True)
class Shard:
    """One file of a model that is split: `number` counts from 1 to `count`."""

    stem: str
    number: int
    count: int

    def file_name(self, number: int) -> str:
        """The name of a sibling."""
        return f"{self.stem}-{number:05}-of-{self.count:05}.gguf"


def shard_of(file_name: str) -> Shard | None:
    """What a file name says of a split model; None where it is not of that form.

    Raises SourceError for numbers that cannot be.
    """
    match = _SHARD.fullmatch(file_name)
    if not match:
        return None
    shard = Shard(match[1], int(match[2]), int(match[3]))
    if not 1 <= shard.number <= shard.count <= MAX_SHARDS:
        raise SourceError(
            f"'{file_name}' is named as part {shard.number} of {shard.count} of a split model, "
            f"which cannot be (1 to {MAX_SHARDS} parts); check the name"
        )
    return shard


def all_shards(source: Source) -> tuple[Source, ...]:
    """The sources of all files of the model: `source` itself where it is not split.

    Raises SourceError where `source` names a part other than the first.
    """
    path, mark, query = source.location, "", ""
    if source.kind == "url":
        path, mark, query = source.location.partition("?")
    folder, slash, name = path.rpartition("/")
    shard = shard_of(name)
    if shard is None:
        return (source,)
    if shard.number != 1:
        raise SourceError(
            f"{source} is part {shard.number} of a split model; name its first part, "
            f"{shard.file_name(1)}, and all {shard.count} are taken"
        )
    return tuple(
        replace(source, location=f"{folder}{slash}{shard.file_name(number)}{mark}{query}")
        for number in range(1, shard.count + 1)
    )


def parse_source(text: str) -> Source:
    """Parse the `source` of a wish. Raises SourceError, which names the accepted forms."""
    if text != text.strip() or _CONTROL.search(text):
        raise _refused(text, "has blanks around it or control characters in it")
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise _refused(text, "has no scheme")
    if scheme == "hf":
        return _parse_hf(text, rest)
    if scheme in ("http", "https"):
        return _parse_url(text)
    if scheme == "file":
        return _parse_file(text, rest)
    if scheme == "ollama":
        raise _refused(
            text,
            "names a model in an Ollama store: taking those over is not supported yet; "
            "give the model's Hugging Face repository or a file",
        )
    raise _refused(text, f"has the unknown scheme '{scheme}:'")


def resolve_url(source: Source, hf_endpoint: str, revision: str | None = None) -> str:
    """The URL of a `hf` or `url` source; `revision` pins a `hf` source to a commit."""
    if source.kind == "url":
        return source.location
    if source.kind == "file":
        raise SourceError(f"{source} is a file and has no URL")
    pinned = quote(revision or source.revision, safe="")
    endpoint = hf_endpoint.rstrip("/")
    return f"{endpoint}/{source.repository}/resolve/{pinned}/{quote(source.location)}"


def is_commit(revision: str) -> bool:
    """Whether a revision names one commit for ever, and not a branch or tag."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision) is not None


def default_file(source: Source) -> str:
    """The last part of the path, for a wish that names no file; not yet checked for aptness."""
    path = urlsplit(source.location).path if source.kind == "url" else source.location
    name = path.rpartition("/")[2]
    return unquote(name) if source.kind == "url" else name


def offline_places(source: Source, file: str | None, folder: Path | str | None) -> list[Path]:
    """Where `folder` may hold what stands for the source; `file` is its name in the store."""
    if not folder:
        return []
    names = [f"{source.repository}/{source.location}"] if source.kind == "hf" else []
    # The name in the store before that in the repository: many call theirs mmproj-F16.gguf.
    names += [file or "", default_file(source)]
    return [Path(folder) / name for name in dict.fromkeys(names) if name]


def file_at_hand(
    source: Source, file: str | None, offline_dir: Path | str | None, *, offline: bool
) -> Path | None:
    """The local file that is, or stands for, a source; None where its server is to be asked.

    Raises SourceError where there is none and `offline` forbids to ask.
    """
    places = offline_places(source, file, offline_dir)
    for place in places:
        if place.is_file():
            return place
    if source.kind == "file":
        return Path(source.location)
    if offline:
        where = " or ".join(map(str, places)) or "a folder that 'offline_dir' names"
        raise SourceError(f"{source} is not on the host, and 'offline' is set; put it at {where}")
    return None


def check_endpoint(endpoint: str) -> str:
    """The base URL of a Hub or mirror without its trailing slash. Raises SourceError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise SourceError(
            f"hf_endpoint '{endpoint}' is not a base URL; needed: https://HOST[:PORT][/PATH], "
            f"for example {DEFAULT_HF_ENDPOINT}"
        )
    return endpoint.rstrip("/")


def check_file_name(name: str) -> str:
    """A plain file name that the store can use. Raises SourceError."""
    if not name or name.startswith(".") or "/" in name or _CONTROL.search(name):
        raise SourceError(
            f"'{name}' cannot be the model's file name; needed: a plain name such as "
            "model.gguf (option 'file'), without a slash and not starting with a dot"
        )
    if name in RESERVED_NAMES:
        raise SourceError(
            f"the file name '{name}' is one that the store uses for itself; give another name "
            "with the option 'file'"
        )
    if name.endswith(RESERVED_SUFFIXES):
        raise SourceError(
            f"the file name '{name}' ends in one of {', '.join(RESERVED_SUFFIXES)}, which the "
            "store uses for itself; give another name with the option 'file'"
        )
    return name


def _parse_hf(text: str, rest: str) -> Source:
    if not rest.startswith("//"):
        raise _refused(text, "lacks '//' after 'hf:'")
    # The last '@': a revision may hold a slash (refs/pr/1), a path hardly ever an '@'.
    body, at, revision = rest[2:].rpartition("@")
    if not at:
        body, revision = revision, DEFAULT_REVISION
    owner, _, remainder = body.partition("/")
    repo, _, path = remainder.partition("/")
    if not (_REPO_PART.fullmatch(owner) and _REPO_PART.fullmatch(repo)):
        raise _refused(text, "has no OWNER/REPOSITORY")
    if not path.endswith(".gguf") or not _is_clean_path(path):
        raise _refused(text, "does not end in the path of a .gguf file inside the repository")
    if not revision or not _is_clean_path(revision):
        raise _refused(text, f"has the impossible revision '{revision}'")
    return Source("hf", path, f"{owner}/{repo}", revision)


def _parse_url(text: str) -> Source:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise _refused(text, f"is not a URL ({error})") from None
    if not parts.hostname or " " in text or not text.isascii():
        raise _refused(text, "is not a URL (blanks and non-ASCII characters are written as %XX)")
    if parts.username is not None or parts.password is not None:
        raise _refused("URL", "carries a user or password; secrets do not belong into a URL")
    if parts.fragment or text.endswith("#"):
        raise _refused(text, "has a '#' part, which no server ever sees")
    return Source("url", text)


def _parse_file(text: str, rest: str) -> Source:
    path = rest[2:] if rest.startswith("//") else rest
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise _refused(text, "is not an absolute path of a file on the host")
    return Source("file", path)


def _is_clean_path(path: str) -> bool:
    return all(
        part not in ("", ".", "..") and not any(mark in part for mark in " ?#\\")
        for part in path.split("/")
    )


def _refused(text: str, why: str) -> SourceError:
    return SourceError(f"source '{text}' {why}; accepted: {ACCEPTED}")
