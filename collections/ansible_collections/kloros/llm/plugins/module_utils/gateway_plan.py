"""The plan of the gateway: who listens where, and which names mean what on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .findings import Finding, error, warning
from .gateway_wishes import check_gateway, clash, fallback_findings, ollama_name, plain_address
from .systemd import GATEWAY_SERVICE, GATEWAY_STATE_DIR, GATEWAY_UNIT_PREFIX

PACKAGES: Final = ("python3-venv",)
"""The distribution's packages that the gateway's environment is made with."""


def plan_gateway(
    wishes: Mapping[str, Any],
    host: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    instances: Sequence[Mapping[str, Any]],
    memory: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], list[Finding]]:
    """The gateway as it is to run, what this run has to do for it, and what is wrong.

    `models` are the sound ones, `instances` and `memory` as the plan has them. Listeners whose port
    another process holds are left out: they are among the changes, as `gateway_left_out`.
    """
    raw_models = wishes["gguf_models"]["models"]
    raw_instances = wishes["llama_instances"]["instances"]
    wish, findings = check_gateway(wishes["ollama_gateway"], raw_models, raw_instances)
    findings += fallback_findings(raw_instances)
    listeners, left_out = [], []
    for listener in wish["listeners"]:
        findings += _clashes(listener, instances)
        holders = _holders(listener, host)
        if holders:
            findings.append(_is_held(listener, holders))
            left_out.append({"address": listener["address"], "port": listener["port"]})
        else:
            listeners.append(listener)
    findings += _metrics_findings(wish, instances, host)
    if wish["listeners"]:
        findings += _management_findings(wish, wishes)
        findings += _wheels_findings(wish)
    served = {one["name"]: one for one in instances if not one["rerank"]}
    folder = wishes["gguf_models"]["dir"]
    known_models = {
        name: _model(name, model, folder, served.values()) for name, model in models.items()
    }
    personas = {name: _persona(persona, known_models) for name, persona in wish["personas"].items()}
    names = _served_names(known_models, personas)
    settings = {
        key: wish.get(key)
        for key in (
            "dir",
            "limits",
            "log_prompts",
            "manages_models",
            "metrics_port",
            "ollama_version",
            "think_inline",
        )
    }
    gateway = {
        **settings,
        "wished": bool(wish["listeners"]),
        # One that is made on the way has a group of its own name.
        "group": (host["users"][wishes["user"]] or {"group": wishes["user"]})["group"],
        "state_dir": GATEWAY_STATE_DIR,
        "models_dir": folder,
        "hf_endpoint": wishes["gguf_models"]["hf_endpoint"],
        # Only who pulls needs it.
        "hf_token": bool(wish.get("manages_models")) and wishes["gguf_models"]["hf_token"],
        "listeners": [_listener(listener, served, names) for listener in listeners],
        "instances": {
            name: _instance(one, served) | _planned_bytes(one, memory)
            for name, one in served.items()
        },
        "models": known_models,
        "personas": personas,
    }
    units = [GATEWAY_SERVICE, *(one["unit"] for one in gateway["listeners"])]
    changes = {
        "gateway_left_out": left_out,
        "gateway_packages": [one for one in host["packages_missing"] if one in PACKAGES],
        "gateway_units_to_retire": [
            unit for unit in host["gateway_units"] if unit not in units or not gateway["listeners"]
        ],
    }
    return gateway, changes, findings


def gateway_packages(wishes: Mapping[str, Any]) -> list[str]:
    """The distribution's packages that a host needs for the wished gateway."""
    return list(PACKAGES) if wishes["listeners"] else []


def listener_name(address: str, port: int) -> str:
    """Distinguishes a listener from others, in names of units and files."""
    address = plain_address(address)
    if address == "127.0.0.1":
        return str(port)
    return f"{port}-{re.sub('[^0-9a-f.]', '-', address)}"


