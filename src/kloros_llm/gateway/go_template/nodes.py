"""What a template is made of. `at` is an index into its text, lines start at 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from ..go_text import quote


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`"""

    at: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A.B`; the first name has its `$`."""

    at: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.names)


@dataclass(frozen=True, slots=True)
class Identifier:
    """The name of a function."""

    at: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`"""

    at: int

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Nil:
    """`nil`"""

    at: int

    def __str__(self) -> str:
        return "nil"


@dataclass(frozen=True, slots=True)
class Literal:
    """A boolean, a number or a string, and how it is written."""

    at: int
    value: bool | int | float | str
    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Chain:
    """`(…).A.B`, or a function's result and fields of it."""

    at: int
    node: Operand
    names: tuple[str, ...]

    def __str__(self) -> str:
        node = f"({self.node})" if isinstance(self.node, Pipe) else str(self.node)
        return node + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Command:
    """An operand, or a function and its arguments."""

    at: int
    args: tuple[Operand, ...]

    def __str__(self) -> str:
        return " ".join(f"({a})" if isinstance(a, Pipe) else str(a) for a in self.args)


@dataclass(frozen=True, slots=True)
class Pipe:
    """`$a, $b := command | command`; `assigns` where the variables exist already (`=`)."""

    at: int
    variables: tuple[str, ...]
    assigns: bool
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        names = ", ".join(self.variables) + (" = " if self.assigns else " := ")
        return (names if self.variables else "") + " | ".join(map(str, self.commands))


Operand: TypeAlias = Field | Variable | Identifier | Dot | Nil | Literal | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    """What is written as it stands."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ pipeline }}`"""

    at: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class If:
    """`{{ if }} … {{ else }} … {{ end }}`; `orelse` is None where there is no `else`."""

    at: int
    pipe: Pipe
    body: Block
    orelse: Block | None


@dataclass(frozen=True, slots=True)
class With:
    """As `If`, and the dot is the pipeline's value."""

    at: int
    pipe: Pipe
    body: Block
    orelse: Block | None


@dataclass(frozen=True, slots=True)
class Range:
    """`orelse` is for no element."""

    at: int
    pipe: Pipe
    body: Block
    orelse: Block | None


@dataclass(frozen=True, slots=True)
class Call:
    """`{{ template "name" pipeline }}`"""

    at: int
    name: str
    pipe: Pipe | None

    def __str__(self) -> str:
        return f"{{{{template {quote(self.name)}{f' {self.pipe}' if self.pipe else ''}}}}}"


@dataclass(frozen=True, slots=True)
class Break:
    """`{{ break }}`"""

    at: int


@dataclass(frozen=True, slots=True)
class Continue:
    """`{{ continue }}`"""

    at: int


Branch: TypeAlias = If | With | Range
Node: TypeAlias = Text | Action | If | With | Range | Call | Break | Continue


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes one after another."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """A template: its text, what it does, and those that it defines, by name."""

    source: str
    root: Block
    defined: dict[str, Block]


Part: TypeAlias = Block | Node | Command | Operand


def parts_of(part: Part) -> Iterator[Part]:
    """What `part` is made of, in the order of the text."""
    match part:
        case Block(nodes):
            yield from nodes
        case If(_, pipe, body, orelse) | With(_, pipe, body, orelse) | Range(_, pipe, body, orelse):
            yield pipe
            yield body
            if orelse is not None:
                yield orelse
        case Action(_, pipe):
            yield pipe
        case Call(_, _, called) if called is not None:
            yield called
        case Pipe():
            yield from part.commands
        case Command(_, args):
            yield from args


def visit(
    part: Part, see: Callable[[Part, list[Part]], None], above: list[Part] | None = None
) -> None:
    """Calls `see` with `part` and everything in it, and with what each is in, outermost first."""
    path = [] if above is None else above
    see(part, path)
    path.append(part)
    for inner in parts_of(part):
        visit(inner, see, path)
    path.pop()
