"""Ollama's API on a converged host: what clients see, how it is set up, what changes do to it."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from testbed.cache import cache_folder
from testbed.host_tests import Play, get, main_pid, only_on

SERVICE = "kloros-llm-gateway.service"
SOCKET = "kloros-llm-gateway-11434.socket"
KEY = "canary-9d52e7c04b1f0c7e"
QUESTION = "In one sentence: what is a voice assistant?"
SETTINGS = {"temperature": 0, "num_predict": 24}


def gateway_pid(host: Host) -> int:
    """The gateway's process, 0 where none runs."""
    return int(host.check_output(f"systemctl show --property=MainPID --value {SERVICE}"))


def text(host: Host, url: str, *headers: str) -> str:
    """What a GET on the host answers; a refusal is its status."""
    code = (
        "import sys, urllib.error as e, urllib.request as u\n"
        "headers = dict(line.split(': ', 1) for line in sys.argv[2:])\n"
        "asked = u.Request(sys.argv[1], headers=headers)\n"
        "try: print(u.urlopen(asked, timeout=60).read().decode())\n"
        "except e.HTTPError as refused: print(refused.code)"
    )
    arguments = " ".join(["%s"] * (2 + len(headers)))
    return str(host.check_output(f"python3 -c {arguments}", code, url, *headers))


def names(host: Host, port: int = 11434) -> set[str]:
    return {model["name"] for model in get(host, port, "/api/tags")["models"]}


def since(host: Host, unit: str) -> str:
    """When the unit was started last."""
    asked = f"systemctl show --property=ActiveEnterTimestampMonotonic --value {unit}"
    return str(host.check_output(asked))


@contextlib.contextmanager
def clients(host: Host) -> Iterator[list[str]]:
    """Ten requests a second to the first listener; afterwards the list holds what went wrong."""
    code = (
        "import os, time, urllib.request as u\n"
        "while not os.path.exists('/run/enough'):\n"
        "    try: u.urlopen('http://127.0.0.1:11434/api/version', timeout=60).read()\n"
        "    except OSError as error: print(error, flush=True)\n"
        "    time.sleep(0.1)\n"
        "print('whole', flush=True)"
    )
    failures: list[str] = []
    host.check_output("rm -f /run/enough")
    run = (
        "systemd-run --unit=clients --property=Type=exec --property=StandardOutput=%s python3 -c %s"
    )
    host.check_output(run, "truncate:/run/clients", code)
    try:
        yield failures
    finally:
        host.check_output("touch /run/enough")
        host.check_output("while systemctl is-active --quiet clients; do sleep 0.1; done")
    lines = host.file("/run/clients").content_string.splitlines()
    assert lines[-1:] == ["whole"], lines
    failures += lines[:-1]


def test_it_is_ollama_to_its_clients(host: Host) -> None:
    assert text(host, "http://127.0.0.1:11434/") == "Ollama is running"
    assert names(host) == {"smollm2:135m", "main:latest"}
    question = {"model": "main", "prompt": QUESTION, "stream": False, "options": SETTINGS}
    answer = get(host, 11434, "/api/generate", data=question)
    assert "assistant" in answer["response"]
    assert answer["done"]
    assert answer["model"] == "main"
    assert answer["eval_count"] > 0
    show = get(host, 11434, "/api/show", data={"model": "smollm2:135m"})
    assert show["details"]["family"] == "llama"
    running = get(host, 11434, "/api/ps")["models"]
    assert "smollm2:135m" in {model["name"] for model in running}


def test_its_metrics(host: Host) -> None:
    assert "kloros_gateway_requests" in text(host, "http://127.0.0.1:9477/metrics")


def test_it_runs_without_rights(host: Host) -> None:
    status = host.file(f"/proc/{gateway_pid(host)}/status").content_string
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    uid = host.check_output("id --user kloros")
    assert fields["Uid"].split() == [uid] * 4
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"


