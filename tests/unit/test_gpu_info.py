"""Module gpu_info through a real ansible-playbook, with the stand-in nvidia-smi on PATH."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.modules import gpu_info

from tests.unit.play_runner import ROOT, PlayRunner

KLOROS = ROOT / "testbed" / "data" / "nvidia_smi_kloros.json"


@pytest.fixture
def state(tmp_path: Path, runner: PlayRunner) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").symlink_to(ROOT / "testbed" / "stand_in_nvidia_smi.py")
    path = tmp_path / "state.json"
    shutil.copy(KLOROS, path)
    runner.settings |= {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "STAND_IN_NVIDIA_SMI_STATE": str(path),
    }
    return path


def returned(result: dict[str, Any]) -> set[str]:
    return set(result) - {"changed", "failed", "ansible_facts", "warnings", "deprecations"}


@pytest.mark.parametrize("options", [[], ["--check", "--diff"]])
def test_gpus_are_returned_and_nothing_is_changed(
    runner: PlayRunner, state: Path, options: list[str]
) -> None:
    wanted = json.loads(state.read_text())
    played = runner.play("gpu_info", {}, options=options)
    result = played.result
    assert (played.rc, result["changed"], result["failed"]) == (0, False, False)
    assert result["status"] == "ok"
    assert result["driver"] == wanted["driver"]
    for found, gpu in zip(result["gpus"], wanted["gpus"], strict=True):
        kept = ("index", "uuid", "name", "compute_capability", "memory_total_mib", "bus_id")
        assert {key: found[key] for key in kept} == {key: gpu[key] for key in kept}


def test_a_fault_does_not_fail_the_task(runner: PlayRunner, state: Path) -> None:
    state.write_text(json.dumps(json.loads(state.read_text()) | {"fault": "mismatch"}))
    played = runner.play("gpu_info", {})
    assert (played.rc, played.result["failed"]) == (0, False)
    assert played.result["status"] == "driver_mismatch"
    assert played.result["cure"]
    assert played.result["gpus"] == []


def test_what_is_returned_is_documented(runner: PlayRunner, state: Path) -> None:
    assert state.exists()
    documented = yaml.safe_load(gpu_info.RETURN)
    result = runner.play("gpu_info", {}).result
    assert set(documented) == returned(result)
    assert set(documented["gpus"]["sample"][0]) == set(result["gpus"][0])
