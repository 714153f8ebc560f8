"""Router instances in the plan: room for their largest models, and a preset file for all of them.

To the memory plan each model of a router is an instance of its own, called ROUTER/MODEL. So many
of the largest as may be loaded at once take part in it; each other one is planned in the place of
the smallest of these (`in_place_of_others`), and where it takes more of some device, that must be
free.

What clients pull is no part of it: a router for all models serves it as well, in the room that is
kept for its largest one. There llama-server itself settles how many layers go to the GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .findings import Finding, error
from .llama_environment import EXTRA_ARGS, lora_arguments
from .plan_instances import Settled, settle_instances, unit_name
from .router_wishes import ROUTER_KEYS
from .systemd import CONFIG_DIR, PULLED_MODELS_DIR
from .wishes import INSTANCE_KEYS

_INSTEAD: Final = ("router", "models", "models_max")
# What the router sets for its children itself, and what all of them inherit from it.
_OF_ROUTER: Final = ("LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_ALIAS")
_INHERITED: Final = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "LLAMA_ARG_LOG_JSONL",
    "LLAMA_ARG_LOG_VERBOSITY",
    "LLAMA_ARG_ENDPOINT_METRICS",
)
# Not the layers on GPUs, nor their shares: llama-server fits those to what is free.
_OF_PULLED: Final = (
    "LLAMA_ARG_CTX_SIZE",
    "LLAMA_ARG_N_PARALLEL",
    "LLAMA_ARG_CACHE_TYPE_K",
    "LLAMA_ARG_CACHE_TYPE_V",
    "LLAMA_ARG_DEVICE",
    "LLAMA_ARG_SPLIT_MODE",
    "LLAMA_ARG_MAIN_GPU",
    "LLAMA_ARG_THREADS",
)

Data = Mapping[str, Any]


def preset_path(router: str) -> str:
    """Where the preset file of a router lies on the host."""
    return f"{CONFIG_DIR}/instances/{router}.models.ini"


def settle_all(
    wishes: Data,
    host: Data,
    instances: Mapping[str, Data],
    models: Mapping[str, Data],
    headers: Mapping[str, Data],
) -> tuple[Settled, list[dict[str, Any]]]:
    """Plan dedicated instances and routers together, in the order of the inventory.

    `instances` are sound wishes of both kinds. Returns what `settle_instances` does, with the
    routers among the instances, and the models of the routers as instances of their own, each
    with `router`, its name.
    """
    routers = {name: wish for name, wish in instances.items() if wish.get("router")}
    # A model with findings of its own has been left out, and a router waits for all of its models.
    usable = {
        name: router for name, router in routers.items() if set(router["models"]) <= models.keys()
    }
    instances = {name: wish for name, wish in instances.items() if name not in routers}
    if not usable:
        return settle_instances(wishes, host, instances, models, headers), []
    raw = wishes["llama_instances"]["instances"]
    order = [name for name in raw if name in instances or name in usable]

    def settle(reserved: Mapping[str, Mapping[str, Data]]) -> Settled:
        expanded: dict[str, Data] = {}
        for name in order:
            expanded |= reserved[name] if name in usable else {name: instances[name]}
        return settle_instances(wishes, host, expanded, models, headers)

    embedders = _embedders(models, headers)
    reserved = {
        name: _largest(
            _wishes(name, router, embedders),
            router["models_max"],
            lambda one: settle_instances(wishes, host, one, models, headers),
        )
        for name, router in usable.items()
    }
    base = settle(reserved)
    memory, findings = dict(base.memory) | {"in_place_of_others": {}}, list(base.findings)
    routed = {one["name"]: one for one in base.instances}
    for name, router in usable.items():
        last = list(reserved[name])[-1]
        more: dict[str, dict[str, int]] = {}
        for model in router["models"]:
            virtual = f"{name}/{model}"
            if virtual in reserved[name] or last not in routed:
                continue
            pinned = _wishes(name, router, embedders)[virtual] | {
                "context": {"want": routed[last]["context_tokens"]},
                "kv_cache": [routed[last]["kv_cache"]],
            }
            others = {one: wish for one, wish in reserved[name].items() if one != last}
            trial = settle(reserved | {name: {**others, virtual: pinned}})
            routed |= {one["name"]: one for one in trial.instances if one["name"] == virtual}
            _add(memory, trial.memory, virtual)
            if virtual in trial.memory["instances"]:
                memory["in_place_of_others"][virtual] = trial.memory["instances"][virtual]
            findings += [
                one for one in trial.findings if one["key"].startswith(f"llama_instances.{virtual}")
            ]
            more[model] = _beside(base.memory, last, trial.memory, virtual)
        findings += _too_large(name, more, base.memory)
    planned: list[dict[str, Any]] = []
    children: list[dict[str, Any]] = []
    for name in order:
        if name not in usable:
            planned += [one for one in base.instances if one["name"] == name]
            continue
        own = [
            routed[f"{name}/{model}"] | {"router": name}
            for model in usable[name]["models"]
            if f"{name}/{model}" in routed
        ]
        if len(own) == len(usable[name]["models"]):
            try:
                planned.append(_router(name, usable[name], own))
            except ValueError as problem:
                form = "what a preset file of llama-server can hold"
                findings.append(
                    error(f"llama_instances.{name}", str(problem), form, "correct the wish")
                )
        children += own
    return replace(base, instances=planned, memory=memory, findings=findings), children


def _embedders(models: Mapping[str, Data], headers: Mapping[str, Data]) -> set[str]:
    """The models that are made for embeddings: their headers say so, as they do to Ollama."""

    def embeds(file: str) -> bool:
        shape = headers.get(file, {}).get("shape")
        return shape is not None and "pooling_type" in shape["parameters"]

    return {
        name
        for name, model in models.items()
        if any(file["role"] == "model" and embeds(file["file"]) for file in model["files"])
    }


def _wishes(name: str, router: Data, embedders: Collection[str]) -> dict[str, dict[str, Any]]:
    """The wishes of its models, as if each had an instance of its own."""
    own = {key: router[key] for key in ROUTER_KEYS if key not in _INSTEAD}
    defaults = {key: known.default for key, known in INSTANCE_KEYS.items()}
    return {
        f"{name}/{model}": defaults | own | {"model": model, "embeddings": model in embedders}
        for model in router["models"]
    }


def _largest(
    candidates: dict[str, dict[str, Any]], count: int, settle: Callable[[Any], Settled]
) -> dict[str, dict[str, Any]]:
    """So many of them as may be loaded at once, the largest first."""

    def needs(virtual: str) -> float:
        found = settle({virtual: candidates[virtual]}).memory["instances"].get(virtual)
        # What fits in no way, not even alone, is to be said of.
        return float("inf") if found is None else sum(row["total_mib"] for row in found["devices"])

    if len(candidates) <= count:
        return candidates
    order = sorted(candidates, key=needs, reverse=True)
    return {virtual: candidates[virtual] for virtual in order[:count]}


def _add(memory: dict[str, Any], other: Data, name: str) -> None:
    """Take from another plan of the memory what concerns the server of one model."""
    memory["unasked"] = [*memory["unasked"], *(one for one in other["unasked"] if one == name)]
    for part in ("keys", "differences", "not_covered"):
        if name in other[part]:
            memory[part] = {**memory[part], name: other[part][name]}
    answers = {**memory["dry_runs"]["answers"], **other["dry_runs"]["answers"]}
    memory["dry_runs"] = {**memory["dry_runs"], "answers": answers}


def _pools(memory: Data) -> dict[str, Data]:
    """Each GPU's memory and main memory, by what people call them."""
    gpus = {f"GPU {gpu['index']} ({gpu['name']})": gpu for gpu in memory["gpus"]}
    return {**gpus, "main memory": memory["host"]}


