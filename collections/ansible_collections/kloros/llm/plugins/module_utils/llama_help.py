"""What a llama-server says of itself: its `--help`, option by option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_REMOVED = "has been removed"
_FLAG = re.compile(r"(--?[A-Za-z][^\s,]*)(,\s+)?")
VARIABLE = re.compile(r"\(env: ([A-Z][A-Z0-9_]*)\)")
_CHOICE_HINT = re.compile(
    r"\{(\w+(?:,\w+)+)\}|\[(\w+(?:\|\w+)+)\]|<(\w+(?:\|\w+)+)>|([a-z0-9-]+(?:,[a-z0-9-]+)+)"
)
_ALLOWED = re.compile(r"allowed values: ([^\n(]+)")
_BULLET = re.compile(r"^ *- ([a-z][a-z0-9+-]*)(?: \(default\))?: ", re.MULTILINE)
_DEFAULT = re.compile(r"\(default: ([a-z][a-z0-9+-]*)\)")


@dataclass(frozen=True)
class ServerOption:
    """One option of a llama-server, as its `--help` states it.

    `flags` are all spellings, negated ones included; `env` its variables, those of the negated
    form (`LLAMA_ARG_NO_…`) included; `value_count` how many values a flag takes (0: a switch);
    `values` the allowed ones, () where any is; `several`: the value is a list with commas;
    `removed`: the binary knows the option only to refuse it.
    """

    flags: tuple[str, ...]
    env: tuple[str, ...]
    value_count: int
    values: tuple[str, ...]
    several: bool
    removed: bool
    description: str

    @property
    def takes_value(self) -> bool:
        """Whether the flag is followed by a value."""
        return self.value_count > 0


def parse_help(text: str) -> list[ServerOption]:
    """Every option that `llama-server --help` lists, in its order.

    An option is a line that starts with a dash: its flags, then what stands for its value, then
    (after two blanks or more, or on the indented lines that follow) its description.
    """
    return [_parse_option(header, description) for header, description in _blocks(text)]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each option's own line and the indented lines below it."""
    header: str | None = None
    below: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            below.append(line)
            continue
        if header is not None:
            yield header, "\n".join(below)
        header, below = (line if _FLAG.match(line) else None), []
    if header is not None:
        yield header, "\n".join(below)


def _parse_option(header: str, below: str) -> ServerOption:
    flags: list[str] = []
    position = 0
    while match := _FLAG.match(header, position):
        flags.append(match[1])
        position = match.end()
        if not match[2]:
            break
    rest = header[position:]
    hint, _, beside = rest[1:].partition("  ") if re.match(r" \S", rest) else ("", "", rest)
    description = "\n".join(
        re.sub(r"^ {40}", "", line).rstrip() for line in [beside.strip(), *below.splitlines()]
    ).strip()
    variables = VARIABLE.findall(description)
    positive = [flag for flag in flags if not re.match(r"--?no-", flag)]
    if positive and len(positive) < len(flags):
        variables += [
            variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
            for variable in variables
            if variable.startswith("LLAMA_ARG_")
        ]
    # Blanks inside <…> belong to one value: "<tensor name pattern>=<buffer type>".
    value_count = len(re.sub(r"<[^>]*>", "<>", hint).split())
    return ServerOption(
        flags=tuple(flags),
        env=tuple(variables),
        value_count=value_count,
        values=_allowed_values(hint, description) if value_count == 1 else (),
        several="comma-separated" in description,
        removed=_REMOVED in description,
        description=description,
    )


def _allowed_values(hint: str, description: str) -> tuple[str, ...]:
    if match := _CHOICE_HINT.fullmatch(hint):
        return tuple(re.split(r"[,|]", next(group for group in match.groups() if group)))
    if match := _ALLOWED.search(description):
        return tuple(match[1].strip().split(", "))
    values = _BULLET.findall(description)
    default = _DEFAULT.search(description)
    if values and default and default[1] not in values:
        # The list of --reasoning-format leaves its default out.
        values.append(default[1])
    return tuple(values)