def test_its_sandbox_holds(host: Host) -> None:
    enter = f"nsenter --target={gateway_pid(host)} --mount"
    assert host.run(f"{enter} touch /usr/written").rc != 0
    assert host.run(f"{enter} touch /etc/kloros-llm/written").rc != 0
    assert host.check_output(f"{enter} ls -A /home") == ""
    # The inventory lets clients manage models.
    models = "/var/lib/kloros-llm/models"
    assert host.run(f"{enter} sh -c 'touch {models}/written && rm {models}/written'").rc == 0


def test_exposure(host: Host) -> None:
    """systemd's own measure of how exposed a unit is, 0 to 10."""
    overall = host.check_output(f"systemd-analyze security --no-pager {SERVICE}").splitlines()[-1]
    assert float(overall.split(":")[1].split()[0]) <= 2.0, overall


def test_it_comes_up_at_boot(host: Host) -> None:
    for unit in (SERVICE, SOCKET):
        assert host.check_output(f"systemctl is-enabled {unit}") == "enabled"


def test_a_restart_refuses_nobody(host: Host) -> None:
    """systemd holds the socket: who comes meanwhile waits."""
    before = gateway_pid(host)
    host.check_output(f"systemctl restart --no-block {SERVICE}")
    for _ in range(20):
        assert text(host, "http://127.0.0.1:11434/") == "Ollama is running"
    assert gateway_pid(host) not in (0, before)


def test_a_killed_gateway_comes_back(host: Host) -> None:
    before = gateway_pid(host)
    host.check_output(f"kill -KILL {before}")
    assert text(host, "http://127.0.0.1:11434/") == "Ollama is running"
    assert gateway_pid(host) not in (0, before)


def test_a_persona_restarts_the_gateway_alone(host: Host, play: Play) -> None:
    """Leaves the persona there."""
    before = gateway_pid(host), main_pid(host, "live")
    personas = {"mario": {"from": "main", "system": "You are Mario.", "parameters": {"top_k": 1}}}
    foretold = play("--check", "--diff", ollama_gateway_personas=personas)
    assert foretold.returncode == 0, foretold.output
    assert gateway_pid(host) == before[0]
    run = play("--diff", ollama_gateway_personas=personas)
    assert run.returncode == 0, run.output
    assert run.changed == foretold.changed > 0
    assert gateway_pid(host) not in (0, before[0])
    assert main_pid(host, "live") == before[1]
    assert "mario:latest" in names(host)
    show = get(host, 11434, "/api/show", data={"model": "mario"})
    assert show["system"] == "You are Mario."
    assert play(ollama_gateway_personas=personas).changed == 0


@only_on("kloros-trixie")
def test_what_the_gateway_refuses_changes_nothing(host: Host, play: Play) -> None:
    before = gateway_pid(host)
    config = host.file("/etc/kloros-llm/gateway.toml").content_string
    wrong = {"mario": {"from": "main", "template": "{% raw %}{{ if }}{% endraw %}"}}
    run = play(ollama_gateway_personas=wrong, ollama_gateway_listeners=[{"port": 11435}])
    assert run.returncode != 0
    assert text(host, "http://127.0.0.1:11434/") == "Ollama is running"
    assert 'the template of "mario:latest" cannot be honoured' in " ".join(run.output.split())
    assert gateway_pid(host) == before
    assert host.file("/etc/kloros-llm/gateway.toml").content_string == config


@only_on("kloros-trixie")
def test_a_run_cut_short_is_made_good(host: Host, play: Play) -> None:
    """Killed after writing files and before restarting: the next run restarts what is stale."""
    assert play().returncode == 0
    unit = f"/etc/systemd/system/{SERVICE}"
    host.check_output(f"sed -i s/CONFIG_DIGEST=/CONFIG_DIGEST=f/ {unit}")
    host.check_output("systemctl daemon-reload")
    host.check_output(f"systemctl restart {SERVICE}")
    host.check_output(f"sed -i s/CONFIG_DIGEST=f/CONFIG_DIGEST=/ {unit}")
    stale = gateway_pid(host)
    run = play()
    assert run.returncode == 0, run.output
    assert run.changed == 1, run.output
    assert gateway_pid(host) not in (0, stale)


