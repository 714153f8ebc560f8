"""What clients created, as it lies on the disk: damaged, out of date, without room, much."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kloros_llm.gateway.config import Instance, Listener, Model, PersonaSettings
from kloros_llm.gateway.models.capabilities import template_capabilities
from tests.unit.gateway.models_lab import TEMPLATE, Client, House

KEPT = ["smollm2:135m", "main:latest"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.at(tmp_path)


def record(house: House) -> Path:
    """The only one that there is."""
    (found,) = (house.config.state_dir / "personas").glob("*.json")
    return found


async def create(client: Client) -> None:
    asked = {"model": "mine", "from": "main", "parameters": {"temperature": 0.1}}
    messages = [{"role": "user", "content": "hi"}]
    made = await client.post("/api/create", asked | {"messages": messages})
    assert made.lines[-1] == {"status": "success"}, made.body


async def look(client: Client) -> None:
    assert await client.names() == KEPT


def test_broken_records_hide_nothing_else(house: House) -> None:
    folder = house.config.state_dir / "personas"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text(json.dumps({"schema": 1, "key": 3}))
    (house.models_dir / "damaged.gguf").write_bytes(b"GGUF")

    (folder / "c.json").write_text("[" * 100_000)
    (folder / "d.json").write_bytes(b"\xff\x00")
    (folder / "e.json").mkdir()
    house.run(look)


def _text_of(kind: str, text: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for layer in data["layers"]:
            if layer["type"].endswith(kind):
                layer["text"] = text

    return change


@pytest.mark.parametrize(
    "change",
    [
        _text_of("params", "{"),
        _text_of("messages", "nonsense"),
        lambda data: data.update(name="a b"),
        lambda data: data.update(key="../../x"),
        lambda data: data.update(layers=[5]),
        lambda data: data.update(adapters=5),
        lambda data: data.update(modified_at="yesterday"),
        lambda data: data.update(instances="live"),
    ],
)
def test_a_record_that_says_nonsense_is_left_alone(
    house: House, change: Callable[[dict[str, Any]], None]
) -> None:
    house.run(create)
    path = record(house)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    house.run(look)
    assert json.loads(path.read_text()) == data


@pytest.mark.parametrize(
    ("adapters", "instances"), [((), ("live",)), ((Path("/nowhere/mario.gguf"),), ())]
)
def test_instances_that_the_inventory_has_lost_are_not_asked(
    house: House, adapters: tuple[Path, ...], instances: tuple[str, ...]
) -> None:
    config = house.config
    coder = PersonaSettings("coder", "smollm2:135m", adapters=adapters, instances=("code",))
    house.change(
        listeners=(Listener("127.0.0.1", 11434),),
        instances={**config.instances, "code": Instance("code", "http://127.0.0.1:9")},
        personas={"coder": coder},
    )

    async def copy(client: Client) -> None:
        body = {"source": "coder", "destination": "mine"}
        assert (await client.post("/api/copy", body)).status == 200
        catalogue = client.gateway.catalogue
        assert catalogue.find(house.config.listeners[0], "mine").instances == ("code",)

    async def see(client: Client) -> None:
        catalogue = client.gateway.catalogue
        # Adapters are loaded by certain instances only.
        assert catalogue.named(house.config.listeners[0], "mine").instances == instances

    house.run(copy)
    house.change(instances=config.instances, personas={})
    house.run(see)


def test_a_disk_without_room_is_told_and_changes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def use(client: Client) -> None:
        await create(client)
        before = record(house).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            asked = {"model": "mine", "from": "main", "system": "Another."}
            answer = await client.post("/api/create", asked)
            assert (answer.status, answer.error) == (500, "no space left on device")
        assert record(house).read_bytes() == before
        assert [path.suffix for path in record(house).parent.iterdir()] == [".json"]
        assert "system" in (await client.post("/api/show", {"model": "mine"})).json

    house.run(use)


def test_templates_are_read_once_however_many_names_there_are(house: House) -> None:
    count = 40

    async def use(client: Client) -> None:
        template_capabilities.cache_clear()
        for number in range(count):
            asked = {"model": f"m{number}", "from": "main", "template": f"{TEMPLATE}{number}"}
            made = await client.post("/api/create", asked)
            assert made.lines[-1] == {"status": "success"}
        # And that of gateway.toml.
        assert template_capabilities.cache_info().misses == count + 1

    house.run(use)


def test_a_model_that_has_gone_comes_back_with_its_names(house: House) -> None:
    models = house.config.models
    model = models["smollm2:135m"]
    renamed = Model("renamed", model.path, instances=("live",))
    house.run(create)
    house.change(models={"renamed": renamed}, personas={})

    async def gone(client: Client) -> None:
        assert await client.names() == ["renamed:latest"]
        missing = await client.ask("DELETE", "/api/delete", {"model": "mine"})
        assert missing.status == 404

    house.run(gone)
    house.change(models={"renamed": replace(renamed, aliases=("smollm2:135m",))})

    async def back(client: Client) -> None:
        assert "mine:latest" in await client.names()

    house.run(back)
