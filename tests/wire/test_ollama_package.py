"""The ollama package as it is. What the model says is its own affair."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama
import pytest

from tests.llama_server import needs_llama_server
from tests.wire.house import HELLO, LONG, NO_EMBEDDINGS, OPTIONS, STORY, WEATHER, House
from tests.wire.rig import CHAT, EMBED, ENDLESS, PULLED

pytestmark = needs_llama_server


@pytest.fixture
def client(house: House) -> ollama.Client:
    return ollama.Client(house.url)


def get_weather(city: str) -> str:
    """Get the weather for a city

    Args:
        city: its name
    """
    return f"sunny in {city}"


def test_ollama_lists_and_shows(client: ollama.Client) -> None:
    listed = {one.model: one for one in client.list().models}
    assert {CHAT, "main:latest", "own:latest", "tools:latest"} <= set(listed)
    details = listed[CHAT].details
    assert details is not None
    assert (details.family, details.quantization_level) == ("llama", "Q4_1")
    shown = client.show("tools")
    assert ".Tools" in (shown.template or "")
    assert "tools" in (shown.capabilities or [])
    assert (shown.modelinfo or {})["llama.context_length"] == 8192
    assert "own:latest" in {one.model for one in client.ps().models}


def test_ollama_generates(client: ollama.Client) -> None:
    whole = client.generate(CHAT, "Say hi", options=OPTIONS)
    pieces = list(client.generate(CHAT, "Say hi", options=OPTIONS, stream=True))
    assert whole.response
    assert "".join(one.response or "" for one in pieces) == whole.response
    assert [one.done for one in pieces] == [False] * (len(pieces) - 1) + [True]
    again = client.generate(CHAT, "And now?", context=whole.context, options=OPTIONS)
    assert (again.prompt_eval_count or 0) > (whole.prompt_eval_count or 0)


@pytest.mark.parametrize("model", [CHAT, "main", "own", "plain"])
def test_ollama_chats(client: ollama.Client, model: str) -> None:
    whole = client.chat(model, HELLO, options=OPTIONS)
    pieces = list(client.chat(model, HELLO, options=OPTIONS, stream=True))
    assert whole.message.content
    assert "".join(one.message.content or "" for one in pieces) == whole.message.content
    assert whole.eval_count
    assert whole.eval_count <= OPTIONS["num_predict"]


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_calls_tools(client: ollama.Client, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    options = {"temperature": 0, "num_predict": 60}
    asked: dict[str, Any] = {"messages": messages, "tools": [get_weather], "options": options}
    whole = client.chat("tools", **asked, stream=False)
    answers = list(client.chat("tools", **asked, stream=True)) if stream else [whole]
    calls = [call for one in answers for call in one.message.tool_calls or []]
    assert [(one.function.name, one.function.arguments) for one in calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    messages.append({"role": "tool", "content": get_weather("Paris"), "tool_name": "get_weather"})
    final = client.chat("tools", messages, tools=[get_weather], options=options)
    assert final.done


def test_ollama_thinks(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": "What is 4+4?"}]
    answer = client.chat("thinker", messages, think=True, options=LONG | {"num_predict": 40})
    assert answer.message.thinking
    assert "<think>" not in (answer.message.content or "")
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
        client.chat(CHAT, HELLO, think=True)
    assert caught.value.status_code == 400


def test_ollama_answers_in_a_form(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    answer = client.chat(
        CHAT, [{"role": "user", "content": "A city"}], format=schema, options={"temperature": 0}
    )
    assert list(json.loads(answer.message.content or "")) == ["city"]


def test_ollama_embeds_or_is_refused(client: ollama.Client) -> None:
    found = client.embed(EMBED, ["The sky is blue", "Das Meer ist ruhig"])
    assert [len(one) for one in found.embeddings] == [576, 576]
    assert len(client.embeddings(EMBED, "The sky is blue").embedding) == 576
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed(CHAT, "x")
    assert (caught.value.status_code, caught.value.error) == (501, NO_EMBEDDINGS)


def test_ollama_pulls_and_deletes(client: ollama.Client) -> None:
    told = list(client.pull(PULLED, stream=True))
    assert [told[0].status, told[-1].status] == ["pulling manifest", "success"]
    progress = [(one.completed or 0, one.total) for one in told if one.digest]
    assert progress == sorted(progress, key=lambda pair: pair[0])
    assert progress[-1][0] == progress[-1][1]
    assert client.pull(PULLED).status == "success"
    assert PULLED in {one.model for one in client.list().models}
    assert client.delete(PULLED).status == "success"
    assert PULLED not in {one.model for one in client.list().models}


@pytest.mark.parametrize(
    "model", ["http://127.0.0.1:15000/library/smollm2:135m", "nosuch:1b", "hf.co/No/Such:Q4_1"]
)
def test_ollama_pulls_nothing_else(client: ollama.Client, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match=r"pull model manifest|invalid model name"):
        list(client.pull(model, stream=True, insecure=True))


def test_ollama_copies_and_creates(client: ollama.Client) -> None:
    client.copy(CHAT, "me/copy:v1")
    made = list(client.create("brief", from_=CHAT, system="Be brief.", stream=True))
    assert made[-1].status == "success"
    assert "Be brief." in (client.show("brief").modelfile or "")
    assert client.chat("brief", HELLO, options=OPTIONS).message.content
    for name in ("me/copy:v1", "brief"):
        assert client.delete(name).status == "success"
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("brief")


def test_ollama_is_told_of_errors(client: ollama.Client) -> None:
    for ask in (lambda: client.chat("nosuch:1b", HELLO), lambda: client.generate("nosuch:1b", "x")):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 404
        assert caught.value.error == "model 'nosuch:1b' not found"


def test_ollama_stops_listening(house: House) -> None:
    before = house.dropped()
    stream: Any = ollama.Client(house.url).generate(
        CHAT, STORY, options=LONG, format=ENDLESS, stream=True
    )
    next(stream)
    stream.close()
    house.await_dropped(before)


def test_ollama_asynchronously(house: House) -> None:
    async def use() -> list[str]:
        client = ollama.AsyncClient(house.url)
        chats = [client.chat(CHAT, HELLO, options=OPTIONS) for _ in range(3)]
        whole = [one.message.content or "" for one in await asyncio.gather(*chats)]
        stream = await client.chat(CHAT, HELLO, options=OPTIONS, stream=True)
        return [*whole, "".join([one.message.content or "" async for one in stream])]

    assert all(asyncio.run(use()))
