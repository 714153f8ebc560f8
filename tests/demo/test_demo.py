"""What the README promises of the demo, run as a new user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest
import requests

from testbed import container_host, fetch_inputs
from testbed.stand_in_hub import StandInHub
from tests.wire.rig import SURE_CITIES, tools_persona

PROJECT = Path(__file__).resolve().parents[2]
OWN = {
    "KLOROS_DEMO_HOST": "kloros-demo-test",
    "KLOROS_DEMO_SSH_PORT": "2322",
    "KLOROS_DEMO_LIVE_PORT": "18080",
    "KLOROS_DEMO_CODE_PORT": "18081",
    "KLOROS_DEMO_OLLAMA_PORT": "18434",
    "KLOROS_DEMO_HUB_PORT": "18096",
}
URL = f"http://127.0.0.1:{OWN['KLOROS_DEMO_OLLAMA_PORT']}"
MODEL = "smollm2:135m"


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
    assert "http://127.0.0.1:18434\n" in end
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
def test_it_is_ollama_to_clients_that_know_nothing() -> None:
    said_by_curl = subprocess.run(["curl", "-s", URL], capture_output=True, text=True, check=False)
    assert said_by_curl.stdout == "Ollama is running"
    client = ollama.Client(host=URL)
    listed = {model.model for model in client.list().models}
    assert listed >= {MODEL, "main:latest"}
    details = client.show(MODEL).details
    assert details
    assert details.family == "llama"
    messages = [{"role": "user", "content": "In one sentence: what is a voice assistant?"}]
    settings = {"temperature": 0, "num_predict": 24}
    answer = client.chat(MODEL, messages, options=settings)
    said = answer.message.content or ""
    assert "assistant" in said.lower()
    pieces = list(client.chat("main", messages, options=settings, stream=True))
    assert pieces[-1].done
    assert "".join(piece.message.content or "" for piece in pieces) == said


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: the city's name
    """
    return f"sunny in {city}"


@pytest.mark.usefixtures("demo")
def test_its_client_makes_a_model_that_calls_a_tool() -> None:
    """The small model calls tools by a template and examples, as a Modelfile gives them."""
    client = ollama.Client(host=URL)
    persona = tools_persona(*SURE_CITIES)
    client.create("weather", from_=MODEL, **persona)
    assert "tools" in (client.show("weather").capabilities or [])
    question = {"role": "user", "content": "What is the weather in Paris?"}
    settings = {"temperature": 0, "num_predict": 60}
    answer = client.chat("weather", [question], tools=[get_weather], options=settings)
    (call,) = answer.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        client.chat(MODEL, [question], tools=[get_weather])
    client.delete("weather")


@pytest.mark.usefixtures("demo")
def test_its_client_gets_ollamas_refusal_to_embed() -> None:
    with pytest.raises(ollama.ResponseError, match="does not support embeddings") as refused:
        ollama.Client(host=URL).embed(MODEL, "Hello")
    assert refused.value.status_code == 501


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    """The Hub that the demo's host knows, which is there only while its playbook runs."""
    repository = tmp_path / "kloros-llm" / "Pulled-GGUF"
    repository.mkdir(parents=True)
    model = fetch_inputs.fetch_all()["model"]
    shutil.copyfile(model, repository / "Pulled.Q4_1.gguf")
    machine = container_host.this_machine()
    bind = container_host.network_field(machine, OWN["KLOROS_DEMO_HOST"], "Gateway")
    with StandInHub(tmp_path, bind=bind, port=int(OWN["KLOROS_DEMO_HUB_PORT"])) as hub:
        yield hub


@pytest.mark.usefixtures("demo")
def test_its_client_pulls(hub: StandInHub) -> None:
    client = ollama.Client(host=URL)
    name = "hf.co/kloros-llm/Pulled-GGUF:Q4_1"
    lines = list(client.pull(name, stream=True))
    said = [line.status for line in lines]
    assert said[0] == "pulling manifest"
    assert said[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    (size,) = {line.total for line in lines if line.total}
    assert max(line.completed or 0 for line in lines) == size
    assert hub.bytes_served >= size
    assert name in {model.model for model in client.list().models}
    client.delete(name)
    assert name not in {model.model for model in client.list().models}


@pytest.mark.usefixtures("demo")
def test_again_changes_nothing() -> None:
    again = make("demo")
    assert re.search(r"kloros-demo +: ok=\d+ +changed=0 ", again), again
    assert answer_of(again)
