"""`gateway.toml`: who listens where, which instances there are, and what names stand for.

The form, in full with a comment a key, is in docs/gateway.toml:

    models_dir, state_dir        folders: the store's models; what clients create
    hf_endpoint, hf_token_file, ollama_version, think_inline, log_prompts

    [[listeners]]                address, port, instances, socket_name, origins,
                                 api_key_file, tls_certificate, tls_key
    [instances.NAME]             url, kind, model, context_tokens, model_context_tokens,
                                 slots, embeddings, api_key_file, fallback, memory_bytes,
                                 vram_bytes, pulled_models_dir
    [models."NAME"]              path, mmproj, aliases, instances
    [personas."NAME"]            from, system, template, parameters, messages, license,
                                 adapters, instances
    [limits]                     see Limits
    [metrics]                    address, port

Relative paths begin at the file's folder; those of keys and certificates at
`$CREDENTIALS_DIRECTORY` first, where systemd puts what LoadCredential= names.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from .config_checks import check, host_and_port
from .errors import ApiError
from .ollama_api.options import NAMES, checked
from .toml_table import Table, found

_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*[0-9A-Za-z.+-]*\Z")
_ROLES = ("system", "user", "assistant", "tool")
_MOST_TOKENS = 1 << 24
_MOST_BYTES = 1 << 34
_MOST_MEMORY_BYTES = 1 << 50


@dataclass(frozen=True)
class Listener:
    """One address that clients use. It lists and serves what `instances` serve; None: all do.

    `socket_name` is the name of its socket where systemd opens it (FileDescriptorName=).
    """

    address: str
    port: int
    instances: tuple[str, ...] | None = None
    socket_name: str = ""
    origins: tuple[str, ...] = ()
    api_key_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None


@dataclass(frozen=True)
class Instance:
    """One llama-server. A router has no model of its own; `context_tokens` are those of a slot, for
    models that `model_context_tokens` does not name.

    `memory_bytes` and `vram_bytes` are by the name of a model: what it takes when it is loaded
    there, in all and of it on GPUs, as far as that was planned. A router that was started with
    `pulled_models_dir` as its LLAMA_ARG_MODELS_DIR serves also what the store has beside `models`:
    the gateway keeps links to it there.
    """

    name: str
    url: str
    kind: Literal["dedicated", "router"] = "dedicated"
    model: str | None = None
    context_tokens: int = 4096
    model_context_tokens: Mapping[str, int] = field(default_factory=dict)
    slots: int = 1
    embeddings: bool = False
    api_key_file: Path | None = None
    fallback: str | None = None
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    vram_bytes: Mapping[str, int] = field(default_factory=dict)
    pulled_models_dir: Path | None = None

    def slot_tokens(self, model: str) -> int:
        """The context of one slot while it has this model loaded."""
        return self.model_context_tokens.get(model, self.context_tokens)


@dataclass(frozen=True)
class Model:
    """A model of the store. `instances` serve it, in order of preference.

    Without any it is not listed; clients can name it in FROM. `router_id` is what routers call
    one that gateway.toml does not have.
    """

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    mmproj: Path | None = None
    instances: tuple[str, ...] = ()
    router_id: str = ""

    @property
    def engine_name(self) -> str:
        """By what engines that serve several models know it."""
        return self.router_id or self.name


@dataclass(frozen=True)
class PersonaSettings:
    """What a Modelfile says, under the name that clients use. `instances` None: its model's."""

    name: str
    from_: str
    system: str | None = None
    template: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    license: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    instances: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """Bounds on what one client, or a missing engine, can take."""

    body_bytes: int = 64 << 20
    header_bytes: int = 16 << 10
    header_s: float = 20.0
    body_s: float = 120.0
    queue: int = 512
    wait_s: float = 300.0
    connect_s: float = 2.0
    stall_s: float = 300.0
    drain_s: float = 25.0


@dataclass(frozen=True)
class Metrics:
    """Where Prometheus asks."""

    address: str
    port: int


@dataclass(frozen=True)
class Config:
    """All of gateway.toml."""

    listeners: tuple[Listener, ...]
    instances: Mapping[str, Instance]
    models: Mapping[str, Model]
    personas: Mapping[str, PersonaSettings]
    models_dir: Path
    state_dir: Path
    limits: Limits = Limits()
    metrics: Metrics | None = None
    hf_endpoint: str | None = None
    hf_token_file: Path | None = None
    ollama_version: str = "0.33.0"
    think_inline: bool = False
    log_prompts: bool = False


class ConfigError(Exception):
    """gateway.toml cannot be used. The text has a line for each thing that is wrong."""

    def __init__(self, path: Path, findings: list[str]) -> None:
        count = f"{len(findings)} things are" if len(findings) > 1 else "one thing is"
        listed = "".join(f"\n  - {finding}" for finding in findings)
        super().__init__(f"{path}: {count} wrong{listed}")
        self.findings = tuple(findings)


