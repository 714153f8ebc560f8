"""A real llama-server with the environment of a planned instance."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from ansible_collections.kloros.llm.plugins.module_utils.llama_environment import (
    instance_environment,
)

from tests.llama_server import BINARY, MODEL, needs_llama_server
from tests.unit.client.real_llama_server import free_port, until_ready
from tests.unit.test_llama_options import planned

pytestmark = needs_llama_server


@contextmanager
def served(folder: Path, **changes: object) -> Iterator[str]:
    """The URL of a server of one slot."""
    port = free_port()
    environment = instance_environment(
        planned(model_path=str(MODEL), port=port, slots=1, threads=2, **changes)
    )
    arguments = environment.pop("LLAMA_EXTRA_ARGS", "").split()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["nice", BINARY, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(url, json=body, timeout=300)
    assert answer.ok, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_text_that_fills_a_slot_is_embedded(tmp_path: Path) -> None:
    with served(tmp_path, embeddings=True, context_tokens=2048, extra={"pooling": "mean"}) as url:
        found = ask(f"{url}/v1/embeddings", {"input": "one two three " * 500})
    assert 1500 <= found["usage"]["prompt_tokens"] <= 2048
    assert len(found["data"][0]["embedding"]) == 576


@pytest.mark.parametrize(
    ("extra", "tokens"), [({}, 300), ({"context-shift": False}, 256 - 5)], ids=str
)
def test_an_answer_is_longer_than_the_context(
    tmp_path: Path, extra: dict[str, object], tokens: int
) -> None:
    body = {"prompt": [1] * 5, "n_predict": 300, "n_keep": 4, "ignore_eos": True}
    with served(tmp_path, context_tokens=256, kv_cache="f16", extra=extra) as url:
        found = ask(f"{url}/completion", body)
    assert found["stop_type"] == "limit"
    assert abs(found["tokens_predicted"] - tokens) <= 2
    assert found["truncated"]
