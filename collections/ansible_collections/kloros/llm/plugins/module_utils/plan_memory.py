"""The memory part of the plan: what the planner is asked, and what engines said of its answers.

An engine's dry run is remembered by everything that it depends on, so that a server is asked once
for each configuration and the second run of a play gives the plan of the first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .findings import Finding, error
from .instance_choice import Candidate, usable_gpus
from .memory_model import HOST
from .systemd import UNIT_PREFIX
from .vram_plan import vram_plan
from .wishes import model_names

MEASURED_PARTS: Final = ("weights_mib", "kv_mib", "compute_mib")
COMPANION_PARTS: Final = ("draft_mib", "projector_mib")
"""What a server tells only where there is a draft model or a projector."""

# The sum over all GPUs, which is all that is told of split mode tensor.
_ALL_GPUS: Final = "Meta("

# What a server takes does not depend on where it listens and what it is called.
_NO_MATTER: Final = ("LLAMA_ARG_ALIAS", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT")


def models_of_headers(
    models: Mapping[str, Mapping[str, Any]], headers: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The models as the planner takes them; `headers` are `gguf_info`'s results by file name.

    A model whose own header is not known is left out. What is no language model (an adapter that an
    instance names) has no `shape`, and `shape_detail` says why.
    """
    found = {}
    for name, model in models.items():
        by_role: dict[str, list[Mapping[str, Any]]] = {}
        for file in model["files"]:
            if (header := headers.get(file["file"])) and not header.get("problem"):
                by_role.setdefault(file["role"], []).append(header)
        if "model" not in by_role:
            continue
        own = by_role["model"][0]
        companions: dict[str, Any] = {}
        if projectors := by_role.get("mmproj"):
            companions["projector"] = {"bytes": projectors[0]["data_bytes"]}
        if drafts := by_role.get("draft"):
            companions["draft"] = drafts[0]["shape"]
        if adapters := by_role.get("lora"):
            companions["lora_bytes"] = sum(adapter["data_bytes"] for adapter in adapters)
        found[name] = {
            "shape": own["shape"],
            "shape_detail": own.get("shape_detail", ""),
            "data_bytes": own["data_bytes"],
            "size_bytes": own["size_bytes"],
            "quantisation": own["quantisation"],
            "parameters": own["parameters"],
            "companions": companions,
        }
    return found