def _taken(pool: Data, name: str) -> int:
    return sum(int(one["mib"]) for one in pool["instances"] if one["name"] == name)


def _beside(base: Data, last: str, trial: Data, name: str) -> dict[str, int]:
    """MiB by pool that one model takes more than another in whose place it is loaded."""
    theirs = _pools(base)
    return {
        title: more
        for title, pool in _pools(trial).items()
        if (more := _taken(pool, name) - _taken(theirs[title], last)) > 0
    }


def _too_large(name: str, more: Mapping[str, Mapping[str, int]], base: Data) -> list[Finding]:
    """What there is no room for; `more` is by model, what it takes beside what is kept for it."""
    free = {title: int(pool["free_mib"]) for title, pool in _pools(base).items()}
    return [
        error(
            f"llama_instances.{name}.models",
            f"{model} takes {mib} MiB of {title} more than what is kept for the largest of its "
            f"models, and {free[title]} MiB are free",
            "room for each of its models in the place of the largest ones",
            "raise models_max, lower context, or give it an instance of its own",
        )
        for model, by_pool in more.items()
        for title, mib in by_pool.items()
        if mib > free[title]
    ]


def _router(name: str, wish: Data, children: Sequence[Data]) -> dict[str, Any]:
    """The router as it is to run. Raises ValueError."""
    first = children[0]
    inherited = {
        variable: value
        for variable, value in first["environment"].items()
        if variable in _INHERITED
    }
    names = [child["model"] for child in children]
    return {
        **first,
        "name": name,
        "unit": unit_name(name),
        "router": name,
        "model": "",
        "model_path": "",
        "aliases": [],
        "models": names,
        "context_tokens": min(child["context_tokens"] for child in children),
        "model_context_tokens": {child["model"]: child["context_tokens"] for child in children},
        "model_files": list(dict.fromkeys(path for one in children for path in one["model_files"])),
        "mmproj_path": None,
        "draft_model_path": None,
        "lora": [],
        "embeddings": all(child["embeddings"] for child in children),
        "preset": _preset(children, takes_pulled=wish["takes_pulled"]),
        "pulled_models_dir": PULLED_MODELS_DIR if wish["takes_pulled"] else None,
        "environment": {
            **inherited,
            "LLAMA_ARG_HOST": first["host"],
            "LLAMA_ARG_PORT": str(first["port"]),
            "LLAMA_ARG_MODELS_PRESET": preset_path(name),
            "LLAMA_ARG_MODELS_MAX": str(wish["models_max"]),
            **({"LLAMA_ARG_MODELS_DIR": PULLED_MODELS_DIR} if wish["takes_pulled"] else {}),
        },
    }


