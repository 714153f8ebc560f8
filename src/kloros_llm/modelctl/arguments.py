"""The command line of `modelctl`, whole; nothing else of the program is needed to read it."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .exit_codes import MEANINGS, Exit, ModelctlError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

KV_CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
SHELLS: Final = ("bash", "zsh", "fish")
SOURCE_FORMS: Final = "hf://OWNER/REPOSITORY/FILE.gguf[@REVISION], https://..., file:/PATH"

# What the values of an argument are where they are not its choices, for the shells' completion.
# "model": what is installed; "here": that and aliases; "planned": that and the plan's models;
# "known": that and files.
COMPLETES: Final = {
    ("pull", "sources"): "planned",
    ("rm", "names"): "model",
    ("alias", "target"): "here",
    ("show", "what"): "known",
    ("ps", "instances"): "instance",
    ("status", "instances"): "instance",
    ("logs", "instance"): "instance",
    ("fit", "what"): "known",
    ("verify", "names"): "here",
    ("update", "names"): "here",
    ("promote", "name"): "here",
    ("promote", "version"): "version",
    ("rollback", "name"): "here",
}
_FILES: Final = ("plan", "models_dir", "token_file", "server", "offline_dir")
COMPLETES_FILES: Final = frozenset(_FILES)


class _Parser(argparse.ArgumentParser):
    """What is wrong with a command line is a failure like any other."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise ModelctlError(message, Exit.USAGE)


