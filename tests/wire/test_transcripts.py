"""Every recorded exchange with Ollama, asked of the gateway in front of real llama-servers.

`deviations.toml` lists what differs. What differs and is not listed fails, and what is listed and
differs no longer fails too. In one scene each instance has its model for good, as the role sets
them up; in the other a router loads models when they are asked for, as Ollama does, and what the
recording tells of loading and ending is asked there again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.stand_in_hub import StandInHub
from tests.llama_server import needs_llama_server
from tests.unit.gateway.gateway_process import GatewayProcess, free_ports
from tests.wire.deviations import listed
from tests.wire.exchanges import Answer, Exchange, Request, recorded, send, with_model
from tests.wire.forms import Difference, differences, event_differences
from tests.wire.rig import (
    CHAT,
    CHAT_PERSONA,
    CHAT_SHA256,
    CONTEXT_TOKENS,
    EMBED,
    EMBED_CONTEXT_TOKENS,
    PLAIN_PERSONA,
    PULLED,
    RECORDED_CITIES,
    SURE_CITIES,
    Store,
    chat_instance,
    embed_instance,
    llama_server,
    stand_in_hub,
    tools_persona,
    write_toml,
)

pytestmark = needs_llama_server

EXCHANGES = {one.name: one for one in recorded()}
RECORDED_PATH = (
    "/usr/share/ollama/.ollama/models/blobs/"
    "sha256-941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5"
)
# What the recording's server loaded and ended meanwhile.
LOADING = (
    "06-ps-empty",
    "09-generate-cold-nostream",
    "12-ps-loaded",
    "25-embed-ok-string",
    "80-preload",
    "82-keepalive-neg1",
    "83-ps-forever",
    "86-unload",
    "87-ps-after-unload",
    "88-unload-chat",
)
EMBED_PERSONA = {"from": EMBED, **PLAIN_PERSONA}


@dataclass(frozen=True)
class Replay:
    """One scene: what the gateway answered, by the name of the exchange."""

    scene: str
    answers: Mapping[str, Answer]
    same: Mapping[str, str]

    def differences(self, exchange: Exchange) -> list[Difference]:
        answer = self.answers[exchange.name]
        if exchange.answer.content_type == "text/event-stream":
            return event_differences(exchange.answer, answer)
        found = differences(exchange.answer, answer, self.same)
        asked = asked_of_gateway(exchange)
        if asked != exchange.request:
            names = [model_of(one) for one in (exchange.request, asked)]
            found.append(Difference("request.model", *map(json.dumps, names)))
        return found


def asked_of_gateway(exchange: Exchange) -> Request:
    """As recorded; what is pulled comes from the stand-in Hub."""
    if exchange.request.path == "/api/pull":
        return with_model(exchange.request, PULLED)
    return exchange.request


def model_of(request: Request) -> str:
    return str(json.loads(request.body)["model"])


def base_config(store: Store, folder: Path) -> dict[str, Any]:
    """What both scenes have; the version is the recording's."""
    return {
        "models_dir": str(store.folder),
        "state_dir": str(folder / "state"),
        "ollama_version": "0.33.0-rc2",
        "personas": {CHAT: {"from": CHAT, **CHAT_PERSONA}, EMBED: EMBED_PERSONA},
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    """A Hub with a file to pull."""
    with stand_in_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def dedicated(
    store: Store,
    chat_engine: str,
    embed_engine: str,
    hub: StandInHub,
    tmp_path_factory: pytest.TempPathFactory,
) -> Replay:
    """An instance a model. The model that embeds came late: until then a listener without it."""
    folder = tmp_path_factory.mktemp("dedicated")
    early, late = free_ports(2)
    config = write_toml(
        folder / "gateway.toml",
        **base_config(store, folder),
        hf_endpoint=hub.url,
        listeners=[{"port": early, "instances": ["live"]}, {"port": late}],
        instances={"live": chat_instance(chat_engine), "embed": embed_instance(embed_engine)},
        models={CHAT: {"path": str(store.chat)}, EMBED: {"path": str(store.embed)}},
    )
    began = EXCHANGES["25-embed-ok-string"].date
    answers = {}
    with GatewayProcess(config):
        for exchange in EXCHANGES.values():
            port = early if exchange.date < began else late
            if exchange.name in BEFORE:
                BEFORE[exchange.name](port)
            answers[exchange.name] = send(asked_of_gateway(exchange), port)
        as_recorded = with_model(EXCHANGES["130-tools-chat"].request, "as-recorded")
        answers["as-recorded"] = send(as_recorded, late)
    return Replay("dedicated", answers, {str(store.chat): RECORDED_PATH})


@pytest.fixture(scope="module")
def router(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """A router that has nothing loaded at the beginning."""
    folder = tmp_path_factory.mktemp("router")
    preset = folder / "models.ini"
    embed = f"embeddings = true\nctx-size = {EMBED_CONTEXT_TOKENS}"
    sections = (
        ("m0", CHAT, store.chat, f"ctx-size = {CONTEXT_TOKENS}"),
        ("m1", EMBED, store.embed, embed),
    )
    preset.write_text(
        "version = 1\n"
        + "".join(
            f"\n[{section}]\nmodel = {path}\nalias = {name}\nparallel = 1\n{more}\n"
            for section, name, path, more in sections
        )
    )
    options = ("--models-preset", preset, "--models-max", "2", "--no-models-autoload")
    port = free_ports(1)[0]
    with llama_server(folder, *options) as engine:
        served = {"instances": ["router"]}
        config = write_toml(
            folder / "gateway.toml",
            **base_config(store, folder),
            listeners=[{"port": port}],
            instances={
                "router": {
                    "url": engine,
                    "kind": "router",
                    "context_tokens": CONTEXT_TOKENS,
                    "model_context_tokens": {EMBED: EMBED_CONTEXT_TOKENS},
                }
            },
            models={
                CHAT: {"path": str(store.chat), **served},
                EMBED: {"path": str(store.embed), **served},
            },
        )
        with GatewayProcess(config):
            answers = {}
            for exchange in EXCHANGES.values():
                if exchange.name == "87-ps-after-unload":
                    _await_unload(port)
                if exchange.name in LOADING:
                    answers[exchange.name] = send(exchange.request, port)
    return Replay("router", answers, {str(store.chat): RECORDED_PATH})


def _done(port: int, path: str, body: bytes) -> None:
    """Something that the recording did beforehand."""
    answer = send(Request("POST", path, {"Host": "127.0.0.1"}, body), port)
    assert answer.status in (200, 201), answer
    assert b"error" not in answer.body, answer


def _create(port: int, name: str, **members: Any) -> None:
    body = {"model": name, "stream": False, **members}
    _done(port, "/api/create", json.dumps(body).encode())


def _upload(port: int) -> None:
    request = EXCHANGES["101-blob-post-ok"].request
    _done(port, request.path, request.body)


def _create_plain(port: int) -> None:
    files = {"model.gguf": f"sha256:{CHAT_SHA256}"}
    _create(port, "smollm2-plain", files=files, **PLAIN_PERSONA)


def _create_tools(port: int) -> None:
    _create(port, "smollm2-tools", **{"from": CHAT}, **tools_persona(*SURE_CITIES))
    _create(port, "as-recorded", **{"from": CHAT}, **tools_persona(*RECORDED_CITIES))


def _await_unload(port: int) -> None:
    """The recording waited a second."""
    asked = EXCHANGES["87-ps-after-unload"].request
    deadline = time.monotonic() + 60
    while f'"{CHAT}"' in send(asked, port).body.decode():
        assert time.monotonic() < deadline, "the model is not ended"
        time.sleep(0.05)


BEFORE: Mapping[str, Callable[[int], None]] = {
    "101-blob-post-ok": _upload,
    "110-plain-chat": _create_plain,
    "130-tools-chat": _create_tools,
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_as_recorded(dedicated: Replay, name: str) -> None:
    exchange = EXCHANGES[name]
    found = dedicated.differences(exchange)
    assert set(found) == set(listed("dedicated", name)), dedicated.answers[name]


@pytest.mark.parametrize("name", LOADING)
def test_loading_as_recorded(router: Replay, name: str) -> None:
    exchange = EXCHANGES[name]
    found = router.differences(exchange)
    assert set(found) == set(listed("router", name)), router.answers[name]


def test_vectors_are_those_of_the_recording(dedicated: Replay) -> None:
    def vector(answer: Answer) -> list[float]:
        body = json.loads(answer.body)
        found = body["embedding"] if "embedding" in body else body["embeddings"][0]
        assert isinstance(found, list)
        return found

    for name in ("25-embed-ok-string", "27-embeddings-legacy-ok"):
        theirs, ours = vector(EXCHANGES[name].answer), vector(dedicated.answers[name])
        assert math.isclose(math.hypot(*ours), 1, abs_tol=1e-5), name
        assert sum(a * b for a, b in zip(theirs, ours, strict=True)) > 0.999, name


def test_the_prompt_of_the_recorded_tools_is_as_long(dedicated: Replay) -> None:
    theirs = json.loads(EXCHANGES["130-tools-chat"].answer.body)
    ours = json.loads(dedicated.answers["as-recorded"].body)
    assert ours["prompt_eval_count"] == theirs["prompt_eval_count"] == 207


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, one in EXCHANGES.items()
        if b'"num_predict"' in one.request.body and one.answer.status == 200
    ],
)
def test_counters_fit_what_was_asked(dedicated: Replay, name: str) -> None:
    answer = dedicated.answers[name]
    asked = json.loads(EXCHANGES[name].request.body)["options"]["num_predict"]
    lines = [json.loads(line) for line in answer.body.splitlines()]
    last = lines[-1]
    assert last["done"] is True
    assert 0 < last["eval_count"] <= asked
    assert last["done_reason"] == "stop" or last["eval_count"] == asked
    assert last["prompt_eval_duration"] + last["eval_duration"] <= last["total_duration"]
    if "tool_calls" not in answer.body.decode():
        assert len(lines) <= last["eval_count"] + 1
