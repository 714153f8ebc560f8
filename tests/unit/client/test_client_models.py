"""ModelManager over the store, with a stand-in for the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kloros_llm import LlmError, ModelError, ModelManager
from testbed.stand_in_hub import StandInHub
from tests.unit.modelctl_host import ModelctlHost, write_model

SOURCE = "hf://acme/tiny-GGUF/tiny.gguf"


@pytest.fixture
def host(tmp_path: Path) -> ModelctlHost:
    return ModelctlHost(tmp_path / "host")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    write_model(tmp_path / "hub/acme/tiny-GGUF/tiny.gguf", megabytes=3)
    write_model(tmp_path / "hub/acme/gated-GGUF/gated.gguf")
    (tmp_path / "hub/acme/gated-GGUF/.gated").touch()
    with StandInHub(tmp_path / "hub", token="hf_right") as running:
        yield running


def manager(host: ModelctlHost, hub: StandInHub | None = None, **more: object) -> ModelManager:
    endpoint = hub.url if hub else None
    return ModelManager(host.models, hf_endpoint=endpoint, **more)  # type: ignore[arg-type]


def test_a_planned_model_is_fetched_when_its_path_is_asked_for(
    host: ModelctlHost, hub: StandInHub
) -> None:
    host.write_plan(
        models=[host.planned_model("tiny:1b", SOURCE, "main")], models_hf_endpoint=hub.url
    )
    models = ModelManager(plan=host.plan)
    assert models.model_dir == host.models
    assert models.get_model_path("tiny:1b", download=False) is None
    path = models.get_model_path("main")
    assert path == host.models / "tiny.gguf"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (model,) = models.list_models()
    assert (model["name"], model["aliases"], model["verified"]) == ("tiny:1b", ["main"], True)
    assert model["size_bytes"] == path.stat().st_size
    assert sha256.startswith(model["version"])
    asked = len(hub.requests)
    assert models.get_model_path("tiny:1b") == path
    assert models.get_model_path(f"main@{model['version']}") == path
    assert len(hub.requests) == asked


def test_a_source_is_fetched_with_progress(host: ModelctlHost, hub: StandInHub) -> None:
    told: list[tuple[str, int, int | None]] = []
    models = manager(host, hub, on_progress=lambda *one: told.append(one))
    assert models.download_model(SOURCE, name="mine", file="mine.gguf")
    path = models.get_model_path("mine")
    assert path == host.models / "mine.gguf"
    size = path.stat().st_size
    assert any(done == total == size for _, done, total in told)
    assert len(told) < 30
    assert models.download_model(SOURCE, name="mine", file="mine.gguf")
    assert host.run("list", "--json").json["models"] == models.list_models()


def test_a_directory_that_is_not_there_is_made_for_a_download(
    host: ModelctlHost, hub: StandInHub
) -> None:
    models = ModelManager(host.root / "new", hf_endpoint=hub.url)
    assert models.list_models() == []
    assert models.get_model_path("tiny") is None
    assert models.get_model_path(SOURCE) == host.root / "new/tiny.gguf"


def test_what_nobody_knows_has_no_path_and_cannot_be_fetched(
    host: ModelctlHost, hub: StandInHub
) -> None:
    models = manager(host, hub)
    assert models.get_model_path("nobody") is None
    with pytest.raises(ModelError, match="'nobody' is neither a source"):
        models.download_model("nobody")
    with pytest.raises(ModelError, match=r"nothing\.gguf"):
        models.get_model_path("hf://acme/tiny-GGUF/nothing.gguf")
    with pytest.raises(ModelError, match="64 hexadecimal digits"):
        models.download_model(SOURCE, sha256="12")
    with pytest.raises(LlmError, match="sha256"):
        models.download_model(SOURCE, sha256="0" * 64)
    assert list(host.models.glob("*.gguf")) == []


def test_another_models_file_is_not_replaced(host: ModelctlHost, hub: StandInHub) -> None:
    models = manager(host, hub)
    write_model(host.root / "else/tiny.gguf", seed=1)
    assert models.download_model(f"file:{host.root}/else/tiny.gguf", name="first")
    with pytest.raises(ModelError, match="is model 'first' from"):
        models.download_model(SOURCE)


def test_a_token_opens_what_is_gated(host: ModelctlHost, hub: StandInHub) -> None:
    source = "hf://acme/gated-GGUF/gated.gguf"
    with pytest.raises(ModelError):
        manager(host, hub).download_model(source)
    assert manager(host, hub, hf_token="hf_right").download_model(source)


def test_several_threads_want_the_same_model(host: ModelctlHost, hub: StandInHub) -> None:
    models = manager(host, hub)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(models.get_model_path, [SOURCE] * 4))
    assert paths == {host.models / "tiny.gguf"}
    assert models.list_models()[0]["verified"]
