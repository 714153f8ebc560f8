"""The role preflight, run by a real ansible-playbook on this machine, in check mode."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.plan import make_plan

from testbed import model_zoo
from tests.unit.llama_dry_run_lab import Lab, lab
from tests.unit.planned_models import headers_of

Data = dict[str, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]


def role(part: str) -> Data:
    return {"ansible.builtin.import_role": {"name": "preflight", "tasks_from": part}}


def test_audit_tells_everything_and_writes_nothing(run_play: Run, tmp_path: Path) -> None:
    model_zoo.write("qwen2.5-0.5b", tmp_path / "there.gguf")
    here = sorted(tmp_path.iterdir())
    done = run_play(
        [role("audit")],
        preflight_any_system=True,
        preflight_plan_file=str(tmp_path / "etc/plan.json"),
        gguf_models_dir=str(tmp_path / "models"),
        gguf_models={
            "there": {"source": f"file:{tmp_path}/there.gguf"},
            "gone": {"source": f"file:{tmp_path}/gone.gguf"},
        },
        llama_instances={"live": {"model": "there", "port": 18080, "context": 1024}},
        llama_instances_hots="::1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout
    for words in (
        "With other GPUs",
        "live      1024     1      f16",
        "ERROR gguf_models.gone:",
        "ERROR llama_instances_hots: there is no such variable",
    ):
        assert words in done.stdout
    assert sorted(path for path in tmp_path.iterdir() if path.name != "play.yml") == here


def test_plan_that_cannot_be_read_is_not_taken_for_none(run_play: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    done = run_play(
        [role("audit")], preflight_any_system=True, preflight_plan_file=str(tmp_path / "plan.json")
    )
    assert done.returncode != 0
    assert "plan before this one" in done.stdout
    assert "is a directory" in done.stdout + done.stderr


@pytest.fixture
def here() -> Iterator[Lab]:
    with lab() as made:
        yield made


def engine(run_play: Run, here: Lab, wishes: Data, host: Data, server: Path) -> str:
    """The stage in which the server is asked, of a plan for a host with GPUs; what was printed."""
    seen = {key: value for key, value in host.items() if key not in ("gpus", "cuda", "headers")}
    done = run_play(
        [
            role("variables"),
            {
                "ansible.builtin.set_fact": {
                    "__preflight_host": seen,
                    "__preflight_gpus": host["gpus"],
                    "__preflight_cuda": host["cuda"],
                    "__preflight_headers": {"results": host["headers"]},
                    "__preflight_plan_before": {},
                    "__preflight_dry_runs": host["dry_runs"],
                    "preflight_plan": make_plan(wishes, host)["plan"],
                }
            },
            role("engine")
            | {"vars": {"preflight_engine": str(server), "preflight_engine_release": "v1"}},
        ],
        "--check",
        preflight_plan_file=str(here.folder / "plan.json"),
        gguf_models=wishes["gguf_models"]["models"],
        llama_instances=wishes["llama_instances"]["instances"],
        llama_cpp_backend="cuda",
        llama_cpp_cuda_nonfree=True,
    )
    assert not (here.folder / "plan.json").exists()
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture
def on_gpu(wishes: Data, gpu_host: Data, here: Lab) -> tuple[Data, Data]:
    """An instance on the first GPU, whose model is a file that is there."""
    model = here.folder / "tiny.gguf"
    model_zoo.write("qwen2.5-0.5b", model)
    model.chmod(0o644)
    wishes["gguf_models"]["models"] = {"tiny": {"source": f"file:{model}"}}
    instance = {"model": "tiny", "port": 8080, "gpus": [0], "context": 4096}
    wishes["llama_instances"]["instances"] = {"live": instance}
    wishes["llama_cpp"] |= {"backend": "cuda", "cuda_nonfree": True}
    gpu_host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    return wishes, gpu_host


def says(here: Lab, **mib: int) -> Path:
    """A server that says of the first GPU what is given, and ends."""
    row = {"kind": "device", "name": "CUDA0", "total": 12288, "free": 12000, **mib}
    host = {"kind": "host", "name": "Host", "model": 90, "context": 0, "compute": 8}
    line = {"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [row, host]}}
    said = here.file("said.jsonl", json.dumps(line) + "\n")
    program = here.server.with_name("llama-server-that-says")
    program.write_text(
        f"#!/bin/sh\nSTAND_IN_STDOUT={said} STAND_IN_RECORD={here.record} STAND_IN_THEN=hang "
        f'exec {here.server} "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_engine_that_is_not_built_yet_is_said(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    output = engine(run_play, here, *on_gpu, here.folder / "nothing")
    assert output.startswith("0\n"), output
    assert "the memory was planned by formulas" in output


def test_engine_is_asked_once_and_heard(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    output = engine(run_play, here, *on_gpu, says(here, model=325, context=48, compute=58))
    assert output.startswith("0\n"), output
    assert "compute" in output
    assert "+21" in output  # the formulas say 37 of the GPU
    assert len(here.seen("pid")) == 1


def test_engine_that_needs_more_than_there_is_stops_the_play(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    output = engine(run_play, here, *on_gpu, says(here, model=20000, context=48, compute=38))
    assert output.startswith("2\n"), output
    assert "No instance was touched" in output
    assert "llama_instances.live: GPU 0 (NVIDIA GeForce RTX 3060) would need 20" in output


def test_without_instances_no_engine_is_asked(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    wishes, host = on_gpu
    wishes["llama_instances"]["instances"] = {}
    output = engine(run_play, here, wishes, host, says(here, model=1, context=1, compute=1))
    assert output.startswith("0\n"), output
    assert here.seen("pid") == []


def plans_made(output: str) -> int:
    """How often the plan was made, of the tasks in what a play printed."""
    tasks = output.split("TASK [preflight : Measure the wishes against the host]")[1:]
    return sum("skipping:" not in said.split("TASK [")[0] for said in tasks)


def test_rounds_that_are_not_needed_plan_nothing(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    output = engine(run_play, here, *on_gpu, says(here, model=325, context=48, compute=58))
    assert output.startswith("0\n"), output
    assert plans_made(output) == 2  # before the server was asked, and with what it said


def test_what_the_server_says_is_heard_in_the_round_in_which_it_is_asked(
    run_play: Run, here: Lab, on_gpu: tuple[Data, Data]
) -> None:
    """The condition of a round must not change while the round goes on."""
    on_gpu[0]["llama_instances"]["instances"]["live"]["alternatives"] = [{"gpus": []}]
    output = engine(run_play, here, *on_gpu, says(here, model=20000, context=48, compute=38))
    assert output.startswith("0\n"), output
    assert plans_made(output) == 3  # with what it said of the wish, then of the alternative


def test_what_the_plan_is_told_of_wheels_and_the_token(run_play: Run, tmp_path: Path) -> None:
    """Whether they are there, and never the token itself: the plan is shown."""
    show = {
        "ansible.builtin.debug": {
            "msg": "wheels={{ __preflight_wishes.ollama_gateway.wheels_there }} "
            "token={{ __preflight_wishes.gguf_models.hf_token }}"
        }
    }
    tasks = [role("variables"), show]
    folder = str(tmp_path / "wheels")
    token = "hf_canary"
    bare = run_play(tasks, ollama_gateway_wheels_dir=folder)
    assert "wheels=False token=False" in bare.stdout, bare.stdout + bare.stderr
    Path(folder).mkdir()
    (Path(folder) / "a-1-py3-none-any.whl").touch()
    full = run_play(tasks, "-vvv", ollama_gateway_wheels_dir=folder, gguf_models_hf_token=token)
    assert "wheels=True token=True" in full.stdout, full.stdout + full.stderr
    assert token not in full.stdout + full.stderr
