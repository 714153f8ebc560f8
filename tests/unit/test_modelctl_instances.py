"""modelctl: the instances, as systemd (a stand-in), real HTTP servers and the driver show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.stand_in_hub import StandInHub
from tests.unit.modelctl_host import ROOT, ModelctlHost
from tests.unit.stand_in_llama_server import StandInLlamaServer

RUNNING = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "MainPID": 4321}
STOPPED = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "MainPID": 0}


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


@pytest.fixture
def server() -> Iterator[StandInLlamaServer]:
    with StandInLlamaServer() as running:
        yield running


def plan_one(host: ModelctlHost, **changes: object) -> None:
    host.write_plan([], [host.planned_instance("live", Path("/models/tiny.gguf"), **changes)])


def only_instance(host: ModelctlHost, *words: str, **variables: str) -> dict[str, Any]:
    ran = host.run("ps", "--json", *words, **variables)
    assert ran.code == 0, ran.err
    (instance,) = ran.json["instances"]
    assert isinstance(instance, dict)
    return instance


def test_ps_of_a_ready_instance(host: ModelctlHost, server: StandInLlamaServer) -> None:
    plan_one(host, url=server.url)
    host.have_units(
        **{
            "kloros-llama-live": RUNNING
            | {"MemoryCurrent": 150 * 2**20 + 1, "NRestarts": 2, "ActiveEnterTimestamp": "Sun"}
        }
    )
    assert only_instance(host) == {
        "name": "live",
        "unit": "kloros-llama-live.service",
        "url": server.url,
        "model": "tiny:1b",
        "models": [],
        "aliases": ["tiny:1b"],
        "state": "ready",
        "active": "active",
        "sub": "running",
        "result": "",
        "pid": 4321,
        "restarts": 2,
        "active_since": "Sun",
        "slots": 2,
        "slots_busy": 1,
        "context_tokens": 8192,
        "kv_cache": "f16",
        "gpus": [],
        "memory_bytes": 150 * 2**20 + 1,
        "gpu_memory_mib": None,
        "model_path": "/models/tiny.gguf",
        "note": None,
    }
    _, row = host.run("ps").lines
    assert row.split() == [
        *("live", "tiny:1b", "ready", "4321", "1/2", "8192", "151", "MiB", "-", server.url)
    ]


@pytest.mark.parametrize(
    ("unit", "health", "state"),
    [
        (RUNNING, 200, "ready"),
        (RUNNING, 503, "loading"),
        (RUNNING, 404, "refused"),
        (RUNNING, None, "no answer"),
        (STOPPED, None, "stopped"),
        (STOPPED, 200, "stopped"),
        (STOPPED | {"ActiveState": "failed"}, None, "failed"),
    ],
)
def test_states(
    host: ModelctlHost,
    server: StandInLlamaServer,
    unit: dict[str, object],
    health: int | None,
    state: str,
) -> None:
    server.health = health or 200
    plan_one(host, **({} if health is None else {"url": server.url}))
    host.have_units(**{"kloros-llama-live": unit})
    assert only_instance(host)["state"] == state
    ran = host.run("status", "--json")
    assert (ran.code, ran.json["ok"]) == ((0, True) if state == "ready" else (1, False))


def test_a_router_has_several_models(host: ModelctlHost, server: StandInLlamaServer) -> None:
    router = host.planned_instance("live", Path("/models/tiny.gguf"), url=server.url)
    router |= {"model": "", "models": ["tiny:1b", "embed"], "environment": {}}
    host.write_plan([], [router])
    data = only_instance(host)
    assert data["model"] is None
    assert data["models"] == ["tiny:1b", "embed"]
    _, row = host.run("ps").lines
    assert row.split()[:3] == ["live", "tiny:1b", "embed"]


def test_a_unit_that_is_not_there(host: ModelctlHost) -> None:
    plan_one(host)
    host.have_units(**{"kloros-llama-live": STOPPED | {"LoadState": "not-found"}})
    assert "is not there; run the playbook" in str(only_instance(host)["note"])
    assert "is not there" in host.run("status").out


def test_memory_that_systemd_does_not_know(host: ModelctlHost) -> None:
    plan_one(host)
    host.have_units(**{"kloros-llama-live": RUNNING | {"MemoryCurrent": 2**64 - 1}})
    assert only_instance(host)["memory_bytes"] is None


def test_no_systemd_at_all(host: ModelctlHost) -> None:
    plan_one(host)
    host.add_program("systemctl", "#!/bin/bash\nexit 1\n")
    assert only_instance(host)["state"] == "unknown"


def test_another_model_runs_than_planned(host: ModelctlHost, server: StandInLlamaServer) -> None:
    server.model_path = "/models/old.gguf"
    plan_one(host, url=server.url)
    host.have_units(**{"kloros-llama-live": RUNNING})
    note = "it runs /models/old.gguf, planned is /models/tiny.gguf"
    assert only_instance(host)["note"] == note
    assert note in host.run("ps").err


def test_a_key_that_cannot_be_read(host: ModelctlHost, server: StandInLlamaServer) -> None:
    server.key = "sk-canary"
    plan_one(host, url=server.url, api_key=True)
    host.have_units(**{"kloros-llama-live": RUNNING})
    instance = only_instance(host)
    assert (instance["state"], instance["slots_busy"]) == ("ready", None)
    assert "it asks for a key" in str(instance["note"])
    (host.etc / "credentials").mkdir()
    key = host.etc / "credentials/live.key"
    key.write_text("sk-canary\n")
    opened = host.run("ps", "--json")
    assert opened.json["instances"][0]["slots_busy"] == 1
    assert "sk-canary" not in opened.out + opened.err
    key.write_text("wrong\n")
    assert only_instance(host)["note"] == "the server refuses the key"


def test_a_key_goes_nowhere_else(
    host: ModelctlHost, server: StandInLlamaServer, tmp_path: Path
) -> None:
    """Neither to a proxy of the environment, nor after a redirect."""
    plan_one(host, url=server.url, api_key=True)
    (host.etc / "credentials").mkdir()
    (host.etc / "credentials/live.key").write_text("sk-canary\n")
    (tmp_path / "hub").mkdir()
    with StandInHub(tmp_path / "hub") as elsewhere:
        server.redirect_to = f"{elsewhere.url}/slots"
        instance = only_instance(host, http_proxy=elsewhere.url, HTTP_PROXY=elsewhere.url)
        assert instance["slots_busy"] is None
        assert elsewhere.requests == []


def test_chosen_instances(host: ModelctlHost) -> None:
    model = Path("/models/tiny.gguf")
    host.write_plan([], [host.planned_instance(name, model) for name in ("live", "think")])
    host.have_units(**{"kloros-llama-live": STOPPED, "kloros-llama-think": RUNNING})
    both = host.run("ps", "--json").json["instances"]
    assert [(one["name"], one["active"]) for one in both] == [
        ("live", "inactive"),
        ("think", "active"),
    ]
    assert only_instance(host, "kloros-llama-think.service")["name"] == "think"
    unknown = host.run("ps", "deep")
    assert (unknown.code, "there are: live, think" in unknown.err) == (3, True)


def test_status_shows_disk_gpus_and_release(host: ModelctlHost) -> None:
    host.write_plan()
    kloros = json.loads((ROOT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8"))
    host.have_gpus(kloros)
    release = host.releases / "releases/v0.5.0-cuda-0123456789"
    release.mkdir(parents=True)
    (host.releases / "current").symlink_to("releases/v0.5.0-cuda-0123456789")
    (host.models / "tiny.gguf").write_bytes(b"x" * 5_000_000)
    (host.models / "link.gguf").hardlink_to(host.models / "tiny.gguf")
    ran = host.run("status", "--json")
    data = ran.json
    assert (ran.code, data["ok"], data["instances"]) == (0, True, [])
    assert data["llama_cpp"] == {"release": "v0.5.0-cuda-0123456789"}
    assert [gpu["memory_total_mib"] for gpu in data["gpus"]["gpus"]] == [12288, 11264]
    assert data["disk"]["path"] == str(host.models)
    assert 5_000_000 <= data["disk"]["models_bytes"] < 6_000_000  # the link counts once
    text = host.run("status").out
    assert "0 of 0 ready" in text
    assert "NVIDIA GeForce GTX 1080 Ti" in text


def test_status_names_the_cure_where_an_instance_is_down(host: ModelctlHost) -> None:
    plan_one(host)
    host.have_units(**{"kloros-llama-live": STOPPED | {"ActiveState": "failed"}})
    ran = host.run("status")
    assert ran.code == 1
    assert "modelctl logs live" in ran.out


def test_logs_hand_over_to_journalctl(host: ModelctlHost) -> None:
    plan_one(host)
    ran = host.run("logs", "live", "-f", "-n", "7", "--since", "1 hour ago")
    assert (ran.code, ran.lines) == (0, ["a line of the journal"])
    unit = "kloros-llama-live.service"
    assert host.calls == [
        f"journalctl --unit={unit} --lines=7 --follow --since=1 hour ago --no-pager"
    ]
    host.run("logs", "live", "--json")
    assert host.calls[-1] == f"journalctl --unit={unit} --lines=100 --output=json --no-pager"
    assert host.run("logs", "nobody").code == 3


def test_what_needs_a_plan_says_so(host: ModelctlHost) -> None:
    for words in (["ps"], ["status"], ["logs", "live"]):
        ran = host.run(*words)
        assert (ran.code, "no playbook has set this host up" in ran.err) == (3, True)
