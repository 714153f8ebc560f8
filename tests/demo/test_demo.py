"""What the README promises of the demo, run as a new user runs it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

PROJECT = Path(__file__).resolve().parents[2]
OWN = {
    "KLOROS_DEMO_HOST": "kloros-demo-test",
    "KLOROS_DEMO_SSH_PORT": "2322",
    "KLOROS_DEMO_LIVE_PORT": "18080",
    "KLOROS_DEMO_CODE_PORT": "18081",
    "KLOROS_DEMO_HUB_PORT": "18096",
}


def make(target: str) -> str:
    """The output of `make TARGET`; it must succeed."""
    done = subprocess.run(
        ["make", target],
        cwd=PROJECT,
        env={**os.environ, **OWN},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The output of the first `make demo`; the host is removed afterwards."""
    make("demo-down")
    yield make("demo")
    make("demo-down")


def answer_of(output: str) -> str:
    """What the model said at the end of a demo."""
    found = re.search(r"^> .*\n(.*)\n\(\d+ pieces in", output, re.MULTILINE)
    assert found, output[-2000:]
    return found.group(1)


def test_it_ends_with_plan_endpoints_and_an_answer(demo: str) -> None:
    end = demo[demo.rindex("PLAY RECAP") :]
    assert "smollm2:135m" in end
    assert "http://127.0.0.1:18080/v1/chat/completions" in end
    assert "http://127.0.0.1:18081/v1/chat/completions" in end
    assert "assistant" in answer_of(demo).lower()


def test_progress_was_shown_while_it_was_built(demo: str) -> None:
    assert re.search(r"kloros-demo \| building v0\.5\.0-dev-cpu-\w+ +\d+ % +\d+ of \d+ steps", demo)


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("port", [18080, 18081])
def test_both_instances_answer_on_the_machine(port: int) -> None:
    question = {
        "messages": [{"role": "user", "content": "In one sentence: what is a voice assistant?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = requests.post(url, json=question, timeout=60).json()
    assert "assistant" in answer["choices"][0]["message"]["content"]


@pytest.mark.usefixtures("demo")
def test_again_changes_nothing() -> None:
    again = make("demo")
    assert re.search(r"kloros-demo +: ok=\d+ +changed=0 ", again), again
    assert answer_of(again)
