# Copyright: the kloros-llm contributors
# MIT License (see LICENSE)
"""Filters that do more than call one function of the core."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..module_utils import (
    cuda_build_plan,
    cuda_redist,
    findings,
    llama_help,
    llama_option_check,
    plan_text,
    systemd_env,
    vram_budget,
    vram_need,
    vram_plan,
    vram_text,
)

_REMOVED = {"llama_cpp_cuda_compiler": "name the toolkit's folder in llama_cpp_cuda_toolkit"}
_SPEC_KEYS = ("type", "elements", "choices", "required", "no_log")


def role_variables(
    values: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]], defined: Iterable[str]
) -> dict[str, Any]:
    """The roles' variables as their types say, and what is wrong with them.

    `values` are the variables that are set, `specs` the options of all roles' argument_specs,
    `defined` the names of all variables that begin as a role's do (a typing error is one of them).
    Returns `values`, converted (a value from the command line is a string at first; a wrong one is
    replaced by the default, so that the rest can be checked too), and `findings`.
    """
    found = [
        findings.error(
            name,
            "there is no such variable",
            "one that a role documents in meta/argument_specs.yml",
            _did_you_mean(name, specs),
        )
        for name in sorted(set(defined) - set(specs))
    ]
    converted: dict[str, Any] = {}
    for name, spec in specs.items():
        accepted = {key: spec[key] for key in _SPEC_KEYS if key in spec}
        given = values.get(name, spec["default"])
        result = ArgumentSpecValidator({name: accepted}).validate({name: given})
        converted[name] = result.validated_parameters[name]
        if result.error_messages:
            converted[name] = spec["default"]
        choices = f", one of: {', '.join(map(str, spec['choices']))}" if "choices" in spec else ""
        found.extend(
            findings.error(name, message, f"{spec['type']}{choices}", "correct the value")
            for message in result.error_messages
        )
    return {"values": converted, "findings": found}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    if name in _REMOVED:
        return _REMOVED[name]
    near = difflib.get_close_matches(name, known, n=1)
    return f"write {near[0]} if that was meant" if near else "remove or rename it"


def llama_help_findings(
    instances: Iterable[Mapping[str, Any]], help_text: str
) -> list[findings.Finding]:
    """What the installed llama-server does not know of the instances' variables and options."""
    options = llama_help.parse_help(help_text)
    return [
        finding
        for instance in instances
        for finding in llama_option_check.help_findings(
            f"llama_instances.{instance['name']}", instance["environment"], options
        )
    ]


def systemd_environment(variables: Mapping[str, str], header: str = "") -> str:
    """An EnvironmentFile for systemd."""
    try:
        return systemd_env.render_env_file(variables, header)
    except ValueError as problem:
        raise AnsibleFilterError(f"systemd_environment: {problem}") from problem


def build_plan_for_gpus(
    gpus: Iterable[Mapping[str, Any]], driver: Mapping[str, Any] | None
) -> cuda_build_plan.BuildPlan:
    """Which CUDA toolkits serve the GPUs, and what to compile for."""
    try:
        return cuda_build_plan.cuda_build_plan(gpus, driver)
    except ValueError as problem:
        raise AnsibleFilterError(f"cuda_build_plan: {problem}") from problem


def cuda_redist_archives(manifest: str, architecture: str) -> list[cuda_redist.Archive]:
    """The archives that a build needs of those in the text of NVIDIA's manifest."""
    try:
        return cuda_redist.archives(cuda_redist.read_manifest(manifest), architecture)
    except cuda_redist.ManifestError as problem:
        raise AnsibleFilterError(f"cuda_redist_archives: {problem}") from problem


def memory_table(memory: Mapping[str, Any]) -> list[str]:
    """What the instances take, and what the servers themselves said of it."""
    return [*vram_text.instance_lines(memory), *plan_text.engine_lines(memory)]


def plan_vram(
    gpus: Iterable[Mapping[str, Any]],
    instances: Iterable[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    host: Mapping[str, Any],
    *,
    own_pids: Iterable[int] = (),
    own_mib: Mapping[str, int] | None = None,
    reserves: Mapping[Any, Any] | None = None,
    default_reserve_mib: int = vram_budget.DEFAULT_RESERVE_MIB,
    cuda_context_mib: int | Mapping[str, int] = vram_need.CUDA_CONTEXT_MIB,
    corrections: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> dict[str, Any]:
    """Fit instances into the memory of GPUs: `gpus | vram_plan(instances, models, host)`.

    `gpus` are `gpu_info`'s, `models` map names to what `gguf_info` returned of them, `host` has
    `memory_mib` and `reserve_mib`. An instance has `name`, `model`, `gpus` (UUIDs), `context`
    ({want, min}), `slots` and `kv_cache` (types, best first). All else that they may have, the
    options and the answer are described at `vram_plan` in module_utils/vram_plan.py.
    """
    try:
        return vram_plan.vram_plan(
            list(gpus),
            list(instances),
            models,
            host,
            own_pids=own_pids,
            own_mib=own_mib,
            reserves=reserves,
            default_reserve_mib=default_reserve_mib,
            cuda_context_mib=cuda_context_mib,
            corrections=corrections,
        )
    except KeyError as missing:
        raise AnsibleFilterError(
            f"vram_plan: {missing} is missing in one of its gpus, instances, models or host"
        ) from missing
    except (TypeError, ValueError) as problem:
        raise AnsibleFilterError(f"vram_plan: {problem}") from problem
