"""pull: through the model store, from a stand-in Hub, in Ollama's words."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kloros_llm.core.model_files import read_record
from kloros_llm.gateway.config import Model
from kloros_llm.gateway.errors import ApiError
from testbed.stand_in_hub import StandInHub
from tests.unit.gateway.models_lab import Answer, Client, House, install
from tests.unit.gguf_maker import U32, GgufMaker

REPOSITORY = "TestOwner/Tiny-GGUF"
MIB = 1 << 20


def tiny(name: str, elements: int = 32) -> bytes:
    maker = GgufMaker()
    maker.string("general.architecture", "llama")
    maker.string("general.name", name)
    maker.number("general.file_type", U32, 2)
    maker.tensor("token_embd.weight", (elements,))
    return maker.file()


FILES = {
    "tiny-Q8_0.gguf": tiny("Q8_0"),
    "tiny-Q4_K_M.gguf": tiny("Q4_K_M", MIB),
    "tiny-IQ4_NL.gguf": tiny("IQ4_NL"),
    "README.md": b"x",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "hub" / REPOSITORY
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with StandInHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def house(tmp_path: Path, hub: StandInHub) -> House:
    house = House.at(tmp_path)
    house.change(hf_endpoint=hub.url)
    return house


def statuses(answer: Answer) -> list[str]:
    """The lines, each file's progress once."""
    told = [line.get("status", line.get("error")) for line in answer.lines]
    return [one for at, one in enumerate(told) if at == 0 or told[at - 1] != one]


async def pull(client: Client, model: str, **more: Any) -> Answer:
    return await client.post("/api/pull", {"model": model, **more})


