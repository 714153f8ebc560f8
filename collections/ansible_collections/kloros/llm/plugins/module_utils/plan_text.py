"""The plan in words, for the one who runs the play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .http_client import display_url


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; the first row is the heading."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _place(gpus: Sequence[Mapping[str, Any]]) -> str:
    return "CPU" if not gpus else f"GPU {', '.join(str(gpu['index']) for gpu in gpus)}"


def _cuda(cuda: Mapping[str, Any]) -> list[str]:
    compiler = cuda["host_compiler"]
    return [
        f"CUDA       {cuda['version']} ({cuda['source']}) for {', '.join(cuda['architectures'])}, "
        f"with g++ {compiler['version']}",
        *(f"           {reason}" for reason in cuda["reasons"]),
    ]


def host_lines(plan: Mapping[str, Any]) -> list[str]:
    """The host, its driver, and the llama.cpp that it is to have."""
    machine, llama_cpp = plan["machine"], plan["llama_cpp"]
    if llama_cpp["source"] == "package":
        release = llama_cpp["package"].rsplit("/", 1)[-1]
    else:
        release = (
            f"{llama_cpp['version']} ({llama_cpp['backend']}) from {llama_cpp['source']}, "
            f"{llama_cpp['jobs']} compilers at once"
        )
    lines = [
        f"host       {machine['os']['name']}, {machine['architecture']}, {machine['cpus']} CPUs, "
        f"{machine['memory_mib']} MiB, systemd {machine['systemd']}",
        f"llama.cpp  {release}",
        *(_cuda(llama_cpp["cuda"]) if llama_cpp["cuda"] else []),
    ]
    if plan["driver"]:
        driver = plan["driver"]
        lines.insert(1, f"driver     {driver['version']} (CUDA {driver['cuda_version'] or '?'})")
    return lines


def source_text(source: str) -> str:
    """A model's source as people may see it: what a URL's query holds may be a secret."""
    return display_url(source) if source.startswith("http") else source


def table(plan: Mapping[str, Any]) -> list[str]:
    """The whole plan: llama.cpp, models and instances."""
    lines = host_lines(plan)
    if plan["models"]:
        models = [
            [model["name"], model["file"], source_text(model["source"])] for model in plan["models"]
        ]
        lines += ["", *columns([["model", "file", "source"], *models])]
    if plan["instances"]:
        instances = [
            [
                instance["name"],
                instance["model"] or ", ".join(instance["models"]),
                _place(instance["gpus"]),
                f"{instance['host']}:{instance['port']}",
                str(instance["slots"]),
                str(instance["context_tokens"]),
                instance["kv_cache"],
            ]
            for instance in plan["instances"]
        ]
        heading = ["instance", "model", "on", "address", "slots", "context a slot", "KV cache"]
        lines += ["", *columns([heading, *instances])]
    if plan["gateway"]["listeners"]:
        lines += ["", *gateway(plan)]
    changes = plan.get("changes", {})
    retired = [
        *changes.get("units_to_retire", []),
        *changes.get("gateway_units_to_retire", []),
    ]
    if retired:
        lines += ["", f"to be removed: {', '.join(retired)}"]
    return lines


def endpoints(plan: Mapping[str, Any]) -> list[str]:
    """Where each instance answers, as seen from the host."""
    rows = [
        [instance["name"], f"{instance['url']}/v1/chat/completions", instance["unit"]]
        for instance in plan["instances"]
    ]
    return columns([["instance", "OpenAI API", "unit"], *rows]) if rows else ["no instances"]


def gateway(plan: Mapping[str, Any]) -> list[str]:
    """Where the gateway is Ollama, and to which names it answers."""
    rows = [
        [listener["place"], ", ".join(listener["names"]) or "(none)"]
        for listener in plan["gateway"]["listeners"]
    ]
    return columns([["Ollama's API", "models"], *rows]) if rows else ["no listeners"]


def engine_lines(memory: Mapping[str, Any]) -> list[str]:
    """What the servers' dry runs said of the memory plan, and what they did not."""
    unasked = [name for name in memory["keys"] if name in memory["unasked"]]
    asked = len(unasked) < len(memory["keys"])
    lines = differences(memory["differences"]) if asked else []
    lines += [
        f"Not measured of {name}: {sentence}"
        for name, sentences in memory["not_covered"].items()
        for sentence in sentences
    ]
    if unasked:
        lines.append(f"Not asked about in its last setting: {', '.join(unasked)}")
    return lines


def differences(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Where the server's dry run said otherwise than the formulas, by instance, device and part."""
    rows = [
        [name, device, part.removesuffix("_mib"), f"{mib:+d}"]
        for name, devices in found.items()
        for device, parts in devices.items()
        for part, mib in parts.items()
    ]
    if not rows:
        return ["", "The server itself says the same, to the MiB."]
    heading = ["the server says", "on", "of", "MiB beside the formulas"]
    return ["", *columns([heading, *rows])]
