"""The role ollama_gateway, run by a real ansible-playbook on this machine, without a host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.kloros.llm.plugins.module_utils.gateway_toml import gateway_toml
from ansible_collections.kloros.llm.plugins.module_utils.plan import make_plan

from tests.unit.conftest import role_defaults
from tests.unit.gateway.gateway_process import GatewayProcess, free_ports, write_model

Data = dict[str, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]
KEY = "canary-4b1f0c7e9d52"
WHEEL = {
    "path": "/usr/local/lib/kloros-llm/kloros_llm.whl",
    "name": "kloros_llm-0.1.0-py3-none-any.whl",
    "sha256": "0" * 64,
}


def role(part: str) -> Data:
    return {"ansible.builtin.import_role": {"name": "ollama_gateway", "tasks_from": part}}


def facts(plan: Data) -> Data:
    return {"ansible.builtin.set_fact": {"preflight_plan": plan, "gguf_models_wheel": WHEEL}}


def variables(wishes: Data) -> Data:
    """What the role sees of the inventory."""
    gateway = {f"ollama_gateway_{key}": value for key, value in wishes["ollama_gateway"].items()}
    instances = {"llama_instances": wishes["llama_instances"]["instances"]}
    return role_defaults() | gateway | instances


@pytest.fixture
def units(run_play: Run, wishes: Data, host: Data, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Has the role's templates written; the units by name."""

    def write(**more: Any) -> dict[str, str]:
        result = make_plan(wishes, host)
        assert [f for f in result["findings"] if f["level"] == "error"] == []
        plan = result["plan"]
        templates = f"{Path.cwd()}/roles/ollama_gateway/templates"
        service = {
            "ansible.builtin.template": {
                "src": f"{templates}/kloros-llm-gateway.service.j2",
                "dest": f"{tmp_path}/kloros-llm-gateway.service",
                "mode": "0644",
            }
        }
        sockets = {
            "ansible.builtin.copy": {
                "content": "{{ __ollama_gateway_sockets[item.name] }}",
                "dest": f"{tmp_path}/{{{{ item.unit }}}}",
                "mode": "0644",
            },
            "loop": "{{ preflight_plan.gateway.listeners }}",
        }
        settled = {"ansible.builtin.set_fact": {"__ollama_gateway_release": "0.1.0-0123456789"}}
        done = run_play(
            [facts(plan), settled, role("digest"), service, sockets], **variables(wishes) | more
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert KEY not in done.stdout
        found = [*tmp_path.glob("*.service"), *tmp_path.glob("*.socket")]
        return {path.name: path.read_text(encoding="utf-8") for path in found}

    return write


def test_units_say_what_was_planned(units: Callable[[], dict[str, str]], wishes: Data) -> None:
    wishes["gguf_models"]["owner"] = "kloros"
    wishes["ollama_gateway"] |= {
        "listeners": [
            {"port": 11434},
            {"port": 11435, "address": "::1", "api_key": KEY},
            {"port": 11436, "address": "0::0", "api_key": KEY},
        ],
        "manages_models": True,
        "limits": {"drain_s": 40.5},
    }
    written = units()
    socket = written["kloros-llm-gateway-11435---1.socket"].splitlines()
    assert "ListenStream=[::1]:11435" in socket
    assert "BindIPv6Only=ipv6-only" in socket
    # As Go's: of IPv4 too.
    of_all = written["kloros-llm-gateway-11436---.socket"].splitlines()
    assert "ListenStream=[::]:11436" in of_all
    assert "BindIPv6Only=both" in of_all
    assert "FileDescriptorName=ollama-11435---1" in socket
    assert "Service=kloros-llm-gateway.service" in socket
    service = written["kloros-llm-gateway.service"].splitlines()
    assert "Sockets=kloros-llm-gateway-11434.socket" in service
    assert "Sockets=kloros-llm-gateway-11435---1.socket" in service
    credential = "listener-11435---1"
    folder = "/etc/kloros-llm/credentials/gateway"
    assert f"LoadCredential={credential}:{folder}/{credential}" in service
    assert "User=kloros" in service
    assert "BindPaths=/var/lib/kloros-llm/models" in service
    assert "TimeoutStopSec=55" in service
    for name, text in written.items():
        assert "(kloros-llm, role ollama_gateway)" in text.split("\n", 1)[0], name
        assert KEY not in text


def digests(service: str) -> tuple[str, list[str]]:
    """The process's own, and those of the sockets."""
    values = dict(re.findall(r"^Environment=(KLOROS_LLM_\w+)=(.*)$", service, re.MULTILINE))
    return values["KLOROS_LLM_CONFIG_DIGEST"], values["KLOROS_LLM_SOCKETS"].split(",")


def test_what_restarts_it(units: Callable[[], dict[str, str]], wishes: Data) -> None:
    """A change of what it serves does, and only sockets that are others are opened anew."""

    def now() -> tuple[str, list[str]]:
        return digests(units()["kloros-llm-gateway.service"])

    config, sockets = now()
    assert now() == (config, sockets)
    wishes["ollama_gateway"]["personas"] = {"mario": {"from": "tiny:1b"}}
    after = now()
    assert after[0] != config
    assert after[1] == sockets
    wishes["llama_instances"]["instances"]["live"]["api_key"] = KEY
    with_key = now()
    wishes["llama_instances"]["instances"]["live"]["api_key"] = f"{KEY}-other"
    assert now()[0] != with_key[0]
    before = now()
    wishes["ollama_gateway"]["listeners"] = [{"port": 11434}, {"port": 11435}]
    added = now()
    assert added[0] != before[0]
    assert added[1][:1] == before[1]
    assert added[1][1].startswith("11435=")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("manages", [True, False])
def test_exposure(
    units: Callable[[], dict[str, str]], wishes: Data, tmp_path: Path, manages: bool
) -> None:
    wishes["gguf_models"]["owner"] = "kloros"
    wishes["ollama_gateway"]["manages_models"] = manages
    units()
    unit = f"{tmp_path}/kloros-llm-gateway.service"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    overall = done.stdout.splitlines()[-1]
    assert float(overall.split(":")[1].split()[0]) <= 2.0, overall


def stand_in_systemctl(folder: Path) -> Path:
    """Of a host where the gateway was never started."""
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text('#!/bin/sh\ncase "$*" in *MainPID*) echo 0;; *) echo inactive;; esac\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("listeners", [[{"port": 11434}], [{"port": 11434, "api_key": KEY}], []])
def test_check_mode_on_a_virgin_host(
    run_play: Run, wishes: Data, host: Data, tmp_path: Path, listeners: list[Data]
) -> None:
    wishes["ollama_gateway"] |= {"listeners": listeners, "dir": f"{tmp_path}/opt/gateway"}
    host["packages_missing"] = ["python3-venv"]
    plan = make_plan(wishes, host)["plan"]
    path = stand_in_systemctl(tmp_path / "bin")
    here = sorted(tmp_path.rglob("*"))
    done = run_play(
        [facts(plan), role("main") | {"environment": {"PATH": f"{path}:/usr/bin:/bin"}}],
        "--check",
        "--diff",
        "-vv",
        **variables(wishes),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "Would install: python3-venv",
        f"Would make {tmp_path}/opt/gateway/0.1.0-",
        "Would start kloros-llm-gateway.service",
    ):
        assert (words in done.stdout) == bool(listeners)
    assert ("changed=0" in done.stdout) != bool(listeners)
    assert KEY not in done.stdout
    assert sorted(one for one in tmp_path.rglob("*") if one.name != "play.yml") == here


def test_left_out_listeners_are_told(run_play: Run, wishes: Data, host: Data) -> None:
    held = {"port": 11434, "address": "127.0.0.1", "pid": 8, "process": "ollama", "unit": None}
    host["listeners"] = [held]
    plan = make_plan(wishes, host)["plan"]
    done = run_play([facts(plan), role("main")], "--check", **variables(wishes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Another process holds port 11434 of 127.0.0.1" in done.stdout
    assert "changed=0" in done.stdout


@pytest.fixture
def running(wishes: Data, host: Data, tmp_path: Path) -> Callable[..., Data]:
    """A plan of a gateway on free ports, written as the role writes it."""

    def plan(**listener: Any) -> Data:
        (port,) = free_ports(1)
        folder = tmp_path / "models"
        folder.mkdir()
        write_model(folder / "tiny.gguf")
        wishes["gguf_models"]["dir"] = str(folder)
        wishes["ollama_gateway"]["metrics_port"] = 0
        wishes["ollama_gateway"]["listeners"] = [{"port": port, **listener}]
        planned: Data = make_plan(wishes, host)["plan"]
        planned["gateway"]["state_dir"] = str(tmp_path / "state")
        text = gateway_toml(planned["gateway"])
        (tmp_path / "gateway.toml").write_text(text, encoding="utf-8")
        return planned

    return plan


def test_proof_asks_the_gateway_itself(
    run_play: Run, wishes: Data, running: Callable[..., Data], tmp_path: Path
) -> None:
    wishes["gguf_models"]["models"]["tiny:1b"]["aliases"] = ["Main"]
    plan = running(api_key=KEY)
    (tmp_path / f"listener-{plan['gateway']['listeners'][0]['name']}").write_text(KEY)
    with GatewayProcess(tmp_path / "gateway.toml"):
        done = run_play([facts(plan), role("prove")], "-vvv", **variables(wishes))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Main:latest, tiny:1b" in done.stdout
        assert KEY not in done.stdout

        plan["gateway"]["listeners"][0]["names"].append("gone:7b")
        done = run_play([facts(plan), role("prove")], **variables(wishes))
        assert done.returncode != 0
        assert "does not list gone:7b; it lists" in " ".join(done.stdout.split())


def test_proof_finds_that_nobody_answers(
    run_play: Run, wishes: Data, running: Callable[..., Data]
) -> None:
    done = run_play([facts(running()), role("prove")], **variables(wishes))
    assert done.returncode != 0
    assert "says nothing, needed: Ollama is running" in " ".join(done.stdout.split())


def test_the_gateway_checks_what_the_role_writes(
    running: Callable[..., Data], tmp_path: Path
) -> None:
    running()
    command = [sys.executable, "-m", "kloros_llm.gateway", "--check", "--config"]
    done = subprocess.run(
        [*command, str(tmp_path / "gateway.toml")],
        env={"PYTHONPATH": str(Path.cwd() / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is wrong (1 listener, 1 instance, 1 model, 0 personas)" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="the role gives its files to root")
def test_what_only_the_gateway_may_know(
    run_play: Run, wishes: Data, running: Callable[..., Data], tmp_path: Path
) -> None:
    """The token of the Hub is a file that systemd passes; what deserves a thought is said."""
    wishes["gguf_models"] |= {"owner": "kloros", "hf_token": True}
    wishes["ollama_gateway"] |= {
        "manages_models": True,
        "personas": {
            "oss": {"from": "tiny:1b", "template": "<|start|><|end|>"},
        },
    }
    plan = running()
    plan["gateway"]["group"] = "root"
    write_model(tmp_path / "models" / "tiny.gguf", "gpt-oss")
    folder = tmp_path / "etc"
    settled = {
        "__ollama_gateway_config_dir": str(folder),
        "__ollama_gateway_check": [
            "/usr/bin/env",
            f"PYTHONPATH={Path.cwd() / 'src'}",
            f"CREDENTIALS_DIRECTORY={folder}/credentials/gateway",
            *(sys.executable, "-m", "kloros_llm.gateway", "--check", "--config"),
        ],
    }
    token = "hf_canary"
    done = run_play(
        [facts(plan), {"ansible.builtin.set_fact": settled}, role("configure")],
        "-vvv",
        "--diff",
        **variables(wishes) | {"gguf_models_hf_token": token, "ollama_gateway_personas": {}},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert token not in done.stdout + done.stderr
    said = done.stdout.partition("Say what deserves a thought")[2]
    assert 'note: the template of "oss' in said
    kept = folder / "credentials" / "gateway" / "hf_token"
    assert kept.read_text() == f"{token}\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    written = (folder / "gateway.toml").read_text()
    assert 'hf_token_file = "hf_token"' in written
    assert token not in written


def test_another_token_restarts_it(units: Callable[..., dict[str, str]], wishes: Data) -> None:
    wishes["gguf_models"] |= {"owner": "kloros", "hf_token": True}

    def now(token: str) -> str:
        text = units(gguf_models_hf_token=token)["kloros-llm-gateway.service"]
        assert "hf_canary" not in text
        assert ("LoadCredential=hf_token:/etc/kloros-llm/credentials/gateway/hf_token" in text) == (
            wishes["ollama_gateway"]["manages_models"]
        )
        return digests(text)[0]

    assert now("hf_canary") == now("hf_canary-2")
    wishes["ollama_gateway"]["manages_models"] = True
    assert now("hf_canary") != now("hf_canary-2")


@pytest.mark.parametrize(
    ("python", "own"),
    [("3.11.2", "a-1-cp311"), ("3.13.5", "a-1-cp313")],
)
def test_wheels_that_its_python_can_use(
    run_play: Run, tmp_path: Path, python: str, own: str
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in (
        "a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64",
        "a-1-cp313-cp313-manylinux2014_x86_64",
        "a-1-cp313-cp313-manylinux2014_aarch64",
        "b-2-py3-none-any",
        "c-3-cp39-abi3-manylinux_2_28_x86_64",
        "d-4-cp311-none-any",
    ):
        (wheels / f"{name}.whl").touch()
    tasks = yaml.safe_load(Path("roles/ollama_gateway/tasks/environment.yml").read_text())
    (task,) = (one for one in tasks if "that are for its Python" in one["name"])
    (tmp_path / "there").mkdir()
    copied = task | {
        "ansible.builtin.copy": {"src": "{{ item }}", "dest": f"{tmp_path}/there/", "mode": "0644"}
    }
    machine = {"python": python, "architecture": "x86_64"}
    done = run_play([facts({"machine": machine}), copied], ollama_gateway_wheels_dir=str(wheels))
    assert done.returncode == 0, done.stdout + done.stderr
    first, *others = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert first.startswith(own)
    # It has no Python's own code that is not its own, and nothing of another machine's.
    assert [name[0] for name in others] == ["b", "c", "d"]


def test_a_go_template_arrives_as_it_is(
    run_play: Run, wishes: Data, host: Data, tmp_path: Path
) -> None:
    """Nothing but the inventory itself is a template to Ansible."""
    go = "{{ if .System }}{{ .System }}{% x %}{{ end }} {{ .Prompt }}"
    inventory = go.replace("{% x %}", "{% endraw %}{{ '{%' }} x %}{% raw %}")
    wishes["ollama_gateway"]["personas"] = "{{ personas }}"
    write = {
        "content": "{{ preflight_plan.gateway | gateway_toml }}",
        "dest": f"{tmp_path}/gateway.toml",
        "mode": "0600",
    }
    done = run_play(
        [
            {"ansible.builtin.set_fact": {"result": "{{ wishes | kloros_llm_plan(host) }}"}},
            {"ansible.builtin.set_fact": {"preflight_plan": "{{ result.plan }}"}},
            {"ansible.builtin.copy": write},
        ],
        wishes=wishes,
        host=host,
        personas={
            "mario": {"from": "tiny:1b", "template": f"{{% raw %}}{inventory}{{% endraw %}}"}
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    personas = tomllib.loads((tmp_path / "gateway.toml").read_text())["personas"]
    assert personas["mario"]["template"] == go
