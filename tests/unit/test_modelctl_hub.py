"""modelctl against the stand-in Hub: secrets, interruptions, progress, failures of the network."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.transfer_journal import TransferJournal

from testbed.stand_in_hub import StandInHub
from tests.unit.modelctl_host import TIMEOUT_S, ModelctlHost, write_model

TOKEN = "hf_canary_7e1b"
GATED = "hf://acme/gated-GGUF/tiny.gguf"
LARGE = "hf://acme/large-GGUF/large.gguf"


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    write_model(tmp_path / "hub/acme/gated-GGUF/tiny.gguf")
    (tmp_path / "hub/acme/gated-GGUF/.gated").touch()
    write_model(tmp_path / "hub/acme/large-GGUF/large.gguf", megabytes=24)
    with StandInHub(tmp_path / "hub", token=TOKEN) as running:
        yield running


def wait_for_progress(host: ModelctlHost, process: subprocess.Popen[str]) -> int:
    """Until some bytes are safe on the disk; how many."""
    journal = TransferJournal(host.models / "large.gguf.part")
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        entry = journal.read()
        if entry and entry.ranges:
            return sum(stop - start for start, stop in entry.ranges)
        time.sleep(0.01)
    raise AssertionError("no byte arrived")


def all_command_lines() -> bytes:
    found = b""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += (process / "cmdline").read_bytes()
    return found


@pytest.mark.parametrize("way", ["environment", "file"])
def test_a_token_opens_and_is_seen_nowhere(
    host: ModelctlHost, hub: StandInHub, tmp_path: Path, way: str
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    words = ["--token-file", str(file)] if way == "file" else []
    variables = {"HF_TOKEN": TOKEN} if way == "environment" else {}
    hub.faults.bytes_per_s = 400_000
    process = host.start("pull", GATED, "--json", *words, HF_ENDPOINT=hub.url, **variables)
    seen = b""
    while process.poll() is None:
        seen += all_command_lines()
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"gated-GGUF" in seen
    for where in (seen, out.encode(), err.encode(), host.text_of_all_files()):
        assert TOKEN.encode() not in where
    assert any(request.authorization for request in hub.requests)
    assert not any(request.authorization for request in hub.requests if request.listener == "cdn")


def test_a_wrong_token_is_not_repeated(host: ModelctlHost, hub: StandInHub) -> None:
    wrong = "hf_wrong_canary"
    ran = host.run("pull", GATED, HF_ENDPOINT=hub.url, HF_TOKEN=wrong)
    assert (ran.code, ran.out) == (6, "")
    assert "the token was sent and does not open this" in ran.err
    assert wrong not in ran.err
    assert wrong.encode() not in host.text_of_all_files()


def test_without_a_token_the_cure_is_named(host: ModelctlHost, hub: StandInHub) -> None:
    ran = host.run("pull", GATED, HF_ENDPOINT=hub.url)
    assert ran.code == 6
    assert "gated" in ran.err


@pytest.mark.parametrize("text", ["", "\n", "two words", "a\nb", "\u00e9"])
def test_a_file_that_holds_no_token(
    host: ModelctlHost, hub: StandInHub, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    ran = host.run("pull", GATED, "--token-file", file, HF_ENDPOINT=hub.url)
    assert (ran.code, "holds no token" in ran.err) == (1, True)
    assert hub.requests == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_was_interrupted_goes_on(
    host: ModelctlHost, hub: StandInHub, number: signal.Signals
) -> None:
    hub.faults.bytes_per_s = 400_000
    process = host.start("pull", LARGE, HF_ENDPOINT=hub.url)
    wait_for_progress(host, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "goes on where it was" in err
    else:
        assert process.returncode == -number
    assert out == ""
    assert not (host.models / "large.gguf").exists()

    hub.faults.bytes_per_s = None
    again = host.run("pull", LARGE, "--json", HF_ENDPOINT=hub.url)
    (model,) = again.json["models"]
    original = hub.store.root / "acme/large-GGUF/large.gguf"
    assert model["bytes_resumed"] > 0
    assert model["bytes_resumed"] + model["bytes_fetched"] == original.stat().st_size
    assert (host.models / "large.gguf").read_bytes() == original.read_bytes()


def test_an_interrupted_batch_ends_at_once(host: ModelctlHost, hub: StandInHub) -> None:
    write_model(hub.store.root / "acme/large-GGUF/second.gguf", seed=2, megabytes=24)
    hub.faults.bytes_per_s = 200_000
    second = "hf://acme/large-GGUF/second.gguf"
    process = host.start("pull", LARGE, second, HF_ENDPOINT=hub.url)
    wait_for_progress(host, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_two_at_once_get_one_model(host: ModelctlHost, hub: StandInHub) -> None:
    hub.faults.bytes_per_s = 3_000_000
    first = host.start("pull", LARGE, "--json", HF_ENDPOINT=hub.url)
    wait_for_progress(host, first)
    second = host.start("pull", LARGE, "--json", HF_ENDPOINT=hub.url)
    out, _ = first.communicate(timeout=TIMEOUT_S)
    waited, err = second.communicate(timeout=TIMEOUT_S)
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(out)["models"][0]["action"] == "fetch"
    assert json.loads(waited)["models"][0]["action"] == "none"
    assert "waiting for another process" in err


def on_a_terminal(host: ModelctlHost, *words: str, **variables: str) -> str:
    """What a person sees on a terminal of 100 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        argv = host.command(*words)
        environment = host.environment(TERM="xterm", COLUMNS="100", **variables)
        os.execve(argv[0], argv, environment)  # noqa: S606
    seen = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while chunk := os.read(terminal, 65536):
            seen += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return seen.decode()


