#!/usr/bin/env python3
"""`make demo`: a throw-away host, taken to llama.cpp by the real playbook, and asked a question.

Ports on the machine: KLOROS_DEMO_LIVE_PORT (8080), KLOROS_DEMO_CODE_PORT (8081) and
KLOROS_DEMO_SSH_PORT (2222), on loopback alone. The stand-in Hub has KLOROS_DEMO_HUB_PORT (8097) of
the container's network while the playbook runs: the same one each time, because the plan names it.
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
QUESTION = "In one sentence: what is a voice assistant?"


def port(variable: str, default: int) -> int:
    """A port of this machine, from the environment."""
    return container_host.port_number(os.environ.get(variable) or str(default))


def published() -> dict[str, int]:
    """Instance to the port of this machine that it is published on."""
    return {
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
            published=((ports["live"], 8080), (ports["code"], 8081)),
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
    plan = json.loads(container_host.read_file(machine, HOST, "/etc/kloros-llm/plan.json"))
    print("\n".join(["", *plan_text.table(plan), "", "On this machine:"]))
    for instance, number in ports.items():
        print(f"  {instance}  http://127.0.0.1:{number}/v1/chat/completions")
    print(f"\n> {QUESTION}")
    ask(f"http://127.0.0.1:{ports['live']}", QUESTION)
    print("\nThe host stays up; `make demo-down` removes it.")
    return 0


def ask(url: str, question: str) -> None:
    """Print a chat answer piece by piece as it comes; an empty one is an error."""
    started = time.monotonic()
    pieces = 0
    with requests.post(
        f"{url}/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "temperature": 0,
            "max_tokens": 96,
        },
        stream=True,
        timeout=60,
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            piece = (event["choices"] or [{"delta": {}}])[0]["delta"].get("content")
            if piece:
                pieces += 1
                print(piece, end="", flush=True)
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
