"""llama-server's options: what kloros-llm sets, what a wish may add, what a binary understands.

Read from llama.cpp v0.5.0-dev's `common/arg.cpp` and tried on a CPU build of it. Traps that the
rendering avoids:

* `-np N` divides `-c` by N: N slots of C tokens are `-np N -c N*C`.
* An empty LLAMA_ARG_* variable, an unknown flag and the variable of a removed option end the
  start with exit status 1; an unknown LLAMA_ARG_* variable is silently ignored. So both are
  checked against the installed binary's `--help` first.
* Of several aliases the *alphabetically first* becomes the model's id (they are kept in a
  std::set), and a server with one model answers to every name: only the client's name is set.
* A plain draft model is loaded but not used unless the type of speculation is named too.
* There is no `--flag=value` form, and of an option given twice mostly the last value counts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from .findings import Finding, error
from .systemd_env import join_args, split_args

EXTRA_ARGS = "LLAMA_EXTRA_ARGS"
"""Variable of an instance that its unit expands as `$LLAMA_EXTRA_ARGS`: options without one."""


class LoraAdapter(TypedDict):
    """An adapter's file on the host and the weight it is applied with (1.0: as trained)."""

    path: str
    scale: float


class PlannedInstance(TypedDict):
    """One llama-server as planned: nothing here is a wish any more.

    `aliases` starts with the name that clients use. `gpus` holds indices in PCI bus order or
    UUIDs; empty is the CPU. `context_tokens` is for one slot. `gpu_layers` ("all", "auto" or a
    number) counts only with GPUs. `api_key` says whether there is one; the unit passes its file,
    and the key itself never comes here. `extra` maps long option names without dashes to values.
    """

    name: str
    model_path: str
    aliases: list[str]
    host: str
    port: int
    gpus: list[int | str]
    context_tokens: int
    slots: int
    kv_cache: str
    gpu_layers: str
    draft_model_path: str | None
    lora: list[LoraAdapter]
    embeddings: bool
    rerank: bool
    metrics: bool
    api_key: bool
    threads: int | None
    extra: dict[str, object]


@dataclass(frozen=True)
class ManagedOption:
    """An option that kloros-llm renders: its variable (None: it has only flags) and all flags."""

    variable: str | None
    flags: tuple[str, ...]
    instead: str


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


_FROM_GPUS = "set `gpus`; the plan decides how the model lies on them"
_IN_FRONT = "TLS and paths are for a proxy in front; an instance is asked for its /health plainly"