def test_progress_on_a_terminal(host: ModelctlHost, hub: StandInHub) -> None:
    hub.faults.bytes_per_s = 3_000_000
    seen = on_a_terminal(host, "pull", LARGE, HF_ENDPOINT=hub.url)
    drawn = [line for line in seen.split("\r") if "[" in line]
    assert len(drawn) > 3
    assert any("MB/s" in line and "ETA" in line for line in drawn)
    assert "[########################]  100 %" in seen
    assert "\x1b[3" not in seen.replace("\x1b[K", "")  # no colours
    assert all(len(line.replace("\x1b[K", "").rstrip("\n")) < 100 for line in drawn)


def test_progress_elsewhere_is_plain_lines(host: ModelctlHost, hub: StandInHub) -> None:
    ran = host.run("pull", LARGE, HF_ENDPOINT=hub.url)
    assert "\r" not in ran.err
    assert "\x1b" not in ran.err
    assert any("100 %" in line for line in ran.err.splitlines())
    assert len(ran.err.splitlines()) < 8


def test_a_hub_that_is_not_there(host: ModelctlHost) -> None:
    # Port 9 of loopback: refused at once.
    ran = host.run("pull", LARGE, HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.code == 6
    assert "no answer" in ran.err
    assert "waiting" in ran.err


def test_an_endpoint_that_is_none(host: ModelctlHost) -> None:
    ran = host.run("pull", LARGE, "--hf-endpoint", "nowhere")
    assert (ran.code, "is not a base URL" in ran.err) == (2, True)


def test_bytes_that_are_not_what_the_hub_states(host: ModelctlHost, hub: StandInHub) -> None:
    hub.faults.corrupt_at = 1000
    ran = host.run("pull", LARGE, HF_ENDPOINT=hub.url)
    assert (ran.code, "sha256" in ran.err) == (7, True)
    assert not (host.models / "large.gguf").exists()


def test_a_hub_that_contradicts_itself(host: ModelctlHost, hub: StandInHub) -> None:
    hub.faults.linked_size_bytes = 1000
    ran = host.run("pull", LARGE, HF_ENDPOINT=hub.url)
    assert (ran.code, "contradicts itself" in ran.err) == (6, True)
    assert not (host.models / "large.gguf").exists()


def test_from_an_offline_folder(host: ModelctlHost, hub: StandInHub) -> None:
    ran = host.run("pull", LARGE, "--offline-dir", hub.store.root, HF_ENDPOINT=hub.url)
    assert ran.code == 0, ran.err
    assert (host.models / "large.gguf").is_file()
    assert not any(request.method == "GET" for request in hub.requests)
