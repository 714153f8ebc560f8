"""Prompts that are too long, through real HTTP, in front of a stand-in engine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_engine import StandInEngine
from tests.unit.gateway.generation_lab import Lab


@pytest.mark.parametrize("model", ["templated", "small"])
def test_a_conversation_that_is_too_long_loses_its_oldest_messages(
    tmp_path: Path, model: str
) -> None:
    engine = StandInEngine(context_tokens=100)
    said = [f"m{number} " + "word " * 15 for number in range(20)]
    messages = [{"role": "system", "content": "Stay."}]
    messages += [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(said)
    ]
    answer, client = Lab(tmp_path, engine).post(
        "/api/chat", {"model": model, "messages": messages, "stream": False}
    )
    assert answer.status == 200
    # Sent as it is first: nothing is counted before the engine says that it is too long.
    path = "/completion" if model == "templated" else "/v1/chat/completions"
    assert client.paths()[0] == path
    last = json.dumps(client.asked(path)[-1])
    if model == "templated":
        # As ids, which the engine need not make again.
        text = client.asked("/tokenize")[-1]["content"]
        last = json.dumps(text)
    assert "Stay." in last
    assert "m19" in last
    assert "m0 " not in last


@pytest.mark.parametrize("model", ["templated", "small"])
def test_a_message_that_is_too_long_loses_its_middle(tmp_path: Path, model: str) -> None:
    engine = StandInEngine(context_tokens=50)
    body: dict[str, Any] = {
        "model": model,
        "prompt": " ".join(f"w{number}" for number in range(200)),
        "stream": False,
        "options": {"num_keep": 3},
    }
    answer, client = Lab(tmp_path, engine).post("/api/generate", body)
    assert answer.status == 200
    ids = client.asked("/completion")[-1]["prompt"]
    whole = engine._tokens(client.asked("/tokenize")[0]["content"])
    assert ids == whole[:3] + whole[-24:]
    answer, _ = Lab(tmp_path, StandInEngine(context_tokens=50)).post(
        "/api/generate", body | {"truncate": False}
    )
    assert answer.status == 400
    assert json.loads(answer.json["error"])["error"]["type"] == "exceed_context_size_error"
    answer, _ = Lab(tmp_path, StandInEngine(context_tokens=50)).post(
        "/api/generate", body | {"shift": False}
    )
    assert answer.status == 400
    assert answer.json["error"].startswith("the prompt is longer than the context length")


def test_a_smaller_num_ctx_bounds_the_prompt(tmp_path: Path) -> None:
    body = {
        "model": "templated",
        "prompt": "w " * 200,
        "stream": False,
        "options": {"num_ctx": 50},
    }
    _, client = Lab(tmp_path).post("/api/generate", body)
    assert len(client.asked("/completion")[0]["prompt"]) == 27
    answer, client = Lab(tmp_path).post("/api/generate", body | {"truncate": False})
    assert answer.status == 400
    assert json.loads(answer.json["error"])["error"]["n_ctx"] == 50
    assert client.asked("/completion") == []


@pytest.mark.parametrize("model", ["templated", "small"])
def test_a_prompt_of_images_that_is_too_long_is_refused(tmp_path: Path, model: str) -> None:
    engine = StandInEngine(context_tokens=50)
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    message = {"role": "user", "content": "w " * 200, "images": [image]}
    answer, client = Lab(tmp_path, engine).post(
        "/api/chat", {"model": model, "messages": [message], "stream": False}
    )
    assert answer.status == 400
    assert json.loads(answer.json["error"])["error"]["type"] == "exceed_context_size_error"
    path = "/completion" if model == "templated" else "/v1/chat/completions"
    assert len(client.asked(path)) == 2


@pytest.mark.parametrize("model", ["templated", "small"])
def test_a_prompt_is_shortened_again_where_less_fits_than_was_thought(
    tmp_path: Path, model: str
) -> None:
    # As with a fallback that has less room than the instance it stands in for.
    engine = StandInEngine(context_tokens=50)
    body: dict[str, Any] = {
        "model": model,
        "prompt": "w " * 60,
        "stream": False,
        "options": {"num_ctx": 80},
    }
    answer, client = Lab(tmp_path, engine).post("/api/generate", body)
    assert answer.status == 200
    assert len(client.asked("/completion")[-1]["prompt"]) == 27
