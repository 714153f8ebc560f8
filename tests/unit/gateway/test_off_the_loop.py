"""What takes long runs beside the event loop: the other requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from kloros_llm.gateway.errors import ApiError
from kloros_llm.gateway.front.request_bodies import parsed_body
from kloros_llm.gateway.generation.conversation import Conversation
from kloros_llm.gateway.generation.sources import TemplateSource
from kloros_llm.gateway.ollama_api.api_tools import Message

_T = TypeVar("_T")
_SQUARE = "{{ range .Messages }}{{ range $.Messages }}{{ .Role }}{{ end }}{{ end }}"


def turns_beside(work: Callable[[], Awaitable[_T]]) -> tuple[_T, int]:
    """What `work` returns, and how often the loop turned meanwhile."""

    async def main() -> tuple[_T, int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        try:
            return await work(), turns
        finally:
            turning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await turning

    return asyncio.run(main())


def conversation(count: int) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[n % 2], str(n)) for n in range(count)), (), None)


def test_a_template_that_takes_many_steps_is_rendered_beside() -> None:
    source = TemplateSource(_SQUARE, conversation(200))
    prompt, turns = turns_beside(source.prompt)
    assert prompt.text == ("user" + "assistant") * 100 * 200
    assert turns > 10
    prompt, turns = turns_beside(TemplateSource(_SQUARE, conversation(2)).prompt)
    assert prompt.text == "userassistant" * 2
    assert turns <= 1


def test_many_messages_are_rendered_beside() -> None:
    prompt, turns = turns_beside(TemplateSource("{{ len .Messages }}", conversation(2000)).prompt)
    assert prompt.text == "2000"
    assert turns > 10


@pytest.mark.parametrize(
    "template", ["{{ range 1000000000 }}x{{ end }}", "{{ index .Messages 9 }}"]
)
def test_a_template_that_cannot_be_rendered_is_told(template: str) -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(TemplateSource(template, conversation(2)).prompt())
    assert refused.value.status == 500


@pytest.mark.parametrize(("size", "beside"), [(100, False), (1 << 20, True)])
def test_a_large_body_is_parsed_beside(size: int, beside: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        length, thread = await parsed_body(request, lambda raw: (len(raw), threading.get_ident()))
        assert length == size
        return web.Response(text=str(thread != threading.get_ident()))

    async def main() -> str:
        application = web.Application(client_max_size=2 << 20)
        application.router.add_post("/", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            async with session.post(url, data=b"x" * size) as response:
                said = await response.text()
        await runner.cleanup()
        return said

    assert asyncio.run(main()) == str(beside)


def test_large_bodies_are_parsed_one_after_the_other() -> None:
    """More threads at once would share the interpreter, and the event loop would wait for each."""
    at_work, most = 0, 0

    def parse(raw: bytes) -> int:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.01)
        at_work -= 1
        return len(raw)

    async def main() -> list[int]:
        requests = [make_mocked_request("POST", "/") for _ in range(5)]
        for request in requests:
            request._read_bytes = bytes(1 << 20)
        return await asyncio.gather(*(parsed_body(request, parse) for request in requests))

    assert asyncio.run(main()) == [1 << 20] * 5
    assert most == 1
