"""Names of models, as Ollama takes, shows and compares them.

`[host/][namespace/]model[:tag]`; what is missing is `registry.ollama.ai`, `library`, `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

INVALID_NAME = "invalid model name"

# An invalid part: what stands where a separator promised something and nothing came.
_MISSING = "!"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A whole name; its case is kept as it was written."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> str:
        """The same for all ways to write one name: compare and look up by this."""
        return self.full.lower()

    @property
    def full(self) -> str:
        """All four parts."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def display(self) -> str:
        """As tags, ps and show write it: host and namespace only where they tell something."""
        short = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{short}"
        return short


def parse_name(text: str) -> ModelName | None:
    """The name that `text` writes, parts that it leaves out filled in; None where it is invalid."""
    rest, tag = text, ""
    if text.rfind(":") > text.rfind("/"):
        rest, tag, _ = _cut_last(text, ":")
    rest, model, more = _cut_last(rest, "/")
    namespace = host = ""
    if not more:
        model = rest
    else:
        rest, namespace, more = _cut_last(rest, "/")
        if more:
            _, found, host = rest.partition("://")
            host = host if found else rest
        else:
            namespace = rest
    name = ModelName(
        host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag or DEFAULT_TAG
    )
    valid = (
        _HOST.match(name.host)
        and _NAMESPACE.match(name.namespace)
        and _PART.match(name.model)
        and _PART.match(name.tag)
    )
    return name if valid else None


def name_key(text: str) -> str | None:
    """The key of the name that `text` writes; None where it is invalid."""
    name = parse_name(text)
    return name.key if name else None


def display_name(text: str) -> str:
    """`text` as Ollama shows that name; as it is where it is none."""
    name = parse_name(text)
    return name.display if name else text


def _cut_last(text: str, separator: str) -> tuple[str, str, bool]:
    before, found, after = text.rpartition(separator)
    if not found:
        return text, "", False
    return before or _MISSING, after or _MISSING, True
