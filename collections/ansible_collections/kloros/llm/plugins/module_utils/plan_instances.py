"""The plan of the instances: for each wish one llama-server, with what it may take of the memory.

Planning and asking the engine take turns: what a dry run found is added to what the formulas say,
and where that makes another plan, its configuration is looked up in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .findings import Finding, error, warning
from .gpu_proof import PLACING_OPTION
from .instance_choice import PLANS_LIMIT, Candidate, Choice, candidates, choose
from .llama_environment import LoraAdapter, PlannedInstance, instance_environment
from .plan_memory import (
    correction,
    dry_run_key,
    main_gpu_position,
    models_of_headers,
    plan_memory,
)
from .systemd import UNIT_PREFIX
from .wishes import model_names

Corrections = dict[tuple[str, int], dict[str, dict[str, int]]]
"""Measured less predicted MiB by device and part, of an instance's candidate of that number: what a
server said of one model on some GPUs says nothing of another."""


@dataclass(frozen=True)
class Settled:
    """`chosen`: the candidate of each instance. `for_gpus`: the instances of which some candidate
    could run on GPUs, whether there is room or not. `instances`: as the plan has them. `memory`:
    what `vram_plan` says, `dry_runs` (see `plan_memory`), `differences` (measured less predicted
    MiB, by instance, device and part), `unasked` (the instances whose server was not asked yet)
    and `not_covered` (what it did not measure, in sentences by instance)."""

    chosen: Mapping[str, Candidate]
    for_gpus: Sequence[str]
    instances: list[dict[str, Any]]
    memory: dict[str, Any]
    findings: list[Finding]


def unit_name(instance: str) -> str:
    """The systemd unit of an instance."""
    return f"{UNIT_PREFIX}{instance}.service"


def settle_instances(
    wishes: Mapping[str, Any],
    host: Mapping[str, Any],
    instances: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    headers: Mapping[str, Mapping[str, Any]],
) -> Settled:
    """Plan all instances together; `headers` are `gguf_info`'s results by file name."""
    found = {
        name: candidates(wish, host["gpus"], wishes["gpu_lockout"])
        for name, wish in instances.items()
    }
    findings = []
    # An instance of a faulty model cannot be planned; the model's own finding says why.
    for name, options in list(found.items()):
        problem = _cannot_be_planned(options, models)
        if problem is not None:
            del found[name]
            if problem:
                findings.append(_refused(name, problem))
    facts = models_of_headers(models, headers)
    corrections: Corrections = {}
    answers = host["dry_runs"]["answers"]
    used: dict[str, Any] = {}  # of every round: the next run goes the same way
    # It ends: each round but the last brings an answer that none before it asked for.
    while True:
        choice = _choose(found, wishes, host, facts, corrections)
        planned, refused = _instances(choice, models, wishes)
        keys = {
            instance["name"]: dry_run_key(instance["environment"], _shapes(instance, facts))
            for instance in planned
            if instance["name"] in choice.memory["instances"]
        }
        used |= {key: answers[key] for key in keys.values() if key in answers}
        differences = {
            name: correction(answers[key]["rows"], choice.memory["instances"][name]["predicted"])
            for name, key in keys.items()
            if key in answers
        }
        known = _larger(
            corrections,
            {(name, choice.chosen[name].number): diff for name, diff in differences.items()},
        )
        if known == corrections:
            break
        corrections = known
    memory = {
        **choice.memory,
        "differences": {name: diff for name, diff in differences.items() if diff},
        # Instances none of whose candidates has its GPUs.
        "missing": {
            name: candidate.missing
            for name, candidate in choice.chosen.items()
            if candidate.missing is not None
        },
        "unasked": [name for name, key in keys.items() if key not in answers],
        "not_covered": {
            name: answers[key]["not_covered"]
            for name, key in keys.items()
            if key in answers and answers[key].get("not_covered")
        },
        "keys": keys,
        "dry_runs": {
            "release": host["dry_runs"]["release"],
            "answers": used,
        },
    }
    findings += [*refused, *_findings(choice, host["gpus"]["status"] == "ok")]
    findings += [
        _estimated(name, estimates)
        for name in memory["unasked"]
        if (estimates := choice.memory["instances"][name]["estimates"])
    ]
    for_gpus = [name for name, chosen in choice.chosen.items() if _for_gpus(chosen, found[name])]
    return Settled(choice.chosen, for_gpus, planned, memory, findings)