MANAGED: Mapping[str, ManagedOption] = {
    "model": ManagedOption(
        "LLAMA_ARG_MODEL",
        ("-m", "--model"),
        "set `model`; where its file comes from is said under `gguf_models`",
    ),
    "model-url": ManagedOption(
        "LLAMA_ARG_MODEL_URL", ("-mu", "--model-url"), "give the URL as a source in `gguf_models`"
    ),
    "docker-repo": ManagedOption(
        "LLAMA_ARG_DOCKER_REPO", ("-dr", "--docker-repo"), "give a source in `gguf_models`"
    ),
    "hf-repo": ManagedOption(
        "LLAMA_ARG_HF_REPO",
        ("-hf", "-hfr", "--hf-repo"),
        "give an hf:// source in `gguf_models`",
    ),
    "hf-file": ManagedOption(
        "LLAMA_ARG_HF_FILE", ("-hff", "--hf-file"), "give an hf:// source in `gguf_models`"
    ),
    "alias": ManagedOption(
        "LLAMA_ARG_ALIAS", ("-a", "--alias"), "name the model and its `aliases` in `gguf_models`"
    ),
    "host": ManagedOption("LLAMA_ARG_HOST", ("--host",), "set `host`"),
    "port": ManagedOption("LLAMA_ARG_PORT", ("--port",), "set `port`"),
    "context": ManagedOption(
        "LLAMA_ARG_CTX_SIZE", ("-c", "--ctx-size"), "set `context`, in tokens a slot"
    ),
    "parallel": ManagedOption("LLAMA_ARG_N_PARALLEL", ("-np", "--parallel"), "set `parallel`"),
    "kv-unified": ManagedOption(
        "LLAMA_ARG_KV_UNIFIED",
        ("-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"),
        "every slot has the `context` it was given",
    ),
    "kv-unified-per-slot": ManagedOption(
        "LLAMA_ARG_KV_UNIFIED_PER_SLOT", ("--kv-unified-per-slot",), "set `context`"
    ),
    "ssl-key-file": ManagedOption("LLAMA_ARG_SSL_KEY_FILE", ("--ssl-key-file",), _IN_FRONT),
    "ssl-cert-file": ManagedOption("LLAMA_ARG_SSL_CERT_FILE", ("--ssl-cert-file",), _IN_FRONT),
    "api-prefix": ManagedOption("LLAMA_ARG_API_PREFIX", ("--api-prefix",), _IN_FRONT),
    "device": ManagedOption("LLAMA_ARG_DEVICE", ("-dev", "--device"), _FROM_GPUS),
    "gpu-layers": ManagedOption(
        "LLAMA_ARG_N_GPU_LAYERS", ("-ngl", "--gpu-layers", "--n-gpu-layers"), _FROM_GPUS
    ),
    "split-mode": ManagedOption("LLAMA_ARG_SPLIT_MODE", ("-sm", "--split-mode"), _FROM_GPUS),
    "main-gpu": ManagedOption("LLAMA_ARG_MAIN_GPU", ("-mg", "--main-gpu"), _FROM_GPUS),
    "tensor-split": ManagedOption("LLAMA_ARG_TENSOR_SPLIT", ("-ts", "--tensor-split"), _FROM_GPUS),
    "fit": ManagedOption("LLAMA_ARG_FIT", ("-fit", "--fit"), _FROM_GPUS),
    "kv-cache-k": ManagedOption(
        "LLAMA_ARG_CACHE_TYPE_K", ("-ctk", "--cache-type-k"), "set `kv_cache`"
    ),
    "kv-cache-v": ManagedOption(
        "LLAMA_ARG_CACHE_TYPE_V", ("-ctv", "--cache-type-v"), "set `kv_cache`"
    ),
    "threads": ManagedOption("LLAMA_ARG_THREADS", ("-t", "--threads"), "set `threads`"),
    "draft-model": ManagedOption(
        "LLAMA_ARG_SPEC_DRAFT_MODEL",
        ("-md", "--model-draft", "--spec-draft-model"),
        "set `draft_model`",
    ),
    "draft-hf-repo": ManagedOption(
        "LLAMA_ARG_SPEC_DRAFT_HF_REPO",
        ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
        "set `draft_model`, and give it an hf:// source in `gguf_models`",
    ),
    "lora": ManagedOption(None, ("--lora",), "set `lora`"),
    "lora-scaled": ManagedOption(None, ("--lora-scaled",), "set `lora`"),
    "embeddings": ManagedOption(
        "LLAMA_ARG_EMBEDDINGS", ("--embedding", "--embeddings"), "set `embeddings`"
    ),
    "rerank": ManagedOption("LLAMA_ARG_RERANKING", ("--rerank", "--reranking"), "set `rerank`"),
    "metrics": ManagedOption("LLAMA_ARG_ENDPOINT_METRICS", ("--metrics",), "set `metrics`"),
    "api-key-file": ManagedOption(
        "LLAMA_ARG_API_KEY_FILE", ("--api-key-file",), "set `api_key`; the unit passes its file"
    ),
}
"""What kloros-llm decides, by the option's name here; any of these in `extra` is an error."""

_SECRETS: Mapping[str, str] = {
    "api-key": "set `api_key`",
    "llama-api-key": "set `api_key`",
    "llama-arg-api-key": "set `api_key`",
    "hf-token": "set `gguf_models_hf_token`",
    "hft": "set `gguf_models_hf_token`",
}
"""Options and variables whose value is a secret, with what to set instead."""

