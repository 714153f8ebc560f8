"""requests, httpx, urllib and curl, as scripts and callers use them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from typing import Any

import httpx
import pytest
import requests

from tests.llama_server import needs_llama_server
from tests.wire.house import HELLO, LONG, OPTIONS, STORY, House
from tests.wire.rig import CHAT, ENDLESS

pytestmark = needs_llama_server


def generation(**more: Any) -> dict[str, Any]:
    return {"model": CHAT, "prompt": "Say hi", "options": OPTIONS} | more


def endless(**more: Any) -> dict[str, Any]:
    return generation(prompt=STORY, options=LONG, format=ENDLESS, **more)


def test_requests_reads_lines(house: House) -> None:
    with requests.Session() as session:
        with session.post(f"{house.url}/api/generate", json=generation(), stream=True) as answer:
            lines = [json.loads(line) for line in answer.iter_lines() if line]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        whole = session.post(f"{house.url}/api/generate", json=generation(stream=False)).json()
        assert whole["response"] == "".join(line["response"] for line in lines)
        missing = session.post(f"{house.url}/api/generate", json=generation(model="nosuch"))
        assert (missing.status_code, missing.json()) == (
            404,
            {"error": "model 'nosuch' not found"},
        )
        names = [one["name"] for one in session.get(f"{house.url}/api/tags").json()["models"]]
        assert CHAT in names


def test_requests_stops_listening(house: House) -> None:
    before = house.dropped()
    body = endless()
    with requests.post(f"{house.url}/api/generate", json=body, stream=True, timeout=60) as answer:
        assert next(answer.iter_lines())
    house.await_dropped(before)


def test_requests_gives_up_waiting(house: House) -> None:
    before = house.dropped()
    body = endless(stream=False)
    with pytest.raises(requests.Timeout):
        requests.post(f"{house.url}/api/generate", json=body, timeout=0.5)
    house.await_dropped(before)


def test_httpx_streams(house: House) -> None:
    with httpx.Client(base_url=house.url, timeout=60) as client:
        body = {"model": CHAT, "messages": HELLO, "options": OPTIONS}
        with client.stream("POST", "/api/chat", json=body) as answer:
            lines = [json.loads(line) for line in answer.iter_lines()]
        assert lines[-1]["done"] is True
        whole = client.post("/api/chat", json=body | {"stream": False}).json()
        text = "".join(line["message"]["content"] for line in lines)
        assert text == whole["message"]["content"]
        assert client.post("/api/chat", content=b"{").json() == {"error": "unexpected EOF"}


def test_httpx_stops_listening(house: House) -> None:
    before = house.dropped()

    async def use() -> None:
        body = endless()
        async with (
            httpx.AsyncClient(base_url=house.url) as client,
            client.stream("POST", "/api/generate", json=body) as answer,
        ):
            async for _ in answer.aiter_lines():
                return

    asyncio.run(use())
    house.await_dropped(before)


def test_urllib_reads(house: House) -> None:
    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{house.url}{path}", data)  # noqa: S310 - its own address
        with contextlib.closing(urllib.request.urlopen(request, timeout=60)) as answer:  # noqa: S310
            return json.load(answer)

    assert ask("/api/version")["version"]
    assert ask("/api/generate", generation(stream=False))["response"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask("/api/generate", {"prompt": "hi"})
    assert (caught.value.code, json.load(caught.value)) == (404, {"error": "model '' not found"})


# curl


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("needs curl")
    command = [program, "--silent", "--show-error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_curl_as_scripts_use_it(house: House) -> None:
    assert curl(f"{house.url}/").stdout == "Ollama is running"
    # Scripts search for names with grep.
    assert f'"name":"{CHAT}"' in curl(f"{house.url}/api/tags").stdout
    body = json.dumps(generation(stream=False))
    assert json.loads(curl(f"{house.url}/api/generate", "-d", body).stdout)["response"]
    lines = curl("--no-buffer", f"{house.url}/api/generate", "-d", json.dumps(generation()))
    assert json.loads(lines.stdout.splitlines()[-1])["done"] is True
    failed = curl("--fail", f"{house.url}/api/show", "-d", '{"model":"nosuch"}')
    assert failed.returncode == 22
    head = curl("--head", f"{house.url}/api/tags").stdout
    assert head.startswith("HTTP/1.1 200 OK")


def test_curl_uploads_and_waits_for_leave(house: House) -> None:
    # From 1 MiB on curl asks first: Expect: 100-continue.
    options = OPTIONS | {"num_ctx": 256}
    body = json.dumps(generation(stream=False, prompt="word " * 210_000, options=options))
    answer = subprocess.run(
        [
            str(shutil.which("curl")),
            *("--silent", "--data-binary", "@-", "-H", "Expect: 100-continue"),
            f"{house.url}/api/generate",
        ],
        input=body,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    # What is kept of a prompt that is too long: num_keep (4), and half of the rest of num_ctx.
    assert json.loads(answer.stdout)["prompt_eval_count"] == 4 + (256 - 4) // 2


def test_curl_stops_listening(house: House) -> None:
    before = house.dropped()
    body = json.dumps(endless())
    process = subprocess.Popen(
        [str(shutil.which("curl")), "--silent", "-N", f"{house.url}/api/generate", "-d", body],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline()
    process.kill()
    process.wait()
    house.await_dropped(before)
