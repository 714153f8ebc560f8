"""`gateway.toml`: who listens where, which instances there are, and what names stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


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
    """One llama-server. A router has no model of its own; `context_tokens` are those of a slot."""

    name: str
    url: str
    kind: Literal["dedicated", "router"] = "dedicated"
    model: str | None = None
    context_tokens: int = 4096
    slots: int = 1
    embeddings: bool = False
    api_key_file: Path | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class Model:
    """A model of the store. `instances` serve it, in order of preference; none: only listed."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    mmproj: Path | None = None
    instances: tuple[str, ...] = ()


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

    body_bytes: int = 256 << 20
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
    ollama_version: str = "0.33.0"
    think_inline: bool = False
    log_prompts: bool = False