_PRINT_AND_EXIT = frozenset(
    {"h", "help", "usage", "version", "cl", "cache-list", "completion-bash", "list-devices"}
)
_DOWNLOADS = "download weights"
_REMOVED = "has been removed"
_SWITCH_VALUES = ("on", "enabled", "true", "1", "off", "disabled", "false", "0")
"""What a variable of an option without a value may hold (`is_truthy`, `is_falsey` in arg.cpp)."""
_LONG_NAME = re.compile(r"[a-z][a-z0-9.]*(-[a-z0-9.]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _bare(spelling: str) -> str:
    """A flag or variable in any spelling, for comparison (llama-server takes `_` for `-` too)."""
    return spelling.lstrip("-").lower().replace("_", "-")


_MANAGED_SPELLINGS: Mapping[str, ManagedOption] = {
    _bare(spelling): option
    for option in MANAGED.values()
    for spelling in (*option.flags, option.variable)
    if spelling
}
_MANAGED_VARIABLES: Mapping[str, ManagedOption] = {
    option.variable: option for option in MANAGED.values() if option.variable
}


# --- rendering -----------------------------------------------------------------------------------


def instance_environment(instance: PlannedInstance) -> dict[str, str]:
    """The variables of one instance, complete and in a fixed order; none of them is empty.

    Raises ValueError for what llama-server would misread: an empty value, a comma in the name
    that clients use, a colon in the path of an adapter with a scale.
    """
    gpus = instance["gpus"]
    name = instance["aliases"][0]
    if "," in name:
        raise ValueError(f"{name!r} cannot be a model's name: llama-server splits it at the comma")
    variables = {
        "LLAMA_ARG_MODEL": instance["model_path"],
        "LLAMA_ARG_ALIAS": name,
        "LLAMA_ARG_HOST": instance["host"],
        "LLAMA_ARG_PORT": str(instance["port"]),
        "LLAMA_ARG_CTX_SIZE": str(instance["slots"] * instance["context_tokens"]),
        "LLAMA_ARG_N_PARALLEL": str(instance["slots"]),
        "LLAMA_ARG_CACHE_TYPE_K": instance["kv_cache"],
        "LLAMA_ARG_CACHE_TYPE_V": instance["kv_cache"],
    }
    if gpus:
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
        # CUDA counts the visible devices from 0, whatever their indices on the host are.
        variables["LLAMA_ARG_DEVICE"] = ",".join(f"CUDA{index}" for index in range(len(gpus)))
        variables["LLAMA_ARG_N_GPU_LAYERS"] = instance["gpu_layers"]
    else:
        variables["LLAMA_ARG_DEVICE"] = "none"
    if not (gpus and instance["gpu_layers"] == "auto"):
        # The plan has made it fit: loading something smaller instead would hide an error.
        variables["LLAMA_ARG_FIT"] = "off"
    if instance["threads"] is not None:
        variables["LLAMA_ARG_THREADS"] = str(instance["threads"])
    if instance["draft_model_path"] is not None:
        variables["LLAMA_ARG_SPEC_DRAFT_MODEL"] = instance["draft_model_path"]
        # The flag adds to the variable instead of overriding it.
        if "spec-type" not in instance["extra"]:
            variables["LLAMA_ARG_SPEC_TYPE"] = "draft-simple"
    for wished, variable in (
        (instance["embeddings"], "LLAMA_ARG_EMBEDDINGS"),
        (instance["rerank"], "LLAMA_ARG_RERANKING"),
        (instance["metrics"], "LLAMA_ARG_ENDPOINT_METRICS"),
    ):
        if wished:
            variables[variable] = "1"
    arguments = [*_lora_arguments(instance["lora"]), *_extra_arguments(instance["extra"])]
    if arguments:
        variables[EXTRA_ARGS] = join_args(arguments)
    for variable, value in variables.items():
        if not value:
            raise ValueError(f"{variable} of instance {instance['name']} would be empty")
    return variables


def _lora_arguments(adapters: Sequence[LoraAdapter]) -> list[str]:
    """One flag for all adapters, so that their order (their id in the server) is the wish's."""
    if not adapters:
        return []
    if all(adapter["scale"] == 1 for adapter in adapters):
        return ["--lora", ",".join(_csv_field(adapter["path"]) for adapter in adapters)]
    fields = []
    for adapter in adapters:
        if ":" in adapter["path"]:
            raise ValueError(
                f"the path {adapter['path']!r} of a LoRA adapter with a scale holds a colon, "
                "which llama-server takes for the start of the scale"
            )
        fields.append(_csv_field(f"{adapter['path']}:{float(adapter['scale'])}"))
    return ["--lora-scaled", ",".join(fields)]


def _csv_field(text: str) -> str:
    """A field of the comma-separated list that `parse_csv_row()` in arg.cpp reads."""
    if "," in text or '"' in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def _extra_arguments(extra: Mapping[str, object]) -> list[str]:
    arguments: list[str] = []
    for name, value in sorted(extra.items(), key=lambda item: item[0]):
        if value is True:
            arguments.append(f"--{name}")
        elif value is False:
            arguments.append(f"--no-{name}")
        else:
            for item in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}", str(item)]
    return arguments


# --- checks that need no binary ------------------------------------------------------------------


