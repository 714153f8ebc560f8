"""Tool calls out of a model's text while it comes, as Ollama's parser for Go templates does it."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from ..engines.pieces import ToolCall
from ..go_template.nodes import Action, Block, Call, Field, If, Node, Range, Text, Tree, With
from .thinking import overlap

_BARE = ("{", "[")
_NAME_KEYS = ("name", "tool_name", "function", "tool")
_ARGUMENT_KEYS = ("arguments", "parameters")
_STRUCTURE = re.compile(r'["\\{}\[\]]')
_STRING_END = re.compile(r'["\\]')


def infer_tag(tree: Tree) -> str:
    """What the template writes in front of a call's JSON, "{" where that is nothing.

    It is the first text inside of the first `if` that asks for `.ToolCalls`.
    """
    branch = _tool_calls_branch(tree.root)
    text = None if branch is None else _first_text(branch.body)
    tag = "" if text is None else text.replace("\r\n", "\n").partition("{")[0].strip()
    return tag or "{"


def first_token(tag: str) -> str:
    """What of a tag may be a token of its own: of `[TOOL_CALLS][` the first part; "" for "{"."""
    closing = {"[": "]", "<": ">"}.get(tag[:1])
    if closing and closing in tag:
        return tag[: tag.index(closing) + 1]
    return "" if tag in _BARE else tag


def _tool_calls_branch(block: Block) -> If | None:
    for node in block.nodes:
        if not isinstance(node, If | With | Range):
            continue
        if isinstance(node, If) and any(
            isinstance(arg, Field) and "ToolCalls" in arg.names
            for command in node.pipe.commands
            for arg in command.args
        ):
            return node
        for inner in (node.body, node.orelse):
            found = None if inner is None else _tool_calls_branch(inner)
            if found is not None:
                return found
    return None


def _first_text(block: Block) -> str | None:
    """The first text before any value is written."""
    for node in block.nodes:
        if isinstance(node, Text) and node.text.strip():
            return node.text
        if isinstance(node, If | With | Range):
            return _first_text_in(node)
        if isinstance(node, Action | Call):
            return None
    return None


def _first_text_in(node: Node) -> str | None:
    if not isinstance(node, If | With | Range):
        return None
    text = _first_text(node.body)
    return _first_text(node.orelse) if text is None and node.orelse is not None else text


class _State(enum.Enum):
    TEXT = enum.auto()
    CALLING = enum.auto()
    DONE = enum.auto()


class ToolParser:
    """Takes text as it comes, gives back what of it is text, and the calls.

    Text up to `tag` is text. From there on the parser looks for JSON objects: one that names one
    of the tools, or comes after such a name, is a call of it. A call of anything else is text.
    """

    def __init__(self, tag: str, tools: Iterable[Mapping[str, Any]]) -> None:
        """`tools` as in a request: {type, function: {name, …}}."""
        self._tag = tag
        functions = (tool.get("function") for tool in tools)
        names = dict.fromkeys(f.get("name") for f in functions if isinstance(f, Mapping))
        self._names = [name for name in names if isinstance(name, str) and name]
        self._longest_name = max(map(len, self._names), default=0)
        # So much of what is held has no name in it.
        self._nameless = 0
        self._state = _State.TEXT
        self._held = ""
        self._calls = 0
        self._objects = _ObjectFinder()

    def add(self, text: str) -> tuple[tuple[ToolCall, ...], str]:
        """The calls and the text in `text`, with what was held back before."""
        if self._state is _State.DONE:
            return (), text
        self._held += text
        parts: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if self._state is _State.TEXT:
                parts.append(self._before_tag())
            if self._state is not _State.CALLING or not self._next_object(parts, calls):
                return tuple(calls), "".join(parts)

    def rest(self) -> str:
        """What was held back: the text ended. What follows a last call is dropped, as in Ollama."""
        held, self._held = self._held, ""
        if not self._calls or self._state is not _State.CALLING:
            return held
        at = held.find(self._tag)
        return held[at:] if at >= 0 and self._tag not in _BARE else ""

    def _before_tag(self) -> str:
        at = self._held.find(self._tag)
        found = at >= 0
        if not found:
            at = len(self._held) - overlap(self._held, self._tag)
        text, self._held = self._held[:at], self._held[at:]
        if self._tag in _BARE and text.strip():
            # Without a tag an answer that starts with anything else has no calls.
            text, self._held = text + self._held, ""
            self._state = _State.DONE
        elif found:
            self._state = _State.CALLING
            self._objects = _ObjectFinder(in_array=self._tag == "[")
        return text

    def _next_object(self, parts: list[str], calls: list[ToolCall]) -> bool:
        """Takes the next object out of what is held; False where none is complete."""
        found = self._objects.find(self._held)
        if found is None:
            if self._tag == "[" and not self._calls and self._objects.array_closed:
                self._give_up(parts)
            return False
        start, end = found
        call = self._call(start, end)
        if call is not None:
            calls.append(call)
            self._calls += 1
            self._drop(end)
            self._objects = _ObjectFinder()
            return True
        if self._tag in _BARE:
            self._give_up(parts)
            return False
        if not self._is_foreign(start, end):
            return True
        # The call of something that is no tool: text, with the tag before it.
        at = max(self._held.rfind(self._tag, 0, start), 0)
        parts.append(self._held[at if self._calls else 0 : end])
        self._drop(end)
        self._state = _State.TEXT
        return True

    def _drop(self, end: int) -> None:
        self._held = self._held[end:]
        self._nameless = 0

    def _give_up(self, parts: list[str]) -> None:
        parts.append(self._held)
        self._held = ""
        self._state = _State.DONE

    def _is_foreign(self, start: int, end: int) -> bool:
        value = _decode(self._held[start:end])
        return value is not None and _named(value) is not None

    def _call(self, start: int, end: int) -> ToolCall | None:
        value = _decode(self._held[start:end])
        if value is None:
            return None
        named = _named(value)
        if named is not None:
            name, arguments = named
            return ToolCall(name, arguments) if name in self._names else None
        for name in self._names:
            given = _arguments(value.get(name))
            if given is not None:
                return ToolCall(name, given)
        outside = self._name_before(start)
        if outside is None and len(value) == 1 and value.get("name") in self._names:
            return ToolCall(value["name"], {})
        return None if outside is None else ToolCall(outside, value)

    def _name_before(self, end: int) -> str | None:
        start = max(self._nameless - self._longest_name, 0)
        places = [(self._held.find(name, start, end), name) for name in self._names]
        places = [place for place in places if place[0] >= 0]
        if not places:
            self._nameless = end
            return None
        return min(places, key=lambda place: (place[0], -len(place[1])))[1]


class _ObjectFinder:
    """Finds complete JSON objects in a text that grows; looks at every character once.

    `in_array`: the text starts with one, and the objects have to be in it.
    """

    def __init__(self, *, in_array: bool = False) -> None:
        self._in_array = in_array
        self._at = 0
        self._depth = 0
        self._start = 0
        self._brackets = 0
        self._in_string = False
        self.array_closed = False

    def find(self, text: str) -> tuple[int, int] | None:
        """Where the next object starts and ends."""
        while match := (_STRING_END if self._in_string else _STRUCTURE).search(text, self._at):
            char = match[0]
            if char == "\\":
                if match.end() == len(text):
                    self._at = match.start()
                    return None
                self._at = match.end() + 1
                continue
            self._at = match.end()
            if self._structure(char):
                return self._start, self._at
            if self._in_array and self.array_closed:
                return None
        self._at = len(text)
        return None

    def _structure(self, char: str) -> bool:
        """Takes note of `char`; True where it ends an object."""
        if char == '"':
            # Outside of JSON a quotation mark is one.
            self._in_string = not self._in_string and (self._depth > 0 or self._brackets > 0)
        elif char == "{":
            if self._depth == 0:
                self._start = self._at - 1
            self._depth += 1
        elif char == "}":
            self._depth = max(self._depth - 1, -1)
            if self._depth == 0:
                return True
            self._depth = max(self._depth, 0)
        else:
            self._brackets = max(self._brackets + (1 if char == "[" else -1), 0)
            self.array_closed = char == "]" and self._brackets == 0
        return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _decode(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _arguments(value: Any) -> dict[str, Any] | None:
    """Arguments are an object, or one as text."""
    if isinstance(value, str):
        return _decode(value)
    return value if isinstance(value, dict) else None


def _named(value: Any, depth: int = 4) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments where the object, or one in it, tells both."""
    if isinstance(value, list):
        found = (_named(item, depth - 1) for item in value) if depth else iter(())
        return next((named for named in found if named is not None), None)
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is not None:
        given = [_arguments(value.get(key)) for key in _ARGUMENT_KEYS]
        arguments = next((item for item in given if item is not None), None)
        if arguments is not None:
            return name, arguments
    return _named(list(value.values()), depth)
