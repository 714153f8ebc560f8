"""The filters as templates call them: in one real ansible-playbook, with its own types."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.conftest import PROJECT

Run = Callable[..., subprocess.CompletedProcess[str]]
HELP = (PROJECT / "tests/unit/data/llama-server-help-v0.5.0-dev.txt").read_text(encoding="utf-8")


def claim(*conditions: str) -> dict[str, Any]:
    return {"ansible.builtin.assert": {"that": list(conditions)}}


def test_plan_and_what_is_made_of_it(
    run_play: Run, wishes: dict[str, Any], host: dict[str, Any], tmp_path: Path
) -> None:
    wishes["llama_instances"]["instances"]["live"]["extra"] = {"top-k": 7}
    env_file = tmp_path / "live.env"
    done = run_play(
        [
            {"ansible.builtin.set_fact": {"result": "{{ wishes | kloros_llm_plan(host) }}"}},
            claim(
                "result.findings == []",
                "result.plan.instances[0].environment.LLAMA_EXTRA_ARGS == '--top-k 7'",
                "result.plan | plan_table | length > 5",
                "'8080' in (result.plan | endpoint_table | join)",
                "wishes.llama_cpp | llama_packages | length > 5",
                "(result.plan.llama_cpp | llama_release({'c++': '14'}, 'cpu')).name is match('v0')",
                "{'A': 'x y'} | cmake_definitions == ['-DA=x y']",
                "['b', 'a'] | outdated_releases(['b'], 0) == ['a']",
                "result.plan.instances | llama_help_findings(help_text) == []",
            ),
            {
                "ansible.builtin.copy": {
                    "content": "{{ variables | systemd_environment('head') }}",
                    "dest": str(env_file),
                    "mode": "0600",
                }
            },
        ],
        wishes=wishes,
        host=host,
        help_text=HELP,
        variables="{{ result.plan.instances[0].environment }}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = env_file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# head"
    assert 'LLAMA_EXTRA_ARGS="--top-k 7"' in lines


def test_findings_reach_the_reader(
    run_play: Run, wishes: dict[str, Any], host: dict[str, Any]
) -> None:
    wishes["llama_instances"]["instances"]["live"]["prot"] = 1
    done = run_play(
        [
            {
                "ansible.builtin.fail": {
                    "msg": "{{ (wishes | kloros_llm_plan(host)).findings | findings_text }}"
                }
            }
        ],
        wishes=wishes,
        host=host,
    )
    assert done.returncode != 0
    assert "ERROR llama_instances.live.prot: there is no such key" in done.stdout


def test_option_that_the_binary_does_not_know(
    run_play: Run, wishes: dict[str, Any], host: dict[str, Any]
) -> None:
    wishes["llama_instances"]["instances"]["live"]["extra"] = {"top-kk": 7}
    done = run_play(
        [
            claim(
                "(found | length) == 1",
                "found[0].key == 'llama_instances.live.extra.top-kk'",
                "'--top-k' in found[0].needed",
            )
        ],
        wishes=wishes,
        host=host,
        help_text=HELP,
        instances="{{ (wishes | kloros_llm_plan(host)).plan.instances }}",
        found="{{ instances | llama_help_findings(help_text) }}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_env_file_refuses_what_systemd_cannot_hold(run_play: Run) -> None:
    done = run_play([claim("{'A': 'x\ny'} | systemd_environment")])
    assert done.returncode != 0
    assert "systemd_environment: " in done.stdout + done.stderr


def test_variable_that_is_gone_names_its_successor(run_play: Run) -> None:
    done = run_play(
        [claim('found[0].cure == "name the toolkit\'s folder in llama_cpp_cuda_toolkit"')],
        found="{{ ({} | role_variables({}, ['llama_cpp_cuda_compiler'])).findings }}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_are_checked_and_converted(run_play: Run) -> None:
    specs = {
        "llama_cpp_source": {"type": "str", "choices": ["git", "archive"], "default": "git"},
        "llama_cpp_jobs": {"type": "int", "default": 0},
        "llama_cpp_keep_releases": {"type": "int", "default": 0},
        "llama_cpp_portable": {"type": "bool", "default": True},
        "llama_cpp_version": {"type": "str", "default": "v1"},
    }
    done = run_play(
        [
            claim(
                "found | map(attribute='key') | sort == "
                "['llama_cpp_jbos', 'llama_cpp_jobs', 'llama_cpp_source']",
                "found[0].cure == 'write llama_cpp_jobs if that was meant'",
                "'git, archive' in (found | map(attribute='needed') | join)",
                "result['values'].llama_cpp_portable is false",
                "result['values'].llama_cpp_keep_releases == 2",
                "result['values'].llama_cpp_version == '1.1'",
                "result['values'].llama_cpp_jobs == 0",
                "result['values'].llama_cpp_source == 'git'",
            )
        ],
        specs=specs,
        given={
            "llama_cpp_source": "svn",
            "llama_cpp_jobs": "many",
            "llama_cpp_portable": "false",
            "llama_cpp_keep_releases": "2",
            "llama_cpp_version": 1.1,
        },
        result="{{ given | role_variables(specs, ['llama_cpp_jbos', 'llama_cpp_jobs']) }}",
        found="{{ result.findings }}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


GPUS = [
    {"index": 0, "name": "NVIDIA GeForce RTX 3060", "compute_capability": "8.6"},
    {"index": 1, "name": "NVIDIA GeForce GTX 1080 Ti", "compute_capability": "6.1"},
]


def test_cuda_build_plan(run_play: Run) -> None:
    done = run_play(
        [
            {"ansible.builtin.set_fact": {"result": "{{ gpus | cuda_build_plan(driver) }}"}},
            claim(
                "result.toolkit == '12.4'",
                "result.accepted[0] == result.toolkit",
                "result.flags == "
                "{'GGML_CUDA': 'ON', 'CMAKE_CUDA_ARCHITECTURES': '61-real;86-real'}",
                "result.architectures == ['61-real', '86-real']",
                "'GTX 1080 Ti' in result.reasons[0]",
                "result.sets == []",
                "(gpus | selectattr('index', 'eq', 0) | cuda_build_plan(none)).toolkit == '12.9'",
                "(gpus | cuda_build_plan({})).toolkit == '12.9'",
            ),
        ],
        gpus=GPUS,
        driver={"version": "550.163.01", "cuda_version": "12.4"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_cuda_build_plan_says_what_is_wrong_with_its_input(run_play: Run) -> None:
    done = run_play(
        [claim("gpus | cuda_build_plan(driver)")],
        gpus=GPUS,
        driver={"version": "550.163.01", "cuda_version": 12.4},
    )
    assert done.returncode != 0
    assert "cuda_build_plan: the driver's cuda_version must be" in done.stdout + done.stderr