@pytest.fixture
def another_process(host: Host) -> Iterator[int]:
    """A process that holds Ollama's second port, as a second Ollama would; the port."""
    host.check_output(
        "systemd-run --unit=other-ollama --property=Type=exec "
        "python3 -m http.server --bind 127.0.0.1 11435"
    )
    yield 11435
    host.run("systemctl stop other-ollama")


@only_on("kloros-trixie")
def test_a_port_that_another_holds_is_left_alone(
    host: Host, play: Play, another_process: int
) -> None:
    """And taken when it is free. Leaves two listeners, the second with a key."""
    listeners = [
        {"port": 11434},
        {"port": another_process, "instances": ["code"], "api_key": KEY},
    ]
    run = play("--diff", verbose=True, ollama_gateway_listeners=listeners)
    assert run.returncode == 0, run.output
    assert f"port {another_process} of 127.0.0.1 is held by python3" in " ".join(run.output.split())
    assert not host.file(f"/etc/systemd/system/kloros-llm-gateway-{another_process}.socket").exists
    assert text(host, "http://127.0.0.1:11434/") == "Ollama is running"

    host.check_output("systemctl stop other-ollama")
    opened = since(host, SOCKET)
    with clients(host) as failures:
        run = play("--diff", verbose=True, ollama_gateway_listeners=listeners)
    assert run.returncode == 0, run.output
    assert failures == []
    # Clients of the first listener wait meanwhile: its socket stays as it is.
    assert since(host, SOCKET) == opened
    assert KEY not in run.output
    url = f"http://127.0.0.1:{another_process}"
    assert text(host, f"{url}/api/tags") == "401"
    listed = json.loads(text(host, f"{url}/api/tags", f"Authorization: Bearer {KEY}"))
    assert {model["name"] for model in listed["models"]} == {"smollm2:135m", "main:latest"}
    assert play(ollama_gateway_listeners=listeners).changed == 0

    key_file = host.file("/etc/kloros-llm/credentials/gateway/listener-11435")
    assert (key_file.user, key_file.group, key_file.mode) == ("root", "root", 0o600)
    pid = gateway_pid(host)
    for path in (
        "/etc/kloros-llm/plan.json",
        "/etc/kloros-llm/gateway.toml",
        f"/etc/systemd/system/{SERVICE}",
        f"/proc/{pid}/environ",
        f"/proc/{pid}/cmdline",
    ):
        assert KEY not in host.file(path).content_string


@only_on("kloros-trixie")
def test_a_model_that_no_instance_has_is_loaded_on_demand(
    host: Host, play: Play, wishes: dict[str, Any], models: dict[str, Any]
) -> None:
    """By a router instance. Leaves it there."""
    path = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    second = {"second:135m": {"source": f"file:{path}", "file": "second.gguf"}}
    changed = copy.deepcopy(wishes)
    changed["swap"] = {"router": True, "models": "all", "port": 8090, "context": 1024}
    run = play(llama_instances=changed, gguf_models=models | second)
    assert run.returncode == 0, run.output
    assert "second:135m" in names(host)
    question = {"model": "second:135m", "prompt": QUESTION, "stream": False, "options": SETTINGS}
    assert "assistant" in get(host, 11434, "/api/generate", data=question)["response"]
    running = get(host, 11434, "/api/ps")["models"]
    assert "second:135m" in {model["name"] for model in running}
    again = play(llama_instances=changed, gguf_models=models | second)
    assert again.changed == 0, again.output