def extra_findings(key_prefix: str, extra: Mapping[str, object]) -> list[Finding]:
    """What is wrong with an instance's `extra`, whatever the version of llama.cpp.

    `key_prefix` is the inventory path of `extra`, such as `llama_instances.live.extra`.
    """
    findings: list[Finding] = []
    for name, value in extra.items():
        key = f"{key_prefix}.{name}"
        if refused := _name_finding(key, name):
            findings.append(refused)
            continue
        items = value if isinstance(value, list) else [value]
        if not items:
            findings.append(error(key, "an empty list", "at least one value", "leave the key out"))
        for item in items:
            if refused := _value_finding(key, item, inside_list=isinstance(value, list)):
                findings.append(refused)
    return findings


def _name_finding(key: str, name: object) -> Finding | None:
    needed = "a long llama-server option without its dashes, such as `flash-attn`"
    if not isinstance(name, str):
        return error(key, f"{_yaml_type(name)} as the key", needed, "write the option's name")
    if refused := _reserved_finding(key, name):
        return refused
    if name.startswith("-"):
        bare = name.lstrip("-")
        return error(key, "the name starts with a dash", needed, f"write `{bare}` instead")
    if not _LONG_NAME.fullmatch(name):
        cure = "see `llama-server --help` for its long form"
        if name.islower() and _LONG_NAME.fullmatch(_bare(name)):
            cure = f"write `{_bare(name)}` instead"
        return error(key, f"{name!r} is no option's name", needed, cure)
    return None


def _reserved_finding(key: str, name: str) -> Finding | None:
    """Why an option, in whatever spelling, is not for `extra`."""
    bare = _bare(name)
    for spelling in (bare, bare.removeprefix("no-")):
        if spelling in _SECRETS:
            return error(
                key,
                "a secret, which would show in the env file and in the process list",
                "secrets by their own variable only",
                f"take it out of `extra`; {_SECRETS[spelling]}",
            )
        if spelling in _MANAGED_SPELLINGS:
            managed = _MANAGED_SPELLINGS[spelling]
            return error(
                key,
                f"repeats an option that kloros-llm sets itself ({_title(managed)})",
                "options in `extra` that nothing else sets",
                f"take it out of `extra`; {managed.instead}",
            )
    if bare in _PRINT_AND_EXIT:
        return error(
            key,
            "makes llama-server print something and exit",
            "options of a server that runs",
            "take it out of `extra`",
        )
    return None


def _value_finding(key: str, value: object, *, inside_list: bool) -> Finding | None:
    needed = "a string, a number, true, false, or a list of strings and numbers"
    if not isinstance(value, str | int | float) or (inside_list and isinstance(value, bool)):
        where = "in the list" if inside_list else "as its value"
        cure = "give one of these, or leave the key out"
        if isinstance(value, Mapping):
            cure = "write JSON as one quoted string"
        return error(key, f"{_yaml_type(value)} {where}", needed, cure)
    if isinstance(value, str) and _CONTROL.search(value):
        return error(
            key,
            "a line break or another control character",
            "one line of text, which an env file can carry",
            "put the text into a file and use the option that reads one, such as "
            "`chat-template-file` or `grammar-file`",
        )
    return None


def _yaml_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return type(value).__name__


def _title(managed: ManagedOption) -> str:
    return ", ".join((*managed.flags, *([managed.variable] if managed.variable else [])))


# --- what a binary says of itself ----------------------------------------------------------------

_FLAG = re.compile(r"(--?[A-Za-z][^\s,]*)(,\s+)?")
_VARIABLE = re.compile(r"\(env: ([A-Z][A-Z0-9_]*)\)")
_CHOICE_HINT = re.compile(
    r"\{(\w+(?:,\w+)+)\}|\[(\w+(?:\|\w+)+)\]|<(\w+(?:\|\w+)+)>|([a-z0-9-]+(?:,[a-z0-9-]+)+)"
)
_ALLOWED = re.compile(r"allowed values: ([^\n(]+)")
_BULLET = re.compile(r"^ *- ([a-z][a-z0-9+-]*)(?: \(default\))?: ", re.MULTILINE)
_DEFAULT = re.compile(r"\(default: ([a-z][a-z0-9+-]*)\)")


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
    variables = _VARIABLE.findall(description)
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


# --- checks against a binary ---------------------------------------------------------------------


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
            if (managed := _MANAGED_VARIABLES.get(variable)) is not None
        ),
        None,
    )
    if managed is not None:
        return error(
            key,
            f"{flag} is another name of an option that kloros-llm sets itself ({_title(managed)})",
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
    advice = " ".join(_VARIABLE.sub("", option.description).split())
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