def test_a_pull_is_told_as_ollama_tells_it(house: House, hub: StandInHub) -> None:
    content = FILES["tiny-Q4_K_M.gguf"]
    digest = hashlib.sha256(content).hexdigest()
    name = f"hf.co/{REPOSITORY}:Q4_K_M"

    async def use(client: Client) -> None:
        hub.faults.bytes_per_s = 8 * MIB
        answer = await pull(client, name)
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert statuses(answer) == [
            "pulling manifest",
            f"pulling {digest[:12]}",
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        progress = [line for line in answer.lines if "digest" in line]
        assert len(progress) > 2, "no progress on the way"
        assert {line["digest"] for line in progress} == {f"sha256:{digest}"}
        assert {line["total"] for line in progress} == {len(content)}
        done = [line.get("completed", 0) for line in progress]
        assert done == sorted(done)
        assert done[-1] == len(content)
        assert name in await client.names()
        assert read_record(house.models_dir / "tiny-Q4_K_M.gguf") is not None
        # Exchange 142: what is there is told in one line.
        again = await pull(client, name)
        assert [line for line in again.lines if "digest" in line] == [progress[-1]]
        alone = await pull(client, name, stream=False)
        assert (alone.status, alone.body) == (200, b'{"status":"success"}')
        shown = (await client.post("/api/show", {"model": name.lower()})).json
        assert shown["details"]["quantization_level"] == "Q4_0"
        deleted = await client.ask("DELETE", "/api/delete", {"model": name})
        assert deleted.status == 200, deleted.body

    house.run(use)
    assert not list(house.models_dir.glob("tiny*"))


@pytest.mark.parametrize("given", ["hf_canary", "hf_canary-wrong", ""])
def test_a_gated_model_is_asked_for_with_the_token(
    house: House, hub: StandInHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    """The Hub has it in a header, and nobody else is told it."""
    caplog.set_level("DEBUG")
    hub.token = "hf_canary"
    (tmp_path / "hub" / REPOSITORY / ".gated").touch()
    if given:
        (tmp_path / "hf_token").write_text(f"{given}\n")
        house.change(hf_token_file=tmp_path / "hf_token")

    async def use(client: Client) -> None:
        answers = [
            await pull(client, f"hf.co/{REPOSITORY}:Q8_0"),
            await pull(client, f"hf://{REPOSITORY}/tiny-IQ4_NL.gguf"),
        ]
        for answer in answers:
            assert ("success" in statuses(answer)) is (given == hub.token)
            assert b"canary" not in answer.body

    house.run(use)
    assert "canary" not in caplog.text
    assert len(list(house.models_dir.glob("tiny*.gguf"))) == (2 if given == hub.token else 0)
    assert all("canary" not in path.read_text() for path in house.models_dir.glob("*.json"))


def test_what_the_store_had_before_is_seen_by_who_pulls_it(house: House) -> None:
    name = f"hf.co/{REPOSITORY}:Q8_0"

    async def pulled(client: Client) -> None:
        assert name not in await client.names()
        answer = await pull(client, name)
        assert answer.lines[-1] == {"status": "success"}, answer.body
        assert name in await client.names()

    house.run(pulled)
    shutil.rmtree(house.config.state_dir)
    house.run(pulled)


def test_who_pulls_a_model_that_only_the_store_knows_sees_it(house: House, hub: StandInHub) -> None:
    path = install(house.models_dir, "spare.gguf", "spare:1b", sha256="2" * 64)

    async def use(client: Client) -> None:
        assert (await pull(client, "Spare:1b")).lines[-1] == {"status": "success"}
        assert "Spare:1b" in await client.names()
        listener = house.config.listeners[0]
        with pytest.raises(ApiError, match="installed, but no instance serves it") as refused:
            client.gateway.catalogue.find(listener, "spare:1b")
        assert refused.value.status == 400
        # It did not come by this API, and does not go by it.
        deleted = await client.ask("DELETE", "/api/delete", {"model": "spare:1b"})
        assert deleted.status == 200
        assert "Spare:1b" not in await client.names()

    house.run(use)
    assert path.exists()
    assert not hub.requests


def test_what_a_stopped_gateway_had_fetched_goes_with_its_name(house: House) -> None:
    name = f"hf.co/{REPOSITORY}:Q8_0"

    async def pulled(client: Client) -> None:
        assert (await pull(client, name)).lines[-1] == {"status": "success"}

    async def deleted(client: Client) -> None:
        await pulled(client)
        assert (await client.ask("DELETE", "/api/delete", {"model": name})).status == 200

    house.run(pulled)
    shutil.rmtree(house.config.state_dir)
    house.run(deleted)
    assert not list(house.models_dir.glob("tiny*"))


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (f"hf.co/{REPOSITORY}", "tiny-Q4_K_M.gguf"),
        (f"huggingface.co/{REPOSITORY}:q8_0", "tiny-Q8_0.gguf"),
        (f"hf.co/{REPOSITORY}:tiny-IQ4_NL.gguf", "tiny-IQ4_NL.gguf"),
        (f"hf://{REPOSITORY}/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
    ],
)
def test_names_of_the_hub(house: House, text: str, file: str) -> None:
    async def use(client: Client) -> list[str]:
        answer = await pull(client, text)
        assert answer.lines[-1] == {"status": "success"}, answer.body
        return await client.names()

    names = house.run(use)
    assert (house.models_dir / file).read_bytes() == FILES[file]
    assert [name for name in names if REPOSITORY in name]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nosuch:1b", "pull model manifest: file does not exist"),
        ("http://127.0.0.1:1/library/x:1b", "pull model manifest: file does not exist"),
        ("hf.co/TestOwner/Nothing", "pull model manifest: the repository TestOwner/Nothing does"),
        (f"hf.co/{REPOSITORY}:Q3_K", "pull model manifest: the repository TestOwner/Tiny-GGUF has"),
        (f"hf://{REPOSITORY}/../x", "pull model manifest: source 'hf://"),
    ],
)
def test_what_is_not_there_is_told_in_ollamas_words(house: House, text: str, error: str) -> None:
    async def use(client: Client) -> None:
        answer = await pull(client, text)
        assert answer.status == 200
        assert answer.lines[0] == {"status": "pulling manifest"}
        assert answer.error.startswith(error)
        alone = await pull(client, text, stream=False)
        assert (alone.status, alone.error) == (500, answer.error)

    house.run(use)


