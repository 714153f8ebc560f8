"""What the host tests of all scenarios build on: hosts, plays, questions to a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import testinfra
import yaml
from testinfra.host import Host

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """One run of a playbook against one host."""

    returncode: int
    output: str

    @property
    def changed(self) -> int:
        """The number of changed tasks, from the recap."""
        recap = self.output[self.output.rindex("PLAY RECAP") :]
        return int(recap.split("changed=")[1].split()[0])


Play = Callable[..., Run]


def scenario_folder(inventory: Path) -> Path:
    """Where the scenario of this inventory keeps its key and its Hub's address."""
    return PROJECT / ".testbed" / inventory.parent.name


def hosts(inventory: Path) -> dict[str, int]:
    """The test hosts of an inventory, name to SSH port."""
    listed = load(inventory / "hosts.yml")["all"]["children"]["test_hosts"]["hosts"]
    return {name: settings["ansible_port"] for name, settings in listed.items()}


def only_on(name: str) -> pytest.MarkDecorator:
    """Mark tests of what no other host does differently, so that one shows it."""
    return pytest.mark.parametrize("host", [name], indirect=True, scope="session")


# testinfra itself takes inventory variables as they stand, without Jinja.
def connect(inventory: Path, name: str) -> Host:
    """A test host, as root."""
    key = scenario_folder(inventory) / "id_ed25519"
    return testinfra.get_host(
        f"ssh://admin@127.0.0.1:{hosts(inventory)[name]}",
        sudo=True,
        ssh_identity_file=str(key),
        ssh_extra_args=f"-o UserKnownHostsFile={key}.known_hosts",
    )


def host_name(host: Host) -> str:
    """The host's name in the inventory, which is its own."""
    name: str = host.check_output("hostname")
    return name


def make_play(inventory: Path, host: Host, folder: Path) -> Play:
    """A function that runs a playbook of the project against a host, as a user does."""

    def run(
        *arguments: str, playbook: str = "site.yml", verbose: bool = False, **variables: Any
    ) -> Run:
        # In a file, so that no secret stands in the argument list, which -vvv shows.
        given = folder / "variables.json"
        given.write_text(json.dumps(variables), encoding="utf-8")
        done = subprocess.run(
            [
                str(BIN / "ansible-playbook"),
                playbook,
                f"--inventory={inventory}",
                f"--limit={host_name(host)}",
                f"--extra-vars=@{given}",
                *(["-vvv"] if verbose else []),
                *arguments,
            ],
            cwd=PROJECT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                # Molecule forces colours, which would stand between the words that tests look for.
                "ANSIBLE_FORCE_COLOR": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr)

    return run


class Hub:
    """The stand-in Hub that the hosts download from, by its control routes."""

    def __init__(self, url: str) -> None:
        self.url = url

    def fault(self, **changes: Any) -> None:
        """Have things go wrong from now on."""
        requests.patch(f"{self.url}/_stand_in/faults", json=changes, timeout=10).raise_for_status()

    def faults(self) -> dict[str, Any]:
        """What is still to go wrong."""
        answer = requests.get(f"{self.url}/_stand_in/faults", timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def mend(self) -> None:
        """Have nothing go wrong any more, and forget what was asked."""
        requests.delete(f"{self.url}/_stand_in/faults", timeout=10).raise_for_status()
        requests.delete(f"{self.url}/_stand_in/requests", timeout=10).raise_for_status()

    def asked(self) -> list[dict[str, Any]]:
        """The requests since the last mend."""
        answer = requests.get(f"{self.url}/_stand_in/requests", timeout=10)
        answer.raise_for_status()
        records: list[dict[str, Any]] = answer.json()["requests"]
        return records


def hub_url(inventory: Path) -> str:
    """The scenario's stand-in Hub, as the hosts reach it."""
    return (scenario_folder(inventory) / "hub.url").read_text(encoding="utf-8").strip()


@pytest.fixture
def hub(inventory: Path) -> Iterator[Hub]:
    """The stand-in Hub without faults, before and after."""
    stand_in = Hub(hub_url(inventory))
    stand_in.mend()
    yield stand_in
    stand_in.mend()


@pytest.fixture
def play(inventory: Path, host: Host, tmp_path: Path) -> Play:
    """Run a playbook of the project against this host, as a user does."""
    return make_play(inventory, host, tmp_path)


@pytest.fixture(autouse=True)
def journal(request: pytest.FixtureRequest, host: Host) -> Iterator[None]:
    """Show the instances' journal when a test fails."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        print(host.run("journalctl --no-pager --lines=60 --unit='kloros-ll*'").stdout)


def main_pid(host: Host, instance: str) -> int:
    """The main process of an instance, 0 where none runs."""
    unit = f"kloros-llama-{instance}.service"
    return int(host.check_output(f"systemctl show --property=MainPID --value {unit}"))


def get(host: Host, port: int, path: str, *, data: Any = None) -> dict[str, Any]:
    """The JSON that a server on the host answers, asked on the host with nothing but Python."""
    code = (
        "import sys, urllib.request as u; "
        "print(u.urlopen(u.Request(sys.argv[1], (sys.argv[2] or None) and sys.argv[2].encode(), "
        "{'Content-Type': 'application/json'}), timeout=600).read().decode())"
    )
    body = "" if data is None else json.dumps(data)
    done = host.run("python3 -c %s %s %s", code, f"http://127.0.0.1:{port}{path}", body)
    assert done.rc == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