def _listener(
    wish: Mapping[str, Any],
    served: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    address, port = wish["address"], wish["port"]
    name = listener_name(address, port)
    here = None if wish["instances"] is None else [n for n in wish["instances"] if n in served]
    shown = f"[{address}]" if ":" in address else address
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, shown)  # noqa: S104
    return {
        "name": name,
        "unit": f"{GATEWAY_UNIT_PREFIX}-{name}.socket",
        "socket_name": f"ollama-{name}",
        "address": address,
        "port": port,
        "place": f"{shown}:{port}",
        "url": f"{'https' if wish['tls'] else 'http'}://{near}:{port}",
        "instances": here,
        "origins": list(wish["origins"]),
        "api_key": bool(wish["api_key"]),
        "tls": None if wish["tls"] is None else dict(wish["tls"]),
        "names": sorted(
            name
            for name, instances in names.items()
            if instances and (here is None or set(here) & set(instances))
        ),
    }


def _instance(
    planned: Mapping[str, Any], served: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    fallback = planned["fallback"]
    return {
        "url": planned["url"],
        "kind": "router" if planned["router"] else "dedicated",
        "model": planned["model"] or None,
        "context_tokens": planned["context_tokens"],
        "model_context_tokens": planned.get("model_context_tokens", {}),
        "slots": planned["slots"],
        "embeddings": planned["embeddings"],
        "api_key": planned["api_key"],
        "fallback": fallback if fallback in served else None,
        "pulled_models_dir": planned.get("pulled_models_dir"),
    }


def _planned_bytes(planned: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """What each of its models takes when it is loaded, in all and of it on GPUs."""
    name = planned["name"]
    # The models of a router are planned as if each had an instance of its own.
    keys = {
        model: f"{name}/{model}" if planned["router"] else name
        for model in (planned["models"] if planned["router"] else [planned["model"]])
    }
    rows = {**memory.get("in_place_of_others", {}), **memory.get("instances", {})}
    found: dict[str, dict[str, int]] = {"memory_bytes": {}, "vram_bytes": {}}
    for model, key in keys.items():
        devices = rows[key]["devices"] if key in rows else ()
        if devices:
            of_gpus = [row["total_mib"] for row in devices if row["uuid"] is not None]
            found["memory_bytes"][model] = sum(row["total_mib"] for row in devices) << 20
            found["vram_bytes"][model] = sum(of_gpus) << 20
    return found


def _model(name: str, model: Mapping[str, Any], folder: str, instances: Any) -> dict[str, Any]:
    of_role = {file["role"]: f"{folder}/{file['file']}" for file in reversed(model["files"])}
    return {
        "path": of_role["model"],
        "mmproj": of_role.get("mmproj"),
        "aliases": list(model["aliases"]),
        # A router has to load it first.
        "instances": [
            *(one["name"] for one in instances if one["model"] == name),
            *(one["name"] for one in instances if one["router"] and name in one["models"]),
        ],
    }


def _persona(wish: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    license_ = wish["license"]
    return {
        "from": wish["from"],
        "system": wish["system"],
        "template": wish["template"],
        "parameters": dict(wish["parameters"]),
        "messages": [dict(message) for message in wish["messages"]],
        "license": [license_] if isinstance(license_, str) else list(license_ or ()),
        "adapters": [
            models[adapter]["path"] if adapter in models else adapter
            for adapter in wish["adapters"]
        ],
        "instances": None if wish["instances"] is None else list(wish["instances"]),
    }


def _served_names(
    models: Mapping[str, Mapping[str, Any]], personas: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Every name as Ollama shows it, with the instances that serve it."""
    names = {
        ollama_name(name) or name: list(model["instances"])
        for own, model in models.items()
        for name in (own, *model["aliases"])
    }
    instances = {name.lower(): found for name, found in names.items()}
    # A persona may be made from one that comes after it.
    for _ in personas:
        for name, persona in personas.items():
            shown = ollama_name(name) or name
            base = instances.get((ollama_name(persona["from"]) or "").lower(), [])
            chosen = base if persona["instances"] is None else persona["instances"]
            instances[shown.lower()] = list(chosen)
            if not any(one.lower() == shown.lower() for one in names):
                names[shown] = []
    return {name: instances[name.lower()] for name in names}


def _clashes(listener: Mapping[str, Any], instances: Sequence[Mapping[str, Any]]) -> list[Finding]:
    return [
        error(
            f"llama_instances.{instance['name']}.port",
            f"{listener['port']} is a port of the gateway (ollama_gateway_listeners)",
            "a port of its own",
            "give one of the two another port",
        )
        for instance in instances
        if instance["port"] == listener["port"] and clash(instance["host"], listener["address"])
    ]


def _holders(listener: Mapping[str, Any], host: Mapping[str, Any]) -> list[str]:
    """The foreign processes that hold the port of a listener, in words."""
    name = listener_name(listener["address"], listener["port"])
    own_socket = f"{GATEWAY_UNIT_PREFIX}-{name}.socket" in host["gateway_units"]
    return sorted(
        {
            _words(holder)
            for holder in host["listeners"]
            if holder["port"] == listener["port"]
            and clash(holder["address"], listener["address"])
            # systemd itself holds the sockets, and the instances give their ports up first.
            and not (own_socket and holder["pid"] == 1)
            and not _is_own(holder)
        }
    )


def _is_own(holder: Mapping[str, Any]) -> bool:
    return (holder["unit"] or "").startswith(("kloros-llama-", GATEWAY_UNIT_PREFIX))


def _words(holder: Mapping[str, Any]) -> str:
    if holder["pid"] is None:
        return "a process that is not visible"
    unit = f" of {holder['unit']}" if holder["unit"] else ""
    return f"{holder['process']} (pid {holder['pid']}{unit})"


def _is_held(listener: Mapping[str, Any], holders: Sequence[str]) -> Finding:
    return warning(
        "ollama_gateway_listeners",
        f"port {listener['port']} of {listener['address']} is held by {', '.join(holders)}: the "
        "gateway leaves it alone until that process has gone",
        "a free port",
        "nothing, if that is the Ollama which is to be replaced later; else stop the holder and "
        "run the play again, or give the listener another port",
    )


def _metrics_findings(
    wish: Mapping[str, Any], instances: Sequence[Mapping[str, Any]], host: Mapping[str, Any]
) -> list[Finding]:
    port = wish.get("metrics_port")
    if not port or not wish["listeners"]:
        return []
    taken = [
        *(
            f"a listener of the gateway ({one['address']})"
            for one in wish["listeners"]
            if one["port"] == port and clash(one["address"], "127.0.0.1")
        ),
        *(
            f"instance {one['name']}"
            for one in instances
            if one["port"] == port and clash(one["host"], "127.0.0.1")
        ),
        *(
            _words(one)
            for one in host["listeners"]
            if one["port"] == port and clash(one["address"], "127.0.0.1") and not _is_own(one)
        ),
    ]
    return [
        error(
            "ollama_gateway_metrics_port",
            f"port {port} is held by {holder}",
            "a free port",
            "name another port, or 0 for no metrics",
        )
        for holder in taken
    ]


def _wheels_findings(wish: Mapping[str, Any]) -> list[Finding]:
    if not wish.get("wheels_dir") or wish.get("wheels_there"):
        return []
    return [
        error(
            "ollama_gateway_wheels_dir",
            f"{wish['wheels_dir']} has no wheel on the controller, or is not there",
            "a folder with the wheels of all that requirements-gateway.lock names",
            "fill it: pip download --only-binary=:all: --require-hashes -r "
            f"requirements-gateway.lock -d {wish['wheels_dir']}, with a Python of the hosts' "
            "version and architecture; or leave the variable empty, which takes PyPI",
        )
    ]


def _management_findings(wish: Mapping[str, Any], wishes: Mapping[str, Any]) -> list[Finding]:
    owner = wishes["gguf_models"]["owner"]
    if not wish.get("manages_models") or owner == wishes["user"]:
        return []
    return [
        error(
            "ollama_gateway_manages_models",
            f"the models belong to {owner}, and the gateway runs as {wishes['user']}",
            "a folder of models that the gateway may write to",
            f"set gguf_models_owner: {wishes['user']}, or leave pulls to modelctl",
        )
    ]
