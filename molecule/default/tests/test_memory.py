"""Memory is known before anything changes, and the engine has the last word on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from testbed.host_tests import Hub, Play, main_pid

PLAN = "/etc/kloros-llm/plan.json"
BIN = "/opt/llama.cpp/current/bin"
WATCHED = "/etc /opt /usr /var/lib /var/cache /home /root /srv"


@pytest.fixture
def unchanged(host: Host) -> Iterator[None]:
    """Nothing on the host is written between the test's beginning and its end."""
    host.check_output("touch /run/before-the-test")
    pids = [main_pid(host, name) for name in ("live", "code")]
    yield
    # What every login and every module of Ansible's leaves is not the project's.
    others = "-not -path '*/.ansible*' -not -path /var/lib/sudo/* -not -path '/var/lib/systemd/*'"
    found = host.check_output(
        f'sh -c "find {WATCHED} -newer /run/before-the-test -not -type d {others} 2>/dev/null"'
    )
    assert found == ""
    assert [main_pid(host, name) for name in ("live", "code")] == pids


@pytest.mark.usefixtures("unchanged")
def test_audit_says_what_there_is_and_writes_nothing(play: Play) -> None:
    run = play(playbook="playbooks/audit.yml")
    assert run.returncode == 0, run.output
    assert run.changed == 0
    for said in (
        "GPUs",
        "none: nvidia-smi is not on this host",
        "smollm2:135m",
        "Q4_1",
        "8192",
        "llama",
        "on the host",
        "Host  main memory",
        "CPU only",
        "0.0.0.0 is open to the network without a key",
    ):
        assert said in run.output, said


@pytest.mark.usefixtures("unchanged", "hub")
def test_audit_of_a_model_that_is_not_there_reads_its_header_alone(
    play: Play, hub: Hub, models: dict[str, Any]
) -> None:
    (model,) = models.values()
    other = {"smollm2:135m": {**model, "file": "another-name.gguf", "aliases": []}}
    run = play(playbook="playbooks/audit.yml", gguf_models=other)
    assert run.returncode == 0, run.output
    assert "to be fetched: hf://" in run.output
    asked = hub.asked()
    assert 0 < len(asked) <= 3
    assert all(record["range"] for record in asked)


def test_servers_were_asked_and_say_what_was_planned(host: Host) -> None:
    memory = json.loads(host.file(PLAN).content_string)["memory"]
    assert set(memory["instances"]) == {"live", "code"}
    answers = memory["dry_runs"]["answers"].values()
    assert [answer["asked"] for answer in answers] == ["llama-server"] * 2
    release = host.check_output("readlink /opt/llama.cpp/current").rsplit("/", 1)[-1]
    assert memory["dry_runs"]["release"] == release
    told = sorted(row["kv_mib"] for answer in answers for row in answer["rows"] if row["kv_mib"])
    planned = sorted(one["devices"][-1]["kv_mib"] for one in memory["instances"].values())
    assert told == planned


@pytest.mark.usefixtures("unchanged")
def test_less_memory_gives_a_smaller_context(host: Host, play: Play, wishes: Any) -> None:
    total = int(host.check_output("awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
    live = {**wishes["live"], "parallel": 8, "context": {"want": 8192, "min": 512}}
    tight = {"llama_instances": {"live": live}, "preflight_memory_reserve_mib": total - 1024}
    run = play("--check", **tight)
    assert run.returncode == 0, run.output
    assert "8192" not in run.output.split("instance")[1].split("\n")[2], run.output


@pytest.mark.usefixtures("unchanged")
def test_what_does_not_fit_stops_before_the_first_change(
    host: Host, play: Play, wishes: Any
) -> None:
    total = int(host.check_output("awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
    live = {**wishes["live"], "parallel": 64, "context": 8192}
    run = play(llama_instances={"live": live}, preflight_memory_reserve_mib=total - 1024)
    assert run.returncode != 0
    assert run.changed == 0
    assert "Nothing was changed. What is wrong:" in run.output
    assert "would need" in run.output
    assert "do:     one of: (1)" in run.output


def test_modelctl_knows_the_host(host: Host) -> None:
    def ask(*words: str) -> Any:
        return json.loads(host.check_output(f"modelctl {' '.join(words)} --json"))

    (model,) = ask("list")["models"]
    assert (model["name"], model["aliases"]) == ("smollm2:135m", ["main"])
    assert {entry["name"] for entry in ask("ps")["instances"]} == {"live", "code"}
    assert {entry["state"] for entry in ask("verify")["files"]} == {"good"}
    assert host.run("modelctl rm smollm2:135m").rc == 4  # in use


@pytest.mark.parametrize("engine", ["--no-engine", ""])
def test_modelctl_fit_is_what_llama_cpp_says(host: Host, engine: str) -> None:
    asked = "--context 2048 --parallel 3 --kv-cache q8_0"
    said = json.loads(host.check_output(f"modelctl fit main {asked} {engine} --json"))
    assert said["fits"] is True
    (device,) = said["devices"]
    model = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    types = "--cache-type-k q8_0 --cache-type-v q8_0"
    printed = host.check_output(
        f"{BIN}/llama-fit-params -m {model} -c 6144 -np 3 {types} --fit-print on"
    )
    _, weights, kv, _ = next(line.split() for line in printed.splitlines() if "Host" in line)
    assert (device["weights_mib"], device["kv_mib"]) == (int(weights), int(kv))