def _for_gpus(chosen: Candidate, options: Sequence[Candidate]) -> bool:
    """Whether it asks for GPUs, or could come to run on some when the engine was asked."""
    return bool(chosen.wish["gpus"]) or any(
        one.wish["gpus"] and one.missing is None for one in options
    )


def _choose(
    found: Mapping[str, Sequence[Candidate]],
    wishes: Mapping[str, Any],
    host: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    corrections: Corrections,
) -> Choice:
    choice = choose(
        found,
        lambda chosen: plan_memory(chosen, wishes, host, facts, corrections, only_whether=True),
    )
    if not choice.memory["problems"]:
        return choice
    return replace(choice, memory=plan_memory(choice.chosen, wishes, host, facts, corrections))


def _larger(one: Corrections, other: Corrections) -> Corrections:
    """Of each candidate, device and part the larger of the two."""
    merged = {
        whose: {device: dict(parts) for device, parts in of.items()} for whose, of in one.items()
    }
    for whose, devices in other.items():
        for device, parts in devices.items():
            known = merged.setdefault(whose, {}).setdefault(device, {})
            for part, mib in parts.items():
                known[part] = max(known.get(part, mib), mib)
    return merged


def _models_of(wish: Mapping[str, Any]) -> list[str]:
    """The names of all models that an instance loads, its own first."""
    return [model for _, model in model_names(wish)]


