"""From a conversation to the text that a model continues, by a Go template, as Ollama does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from ..go_template import Budget, TemplateError, Tree, execute
from ..go_template import parse as parse_tree
from ..go_template.nodes import (
    Action,
    Block,
    Call,
    Command,
    Field,
    If,
    Node,
    Operand,
    Part,
    Pipe,
    Range,
    Variable,
    With,
    parts_of,
)
from ..go_template.values import Value
from ..ollama_api.api_tools import Message
from .prompt_values import message_value, tools_value
from .thinking import infer_tags
from .tool_calls import infer_tag

Think = bool | str | None

MOST_STEPS = Budget().steps
"""What a template may take, whatever it is."""

IMAGE_TOKENS = 768
"""What Ollama counts for an image when it looks whether a conversation fits."""


@dataclass(frozen=True)
class Template:
    """A template that was read once. `variables` are the names in it, in lower case."""

    source: str
    tree: Tree
    variables: frozenset[str]

    @cached_property
    def thinking_tags(self) -> tuple[str, str] | None:
        """What stands around thinking; None where the template renders none."""
        return infer_tags(self.tree)

    @cached_property
    def tool_tag(self) -> str:
        """What a tool call starts with."""
        return infer_tag(self.tree)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Which of tools, insert and thinking a model has through this template."""
        found = {
            "tools": "tools" in self.variables,
            "insert": "suffix" in self.variables,
            "thinking": self.thinking_tags is not None,
        }
        return tuple(name for name, has in found.items() if has)

    @cached_property
    def _before_response(self) -> Tree:
        return Tree(self.tree.source, _cut(self.tree.root), self.tree.defined)

    def render(
        self,
        messages: Sequence[Message] = (),
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        system: str = "",
        prompt: str = "",
        suffix: str = "",
        response: str = "",
        think: Think = None,
        steps: int = MOST_STEPS,
    ) -> str:
        """The prompt. TemplateError: the template cannot be rendered with these, or not in so
        many `steps` (see Budget).

        With both `prompt` and `suffix` it is the one for text in between, and nothing else counts.
        Otherwise `system` goes first where no message is a system one, and `prompt` and `response`
        are a last message of the user and one of the assistant. `think` None: nobody said.
        """
        flags: dict[str, Value] = {
            "Think": think if isinstance(think, bool) else bool(think),
            "ThinkLevel": think if isinstance(think, str) else "medium" if think else "",
            "IsThinkSet": think is not None,
        }
        budget = Budget(steps=steps)
        try:
            if prompt and suffix:
                data = {"Prompt": prompt, "Suffix": suffix, "Response": "", **flags}
                return execute(self.tree, data, budget)
            said = list(messages)
            if system and not any(message.role == "system" for message in said):
                said.insert(0, Message("system", system))
            said += [Message("user", prompt)] if prompt else []
            said += [Message("assistant", response)] if response else []
            if "messages" in self.variables:
                return self._render_messages(collate(said), tools, flags, budget)
            return self._render_turns(collate(said), flags, budget)
        except RecursionError as error:
            raise TemplateError("template: : values are nested too deep") from error

    def _render_messages(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        flags: Mapping[str, Value],
        budget: Budget,
    ) -> str:
        system = "\n\n".join(m.content for m in messages if m.role == "system")
        data = {
            "System": system,
            "Messages": tuple(message_value(message) for message in messages),
            "Tools": tools_value(tools),
            "Response": "",
            **flags,
        }
        return execute(self.tree, data, budget)

    def _render_turns(
        self, messages: Sequence[Message], flags: Mapping[str, Value], budget: Budget
    ) -> str:
        """For templates of one turn: once a turn, and the last one ends at the response."""
        parts: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}

        def end_turn() -> None:
            parts.append(execute(self.tree, {**turn, **flags}, budget))
            turn.update(System="", Prompt="", Response="")

        for message in messages:
            match message.role:
                case "system":
                    if turn["Prompt"] or turn["Response"]:
                        end_turn()
                    turn["System"] = message.content
                case "user":
                    if turn["Response"]:
                        end_turn()
                    turn["Prompt"] = message.content
                case "assistant":
                    turn["Response"] = message.content
        parts.append(execute(self._before_response, {**turn, **flags}, budget))
        return "".join(parts)


# Several times the longest of Ollama's library. As a tree it takes a hundred times as much.
_MOST_CHARACTERS = 32 << 10


@lru_cache(maxsize=32)
def parse(source: str) -> Template:
    """The template of `source`. TemplateError: it cannot be read."""
    if len(source) > _MOST_CHARACTERS:
        raise TemplateError(
            f"template: :1: longer than {_MOST_CHARACTERS} characters, which no template of a "
            "model needs"
        )
    tree = parse_tree(source)
    names: set[str] = set()
    for block in (tree.root, *tree.defined.values()):
        _names(block, names)
    variables = frozenset(name.lower() for name in names)
    if not variables & {"messages", "response"}:
        end = len(source)
        field = Field(end, ("Response",))
        pipe = Pipe(end, (), False, (Command(end, (field,)),))
        root = Block((*tree.root.nodes, Action(end, pipe)))
        tree = Tree(tree.source, root, tree.defined)
    return Template(source, tree, variables)


