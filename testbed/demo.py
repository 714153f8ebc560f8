#!/usr/bin/env python3
"""`make demo`: a throw-away host, taken to llama.cpp by the real playbook, and asked a question.

Ports on the machine: KLOROS_DEMO_OLLAMA_PORT (11434), KLOROS_DEMO_LIVE_PORT (8080),
KLOROS_DEMO_CODE_PORT (8081) and KLOROS_DEMO_SSH_PORT (2222), on loopback alone. The stand-in Hub
has KLOROS_DEMO_HUB_PORT (8097) of the container's network while the playbook runs: the same one
each time, because the plan names it.
KLOROS_DEMO_HOST names the container (kloros-demo).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from testbed import container_host, fetch_inputs
from testbed.cache import cache_folder
from testbed.stand_in_hub import StandInHub

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "collections"))
from ansible_collections.kloros.llm.plugins.module_utils import plan_text  # noqa: E402

HOST = os.environ.get("KLOROS_DEMO_HOST") or "kloros-demo"
KEY = PROJECT / ".testbed" / "id_ed25519"
MODEL = "smollm2:135m"
# The gateway listens on the host's own loopback, where no published port leads to.
FRONT_PORT = 21434
FRONT_UNIT = "kloros-demo-front"
QUESTION = "In one sentence: what is a voice assistant?"


def port(variable: str, default: int) -> int:
    """A port of this machine, from the environment."""
    return container_host.port_number(os.environ.get(variable) or str(default))


def published() -> dict[str, int]:
    """What is published to its port of this machine: Ollama's API, and the instances."""
    return {
        "ollama": port("KLOROS_DEMO_OLLAMA_PORT", 11434),
        "live": port("KLOROS_DEMO_LIVE_PORT", 8080),
        "code": port("KLOROS_DEMO_CODE_PORT", 8081),
    }


def up() -> int:
    """Make the host, run the playbook, show what is there; return the exit status."""
    hub_root = fetch_inputs.fetch_all()["hub_root"]
    machine = container_host.this_machine()
    ports = published()
    cache = cache_folder() / "hosts" / "trixie"
    container_host.up(
        machine,
        container_host.HostSettings(
            name=HOST,
            release="trixie",
            ssh_port=port("KLOROS_DEMO_SSH_PORT", 2222),
            published=(
                (ports["live"], 8080),
                (ports["code"], 8081),
                (ports["ollama"], FRONT_PORT),
            ),
            cache=cache,
            key=KEY,
        ),
    )
    gateway = container_host.network_field(machine, HOST, "Gateway")
    hub_port = port("KLOROS_DEMO_HUB_PORT", 8097)
    with StandInHub(hub_root, bind=gateway, port=hub_port) as hub:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                "site.yml",
                "--inventory=inventories/demo",
            ],
            cwd=PROJECT,
            env={**os.environ, "KLOROS_TESTBED_HUB": hub.url},
            check=False,
        )
    if done.returncode != 0:
        return done.returncode
    open_front(machine)
    plan = json.loads(container_host.read_file(machine, HOST, "/etc/kloros-llm/plan.json"))
    print("\n".join(["", *plan_text.table(plan), "", "On this machine:"]))
    for name, number in ports.items():
        path = "" if name == "ollama" else "/v1/chat/completions"
        print(f"  {name:<6}  http://127.0.0.1:{number}{path}")
    print(f"\n> {QUESTION}")
    ask(f"http://127.0.0.1:{ports['ollama']}", QUESTION)
    print("\nThe host stays up; `make demo-down` removes it.")
    return 0


def open_front(machine: container_host.Machine) -> None:
    """Lead the published port to the gateway, which has no key and so listens on loopback alone."""
    inside = ("podman", "exec", HOST)
    asked = (*inside, "systemctl", "is-active", "--quiet", f"{FRONT_UNIT}.socket")
    if machine.run(*asked, check=False).returncode == 0:
        return
    machine.run(
        *(*inside, "systemd-run", f"--unit={FRONT_UNIT}"),
        f"--socket-property=ListenStream=0.0.0.0:{FRONT_PORT}",
        *("/usr/lib/systemd/systemd-socket-proxyd", "127.0.0.1:11434"),
    )


def ask(url: str, question: str) -> None:
    """Print an answer piece by piece as it comes, asked for as Ollama is; an empty one is an error.

    Nothing here knows that it is not Ollama.
    """
    started = time.monotonic()
    pieces = 0
    with requests.post(
        f"{url}/api/generate",
        json={
            "model": MODEL,
            "prompt": question,
            "options": {"temperature": 0, "num_predict": 96},
        },
        stream=True,
        timeout=60,
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            piece: dict[str, Any] = json.loads(line)
            if piece.get("error"):
                raise SystemExit(f"{url} says: {piece['error']}")
            if piece["response"]:
                pieces += 1
                print(piece["response"], end="", flush=True)
    if not pieces:
        raise SystemExit(f"{url} answered nothing")
    print(f"\n({pieces} pieces in {time.monotonic() - started:.1f} s)")


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    command = parser.parse_args().command
    try:
        if command == "up":
            return up()
        container_host.down(container_host.this_machine(), HOST)
    except (container_host.TestbedError, fetch_inputs.FetchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
