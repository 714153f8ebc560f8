"""Uploads, and the models that are made of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.unit.gateway.models_lab import SHA256, Client, House, smollm2
from tests.unit.gguf_maker import GgufMaker


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.at(tmp_path)


def small(name: str = "small") -> bytes:
    """A model of some hundred bytes."""
    maker = smollm2()
    maker.data_bytes = 0
    maker.tensors.clear()
    maker.string("general.basename", name)
    maker.tensor("token_embd.weight", (32, 10))
    return maker.file()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def make(client: Client, name: str, *contents: bytes) -> None:
    """Upload what need be, and make a model of it, as Ollama's clients do."""
    for content in contents:
        path = f"/api/blobs/{digest_of(content)}"
        if (await client.ask("HEAD", path)).status == 404:
            assert (await client.post(path, content)).status == 201
    files = {f"{number}.gguf": digest_of(one) for number, one in enumerate(contents)}
    made = await client.post("/api/create", {"model": name, "files": files})
    assert made.lines[-1] == {"status": "success"}, made.body


def test_blobs_are_checked_as_recorded(house: House) -> None:
    hello = digest_of(b"hello")
    wrong = "sha256:" + "1" * 64

    async def use(client: Client) -> None:
        assert (await client.ask("HEAD", f"/api/blobs/{hello}")).status == 404
        # Exchange 100; Ollama keeps what came, under its own digest, as exchange 101 shows.
        answer = await client.post(f"/api/blobs/{wrong}", b"hello")
        assert answer.status == 400
        assert answer.error == f'digest mismatch, expected "{wrong}", got "{hello}"'
        answer = await client.post(f"/api/blobs/{hello}", b"hello")
        assert (answer.status, answer.body) == (200, b"")
        assert (await client.ask("HEAD", f"/api/blobs/{hello}")).status == 200
        assert (await client.ask("HEAD", f"/api/blobs/sha256:{SHA256}")).status == 200
        answer = await client.post("/api/blobs/sha256:12", b"hello")
        assert (answer.status, answer.error) == (400, "invalid digest format")
        answer = await client.post("/api/blobs/sha256:" + "ab" * 32, b"")
        assert answer.status == 400

    house.run(use)
    left = sorted(path.name for path in (house.config.state_dir / "blobs").iterdir())
    assert f"sha256-{hello[7:]}" in left
    assert not [name for name in left if name.startswith(".")]


def test_uploads_leave_the_disk_room(house: House) -> None:
    async def use(client: Client) -> None:
        client.gateway.catalogue.blobs._reserve_bytes = 1 << 60
        answer = await client.post("/api/blobs/sha256:" + "ab" * 32, b"hello")
        assert answer.status == 500
        assert answer.error.startswith("no space left on device: ")

    house.run(use)
    assert not list((house.config.state_dir / "blobs").iterdir())


def test_uploaded_gguf_becomes_a_model_and_goes_with_its_last_name(house: House) -> None:
    content = small()
    digest = digest_of(content)

    async def use(client: Client) -> None:
        asked = {"model": "mine", "files": {"mine.gguf": digest}, "system": "s"}
        missing = await client.post("/api/create", asked)
        assert (missing.status, missing.lines[0]) == (200, {"status": "parsing GGUF"})
        assert "blob not found for mine.gguf" in missing.error
        assert (await client.post(f"/api/blobs/{digest}", content)).status == 201
        made = await client.post("/api/create", asked)
        assert made.lines[-1] == {"status": "success"}
        assert made.lines[1] == {"status": f"using existing layer {digest}"}
        assert "mine:latest" in await client.names()
        derived = await client.post("/api/create", {"model": "second", "from": "mine"})
        assert derived.lines[-1] == {"status": "success"}
        # The upload is the model's now.
        assert not list((house.config.state_dir / "blobs").iterdir())
        for name, left in (("mine", True), ("second", False)):
            deleted = await client.ask("DELETE", "/api/delete", {"model": name})
            assert deleted.status == 200, deleted.body
            assert (house.models_dir / "mine-latest.gguf").exists() is left

    house.run(use)
    assert not (house.models_dir / "mine-latest.gguf.json").exists()


def test_the_file_of_a_configured_model_is_served_under_its_new_name(house: House) -> None:
    async def use(client: Client) -> None:
        files = {"m.gguf": f"sha256:{SHA256}"}
        asked = {"model": "mine", "files": files, "template": "{{ .Prompt }}"}
        made = await client.post("/api/create", asked)
        assert made.lines[-1] == {"status": "success"}, made.body
        served = client.gateway.catalogue.find(house.config.listeners[0], "mine")
        assert served.instances == ("live",)
        # The persona of the configuration belongs to its name, not to the file.
        assert (served.persona.template, served.persona.system) == ("{{ .Prompt }}", "")
        assert (await client.ask("DELETE", "/api/delete", {"model": "mine"})).status == 200

    house.run(use)
    assert [path.name for path in house.models_dir.glob("*.gguf")] == ["SmolLM2.gguf"]


