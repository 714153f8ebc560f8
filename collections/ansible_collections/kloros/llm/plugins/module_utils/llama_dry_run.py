"""What a llama-server itself says an instance would take, without loading the model.

Read from llama.cpp v0.5.0-dev (common/fit.cpp, common/common.cpp, tools/server) and tried on it:

* With `--fit on` the server loads the model without allocating anything, reserves the graphs of
  this very configuration, and logs `fit_memory_breakdown`, before it changes any parameter and
  before it loads for good. With `--fit off`, as instances have it, there is no such line; `fit` is
  the only setting that a dry run changes, and the first line tells of the placement as given.
* A draft model follows with a line of its own. Of a projector (mmproj) only the sum a device is
  told, at verbosity 5.
* Between the end of the measuring and the first weights it reads the header and the vocabulary once
  more, 0.1 s or longer; it is killed as soon as the measuring is over. (100 of 100 dry runs ended
  before the weights, half of them with every core taken by others.)
* `-sm tensor` is not measured. `llama-fit-params` then gives one sum over all GPUs.
* Adapters (LoRA, control vectors) are read after the weights, so never here.
* With a CUDA build the process holds a CUDA context on its GPUs for that moment.

A GGUF from the net is parsed by C++ code here: never as root, never with privileges, and with no
key or token in reach.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import re
import resource
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from .gguf_header_files import Header, give_to, lay_out
from .llama_environment import EXTRA_ARGS
from .llama_help import ServerOption, parse_help
from .systemd_env import split_args

Program = Literal["llama-server", "llama-fit-params"]

DEFAULT_USER: Final = "nobody"
DEFAULT_TIMEOUT_S: Final = 120.0
HOST: Final = "Host"
SYSTEM_CONFIG: Final = Path("/etc/llama.cpp/config.ini")

_MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024
_CANNOT_EXECUTE: Final = (126, 127)
_MAX_WORDS: Final = 20
_MAX_WORD_CHARACTERS: Final = 500

# What has no say in what memory is taken, but would reach out of the dry run: listen, write, read a
# secret, start programs, fetch; or point to what only the service's user and directories have.
_DROPPED_OPTIONS: Final[Mapping[str, int]] = {
    "--agent": 0,
    "--api-key": 1,
    "--api-key-file": 1,
    "--chat-template-file": 1,
    "--fit": 1,
    "--grammar-file": 1,
    "--host": 1,
    "--json-schema-file": 1,
    "--log-disable": 0,
    "--log-file": 1,
    "--log-jsonl": 0,
    "--log-verbose": 0,
    "--log-verbosity": 1,
    "--lookup-cache-dynamic": 1,
    "--lookup-cache-static": 1,
    "--mcp-servers-config": 1,
    "--mcp-servers-json": 1,
    "--media-path": 1,
    "--no-log-jsonl": 0,
    "--path": 1,
    "--port": 1,
    "--reuse-port": 0,
    "--slot-save-path": 1,
    "--ssl-cert-file": 1,
    "--ssl-key-file": 1,
    "--tools": 1,
    "--tools-runtime": 1,
    "--ui-config-file": 1,
    "--verbose": 0,
    "--verbosity": 1,
    "--webui-config-file": 1,
    "-ag": 0,
    "-fit": 1,
    "-jf": 1,
    "-lcd": 1,
    "-lcs": 1,
    "-lv": 1,
    "-v": 0,
}
_DROPPED_VARIABLES: Final = frozenset(
    {
        EXTRA_ARGS,
        "HF_TOKEN",
        "LLAMA_API_KEY",
        "LLAMA_ARG_AGENT",
        "LLAMA_ARG_API_KEY_FILE",
        "LLAMA_ARG_CHAT_TEMPLATE_FILE",
        "LLAMA_ARG_LOG_FILE",
        "LLAMA_ARG_MCP_SERVERS_CONFIG",
        "LLAMA_ARG_MCP_SERVERS_JSON",
        "LLAMA_ARG_PORT",
        "LLAMA_ARG_REUSE_PORT",
        "LLAMA_ARG_SSL_CERT_FILE",
        "LLAMA_ARG_SSL_KEY_FILE",
        "LLAMA_ARG_STATIC_PATH",
        "LLAMA_ARG_TOOLS",
        "LLAMA_ARG_UI_CONFIG_FILE",
    }
)
_ADAPTERS: Final = (
    "--lora",
    "--lora-scaled",
    "--control-vector",
    "--control-vector-scaled",
)
_SPLIT_MODE: Final = ("LLAMA_ARG_SPLIT_MODE", ("--split-mode", "-sm"))
_PROJECTOR: Final = ("LLAMA_ARG_MMPROJ", ("--mmproj", "-mm"))
_DRAFT_MODEL: Final = ("LLAMA_ARG_SPEC_DRAFT_MODEL", ("--spec-draft-model", "--model-draft", "-md"))
_FIT: Final = ("LLAMA_ARG_FIT", ("--fit", "-fit"))
_CONTEXT: Final = ("LLAMA_ARG_CTX_SIZE", ("--ctx-size", "-c"))
_SPECULATION: Final = ("LLAMA_ARG_SPEC_TYPE", ("--spec-type",))
_GPU_LAYERS: Final = ("LLAMA_ARG_N_GPU_LAYERS", ("--n-gpu-layers", "--gpu-layers", "-ngl"))

_PROJECTOR_SHARE: Final = re.compile(r"adding ([0-9.]+) MiB to fit_params_target for device (\S+)")
_TABLE_ROW: Final = re.compile(r"(\S+) ([0-9]+) ([0-9]+) ([0-9]+) *")
# The server's messages from the moment when all is measured, in the order of the source.
_MEASURED: Final = (
    "projected to use",
    "projected memory use",
    "successfully fit params",
    "fitting params to free memory took",
)


class DryRunError(Exception):
    """There is no answer, neither rows nor a refusal; the message says why and what to do."""


@dataclass(frozen=True)
class DeviceRow:
    """What one device takes, in whole MiB, rounded down.

    `device` is a GPU as llama-server calls it ("CUDA0"), "Host", or a kind of buffer that belongs
    to no single device ("Meta()" for all GPUs of `-sm tensor`). `total_mib` and `free_mib` are what
    the device said at the time, None for all but GPUs.
    """

    device: str
    weights_mib: int
    kv_mib: int
    compute_mib: int
    total_mib: int | None = None
    free_mib: int | None = None

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class DryRun:
    """The engine's answer.

    `accepted`: it would load the model; if not, `last_words` are its own and `rows` is empty.
    `rows`: the model's, GPUs in the engine's order, then Host. `draft_rows`: those of the draft
    model's weights and context, or of an MTP context. `projector_mib`: the projector's worst case a
    device. `not_covered`: sentences on what the numbers leave out.
    """

    asked: Program
    accepted: bool
    rows: tuple[DeviceRow, ...] = ()
    draft_rows: tuple[DeviceRow, ...] = ()
    projector_mib: Mapping[str, float] | None = None
    not_covered: tuple[str, ...] = ()
    last_words: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "asked": self.asked,
            "accepted": self.accepted,
            "rows": [row.to_data() for row in self.rows],
            "draft_rows": [row.to_data() for row in self.draft_rows],
            "projector_mib": dict(self.projector_mib or {}),
            "not_covered": list(self.not_covered),
            "last_words": list(self.last_words),
        }


def dry_run(
    server: Path,
    environment: Mapping[str, str],
    header_file: Path | None = None,
    *,
    headers: Mapping[str, Sequence[Header]] | None = None,
    user: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> DryRun:
    """Ask `server` what an instance with `environment` would take.

    `environment` is the instance's, as its unit gives it to the server; `LLAMA_EXTRA_ARGS` in it is
    split as systemd does. `header_file` stands in for the model. `headers` maps paths that the
    environment names to the headers that stand in for them. All else is read where it lies,
    header only.

    As root the engine runs as `user` (default `nobody`), which must be able to read the files and
    to use the GPUs; else `user` has no effect.

    Raises DryRunError.
    """
    if not os.access(server, os.X_OK):
        raise DryRunError(f"there is no program {server}; install llama.cpp first")
    account = _account(user)
    with _private_folder() as folder:
        try:
            laid_out = lay_out(headers or {}, folder)
            places = {path: str(place) for path, place in laid_out.items()}
            if account:
                give_to(folder, account.pw_uid, account.pw_gid)
        except OSError as error:
            raise DryRunError(f"the headers cannot be written below {folder}: {error}") from error
        if header_file:
            places[environment.get("LLAMA_ARG_MODEL", "")] = str(header_file)
        run = _Run(server, environment, places, folder, account, time.monotonic() + timeout_s)
        if run.value_of(_SPLIT_MODE) == "tensor":
            answer = _ask_fit_params(run, "llama-server does not measure split mode tensor")
        else:
            answer = _ask_server(run)
        return _in_the_callers_names(answer, run, places)


class _Breakdown:
    """Makes an answer of the server's log, line by line."""

    def __init__(
        self, *, shares_weights: bool = False, fits: bool = False, has_draft: bool = False
    ) -> None:
        self.rows: tuple[DeviceRow, ...] = ()
        self.draft_rows: tuple[DeviceRow, ...] = ()
        self.projector_mib: dict[str, float] = {}
        self.not_covered: list[str] = []
        self.words: list[str] = []
        self.done = False
        self.refused = False
        self.unmeasured = ""
        self._shares_weights = shares_weights
        self._fits = fits
        self._has_draft = has_draft
        self._of_draft = False
        self._in_usage = False

    def out(self, line: str) -> None:
        """A line of the standard output: with --log-jsonl all of the log."""
        if not line.startswith("{"):
            self._say(line)
            return
        try:
            entry = json.loads(line)
            kind = entry["type"]
            if kind == "fit_memory_breakdown":
                self._take(_rows_of(entry["data"]))
            elif kind == "log":
                self._message(str(entry["msg"]).strip(), entry["level"] == "error")
        except (ValueError, TypeError, KeyError, AttributeError):
            self._say(line)

    def err(self, line: str) -> None:
        """A line of the standard error: what goes wrong before or beside logging."""
        # On a bad argument, the usage of the option follows the error.
        self._in_usage = self._in_usage or line.startswith("usage:")
        if not (self._in_usage or line.startswith("warn: LLAMA_ARG_")):
            self._say(line)

    def _take(self, rows: tuple[DeviceRow, ...]) -> None:
        if self.done:
            return
        if not self._of_draft:
            # With no context given, fitting makes it larger and measures again: not without it.
            self.rows = rows if self._fits else self.rows or rows
            # Where nothing more can follow, the next is the load.
            self.done = not (self._fits or self._has_draft)
        elif self._shares_weights:
            self.draft_rows = tuple(replace(row, weights_mib=0) for row in rows)
        else:
            self.draft_rows = rows

    def _message(self, message: str, is_error: bool) -> None:
        if is_error:
            self._say(message)
        if share := _PROJECTOR_SHARE.search(message):
            device = HOST if share[2].startswith("CPU") else share[2]
            self.projector_mib[device] = self.projector_mib.get(device, 0.0) + float(share[1])
        elif "failed to get memory usage of mmproj" in message:
            self.refused = True
        elif "getting device memory data for the extra model" in message:
            self._of_draft = True
        elif "failed to measure the memory of the extra model" in message:
            if message.endswith("failed to load model"):
                self.refused = True
            else:
                self.not_covered.append(f"the draft model: {message.rpartition(': ')[2]}")
        elif "error while trying to fit params" in message:
            self.refused = True
        elif "failed to fit params" in message and not self.rows:
            self.unmeasured = message.rpartition("failed to fit params to free device memory: ")[2]
        elif self.rows and any(text in message for text in _MEASURED):
            self.done = True

    def _say(self, text: str) -> None:
        text = text.strip()[:_MAX_WORD_CHARACTERS]
        if text and text not in self.words:
            self.words.append(text)
            del self.words[:-_MAX_WORDS]


