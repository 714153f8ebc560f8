"""From a template's text to its tree.

What Go's text/template refuses is refused here, in its words; beyond that complex numbers and the
function `call`, because no value of a conversation is either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..go_text import unquote, unquote_char
from .errors import TemplateError
from .formatting import check_pattern
from .functions import FUNCTIONS
from .lexer import Kind, Token, tokens_of
from .nodes import (
    Action,
    Block,
    Branch,
    Break,
    Call,
    Chain,
    Command,
    Continue,
    Dot,
    Field,
    Identifier,
    If,
    Literal,
    Nil,
    Node,
    Operand,
    Pipe,
    Range,
    Text,
    Tree,
    Variable,
    With,
)
from .numbers import parse_number

LONGEST = 1 << 20
DEEPEST = 60

_OPERANDS = frozenset(
    [
        Kind.BOOL,
        Kind.CHAR_CONSTANT,
        Kind.COMPLEX,
        Kind.DOT,
        Kind.FIELD,
        Kind.IDENTIFIER,
        Kind.NUMBER,
        Kind.NIL,
        Kind.RAW_STRING,
        Kind.STRING,
        Kind.VARIABLE,
        Kind.LEFT_PAREN,
    ]
)
_BRANCHES = {Kind.IF: "if", Kind.WITH: "with", Kind.RANGE: "range"}


class _Parser:
    def __init__(self, source: str) -> None:
        self.tokens = tokens_of(source)
        self.at = 0
        self.furthest = 0
        self.variables = ["$"]
        self.ranges = 0
        self.depth = 0
        self.action_line = 0
        self.defined: dict[str, Block] = {}

    # tokens

    def peek(self) -> Token:
        at = min(self.at, len(self.tokens) - 1)
        self.furthest = max(self.furthest, at)
        return self.tokens[at]

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def skip_space(self) -> None:
        while self.peek().kind is Kind.SPACE:
            self.at += 1

    def peek_word(self) -> Token:
        self.skip_space()
        return self.peek()

    def next_word(self) -> Token:
        self.skip_space()
        return self.next()

    def error(self, message: str) -> TemplateError:
        return TemplateError(f"template: :{self.tokens[self.furthest].line}: {message}")

    def unexpected(self, token: Token, context: str) -> TemplateError:
        if token.kind is not Kind.ERROR:
            return self.error(f"unexpected {token} in {context}")
        where = ""
        if self.action_line not in {0, token.line}:
            where = f" in action started at :{self.action_line}"
            if token.text.endswith(" action"):
                where = where.removeprefix(" in action")
        return self.error(f"{token}{where}")

    def expect(self, kind: Kind, context: str) -> Token:
        token = self.next_word()
        if token.kind is not kind:
            raise self.unexpected(token, context)
        return token

    @contextmanager
    def deeper(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"nested deeper than {DEEPEST} levels, which is not supported")
        yield
        self.depth -= 1

    # what is outside of actions

    def tree(self, source: str) -> Tree:
        nodes: list[Node] = []
        while self.peek().kind is not Kind.EOF:
            if self.peek().kind is Kind.LEFT:
                start = self.at
                self.next()
                if self.next_word().kind is Kind.DEFINE:
                    self.definition()
                    continue
                self.at = start
            node = self.text_or_action()
            if isinstance(node, Kind):
                raise self.error(f"unexpected {_shown(node)}")
            nodes.append(node)
        root = Block(tuple(nodes))
        self.define("", root)
        return Tree(source, self.defined.pop(""), self.defined)

    def define(self, name: str, block: Block) -> None:
        if name not in self.defined or _is_empty(self.defined[name]):
            self.defined[name] = block
        elif not _is_empty(block):
            raise self.error(f'template: multiple definition of template "{name}"')

    def definition(self) -> None:
        context = "define clause"
        name = self.template_name(context)
        self.expect(Kind.RIGHT, context)
        self.define(name, self.own_block(context))

    def own_block(self, context: str) -> Block:
        """A block that sees no variable and no loop of what is around it."""
        outside = self.variables, self.ranges, self.action_line
        self.variables, self.ranges, self.action_line = ["$"], 0, 0
        block, end = self.block()
        if end is not Kind.END:
            raise self.error(f"unexpected {_shown(end)} in {context}")
        self.variables, self.ranges, self.action_line = outside
        return block

    def block(self) -> tuple[Block, Kind]:
        """Nodes up to `{{end}}` or `{{else}}`, and which of them it was."""
        nodes: list[Node] = []
        while self.peek_word().kind is not Kind.EOF:
            node = self.text_or_action()
            if isinstance(node, Kind):
                return Block(tuple(nodes)), node
            nodes.append(node)
        raise self.error("unexpected EOF")

    def text_or_action(self) -> Node | Kind:
        token = self.next_word()
        if token.kind is Kind.TEXT:
            return Text(token.at, token.text)
        if token.kind is not Kind.LEFT:
            raise self.unexpected(token, "input")
        self.action_line = token.line
        node = self.action()
        self.action_line = 0
        return node

    # actions

    def action(self) -> Node | Kind:
        token = self.next_word()
        node: Node | Kind
        match token.kind:
            case Kind.IF | Kind.WITH | Kind.RANGE:
                node = self.branch(token)
            case Kind.ELSE:
                node = Kind.ELSE
                # `if` and `with` are left for `branch`.
                if self.peek_word().kind not in {Kind.IF, Kind.WITH}:
                    self.expect(Kind.RIGHT, "else")
            case Kind.END:
                node = Kind.END
                self.expect(Kind.RIGHT, "end")
            case Kind.BREAK | Kind.CONTINUE:
                node = self.jump(token)
            case Kind.TEMPLATE:
                node = self.call()
            case Kind.BLOCK:
                node = self.block_definition()
            case _:
                self.at -= 1
                start = self.peek().at
                node = Action(start, self.pipeline("command", Kind.RIGHT))
        return node

    def jump(self, token: Token) -> Node:
        name = f"{{{{{token.text}}}}}"
        self.expect(Kind.RIGHT, name)
        if not self.ranges:
            raise self.error(f"{name} outside {{{{range}}}}")
        return Break(token.at) if token.kind is Kind.BREAK else Continue(token.at)

    def branch(self, token: Token) -> Branch:
        context = _BRANCHES[token.kind]
        scope = len(self.variables)
        with self.deeper():
            pipe = self.pipeline(context, Kind.RIGHT)
            self.ranges += token.kind is Kind.RANGE
            body, end = self.block()
            self.ranges -= token.kind is Kind.RANGE
            orelse: Block | None = None
            if end is Kind.ELSE:
                orelse = self.orelse(token.kind)
        del self.variables[scope:]
        match token.kind:
            case Kind.IF:
                return If(pipe.at, pipe, body, orelse)
            case Kind.WITH:
                return With(pipe.at, pipe, body, orelse)
            case _:
                return Range(pipe.at, pipe, body, orelse)

    def orelse(self, kind: Kind) -> Block:
        if kind is not Kind.RANGE and self.peek().kind is kind:
            return Block((self.branch(self.next()),))
        block, end = self.block()
        if end is not Kind.END:
            raise self.error(f"expected end; found {_shown(end)}")
        return block

    def call(self) -> Call:
        context = "template clause"
        start = self.peek_word().at
        name = self.template_name(context)
        if self.peek_word().kind is Kind.RIGHT:
            self.next()
            return Call(start, name, None)
        return Call(start, name, self.pipeline(context, Kind.RIGHT))

    def block_definition(self) -> Call:
        context = "block clause"
        start = self.peek_word().at
        name = self.template_name(context)
        pipe = self.pipeline(context, Kind.RIGHT)
        with self.deeper():
            self.define(name, self.own_block(context))
        return Call(start, name, pipe)

    def template_name(self, context: str) -> str:
        token = self.next_word()
        if token.kind not in {Kind.STRING, Kind.RAW_STRING}:
            raise self.unexpected(token, context)
        return self.string(token)

    def string(self, token: Token) -> str:
        try:
            return unquote(token.text)
        except ValueError as error:
            raise self.error("invalid syntax") from error

    # pipelines

    def pipeline(self, context: str, end: Kind) -> Pipe:
        start = self.peek_word().at
        variables, assigns = self.declarations(context)
        commands: list[Command] = []
        while (token := self.next_word()).kind is not end:
            if token.kind not in _OPERANDS:
                raise self.unexpected(token, context)
            self.at -= 1
            commands.append(self.command())
        if not commands:
            raise self.error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], 2):
            if isinstance(command.args[0], Literal | Dot | Nil):
                raise self.error(f"non executable command in pipeline stage {stage}")
        return Pipe(start, tuple(variables), assigns, tuple(commands))

    def declarations(self, context: str) -> tuple[list[str], bool]:
        names: list[str] = []
        while (token := self.peek_word()).kind is Kind.VARIABLE:
            start = self.at
            self.next()
            after = self.peek_word()
            if after.kind in {Kind.ASSIGN, Kind.DECLARE}:
                self.next()
                names.append(token.text)
                self.variables.append(token.text)
                return names, after.kind is Kind.ASSIGN
            if after.kind is not Kind.CHAR or after.text != ",":
                self.at = start
                break
            self.next()
            names.append(token.text)
            self.variables.append(token.text)
            if context != "range" or len(names) == 2:
                raise self.error(f"too many declarations in {context}")
            if self.peek_word().kind not in {Kind.VARIABLE, Kind.RIGHT, Kind.RIGHT_PAREN}:
                raise self.error("range can only initialize variables")
        return names, False

    def command(self) -> Command:
        start = self.peek_word().at
        args: list[Operand] = []
        while True:
            self.skip_space()
            operand = self.operand()
            if operand is not None:
                args.append(operand)
            token = self.next()
            if token.kind is Kind.SPACE:
                continue
            if token.kind in {Kind.RIGHT, Kind.RIGHT_PAREN}:
                self.at -= 1
            elif token.kind is not Kind.PIPE:
                raise self.unexpected(token, "operand")
            break
        if not args:
            raise self.error("empty command")
        self.check_format(args)
        return Command(start, tuple(args))

    def check_format(self, args: list[Operand]) -> None:
        """What `printf` cannot do is said before it has to."""
        match args:
            case [Identifier(_, "printf"), Literal(_, str(pattern)), *_]:
                try:
                    check_pattern(pattern)
                except ValueError as error:
                    raise self.error(f"printf: {error}") from error

    def operand(self) -> Operand | None:
        node = self.term()
        if node is None or self.peek().kind is not Kind.FIELD:
            return node
        start = self.peek().at
        names: list[str] = []
        while self.peek().kind is Kind.FIELD:
            names.append(self.next().text[1:])
        match node:
            case Field(_, first):
                return Field(start, (*first, *names))
            case Variable(_, first):
                return Variable(start, (*first, *names))
            case Literal() | Nil() | Dot():
                raise self.error(f'unexpected . after term "{node}"')
            case _:
                return Chain(start, node, tuple(names))

    def term(self) -> Operand | None:
        if self.peek_word().kind not in _OPERANDS:
            return None
        token = self.next()
        node: Operand
        match token.kind:
            case Kind.IDENTIFIER:
                node = self.identifier(token)
            case Kind.DOT:
                node = Dot(token.at)
            case Kind.NIL:
                node = Nil(token.at)
            case Kind.VARIABLE:
                if token.text not in self.variables:
                    raise self.error(f'undefined variable "{token.text}"')
                node = Variable(token.at, (token.text,))
            case Kind.FIELD:
                node = Field(token.at, (token.text[1:],))
            case Kind.LEFT_PAREN:
                with self.deeper():
                    node = self.pipeline("parenthesized pipeline", Kind.RIGHT_PAREN)
            case Kind.STRING | Kind.RAW_STRING:
                node = Literal(token.at, self.string(token), token.text)
            case Kind.BOOL:
                node = Literal(token.at, token.text == "true", token.text)
            case _:
                node = Literal(token.at, self.number(token), token.text)
        return node

    def identifier(self, token: Token) -> Identifier:
        if token.text == "call":
            raise self.error('function "call" is not supported: no value is a function')
        if token.text not in FUNCTIONS:
            raise self.error(f'function "{token.text}" not defined')
        return Identifier(token.at, token.text)

    def number(self, token: Token) -> int | float:
        try:
            if token.kind is Kind.CHAR_CONSTANT:
                return unquote_char(token.text)
            return parse_number(token.text)
        except ValueError as error:
            message = str(error)
            if token.kind is Kind.CHAR_CONSTANT:
                message = f"malformed character constant: {token.text}"
            raise self.error(message) from error


def _shown(end: Kind) -> str:
    return f"{{{{{end.name.lower()}}}}}"


def _is_empty(block: Block) -> bool:
    return all(isinstance(node, Text) and not node.text.strip() for node in block.nodes)


def parse(source: str) -> Tree:
    """The tree of a template. TemplateError: it is none, or is beyond what is supported."""
    if len(source) > LONGEST:
        raise TemplateError(f"template: :1: longer than {LONGEST} characters")
    return _Parser(source).tree(source)
