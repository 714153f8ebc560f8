"""What several unit tests build on."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.module_utils.gateway_wishes import GATEWAY_KEYS

from tests.unit.play_runner import PlayRunner

PROJECT = Path(__file__).resolve().parents[2]

_HOST: dict[str, Any] = {
    "machine": {
        "os": {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"},
        "architecture": "x86_64",
        "python": "3.13.5",
        "systemd": 257,
        "cpus": 8,
        "cpu_digest": "1ddebed04610",
        "memory_mib": 32000,
    },
    "disks": {
        path: {"exists": False, "mount": "/", "free_mib": 50000}
        for path in (
            "/opt/llama.cpp",
            "/opt/llama.cpp/current",
            "/var/cache/kloros-llm",
            "/var/lib/kloros-llm/models",
            "/usr",
        )
    },
    "users": {
        "kloros": None,
        "root": {"uid": 0, "gid": 0, "group": "root", "home": "/root"},
    },
    "packages_missing": ["cmake"],
    "listeners": [],
    "units": [],
    "unit_processes": {},
    "unit_children": [],
    "foreign_units": [],
    "gateway_units": [],
    "headers": [],
    "before": {},
    "dry_runs": {"release": "", "answers": {}},
    "gpus": {
        "status": "no_tool",
        "detail": "there is no nvidia-smi",
        "cure": "install NVIDIA's driver",
        "driver": None,
        "gpus": [],
    },
    "cuda": {"toolkits": [], "compilers": {}, "packaged": None, "driver_library": None},
}

KLOROS_GPUS: dict[str, Any] = {
    "status": "ok",
    "detail": "2 GPUs",
    "cure": "",
    "driver": {"version": "550.163.01", "cuda_version": "12.4"},
    "gpus": [
        {
            "index": 0,
            "uuid": "GPU-3060",
            "name": "NVIDIA GeForce RTX 3060",
            "compute_capability": "8.6",
            "memory_total_mib": 12288,
            "memory_free_mib": 12037,
            "processes": [],
        },
        {
            "index": 1,
            "uuid": "GPU-1080",
            "name": "NVIDIA GeForce GTX 1080 Ti",
            "compute_capability": "6.1",
            "memory_total_mib": 11264,
            "memory_free_mib": 11014,
            "processes": [],
        },
    ],
}


def role_defaults() -> dict[str, Any]:
    """The defaults of all roles, merged."""
    merged: dict[str, Any] = {}
    for path in sorted(PROJECT.glob("roles/*/defaults/main.yml")):
        merged |= yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return merged


@pytest.fixture
def host() -> dict[str, Any]:
    """What preflight reads of a bare Debian 13 host without a GPU."""
    return copy.deepcopy(_HOST)


@pytest.fixture
def gpu_host(host: dict[str, Any]) -> dict[str, Any]:
    """The same with the KLoROS machine's GPUs and Debian's driver."""
    library = {"path": "/lib/x86_64-linux-gnu/libcuda.so.1", "package": "libcuda1"}
    cuda = host["cuda"] | {"driver_library": library, "packaged": "12.4"}
    return host | {"gpus": copy.deepcopy(KLOROS_GPUS), "cuda": cuda}


@pytest.fixture
def wishes() -> dict[str, Any]:
    """The smallest useful wishes, as preflight hands them to the plan, with the roles' defaults."""
    defaults = role_defaults()

    def part(role: str, keys: tuple[str, ...]) -> dict[str, Any]:
        return {key: defaults[f"{role}_{key}"] for key in keys}

    llama_cpp = {
        name.removeprefix("llama_cpp_"): value
        for name, value in defaults.items()
        if name.startswith("llama_cpp_")
    } | {"archive_there": True, "package_there": True}
    return {
        "user": "kloros",
        "any_system": False,
        "gpu_lockout": [],
        "gpu_reserve_mib": {},
        "gpu_reserve_default_mib": 512,
        "memory_reserve_mib": 2048,
        "llama_cpp": llama_cpp,
        "gguf_models": {
            "dir": defaults["gguf_models_dir"],
            "owner": defaults["gguf_models_owner"],
            "hf_endpoint": defaults["gguf_models_hf_endpoint"],
            "hf_token": False,
            "models": {"tiny:1b": {"source": "hf://someone/tiny/tiny.gguf"}},
        },
        "llama_instances": {
            "instances": {"live": {"model": "tiny:1b", "port": 8080}},
            **part("llama_instances", ("host", "context", "parallel", "min_tokens_per_s")),
        },
        "ollama_gateway": part("ollama_gateway", tuple(GATEWAY_KEYS.keys() - {"wheels_there"}))
        | {"wheels_there": True},
    }


@pytest.fixture
def runner(tmp_path: Path) -> PlayRunner:
    """Runs a module of the collection in a play, in folders of its own."""
    return PlayRunner(tmp_path / "ansible")


@pytest.fixture
def run_play(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tasks in one real ansible-playbook against localhost, with the project's settings."""

    def run(
        tasks: list[dict[str, Any]], *arguments: str, **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        play = [
            {
                "hosts": "localhost",
                "connection": "local",
                "gather_facts": False,
                "vars": {"ansible_python_interpreter": sys.executable, **variables},
                "tasks": tasks,
            }
        ]
        path = tmp_path / "play.yml"
        path.write_text(yaml.safe_dump(play), encoding="utf-8")
        return subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                "--inventory=localhost,",
                str(path),
                *arguments,
            ],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
