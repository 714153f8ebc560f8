"""Wishes for router instances: one llama-server that loads what it is asked for, of several models.

They stand among `llama_instances`, with `router: true`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .findings import Finding, error
from .llama_options import extra_findings
from .wishes import (
    INSTANCE_KEYS,
    Key,
    instance_name_findings,
    key_findings,
    no_model,
    with_defaults,
)

ALL: Final = "all"

_SHARED: Final = (
    "port",
    "host",
    "gpus",
    "context",
    "parallel",
    "kv_cache",
    "modes",
    "fallback",
    "offload",
    "gpu_layers",
    "cpu_moe_layers",
    "split_mode",
    "main_gpu",
    "tensor_split",
    "threads",
    "metrics",
    "api_key",
    "extra",
)


def _is_models(value: Any) -> bool:
    return value == ALL or (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


ROUTER_KEYS: Final[Mapping[str, Key]] = {
    "router": Key("true", lambda v: v is True, required=True),
    "models": Key(
        f"a list of entries of gguf_models, or {ALL} for those that no other instance serves, and "
        "what clients pull",
        _is_models,
        required=True,
    ),
    "models_max": Key(
        "how many of them are loaded at once, an integer from 1",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 64,
        1,
    ),
    **{name: INSTANCE_KEYS[name] for name in _SHARED},
}


def split_routers(raw: Any) -> tuple[Any, dict[Any, Mapping[str, Any]]]:
    """The dedicated instances of the inventory, and the routers."""
    if not isinstance(raw, Mapping):
        return raw, {}
    routers = {
        name: wish
        for name, wish in raw.items()
        if isinstance(wish, Mapping) and wish.get("router") is not None
    }
    return {name: wish for name, wish in raw.items() if name not in routers}, routers


def check_routers(
    raw: Mapping[Any, Mapping[str, Any]],
    models: Iterable[str],
    dedicated: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Check the routers against the names of `gguf_models` and the sound dedicated instances.

    Returns the sound ones with defaults filled in, `models` as a list of names and `takes_pulled`
    where that was all, and what is wrong.
    """
    known = list(models)
    taken = {wish["port"]: name for name, wish in dedicated.items()}
    served = {wish["model"] for wish in dedicated.values()}
    routers: dict[str, dict[str, Any]] = {}
    found: list[Finding] = []
    for name, wish in raw.items():
        path = f"llama_instances.{name}"
        own = instance_name_findings(path, name) or key_findings(path, wish, ROUTER_KEYS)
        if not own:
            router = with_defaults(wish, ROUTER_KEYS)
            router["takes_pulled"] = router["models"] == ALL
            if router["takes_pulled"]:
                router["models"] = [model for model in known if model not in served]
            own = _router_findings(path, router, known)
            if router["port"] in taken:
                own.append(
                    error(
                        f"{path}.port",
                        f"{router['port']} is taken by llama_instances.{taken[router['port']]}",
                        "a port of its own",
                        "give one of the two another port",
                    )
                )
            taken.setdefault(router["port"], name)
        found += own
        if not own:
            routers[name] = router
    return routers, found


def _router_findings(path: str, router: Mapping[str, Any], known: Sequence[str]) -> list[Finding]:
    found = [
        no_model(f"{path}.models", model, known) for model in router["models"] if model not in known
    ]
    if router["api_key"] and len(router["api_key"]) < 16:
        form = INSTANCE_KEYS["api_key"].accepts
        found.append(error(f"{path}.api_key", "a shorter one", form, "use a longer secret"))
    found += extra_findings(f"{path}.extra", router["extra"])
    for option, value in router["extra"].items():
        # llama.cpp's preset file has no way to write these.
        if isinstance(value, list) or any(sign in str(value) for sign in ";#"):
            found.append(
                error(
                    f"{path}.extra.{option}",
                    "a list, or a value with ; or #, which a router's preset file cannot hold",
                    "one value without them",
                    "give the model an instance of its own",
                )
            )
    if not router["models"]:
        found.append(
            error(
                f"{path}.models",
                "no model is left for it",
                "entries of gguf_models that no other instance serves",
                "name its models, or take the router out",
            )
        )
    return found