def build() -> argparse.ArgumentParser:
    """The parser. What it finds has the name of a module of `commands` in `command`.

    It raises ModelctlError for what it cannot understand.
    """
    parser = _Parser(
        prog="modelctl",
        description="The models of this host, and the llama.cpp servers that run them.",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say which modelctl this is")
    _common(parser, is_first=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_list, _pull, _rm, _show, _ps, _status, _logs, _fit):
        add(commands)
    for add in (_verify, _update, _promote, _rollback, _alias, _gc, _completion):
        add(commands)
    return parser


def _epilog() -> str:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
    return f"""exit status:
{codes}

environment:
  HF_ENDPOINT   a mirror to use in place of the Hugging Face Hub
  HF_TOKEN      opens gated repositories; it goes to the Hub alone (or use --token-file)
  https_proxy, http_proxy, no_proxy

With --json the answer on standard output is one JSON document, whose keys `modelctl COMMAND --help`
names; messages and progress go to standard error. A command that fails as a whole answers with
{{"error", "exit_code"}} instead."""


class _Version(argparse.Action):
    """As argparse's own, but looks for the version only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 - argparse's way of calling
        values: object,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        import importlib.metadata  # noqa: PLC0415 - takes longer to load than most commands to run

        try:
            version = importlib.metadata.version("kloros-llm")
        except importlib.metadata.PackageNotFoundError:
            version = "(from a checkout)"
        print(f"modelctl {version}")
        parser.exit()


def _common(parser: argparse.ArgumentParser, *, is_first: bool = False) -> None:
    """Options that may stand before or after the command."""

    def default(value: object) -> Any:
        return value if is_first else argparse.SUPPRESS

    parser.add_argument(
        "--json", action="store_true", default=default(False), help="answer with JSON"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        default=default(None),
        help="what the playbook wrote (/etc/kloros-llm/plan.json)",
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        metavar="DIR",
        default=default(None),
        help="the models' directory (the plan's, or /var/lib/kloros-llm/models)",
    )


def _command(
    commands: Commands, name: str, help_text: str, description: str, json_keys: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help_text,
        description=textwrap.dedent(description).strip(),
        epilog=textwrap.fill(f"--json: {json_keys}", 96, subsequent_indent="  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _common(parser)
    return parser


def _hub(parser: argparse.ArgumentParser) -> None:
    """Options of commands that reach the Hub."""
    parser.add_argument("--hf-endpoint", metavar="URL", help="a mirror of the Hub (or HF_ENDPOINT)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the Hub's token (or HF_TOKEN)"
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=30,
        metavar="S",
        help="seconds to wait for a server's next word (%(default)s)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def _list(commands: Commands) -> None:
    _command(
        commands,
        "list",
        "the models that are here",
        "The models in the models' directory, and what uses them.",
        """{"models_dir", "models": [{"name", "aliases", "file", "path", "paths", "size_bytes",
        "quantisation", "architecture", "version", "previous", "versions", "revision", "source",
        "verified", "damaged", "used_by"}], "unrecorded": [path]}""",
    )


def _pull(commands: Commands) -> None:
    parser = _command(
        commands,
        "pull",
        "get models",
        f"""
        Get models. A SOURCE is {SOURCE_FORMS};
        the name of a model of the plan stands for its source. The first shard of a split model
        stands for all of them. What was interrupted goes on where it was; what is there already
        is left alone (`modelctl update` looks for newer versions).
        """,
        """{"models": [{"name", "path", "paths", "action": "none"|"record"|"fetch", "changed",
        "size_bytes", "sha256", "version", "revision", "verified", "bytes_fetched",
        "bytes_resumed"}], "failed": [{"source", "error", "exit_code"}]}""",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a source, or a planned name")
    parser.add_argument("--name", help="its name here (else that of the file)")
    parser.add_argument("--file", metavar="NAME", help="the file's name here (else the source's)")
    parser.add_argument("--sha256", metavar="HEX", help="what the file must have")
    parser.add_argument("--revision", help="of a hf:// source: branch, tag or commit")
    parser.add_argument(
        "--mmproj", metavar="SOURCE", help="the vision projector that belongs to it"
    )
    parser.add_argument(
        "--offline-dir",
        type=Path,
        metavar="DIR",
        help="take files from there where it has them (DIR/OWNER/REPOSITORY/FILE or DIR/FILE)",
    )
    parser.add_argument(
        "--reserve-mib",
        type=_natural,
        default=1024,
        metavar="MIB",
        help="what must stay free on the disk (%(default)s)",
    )
    parser.add_argument(
        "--parallel",
        type=_positive,
        default=2,
        metavar="N",
        help="how many models at once (%(default)s)",
    )
    _hub(parser)


def _rm(commands: Commands) -> None:
    parser = _command(
        commands,
        "rm",
        "remove models",
        "Remove models with all their versions, or one version (NAME@VERSION). What an instance\n"
        "or a running process uses stays: exit status 4.",
        """{"removed": [{"name", "paths", "freed_bytes", "changed"}], "dry_run"}""",
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def _show(commands: Commands) -> None:
    parser = _command(
        commands,
        "show",
        "what a model is",
        f"""
        What a model is: by its name here, by a file's path, or by a SOURCE of which only the header
        is read: {SOURCE_FORMS}.
        """,
        """{"name", "path"|null, "source"|null, "facts": {"architecture", "quantisation",
        "size_bytes", "context_trained", "shape": {...}, ...}, "record": {...}|null, "aliases",
        "versions": [{"id", "digest", "revision", "source", "size_bytes", "added_at", "active",
        "previous", "verified", "damaged"}], "metadata": {...}, "tensors": [...] (if asked for)}""",
    )
    parser.add_argument("what", metavar="NAME|SOURCE|PATH")
    parser.add_argument("--metadata", action="store_true", help="all of the header's key-values")
    parser.add_argument("--tensors", action="store_true", help="the header's tensors")
    _hub(parser)


def _ps(commands: Commands) -> None:
    parser = _command(
        commands,
        "ps",
        "the instances, and how they are",
        "The instances of the plan: what systemd and the servers themselves say.",
        """{"instances": [{"name", "unit", "url", "model", "aliases", "state", "active", "sub",
        "pid", "slots", "slots_busy", "context_tokens", "kv_cache", "gpus", "memory_bytes",
        "gpu_memory_mib", "restarts", "active_since", "model_path", "note"}]}""",
    )
    parser.add_argument("instances", nargs="*", metavar="INSTANCE")


def _status(commands: Commands) -> None:
    parser = _command(
        commands,
        "status",
        "whether all is well: instances, disk, GPUs",
        "Whether the instances of the plan run and answer, and what disk and GPUs have left.\n"
        "Exit status 1 where an instance is not ready.",
        """{"ok", "instances": [as of ps], "disk": {"path", "mount", "free_bytes", "total_bytes",
        "models_bytes"}, "gpus": {"status", "detail", "cure", "driver", "gpus": [...]},
        "llama_cpp": {"release"}}""",
    )
    parser.add_argument("instances", nargs="*", metavar="INSTANCE")


def _logs(commands: Commands) -> None:
    parser = _command(
        commands,
        "logs",
        "what an instance wrote to the journal",
        "The journal of an instance's unit (journalctl).",
        """journalctl's own: one JSON object a line""",
    )
    parser.add_argument("instance", metavar="INSTANCE")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as more comes")
    parser.add_argument("-n", "--lines", type=_natural, default=100, help="how many (%(default)s)")
    parser.add_argument("--since", metavar="TIME", help="as journalctl takes it")