def test_files_of_this_host_are_never_pulled(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(tiny("secret"))

    async def use(client: Client) -> None:
        for text in (f"file:{secret}", f"file://{secret}", "..", "", "a b"):
            answer = await pull(client, text)
            assert answer.error.startswith(
                ("invalid model name", "pull model manifest: file does not exist: this server")
            ), text
        assert not list(house.models_dir.glob("secret*"))

    house.run(use)


def test_configured_names_come_from_their_source(house: House, hub: StandInHub) -> None:
    path = house.config.models["smollm2:135m"].path

    async def use(client: Client) -> None:
        # It is there: nothing is asked, and nothing need be written.
        house.models_dir.chmod(0o555)
        answer = await pull(client, "main")
        assert answer.lines[-1] == {"status": "success"}
        assert not hub.requests
        house.models_dir.chmod(0o755)
        path.unlink()
        path.with_name(path.name + ".json").unlink()
        answer = await pull(client, "smollm2:135m")
        assert "has no record of where it came from" in answer.error
        source = f"hf://{REPOSITORY}/tiny-Q8_0.gguf"
        _plan(house, "smollm2:135m", path, source)
        answer = await pull(client, "smollm2:135m")
        assert answer.lines[-1] == {"status": "success"}, answer.body
        assert path.read_bytes() == FILES["tiny-Q8_0.gguf"]
        deleted = await client.ask("DELETE", "/api/delete", {"model": "smollm2:135m"})
        assert deleted.status == 403

    house.run(use)


def test_a_configured_model_is_not_renewed_by_clients(house: House) -> None:
    source = f"hf://{REPOSITORY}/tiny-Q8_0.gguf@main"
    old = install(house.models_dir, "tiny-Q8_0.gguf", "tiny", sha256="4" * 64, source=source)
    inode = old.stat().st_ino
    tiny_model = Model("tiny", old, instances=("live",))
    house.change(models={**house.config.models, "tiny": tiny_model})

    async def use(client: Client) -> None:
        for text in (f"hf.co/{REPOSITORY}:Q8_0", f"hf://{REPOSITORY}/tiny-Q8_0.gguf", "tiny"):
            answer = await pull(client, text)
            assert answer.lines[-1] == {"status": "success"}, answer.body
        assert old.stat().st_ino == inode
        deleted = await client.ask("DELETE", "/api/delete", {"model": f"hf.co/{REPOSITORY}:Q8_0"})
        assert deleted.status == 200
        assert old.stat().st_ino == inode

    house.run(use)


def test_a_file_name_that_another_model_has_is_left_to_it(house: House) -> None:
    taken = install(house.models_dir, "tiny-Q8_0.gguf", "another", sha256="5" * 64)
    inode = taken.stat().st_ino

    async def use(client: Client) -> None:
        answer = await pull(client, f"hf.co/{REPOSITORY}:Q8_0")
        assert answer.lines[-1] == {"status": "success"}, answer.body

    house.run(use)
    assert taken.stat().st_ino == inode
    path = house.models_dir / "TestOwner_Tiny-GGUF_tiny-Q8_0.gguf"
    assert path.read_bytes() == FILES["tiny-Q8_0.gguf"]


def _plan(house: House, name: str, path: Path, source: str) -> None:
    plan = {
        "schema": 1,
        "models_dir": str(house.models_dir),
        "llama_cpp": {"dir": "/nowhere"},
        "models": [
            {
                "name": name,
                "source": source,
                "path": str(path),
                "aliases": [],
                "files": [{"file": path.name, "role": "model", "source": source, "sha256": None}],
            }
        ],
        "instances": [],
    }
    (house.config.state_dir / "plan.json").write_text(json.dumps(plan))


def test_two_pulls_of_one_model_are_one(house: House, hub: StandInHub) -> None:
    name = f"hf.co/{REPOSITORY}:Q4_K_M"
    hub.faults.bytes_per_s = 4 * MIB

    async def use(client: Client) -> None:
        first = asyncio.create_task(pull(client, name))
        await asyncio.sleep(0.3)
        second = asyncio.create_task(pull(client, name.upper().replace("HF.CO", "hf.co")))
        for answer in await asyncio.gather(first, second):
            assert answer.lines[0] == {"status": "pulling manifest"}
            assert answer.lines[-1] == {"status": "success"}

    house.run(use)
    # The store's connections may fetch a little twice, and not the whole.
    assert hub.bytes_served < 1.5 * len(FILES["tiny-Q4_K_M.gguf"])


def test_a_client_that_leaves_ends_no_pull_that_another_waits_for(
    house: House, hub: StandInHub
) -> None:
    name = f"hf.co/{REPOSITORY}:Q4_K_M"
    hub.faults.bytes_per_s = 4 * MIB

    async def leave(client: Client) -> None:
        url = f"{client.urls[0]}/api/pull"
        async with client.session.post(url, json={"model": name}) as response:
            await response.content.readline()
            response.close()

    async def use(client: Client) -> None:
        staying = asyncio.create_task(pull(client, name))
        await asyncio.sleep(0.2)
        await leave(client)
        answer = await staying
        assert answer.lines[-1] == {"status": "success"}
        assert hub.bytes_served < 1.5 * len(FILES["tiny-Q4_K_M.gguf"])

    house.run(use)


def test_a_pull_that_nobody_waits_for_ends_and_goes_on_later(house: House, hub: StandInHub) -> None:
    name = f"hf.co/{REPOSITORY}:Q4_K_M"
    size_bytes = len(FILES["tiny-Q4_K_M.gguf"])
    hub.faults.bytes_per_s = 2 * MIB

    async def use(client: Client) -> None:
        url = f"{client.urls[0]}/api/pull"
        async with client.session.post(url, json={"model": name}) as response:
            while True:
                line = json.loads(await response.content.readline())
                if line.get("completed", 0) > MIB // 2:
                    break
            response.close()
        while any(thread.name == "models" for thread in threading.enumerate()):
            await asyncio.sleep(0.05)
        served = -1
        while served != hub.bytes_served:
            served = hub.bytes_served
            await asyncio.sleep(0.3)
        assert served < size_bytes
        hub.faults.bytes_per_s = None
        answer = await pull(client, name)
        assert answer.lines[-1] == {"status": "success"}
        # The second brings what is missing; what was on its way at the end may come twice.
        assert hub.bytes_served < 2 * size_bytes

    house.run(use)
    assert (house.models_dir / "tiny-Q4_K_M.gguf").read_bytes() == FILES["tiny-Q4_K_M.gguf"]


def test_a_damaged_download_ends_in_an_error_line(house: House, hub: StandInHub) -> None:
    hub.faults.corrupt_at = 200

    async def use(client: Client) -> None:
        answer = await pull(client, f"hf.co/{REPOSITORY}:Q8_0")
        assert "sha256" in answer.error
        assert await client.names() == ["smollm2:135m", "main:latest"]

    house.run(use)
    assert not (house.models_dir / "tiny-Q8_0.gguf").exists()


def test_create_from_a_name_of_the_hub_pulls_it(house: House) -> None:
    async def use(client: Client) -> None:
        asked = {"model": "mine", "from": f"hf.co/{REPOSITORY}:Q8_0", "system": "s"}
        answer = await client.post("/api/create", asked)
        assert answer.lines[0] == {"status": "pulling manifest"}
        assert answer.lines[-1] == {"status": "success"}
        shown = (await client.post("/api/show", {"model": "mine"})).json
        assert shown["system"] == "s"
        assert shown["details"]["parent_model"] == f"hf.co/{REPOSITORY}:Q8_0"
        missing = await client.post("/api/create", {"model": "mine", "from": "nosuch"})
        assert missing.error.startswith("pull model manifest: file does not exist")

    house.run(use)


def test_push_answers_in_ollamas_form(house: House) -> None:
    async def use(client: Client) -> None:
        answer = await client.post("/api/push", {"model": "main"})
        assert answer.lines[0] == {"status": "retrieving manifest"}
        assert answer.error.startswith("account unavailable")
        answer = await client.post("/api/push", {"model": "nosuch", "stream": False})
        assert (answer.status, answer.error) == (404, "model 'nosuch' not found")
        assert (await client.post("/api/push", {})).status == 400

    house.run(use)