@pytest.fixture
def other_repository(models: dict[str, Any]) -> Iterator[str]:
    """A repository of the stand-in Hub with a model that no inventory has; what pulls it."""
    hub_root = cache_folder() / "hub"
    owner, name, file = str(models["smollm2:135m"]["source"]).removeprefix("hf://").split("/")
    folder = hub_root / "kloros-pulls/Small-GGUF"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Small-Q4_1.gguf").unlink(missing_ok=True)
    (folder / "Small-Q4_1.gguf").hardlink_to(hub_root / owner / name / file)
    yield "hf.co/kloros-pulls/Small-GGUF:Q4_1"
    shutil.rmtree(folder.parent)


def delete(host: Host, model: str) -> None:
    code = (
        "import sys, urllib.request as u\n"
        "url = 'http://127.0.0.1:11434/api/delete'\n"
        "u.urlopen(u.Request(url, sys.argv[1].encode(), method='DELETE'), timeout=60).read()"
    )
    host.check_output("python3 -c %s %s", code, json.dumps({"model": model}))


@only_on("kloros-trixie")
def test_a_model_that_a_client_pulls_is_served_at_once(
    host: Host, play: Play, wishes: dict[str, Any], models: dict[str, Any], other_repository: str
) -> None:
    """By the router that the test before this one has left."""
    router = main_pid(host, "swap")
    assert router
    folder = host.file("/var/lib/kloros-llm/gateway/pulled")
    assert (folder.user, folder.mode) == ("kloros", 0o700)
    enter = f"nsenter --target={router} --mount"
    assert host.run(f"{enter} touch {folder.path}/written").rc != 0

    asked = {"model": other_repository, "stream": False}
    assert get(host, 11434, "/api/pull", data=asked) == {"status": "success"}
    question = {**asked, "prompt": QUESTION, "options": SETTINGS}
    assert "assistant" in get(host, 11434, "/api/generate", data=question)["response"]
    running = {model["name"] for model in get(host, 11434, "/api/ps")["models"]}
    assert other_repository in running
    # Nothing was restarted for it, and a play leaves it alone.
    path = "/var/lib/kloros-llm/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    second = {"second:135m": {"source": f"file:{path}", "file": "second.gguf"}}
    swap = {"router": True, "models": "all", "port": 8090, "context": 1024}
    again = play(llama_instances={**wishes, "swap": swap}, gguf_models=models | second)
    assert again.changed == 0, again.output
    assert main_pid(host, "swap") == router
    assert other_repository in names(host)
    # It is loaded, and goes all the same.
    assert get(host, 11434, "/api/generate", data=question)["response"]
    delete(host, other_repository)
    assert other_repository not in names(host)
    assert host.check_output(f"ls -A {folder.path}") == ""
    assert not host.file("/var/lib/kloros-llm/models/Small-Q4_1.gguf").exists


@only_on("kloros-trixie")
def test_without_listeners_nothing_is_left(host: Host, play: Play) -> None:
    run = play(ollama_gateway_listeners=[])
    assert run.returncode == 0, run.output
    for gone in (
        f"/etc/systemd/system/{SERVICE}",
        f"/etc/systemd/system/{SOCKET}",
        "/etc/kloros-llm/gateway.toml",
        "/etc/kloros-llm/credentials/gateway",
        "/opt/kloros-llm/gateway",
    ):
        assert not host.file(gone).exists, gone
    assert host.run("ss --listening --tcp --numeric 'sport = :11434'").stdout.count("\n") == 1
    # What clients have created would stay.
    assert host.file("/var/lib/kloros-llm/gateway").exists
    assert play(ollama_gateway_listeners=[]).changed == 0


def test_back_to_the_inventory(host: Host, play: Play) -> None:
    # The catalogue has been written since a client pulled: the plays' own models need none.
    models = "/var/lib/kloros-llm/models"
    host.run(f"rm -f {models}/second.gguf* {models}/catalogue.json")
    run = play()
    assert run.returncode == 0, run.output
    assert names(host) == {"smollm2:135m", "main:latest"}
    assert play().changed == 0