def _names(part: Part, names: set[str]) -> None:
    """Collects the names of fields and variables in `part`."""
    if isinstance(part, Field | Variable):
        names.update(part.names)
    for inner in parts_of(part):
        _names(inner, names)


def collate(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of the same role as one message, but for the answers of tools."""
    collated: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        first, *others = group
        if role == "tool" or not others:
            collated += [first, *others]
        else:
            content = "\n\n".join(message.content for message in (first, *others))
            collated.append(replace(first, content=content))
    return collated


# Everything after the first `.Response` goes away.


def _cut(root: Block) -> Block:
    return _Cut().block(root)


class _Cut:
    def __init__(self) -> None:
        self.found = False

    def block(self, block: Block) -> Block:
        nodes: list[Node] = []
        for node in block.nodes:
            if self.found:
                break
            kept = self.node(node)
            if kept is not None:
                nodes.append(kept)
        return Block(tuple(nodes))

    def node(self, node: Node) -> Node | None:
        match node:
            case Action(at, pipe):
                kept = self.pipe(pipe)
                return None if kept is None else Action(at, kept)
            case If() | With() | Range():
                body = self.block(node.body)
                orelse = None if node.orelse is None else self.block(node.orelse)
                return type(node)(node.at, node.pipe, body, orelse)
            case Call():
                return node
        return node

    def pipe(self, pipe: Pipe) -> Pipe | None:
        commands: list[Command] = []
        for command in pipe.commands:
            args: list[Operand] = []
            for arg in command.args:
                kept = self.operand(arg)
                if kept is not None:
                    args.append(kept)
            if not args:
                return None
            commands.append(Command(command.at, tuple(args)))
        return Pipe(pipe.at, pipe.variables, pipe.assigns, tuple(commands))

    def operand(self, operand: Operand) -> Operand | None:
        if isinstance(operand, Field) and "Response" in operand.names:
            # Also a second one is kept, as Ollama keeps it.
            self.found = True
            return operand
        if self.found:
            return None
        return self.pipe(operand) if isinstance(operand, Pipe) else operand


# Conversations that are too long.


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, the images that its `[img-N]` stand for, and how many messages were left out."""

    text: str
    images: tuple[bytes, ...]
    dropped: int = 0


def with_images(messages: Sequence[Message]) -> tuple[list[Message], tuple[bytes, ...]]:
    """Messages with `[img-N]` for their images, at `[img]` or in front, and all images."""
    images: list[bytes] = []
    tagged: list[Message] = []
    for message in messages:
        content, tags = message.content, ""
        for image in message.images:
            tag = f"[img-{len(images)}]"
            images.append(image)
            if "[img]" in content:
                content = content.replace("[img]", tag, 1)
            else:
                tags += tag
        tagged.append(replace(message, content=tags + content) if message.images else message)
    return tagged, tuple(images)


def make_prompt(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    think: Think = None,
    steps: int = MOST_STEPS,
) -> Prompt:
    """The prompt of a whole conversation. TemplateError as `render`."""
    tagged, images = with_images(messages)
    return Prompt(template.render(tagged, tools, think=think, steps=steps), images)


async def fit_prompt(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    think: Think = None,
    budget_tokens: int,
    count: Callable[[str], Awaitable[int]],
) -> Prompt:
    """The prompt of as much of a conversation as `budget_tokens` hold.

    The oldest messages go first. System messages and the last message stay, and so does the call
    that a tool's answer belongs to, even where they do not fit. `count` is asked about
    log2(messages) times. TemplateError as `render`.
    """
    starts = _starts(messages) or [0]

    async def fits(start: int) -> bool:
        kept = _kept(messages, start)
        images = sum(len(message.images) for message in messages[start:])
        # Long ones, by their nature.
        text = await asyncio.to_thread(template.render, kept, tools, think=think)
        return await count(text) + images * IMAGE_TOKENS <= budget_tokens

    low, high = 0, len(starts) - 1
    if not await fits(starts[0]):
        # The shortest conversation need not be tried: there is nothing else.
        low = 1
        while low < high:
            middle = (low + high) // 2
            if await fits(starts[middle]):
                high = middle
            else:
                low = middle + 1
    start = starts[min(low, len(starts) - 1)]
    kept = _kept(messages, start)
    prompt = await asyncio.to_thread(make_prompt, template, kept, tools, think=think)
    return Prompt(prompt.text, prompt.images, len(messages) - len(kept))


def _kept(messages: Sequence[Message], start: int) -> list[Message]:
    """The messages from `start` on, behind the system messages before."""
    system = [message for message in messages[:start] if message.role == "system"]
    return [*system, *messages[start:]]


def _starts(messages: Sequence[Message]) -> list[int]:
    """Where a conversation may start so that the message at an index makes sense, for each.

    The answer of a tool needs the call before it.
    """
    starts: list[int] = []
    call: int | None = None
    for at, message in enumerate(messages):
        if message.role != "tool":
            call = at if message.role == "assistant" and message.tool_calls else None
        starts.append(at if call is None else call)
    return starts
