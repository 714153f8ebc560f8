"""What clients bring is served by a router that looks for it: folders, names, and real answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kloros_llm.gateway.config import Instance, Listener, Model
from kloros_llm.gateway.engines.backends import LoadClock
from kloros_llm.gateway.engines.engine import Engine
from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.models.layers import MODEL, PROJECTOR, Layer
from kloros_llm.gateway.models.model_facts import ModelFacts
from kloros_llm.gateway.models.name_changes import delete
from kloros_llm.gateway.models.pulled_models import keep_folder, links_of, router_id
from testbed.stand_in_hub import StandInHub
from tests.llama_server import MODEL as REAL_MODEL
from tests.llama_server import needs_llama_server
from tests.stand_in_engine import StandInEngine
from tests.unit.gateway.gateway_process import GatewayProcess, free_ports
from tests.unit.gateway.models_lab import Client, Gateway, House, install
from tests.unit.gateway.test_model_pulls import tiny
from tests.unit.gateway.test_uploaded_models import make, small
from tests.wire.rig import llama_server, write_toml

REPOSITORY = "TestOwner/Tiny-GGUF"
NAME = f"hf.co/{REPOSITORY}:Q8_0"


def facts_of(*files: tuple[str, str]) -> ModelFacts:
    layers = tuple(Layer(kind, f"sha256:{file}", 1) for kind, file in files)
    return ModelFacts(layers=layers, paths=tuple(Path("/models", file) for _, file in files))


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): str(path.readlink()) for path in folder.glob("*/*")}


def test_links_have_names_that_llama_server_knows() -> None:
    alone = facts_of((MODEL, "mmproj-of-a-name.gguf"), (PROJECTOR, "eyes.gguf"))
    assert links_of(alone) == {
        "model.gguf": Path("/models/mmproj-of-a-name.gguf"),
        "mmproj.gguf": Path("/models/eyes.gguf"),
    }
    split = facts_of((MODEL, "a.gguf"), (MODEL, "b.gguf"))
    assert links_of(split) == {
        "model-00001-of-00002.gguf": Path("/models/a.gguf"),
        "model-00002-of-00002.gguf": Path("/models/b.gguf"),
    }


def test_other_content_has_another_id() -> None:
    model = Model("hf.co/Owner/Name:Q8_0", Path("/models/a.gguf"))
    one, other = (router_id(model, facts_of((MODEL, file))) for file in "ab")
    assert one != other
    assert one.startswith("hf.co-Owner-Name-Q8_0-")
    elsewhere = Model("x", Path("/models/b.gguf"))
    assert router_id(elsewhere, facts_of((MODEL, "a"))).rpartition("-")[2] not in one


def test_the_folder_follows_the_models(tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    one = {"model.gguf": Path("/models/a.gguf")}
    other = {"model.gguf": Path("/models/b.gguf"), "mmproj.gguf": Path("/models/c.gguf")}
    assert not keep_folder(folder, {})
    assert keep_folder(folder, {"one": one, "other": other})
    assert tree(folder) == {
        "one/model.gguf": "/models/a.gguf",
        "other/model.gguf": "/models/b.gguf",
        "other/mmproj.gguf": "/models/c.gguf",
    }
    assert not keep_folder(folder, {"one": one, "other": other})
    # What a gateway left that was stopped midway.
    (folder / ".unfinished/third").mkdir(parents=True)
    (folder / "one/more.gguf").symlink_to("/models/d.gguf")
    assert keep_folder(folder, {"one": one, "new": other})
    assert sorted(path.name for path in folder.iterdir()) == ["new", "one"]
    assert tree(folder) == {
        "one/model.gguf": "/models/a.gguf",
        "new/model.gguf": "/models/b.gguf",
        "new/mmproj.gguf": "/models/c.gguf",
    }


def test_what_is_not_the_gateways_stays_in_the_folder(tmp_path: Path) -> None:
    """A folder of models is what LLAMA_ARG_MODELS_DIR is for without a gateway."""
    for file in ("alone.gguf", "split/a-00001-of-00002.gguf", "mixed/model.gguf"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("weights")
    (tmp_path / "mixed/link.gguf").symlink_to("model.gguf")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/model.gguf").symlink_to("/models/a.gguf")
    (tmp_path / "elsewhere").symlink_to("old")
    assert keep_folder(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alone.gguf",
        "elsewhere",
        "mixed",
        "split",
    ]
    assert (tmp_path / "mixed/link.gguf").read_text() == "weights"
    assert not keep_folder(tmp_path, {})


# With a stand-in for the router


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "hub" / REPOSITORY
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(tiny("Q8_0"))
    with StandInHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def house(tmp_path: Path, hub: StandInHub) -> House:
    house = House.at(tmp_path)
    house.change(hf_endpoint=hub.url)
    return house


def run(house: House, use: Callable[[Client, StandInEngine], Awaitable[None]]) -> None:
    """Two listeners, of which the second has no router; "other:7b" is of the router's preset."""
    other = install(house.models_dir, "other.gguf", "other:7b", sha256="1" * 64)
    pulled = house.config.state_dir / "pulled"

    async def running() -> None:
        pulled.mkdir(parents=True)
        stand_in = StandInEngine(router_models=["other:7b"], models_dir=pulled)
        async with stand_in:
            live = house.config.instances["live"]
            swap = Instance("swap", stand_in.url, kind="router", pulled_models_dir=pulled)
            house.change(
                listeners=(
                    *house.config.listeners,
                    Listener("127.0.0.1", 11435, instances=("live",)),
                ),
                instances={"live": live, "swap": swap},
                models=dict(house.config.models)
                | {"other:7b": Model("other:7b", other, instances=("swap",))},
            )
            async with Gateway(house.config) as client:
                await asyncio.wait_for(use(client, stand_in), 60)

    asyncio.run(running())


