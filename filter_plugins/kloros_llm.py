"""Jinja doors to the planning code of the collection kloros.llm.

Ansible loads this file anew for each task that has a filter, whichever filter that is; the code
behind a door is loaded when the filter is called, which takes a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

_PLUGINS: Final = "ansible_collections.kloros.llm.plugins"

# Each filter's name in templates, and the function behind it.
FILTERS: Final = {
    "audit_report": "module_utils.audit_text:audit_report",
    "cmake_definitions": "module_utils.release:definitions",
    "cuda_build_plan": "plugin_utils.filters:build_plan_for_gpus",
    "cuda_package_problems": "module_utils.cuda_code:package_problems",
    "cuda_redist_archives": "plugin_utils.filters:cuda_redist_archives",
    "dry_run_findings": "module_utils.plan_memory:dry_run_findings",
    "endpoint_table": "module_utils.plan_text:endpoints",
    "findings_text": "module_utils.findings:render",
    "gateway_credentials": "module_utils.gateway_toml:credentials",
    "gateway_keys": "module_utils.gateway_toml:keys_of_listeners",
    "gateway_packages": "module_utils.gateway_plan:gateway_packages",
    "gateway_table": "module_utils.plan_text:gateway",
    "gateway_toml": "module_utils.gateway_toml:gateway_toml",
    "kloros_llm_plan": "module_utils.plan:make_plan",
    "lasting_plan": "module_utils.plan:lasting",
    "llama_help_findings": "plugin_utils.filters:llama_help_findings",
    "llama_packages": "module_utils.plan:packages",
    "llama_release": "module_utils.release:describe",
    "memory_table": "plugin_utils.filters:memory_table",
    "models_to_fetch": "module_utils.plan:models_to_fetch",
    "models_to_read": "module_utils.plan:models_to_read",
    "outdated_releases": "module_utils.release:outdated",
    "plan_dry_runs": "module_utils.plan_memory:known_dry_runs",
    "plan_sources": "module_utils.plan_memory:plan_sources",
    "plan_table": "module_utils.plan_text:table",
    "previous_plan": "module_utils.plan_memory:previous_plan",
    "role_variables": "plugin_utils.filters:role_variables",
    "systemd_environment": "plugin_utils.filters:systemd_environment",
    "vram_plan": "plugin_utils.filters:plan_vram",
    "with_dry_runs": "module_utils.plan_memory:with_dry_runs",
}


def _door(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(f"{_PLUGINS}.{module}"), name)(*arguments, **options)

    return call


class FilterModule:
    """The filters, by the names that templates use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {name: _door(function) for name, function in FILTERS.items()}