def _cannot_be_planned(
    options: Sequence[Candidate], models: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Why an instance is left out, empty where that is said elsewhere; None where it is not."""
    for candidate in options:
        if not set(_models_of(candidate.wish)) <= models.keys():
            return ""
        if candidate.missing is None:
            try:
                main_gpu_position(candidate)
            except ValueError as problem:
                return str(problem)
    return None


def _refused(name: str, problem: str) -> Finding:
    form = "what llama-server and systemd can take"
    return error(f"llama_instances.{name}", problem, form, "correct the wish")


def _shapes(instance: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """What of the models that an instance loads its dry run depends on, for the run's key.

    Not what is known of a file on the host alone, such as its size: the key stays the same there.
    """
    return [
        {part: facts[name][part] for part in ("shape", "data_bytes", "companions")}
        if name in facts
        else None
        for name in instance["models"]
    ]


def _instances(
    choice: Choice, models: Mapping[str, Mapping[str, Any]], wishes: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The instances as they are to run, and what llama-server could not be told."""
    planned, refused = [], []
    for name, candidate in choice.chosen.items():
        try:
            memory = choice.memory["instances"].get(name)
            planned.append(_instance(name, candidate, models, wishes, memory))
        except ValueError as problem:
            refused.append(_refused(name, str(problem)))
    return planned, refused


def _instance(
    name: str,
    candidate: Candidate,
    models: Mapping[str, Mapping[str, Any]],
    wishes: Mapping[str, Any],
    memory: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The instance as it is to run; without `memory` (where it was not to be planned) as wished."""
    wish, settings = candidate.wish, wishes["llama_instances"]
    folder = wishes["gguf_models"]["dir"]

    def path(model: str) -> str:
        return f"{folder}/{models[model]['file']}"

    def own_or(key: str) -> Any:
        return settings[key] if wish[key] is None else wish[key]

    model = wish["model"]
    of_role: dict[str, list[str]] = {}
    for file in models[model]["files"]:
        of_role.setdefault(file["role"], []).append(f"{folder}/{file['file']}")
    draft = path(wish["draft_model"]) if wish["draft_model"] else of_role.get("draft", [None])[0]
    wished_layers = "all" if wish["gpu_layers"] is None else wish["gpu_layers"]
    context = own_or("context")
    fallback = {
        "context_tokens": context["want"] if isinstance(context, Mapping) else context,
        "kv_cache": wish["kv_cache"][0],
        "gpu_layers": wished_layers,
        "cpu_moe_layers": wish["cpu_moe_layers"] or 0,
        "tensor_split": wish["tensor_split"],
    }
    planned = memory or fallback
    instance: PlannedInstance = {
        "name": name,
        "model_path": path(model),
        "aliases": [model, *models[model]["aliases"]],
        "host": own_or("host"),
        "port": wish["port"],
        "gpus": [gpu["uuid"] for gpu in candidate.gpus],
        "context_tokens": planned["context_tokens"],
        "slots": own_or("parallel"),
        "kv_cache": planned["kv_cache"],
        "gpu_layers": str(planned["gpu_layers"]),
        "cpu_moe_layers": planned["cpu_moe_layers"],
        "split_mode": wish["split_mode"],
        "main_gpu": main_gpu_position(candidate),
        # For one GPU there is nothing to split.
        "tensor_split": list(planned["tensor_split"]) if len(candidate.gpus) > 1 else [],
        "mmproj_path": of_role.get("mmproj", [None])[0],
        "draft_model_path": draft,
        "lora": [
            *(_adapter(adapter) for adapter in of_role.get("lora", [])),
            *(
                _adapter(path(item))
                if isinstance(item, str)
                else _adapter(path(item["model"]), float(item.get("scale", 1.0)))
                for item in wish["lora"]
            ),
        ],
        "embeddings": wish["embeddings"],
        "rerank": wish["rerank"],
        "metrics": wish["metrics"],
        "api_key": wish["api_key"] is not None,
        "threads": wish["threads"],
        "extra": dict(wish["extra"]),
    }
    loaded = _models_of(wish)
    return {
        **instance,
        "unit": unit_name(name),
        "model": model,
        "models": loaded,
        "alternative": candidate.number,
        "gpus": list(candidate.gpus),
        "min_tokens_per_s": float(own_or("min_tokens_per_s")),
        "mostly_on_gpus": not (
            PLACING_OPTION in wish["extra"]
            or instance["cpu_moe_layers"]
            or wish["embeddings"]
            or wish["rerank"]
        ),
        "modes": list(wish["modes"]),
        "fallback": wish["fallback"],
        "router": None,
        "model_files": [
            f"{folder}/{file['file']}" for one in loaded for file in models[one]["files"]
        ],
        "url": _url(instance["host"], instance["port"]),
        "environment": instance_environment(instance),
    }


def _adapter(path: str, scale: float = 1.0) -> LoraAdapter:
    return {"path": path, "scale": scale}


def _url(host: str, port: int) -> str:
    """Where a server on that address is asked from its own host."""
    # One that listens on every address answers on loopback too.
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def _findings(choice: Choice, gpus_are_shown: bool) -> list[Finding]:
    """What is to be said of the choice; where no GPU can be seen, a finding of its own says why."""
    problems = {problem["instance"]: problem for problem in choice.memory["problems"]}
    cut_short = (
        f" (of the combinations of alternatives, {PLANS_LIMIT} were tried and not all)"
        if choice.cut_short
        else ""
    )
    found = []
    for name, candidate in choice.chosen.items():
        before = "".join(f" ({said})" for said in choice.passed_over[name])
        if candidate.missing is not None:
            if gpus_are_shown:
                found.append(_gpu_missing(name, candidate.missing))
        elif name in problems:
            found.append(_does_not_fit(problems[name], before + cut_short))
        elif candidate.number:
            found.append(
                warning(
                    f"llama_instances.{name}",
                    f"it runs as alternative {candidate.number}{before}",
                    "the wish itself",
                    "nothing, if that is what the alternatives are for",
                )
            )
    return found


def _gpu_missing(name: str, why: str) -> Finding:
    return error(
        f"llama_instances.{name}",
        why,
        "GPUs that are there, whole, and not locked out",
        "name others in gpus, give alternatives, or take the GPU out of gpu_lockout",
    )


def _estimated(name: str, reasons: Sequence[str]) -> Finding:
    """Formulas that may be wrong, of an instance whose server was not asked yet."""
    return warning(
        f"llama_instances.{name}",
        f"what it takes is only estimated: {' '.join(reasons)}",
        "a model and a split that the memory model follows exactly",
        "nothing, if there is room to spare: the llama-server itself is asked before it is run",
    )


def _does_not_fit(problem: Mapping[str, Any], before: str) -> Finding:
    ways = [f"({place}) {way['text']}" for place, way in enumerate(problem["ways_out"], 1)]
    cure = f"one of: {'; '.join(ways)}" if ways else "take another model or another host"
    return error(problem["key"], problem["found"] + before, problem["needed"], cure)
