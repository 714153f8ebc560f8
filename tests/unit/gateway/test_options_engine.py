"""What a real llama-server makes of the parameters: its own and its command line's are gone."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from kloros_llm.gateway.ollama_api.options import resolve
from tests.llama_server import BINARY, MODEL, needs_llama_server

pytestmark = needs_llama_server


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """A llama-server whose command line asks for other samplers than Ollama's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    odd = ["--top-k", "5", "--xtc-probability", "0.5", "--samplers", "top_k;temperature"]
    base = ["-m", str(MODEL), "-c", "2048", "-np", "2", "--threads", "1", "--offline"]
    server = subprocess.Popen(
        [BINARY, *base, *odd, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert server.poll() is None, "llama-server did not start"
            try:
                urllib.request.urlopen(f"{url}/health").close()  # noqa: S310 - its own address
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def ask(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(  # noqa: S310 - its own address
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - its own address
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_parameter_is_the_one_that_was_sent(engine: str) -> None:
    sent = resolve({"num_predict": 1, "seed": 42}).options.engine_parameters(1024)
    status, answer = ask(engine, "/completion", {"prompt": "Hello", **sent})
    assert status == 200
    held = answer["generation_settings"]
    assert set(sent) <= set(held)
    for name, value in sent.items():
        assert held[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**40},
        {"top_k": -1},
        {"top_k": 2**40},
        {"repeat_last_n": -1},
        {"num_keep": -7},
        {"num_keep": 2**40},
        {"temperature": -1},
        {"top_p": 7},
        {"typical_p": 0},
        {"stop": ["", "x"]},
        {"presence_penalty": 1e38},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions"])
def test_what_ollama_takes_the_engine_takes(
    engine: str, path: str, options: dict[str, Any]
) -> None:
    sent = resolve({**options, "num_predict": 1}).options.engine_parameters(1024)
    asked = {"prompt": "Hello", "messages": [{"role": "user", "content": "Hello"}]}
    status, answer = ask(engine, path, {**sent, **asked})
    assert status == 200, answer


def test_special_tokens_come_only_where_they_are_asked_for(engine: str) -> None:
    tag = "<file_sep>"
    status, told = ask(engine, "/tokenize", {"content": tag, "parse_special": True})
    assert status == 200
    (token,) = told["tokens"]
    asked = {"prompt": "Hello", "n_predict": 1, "logit_bias": [[token, 100]]}
    assert ask(engine, "/completion", asked)[1]["content"] == ""
    asked["preserved_tokens"] = [tag, "<no such token>"]
    assert ask(engine, "/completion", asked)[1]["content"] == tag