def _rows_of(data: Any) -> tuple[DeviceRow, ...]:
    """The rows of one `fit_memory_breakdown`; raises KeyError, TypeError or ValueError."""
    if data["unit"] != "MiB":
        raise ValueError(f"unknown unit {data['unit']!r}")
    devices: list[DeviceRow] = []
    others: list[DeviceRow] = []
    host = DeviceRow(HOST, 0, 0, 0)
    for row in data["rows"]:
        name = str(row["name"])
        parts = int(row["model"]), int(row["context"]), int(row["compute"])
        if row["kind"] == "device":
            devices.append(DeviceRow(name, *parts, int(row["total"]), int(row["free"])))
        elif row["kind"] == "host" or name.startswith("CPU"):
            # The CPU's own buffer types, such as CPU_REPACK, are not in the row of the host.
            host = DeviceRow(
                HOST,
                host.weights_mib + parts[0],
                host.kv_mib + parts[1],
                host.compute_mib + parts[2],
            )
        else:
            others.append(DeviceRow(name, *parts))
    return (*devices, *others, host)


@dataclass
class _Run:
    """One question: the program's surroundings and how long it may still take."""

    server: Path
    environment: Mapping[str, str]
    places: Mapping[str, str]
    folder: Path
    account: pwd.struct_passwd | None
    deadline: float

    @property
    def arguments(self) -> list[str]:
        """The instance's own arguments, with what stands in for its files."""
        given = split_args(self.environment.get(EXTRA_ARGS, ""))
        return [self.places.get(word, word) for word in _without_dropped(given)]

    def variables(self) -> dict[str, str]:
        """The variables of the instance, and those of a dry run."""
        kept = {
            name: self.places.get(value, value)
            for name, value in self.environment.items()
            if name not in _DROPPED_VARIABLES
        }
        return {
            "PATH": "/usr/bin:/bin",
            **kept,
            "HOME": str(self.folder),
            "LLAMA_ARG_HOST": str(self.folder / "listen.sock"),
            "LLAMA_ARG_FIT": "on",
            "LLAMA_ARG_LOG_JSONL": "1",
            "LLAMA_ARG_LOG_VERBOSITY": "5" if self.value_of(_PROJECTOR) else "4",
            "LLAMA_ARG_OFFLINE": "1",
            # A crash is told without starting a debugger.
            "GGML_NO_BACKTRACE": "1",
        }

    @property
    def fits(self) -> bool:
        """Whether the instance itself fits what is not set to the free memory."""
        return self.value_of(_FIT) not in ("off", "disabled", "false", "0")

    def value_of(self, option: tuple[str, Sequence[str]]) -> str:
        """What the instance says for an option, "" if nothing; an argument beats a variable."""
        variable, flags = option
        words = split_args(self.environment.get(EXTRA_ARGS, ""))
        found = self.environment.get(variable, "")
        for flag, value in itertools.pairwise(words):
            if flag in flags:
                found = value
        return found

    def execute(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        out: Callable[[str], None],
        err: Callable[[str], None],
        enough: Callable[[], bool],
    ) -> int | None:
        """Run a program until it ends or has said `enough`; its exit status, None if stopped.

        It can never outlive this process, and never has more rights than the user.
        """
        argv = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]
        if self.account:
            argv += [
                f"--reuid={self.account.pw_uid}",
                f"--regid={self.account.pw_gid}",
                "--init-groups",
                "--inh-caps=-all",
                "--bounding-set=-all",
            ]
        argv += ["--", "nice", "-n", "10", *command]
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell; the program is the host's own
                argv,
                env=dict(variables),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise DryRunError(f"{command[0]} cannot be run: {error}") from error
        try:
            with contextlib.suppress(OSError):
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
            self._listen(process, Path(command[0]).name, out, err, enough)
            return None if enough() else process.wait(max(0.1, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._too_late(Path(command[0]).name) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()

    def _listen(
        self,
        process: subprocess.Popen[bytes],
        name: str,
        out: Callable[[str], None],
        err: Callable[[str], None],
        enough: Callable[[], bool],
    ) -> None:
        unfinished = {process.stdout: b"", process.stderr: b""}
        takers = {process.stdout: out, process.stderr: err}
        received = 0
        with selectors.DefaultSelector() as selector:
            for pipe in takers:
                if pipe:
                    selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                left_s = self.deadline - time.monotonic()
                ready = selector.select(max(0.0, left_s))
                if not ready:
                    raise self._too_late(name)
                for key, _ in ready:
                    pipe = next(one for one in takers if one is key.fileobj)
                    chunk = os.read(key.fd, 65536)
                    received += len(chunk)
                    *lines, rest = (unfinished[pipe] + chunk).split(b"\n")
                    if not chunk:
                        selector.unregister(key.fileobj)
                        lines, rest = [rest], b""
                    unfinished[pipe] = rest
                    for line in lines:
                        takers[pipe](line.decode(errors="replace"))
                        if enough():
                            return
                    if received > _MAX_OUTPUT_BYTES:
                        raise DryRunError(
                            f"{name} wrote {received} bytes without an answer; this is no "
                            "llama.cpp program, or a fault of it"
                        )

    def _too_late(self, name: str) -> DryRunError:
        return DryRunError(
            f"{name} gave no answer in time and was stopped; a GPU that hangs would do that "
            "(nvidia-smi tells), or a host that is very busy: try again with a longer timeout"
        )


def _ask_server(run: _Run) -> DryRun:
    has_draft_model = bool(run.value_of(_DRAFT_MODEL))
    breakdown = _Breakdown(
        shares_weights=not has_draft_model,
        fits=run.fits,
        has_draft=has_draft_model or "mtp" in run.value_of(_SPECULATION),
    )
    status = run.execute(
        [str(run.server), *run.arguments],
        run.variables(),
        breakdown.out,
        breakdown.err,
        lambda: bool(breakdown.done or breakdown.refused or breakdown.unmeasured),
    )
    words = tuple(breakdown.words)
    if breakdown.unmeasured:
        return _ask_fit_params(run, f"llama-server does not measure this: {breakdown.unmeasured}")
    _check_it_could_work(run.server, status, words)
    if breakdown.refused:
        return DryRun("llama-server", accepted=False, last_words=words)
    if not breakdown.done:
        if status:
            ending = _ending(status)
            return DryRun("llama-server", accepted=False, last_words=(*words, ending))
        raise DryRunError(
            f"{run.server} ended without saying what memory it would take; "
            "needed: llama.cpp of 2026 or later, which knows --log-jsonl"
            + (f". It said: {' / '.join(words)}" if words else "")
        )
    missing = breakdown.not_covered + _never_covered(run)
    if breakdown.draft_rows and not run.fits and run.value_of(_CONTEXT) in ("", "0"):
        missing.append("the draft model's context: it was measured at a larger one; set ctx-size")
    if run.value_of(_PROJECTOR) and not breakdown.projector_mib:
        missing.append("the projector: the server did not tell its share a device")
    return DryRun(
        "llama-server",
        accepted=True,
        rows=breakdown.rows,
        draft_rows=breakdown.draft_rows,
        projector_mib=breakdown.projector_mib,
        not_covered=tuple(missing),
    )


def _ask_fit_params(run: _Run, reason: str) -> DryRun:
    program = run.server.with_name("llama-fit-params")
    if not os.access(program, os.X_OK):
        raise DryRunError(f"{reason}, and there is no {program} to ask instead")
    page: list[str] = []
    variables = run.variables()
    run.execute([str(program), "--help"], variables, page.append, page.append, lambda: False)
    known = {flag: option for option in parse_help("\n".join(page)) for flag in option.flags}
    arguments, dropped = _only_known(run.arguments, known)
    # Without it the tool takes one slot, the server four.
    variables.setdefault("LLAMA_ARG_N_PARALLEL", "4")
    rows: list[DeviceRow] = []
    breakdown = _Breakdown()

    def out(line: str) -> None:
        found = _TABLE_ROW.fullmatch(line)
        if found:
            rows.append(DeviceRow(found[1], *(int(number) for number in found.groups()[1:])))
        else:
            breakdown.out(line)

    command = [str(program), *arguments, "--fit-print", "on"]
    status = run.execute(command, variables, out, breakdown.err, lambda: False)
    words = tuple(breakdown.words)
    _check_it_could_work(program, status, words)
    if status:
        return DryRun("llama-fit-params", accepted=False, last_words=(*words, _ending(status)))
    if not rows:
        raise DryRunError(f"{program} printed no memory use: {' / '.join(words)}")
    missing = [f"{reason}; llama-fit-params was asked, which counts outputs differently"]
    if any(row.device.startswith("Meta") for row in rows):
        missing.append(
            "what each GPU takes: the row is the sum of the model's parts, without what every GPU "
            "of split mode tensor holds a copy of"
        )
    if dropped:
        missing.append(f"arguments that llama-fit-params does not know: {' '.join(dropped)}")
    if run.value_of(_DRAFT_MODEL):
        missing.append("the draft model")
    if run.value_of(_PROJECTOR):
        missing.append("the projector")
    return DryRun(
        "llama-fit-params",
        accepted=True,
        rows=tuple(rows),
        not_covered=(*missing, *_never_covered(run)),
    )


def _check_it_could_work(program: Path, status: int | None, words: Sequence[str]) -> None:
    """That a refusal is the engine's own, not that of a host on which it could not work."""
    said = " / ".join(words)
    if status in _CANNOT_EXECUTE:
        raise DryRunError(f"{program} cannot be run on this host: {said}")
    if "Permission denied" in said:
        raise DryRunError(
            f"{program} may not read what it needs: {said}. Name a user who can read the models, "
            "and see that TMPDIR is a directory that every user may enter"
        )


def _never_covered(run: _Run) -> list[str]:
    missing = []
    given = split_args(run.environment.get(EXTRA_ARGS, ""))
    if adapters := [word for word in given if word in _ADAPTERS]:
        missing.append(f"adapters ({', '.join(adapters)}): they are read after the weights")
    if run.fits and run.value_of(_GPU_LAYERS) in ("", "auto"):
        missing.append(
            "the fitting of the layers to the free memory: the rows are for the model as a whole"
        )
    if SYSTEM_CONFIG.exists():
        missing.append(f"{SYSTEM_CONFIG} was read, which the instance's unit hides")
    return missing


def _without_dropped(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word not in _DROPPED_OPTIONS:
            kept.append(word)
            continue
        for _ in range(_DROPPED_OPTIONS[word]):
            next(rest, None)
    return kept


def _only_known(
    words: Sequence[str], known: Mapping[str, ServerOption]
) -> tuple[list[str], list[str]]:
    """The arguments that a program knows, and those that it does not, each with its values."""
    kept: list[str] = []
    dropped: list[str] = []
    taker, left = kept, 0
    for word in words:
        if left:
            left -= 1
        elif word in known:
            taker, left = kept, known[word].value_count
        elif word.startswith("-"):
            taker = dropped
        taker.append(word)
    return kept, dropped


def _ending(status: int) -> str:
    if status >= 0:
        return f"it ended with exit status {status}"
    with contextlib.suppress(ValueError):
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it was ended by signal {-status}"


def _in_the_callers_names(answer: DryRun, run: _Run, places: Mapping[str, str]) -> DryRun:
    """The answer with its words about stand-ins turned into words about what they stand for."""

    def named(text: str) -> str:
        for path, place in places.items():
            text = text.replace(place, path)
        return text.replace(f"{run.folder}/", "")

    return replace(
        answer,
        last_words=tuple(named(text) for text in answer.last_words),
        not_covered=tuple(named(text) for text in answer.not_covered),
    )


def _account(user: str | None) -> pwd.struct_passwd | None:
    """Who the engine runs as; None: as we do."""
    if os.geteuid() != 0:
        return None
    name = user or DEFAULT_USER
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise DryRunError(
            f"there is no user {name!r} to run the engine as; make it first, or name another"
        ) from None
    if account.pw_uid == 0:
        raise DryRunError("the engine parses files from the net; it is not run as root")
    return account


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A directory that only its owner can enter, removed afterwards whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="llama-dry-run-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
