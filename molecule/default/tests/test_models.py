"""Downloads onto a host: cut, killed, corrupted, unreachable, without room."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from testbed.host_tests import (
    PROJECT,
    Hub,
    Play,
    Run,
    host_name,
    load,
    only_on,
    scenario_folder,
)

pytestmark = only_on("kloros-trixie")

PLAYBOOK = "molecule/default/models_only.yml"
FOLDER = "/var/lib/kloros-llm/models"
COPY = "second-copy.gguf"
INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
SOURCE = load(INVENTORY / "group_vars/all.yml")["gguf_models"]["smollm2:135m"]["source"]
SIZE_BYTES = 98362432


@pytest.fixture
def more(host: Host, models: dict[str, Any]) -> Any:
    """The wished models and a second copy of the real one, which is removed afterwards."""
    yield {**models, "copy:135m": {"source": SOURCE, "file": COPY}}
    host.check_output(f"sh -c 'rm -f {FOLDER}/{COPY}*'")


@pytest.fixture
def fetch(play: Play) -> Any:
    """Run preflight and the role gguf_models alone."""

    def run(**variables: Any) -> Run:
        settings = {"llama_instances": {}, "preflight_plan_file": "/run/trial-plan.json"}
        return play(playbook=PLAYBOOK, **settings, **variables)

    return run


def leftovers(host: Host) -> list[str]:
    names: list[str] = host.check_output(f"sh -c 'ls {FOLDER} | grep {COPY} || true'").split()
    return names


def digest(host: Host, path: str) -> str:
    return str(host.check_output(f"sha256sum {path}")).split()[0]


def original(host: Host) -> str:
    return digest(host, f"{FOLDER}/SmolLM2-135M-Instruct.Q4_1.gguf")


def journalled(host: Host) -> int:
    """Bytes of the download that its journal says are there."""
    text = host.check_output(f"sh -c 'cat {FOLDER}/{COPY}.part.json 2>/dev/null || true'")
    # Two lines of a fixed length, each "checksum JSON"; one that was never written is blank.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    entries = [json.loads(line.split(" ", 1)[1]) for line in lines]
    return max((sum(b - a for a, b in entry["ranges"]) for entry in entries), default=0)


def test_connections_that_break_are_resumed(host: Host, fetch: Any, hub: Hub, more: Any) -> None:
    hub.fault(cut_after_bytes=1_000_000, cut_times=4)
    run = fetch(gguf_models=more)
    assert run.returncode == 0, run.output
    assert digest(host, f"{FOLDER}/{COPY}") == original(host)
    assert hub.faults()["cut_times"] == 0


def test_a_killed_download_is_resumed_and_progress_is_shown(
    host: Host, fetch: Any, hub: Hub, more: Any, tmp_path: Path
) -> None:
    hub.fault(bytes_per_s=500_000)  # of each connection
    variables = scenario_folder(INVENTORY) / f"killed-{host_name(host)}.json"
    settings = {
        "gguf_models": more,
        "llama_instances": {},
        "preflight_plan_file": "/run/trial-plan.json",
    }
    variables.write_text(json.dumps(settings), encoding="utf-8")
    command = [
        "ansible-playbook",
        PLAYBOOK,
        f"--inventory={INVENTORY}",
        f"--limit={host_name(host)}",
        f"--extra-vars=@{variables}",
    ]
    log = tmp_path / "killed.log"
    with (
        log.open("w", encoding="utf-8") as stdout,
        subprocess.Popen(command, cwd=PROJECT, stdout=stdout) as playbook,
    ):
        ends = time.monotonic() + 120
        while time.monotonic() < ends and playbook.poll() is None and journalled(host) < 20e6:
            time.sleep(0.2)
        killed = host.run("pkill -KILL -f [A]nsiballZ_gguf_model")
    variables.unlink()
    output = log.read_text(encoding="utf-8")
    assert killed.rc == 0, output
    assert playbook.returncode != 0, output
    assert not host.file(f"{FOLDER}/{COPY}").exists
    assert "copy:135m" in output
    assert "ETA" in output

    there = journalled(host)
    assert 20e6 <= there < SIZE_BYTES
    hub.mend()
    run = fetch(gguf_models=more, verbose=True)
    assert run.returncode == 0, run.output
    assert digest(host, f"{FOLDER}/{COPY}") == original(host)
    assert there in [int(found) for found in re.findall(r'"bytes_resumed": (\d+)', run.output)]


def test_a_corrupted_download_is_refused_and_removed(
    host: Host, fetch: Any, hub: Hub, more: Any
) -> None:
    hub.fault(corrupt_at=50_000_000)
    run = fetch(gguf_models=more)
    assert run.returncode != 0
    assert original(host) in run.output
    assert [name for name in leftovers(host) if not name.endswith(".lock")] == []


@pytest.mark.usefixtures("hub")
def test_a_wrong_digest_in_the_inventory_is_refused(host: Host, fetch: Any, more: Any) -> None:
    more["copy:135m"]["sha256"] = hashlib.sha256(b"another file").hexdigest()
    run = fetch(gguf_models=more)
    assert run.returncode != 0
    assert more["copy:135m"]["sha256"] in run.output
    assert [name for name in leftovers(host) if not name.endswith(".lock")] == []


def test_a_hub_that_cannot_be_reached(host: Host, fetch: Any, more: Any) -> None:
    run = fetch(gguf_models=more, gguf_models_hf_endpoint="http://127.0.0.1:9")
    assert run.returncode != 0
    assert "127.0.0.1:9" in run.output
    assert [name for name in leftovers(host) if not name.endswith(".lock")] == []


@pytest.mark.usefixtures("hub")
def test_no_room(host: Host, fetch: Any, more: Any) -> None:
    """On a file system that is too small, nothing is begun."""
    folder = "/mnt/small-models"
    host.check_output(f"mkdir -p {folder}")
    host.check_output(f"mount -t tmpfs -o size=200m tmpfs {folder}")
    try:
        run = fetch(
            gguf_models=more,
            gguf_models_dir=folder,
            gguf_models_reserve_mib=64,
        )
        assert run.returncode != 0
        assert "MiB" in run.output
        assert folder in run.output
        found = host.check_output(f"ls {folder}").split()
        # One of the two copies fits, whichever is first; the other leaves nothing.
        left = [name for name in found if not name.endswith(".lock")]
        one = [name for name in left if name.endswith(".gguf")]
        assert len(one) == 1
        assert sorted(left) == [one[0], f"{one[0]}.json"]
    finally:
        host.check_output(f"umount {folder}")
