"""What the role writes for the gateway, read back by the gateway itself."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.gateway_toml import (
    credentials,
    gateway_toml,
    keys_of_listeners,
)
from ansible_collections.kloros.llm.plugins.module_utils.plan import make_plan
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.config import Config, Limits, read_config

Data = dict[str, Any]
KEY = "canary-4b1f0c7e9d52"
OTHER_KEY = "canary-other-9d52e7c0"


def read_back(gateway: Data, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """As the gateway reads it under systemd, which passes it what the role keeps."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    for name in credentials(gateway):
        (folder / name).write_text(f"{KEY}\n", encoding="utf-8")
    path = folder / "gateway.toml"
    path.write_text(gateway_toml(gateway, "written by\na test"), encoding="utf-8")
    return read_config(path)


def test_everything_arrives(
    wishes: Data, host: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "hf://someone/tiny/{}.gguf"
    wishes["gguf_models"] |= {
        "owner": "kloros",
        "hf_endpoint": "https://hub.example/",
        "hf_token": True,
    }
    wishes["gguf_models"]["models"] = {
        "tiny:1b": {"source": source.format("tiny"), "aliases": ["main", "a/b:c"]},
        "eyes": {"source": source.format("eyes"), "mmproj": source.format("projector")},
    }
    wishes["llama_instances"]["instances"] = {
        "live": {"model": "tiny:1b", "port": 8080, "parallel": 2, "fallback": "see-1"},
        "see-1": {"model": "eyes", "port": 8081, "context": 4096, "api_key": KEY},
        "embed": {"model": "tiny:1b", "port": 8082, "embeddings": True},
    }
    template = '{{ if .System }}"""{{ .System }}"""\n{{ end }}\\\t{{ .Prompt }} \x7f ü 🦙'
    wishes["ollama_gateway"] |= {
        "listeners": [
            {"port": 11434, "instances": ["live"], "origins": ["https://*.lan"]},
            {
                "port": 11434,
                "address": "192.0.2.7",
                "api_key": [KEY, OTHER_KEY],
                "tls": {"certificate": "/etc/c.pem", "key": "/etc/k.pem"},
            },
            {"port": 11435, "address": "::1"},
        ],
        "personas": {
            "mario:v1.0": {
                "from": "main",
                "system": "It's-a me!\n\tMario",
                "template": template,
                "parameters": {"temperature": 0.6, "num_ctx": 2048, "stop": ['a"b', "\n"]},
                "messages": [{"role": "user", "content": "Who?"}],
                "license": ["MIT", "ö"],
                "adapters": ["/srv/a.gguf"],
                "instances": ["live"],
            },
        },
        "limits": {"queue": 7, "wait_s": 1.5},
        "ollama_version": "0.33.1",
        "think_inline": True,
        "log_prompts": True,
        "manages_models": True,
        "metrics_port": 9999,
    }
    result = make_plan(wishes, host)
    assert [f for f in result["findings"] if f["level"] == "error"] == []
    gateway = json.loads(json.dumps(result["plan"]["gateway"]))
    config = read_back(gateway, tmp_path, monkeypatch)

    first, second, third = config.listeners
    assert (first.address, first.port, first.instances) == ("127.0.0.1", 11434, ("live",))
    assert first.origins == ("https://*.lan",)
    assert first.api_key_file is None
    assert (second.address, second.instances) == ("192.0.2.7", None)
    assert second.api_key_file == tmp_path / "listener-11434-192.0.2.7"
    assert second.tls_certificate == tmp_path / "listener-11434-192.0.2.7.certificate.pem"
    assert second.tls_key == tmp_path / "listener-11434-192.0.2.7.key.pem"
    assert (third.address, third.port) == ("::1", 11435)
    for listener, planned in zip(config.listeners, gateway["listeners"], strict=True):
        assert listener.socket_name == planned["socket_name"]

    live, see, embed = config.instances.values()
    assert (live.url, live.model, live.slots) == ("http://127.0.0.1:8080", "tiny:1b", 2)
    assert (live.fallback, live.kind, live.api_key_file) == ("see-1", "dedicated", None)
    assert (see.context_tokens, see.api_key_file) == (4096, tmp_path / "instance-see-1")
    assert embed.embeddings
    # Nothing is known of these models' sizes.
    assert live.memory_bytes == live.vram_bytes == {}
    tiny, eyes = config.models.values()
    assert (tiny.aliases, tiny.instances) == (("main", "a/b:c"), ("live", "embed"))
    assert (tiny.path, tiny.mmproj) == (Path("/var/lib/kloros-llm/models/tiny.gguf"), None)
    assert eyes.mmproj == Path("/var/lib/kloros-llm/models/eyes.mmproj.gguf")
    (mario,) = config.personas.values()
    assert (mario.name, mario.from_, mario.template) == ("mario:v1.0", "main", template)
    assert mario.system == "It's-a me!\n\tMario"
    assert dict(mario.parameters) | {"stop": list(mario.parameters["stop"])} == {
        "temperature": 0.6,
        "num_ctx": 2048,
        "stop": ['a"b', "\n"],
    }
    assert mario.messages == ({"role": "user", "content": "Who?"},)
    assert (mario.license, mario.adapters) == (("MIT", "ö"), (Path("/srv/a.gguf"),))
    assert mario.instances == ("live",)
    assert config.limits == Limits(queue=7, wait_s=1.5)
    assert config.metrics is not None
    assert config.metrics.port == 9999
    assert (config.think_inline, config.log_prompts) == (True, True)
    assert (config.ollama_version, config.hf_endpoint) == ("0.33.1", "https://hub.example")
    assert config.hf_token_file == tmp_path / "hf_token"
    assert config.models_dir == Path("/var/lib/kloros-llm/models")
    assert config.state_dir == Path("/var/lib/kloros-llm/gateway")
    assert KEY not in gateway_toml(gateway)


def test_defaults_are_the_gateways(
    wishes: Data, host: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_plan(wishes, host)["plan"]["gateway"]
    config = read_back(gateway, tmp_path, monkeypatch)
    assert config.limits == Limits()
    assert config.ollama_version == Config.ollama_version
    assert (config.hf_endpoint, config.think_inline, config.log_prompts) == (None, False, False)
    assert config.listeners[0].instances is None


def test_where_credentials_come_from(wishes: Data, host: Data) -> None:
    wishes["llama_instances"]["instances"]["live"]["api_key"] = KEY
    listeners: list[Data] = [
        {"port": 11434},
        {
            "port": 11435,
            "address": "192.0.2.7",
            "api_key": KEY,
            "tls": {"certificate": "/c.pem", "key": "/k.pem"},
        },
        {"port": 11436, "api_key": [KEY, OTHER_KEY]},
    ]
    wishes["ollama_gateway"]["listeners"] = listeners
    assert credentials(make_plan(wishes, host)["plan"]["gateway"]) == {
        "listener-11435-192.0.2.7": None,
        "listener-11435-192.0.2.7.certificate.pem": "/c.pem",
        "listener-11435-192.0.2.7.key.pem": "/k.pem",
        "listener-11436": None,
        "instance-live": "../live.key",
    }
    assert keys_of_listeners(listeners) == {
        "11434": [],
        "11435-192.0.2.7": [KEY],
        "11436": [KEY, OTHER_KEY],
    }


_TEXTS = st.text(max_size=12)


@given(_TEXTS, st.dictionaries(_TEXTS, _TEXTS | st.integers(-(2**62), 2**62) | st.booleans()))
def test_any_text_arrives(name: str, parameters: dict[str, Any]) -> None:
    gateway: Data = {
        "models_dir": "/m",
        "state_dir": "/s",
        "hf_endpoint": "",
        "hf_token": False,
        "ollama_version": "",
        "think_inline": False,
        "log_prompts": False,
        "listeners": [],
        "instances": {},
        "models": {},
        "limits": {},
        "metrics_port": 0,
        "personas": {name: {"system": name, "parameters": parameters, "messages": []}},
    }
    persona = tomllib.loads(gateway_toml(gateway))["personas"][name]
    assert persona == {"system": name} | ({"parameters": parameters} if parameters else {})
