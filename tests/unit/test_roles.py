"""Roles are described as they are: argument_specs and defaults say the same, names are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.module_utils.gateway_wishes import (
    GATEWAY_KEYS,
    LISTENER_KEYS,
    PERSONA_KEYS,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan import make_plan
from ansible_collections.kloros.llm.plugins.module_utils.router_wishes import ROUTER_KEYS
from ansible_collections.kloros.llm.plugins.module_utils.wishes import INSTANCE_KEYS

from tests.unit.conftest import PROJECT

ROLES = sorted(path.parent.parent for path in PROJECT.glob("roles/*/tasks/main.yml"))
SHARED = {"kloros_llm_user", "gpu_lockout"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def specs(role: Path) -> dict[str, Any]:
    options = read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert isinstance(options, dict)
    return options


def test_there_are_roles() -> None:
    assert [role.name for role in ROLES] == [
        "gguf_models",
        "llama_cpp",
        "llama_instances",
        "ollama_gateway",
        "preflight",
    ]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_equal_defaults(role: Path) -> None:
    defaults = read(role / "defaults/main.yml")
    described = {name: option["default"] for name, option in specs(role).items()}
    assert described == defaults


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_carry_the_roles_prefix(role: Path) -> None:
    own = set(specs(role)) - SHARED
    assert all(re.match(rf"{role.name}(_|$)", name) for name in own)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_is_explained_where_it_stands(role: Path) -> None:
    blocks = (role / "defaults/main.yml").read_text(encoding="utf-8").split("\n\n")
    assert all("#" in block for block in blocks)


def test_preflight_checks_every_role() -> None:
    listed = read(PROJECT / "roles/preflight/vars/main.yml")["__preflight_roles"]
    assert sorted(listed) == [role.name for role in ROLES]


def test_roles_hold_no_python() -> None:
    assert list(PROJECT.glob("roles/**/*.py")) == []


@pytest.mark.parametrize("name", ["demo", "example", "kloros"])
def test_inventory_is_sound(name: str, wishes: dict[str, Any], gpu_host: dict[str, Any]) -> None:
    variables = read(PROJECT / f"inventories/{name}/group_vars/all.yml")
    wishes["gguf_models"]["models"] = variables["gguf_models"]
    wishes["gguf_models"]["owner"] = variables.get("gguf_models_owner", "root")
    wishes["llama_instances"]["instances"] = variables["llama_instances"]
    wishes["ollama_gateway"] |= {
        key: variables[f"ollama_gateway_{key}"]
        for key in GATEWAY_KEYS
        if f"ollama_gateway_{key}" in variables
    }
    wishes["llama_cpp"] |= {
        key.removeprefix("llama_cpp_"): value
        for key, value in variables.items()
        if key.startswith("llama_cpp_")
    }
    result = make_plan(wishes, gpu_host)
    assert [f for f in result["findings"] if f["level"] == "error"] == []
    assert len(result["plan"]["instances"]) == len(variables["llama_instances"])
    assert result["plan"]["gateway"]["listeners"]


def test_the_readmes_inventory_can_be_copied(
    wishes: dict[str, Any], gpu_host: dict[str, Any]
) -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    example = readme.split("```yaml\n# inventories/mine")[1].split("```")[0]
    variables = yaml.safe_load("#" + example)
    wishes["gguf_models"]["models"] = variables["gguf_models"]
    wishes["llama_instances"]["instances"] = variables["llama_instances"]
    wishes["ollama_gateway"] |= {
        key: variables[f"ollama_gateway_{key}"] for key in ("listeners", "personas", "limits")
    }
    for listener in wishes["ollama_gateway"]["listeners"]:
        if "api_key" in listener:
            assert listener["api_key"] == "{{ vault_ollama_key }}"
            listener["api_key"] = "canary-4b1f0c7e9d52"
    result = make_plan(wishes, gpu_host)
    assert result["findings"] == []
    assert set(variables["llama_instances"]["live"]) == set(INSTANCE_KEYS)
    routers = variables["llama_instances"]["swap"]
    assert {"router", "models", "models_max"} <= set(routers) <= set(ROUTER_KEYS)
    listed = {key for listener in variables["ollama_gateway_listeners"] for key in listener}
    assert listed == set(LISTENER_KEYS)
    assert set(variables["ollama_gateway_personas"]["mario"]) == set(PERSONA_KEYS)


def test_kloros_inventory_is_the_owners_plan() -> None:
    instances = read(PROJECT / "inventories/kloros/group_vars/all.yml")["llama_instances"]
    assert {
        name: (wish["gpus"], wish["port"], wish["context"]["want"], wish["parallel"])
        for name, wish in instances.items()
    } == {"live": ([0], 8080, 32768, 2), "code": ([1], 8081, 32768, 1)}
