"""A TOML table read key by key, with everything that is wrong noted instead of raised."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Findings = list[str]

_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "an array",
    dict: "a table",
}


def found(value: Any) -> str:
    """How a value is shown in a finding: short, whatever it is."""
    shown = repr(value) if isinstance(value, str) else str(value).lower()
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


class Table:
    """One table at `where`; `folder` is what relative paths begin at.

    Each getter takes the key out; `close()` notes the keys that nobody asked for.
    """

    def __init__(self, values: Any, where: str, folder: Path, findings: Findings) -> None:
        self.where = where
        self.folder = folder
        self.findings = findings
        self._known: set[str] = set()
        if isinstance(values, dict):
            self._values: dict[str, Any] = values
        else:
            self._values = {}
            findings.append(f"{where}: found {found(values)}, needed a table; write [{where}]")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def key(self, key: str) -> str:
        """The whole name of `key`, for a finding."""
        return f"{self.where}.{key}" if self.where else key

    def note(self, key: str, problem: str) -> None:
        """Something is wrong with the value of `key`."""
        self.findings.append(f"{self.key(key)}: {problem}")

    def text(self, key: str, default: str = "") -> str:
        """A string that is not empty."""
        return self.optional_text(key) or default

    def optional_text(self, key: str) -> str | None:
        """A string that is not empty; None where there is no such key."""
        value = self._take(key, str)
        if value == "":
            self.note(key, 'found "", needed a text; leave the key out where there is none')
            return None
        return value if isinstance(value, str) else None

    def any_text(self, key: str) -> str | None:
        """A string, which may be empty."""
        value = self._take(key, str)
        return value if isinstance(value, str) else None

    def required_text(self, key: str) -> str:
        """As text(); a missing one is noted."""
        if key not in self._values:
            self._known.add(key)
            self.note(key, "missing; it needs a value")
            return ""
        return self.text(key)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false"""
        value = self._take(key, bool)
        return value if isinstance(value, bool) else default

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number of `least` to `most`."""
        value = self._take(key, int)
        if not isinstance(value, int):
            return default
        if not least <= value <= most:
            self.note(key, f"found {value}, needed {least} to {most}")
            return default
        return value

    def integers(self, key: str, least: int, most: int) -> dict[str, int]:
        """A table of whole numbers of `least` to `most`, whatever their names are."""
        table = self.table(key)
        if table is None:
            return {}
        return {name: table.integer(name, least, least, most) for name in table}

    def seconds(self, key: str, default: float) -> float:
        """A time above 0 in seconds."""
        value = self._take(key, float)
        if not isinstance(value, int | float):
            return default
        if not 0 < value <= 7 * 86400:
            self.note(key, f"found {value}, needed seconds: above 0, and at most a week")
            return default
        return float(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """An array of strings, none of them empty or twice; None where there is no such key."""
        value = self._take(key, list)
        if not isinstance(value, list):
            return None
        for item in value:
            if not isinstance(item, str) or not item:
                self.note(key, f"found {found(item)} in the array, needed texts in quotes")
                return None
        for item in sorted({item for item in value if value.count(item) > 1}):
            self.note(key, f"found {found(item)} twice; name it once")
        return tuple(dict.fromkeys(value))

    def path(self, key: str) -> Path | None:
        """A path, absolute or from the file's folder; None where there is no such key."""
        value = self.optional_text(key)
        return None if value is None else self.folder / value

    def paths(self, key: str) -> tuple[Path, ...]:
        """An array of paths."""
        return tuple(self.folder / value for value in self.texts(key) or ())

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of `choices`, the first by default."""
        value = self.text(key, choices[0])
        if value not in choices:
            self.note(key, f"found {found(value)}, needed one of: {', '.join(choices)}")
            return choices[0]
        return value

    def value(self, key: str) -> Any:
        """Whatever is there, or None."""
        self._known.add(key)
        return self._values.get(key)

    def table(self, key: str) -> Table | None:
        """A table in this one; None where there is no such key."""
        value = self.value(key)
        return None if value is None else Table(value, self.key(key), self.folder, self.findings)

    def named_tables(self, key: str) -> dict[str, Table]:
        """The tables `[key.NAME]`."""
        value = self._take(key, dict)
        if not isinstance(value, dict):
            return {}
        return {
            name: Table(item, f'{self.key(key)}."{name}"', self.folder, self.findings)
            for name, item in value.items()
        }

    def tables(self, key: str) -> list[Table]:
        """The tables `[[key]]`."""
        value = self._take(key, list)
        if not isinstance(value, list):
            return []
        return [
            Table(item, f"{self.key(key)}[{number}]", self.folder, self.findings)
            for number, item in enumerate(value)
        ]

    def close(self) -> None:
        """Note the keys that mean nothing here."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"known: {self._names()}"
                self.note(key, f"no such key; {hint}")

    def _names(self) -> str:
        return ", ".join(sorted(self._known))

    def _take(self, key: str, kind: type) -> Any:
        value = self.value(key)
        if value is None:
            return None
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            self.note(key, f"found {found(value)}, needed {_KINDS[kind]}")
            return None
        return value