async def pull(client: Client, name: str = NAME) -> None:
    answer = await client.post("/api/pull", {"model": name})
    assert answer.lines[-1] == {"status": "success"}, answer.body


async def answered(client: Client, name: str, **more: Any) -> str:
    """By what engine name a model of the first listener was asked."""
    gateway = client.gateway
    served = gateway.catalogue.find(gateway.config.listeners[0], name)

    async def ask(engine: Engine) -> str:
        assert await engine.tokenize("a word")
        return engine.model or ""

    return await gateway.backends.call(served, ask, loading=LoadClock(), **more)


async def loaded(client: Client) -> list[str]:
    return [one["name"] for one in (await client.get("/api/ps")).json["models"]]


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_what_is_pulled_is_served_at_once(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await answered(client, "other:7b")
        await pull(client)
        own = await answered(client, NAME)
        assert own.startswith("hf.co-TestOwner-Tiny-GGUF-Q8_0-")
        assert router.models == {"other:7b": "loaded", own: "loaded"}
        assert sorted(await loaded(client)) == [NAME, "other:7b"]
        # A name that means it is served too, and by the same.
        copied = {"source": NAME, "destination": "mine"}
        assert (await client.post("/api/copy", copied)).status == 200
        assert await answered(client, "mine") == own
        # It is listed where it is not served, as what clients brought always is.
        assert NAME in await client.names(listener=1)
        with pytest.raises(ApiError) as refused:
            client.gateway.catalogue.find(house.config.listeners[1], NAME)
        assert refused.value.status == 400
        # keep_alive, and an end.
        await answered(client, NAME, keep_alive_ns=0)
        await until(lambda: router.models[own] == "unloaded")
        await answered(client, NAME)
        served = client.gateway.catalogue.find(house.config.listeners[0], NAME)
        client.gateway.backends.unload(served)
        await until(lambda: router.models[own] == "unloaded")
        assert router.models["other:7b"] == "loaded"

    run(house, use)


def test_what_is_made_of_files_is_served_at_once(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await make(client, "mine", small())
        old = await answered(client, "mine")
        assert (await client.post("/api/create", {"model": "x", "from": "mine"})).status == 200
        assert await answered(client, "x") == old
        await make(client, "mine", small("other"))
        new = await answered(client, "mine")
        assert new != old
        assert router.models == {"other:7b": "unloaded", new: "loaded"}

    run(house, use)


def test_what_is_deleted_is_ended(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await pull(client)
        await answered(client, NAME)
        deleted = await client.ask("DELETE", "/api/delete", {"model": NAME})
        assert deleted.status == 200, deleted.body
        assert list(router.models) == ["other:7b"]
        assert NAME not in await client.names()
        assert not list(house.models_dir.glob("tiny*"))
        assert not list((house.config.state_dir / "pulled").iterdir())

    run(house, use)


def test_what_cannot_be_removed_stays_served(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await pull(client)
        own = await answered(client, NAME)
        (path,) = house.models_dir.glob("tiny*.gguf")
        with path.open("rb") as file:
            # As a server that has it open, and is none of the router's.
            mapped = await asyncio.create_subprocess_exec(
                "python3",
                "-c",
                "import mmap, time; m = mmap.mmap(0, 0, prot=mmap.PROT_READ); "
                "print(flush=True); time.sleep(600)",
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
            )
        try:
            assert mapped.stdout is not None
            await mapped.stdout.readline()
            deleted = await client.ask("DELETE", "/api/delete", {"model": NAME})
            assert deleted.status == 409, deleted.body
        finally:
            mapped.kill()
            await mapped.wait()
        assert router.models[own] == "unloaded"
        assert await answered(client, NAME) == own
        assert (await client.ask("DELETE", "/api/delete", {"model": NAME})).status == 200

    run(house, use)


def test_what_is_pulled_anew_is_loaded_anew(house: House, tmp_path: Path) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await pull(client)
        await answered(client, "other:7b")
        old = await answered(client, NAME)
        (tmp_path / "hub" / REPOSITORY / "tiny-Q8_0.gguf").write_bytes(tiny("newer"))
        await pull(client)
        new = await answered(client, NAME)
        assert new != old
        assert router.models == {"other:7b": "loaded", new: "loaded"}
        assert NAME in await loaded(client)

    run(house, use)


def test_a_router_that_was_away_reads_its_folder_when_it_is_back(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await until(lambda: router.reloads == 1)
        await router.stop()
        await pull(client)
        await router.start()
        assert await answered(client, NAME) in router.models
        # It would have read it anyway when it started; the gateway cannot know that.
        await until(lambda: router.reloads == 2)

    run(house, use)


def test_a_router_that_could_not_read_its_folder_is_asked_again(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await until(lambda: router.reloads == 1)
        router.loading = True
        await pull(client)
        router.loading = False
        assert await answered(client, NAME) in router.models
        assert router.reloads == 2

    run(house, use)


def test_who_asks_while_the_router_reads_its_folder_waits_for_that(
    house: House, tmp_path: Path
) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await until(lambda: router.reloads == 1)
        await pull(client)
        old = await answered(client, NAME)
        (tmp_path / "hub" / REPOSITORY / "tiny-Q8_0.gguf").write_bytes(tiny("newer"))
        router.reload_s = 0.5
        pulling = asyncio.create_task(pull(client))
        await until(lambda: router.reloads == 3)
        assert await answered(client, NAME) != old
        await pulling

    run(house, use)


def test_routers_hear_of_a_change_though_who_made_it_is_gone(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await until(lambda: router.reloads == 1)
        catalogue, pulled = client.gateway.catalogue, house.config.state_dir / "pulled"
        install(house.models_dir, "brought.gguf", "brought:1b", sha256="2" * 64)
        refreshing = asyncio.create_task(catalogue.refresh())
        while not catalogue._looking.locked():
            await asyncio.sleep(0)
        # Its thread changes the folder while this one keeps the loop from hearing of that.
        while not list(pulled.glob("brought-1b-*")):
            time.sleep(0.001)
        refreshing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await refreshing
        await until(lambda: router.reloads == 2)
        assert any(name.startswith("brought-1b-") for name in router.models)

    run(house, use)


def test_a_deletion_is_whole_though_the_client_is_gone(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await until(lambda: router.reloads == 1)
        await pull(client)
        catalogue, config = client.gateway.catalogue, client.gateway.config
        router.reload_s = 0.2
        deleting = asyncio.create_task(delete(catalogue, config.listeners[0], NAME))
        await until(lambda: router.reloads == 3)
        deleting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deleting
        async with catalogue.changing:
            assert NAME not in await client.names()
        assert catalogue.created(NAME) is None
        assert not list(house.models_dir.glob("tiny*"))

    run(house, use)


def test_a_loaded_model_is_told_of_by_a_name_that_means_it(house: House) -> None:
    async def use(client: Client, _: StandInEngine) -> None:
        await make(client, "mine", small())
        await answered(client, "mine")
        copied = {"source": "mine", "destination": "kept"}
        assert (await client.post("/api/copy", copied)).status == 200
        assert await loaded(client) == ["mine:latest"]
        assert (
            await client.post("/api/create", {"model": "mine", "from": "other:7b"})
        ).status == 200
        assert await loaded(client) == ["kept:latest"]

    run(house, use)


def test_what_does_not_load_is_an_error_that_names_it(house: House) -> None:
    async def use(client: Client, router: StandInEngine) -> None:
        await pull(client)
        router.fails_to_load = True
        with pytest.raises(Exception, match=f"could not load the model '{NAME}'"):
            await answered(client, NAME)
        router.fails_to_load = False
        shutil.rmtree(house.config.state_dir / "pulled")
        router._read_folder()
        with pytest.raises(Exception, match=f"does not know the model '{NAME}': it has not found"):
            await answered(client, NAME)

    run(house, use)


def test_who_asks_for_what_is_just_deleted_hears_the_name_that_he_knows(house: House) -> None:
    async def use(client: Client, _: StandInEngine) -> None:
        await pull(client)
        served = client.gateway.catalogue.find(house.config.listeners[0], NAME)

        async def ask(engine: Engine) -> list[int]:
            deleted = await client.ask("DELETE", "/api/delete", {"model": NAME})
            assert deleted.status == 200
            return await engine.tokenize("a word")

        with pytest.raises(ApiError) as refused:
            await client.gateway.backends.call(served, ask, loading=LoadClock())
        assert (refused.value.status, refused.value.text) == (404, f"model '{NAME}' not found")

    run(house, use)


def test_what_is_stale_goes_at_the_start(house: House) -> None:
    async def use(client: Client, _: StandInEngine) -> None:
        await pull(client)

    run(house, use)
    pulled = house.config.state_dir / "pulled"
    (own,) = pulled.iterdir()
    stale = pulled / "stale-0"
    stale.mkdir()
    (stale / "model.gguf").symlink_to("/models/gone.gguf")

    async def again(_: Client) -> None:
        assert sorted(pulled.iterdir()) == [own]

    house.run(again)


def test_a_folder_that_cannot_be_written_is_told_once(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(client: Client, _: StandInEngine) -> None:
        pulled = house.config.state_dir / "pulled"
        pulled.rmdir()
        pulled.write_text("no folder")
        await pull(client)
        await client.gateway.catalogue.refresh()
        told = [one for one in caplog.messages if "no links to pulled models" in one]
        assert len(told) == 1
        pulled.unlink()
        await until(lambda: any(pulled.glob("*/model.gguf")))

    run(house, use)


def test_without_such_a_router_nothing_changes(house: House) -> None:
    async def use(client: Client) -> None:
        await pull(client)
        with pytest.raises(ApiError, match="installed, but no instance serves it"):
            client.gateway.catalogue.find(house.config.listeners[0], NAME)

    house.run(use)
    assert not (house.config.state_dir / "pulled").exists()


# With a real one


def ask(method: str, url: str, body: Any) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method)  # noqa: S310 - its own address
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310 - its own address
            lines = answer.read().splitlines()
            return answer.status, json.loads(lines[-1]) if lines else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@needs_llama_server
def test_a_real_router_serves_what_is_pulled(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / REPOSITORY
    repository.mkdir(parents=True)
    shutil.copyfile(REAL_MODEL, repository / "small-Q4_1.gguf")
    # Whole by its header, and none that llama.cpp knows.
    (repository / "odd-Q8_0.gguf").write_bytes(tiny("odd"))
    pulled = tmp_path / "state/pulled"
    pulled.mkdir(parents=True)
    models = tmp_path / "models"
    models.mkdir()
    shutil.copyfile(REAL_MODEL, models / "small.gguf")
    preset = tmp_path / "models.ini"
    preset.write_text(
        "version = 1\n[*]\nc = 512\nnp = 1\nthreads = 1\n"
        f"[m0]\nalias = small:135m\nmodel = {models / 'small.gguf'}\n"
    )
    options = ("--models-preset", preset, "--models-dir", pulled, "--models-max", "2")
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with StandInHub(tmp_path / "hub") as hub, llama_server(tmp_path, *options) as router:
        config = write_toml(
            tmp_path / "gateway.toml",
            models_dir=str(models),
            state_dir=str(tmp_path / "state"),
            hf_endpoint=hub.url,
            listeners=[{"port": port}],
            instances={
                "swap": {
                    "url": router,
                    "kind": "router",
                    "context_tokens": 512,
                    "pulled_models_dir": str(pulled),
                }
            },
            models={"small:135m": {"path": str(models / "small.gguf"), "instances": ["swap"]}},
        )
        with GatewayProcess(config):
            _real(url, router, repository)
    assert not list(pulled.iterdir())


def _real(url: str, router: str, repository: Path) -> None:
    def chat(model: str) -> tuple[int, Any]:
        messages = [{"role": "user", "content": "Hi"}]
        options = {"num_predict": 4, "temperature": 0}
        body = {"model": model, "messages": messages, "options": options, "stream": False}
        return ask("POST", f"{url}/api/chat", body)

    def children() -> dict[str, str]:
        """Those that are loaded, and the port of each: another start has another."""
        with urllib.request.urlopen(f"{router}/models", timeout=60) as answer:  # noqa: S310
            listed = json.load(answer)["data"]
        return {
            one["id"]: one["status"]["args"][one["status"]["args"].index("--port") + 1]
            for one in listed
            if one["status"]["value"] == "loaded"
        }

    def names_in_memory() -> set[str]:
        status, told = ask("GET", f"{url}/api/ps", None)
        assert status == 200
        return {model["name"] for model in told["models"]}

    name = f"hf.co/{REPOSITORY}:Q4_1"
    status, answer = chat("small:135m")
    assert status == 200, answer
    before = children()
    assert list(before) == ["m0"]
    assert ask("POST", f"{url}/api/pull", {"model": name}) == (200, {"status": "success"})
    status, answer = chat(name)
    assert (status, answer.get("model")) == (200, name), answer
    assert answer["message"]["content"]
    assert names_in_memory() == {name, "small:135m"}
    # By OpenAI's API, and under another name.
    copied = {"source": name, "destination": "mine"}
    assert ask("POST", f"{url}/api/copy", copied) == (200, None)
    asked = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    status, answer = ask("POST", f"{url}/v1/chat/completions", asked)
    assert (status, answer.get("model")) == (200, "mine"), answer
    now = children()
    assert now["m0"] == before["m0"], "the other model was disturbed"
    assert len(now) == 2
    # Other content under the same name: the file with a byte more.
    path = repository / "small-Q4_1.gguf"
    with path.open("ab") as file:
        file.write(b"\0")
    assert ask("POST", f"{url}/api/pull", {"model": name}) == (200, {"status": "success"})
    assert children() == before
    status, answer = chat(name)
    assert status == 200, answer
    assert children().keys() != now.keys()
    # One that does not load says so, and goes.
    odd = f"hf.co/{REPOSITORY}:Q8_0"
    assert ask("POST", f"{url}/api/pull", {"model": odd}) == (200, {"status": "success"})
    status, answer = chat(odd)
    assert status == 500, answer
    assert odd in answer["error"] or "failed to load" in answer["error"]
    # One that is loaded goes too, though the store removes nothing that a process has open.
    status, answer = chat(name)
    assert status == 200, answer
    assert any("Q4_1" in one for one in children())
    for gone in (odd, "mine", name):
        assert ask("DELETE", f"{url}/api/delete", {"model": gone}) == (200, None)
    status, answer = chat(name)
    assert (status, answer) == (404, {"error": f"model '{name}' not found"})
    status, answer = chat("small:135m")
    assert status == 200, answer