def _fit(commands: Commands) -> None:
    parser = _command(
        commands,
        "fit",
        "what memory a model would take",
        f"""
        What a model would take, installed or not. Of a SOURCE only the header is read:
        {SOURCE_FORMS}.
        Memory is counted by formulas, and by the installed llama-server itself in a dry run, whose
        word counts. Without --gpus, --gpu or --cpu: on all GPUs of this host, else on the CPU.
        Exit status 5 where it does not fit.
        """,
        """{"fits": true|false|null (null: nobody knows what is free), "devices": [{"name",
        "title", "uuid", "weights_mib", "kv_mib", "compute_mib", "overhead_mib", "total_mib",
        "memory_mib", "free_mib", "fits", "approximate"}], "by": "engine"|"formulas",
        "formulas": [as devices]|null, "engine": {"server", "error"}|null, "model": {...},
        "settings": {...}, "ways_out": [text], "notes": [text]}""",
    )
    parser.add_argument("what", metavar="SOURCE|NAME|PATH")
    parser.add_argument(
        "--context",
        type=_positive,
        metavar="TOKENS",
        help="tokens a slot (else what the model was trained with)",
    )
    parser.add_argument("--parallel", type=_positive, default=1, metavar="N", help="slots (1)")
    parser.add_argument(
        "--kv-cache", choices=KV_CACHE_TYPES, default="f16", metavar="TYPE", help="of K and V (f16)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", metavar="0,1", help="on these GPUs of the host, by index or UUID")
    where.add_argument("--cpu", action="store_true", help="on the CPU alone")
    where.add_argument(
        "--gpu",
        type=_positive,
        action="append",
        metavar="MIB",
        help="on a GPU with that much free memory, whether there is one or not; may be repeated",
    )
    parser.add_argument(
        "--gpu-layers", type=_natural, metavar="N", help="layers on the GPUs (else all)"
    )
    parser.add_argument(
        "--cpu-moe-layers",
        type=_natural,
        default=0,
        metavar="N",
        help="layers whose experts stay in the host's memory (0)",
    )
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--server",
        type=Path,
        metavar="FILE",
        help="the llama-server to ask (/opt/llama.cpp/current/bin/llama-server)",
    )
    engine.add_argument("--no-engine", action="store_true", help="formulas alone")
    _hub(parser)


def _verify(commands: Commands) -> None:
    parser = _command(
        commands,
        "verify",
        "read models and compare their digests",
        "Read every byte of models and compare the digests. Exit status 7 where one differs.",
        """{"ok", "files": [{"name", "version", "path", "role", "state":
        "good"|"damaged"|"missing", "size_bytes", "detail"}]}""",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="else all")


def _update(commands: Commands) -> None:
    parser = _command(
        commands,
        "update",
        "get newer versions",
        """
        Look for newer versions at the models' sources and get them. The older version stays in
        use until --promote or `modelctl promote`, and stays here for `modelctl rollback`.
        """,
        """{"models": [{"name", "available": true|false|null, "detail", "newest": [...] (with
        --check), "fetched", "version", "promoted", "restart": [unit] (without)}],
        "failed": [{"name", "error", "exit_code"}]}""",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="else all")
    parser.add_argument("--check", action="store_true", help="only look, and get nothing")
    parser.add_argument("--promote", action="store_true", help="use the newer version from now on")
    parser.add_argument("--restart", action="store_true", help="and restart what uses it")
    parser.add_argument(
        "--reserve-mib",
        type=_natural,
        default=1024,
        metavar="MIB",
        help="what must stay free on the disk (%(default)s)",
    )
    _hub(parser)


_SWITCH_KEYS: Final = """{"name", "before", "after", "path", "changed", "restart": [unit],
        "restarted": [unit], "users": [text]}"""


def _promote(commands: Commands) -> None:
    parser = _command(
        commands,
        "promote",
        "choose the version that a name stands for",
        "Have a name, or an alias, stand for another version of its model from now on.",
        _SWITCH_KEYS,
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("version", metavar="VERSION", help="its id, or the first digits of it")
    parser.add_argument("--restart", action="store_true", help="restart what uses it")


def _rollback(commands: Commands) -> None:
    parser = _command(
        commands,
        "rollback",
        "back to the version before",
        "Have a name, or an alias, stand for the version that it stood for before.",
        _SWITCH_KEYS,
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--restart", action="store_true", help="restart what uses it")


def _alias(commands: Commands) -> None:
    parser = _command(
        commands,
        "alias",
        "further names of models",
        """
        Have a further name stand for a model: NAME follows whatever version of it is in use;
        NAME@VERSION stays with that version until `modelctl promote ALIAS VERSION`. Without
        arguments: what aliases there are. Those of the inventory are changed there.
        """,
        """{"aliases": [{"alias", "model", "version"|null (it follows), "previous"|null}]}""",
    )
    parser.add_argument("alias", nargs="?", metavar="ALIAS")
    parser.add_argument("target", nargs="?", metavar="NAME[@VERSION]")
    parser.add_argument("--remove", action="store_true", help="forget the alias")


def _gc(commands: Commands) -> None:
    parser = _command(
        commands,
        "gc",
        "remove what nobody needs",
        """
        Remove what downloads left behind, and versions that nobody needs. Of a model's versions
        these stay: the one in use and the one before, those that an alias stands for, the newest,
        those that were rolled back from (until a new one is promoted), and whatever is in use.
        """,
        """{"items": [{"path", "why", "freed_bytes"}], "freed_bytes", "dry_run"}""",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument(
        "--older-than",
        type=float,
        default=7.0,
        metavar="DAYS",
        help="leave alone what is younger (%(default)g)",
    )


def _completion(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="what makes a shell complete modelctl",
        description=textwrap.dedent("""
        Print what makes a shell complete modelctl's commands, options, models and instances:

          modelctl completion bash > /etc/bash_completion.d/modelctl
          modelctl completion zsh  > /usr/local/share/zsh/site-functions/_modelctl
          modelctl completion fish > /etc/fish/completions/modelctl.fish
        """).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