def test_what_an_instance_uses_is_not_deleted(house: House) -> None:
    async def use(client: Client) -> None:
        await make(client, "mine", small())
        path = house.models_dir / "mine-latest.gguf"
        folder = house.config.state_dir / "instances"
        folder.mkdir()
        (folder / "spare.env").write_text(f'LLAMA_ARG_MODEL="{path}"\n')
        refused = await client.ask("DELETE", "/api/delete", {"model": "mine"})
        assert refused.status == 409
        assert "in use by instance spare" in refused.error
        assert path.exists()
        assert "mine:latest" in await client.names()

    house.run(use)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written_is_told(house: House) -> None:
    content = small()
    digest = digest_of(content)

    async def use(client: Client) -> None:
        await client.post(f"/api/blobs/{digest}", content)
        house.models_dir.chmod(0o555)
        made = await client.post("/api/create", {"model": "mine", "files": {"a.gguf": digest}})
        assert "permission denied: this server may not write" in made.error

    try:
        house.run(use)
    finally:
        house.models_dir.chmod(0o755)


def test_a_file_that_need_not_be_uploaded_can_be_used(house: House) -> None:
    maker = GgufMaker()
    maker.string("general.architecture", "clip")
    maker.tensor("v.weight", (32,))
    eyes = maker.file()

    async def use(client: Client) -> None:
        await make(client, "first", small("first"), eyes)
        # The projector is here by now, and is not sent again.
        await make(client, "second", small("second"), eyes)
        shown = (await client.post("/api/show", {"model": "second"})).json
        assert shown["capabilities"] == ["completion", "vision"]

    house.run(use)


def test_the_same_file_is_taken_again(house: House) -> None:
    maker = GgufMaker()
    maker.string("general.architecture", "clip")
    maker.tensor("v.weight", (32,))
    eyes = maker.file()

    async def use(client: Client) -> None:
        # A Modelfile was changed, and its file was not; then it got eyes, and lost them.
        for contents in ((small(),), (small(),), (small(), eyes), (small(), eyes), (small(),)):
            await make(client, "mine", *contents)
            shown = (await client.post("/api/show", {"model": "mine"})).json
            assert ("vision" in shown["capabilities"]) is (len(contents) == 2)
        # Another model of the same file, and another file for the same model.
        await make(client, "second", small())
        await make(client, "mine", small("other"))
        assert (house.models_dir / "second-latest.gguf").read_bytes() == small()
        assert (house.models_dir / "mine-latest.gguf").read_bytes() == small("other")
        for name in ("mine", "second"):
            assert (await client.ask("DELETE", "/api/delete", {"model": name})).status == 200

    house.run(use)
    assert [path.name for path in house.models_dir.glob("*.gguf")] == ["SmolLM2.gguf"]


def test_what_a_stopped_gateway_had_made_goes_with_its_name(house: House) -> None:
    async def made(client: Client) -> None:
        await make(client, "mine", small())

    async def deleted(client: Client) -> None:
        await make(client, "mine", small())
        assert (await client.ask("DELETE", "/api/delete", {"model": "mine"})).status == 200

    house.run(made)
    shutil.rmtree(house.config.state_dir / "personas")
    house.run(deleted)
    assert not (house.models_dir / "mine-latest.gguf").exists()


def test_a_long_name_has_a_file(house: House) -> None:
    name = f"{'h' * 300}.example/{'n' * 80}/{'m' * 80}:{'t' * 80}"

    async def use(client: Client) -> None:
        await make(client, name, small())
        assert name in await client.names()
        await make(client, f"{name[:-1]}u", small())
        for one in (name, f"{name[:-1]}u"):
            assert (await client.ask("DELETE", "/api/delete", {"model": one})).status == 200

    house.run(use)
    assert [path.name for path in house.models_dir.glob("*.gguf")] == ["SmolLM2.gguf"]


@pytest.mark.parametrize("way", ["copy", "create"])
def test_a_name_that_comes_to_mean_another_model_leaves_none_behind(house: House, way: str) -> None:
    async def use(client: Client) -> None:
        await make(client, "mine", small())
        copied = await client.post("/api/copy", {"source": "mine", "destination": "yours"})
        assert copied.status == 200
        for name, left in (("mine", True), ("yours", False)):
            body = {"source": "main", "destination": name}
            if way == "create":
                body = {"model": name, "from": "main"}
            assert (await client.post(f"/api/{way}", body)).status == 200
            assert (house.models_dir / "mine-latest.gguf").exists() is left
        assert {"mine:latest", "yours:latest"} <= set(await client.names())

    house.run(use)
