"""modelctl fit: numbers a device, the verdict, and whose word counts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from testbed.stand_in_hub import StandInHub
from tests.unit.modelctl_host import ROOT, ModelctlHost, write_model

LARGE = "hf://acme/large-GGUF/large.gguf"
MIB = 2**20
# 24 MiB of embeddings, which are the output too; 2 layers of 2 KV heads of 16 elements.
WEIGHTS_MIB = 24
KV_BYTES_A_TOKEN = 2 * 2 * (2 * 16) * 2

# Logs as llama-server does when it is asked to fit, and writes down what it was asked with.
_ENGINE = """#!/bin/bash
env > "{asked}"
(($(stat -c %s "$LLAMA_ARG_MODEL") > 24 * 1024 * 1024)) || exit 3
cat <<'END'
{said}
END
"""


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    write_model(tmp_path / "hub/acme/large-GGUF/large.gguf", megabytes=WEIGHTS_MIB)
    with StandInHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "large.gguf"
    write_model(path, megabytes=WEIGHTS_MIB)
    return path


@pytest.fixture
def host_of_all() -> Iterator[ModelctlHost]:
    """A host that everybody can enter: where root asks, the engine runs as nobody."""
    with tempfile.TemporaryDirectory(prefix="modelctl-") as folder:
        Path(folder).chmod(0o755)
        host = ModelctlHost(Path(folder, "host"))
        host.write_plan()
        yield host


def engine(
    host: ModelctlHost, *rows: dict[str, Any], refusal: str = "unknown architecture"
) -> Path:
    """A llama-server that says these rows; none: it refuses."""
    folder = host.releases / "current/bin"
    folder.mkdir(parents=True)
    asked = host.root / "asked"
    asked.touch()
    asked.chmod(0o666)
    said: list[dict[str, Any]] = [
        {"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": rows}},
        {"type": "log", "level": "info", "msg": "projected to use 1 MiB"},
    ]
    if not rows:
        words = (refusal, "error while trying to fit params")
        said = [{"type": "log", "level": "error", "msg": word} for word in words]
    lines = "\n".join(json.dumps(line) for line in said)
    host.add_program("llama-server", _ENGINE.format(asked=asked, said=lines))
    return (host.bin / "llama-server").rename(folder / "llama-server")


def asked_with(host: ModelctlHost) -> dict[str, str]:
    lines = (host.root / "asked").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def row(kind: str, name: str, *numbers: int) -> dict[str, Any]:
    named = zip(("model", "context", "compute", "total", "free"), numbers, strict=False)
    return {"kind": kind, "name": name, **dict(named)}


def test_on_the_host_alone(host: ModelctlHost, model: Path) -> None:
    ran = host.run(
        *("fit", model, "--context", 4096, "--parallel", 2, "--kv-cache", "f16", "--json")
    )
    assert ran.code == 0, ran.err
    data = ran.json
    assert (data["fits"], data["by"], data["engine"]) == (True, "formulas", None)
    (device,) = data["devices"]
    assert device["name"] == "Host"
    assert device["weights_mib"] == WEIGHTS_MIB
    assert device["kv_mib"] == 2 * 4096 * KV_BYTES_A_TOKEN // MIB
    assert device["compute_mib"] > 0
    assert device["total_mib"] == sum(
        device[part] for part in ("weights_mib", "kv_mib", "compute_mib", "overhead_mib")
    )
    assert 0 < device["free_mib"] <= device["memory_mib"]
    assert data["settings"] == {
        "context_tokens": 4096,
        "parallel": 2,
        "kv_cache": "f16",
        "gpu_layers": None,
        "cpu_moe_layers": 0,
    }
    assert not device["approximate"]
    assert "RoPE" in data["notes"][0]  # trained for 2048 tokens


def test_an_estimate_is_called_one(host: ModelctlHost, tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    writer = gguf.GGUFWriter(path, "brand-new")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_context_length(2048)
    writer.add_tensor("token_embd.weight", np.zeros((256, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ran = host.run("fit", path, "--json")
    assert ran.code == 0, ran.err
    assert [device["approximate"] for device in ran.json["devices"]] == [True]
    note = "the formulas only estimate a model such as this (brand-new)"
    assert any(note in text for text in ran.json["notes"])
    assert note in host.run("fit", path).err


def test_the_kv_cache_type_and_the_trained_context(host: ModelctlHost, model: Path) -> None:
    ran = host.run("fit", model, "--parallel", 16, "--kv-cache", "q8_0", "--json")
    (device,) = ran.json["devices"]
    assert ran.json["settings"]["context_tokens"] == 2048
    assert device["kv_mib"] == 16 * 2048 * KV_BYTES_A_TOKEN // 2 * 34 // 32 // MIB


def test_a_source_is_not_downloaded(host: ModelctlHost, hub: StandInHub) -> None:
    ran = host.run("fit", LARGE, "--context", 1024, "--json", HF_ENDPOINT=hub.url)
    assert ran.code == 0, ran.err
    assert ran.json["devices"][0]["weights_mib"] == WEIGHTS_MIB
    assert ran.json["model"]["size_bytes"] == (
        (hub.store.root / "acme/large-GGUF/large.gguf").stat().st_size
    )
    assert len([request for request in hub.requests if request.listener == "cdn"]) == 1
    assert list(host.models.iterdir()) == []


def test_what_belongs_to_a_model_is_named_as_not_counted(
    host: ModelctlHost, model: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "eye.gguf")
    pulled = host.run("pull", f"file:{model}", "--mmproj", f"file:{tmp_path}/eye.gguf")
    assert pulled.code == 0, pulled.err
    (note,) = host.run("fit", "large", "--json").json["notes"]
    assert note == "not counted: large.mmproj.gguf, which belongs to the model (mmproj)"


def test_imagined_gpus(host: ModelctlHost, model: Path) -> None:
    words = ("fit", model, "--context", 2048, "--json")
    fitting = host.run(*words, "--gpu", 800, "--gpu", 800)
    assert fitting.code == 0, fitting.err
    names = [device["name"] for device in fitting.json["devices"]]
    assert names == ["CUDA0", "CUDA1", "Host"]
    assert fitting.json["devices"][0]["overhead_mib"] > 0
    needed = host.run(*words, "--gpu", 9000).json["devices"][0]["total_mib"]
    assert host.run(*words, "--gpu", needed).code == 0
    ran = host.run(*words, "--gpu", needed - 1)
    assert (ran.code, ran.json["fits"]) == (5, False)
    assert [device["fits"] for device in ran.json["devices"]] == [False, True]
    assert ran.json["ways_out"][0].startswith("It would fit with ")
    assert "DOES NOT FIT" in host.run(*words[:-1], "--gpu", needed - 1).out


def test_what_would_fit_instead(host: ModelctlHost, model: Path) -> None:
    ran = host.run("fit", model, "--context", 1048576, "--parallel", 2, "--gpu", 900, "--json")
    assert ran.code == 5
    ways = " ".join(ran.json["ways_out"])
    assert "a context of" in ways
    tokens = int(ways.partition("a context of ")[2].split()[0])
    again = ("fit", model, "--parallel", 2, "--gpu", 900, "--json", "--context")
    assert host.run(*again, tokens).code == 0
    assert host.run(*again, tokens + 256).code == 5


def test_the_gpus_of_the_host(host: ModelctlHost, model: Path) -> None:
    kloros = json.loads((ROOT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8"))
    host.have_gpus(kloros)
    data = host.run("fit", model, "--json").json
    assert [device["title"] for device in data["devices"]] == [
        "GPU 0: NVIDIA GeForce RTX 3060",
        "GPU 1: NVIDIA GeForce GTX 1080 Ti",
        "main memory",
    ]
    assert data["devices"][0]["free_mib"] == 12288 - 421
    second = host.run("fit", model, "--gpus", "1", "--json").json
    assert [device["uuid"] for device in second["devices"]] == [kloros["gpus"][1]["uuid"], None]
    on_cpu = host.run("fit", model, "--cpu", "--json").json
    assert [device["name"] for device in on_cpu["devices"]] == ["Host"]
    assert host.run("fit", model, "--gpus", "2").code == 3
    assert host.run("fit", model, "--gpus", ",").code == 2
    assert host.run("fit", model, "--gpus", "0", "--cpu").code == 2


def test_the_engine_has_the_last_word(host_of_all: ModelctlHost, model: Path) -> None:
    host = host_of_all
    server = engine(host, row("host", "Host", 25, 3, 70))
    words = ("fit", model, "--context", 2048, "--parallel", 2, "--kv-cache", "q8_0", "--cpu")
    ran = host.run(*words, "--json")
    assert ran.code == 0, ran.err
    data = ran.json
    (device,) = data["devices"]
    assert (device["weights_mib"], device["kv_mib"], device["compute_mib"]) == (25, 3, 70)
    assert (data["by"], data["engine"]["server"]) == ("engine", str(server))
    assert data["formulas"][0]["weights_mib"] == WEIGHTS_MIB
    asked = asked_with(host)
    assert {
        "LLAMA_ARG_CTX_SIZE": "4096",
        "LLAMA_ARG_N_PARALLEL": "2",
        "LLAMA_ARG_CACHE_TYPE_K": "q8_0",
        "LLAMA_ARG_CACHE_TYPE_V": "q8_0",
        "LLAMA_ARG_DEVICE": "none",
    }.items() <= asked.items()
    text = host.run(*words).out
    assert f"counted by  {server}" in text
    assert "The engine's numbers against the formulas': Host +" in text
    assert host.run(*words, "--no-engine", "--json").json["by"] == "formulas"


def test_the_engine_on_gpus_and_a_source(host_of_all: ModelctlHost, hub: StandInHub) -> None:
    host = host_of_all
    kloros = json.loads((ROOT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8"))
    host.have_gpus(kloros)
    engine(
        host,
        row("device", "CUDA0", 20, 2, 9, 12288, 11867),
        row("host", "Host", 4, 0, 1),
    )
    words = ("fit", LARGE, "--gpus", "0", "--context", 1024, "--gpu-layers", 2, "--json")
    ran = host.run(*words, HF_ENDPOINT=hub.url)
    assert ran.code == 0, ran.err
    assert [one["weights_mib"] for one in ran.json["devices"]] == [20, 4]
    asked = asked_with(host)
    assert asked["CUDA_VISIBLE_DEVICES"] == kloros["gpus"][0]["uuid"]
    assert (asked["LLAMA_ARG_DEVICE"], asked["LLAMA_ARG_N_GPU_LAYERS"]) == ("CUDA0", "2")
    imagined = host.run("fit", LARGE, "--gpu", 9000, "--json", HF_ENDPOINT=hub.url)
    assert (imagined.json["by"], "cannot imagine a GPU" in imagined.err) == ("formulas", True)


def test_an_engine_that_refuses_the_model(host_of_all: ModelctlHost, model: Path) -> None:
    host = host_of_all
    server = engine(host)
    ran = host.run("fit", model, "--cpu")
    assert (ran.code, ran.out) == (1, "")
    assert f"{server} would not load this" in ran.err
    assert "unknown architecture" in ran.err


def test_an_engine_without_the_hosts_gpus(host_of_all: ModelctlHost, model: Path) -> None:
    host = host_of_all
    kloros = (ROOT / "testbed/data/nvidia_smi_kloros.json").read_text(encoding="utf-8")
    host.have_gpus(json.loads(kloros))
    engine(host, refusal="invalid device: CUDA0")
    ran = host.run("fit", model, "--json")
    assert (ran.code, ran.json["by"]) == (0, "formulas")
    assert "it knows no CUDA0, CUDA1" in ran.json["engine"]["error"]


def test_an_engine_that_tells_nothing(host: ModelctlHost, model: Path, tmp_path: Path) -> None:
    silent = tmp_path / "llama-server"
    silent.write_text("#!/bin/sh\n", encoding="utf-8")
    silent.chmod(0o755)
    ran = host.run("fit", model, "--cpu", "--server", silent, "--json")
    assert (ran.code, ran.json["by"]) == (0, "formulas")
    assert "gave no answer, so these are the formulas" in " ".join(ran.json["notes"])
    assert host.run("fit", model, "--server", tmp_path / "none").code == 3


@pytest.mark.parametrize(
    "words", [["--context", "0"], ["--parallel", "x"], ["--kv-cache", "q3_0"], ["--cpu", "--gpu"]]
)
def test_wrong_numbers(host: ModelctlHost, model: Path, words: list[str]) -> None:
    ran = host.run("fit", model, *words)
    assert (ran.code, ran.out) == (2, "")


def test_what_cannot_be_fitted(host: ModelctlHost, tmp_path: Path) -> None:
    assert host.run("fit", "nobody").code == 3
    (tmp_path / "page.gguf").write_text("<html>")
    assert host.run("fit", tmp_path / "page.gguf").code == 7
