"""A tree and data to text, as Go's text/template executes it.

Ollama's option `missingkey=zero` holds: an unknown key is nil, an unknown field an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..go_text import to_bytes, well_formed
from .budget import Budget, BudgetError
from .errors import TemplateError
from .formatting import show, text_of
from .functions import FUNCTIONS, Function
from .nodes import (
    Action,
    Block,
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
from .values import (
    NIL,
    Struct,
    Value,
    element,
    is_list,
    is_true,
    key_order,
    settled,
    type_name,
)


class _BreakError(Exception):
    """`{{ break }}`"""


class _ContinueError(Exception):
    """`{{ continue }}`"""


class _Absent:
    """There is no value from the stage before."""


_ABSENT = _Absent()


class _Evaluator:
    def __init__(self, tree: Tree, data: Value, budget: Budget) -> None:
        self.tree = tree
        self.budget = budget
        self.output: list[str] = []
        self.variables: list[tuple[str, Value]] = [("$", data)]
        self.name = ""

    def error(self, node: Operand | Command | Call, message: str) -> TemplateError:
        before = self.tree.source[: node.at]
        line = before.count("\n") + 1
        column = len(to_bytes(before[before.rfind("\n") + 1 :]))
        return TemplateError(
            f'template: :{line}:{column}: executing "{self.name}" at <{node}>: {message}'
        )

    # what a template is made of

    def block(self, block: Block, dot: Value) -> None:
        for node in block.nodes:
            self.node(node, dot)

    def node(self, node: Node, dot: Value) -> None:
        self.budget.step()
        match node:
            case Text(_, text):
                self.write(text)
            case Action(_, pipe):
                value = self.pipe(pipe, dot)
                if not pipe.variables:
                    self.write_value(value)
            case If() | With():
                self.choice(node, dot)
            case Range():
                self.range(node, dot)
            case Call():
                self.call_template(node, dot)
            case Break():
                raise _BreakError
            case Continue():
                raise _ContinueError

    def write(self, text: str) -> None:
        self.budget.make(len(text))
        self.output.append(text)

    def write_value(self, value: Value) -> None:
        if isinstance(value, str):
            self.write(value)
            return
        text = "<no value>" if value is None else show(value)
        self.budget.format(len(text))
        self.output.append(text)

    def choice(self, node: If | With, dot: Value) -> None:
        mark = len(self.variables)
        value = self.pipe(node.pipe, dot)
        if is_true(value):
            self.inside(node.body, value if isinstance(node, With) else dot)
        elif node.orelse is not None:
            self.inside(node.orelse, dot)
        del self.variables[mark:]

    def inside(self, block: Block, dot: Value) -> None:
        self.budget.enter()
        self.block(block, dot)
        self.budget.leave()

    def range(self, node: Range, dot: Value) -> None:
        mark = len(self.variables)
        levels = self.budget.levels
        try:
            self.iterate(node, dot)
        except _BreakError:
            self.budget.levels = levels
        del self.variables[mark:]

    def iterate(self, node: Range, dot: Value) -> None:
        pairs = self.pairs(node, self.pipe(node.pipe, dot))
        found = False
        mark = len(self.variables)
        levels = self.budget.levels
        for index, value in pairs:
            found = True
            self.budget.step()
            self.assign_in_range(node.pipe, index, value)
            try:
                self.inside(node.body, value)
            except _ContinueError:
                self.budget.levels = levels
            del self.variables[mark:]
        if not found and node.orelse is not None:
            self.inside(node.orelse, dot)

    def pairs(self, node: Range, value: Value) -> Iterator[tuple[Value, Value]]:
        if value is None:
            return iter(())
        if isinstance(value, dict):
            self.budget.step(len(value))
            return ((key, element(value[key])) for key in key_order(value))
        if is_list(value):
            return ((at, element(item)) for at, item in enumerate(value))
        if isinstance(value, int) and not isinstance(value, bool):
            if len(node.pipe.variables) > 1:
                raise self.error(
                    node.pipe, f"can't use {value} to iterate over more than one variable"
                )
            return ((None, number) for number in range(value))
        raise self.error(node.pipe, f"range can't iterate over {show(value)}")

    def assign_in_range(self, pipe: Pipe, index: Value, value: Value) -> None:
        names = pipe.variables
        values = [index, value][-len(names) :] if names else []
        if pipe.assigns:
            for name, item in zip(names, values, strict=True):
                self.assign(pipe, name, item)
            return
        top = len(self.variables) - len(names)
        for at, item in enumerate(values):
            self.variables[top + at] = (names[at], item)

    def call_template(self, node: Call, dot: Value) -> None:
        block = self.tree.defined.get(node.name)
        if block is None:
            raise self.error(node, f'template "{node.name}" not defined')
        argument = None if node.pipe is None else self.pipe(node.pipe, dot)
        outside = self.variables, self.name
        self.variables, self.name = [("$", argument)], node.name
        self.budget.enter()
        self.block(block, argument)
        self.budget.leave()
        self.variables, self.name = outside

    # pipelines

    def pipe(self, pipe: Pipe, dot: Value) -> Value:
        value: Value = _ABSENT
        for command in pipe.commands:
            value = settled(self.command(command, dot, value))
        for name in pipe.variables:
            if pipe.assigns:
                self.assign(pipe, name, value)
            else:
                self.variables.append((name, value))
        return value

    def assign(self, pipe: Pipe, name: str, value: Value) -> None:
        for at in range(len(self.variables) - 1, -1, -1):
            if self.variables[at][0] == name:
                self.variables[at] = (name, value)
                return
        raise self.error(pipe, f"undefined variable: {name}")

    def variable(self, node: Variable) -> Value:
        for name, value in reversed(self.variables):
            if name == node.names[0]:
                return value
        raise self.error(node, f"undefined variable: {node.names[0]}")

    def command(self, command: Command, dot: Value, final: Value) -> Value:
        self.budget.step()
        first = command.args[0]
        if isinstance(first, Identifier):
            return self.call(first, command, dot, final)
        if isinstance(first, Nil):
            raise self.error(first, "nil is not a command")
        has_args = len(command.args) > 1 or final is not _ABSENT
        if has_args and not isinstance(first, Field | Chain | Variable):
            raise self.error(first, f"can't give argument to non-function {first}")
        if has_args and isinstance(first, Variable) and len(first.names) == 1:
            raise self.error(first, f"can't give argument to non-function {first}")
        return self.operand(first, dot, has_args=has_args)

    def operand(self, node: Operand, dot: Value, *, has_args: bool = False) -> Value:
        value: Value = None
        match node:
            case Dot():
                value = dot
            case Literal():
                value = node.value
            case Field(_, names):
                value = self.fields(node, dot, names, has_args=has_args)
            case Variable(_, names):
                value = self.fields(node, self.variable(node), names[1:], has_args=has_args)
            case Chain(_, inner, names):
                value = self.chain(node, inner, names, dot, has_args=has_args)
            case Pipe():
                self.budget.enter()
                value = self.pipe(node, dot)
                self.budget.leave()
            case Identifier():
                value = self.call(node, None, dot, _ABSENT)
        return value

    def chain(
        self, node: Chain, inner: Operand, names: Sequence[str], dot: Value, *, has_args: bool
    ) -> Value:
        if isinstance(inner, Nil):
            raise self.error(node, f"indirection through explicit nil in {node}")
        return self.fields(node, self.operand(inner, dot), names, has_args=has_args)

    def fields(self, node: Operand, value: Value, names: Sequence[str], *, has_args: bool) -> Value:
        for at, name in enumerate(names):
            value = self.field(node, value, name, has_args=has_args and at == len(names) - 1)
        return value

    def field(self, node: Operand, value: Value, name: str, *, has_args: bool) -> Value:
        if value is None:
            return None
        if value is NIL:
            raise self.error(node, f"nil pointer evaluating interface {{}}.{name}")
        if name == "String" and not has_args:
            text = text_of(value)
            if text is not None:
                return text
        if isinstance(value, dict):
            if has_args:
                raise self.error(node, f"{name} is not a method but has arguments")
            return element(value.get(name))
        if isinstance(value, Struct) and name in value.fields:
            if has_args:
                raise self.error(node, f"{name} has arguments but cannot be invoked as function")
            return element(value.fields[name].value)
        raise self.error(node, f"can't evaluate field {name} in type {type_name(value)}")

    # functions

    def call(self, node: Identifier, command: Command | None, dot: Value, final: Value) -> Value:
        self.budget.step()
        name = node.name
        function = FUNCTIONS[name]
        operands = () if command is None else command.args[1:]
        count = len(operands) + (final is not _ABSENT)
        if function.most is None:
            if count < function.least:
                raise self.error(
                    node,
                    f"wrong number of args for {name}: "
                    f"want at least {function.least} got {len(operands)}",
                )
        elif count != function.most:
            raise self.error(
                node, f"wrong number of args for {name}: want {function.most} got {count}"
            )
        if name in {"and", "or"}:
            return self.short_circuit(operands, dot, final, wanted=name == "or")
        args = [self.operand(operand, dot) for operand in operands]
        if final is not _ABSENT:
            args.append(final)
        self.check_strings(node, function, operands, args)
        # Beforehand: a variable may double with every step.
        self.budget.make(sum(len(value) for value in args if isinstance(value, str)))
        try:
            return function.call(args, self.budget)
        except ValueError as error:
            raise self.error(command or node, f"error calling {name}: {error}") from error

    def short_circuit(
        self, operands: Sequence[Operand], dot: Value, final: Value, *, wanted: bool
    ) -> Value:
        value: Value = None
        for operand in operands:
            value = self.operand(operand, dot)
            if is_true(value) == wanted:
                return value
        return value if final is _ABSENT else final

    def check_strings(
        self,
        node: Identifier,
        function: Function,
        operands: Sequence[Operand],
        args: list[Value],
    ) -> None:
        count = len(args) if function.strings < 0 else function.strings
        for at, value in enumerate(args[:count]):
            if isinstance(value, str):
                continue
            operand = operands[at] if at < len(operands) else node
            if isinstance(operand, Literal):
                raise self.error(operand, f"expected string; found {operand}")
            if isinstance(operand, Nil):
                raise self.error(operand, "cannot assign nil to string")
            if value is None:
                raise self.error(operand, "invalid value; expected string")
            raise self.error(
                operand, f"wrong type for value; expected string; got {type_name(value)}"
            )


def execute(tree: Tree, data: Mapping[str, Value], budget: Budget | None = None) -> str:
    """The text of `tree` with `data`; bytes that are no UTF-8 are U+FFFD in it.

    TemplateError: the template asks for what cannot be, or takes more than `budget` allows.
    """
    evaluator = _Evaluator(tree, data, budget or Budget())
    try:
        evaluator.block(tree.root, data)
    except BudgetError as error:
        raise TemplateError(f'template: : executing "": {error}') from error
    except RecursionError as error:
        raise TemplateError('template: : executing "": exceeded maximum template depth') from error
    return well_formed("".join(evaluator.output))
