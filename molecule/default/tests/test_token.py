"""The Hub's token opens a gated repository and is seen nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from testbed.cache import cache_folder
from testbed.host_tests import Play, hub_url, only_on

pytestmark = only_on("kloros-trixie")

PLAYBOOK = "molecule/default/models_only.yml"
INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
REPOSITORY = "kloros-tests/gated-GGUF"
NAME = "gated.gguf"
SOURCE = f"hf://{REPOSITORY}/{NAME}"
FOLDER = "/var/lib/kloros-llm/models-behind-a-token"
TOKEN = "hf_stand_in"  # noqa: S105 - opens nothing but the stand-in
WRONG = "hf_canary_that_opens_nothing"

WATCHER = "canary-watcher"
SEEN = "/run/canary-watcher"
# Every command line that any process has, again and again. What is looked for is not told to it,
# and neither to the commands below: they would be what is found.
WATCH = f"""
import glob, pathlib, time
with open("{SEEN}", "wb", buffering=0) as out:
    known = set()
    while True:
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                line = pathlib.Path(path).read_bytes()
            except OSError:
                continue
            if line not in known:
                known.add(line)
                out.write(line + b"\\n")
        time.sleep(0.005)
"""


@pytest.fixture
def gated(models: dict[str, Any]) -> Iterator[None]:
    """A repository of the stand-in Hub that wants a token."""
    hub_root = cache_folder() / "hub"
    owner, name, file = str(models["smollm2:135m"]["source"]).removeprefix("hf://").split("/")
    folder = hub_root / REPOSITORY
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).unlink(missing_ok=True)
    (folder / NAME).hardlink_to(hub_root / owner / name / file)
    (folder / ".gated").touch()
    yield
    shutil.rmtree(folder.parent)


@pytest.fixture
def watched(host: Host) -> Iterator[None]:
    """The host, with every command line on it written down; what the test put there is removed."""
    program = f"{SEEN}.py"
    host.check_output("sh -c %s %s %s", 'printf "%s" "$1" > "$0"', program, WATCH)
    host.check_output(f"systemd-run --unit={WATCHER} --quiet python3 {program}")
    yield
    host.run(f"systemctl stop {WATCHER}")
    host.check_output(f"rm -rf {SEEN} {program} {FOLDER}")


def hidden(secret: str) -> str:
    """Shell text that gives the secret without having it in a command line."""
    return f'"$(echo {secret[::-1]} | rev)"'


def places(host: Host, secret: str) -> list[str]:
    """Where on the host the secret stands: files of any kind, the journal, command lines."""
    find = (
        f"umask 077; echo {secret[::-1]} | rev > /root/canary; "
        "grep -rlaF -f /root/canary --exclude-dir=proc --exclude-dir=sys --exclude=canary / "
        "2>/dev/null; "
        "journalctl --sync; journalctl --no-pager --output=export "
        "| grep -aF -f /root/canary | head -c 2000; rm /root/canary"
    )
    found: list[str] = host.run("sh -c %s", find).stdout.splitlines()
    return found


@pytest.mark.usefixtures("gated", "hub", "watched")
def test_a_token_is_seen_nowhere(host: Host, play: Play) -> None:
    """Not in -vvv and --diff, the journal, command lines, files; a right one and a wrong one."""
    settings = {
        "gguf_models": {"gated": {"source": SOURCE}},
        "gguf_models_dir": FOLDER,
        "llama_instances": {},
        "preflight_plan_file": "/run/trial-plan.json",
    }
    refused = play(
        "--diff", playbook=PLAYBOOK, verbose=True, gguf_models_hf_token=WRONG, **settings
    )
    assert refused.returncode != 0
    assert "token" in refused.output
    assert WRONG not in refused.output

    run = play("--diff", playbook=PLAYBOOK, verbose=True, gguf_models_hf_token=TOKEN, **settings)
    assert run.returncode == 0, run.output
    assert TOKEN not in run.output
    assert host.file(f"{FOLDER}/{NAME}").exists

    pulled = host.run(
        "sh -c %s",
        f"HF_TOKEN={hidden(TOKEN)} HF_ENDPOINT={hub_url(INVENTORY)} modelctl --json "
        f"--models-dir {FOLDER} pull {SOURCE} --name again --file again.gguf",
    )
    assert pulled.rc == 0, pulled.stderr
    assert TOKEN not in pulled.stdout + pulled.stderr
    shown = host.run(
        "sh -c %s",
        f"HF_TOKEN={hidden(WRONG)} HF_ENDPOINT={hub_url(INVENTORY)} modelctl "
        f"--models-dir {FOLDER} show {SOURCE}",
    )
    assert shown.rc != 0
    assert "token" in shown.stderr
    assert WRONG not in shown.stdout + shown.stderr

    # The watcher saw what ran, and the search finds what is there.
    assert "modelctl" in host.file(SEEN).content_string
    host.check_output("logger the-canary-that-is-meant-to-be-found")
    assert places(host, "the-canary-that-is-meant-to-be-found")
    for secret in (TOKEN, WRONG):
        assert places(host, secret) == []