def read_config(path: Path) -> Config:
    """The configuration in the file `path`. Raises ConfigError with everything that is wrong."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise ConfigError(path, [f"{reason}; name the file that the role wrote"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"no valid TOML: {error}"]) from None
    except RecursionError:
        raise ConfigError(path, ["no valid TOML: its arrays or tables are too deep"]) from None
    findings: list[str] = []
    top = Table(values, "", path.absolute().parent, findings)
    config = _config(top)
    check(config, findings)
    if findings:
        raise ConfigError(path, findings)
    return config


def _config(top: Table) -> Config:
    instances = {
        name: _instance(name, table) for name, table in top.named_tables("instances").items()
    }
    metrics = top.table("metrics")
    config = Config(
        listeners=tuple(_listener(table) for table in top.tables("listeners")),
        instances=instances,
        models={
            name: _model(name, table, instances)
            for name, table in top.named_tables("models").items()
        },
        personas={
            name: _persona(name, table) for name, table in top.named_tables("personas").items()
        },
        models_dir=_folder(top, "models_dir"),
        state_dir=_folder(top, "state_dir"),
        limits=_limits(top.table("limits")),
        metrics=None if metrics is None else _metrics(metrics),
        hf_endpoint=_endpoint(top),
        hf_token_file=_credential(top, "hf_token_file"),
        ollama_version=_version(top),
        think_inline=top.boolean("think_inline", False),
        log_prompts=top.boolean("log_prompts", False),
    )
    top.close()
    return config


def _listener(table: Table) -> Listener:
    port = _port(table)
    listener = Listener(
        address=table.text("address", "127.0.0.1"),
        port=port,
        instances=table.texts("instances"),
        socket_name=table.text("socket_name", f"ollama-{port}"),
        origins=table.texts("origins") or (),
        api_key_file=_credential(table, "api_key_file"),
        tls_certificate=_credential(table, "tls_certificate"),
        tls_key=_credential(table, "tls_key"),
    )
    table.close()
    return listener


def _instance(name: str, table: Table) -> Instance:
    instance = Instance(
        name=name,
        url=table.required_text("url").rstrip("/"),
        kind=cast("Literal['dedicated', 'router']", table.choice("kind", ("dedicated", "router"))),
        model=table.optional_text("model"),
        context_tokens=table.integer("context_tokens", 4096, 1, _MOST_TOKENS),
        model_context_tokens=table.integers("model_context_tokens", 1, _MOST_TOKENS),
        slots=table.integer("slots", 1, 1, 1024),
        embeddings=table.boolean("embeddings", False),
        api_key_file=_credential(table, "api_key_file"),
        fallback=table.optional_text("fallback"),
        memory_bytes=table.integers("memory_bytes", 0, _MOST_MEMORY_BYTES),
        vram_bytes=table.integers("vram_bytes", 0, _MOST_MEMORY_BYTES),
        pulled_models_dir=table.path("pulled_models_dir"),
    )
    table.close()
    return instance


def _model(name: str, table: Table, instances: Mapping[str, Instance]) -> Model:
    named = table.texts("instances")
    if named is None:
        named = tuple(instance.name for instance in instances.values() if instance.model == name)
    model = Model(
        name=name,
        path=table.folder / table.required_text("path"),
        aliases=table.texts("aliases") or (),
        mmproj=table.path("mmproj"),
        instances=named,
    )
    table.close()
    return model


def _persona(name: str, table: Table) -> PersonaSettings:
    persona = PersonaSettings(
        name=name,
        from_=table.required_text("from"),
        system=table.any_text("system"),
        template=table.any_text("template"),
        parameters=_parameters(table.table("parameters")),
        messages=tuple(_message(message) for message in table.tables("messages")),
        license=table.texts("license") or (),
        adapters=table.paths("adapters"),
        instances=table.texts("instances"),
    )
    table.close()
    return persona


def _parameters(table: Table | None) -> dict[str, Any]:
    """Typed as Ollama's options are; `stop` may be one text."""
    parameters: dict[str, Any] = {}
    if table is None:
        return parameters
    for name in sorted(NAMES):
        value = table.value(name)
        if value is None:
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        try:
            parameters[name] = checked(name, value)
        except ApiError as error:
            table.note(name, f"found {found(value)}: {error.text}")
    table.close()
    return parameters


def _message(table: Table) -> dict[str, str]:
    message = {
        "role": table.choice("role", _ROLES),
        "content": table.any_text("content") or "",
    }
    table.close()
    return message


def _limits(table: Table | None) -> Limits:
    if table is None:
        return Limits()
    values: dict[str, Any] = {}
    for limit in fields(Limits):
        if isinstance(limit.default, float):
            values[limit.name] = table.seconds(limit.name, limit.default)
        elif isinstance(limit.default, int):
            least = 0 if limit.name == "queue" else 1
            values[limit.name] = table.integer(limit.name, limit.default, least, _MOST_BYTES)
    table.close()
    return Limits(**values)


def _metrics(table: Table) -> Metrics:
    metrics = Metrics(address=table.text("address", "127.0.0.1"), port=_port(table))
    table.close()
    return metrics


def _port(table: Table) -> int:
    if "port" not in table:
        table.note("port", "missing; it needs a number of 1 to 65535")
    return table.integer("port", 0, 1, 65535)


def _folder(table: Table, key: str) -> Path:
    return table.folder / table.required_text(key)


def _credential(table: Table, key: str) -> Path | None:
    name = table.optional_text(key)
    if name is None:
        return None
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials:
        loaded = Path(credentials, name)
        if loaded.exists():
            return loaded
    return table.folder / name


def _endpoint(table: Table) -> str | None:
    endpoint = table.optional_text("hf_endpoint")
    if endpoint is None:
        return None
    if host_and_port(endpoint) is None:
        table.note("hf_endpoint", f"found {found(endpoint)}, needed http:// or https:// and a host")
    return endpoint.rstrip("/")


def _version(table: Table) -> str:
    version = table.text("ollama_version", Config.ollama_version)
    if not _VERSION.match(version):
        table.note("ollama_version", f"found {found(version)}, needed a version, such as 0.33.0")
    return version
