"""The audit in words: what the host has, what the wishes ask for, and what would become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .findings import Finding, render
from .plan import make_plan
from .plan_text import columns, host_lines, source_text
from .vram_plan import profiles
from .vram_text import memory_text, profiles_text


def audit_report(
    wishes: Mapping[str, Any],
    host: Mapping[str, Any],
    plan: Mapping[str, Any],
    findings: Sequence[Finding],
) -> list[str]:
    """Lines for people. `host` is what `make_plan` takes, `plan` and `findings` are its answer."""
    parts = [
        ("Host", host_lines(plan)),
        ("GPUs", _gpu_lines(host["gpus"], wishes["gpu_lockout"])),
        ("Models", _model_lines(plan, host["headers"])),
    ]
    if plan["memory"]:
        parts.append(("Memory", memory_text(plan["memory"])))
        others = profiles_text(_profiles(wishes, host))
        parts.append(("With other GPUs", [*others, *_about_indices(wishes, host)]))
    # What does not fit is told with the memory already.
    told = {problem["found"] for problem in plan["memory"].get("problems", ())}
    rest = [
        finding
        for finding in findings
        # One that passed alternatives over goes on with why.
        if not any(finding["found"].startswith(problem) for problem in told)
    ]
    if rest or not told:
        parts.append(("Findings", render(rest) or ["Nothing is wrong."]))
    lines: list[str] = []
    for title, part in parts:
        lines += [""] if lines else []
        lines += [title, "=" * len(title), *part]
    return lines


def _gpu_lines(shown: Mapping[str, Any], lockout: Sequence[int | str]) -> list[str]:
    if not shown["gpus"]:
        return [f"none: {shown['detail']}"]
    locked = {str(item) for item in lockout}
    rows = [["GPU", "name", "capability", "MiB", "free", "used by", "UUID"]]
    for gpu in shown["gpus"]:
        users = ", ".join(
            f"{process['name'] or 'process'} ({process['pid']})" for process in gpu["processes"]
        )
        out = " (locked out)" if locked & {str(gpu["index"]), gpu["uuid"]} else ""
        out += " (divided by MIG)" if gpu.get("mig") else ""
        rows.append(
            [
                f"{gpu['index']}{out}",
                gpu["name"],
                _or_unknown(gpu["compute_capability"]),
                _or_unknown(gpu["memory_total_mib"]),
                _or_unknown(gpu["memory_free_mib"]),
                users or "-",
                gpu["uuid"],
            ]
        )
    return columns(rows)


def _or_unknown(value: Any) -> str:
    return "?" if value is None else str(value)


def _model_lines(plan: Mapping[str, Any], headers: Sequence[Mapping[str, Any]]) -> list[str]:
    if not plan["models"]:
        return ["none"]
    by_file = {result["item"]["file"]: result for result in headers}
    rows = [["model", "GiB", "quantisation", "trained context", "architecture", "where"]]
    for model in plan["models"]:
        header = by_file.get(model["file"], {})
        if "architecture" not in header:
            rows.append([model["name"], "?", "?", "?", "?", "cannot be read, see below"])
            continue
        size = header["size_bytes"]
        rows.append(
            [
                model["name"],
                "?" if size is None else f"{size / 2**30:.2f}",
                header["quantisation"],
                _or_unknown(header["context_trained"]),
                _or_unknown(header["architecture"]),
                "on the host"
                if header["on_host"]
                else f"to be fetched: {source_text(model['source'])}",
            ]
        )
    return columns(rows)


def _about_indices(wishes: Mapping[str, Any], host: Mapping[str, Any]) -> list[str]:
    """A card that is gone shifts the indices of those after it; the profiles keep them."""
    by_index = [
        name
        for name, wish in wishes["llama_instances"]["instances"].items()
        for one in [wish, *(wish.get("alternatives") or [])]
        if any(not str(gpu).startswith("GPU-") for gpu in one.get("gpus") or [])
    ]
    if len(host["gpus"]["gpus"]) < 2 or not by_index:
        return []
    return [
        "",
        f"{', '.join(dict.fromkeys(by_index))} names GPUs by index: this is for GPUs that are",
        "locked out. Where a card is taken out, those after it get other indices, so name",
        "them by UUID.",
    ]


def _profiles(
    wishes: Mapping[str, Any], host: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """What each set of the host's GPUs would give, all of them left out: that is the plan."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for label, gpus in profiles(host["gpus"]["gpus"]):
        left = {**host["gpus"], "gpus": gpus}
        if not gpus:
            left |= {"status": "none", "detail": "no GPU is there"}
        result = make_plan(wishes, {**host, "gpus": left})
        memory = dict(result["plan"]["memory"])
        missing = [
            {"instance": name, "found": why} for name, why in memory.get("missing", {}).items()
        ]
        memory["problems"] = [*missing, *memory["problems"]]
        found.append((label, memory))
    return found
