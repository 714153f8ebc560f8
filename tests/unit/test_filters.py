"""The filters as templates call them: in one real ansible-playbook, with its own types."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.unit.conftest import KLOROS_GPUS, PROJECT
from tests.unit.planned_models import headers_of

Run = Callable[..., subprocess.CompletedProcess[str]]
MODELS = {"dir": "/models", "models": {"m": {"source": "hf://someone/tiny/tiny.gguf"}}}
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


VRAM_WISH = {
    "name": "live",
    "model": "m",
    "gpus": ["GPU-3060"],
    "context": {"want": 4096},
    "slots": 2,
    "kv_cache": ["q8_0"],
}


def test_vram_plan(run_play: Run) -> None:
    (header,) = headers_of({"gguf_models": MODELS}, "qwen2.5-0.5b")
    done = run_play(
        [
            {"ansible.builtin.set_fact": {"found": "{{ gpus | vram_plan([wish], models, host) }}"}},
            claim(
                "found.problems == []",
                "found.instances.live.gpu_layers == 'all'",
                "found.instances.live.devices[0].kv_mib in [51, 52]",
                "found.gpus[0].instances == [{'name': 'live', 'mib': total}]",
                "found.gpus[0].free_mib == 12288 - 512 - total",
                "(gpus | vram_plan([wish], models, host, reserves={0: 12000})).problems[0].instance"
                " == 'live'",
                "(gpus | vram_plan([], {}, host, default_reserve_mib=0)).gpus[1].free_mib > 10000",
            ),
        ],
        gpus=KLOROS_GPUS["gpus"],
        wish=VRAM_WISH,
        models={"m": {"shape": header["shape"], "size_bytes": header["size_bytes"]}},
        host={"memory_mib": 32000, "reserve_mib": 2048},
        total="{{ found.instances.live.devices[0].total_mib }}",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_vram_plan_says_what_is_missing(run_play: Run) -> None:
    done = run_play(
        [claim("[] | vram_plan([{'name': 'live'}], {}, {'memory_mib': 1, 'reserve_mib': 0})")]
    )
    assert done.returncode != 0
    assert "vram_plan: 'model' is missing" in done.stdout + done.stderr


def test_audit_and_memory_are_told(
    run_play: Run, wishes: dict[str, Any], gpu_host: dict[str, Any]
) -> None:
    wishes["llama_instances"]["instances"]["live"] |= {"gpus": [0], "context": 4096}
    gpu_host["headers"] = headers_of(wishes, "qwen2.5-0.5b")
    answer = {
        "item": {"name": "live"},
        "asked": "llama-server",
        "accepted": True,
        "rows": [{"device": "CUDA0", "weights_mib": 999, "kv_mib": 0, "compute_mib": 0}],
        "draft_rows": [],
        "projector_mib": {},
        "not_covered": ["adapters"],
    }
    done = run_play(
        [
            {"ansible.builtin.set_fact": {"first": "{{ wishes | kloros_llm_plan(host) }}"}},
            claim(
                "'Findings' in report",
                "'Nothing is wrong.' in report",
                "first.plan.memory | memory_table | last == unasked",
                "wishes | models_to_read | length == 1",
                "(first.plan | models_to_fetch)[0].name == 'tiny:1b'",
            ),
            {
                "ansible.builtin.set_fact": {
                    "second": "{{ wishes | kloros_llm_plan(host | combine({'dry_runs': said})) }}"
                }
            },
            claim(
                "told | join is search('weights +[+]67[345]')",
                "'Not measured of live: adapters' in told",
                "told | select('match', 'Not asked') | length == 0",
                "(second.plan | lasting_plan | to_json | previous_plan | plan_dry_runs).answers"
                " == said.answers",
            ),
        ],
        wishes=wishes,
        host=gpu_host,
        answers=[answer],
        unasked="Not asked about in its last setting: live",
        report="{{ wishes | audit_report(host, first.plan, first.findings) }}",
        said="{{ host.dry_runs | with_dry_runs(first.plan.memory['keys'], answers) }}",
        told="{{ second.plan.memory | memory_table }}",
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


def test_each_door_leads_to_a_function() -> None:
    doors = runpy.run_path(str(PROJECT / "filter_plugins/kloros_llm.py"))["FILTERS"]
    assert len(doors) > 20
    for function in doors.values():
        module, _, name = function.partition(":")
        found = getattr(import_module(f"ansible_collections.kloros.llm.plugins.{module}"), name)
        assert found.__doc__


def test_the_doors_load_nothing_of_the_core() -> None:
    """Ansible loads them in the process of each task that has a filter."""
    code = (
        "import runpy, sys; "
        "runpy.run_path('filter_plugins/kloros_llm.py')['FilterModule']().filters(); "
        "print([name for name in sys.modules if 'kloros' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
