"""The inventory's wishes: every wrong one is named by its path, with what would be accepted."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.wishes import (
    INSTANCE_KEYS,
    check_instances,
    check_models,
    check_settings,
)

SOURCE = {"source": "hf://someone/tiny/tiny.gguf"}


def instance(**keys: Any) -> dict[str, Any]:
    return {"live": {"model": "tiny", "port": 8080, **keys}}


def test_short_wish_gets_every_default() -> None:
    instances, findings = check_instances(instance(), ["tiny"])
    assert findings == []
    assert set(instances["live"]) == set(INSTANCE_KEYS)
    assert instances["live"]["gpus"] == []
    assert instances["live"]["kv_cache"] == ["f16"]
    assert instances["live"]["metrics"] is True


def test_model_takes_its_file_name_from_the_source() -> None:
    models, findings = check_models({"tiny": SOURCE})
    assert findings == []
    assert models["tiny"]["file"] == "tiny.gguf"


@pytest.mark.parametrize(
    ("wish", "key", "words"),
    [
        (instance(prot=1), "llama_instances.live.prot", "write 'port'"),
        (instance(port="8080"), "llama_instances.live.port", "an integer from 1 to 65535"),
        (instance(port=0), "llama_instances.live.port", "an integer from 1 to 65535"),
        (instance(port=True), "llama_instances.live.port", "an integer from 1 to 65535"),
        (instance(gpus=0), "llama_instances.live.gpus", "a list of GPU indices"),
        (instance(gpus=["zero"]), "llama_instances.live.gpus", "a list of GPU indices"),
        (instance(context={"min": 512}), "llama_instances.live.context", "tokens a slot"),
        (instance(context={"want": 512, "min": 1024}), "llama_instances.live.context", "not above"),
        (
            instance(context={"want": 512, "mni": 4}),
            "llama_instances.live.context",
            "tokens a slot",
        ),
        (instance(kv_cache=["q9_0"]), "llama_instances.live.kv_cache", "q8_0"),
        (instance(kv_cache=[]), "llama_instances.live.kv_cache", "q8_0"),
        (instance(gpu_layers="all"), "llama_instances.live.gpu_layers", "without it all of them"),
        (instance(gpu_layers="auto"), "llama_instances.live.gpu_layers", "offload: auto"),
        (instance(gpu_layers=-1), "llama_instances.live.gpu_layers", "a number of layers"),
        (instance(parallel=0), "llama_instances.live.parallel", "from 1"),
        (instance(metrics="yes"), "llama_instances.live.metrics", "true or false"),
        (instance(model="tinny"), "llama_instances.live.model", "write 'tiny'"),
        (instance(draft_model="huge"), "llama_instances.live.draft_model", "tiny"),
        (instance(lora=["huge"]), "llama_instances.live.lora", "tiny"),
        (instance(lora=[{"model": "tiny", "sale": 1}]), "llama_instances.live.lora", "scale"),
        (instance(embeddings=True, rerank=True), "llama_instances.live.rerank", "turn one"),
        (instance(host="not an address"), "llama_instances.live.host", "an address"),
        (instance(extra={"model": "x"}), "llama_instances.live.extra.model", "model"),
        ({"live": {"model": "tiny"}}, "llama_instances.live.port", "the key is missing"),
        ({"live": {"port": 1}}, "llama_instances.live.model", "the key is missing"),
        ({"live": "tiny"}, "llama_instances.live", "a mapping"),
        ({"Live!": {"model": "tiny", "port": 1}}, "llama_instances.Live!", "lower-case"),
        (["live"], "llama_instances", "a mapping"),
    ],
)
def test_wrong_instance_is_named_by_its_path(wish: Any, key: str, words: str) -> None:
    instances, findings = check_instances(wish, ["tiny"])
    assert [finding["key"] for finding in findings] == [key]
    assert words in " ".join(map(str, findings[0].values()))
    assert "live" not in instances


@pytest.mark.parametrize(
    ("wish", "key", "words"),
    [
        ({"m": {}}, "gguf_models.m.source", "the key is missing"),
        ({"m": {"source": "tiny.gguf"}}, "gguf_models.m.source", "hf://"),
        ({"m": {**SOURCE, "sha256": "abc"}}, "gguf_models.m.sha256", "64"),
        ({"m": {**SOURCE, "sha": "abc"}}, "gguf_models.m.sha", "sha256"),
        ({"m": {**SOURCE, "aliases": "main"}}, "gguf_models.m.aliases", "a list"),
        ({"m": {**SOURCE, "file": "../up.gguf"}}, "gguf_models.m.file", "without a folder"),
        (
            {"m": {"source": "https://example.org/weights.bin"}},
            "gguf_models.m.file",
            "give the key",
        ),
        ({"a b": SOURCE}, "gguf_models.a b", "rename"),
        ({"m": "tiny.gguf"}, "gguf_models.m", "a mapping"),
        ("tiny.gguf", "gguf_models", "a mapping"),
    ],
)
def test_wrong_model_is_named_by_its_path(wish: Any, key: str, words: str) -> None:
    models, findings = check_models(wish)
    assert [finding["key"] for finding in findings] == [key]
    assert words in " ".join(map(str, findings[0].values()))
    assert models == {}


def test_port_taken_twice() -> None:
    wish = {
        "live": {"model": "tiny", "port": 8080},
        "code": {"model": "tiny", "port": 8080},
    }
    _, findings = check_instances(wish, ["tiny"])
    assert [finding["key"] for finding in findings] == ["llama_instances.code.port"]
    assert "llama_instances.live.port" in findings[0]["found"]


def test_file_and_name_taken_twice() -> None:
    other = {"source": "hf://another/tiny/tiny.gguf", "aliases": ["main", "a"]}
    _, findings = check_models({"a": {**SOURCE, "aliases": ["main"]}, "b": other})
    assert sorted(finding["key"] for finding in findings) == [
        "gguf_models.b.aliases",
        "gguf_models.b.aliases",
        "gguf_models.b.file",
    ]


def test_a_key_is_never_shown() -> None:
    _, short = check_instances(instance(api_key="canary-123"), ["tiny"])
    _, wrong = check_instances(instance(api_key=["canary-4567890123456"]), ["tiny"])
    assert short
    assert wrong
    assert "canary" not in str(short + wrong)


def test_everything_wrong_is_said_at_once() -> None:
    wish = {"live": {"model": "no", "port": 8080}, "code": {"modle": "tiny", "port": 99999}}
    _, findings = check_instances(wish, ["tiny"])
    assert {finding["key"] for finding in findings} == {
        "llama_instances.live.model",
        "llama_instances.code.modle",
        "llama_instances.code.port",
        "llama_instances.code.model",
    }


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"port": 8081}, "live.alternatives[0].port", "no such key"),
        ({"modle": "x"}, "live.alternatives[0].modle", "no such key"),
        ({"model": "other"}, "live.alternatives[0].model", "there is no model 'other'"),
        ({"gpus": "0"}, "live.alternatives[0].gpus", "'0'"),
        ({"extra": {"port": 1}}, "live.alternatives[0].extra.port", ""),
    ],
)
def test_faulty_alternative_is_named(change: dict[str, Any], key: str, said: str) -> None:
    wish = {"model": "tiny:1b", "port": 8080, "alternatives": [change]}
    instances, found = check_instances({"live": wish}, ["tiny:1b"])
    assert instances == {}
    assert [(item["key"], said in item["found"]) for item in found] == [
        (f"llama_instances.{key}", True)
    ]


def test_alternative_replaces_what_it_names() -> None:
    wish = {
        "model": "tiny:1b",
        "port": 8080,
        "gpus": [2],
        "alternatives": [{"gpus": [0], "context": 4096}, {"gpus": []}],
    }
    instances, found = check_instances({"live": wish}, ["tiny:1b"])
    assert found == []
    assert instances["live"]["alternatives"] == wish["alternatives"]


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ([0, "1", "GPU-3060"], True),
        ([], True),
        (["00"], False),
        (["-1"], False),
        (["64"], False),
        (["\u0663"], False),
        ([True], False),
        ("0", False),
    ],
)
def test_gpus_to_leave_alone(value: Any, right: bool) -> None:
    assert (check_settings({"gpu_lockout": value}) == []) is right
    if isinstance(value, list):
        reserves = dict.fromkeys(value, 100)
        assert (check_settings({"preflight_gpu_reserve_mib": reserves}) == []) is right
