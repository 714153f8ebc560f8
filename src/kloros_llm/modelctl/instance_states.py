"""How the instances are: what systemd, the servers and the driver say of each, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.nvidia_smi import GpuInfo
from .host_plan import Instance
from .servers import Server, ask_all
from .units import Unit, unit_states


@dataclass(frozen=True)
class InstanceState:
    """One instance now. `gpu_memory_mib` is None where the driver does not tell."""

    instance: Instance
    unit: Unit
    server: Server
    gpu_memory_mib: int | None

    @property
    def state(self) -> str:
        """One word: ready, loading, stopped, failed, ..."""
        if self.unit.active in ("failed", "unknown") and self.server.health == "no answer":
            return "failed" if self.unit.active == "failed" else "unknown"
        if self.unit.active == "inactive":
            # Something else may hold the port.
            return "stopped"
        return self.server.health

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def note(self) -> str | None:
        """What else is to be said."""
        if self.unit.load == "not-found":
            return f"{self.instance.unit} is not there; run the playbook"
        wanted = self.instance.environment.get("LLAMA_ARG_MODEL")
        loaded = self.server.model_path
        if loaded and wanted and loaded != wanted:
            return f"it runs {loaded}, planned is {wanted}"
        return self.server.note

    def to_data(self) -> dict[str, Any]:
        """As JSON."""
        instance, unit, server = self.instance, self.unit, self.server
        return {
            "name": instance.name,
            "unit": instance.unit,
            "url": instance.url,
            "model": instance.model or None,
            "models": list(instance.models),
            "aliases": list(instance.aliases),
            "state": self.state,
            "active": unit.active,
            "sub": unit.sub,
            "result": unit.result,
            "pid": unit.pid,
            "restarts": unit.restarts,
            "active_since": unit.active_since,
            "slots": instance.slots if server.slots is None else server.slots,
            "slots_busy": server.slots_busy,
            "context_tokens": server.context_tokens or instance.context_tokens,
            "kv_cache": instance.kv_cache,
            "gpus": list(instance.gpus),
            "memory_bytes": unit.memory_bytes,
            "gpu_memory_mib": self.gpu_memory_mib,
            "model_path": server.model_path,
            "note": self.note,
        }


def instance_states(instances: Sequence[Instance], gpus: GpuInfo | None) -> list[InstanceState]:
    """Ask about all of them. `gpus` is what the driver said, None where nobody asked."""
    units = unit_states([instance.unit for instance in instances])
    servers = ask_all(instances)
    return [
        InstanceState(
            instance,
            units[instance.unit],
            server,
            _gpu_memory_mib(units[instance.unit].pid, gpus),
        )
        for instance, server in zip(instances, servers, strict=True)
    ]


def _gpu_memory_mib(pid: int | None, gpus: GpuInfo | None) -> int | None:
    if pid is None or gpus is None:
        return None
    used = [
        process["used_mib"]
        for gpu in gpus["gpus"]
        for process in gpu["processes"]
        if process["pid"] == pid and process["used_mib"] is not None
    ]
    return sum(used) if used else None
