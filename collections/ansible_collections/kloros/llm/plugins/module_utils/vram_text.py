"""The memory plan in words: a bar chart a GPU, the instances, what does not fit and what would.

All functions return lines of at most 80 columns (long names apart), for a message of Ansible's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .plan_text import columns

WIDTH: Final = 80

_BAR_WIDTH: Final = 40
_NAME_WIDTH: Final = 18
_MARKS: Final = {
    False: ("█", "░", "·", "…"),
    True: ("#", "=", ".", "~"),
}  # ours, others', free, cut


def _short(name: str, width: int, *, ascii_only: bool) -> str:
    return name if len(name) <= width else name[: width - 1] + _MARKS[ascii_only][3]


def _wrapped(text: str, first: str, following: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False
    )


def _bars(rows: Sequence[tuple[str, int, str]], total_mib: int, *, ascii_only: bool) -> list[str]:
    """One line a part (name, MiB, mark), each bar beginning where the one before it ended."""
    lines, start = [], 0
    for name, mib, mark in rows:
        end = min(total_mib, start + mib)
        left = round(start * _BAR_WIDTH / total_mib) if total_mib else 0
        right = round(end * _BAR_WIDTH / total_mib) if total_mib else 0
        if mib and right == left:  # what is there is seen
            left, right = (left, left + 1) if left < _BAR_WIDTH else (left - 1, left)
        bar = " " * left + mark * (right - left)
        shown = _short(name, _NAME_WIDTH, ascii_only=ascii_only)
        lines.append(f"  {shown:<{_NAME_WIDTH}} {mib:>7} MiB  |{bar:<{_BAR_WIDTH}}|")
        start = end
    return lines


def _pool(
    title: str, pool: Mapping[str, Any], others: tuple[str, int], *, ascii_only: bool
) -> list[str]:
    ours, theirs, free, _ = _MARKS[ascii_only]
    rows = [(others[0], others[1], theirs)] if others[1] else []
    rows += [(item["name"], item["mib"], ours) for item in pool["instances"]]
    rows.append(("free", pool["free_mib"], free))
    heading = f"{title}, {pool['total_mib']} MiB"
    return [heading, *_bars(rows, pool["total_mib"], ascii_only=ascii_only)]


def gpu_lines(plan: Mapping[str, Any], *, ascii_only: bool = False) -> list[str]:
    """What each part takes of every GPU and of main memory, and what stays free."""
    lines: list[str] = []
    for gpu in plan["gpus"]:
        title = f"GPU {gpu['index']}  {gpu['name']}"
        if gpu["total_mib"] is None:
            lines += [title, *_wrapped(gpu["note"], "  ", "  "), ""]
            continue
        seen = gpu["neighbours_mib"] > gpu["reserve_mib"]
        others = ("others" if seen else "reserve", gpu["total_mib"] - gpu["budget_mib"])
        lines += [*_pool(title, gpu, others, ascii_only=ascii_only)]
        lines += [*_wrapped(gpu["note"], "  ", "  "), ""]
    host = plan["host"]
    kept = ("reserve", host["total_mib"] - host["budget_mib"])
    lines += _pool("Host  main memory", host, kept, ascii_only=ascii_only)
    for note in host["notes"]:
        lines += _wrapped(note, "  ", "  ")
    return lines


def _split(instance: Mapping[str, Any]) -> str:
    return ":".join(f"{share:g}" for share in instance["tensor_split"]) or "-"


def instance_lines(plan: Mapping[str, Any], *, ascii_only: bool = False) -> list[str]:
    """How each instance runs, and what it takes of each device by part."""
    if not plan["instances"]:
        return ["no instance is planned"]

    def short(name: str) -> str:
        return _short(name, _NAME_WIDTH, ascii_only=ascii_only)

    settings = [["instance", "context", "slots", "KV", "layers", "split", "experts on CPU"]]
    parts = [["MiB of", "on", "weights", "KV", "compute", "CUDA", "projector", "draft", "total"]]
    for name, instance in plan["instances"].items():
        settings.append(
            [
                short(name),
                str(instance["context_tokens"]),
                str(instance["slots"]),
                instance["kv_cache"],
                f"{instance['layers_on_gpu']}/{instance['layers']}",
                _split(instance),
                str(instance["cpu_moe_layers"] or "-"),
            ]
        )
        parts += [
            [
                short(name),
                device["device"],
                *(
                    str(device[f"{part}_mib"] or "-")
                    for part in ("weights", "kv", "compute", "cuda_context", "projector", "draft")
                ),
                str(device["total_mib"]),
            ]
            for device in instance["devices"]
            if device["total_mib"]
        ]
    return [*columns(settings), "", *columns(parts)]


def reason_lines(plan: Mapping[str, Any]) -> list[str]:
    """Why each instance gets what it gets."""
    lines: list[str] = []
    for name, instance in plan["instances"].items():
        lines.append(f"{name}:")
        for reason in instance["reasons"]:
            lines += _wrapped(reason, "  - ", "    ")
    return lines


def problem_lines(plan: Mapping[str, Any]) -> list[str]:
    """What does not fit, with the numbers, and what would."""
    lines: list[str] = []
    for problem in plan["problems"]:
        lines.append(f"{problem['instance']} does not fit:")
        lines += _wrapped(f"found: {problem['found']}", "  ", "    ")
        lines += _wrapped(f"needed: {problem['needed']}", "  ", "    ")
        if not problem["ways_out"]:
            lines.append("  nothing that was tried would fit")
        for number, way in enumerate(problem["ways_out"], 1):
            lines += _wrapped(way["text"], f"  {number}. ", "     ")
    return lines


def memory_text(plan: Mapping[str, Any], *, ascii_only: bool = False) -> list[str]:
    """The whole memory plan."""
    parts = [
        gpu_lines(plan, ascii_only=ascii_only),
        instance_lines(plan, ascii_only=ascii_only),
        reason_lines(plan),
        problem_lines(plan),
    ]
    lines: list[str] = []
    for part in filter(None, parts):
        lines += ["", *part] if lines else part
    return lines


def profiles_text(
    profiles: Sequence[tuple[str, Mapping[str, Any]]], *, ascii_only: bool = False
) -> list[str]:
    """What each set of GPUs would give: (label, plan) in, a short table a set out."""
    lines: list[str] = []
    for label, plan in profiles:
        lines += [""] if lines else []
        lines += _wrapped(label, "", "  ")
        if not plan["instances"] and not plan["problems"]:
            lines.append("  no instances")
        for name, instance in plan["instances"].items():
            where = (
                f"{instance['layers_on_gpu']} of {instance['layers']} layers on the GPUs"
                if instance["layers_on_gpu"]
                else "on the CPU"
            )
            experts = instance["cpu_moe_layers"]
            if experts:
                where += f", experts of {experts} on the CPU"
            shown = _short(name, _NAME_WIDTH, ascii_only=ascii_only)
            text = (
                f"{shown:<{_NAME_WIDTH}} {instance['slots']} x {instance['context_tokens']} "
                f"tokens, {instance['kv_cache']}, {where}"
            )
            lines += _wrapped_keeping_spaces(text)
        for problem in plan["problems"]:
            shown = _short(problem["instance"], _NAME_WIDTH, ascii_only=ascii_only)
            lines += _wrapped_keeping_spaces(
                f"{shown:<{_NAME_WIDTH}} does not fit: {problem['found']}"
            )
    return lines


def _wrapped_keeping_spaces(text: str) -> list[str]:
    """Wrapped under the first column, whose padding is kept."""
    indent = " " * (_NAME_WIDTH + 3)
    name, rest = text[: _NAME_WIDTH + 1], text[_NAME_WIDTH + 1 :]
    return _wrapped(rest, f"  {name}", indent)
