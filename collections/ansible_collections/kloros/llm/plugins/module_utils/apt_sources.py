"""More components of the archive that a distribution's own packages already come from.

The entry that enables the archive is repeated with other components: its options, above all the key
that it is signed with, must be the same in both, or apt refuses every list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

_ORIGIN: Final = re.compile(r"^\s*\d+ (\S+:\S+) (\S+)/main \S+ Packages$", re.MULTILINE)
_ONE_LINE: Final = re.compile(r"deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)")
_FIELD: Final = re.compile(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t]+.*)*)$", re.MULTILINE)


def own_archives(policy: str) -> set[tuple[str, str]]:
    """(URI, suite) of the archives that `apt-cache policy base-files` names.

    Only a distribution itself has that package.
    """
    return {(_uri(uri), suite) for uri, suite in _ORIGIN.findall(policy)}


def component_sources(
    files: Mapping[str, str], own: set[tuple[str, str]], components: Sequence[str]
) -> dict[str, str]:
    """Entries that enable `components` wherever a file enables `main` of an own archive.

    `files` maps the names of apt's lists to their texts. Returns the texts by kind, `list` (one
    line an entry) and `sources` (deb822), a kind without entries left out.

    What an entry enables already is not enabled again.

    Raises ValueError where no entry of the distribution's archive is found.
    """
    entries: dict[str, list[str]] = {"list": [], "sources": []}
    for name, text in files.items():
        if name.endswith(".sources"):
            entries["sources"] += _stanzas(text, own, components)
        elif name.endswith(".list"):
            entries["list"] += _lines(text, own, components)
    if not entries["list"] and not entries["sources"]:
        raise ValueError("no entry of apt's lists enables the archive that base-files comes from")
    return {
        kind: "\n".join(text for text in dict.fromkeys(found) if text)
        for kind, found in entries.items()
        if any(found)
    }


def _missing(components: Sequence[str], enabled: str) -> str:
    return " ".join(name for name in components if name not in enabled.split())


def _uri(text: str) -> str:
    """A URI as it is compared: apt shows `file:/x` for `file:///x`, and a slash more or less."""
    return re.sub(r":/+(?=[^/])", ":/", text.rstrip("/")) if ":///" in text else text.rstrip("/")


def _lines(text: str, own: set[tuple[str, str]], components: Sequence[str]) -> list[str]:
    wanted = []
    for line in text.splitlines():
        found = _ONE_LINE.match(line.strip())
        if not found:
            continue
        options, uri, suite, enabled = found.groups()
        if (_uri(uri), suite) in own and "main" in enabled.split():
            missing = _missing(components, enabled)
            wanted.append(f"deb {options or ''}{uri} {suite} {missing}\n" if missing else "")
    return wanted


def _stanzas(text: str, own: set[tuple[str, str]], components: Sequence[str]) -> list[str]:
    wanted = []
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", uncommented):
        fields = {name.lower(): value for name, value in _FIELD.findall(stanza)}
        suites = fields.get("suites", "").split()
        uris = fields.get("uris", "").split()
        if (
            "deb" not in fields.get("types", "").split()
            or fields.get("enabled", "yes").strip().lower() in ("no", "false", "0")
            or "main" not in fields.get("components", "").split()
            or not any((_uri(uri), suite) in own for uri in uris for suite in suites)
        ):
            continue
        missing = _missing(components, fields["components"])
        fields |= {"types": "deb", "components": missing}
        entry = "".join(f"{name.title()}: {value}\n" for name, value in fields.items())
        wanted.append(entry if missing else "")
    return wanted
