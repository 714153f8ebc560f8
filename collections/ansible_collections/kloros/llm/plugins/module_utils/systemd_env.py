"""Text that systemd reads: environment files, and variables that it splits into arguments.

Two parsers stand between a value and the program, and neither is a shell:

* `EnvironmentFile=` (systemd.exec(5), `parse_env_file_internal()` in systemd's env-file.c). Inside
  double quotes a backslash escapes only the double quote, backslash, backtick and dollar sign and
  stays literal before anything else; no variable is expanded. The file must be UTF-8 without
  Unicode noncharacters and byte order marks, else systemd refuses the whole file.
* `$NAME` as a word of its own in `ExecStart=` (systemd.service(5), `replace_env_argv()` in
  env-util.c). The value is cut by `strv_split_full(…, WHITESPACE, EXTRACT_RELAX|EXTRACT_UNQUOTE)`:
  space, tab, newline and carriage return separate; single and double quotes group; a backslash
  takes the next character literally, within both kinds of quotes too. There are no C escapes
  (`\\n` is the letter n), and dollar and percent signs mean nothing any more.

Proven on real systemd 252 (Debian 12) and 257 (Debian 13), 22 November 2026: oneshot services with
387 generated argument vectors (`join_args` in an environment file from `render_env_file`) and 300
arbitrary texts (`split_args`), one `ExecStart=` each that dumped its argv and environment: every
argument and every variable was exactly the same. `tests/unit/data/systemd-args.json` holds a part
of them. Seen there too: a noncharacter or a surrogate anywhere in the file fails the unit's start
("Failed to load environment files"), 131,072 bytes in one assignment fail with 203/EXEC, and only
systemd 257 ends a comment at a backslash before the line break.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE_VALUE = re.compile(r"[A-Za-z0-9_@%+:,./=-]*")
_BARE_ARGUMENT = re.compile(r"[A-Za-z0-9_@%+:,./=$-]+")
_SEPARATORS = " \t\n\r"
_ASSIGNMENT_MAX_BYTES = 131_071
"""Longest NAME=VALUE that execve(2) passes on (MAX_ARG_STRLEN, less the final NUL)."""


def render_env_file(variables: Mapping[str, str], header: str) -> str:
    """An `EnvironmentFile=` with `header` as its comment and one variable a line, in given order.

    Raises ValueError for what systemd would drop, refuse or read differently: an invalid name, a
    control character (a line break among them), text that is not Unicode scalar values, a
    noncharacter, a byte order mark, an assignment too long for execve(2), and a header line that
    ends with a backslash (systemd before 254 continues the comment over the line that follows).
    """
    lines: list[str] = []
    for line in header.splitlines():
        _refuse_unreadable("the header", line)
        if line.endswith("\\"):
            raise ValueError(f"the header has a line ending with a backslash: {line!r}")
        lines.append(f"# {line}".rstrip())
    for name, value in variables.items():
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for an environment variable: "
                "letters, digits and underscores are, not starting with a digit"
            )
        _refuse_unreadable(name, value)
        if len(f"{name}={value}".encode()) > _ASSIGNMENT_MAX_BYTES:
            raise ValueError(f"{name} is longer than {_ASSIGNMENT_MAX_BYTES} bytes with its name")
        lines.append(f"{name}={_quote_value(value)}")
    return "".join(f"{line}\n" for line in lines)


def join_args(args: Sequence[str]) -> str:
    """The value of a variable that `ExecStart=… $NAME` expands to exactly these arguments.

    Raises ValueError for an argument that an environment file cannot carry (see
    `render_env_file`).
    """
    return " ".join(_quote_argument(argument) for argument in args)


def split_args(value: str) -> list[str]:
    """The arguments that systemd makes of `$NAME` with this value, whoever wrote it.

    As systemd does, an unclosed quote ends with the text and a last lone backslash vanishes.
    """
    args: list[str] = []
    word: list[str] | None = None
    quote = ""
    characters = iter(value)
    for character in characters:
        if character in _SEPARATORS and not quote:
            if word is not None:
                args.append("".join(word))
            word = None
            continue
        word = [] if word is None else word
        if character == "\\":
            word.append(next(characters, ""))
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        else:
            word.append(character)
    if word is not None:
        args.append("".join(word))
    return args


def _quote_value(value: str) -> str:
    if _BARE_VALUE.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def _quote_argument(argument: str) -> str:
    _refuse_unreadable("an argument", argument)
    if _BARE_ARGUMENT.fullmatch(argument):
        return argument
    return '"' + re.sub(r'(["\\])', r"\\\1", argument) + '"'


def _refuse_unreadable(place: str, text: str) -> None:
    for character in text:
        code = ord(character)
        if code < 0x20 or 0x7F <= code < 0xA0:
            kind = "a control character"
        elif 0xD800 <= code < 0xE000:
            kind = "a lone surrogate"
        elif 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
            kind = "a Unicode noncharacter"
        elif code == 0xFEFF:
            kind = "a byte order mark"
        else:
            continue
        raise ValueError(
            f"{place} holds {kind} (U+{code:04X}), which an environment file cannot carry"
        )