def _preset(children: Sequence[Data], *, takes_pulled: bool) -> str:
    """llama.cpp's preset file. Sections have names of our own: it changes the case of tags."""
    lines = ["version = 1"]
    if takes_pulled:
        lines += ["", "[*]", *_for_pulled(children)]
    for number, child in enumerate(children):
        lines += ["", f"[m{number}]", f"alias = {_value(child['model'])}"]
        for variable, value in child["environment"].items():
            if variable not in (*_OF_ROUTER, *_INHERITED, EXTRA_ARGS):
                lines.append(f"{variable} = {_value(value)}")
        if child["lora"]:
            option, value = lora_arguments(child["lora"])
            lines.append(f"{option.removeprefix('--')} = {_value(value)}")
        lines += _extra(child)
    return "\n".join(lines) + "\n"


def _for_pulled(children: Sequence[Data]) -> list[str]:
    """What holds for models that no section is of, and is said in each section as well."""
    smallest = min(children, key=lambda child: int(child["context_tokens"]))
    environment: dict[str, str] = smallest["environment"]
    said_by_all = set(environment).intersection(*(child["environment"] for child in children))
    lines = [
        f"{variable} = {_value(value)}"
        for variable, value in environment.items()
        if variable in _OF_PULLED and variable in said_by_all
    ]
    if not smallest["gpus"]:
        # As llama_environment says; a model without a projector does not heed it.
        lines.append("LLAMA_ARG_MMPROJ_OFFLOAD = 0")
    return [*lines, "LLAMA_ARG_FIT = on", *_extra(smallest)]


def _extra(child: Data) -> list[str]:
    return [
        f"{option if value else f'no-{option}'} = true"
        if isinstance(value, bool)
        else f"{option} = {_value(str(value))}"
        for option, value in sorted(child["extra"].items())
    ]


def _value(text: str) -> str:
    """Raises ValueError for what would be cut off or is more than one line."""
    if text != text.strip() or any(sign in text for sign in ";#\r\n"):
        raise ValueError(f"{text!r} cannot be written to a preset file")
    return text
