"""From a template's text to its tokens.

The grammar is that of Go's text/template with `{{` and `}}`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from itertools import accumulate

from ..go_text import SPACES, describe, is_letter_or_digit, quote, to_bytes

_SPACE = frozenset(SPACES)
_BLANK = re.compile(f"[{SPACES}]*")


class Kind(enum.Enum):
    """What a token is."""

    ERROR = enum.auto()
    EOF = enum.auto()
    TEXT = enum.auto()
    LEFT = enum.auto()
    RIGHT = enum.auto()
    SPACE = enum.auto()
    ASSIGN = enum.auto()
    DECLARE = enum.auto()
    PIPE = enum.auto()
    LEFT_PAREN = enum.auto()
    RIGHT_PAREN = enum.auto()
    CHAR = enum.auto()
    BOOL = enum.auto()
    CHAR_CONSTANT = enum.auto()
    COMPLEX = enum.auto()
    NUMBER = enum.auto()
    STRING = enum.auto()
    RAW_STRING = enum.auto()
    IDENTIFIER = enum.auto()
    FIELD = enum.auto()
    VARIABLE = enum.auto()
    DOT = enum.auto()
    NIL = enum.auto()
    BLOCK = enum.auto()
    BREAK = enum.auto()
    CONTINUE = enum.auto()
    DEFINE = enum.auto()
    ELSE = enum.auto()
    END = enum.auto()
    IF = enum.auto()
    RANGE = enum.auto()
    TEMPLATE = enum.auto()
    WITH = enum.auto()


_KEYWORDS = {
    "nil": Kind.NIL,
    "block": Kind.BLOCK,
    "break": Kind.BREAK,
    "continue": Kind.CONTINUE,
    "define": Kind.DEFINE,
    "else": Kind.ELSE,
    "end": Kind.END,
    "if": Kind.IF,
    "range": Kind.RANGE,
    "template": Kind.TEMPLATE,
    "with": Kind.WITH,
}
_SINGLE = {"=": Kind.ASSIGN, "|": Kind.PIPE}
_SHOWN_AS_KEYWORD = frozenset([*_KEYWORDS.values(), Kind.DOT])


@dataclass(frozen=True, slots=True)
class Token:
    """`text` as written, or what is wrong; `at` is an index into the template, lines start at 1."""

    kind: Kind
    at: int
    text: str
    line: int

    def __str__(self) -> str:
        if self.kind is Kind.EOF:
            return "EOF"
        if self.kind is Kind.ERROR:
            return self.text
        if self.kind in _SHOWN_AS_KEYWORD:
            return f"<{self.text}>"
        if len(to_bytes(self.text)) > 10:
            return quote(self.text[:10]) + "..."
        return quote(self.text)


class _LexError(Exception):
    pass


class _Lexer:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.tokens: list[Token] = []
        self.lines = list(accumulate((char == "\n" for char in source), initial=1))
        self.parens = 0
        self.start = 0

    def emit(self, kind: Kind) -> None:
        self.tokens.append(
            Token(kind, self.start, self.source[self.start : self.at], self.lines[self.start])
        )
        self.start = self.at

    def peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def run(self) -> list[Token]:
        try:
            while self.text():
                self.action()
            self.emit(Kind.EOF)
        except _LexError as error:
            self.tokens.append(Token(Kind.ERROR, self.start, str(error), self.lines[self.start]))
        return self.tokens

    def text(self) -> bool:
        """Text up to the next action; False where none follows."""
        left = self.source.find("{{", self.start)
        if left < 0:
            self.at = len(self.source)
            if self.at > self.start:
                self.emit(Kind.TEXT)
            return False
        self.at = left
        trimmed = self.at_left_trim(left + 2)
        if trimmed:
            self.at = self.start + len(self.source[self.start : left].rstrip(SPACES))
        if self.at > self.start:
            self.emit(Kind.TEXT)
        self.at = self.start = left
        return True

    def at_left_trim(self, at: int) -> bool:
        return self.source[at : at + 1] == "-" and self.source[at + 1 : at + 2] in _SPACE

    def right_delimiter(self) -> int:
        """How long the delimiter is that ends the action here, with its trim marker; 0: none."""
        here = self.source[self.at : self.at + 4]
        if here.startswith("}}"):
            return 2
        return 4 if here[:1] in _SPACE and here[1:] == "-}}" else 0

    def action(self) -> None:
        after = self.at + 2
        if self.at_left_trim(after):
            after += 2
        if self.source.startswith("/*", after):
            self.comment(after)
            return
        self.at += 2
        self.emit(Kind.LEFT)
        self.at = self.start = after
        self.parens = 0
        while not self.inside():
            pass

    def comment(self, at: int) -> None:
        self.start = at
        end = self.source.find("*/", at + 2)
        if end < 0:
            raise _LexError("unclosed comment")
        self.at = end + 2
        length = self.right_delimiter()
        if not length:
            raise _LexError("comment ends before closing delimiter")
        self.at += length
        self.after_right(trimmed=length == 4)

    def after_right(self, *, trimmed: bool) -> None:
        if trimmed and (blank := _BLANK.match(self.source, self.at)):
            self.at = blank.end()
        self.start = self.at

    def inside(self) -> bool:
        """One token of an action; True where the action ends."""
        length = self.right_delimiter()
        if length:
            if self.parens:
                raise _LexError("unclosed left paren")
            self.at += length - 2
            self.start = self.at
            self.at += 2
            self.emit(Kind.RIGHT)
            self.after_right(trimmed=length == 4)
            return True
        char = self.peek()
        if not char:
            raise _LexError("unclosed action")
        self.at += 1
        if char in SPACES:
            self.space()
        elif char in _SINGLE:
            self.emit(_SINGLE[char])
        elif char == ":":
            if self.peek() != "=":
                raise _LexError("expected :=")
            self.at += 1
            self.emit(Kind.DECLARE)
        elif char in "\"'":
            self.quoted(char)
        elif char == "`":
            self.raw_quoted()
        else:
            self.word(char)
        return False

    def word(self, char: str) -> None:
        if char == "$" or (char == "." and not ("0" <= (self.peek() or "0") <= "9")):
            self.field_or_variable(Kind.VARIABLE if char == "$" else Kind.FIELD)
        elif char in "+-." or "0" <= char <= "9":
            self.at -= 1
            self.number()
        elif is_letter_or_digit(char):
            self.identifier()
        elif char == "(":
            self.emit(Kind.LEFT_PAREN)
            self.parens += 1
        elif char == ")":
            self.emit(Kind.RIGHT_PAREN)
            self.parens -= 1
            if self.parens < 0:
                raise _LexError(f"unexpected right paren {describe(char)}")
        elif char.isascii() and char.isprintable():
            self.emit(Kind.CHAR)
        else:
            raise _LexError(f"unrecognized character in action: {describe(char)}")

    def space(self) -> None:
        while self.peek() and self.peek() in SPACES:
            self.at += 1
        # The last space may belong to a trim marker.
        if self.source.startswith("-}}", self.at):
            self.at -= 1
            if self.at == self.start:
                return
        self.emit(Kind.SPACE)

    def letters(self) -> None:
        while self.peek() and is_letter_or_digit(self.peek()):
            self.at += 1

    def at_terminator(self) -> bool:
        char = self.peek()
        return not char or char in SPACES + ".,|:)(" or self.source.startswith("}}", self.at)

    def end_word(self) -> None:
        if not self.at_terminator():
            raise _LexError(f"bad character {describe(self.peek())}")

    def identifier(self) -> None:
        self.letters()
        self.end_word()
        word = self.source[self.start : self.at]
        if word in {"true", "false"}:
            self.emit(Kind.BOOL)
        else:
            self.emit(_KEYWORDS.get(word, Kind.IDENTIFIER))

    def field_or_variable(self, kind: Kind) -> None:
        if self.at_terminator():
            self.emit(Kind.VARIABLE if kind is Kind.VARIABLE else Kind.DOT)
            return
        self.letters()
        self.end_word()
        self.emit(kind)

    def quoted(self, mark: str) -> None:
        name = "quoted string" if mark == '"' else "character constant"
        while (char := self.peek()) != mark:
            self.at += 1
            if char == "\\":
                char = self.peek()
                self.at += 1
            if char in {"", "\n"}:
                raise _LexError(f"unterminated {name}")
        self.at += 1
        self.emit(Kind.STRING if mark == '"' else Kind.CHAR_CONSTANT)

    def raw_quoted(self) -> None:
        end = self.source.find("`", self.at)
        if end < 0:
            raise _LexError("unterminated raw quoted string")
        self.at = end + 1
        self.emit(Kind.RAW_STRING)

    def number(self) -> None:
        if not self.scan_number():
            raise _LexError(f"bad number syntax: {quote(self.source[self.start : self.at])}")
        if self.peek() not in {"+", "-"}:
            self.emit(Kind.NUMBER)
            return
        if not self.scan_number() or self.source[self.at - 1] != "i":
            raise _LexError(f"bad number syntax: {quote(self.source[self.start : self.at])}")
        self.emit(Kind.COMPLEX)

    def accept(self, chars: str) -> bool:
        if self.peek() and self.peek() in chars:
            self.at += 1
            return True
        return False

    def accept_run(self, chars: str) -> None:
        while self.accept(chars):
            pass

    def scan_number(self) -> bool:
        self.accept("+-")
        digits, exponent = "0123456789_", "eE"
        if self.accept("0"):
            if self.accept("xX"):
                digits, exponent = "0123456789abcdefABCDEF_", "pP"
            elif self.accept("oO"):
                digits, exponent = "01234567_", ""
            elif self.accept("bB"):
                digits, exponent = "01_", ""
        self.accept_run(digits)
        if self.accept("."):
            self.accept_run(digits)
        if exponent and self.accept(exponent):
            self.accept("+-")
            self.accept_run("0123456789_")
        self.accept("i")
        if self.peek() and is_letter_or_digit(self.peek()):
            self.at += 1
            return False
        return True


def tokens_of(source: str) -> list[Token]:
    """All tokens; the last one is EOF or ERROR."""
    return _Lexer(source).run()
