"""Every example of docs/client.md runs: against a stand-in for Ollama, and a real llama-server."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llama_server import needs_llama_server
from tests.unit.client.real_llama_server import real_llama_server
from tests.unit.client.stand_in_ollama import StandInOllama, exchange

DOCS = Path(__file__).parents[3] / "docs/client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.S | re.M)


def run(example: str) -> str:
    """What it prints."""
    out = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(out):
        exec(compile(example, str(DOCS), "exec"), names)  # noqa: S102
    return out.getvalue()


@pytest.fixture(scope="module")
def llama_server() -> Iterator[str]:
    with real_llama_server("-c", "2048", "-np", "2") as url:
        yield url


@pytest.fixture(autouse=True)
def bare_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kloros_llm.modelctl.host_plan.DEFAULT_PLAN", tmp_path / "none.json")
    monkeypatch.setattr("kloros_llm.modelctl.host.DEFAULT_MODELS_DIR", tmp_path)
    monkeypatch.setenv("KLOROS_LLM_MODEL", "smollm2:135m")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 8


@pytest.mark.parametrize("example", EXAMPLES)
def test_with_ollama(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = ("11-generate-stream", "13-chat-stream", "25-embed-ok-string")
    with StandInOllama(*recorded) as ollama:
        if "json.loads" in example:  # no recorded stream is JSON
            chat = exchange("13-chat-stream")
            line = b'{"message":{"content":"{\\"city\\":\\"Paris\\"}"},"done":true}\n'
            ollama.answers["/api/chat"] = type(chat)(**{**vars(chat), "body": line})
        monkeypatch.setenv("KLOROS_LLM_URL", ollama.url)
        assert run(example)


@needs_llama_server
@pytest.mark.parametrize("example", EXAMPLES)
def test_with_a_real_llama_server(
    example: str, llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLOROS_LLM_URL", llama_server)
    assert run(example)
