"""What a converged host serves, and how it is set up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

from testbed.host_tests import get, main_pid

MODEL = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(params=["live", "code"])
def instance(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_it_answers(host: Host, wishes: dict[str, Any], instance: str) -> None:
    question = {
        "messages": [{"role": "user", "content": "In one sentence: what is a voice assistant?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    answer = get(host, wishes[instance]["port"], "/v1/chat/completions", data=question)
    assert "assistant" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "smollm2:135m"


def test_slots_and_context_are_as_planned(
    host: Host, wishes: dict[str, Any], instance: str
) -> None:
    wish = wishes[instance]
    props = get(host, wish["port"], "/props")
    assert props["total_slots"] == wish.get("parallel", 1)
    assert props["default_generation_settings"]["n_ctx"] == wish["context"]


def test_metrics(host: Host, wishes: dict[str, Any], instance: str) -> None:
    port = wishes[instance]["port"]
    code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    text = host.check_output("python3 -c %s %s", code, f"http://127.0.0.1:{port}/metrics")
    assert "llamacpp:predicted_tokens_seconds" in text


def test_it_runs_without_rights(host: Host, instance: str) -> None:
    status = host.file(f"/proc/{main_pid(host, instance)}/status").content_string
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = host.check_output("id --user kloros")
    assert fields["Uid"].split() == [uid] * 4
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"


def test_its_sandbox_holds(host: Host, instance: str) -> None:
    """Root's own hand, reaching into the server's mount namespace, may not write either."""
    enter = f"nsenter --target={main_pid(host, instance)} --mount"
    assert host.run(f"{enter} touch /usr/written").rc != 0
    assert host.run(f"{enter} touch {MODEL}").rc != 0
    assert host.check_output(f"{enter} ls -A /home") == ""
    assert host.run(f"{enter} touch /var/lib/kloros-llama-{instance}/written").rc == 0


def test_exposure(host: Host, instance: str) -> None:
    """systemd's own measure of how exposed a unit is, 0 to 10."""
    unit = f"kloros-llama-{instance}.service"
    overall = host.check_output(f"systemd-analyze security --no-pager {unit}").splitlines()[-1]
    assert float(overall.split(":")[1].split()[0]) <= 3.0, overall


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [
        ("/etc/kloros-llm", "root", "root", 0o755),
        ("/etc/kloros-llm/plan.json", "root", "root", 0o644),
        ("/etc/kloros-llm/instances", "root", "root", 0o755),
        ("/etc/kloros-llm/instances/live.env", "root", "kloros", 0o640),
        ("/etc/kloros-llm/instances/code.env", "root", "kloros", 0o640),
        ("/etc/kloros-llm/credentials", "root", "root", 0o700),
        ("/etc/systemd/system/kloros-llama-live.service", "root", "root", 0o644),
        ("/etc/systemd/system/kloros-llama-code.service", "root", "root", 0o644),
        ("/etc/systemd/system/kloros-llama.target", "root", "root", 0o644),
        ("/usr/local/libexec/kloros-llm/llama-ready", "root", "root", 0o755),
        ("/opt/llama.cpp", "root", "root", 0o755),
        ("/opt/llama.cpp/releases", "root", "root", 0o755),
        ("/opt/llama.cpp/current/BUILD_INFO.json", "root", "root", 0o644),
        ("/opt/llama.cpp/current/bin/llama-server", "root", "root", 0o755),
        ("/opt/llama.cpp/current/bin/llama-bench", "root", "root", 0o755),
        ("/opt/llama.cpp/current/bin/llama-fit-params", "root", "root", 0o755),
        ("/var/lib/kloros-llm/models", "kloros", "kloros", 0o755),
        (MODEL, "kloros", "kloros", 0o644),
        (f"{MODEL}.json", "kloros", "kloros", 0o644),
        ("/var/lib/kloros-llm/gateway", "kloros", "kloros", 0o700),
        ("/etc/kloros-llm/gateway.toml", "root", "kloros", 0o640),
        ("/etc/kloros-llm/credentials/gateway", "root", "root", 0o700),
        ("/etc/systemd/system/kloros-llm-gateway.service", "root", "root", 0o644),
        ("/etc/systemd/system/kloros-llm-gateway-11434.socket", "root", "root", 0o644),
        ("/opt/kloros-llm/gateway/current/bin/kloros-llm-gateway", "root", "root", 0o755),
        ("/var/lib/kloros-llama-live", "kloros", "kloros", 0o700),
        ("/var/lib/kloros-llama-code", "kloros", "kloros", 0o700),
    ],
)
def test_owner_and_mode(host: Host, path: str, owner: str, group: str, mode: int) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (owner, group, mode)


def test_nothing_else_was_written(host: Host) -> None:
    """The list above is the whole of it."""
    found = host.check_output(
        "find /etc/kloros-llm /var/lib/kloros-llm -type f | sort"
    ).splitlines()
    assert found == [
        "/etc/kloros-llm/gateway.toml",
        "/etc/kloros-llm/instances/code.env",
        "/etc/kloros-llm/instances/live.env",
        "/etc/kloros-llm/plan.json",
        MODEL,
        f"{MODEL}.json",
    ]
    assert host.check_output("ls /opt/llama.cpp/releases").split("\n") == [
        host.file("/opt/llama.cpp/current").linked_to.rsplit("/", 1)[-1]
    ]


def test_account_cannot_log_in(host: Host) -> None:
    account = host.user("kloros")
    assert account.shell == "/usr/sbin/nologin"
    assert account.uid < 1000


def test_plan_on_the_host_says_what_runs(host: Host, wishes: dict[str, Any]) -> None:
    plan = json.loads(host.file("/etc/kloros-llm/plan.json").content_string)
    assert {instance["name"]: instance["port"] for instance in plan["instances"]} == {
        name: wish["port"] for name, wish in wishes.items()
    }
    assert plan["machine"]["os"]["id"] == "debian"


def test_build_info_tells_the_release(host: Host) -> None:
    info = json.loads(host.file("/opt/llama.cpp/current/BUILD_INFO.json").content_string)
    assert host.file("/opt/llama.cpp/current").linked_to.endswith(info["name"])
    assert info["flags"]["LLAMA_BUILD_COMMIT"] == "v0.5.0-dev"
    assert any("v0.5.0-dev" in line for line in info["reports"])
    assert info["identity"]["toolchain"]["c++"]


def test_units_come_up_at_boot(host: Host, instance: str) -> None:
    assert host.service(f"kloros-llama-{instance}").is_enabled
    assert host.check_output("systemctl is-enabled kloros-llama.target") == "enabled"


def test_stopping_the_target_stops_all(host: Host) -> None:
    host.check_output("systemctl stop kloros-llama.target")
    assert (main_pid(host, "live"), main_pid(host, "code")) == (0, 0)
    # Returns when both answer.
    host.check_output("systemctl start kloros-llama.target")
    assert get(host, 8080, "/health") == get(host, 8081, "/health") == {"status": "ok"}