def instance_of(
    name: str,
    candidate: Candidate,
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """An instance as the planner takes it; `settings` are the role's defaults for its wishes."""
    wish = candidate.wish
    context = settings["context"] if wish["context"] is None else wish["context"]
    slots = settings["parallel"] if wish["parallel"] is None else wish["parallel"]
    extra = wish["extra"]
    return {
        "name": name,
        "model": wish["model"],
        "gpus": [gpu["uuid"] for gpu in candidate.gpus],
        "context": dict(context) if isinstance(context, Mapping) else {"want": context},
        "context_extended": any(option.startswith(("rope-", "yarn-")) for option in extra),
        "slots": slots,
        "kv_cache": list(wish["kv_cache"]),
        "offload": wish["offload"],
        "gpu_layers": wish["gpu_layers"],
        "cpu_moe": wish["cpu_moe_layers"],
        "tensor_split": list(wish["tensor_split"]),
        "split_mode": wish["split_mode"],
        "main_gpu": main_gpu_position(candidate),
        "flash_attention": extra.get("flash-attn"),
        "batch": extra.get("batch-size"),
        "ubatch": extra.get("ubatch-size"),
        "cache_ram_mib": extra.get("cache-ram"),
        "embeddings": wish["embeddings"],
        "rerank": wish["rerank"],
        "draft_model": wish["draft_model"],
        "lora_bytes": sum(
            models[model]["data_bytes"] for key, model in model_names(wish) if key == "lora"
        ),
        "projector_on_gpu": extra.get("mmproj-offload") is not False,
    }


def main_gpu_position(candidate: Candidate) -> int | None:
    """The place of `main_gpu` among the instance's own GPUs, which is what llama-server counts in.

    Raises ValueError where it is none of them.
    """
    wanted = candidate.wish["main_gpu"]
    if wanted is None:
        return None
    for position, gpu in enumerate(candidate.gpus):
        if wanted in (gpu["index"], gpu["uuid"], candidate.wish["gpus"][position]):
            return position
    if not candidate.gpus:
        return 0
    raise ValueError(f"main_gpu is {wanted}, which is none of its gpus")


def plan_memory(
    chosen: Mapping[str, Candidate],
    wishes: Mapping[str, Any],
    host: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    corrections: Mapping[tuple[str, int], Any],
    *,
    only_whether: bool = False,
) -> dict[str, Any]:
    """What `vram_plan` says of the instances whose GPUs are there and whose models are known.

    `corrections` are by instance and number of its candidate.
    """
    instances = [
        instance_of(name, candidate, wishes["llama_instances"], models)
        for name, candidate in chosen.items()
        if candidate.missing is None
        and all(model in models for _, model in model_names(candidate.wish))
    ]
    return vram_plan(
        usable_gpus(host["gpus"]["gpus"], wishes["gpu_lockout"]),
        instances,
        models,
        {
            "memory_mib": host["machine"]["memory_mib"],
            "reserve_mib": wishes["memory_reserve_mib"],
        },
        own_pids=[*host["unit_processes"].values(), *host["unit_children"]],
        own_mib=_planned_before(host),
        reserves=wishes["gpu_reserve_mib"],
        default_reserve_mib=wishes["gpu_reserve_default_mib"],
        corrections={
            name: corrections[name, candidate.number]
            for name, candidate in chosen.items()
            if (name, candidate.number) in corrections
        },
        only_whether=only_whether,
    )


def _planned_before(host: Mapping[str, Any]) -> dict[str, int] | None:
    """MiB by UUID that the instances which run were planned to take, for hosts that hide it.

    None where no plan tells.
    """
    if "memory" not in host["before"]:
        return None
    taken: dict[str, int] = {}
    for name, instance in host["before"]["memory"].get("instances", {}).items():
        # A router's models are called ROUTER/MODEL.
        if f"{UNIT_PREFIX}{name.partition('/')[0]}.service" in host["unit_processes"]:
            for row in instance["devices"]:
                if row["uuid"] is not None:
                    taken[row["uuid"]] = taken.get(row["uuid"], 0) + row["total_mib"]
    return taken


def dry_run_key(environment: Mapping[str, str], shapes: Sequence[Any]) -> str:
    """What a dry run depends on, digested: the server's variables and its models' headers."""
    told = {name: value for name, value in environment.items() if name not in _NO_MATTER}
    text = json.dumps([told, list(shapes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def correction(
    measured: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """Measured less predicted, in MiB by device and part; what is equal is left out.

    A device that only one of the two knows has 0 in the other. A part that was not measured on any
    device, and a sum over all GPUs, correct nothing.
    """
    if any(row["device"].startswith(_ALL_GPUS) for row in measured):
        return {}
    before, after = _by_device(predicted), _by_device(measured)
    told = [
        *MEASURED_PARTS,
        *(part for part in COMPANION_PARTS if any(part in row for row in measured)),
    ]
    nothing = dict.fromkeys((*MEASURED_PARTS, *COMPANION_PARTS), 0)
    found: dict[str, dict[str, int]] = {}
    for device in {**before, **after}:
        one, other = before.get(device, nothing), after.get(device, nothing)
        if differing := {
            part: other[part] - one[part] for part in told if other[part] != one[part]
        }:
            found[device] = differing
    return found


def _by_device(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """MiB by device and part; kinds of buffers that are no device lie in main memory."""
    sums: dict[str, dict[str, int]] = {}
    for row in rows:
        device = row["device"] if row["device"].startswith("CUDA") else HOST
        of = sums.setdefault(device, dict.fromkeys((*MEASURED_PARTS, *COMPANION_PARTS), 0))
        for part in MEASURED_PARTS:
            of[part] += int(row[part])
        for part in COMPANION_PARTS:
            of[part] += int(row.get(part, 0))
    return sums


def previous_plan(text: str) -> dict[str, Any]:
    """The plan in a file that an earlier run wrote; empty where there is none that can be read."""
    try:
        plan = json.loads(text)
        for instance in plan["memory"]["instances"].values():
            for row in instance["devices"]:
                _ = row["uuid"], row["total_mib"] + 0
        for instance in plan["instances"]:
            _ = instance["name"], instance["environment"]
        release, answers = (
            plan["memory"]["dry_runs"]["release"],
            plan["memory"]["dry_runs"]["answers"],
        )
        for answer in answers.values():
            _by_device(answer["rows"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return plan if isinstance(release, str) else {}


def known_dry_runs(before: Mapping[str, Any]) -> dict[str, Any]:
    """What servers said for the plan before: `release`, and `answers` by `dry_run_key`."""
    found = before.get("memory", {}).get("dry_runs", {"release": "", "answers": {}})
    return {"release": found["release"], "answers": dict(found["answers"])}


def with_dry_runs(
    known: Mapping[str, Any], keys: Mapping[str, str], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Add what module `llama_fit` returned for instances (its loop's `results`)."""
    answers = dict(known["answers"])
    for result in results:
        answers[keys[result["item"]["name"]]] = {
            "asked": result["asked"],
            "rows": _answer_rows(result),
            "not_covered": result["not_covered"],
        }
    return {"release": known["release"], "answers": answers}


def _answer_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the server said by device, of the model and of what is loaded beside it."""
    rows = {
        row["device"]: {part: row[part] for part in ("device", *MEASURED_PARTS)}
        for row in result["rows"]
    }
    nothing = dict.fromkeys(MEASURED_PARTS, 0)
    for draft in result["draft_rows"]:
        device = draft["device"]
        row = rows.setdefault(device, {"device": device, **nothing})
        row["draft_mib"] = sum(draft[part] for part in MEASURED_PARTS)
    for device, mib in result["projector_mib"].items():
        row = rows.setdefault(device, {"device": device, **nothing})
        row["projector_mib"] = math.ceil(mib)
    return list(rows.values())


def dry_run_findings(results: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The instances whose models the server refuses."""
    return [
        error(
            f"llama_instances.{result['item']['name']}",
            "; ".join(result["last_words"]) or f"{result['asked']} says nothing",
            "a model and options that the installed llama-server takes",
            "correct the instance; of a model that Ollama alone can load, take the file from its "
            "makers",
        )
        for result in results
        if not result["accepted"]
    ]


def plan_sources(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where the headers of all the plan's files come from, as module `llama_fit` takes it."""
    return [
        {"path": f"{plan['models_dir']}/{file['file']}", "source": file["source"]}
        | ({"sha256": file["sha256"]} if file["sha256"] else {})
        for model in plan["models"]
        for file in model["files"]
    ]
