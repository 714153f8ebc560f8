"""An instance's variables and options against the binary that will read them.

llama-server ends at an unknown flag and at the variable of a removed option, and silently ignores
an unknown LLAMA_ARG_* variable: both are found here before anything is restarted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from .findings import Finding, error
from .llama_environment import EXTRA_ARGS
from .llama_help import VARIABLE, ServerOption
from .llama_options import MANAGED_BY_VARIABLE, title
from .systemd_env import split_args

_DOWNLOADS = "download weights"
_SWITCH_VALUES = ("on", "enabled", "true", "1", "off", "disabled", "false", "0")
"""What a variable of an option without a value may hold (`is_truthy`, `is_falsey` in arg.cpp)."""


def help_findings(
    key_prefix: str, environment: Mapping[str, str], options: Sequence[ServerOption]
) -> list[Finding]:
    """What of a rendered environment this binary (its `parse_help`) would refuse or not know.

    Looks at every LLAMA_ARG_* variable and at every argument in LLAMA_EXTRA_ARGS. `key_prefix` is
    the instance's inventory path, such as `llama_instances.live`.
    """
    findings: list[Finding] = []
    by_variable = {variable: option for option in options for variable in option.env}
    for variable, value in environment.items():
        if variable.startswith("LLAMA_ARG_"):
            findings += _variable_findings(f"{key_prefix}.{variable}", variable, value, by_variable)
    arguments = split_args(environment.get(EXTRA_ARGS, ""))
    return findings + _argument_findings(f"{key_prefix}.extra", arguments, options)


def _variable_findings(
    key: str, variable: str, value: str, by_variable: Mapping[str, ServerOption]
) -> list[Finding]:
    option = by_variable.get(variable)
    if option is None:
        return [
            error(
                key,
                f"the installed llama-server has no variable {variable}",
                _closest(variable, by_variable) or "a variable that its --help lists",
                "install the version of llama.cpp that this kloros-llm was made for",
            )
        ]
    if option.removed:
        return [_removed_finding(key, option)]
    if not value:
        return [
            error(
                key,
                "an empty value, which ends llama-server's start",
                "a value, or no variable at all",
                "leave it out",
            )
        ]
    if not option.takes_value and value not in _SWITCH_VALUES:
        return [
            error(key, f"{value!r} for a switch", f"one of {', '.join(_SWITCH_VALUES)}", "set one")
        ]
    return _choice_findings(key, value, option)


def _argument_findings(
    key_prefix: str, arguments: Sequence[str], options: Sequence[ServerOption]
) -> list[Finding]:
    """Walk the arguments as llama-server does: a flag, then as many values as it takes."""
    by_flag = {flag: option for option in options for flag in option.flags}
    findings: list[Finding] = []
    seen: set[str] = set()
    position = 0
    while position < len(arguments):
        flag = arguments[position]
        position += 1
        key = f"{key_prefix}.{flag.lstrip('-')}"
        option = by_flag.get(flag)
        if option is None:
            findings.append(_unknown_flag_finding(key, flag, by_flag))
            position += _count_values(arguments, position, by_flag)
            continue
        given = _count_values(arguments, position, by_flag, at_most=option.value_count)
        values = arguments[position : position + given]
        position += given
        surplus = _count_values(arguments, position, by_flag)
        if refused := _flag_finding(key, flag, option, repeated=flag in seen):
            findings.append(refused)
        elif given < option.value_count or surplus:
            findings.append(_value_count_finding(key, option, given + surplus))
        elif values:
            findings += _choice_findings(key, values[0], option)
        position += surplus
        seen.add(flag)
    return findings


def _count_values(
    arguments: Sequence[str],
    start: int,
    by_flag: Mapping[str, ServerOption],
    at_most: int | None = None,
) -> int:
    """How many arguments from `start` on are values; a rendered flag always starts with `--`."""
    count = 0
    for argument in arguments[start:]:
        if count == at_most or argument in by_flag or re.match(r"--[a-z]", argument):
            break
        count += 1
    return count


def _flag_finding(key: str, flag: str, option: ServerOption, *, repeated: bool) -> Finding | None:
    """Why a flag that the binary knows may not stand in `extra` all the same."""
    if option.removed:
        return _removed_finding(key, option)
    managed = next(
        (
            managed
            for variable in option.env
            if (managed := MANAGED_BY_VARIABLE.get(variable)) is not None
        ),
        None,
    )
    if managed is not None:
        return error(
            key,
            f"{flag} is another name of an option that kloros-llm sets itself ({title(managed)})",
            "options in `extra` that nothing else sets",
            f"take it out of `extra`; {managed.instead}",
        )
    if _DOWNLOADS in option.description and not option.takes_value:
        return error(
            key,
            f"{flag} replaces the instance's model by one that llama-server downloads itself",
            "the model that the plan has made room for",
            "take it out of `extra`; add the model to `gguf_models` and set `model`",
        )
    if repeated and option.several:
        return error(
            key,
            f"{flag} is given several times; llama-server keeps the last one only",
            "one value with commas",
            f'write a string such as `{flag.lstrip("-")}: "first,second"`',
        )
    return None


def _unknown_flag_finding(key: str, flag: str, by_flag: Mapping[str, ServerOption]) -> Finding:
    name = flag.removeprefix("--")
    positive = by_flag.get(f"--{name.removeprefix('no-')}")
    if name.startswith("no-") and positive is not None:
        cure = "leave it out: without it the option is off"
        if positive.takes_value:
            cure = (
                "give it one of its values; in YAML, quote `on` and `off`, "
                "which are booleans otherwise"
            )
        return error(
            f"{key.removesuffix(name)}{name.removeprefix('no-')}",
            f"false, but the installed llama-server has no {flag}",
            _usage(positive),
            cure,
        )
    short = by_flag.get(f"-{name}")
    if short is not None:
        return error(
            key,
            f"{name!r} is the short form of an option",
            f"its long form ({', '.join(short.flags)})",
            "write the long form without its dashes",
        )
    return error(
        key,
        f"the installed llama-server has no option {flag}",
        _closest(flag, by_flag) or "an option that its --help lists",
        "correct the name, or install a version of llama.cpp that has it",
    )


def _value_count_finding(key: str, option: ServerOption, given: int) -> Finding:
    if option.value_count > 1:
        return error(
            key,
            f"the option takes {option.value_count} values, which `extra` cannot give",
            "options with at most one value",
            "leave it out",
        )
    if option.takes_value:
        return error(
            key,
            "no value (true and false are none; YAML reads unquoted on, off, yes and no so too)",
            _usage(option),
            'give the value; quote a word: "on"',
        )
    return error(
        key,
        f"{given} value{'s' if given > 1 else ''} for a switch, which takes none",
        _usage(option),
        "write true, or false for its opposite",
    )


def _choice_findings(key: str, value: str, option: ServerOption) -> list[Finding]:
    if not option.values:
        return []
    chosen = [item.strip() for item in value.split(",")] if option.several else [value]
    unknown = [item for item in chosen if item not in option.values]
    if not unknown:
        return []
    return [
        error(
            key,
            f"{', '.join(repr(item) for item in unknown)}, which the installed llama-server "
            "does not list",
            f"one of {', '.join(option.values)}",
            "give one of these",
        )
    ]


def _removed_finding(key: str, option: ServerOption) -> Finding:
    advice = " ".join(VARIABLE.sub("", option.description).split())
    return error(
        key,
        f"the installed llama-server no longer has {', '.join(option.flags)}",
        f"an option of this version (its help: {advice})",
        "use the option that its help names, or leave it out",
    )


def _usage(option: ServerOption) -> str:
    if option.values:
        return f"{', '.join(option.flags)} with one of {', '.join(option.values)}"
    return f"{', '.join(option.flags)} {'with' if option.takes_value else 'without'} a value"


def _closest(name: str, known: Mapping[str, ServerOption]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"a name that it knows; close: {', '.join(matches)}" if matches else ""
