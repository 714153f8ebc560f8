"""The openai package as it is. What the model says is its own affair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.llama_server import needs_llama_server
from tests.wire.house import HELLO, NO_EMBEDDINGS, STORY, TOOL, WEATHER, House
from tests.wire.rig import CHAT, EMBED, ENDLESS, ENDLESS_TOKENS

pytestmark = needs_llama_server


@pytest.fixture
def openai_client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_openai_lists(openai_client: openai.OpenAI) -> None:
    assert CHAT in [one.id for one in openai_client.models.list()]
    assert openai_client.models.retrieve(CHAT).owned_by == "library"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nosuch")


@pytest.mark.parametrize("model", [CHAT, "own"])
def test_openai_chats(openai_client: openai.OpenAI, model: str) -> None:
    chat = openai_client.chat.completions
    asked: Any = {"model": model, "messages": HELLO, "max_tokens": 8, "temperature": 0, "seed": 1}
    whole = chat.create(**asked)
    assert whole.choices[0].message.content
    assert whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(chat.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_openai_calls_tools(openai_client: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tools",
        "messages": [{"role": "user", "content": WEATHER}],
        "tools": [TOOL],
        "temperature": 0,
        "max_tokens": 60,
    }
    choice = openai_client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    # OpenAI's arguments are a text, Ollama's an object.
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )
    chunks = list(openai_client.chat.completions.create(**asked, stream=True))
    (called,) = [one.choices[0].delta.tool_calls[0] for one in chunks if _calls(one)]
    assert json.loads(called.function.arguments) == {"city": "Paris"}


def _calls(chunk: Any) -> bool:
    return bool(chunk.choices and chunk.choices[0].delta.tool_calls)


@pytest.mark.parametrize("model", [CHAT, "own"])
def test_openai_completes_and_responds(openai_client: openai.OpenAI, model: str) -> None:
    completion = openai_client.completions.create(
        model=model, prompt="The sea is", max_tokens=8, temperature=0
    )
    assert completion.choices[0].text
    response = openai_client.responses.create(
        model=model, input="Say hi", max_output_tokens=8, temperature=0
    )
    assert response.output_text
    events = [
        one.type
        for one in openai_client.responses.create(
            model=model, input="Say hi", max_output_tokens=8, temperature=0, stream=True
        )
    ]
    assert (events[0], events[-1]) == ("response.created", "response.completed")


@pytest.mark.parametrize("coding", ["float", "base64"])
def test_openai_embeds_or_is_refused(openai_client: openai.OpenAI, coding: Any) -> None:
    embeddings = openai_client.embeddings
    found = embeddings.create(model=EMBED, input=["a", "b"], encoding_format=coding)
    assert [one.index for one in found.data] == [0, 1]
    if coding == "float":
        assert len(found.data[0].embedding) == 576
    with pytest.raises(openai.APIStatusError) as caught:
        embeddings.create(model=CHAT, input="x")
    assert NO_EMBEDDINGS in caught.value.message


def test_openai_is_told_of_errors(openai_client: openai.OpenAI) -> None:
    messages: Any = HELLO
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(model="nosuch", messages=messages)
    assert caught.value.type == "not_found_error"
    assert "model 'nosuch' not found" in caught.value.message
    with pytest.raises(openai.BadRequestError):
        openai_client.chat.completions.create(model=CHAT, messages=[])


def test_openai_stops_listening(house: House, openai_client: openai.OpenAI) -> None:
    before = house.dropped()
    asked: Any = {
        "model": CHAT,
        "messages": [{"role": "user", "content": STORY}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "endless", "schema": ENDLESS},
        },
        "max_tokens": ENDLESS_TOKENS,
    }
    stream = openai_client.chat.completions.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    house.await_dropped(before)
