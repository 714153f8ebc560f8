"""The gateway's wishes, and the plan that is made of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gateway_plan import listener_name
from ansible_collections.kloros.llm.plugins.module_utils.gateway_toml import (
    credentials,
    gateway_toml,
)
from ansible_collections.kloros.llm.plugins.module_utils.gateway_wishes import (
    LIMITS,
    PERSONA_KEYS,
    ollama_name,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan import lasting, make_plan
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.config import Limits, PersonaSettings
from kloros_llm.gateway.ollama_api.model_names import name_key, parse_name

Data = dict[str, Any]
KEY = "canary-4b1f0c7e9d52"


def errors(result: Data) -> list[str]:
    return [finding["key"] for finding in result["findings"] if finding["level"] == "error"]


@pytest.fixture
def served(wishes: Data) -> Data:
    """Two models, one of them with two instances; a third that nothing serves."""
    source = "hf://someone/tiny/{}.gguf"
    wishes["gguf_models"]["models"] = {
        "tiny:1b": {"source": source.format("tiny"), "aliases": ["main"]},
        "Code": {"source": source.format("code"), "mmproj": source.format("eye")},
        "draft:0.1b": {"source": source.format("draft")},
    }
    wishes["llama_instances"]["instances"] = {
        "live": {"model": "tiny:1b", "port": 8080, "parallel": 2, "fallback": "spare"},
        "spare": {"model": "tiny:1b", "port": 8082, "api_key": KEY},
        "code": {"model": "Code", "port": 8081, "context": 2048},
        "rank": {"model": "draft:0.1b", "port": 8083, "rerank": True},
    }
    return wishes


def test_without_a_wish_it_is_ollama_on_its_port(wishes: Data, host: Data) -> None:
    result = make_plan(wishes, host)
    assert result["findings"] == []
    gateway = result["plan"]["gateway"]
    (listener,) = gateway["listeners"]
    assert listener["place"] == "127.0.0.1:11434"
    assert listener["url"] == "http://127.0.0.1:11434"
    assert listener["unit"] == "kloros-llm-gateway-11434.socket"
    assert listener["names"] == ["tiny:1b"]
    assert gateway["group"] == "kloros"
    assert result["plan"]["changes"]["gateway_left_out"] == []


def test_each_listener_lists_what_its_instances_serve(served: Data, host: Data) -> None:
    served["ollama_gateway"]["listeners"] = [
        {"port": 11434},
        {"port": 11435, "instances": ["code"]},
        {"port": 11436, "instances": ["rank"]},
    ]
    result = make_plan(served, host)
    assert errors(result) == []
    gateway = result["plan"]["gateway"]
    assert [listener["names"] for listener in gateway["listeners"]] == [
        ["Code:latest", "main:latest", "tiny:1b"],
        ["Code:latest"],
        [],
    ]
    # A reranker answers no client of Ollama, and neither does a model that nothing serves.
    assert set(gateway["instances"]) == {"live", "spare", "code"}
    assert gateway["models"]["tiny:1b"]["instances"] == ["live", "spare"]
    assert gateway["models"]["draft:0.1b"]["instances"] == []
    assert gateway["models"]["Code"]["mmproj"] == "/var/lib/kloros-llm/models/code.mmproj.gguf"
    assert gateway["instances"]["live"]["fallback"] == "spare"
    assert gateway["instances"]["live"]["slots"] == 2


def test_personas_are_names_too(served: Data, host: Data) -> None:
    served["ollama_gateway"]["personas"] = {
        "luigi": {"from": "mario"},
        "mario": {"from": "main", "system": "You are Mario.", "adapters": ["draft:0.1b"]},
        "tiny:1b": {"from": "tiny:1b", "template": "{{ .Prompt }}"},
        "coder": {"from": "tiny:1b", "instances": ["code"], "license": "MIT"},
    }
    served["ollama_gateway"]["listeners"] = [{"port": 11434}, {"port": 1, "instances": ["code"]}]
    result = make_plan(served, host)
    assert errors(result) == []
    gateway = result["plan"]["gateway"]
    assert gateway["listeners"][0]["names"] == [
        "Code:latest",
        "coder:latest",
        "luigi:latest",
        "main:latest",
        "mario:latest",
        "tiny:1b",
    ]
    assert gateway["listeners"][1]["names"] == ["Code:latest", "coder:latest"]
    assert gateway["personas"]["mario"]["adapters"] == ["/var/lib/kloros-llm/models/draft.gguf"]
    assert gateway["personas"]["coder"]["license"] == ["MIT"]


def listening(**keys: Any) -> Data:
    base = {"port": 11434, "address": "127.0.0.1", "pid": 812, "process": "ollama"}
    return {**base, "unit": "ollama.service", **keys}


def test_a_port_that_ollama_holds_is_left_alone(served: Data, host: Data) -> None:
    served["ollama_gateway"]["listeners"] = [{"port": 11434}, {"port": 11435}]
    host["listeners"] = [listening()]
    result = make_plan(served, host)
    assert errors(result) == []
    (said,) = (f for f in result["findings"] if f["key"] == "ollama_gateway_listeners")
    assert "ollama (pid 812 of ollama.service)" in said["found"]
    plan = result["plan"]
    assert [listener["port"] for listener in plan["gateway"]["listeners"]] == [11435]
    assert plan["changes"]["gateway_left_out"] == [{"address": "127.0.0.1", "port": 11434}]
    assert plan["gateway"]["wished"]
    # Its process id is another one after each start: that is no part of the plan.
    assert "812" not in json.dumps(lasting(plan)["gateway"])


@pytest.mark.parametrize(
    ("holder", "units", "ports"),
    [
        (listening(unit="kloros-llm-gateway.service", process="python3"), [], [11434]),
        (listening(unit="kloros-llama-live.service", process="llama-server"), [], [11434]),
        (listening(pid=1, unit=None), ["kloros-llm-gateway-11434.socket"], [11434]),
        (listening(pid=1, unit=None), [], []),
        (listening(pid=None, process=None, unit=None), [], []),
        (listening(address="192.0.2.1"), [], [11434]),
        (listening(address="::"), [], []),
    ],
)
def test_who_holds_a_port(
    wishes: Data, host: Data, holder: Data, units: list[str], ports: list[int]
) -> None:
    host["listeners"], host["gateway_units"] = [holder], units
    gateway = make_plan(wishes, host)["plan"]["gateway"]
    assert [listener["port"] for listener in gateway["listeners"]] == ports


def test_units_that_nobody_wishes_for_go(wishes: Data, host: Data) -> None:
    host["gateway_units"] = [
        "kloros-llm-gateway.service",
        "kloros-llm-gateway-11434.socket",
        "kloros-llm-gateway-11435.socket",
    ]
    changes = make_plan(wishes, host)["plan"]["changes"]
    assert changes["gateway_units_to_retire"] == ["kloros-llm-gateway-11435.socket"]
    wishes["ollama_gateway"]["listeners"] = []
    result = make_plan(wishes, host)
    assert result["plan"]["changes"]["gateway_units_to_retire"] == host["gateway_units"]
    assert not result["plan"]["gateway"]["wished"]


def test_a_listener_without_its_port_keeps_no_socket(wishes: Data, host: Data) -> None:
    """Else systemd would take the port from Ollama at the next boot."""
    host["gateway_units"] = ["kloros-llm-gateway.service", "kloros-llm-gateway-11434.socket"]
    host["listeners"] = [listening()]
    changes = make_plan(wishes, host)["plan"]["changes"]
    assert changes["gateway_units_to_retire"] == host["gateway_units"]


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"listeners": "x"}, ["ollama_gateway_listeners"]),
        ({"listeners": ["x"]}, ["ollama_gateway_listeners[0]"]),
        ({"listeners": [{}]}, ["ollama_gateway_listeners[0].port"]),
        ({"listeners": [{"port": 1, "adress": "::1"}]}, ["ollama_gateway_listeners[0].adress"]),
        (
            {"listeners": [{"port": 1, "address": "localhost"}]},
            ["ollama_gateway_listeners[0].address"],
        ),
        (
            {"listeners": [{"port": 1, "address": "192.0.2.1"}]},
            ["ollama_gateway_listeners[0].api_key"],
        ),
        (
            {"listeners": [{"port": 1, "address": "192.0.2.1", "api_key": "# short and spaced"}]},
            ["ollama_gateway_listeners[0].api_key"],
        ),
        (
            {"listeners": [{"port": 1, "tls": {"certificate": "/a.pem"}}]},
            ["ollama_gateway_listeners[0].tls"],
        ),
        (
            {"listeners": [{"port": 1, "instances": ["lvie"]}]},
            ["ollama_gateway_listeners[0].instances"],
        ),
        (
            {"listeners": [{"port": 1}, {"port": 1, "address": "0.0.0.0", "api_key": KEY}]},
            ["ollama_gateway_listeners[1].port"],
        ),
        ({"listeners": [{"port": 8081}]}, ["llama_instances.code.port"]),
        ({"metrics_port": 8081}, ["ollama_gateway_metrics_port"]),
        ({"metrics_port": 11434}, ["ollama_gateway_metrics_port"]),
        ({"limits": {"queue": 1.5}}, ["ollama_gateway_limits.queue"]),
        ({"limits": {"wait_s": 0}}, ["ollama_gateway_limits.wait_s"]),
        ({"limits": {"waits": 1}}, ["ollama_gateway_limits.waits"]),
        ({"ollama_version": "latest"}, ["ollama_gateway_ollama_version"]),
        ({"dir": "opt"}, ["ollama_gateway_dir"]),
        ({"manages_models": True}, ["ollama_gateway_manages_models"]),
        ({"personas": {"a b": {"from": "main"}}}, ["ollama_gateway_personas.a b"]),
        ({"personas": {"p": "main"}}, ["ollama_gateway_personas.p"]),
        ({"personas": {"p": {"from": "mian"}}}, ["ollama_gateway_personas.p.from"]),
        ({"personas": {"p": {"system": "x"}}}, ["ollama_gateway_personas.p.from"]),
        (
            {"personas": {"p": {"from": "main", "messages": [{"role": "me", "content": ""}]}}},
            ["ollama_gateway_personas.p.messages"],
        ),
        (
            {"personas": {"p": {"from": "main", "parameters": {"stop": [{}]}}}},
            ["ollama_gateway_personas.p.parameters"],
        ),
        (
            {"personas": {"p": {"from": "main", "instances": ["x"]}}},
            ["ollama_gateway_personas.p.instances"],
        ),
        (
            {"personas": {"p": {"from": "main", "adapters": ["x"]}}},
            ["ollama_gateway_personas.p.adapters"],
        ),
        ({"personas": {"Main:LATEST": {"from": "code"}}}, ["ollama_gateway_personas.Main:LATEST"]),
        (
            {"personas": {"a": {"from": "b"}, "b": {"from": "a:latest"}}},
            ["ollama_gateway_personas.a:latest.from"],
        ),
        (
            {"personas": {"a": {"from": "main"}, "A:latest": {"from": "main"}}},
            ["ollama_gateway_personas.A:latest"],
        ),
    ],
)
def test_wrong_wish_is_named(served: Data, host: Data, change: Data, keys: list[str]) -> None:
    served["ollama_gateway"] |= change
    result = make_plan(served, host)
    assert errors(result) == keys
    json.dumps(result["findings"])
    assert KEY not in json.dumps(result)


def test_clients_may_change_models_that_are_their_servers(served: Data, host: Data) -> None:
    served["ollama_gateway"]["manages_models"] = True
    served["gguf_models"]["owner"] = "kloros"
    assert errors(make_plan(served, host)) == []


@pytest.mark.parametrize("name", ["tiny:1B", "library/tiny:1b", "registry.ollama.ai/library/main"])
def test_names_that_are_one_to_clients(served: Data, host: Data, name: str) -> None:
    served["gguf_models"]["models"][name] = {"source": "hf://someone/tiny/other.gguf"}
    result = make_plan(served, host)
    assert len(errors(result)) == 1
    assert errors(result)[0].startswith("gguf_models.")
    # Where nobody listens, they are nobody's names.
    served["ollama_gateway"]["listeners"] = []
    assert errors(make_plan(served, host)) == []


def test_wheels_that_are_not_there(served: Data, host: Data) -> None:
    gateway = served["ollama_gateway"]
    gateway |= {"wheels_dir": "/srv/wheels", "wheels_there": False}
    result = make_plan(served, host)
    assert errors(result) == ["ollama_gateway_wheels_dir"]
    (finding,) = result["findings"]
    assert "/srv/wheels" in finding["found"]
    assert "pip download" in finding["cure"]
    gateway["wheels_there"] = True
    assert errors(make_plan(served, host)) == []
    # Nothing is installed where nobody listens.
    gateway |= {"wheels_there": False, "listeners": []}
    assert errors(make_plan(served, host)) == []


@pytest.mark.parametrize("manages", [True, False])
@pytest.mark.parametrize("token", [True, False])
def test_the_gateway_has_the_token_only_to_pull(
    served: Data, host: Data, manages: bool, token: bool
) -> None:
    served["gguf_models"] |= {"owner": "kloros", "hf_token": token}
    served["ollama_gateway"]["manages_models"] = manages
    result = make_plan(served, host)
    assert errors(result) == []
    gateway = result["plan"]["gateway"]
    assert gateway["hf_token"] is (manages and token)
    assert ("hf_token" in credentials(gateway)) is (manages and token)
    assert ("hf_token_file" in gateway_toml(gateway)) is (manages and token)


def test_fallbacks(served: Data, host: Data) -> None:
    instances = served["llama_instances"]["instances"]
    instances["live"]["fallback"] = "sapre"
    result = make_plan(served, host)
    assert errors(result) == ["llama_instances.live.fallback"]
    assert "'spare'" in result["findings"][0]["cure"]
    instances["live"]["fallback"] = "live"
    result = make_plan(served, host)
    assert errors(result) == ["llama_instances.live.fallback"]
    assert "itself" in result["findings"][0]["found"]
    # Each may serve while the other is down.
    instances["live"]["fallback"] = "spare"
    instances["spare"]["fallback"] = "live"
    result = make_plan(served, host)
    assert errors(result) == []
    planned = result["plan"]["gateway"]["instances"]
    assert (planned["live"]["fallback"], planned["spare"]["fallback"]) == ("spare", "live")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("127.0.0.1", "127.0.0.1", "has port 1 of 127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", "0.0.0.0 is every IPv4 address"),
        ("::", "0.0.0.0", ":: is every address, IPv4's too"),
        ("127.0.0.1", "::", ":: is every address, IPv4's too"),
        ("0:0::0", "::1", ":: is every address, IPv4's too"),
        ("0.0.0.0", "::1", ""),
        ("127.0.0.1", "::1", ""),
    ],
)
def test_two_listeners_on_one_port(
    served: Data, host: Data, one: str, other: str, said: str
) -> None:
    served["ollama_gateway"]["listeners"] = [
        {"port": 1, "address": one, "api_key": KEY},
        {"port": 1, "address": other, "api_key": KEY},
    ]
    result = make_plan(served, host)
    assert errors(result) == (["ollama_gateway_listeners[1].port"] if said else [])
    assert not said or said in result["findings"][0]["found"]


_PARTS = st.text("aZ0._-:/ !", max_size=8)


@given(st.lists(_PARTS, min_size=1, max_size=4).map("/".join) | st.text(max_size=20))
def test_names_are_read_as_the_gateway_reads_them(text: str) -> None:
    shown = ollama_name(text)
    name = parse_name(text)
    # A host may have a scheme there, which no inventory needs.
    if "//" not in text:
        assert shown == (name.display if name else None)
    if shown is not None:
        assert name_key(shown) == name_key(text)


def test_the_tables_are_the_gateways() -> None:
    assert set(LIMITS) == {field.name for field in dataclasses.fields(Limits)}
    fields = {field.name.rstrip("_") for field in dataclasses.fields(PersonaSettings)}
    assert set(PERSONA_KEYS) == fields - {"name"}


def test_listeners_have_names_of_their_own() -> None:
    places = [("127.0.0.1", 11434), ("::1", 11434), ("0.0.0.0", 11434), ("192.0.2.1", 80)]
    assert [listener_name(*place) for place in places] == [
        "11434",
        "11434---1",
        "11434-0.0.0.0",
        "80-192.0.2.1",
    ]
    assert listener_name("0:0::0", 1) == listener_name("::", 1)
