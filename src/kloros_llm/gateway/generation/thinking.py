"""Thinking and answer, told apart while they come, as Ollama does it."""

from __future__ import annotations

import enum

from ..go_template.nodes import Block, Field, Part, Range, Text, Tree, visit

# unicode.IsSpace; `str.strip` also takes the separators U+001C to U+001F.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACES += "\u2028\u2029\u202f\u205f\u3000"


def infer_tags(tree: Tree) -> tuple[str, str] | None:
    """What the template writes around `.Thinking` of a message; None where it writes it nowhere.

    The tags are the texts at both ends of the innermost block with `.Thinking` in it, inside of a
    loop over `.Messages`.
    """
    tags = ["", ""]

    def see(part: Part, above: list[Part]) -> None:
        if not isinstance(part, Field) or part.names[0] != "Thinking":
            return
        loop = next((p for p in reversed(above) if isinstance(p, Range)), None)
        block = next((p for p in reversed(above) if isinstance(p, Block)), None)
        if loop is None or block is None or not _uses(loop.pipe, "Messages"):
            return
        for place, end in enumerate((0, -1)):
            node = block.nodes[end]
            if isinstance(node, Text):
                tags[place] = node.text.strip(_SPACES)

    visit(tree.root, see)
    return (tags[0], tags[1]) if all(tags) else None


def _uses(part: Part, name: str) -> bool:
    found = False

    def see(inner: Part, _: list[Part]) -> None:
        nonlocal found
        found = found or (isinstance(inner, Field) and inner.names[0] == name)

    visit(part, see)
    return found


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the start of `tag`."""
    for count in range(min(len(text), len(tag)), 0, -1):
        if text.endswith(tag[:count]):
            return count
    return 0


class _State(enum.Enum):
    BEFORE = enum.auto()
    OPENED = enum.auto()
    THINKING = enum.auto()
    CLOSED = enum.auto()
    AFTER = enum.auto()


class ThinkingParser:
    """Takes text as it comes, gives back what of it is thinking, and what is the answer.

    Thinking counts only where the answer starts with it. Blanks around the tags go away; what may
    be the start of a tag is held back.
    """

    def __init__(self, opening: str, closing: str, *, prompt: str = "") -> None:
        """A `prompt` that ends with `opening` has the model think already."""
        self._opening = opening
        self._closing = closing
        self._held = ""
        opened = bool(opening) and prompt.strip(_SPACES).endswith(opening)
        self._state = _State.OPENED if opened else _State.BEFORE

    def add(self, text: str) -> tuple[str, str]:
        """Thinking and answer in `text`, with what was held back before."""
        self._held += text
        if self._state is _State.BEFORE:
            answer = self._before()
            if answer:
                return "", answer
        if self._state is _State.OPENED:
            self._held = self._held.lstrip(_SPACES)
            if self._held:
                self._state = _State.THINKING
        thinking = self._thinking() if self._state is _State.THINKING else ""
        answer = ""
        if self._state is _State.CLOSED:
            self._held = self._held.lstrip(_SPACES)
            if self._held:
                self._state = _State.AFTER
        if self._state is _State.AFTER:
            answer, self._held = self._held, ""
        return thinking, answer

    def _before(self) -> str:
        start = self._held.lstrip(_SPACES)
        if start.startswith(self._opening):
            self._held = start[len(self._opening) :]
            self._state = _State.OPENED
            return ""
        if self._opening.startswith(start):
            return ""
        answer, self._held = self._held, ""
        self._state = _State.AFTER
        return answer

    def _thinking(self) -> str:
        thinking, tag, rest = self._held.partition(self._closing)
        if tag:
            self._held = rest
            self._state = _State.CLOSED
            return thinking
        count = overlap(self._held, self._closing)
        thinking = self._held[: len(self._held) - count]
        self._held = self._held[len(thinking) :]
        return thinking

    def rest(self) -> tuple[str, str]:
        """What was held back: the text ended."""
        held, self._held = self._held, ""
        if self._state is _State.THINKING:
            return held, ""
        return "", held if self._state is _State.BEFORE else ""
