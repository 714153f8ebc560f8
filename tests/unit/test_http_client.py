"""The client follows, waits, retries and keeps the token to itself."""

from __future__ import annotations

import email.utils
import socket
import time
from collections.abc import Callable

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.http_client import (
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_UNREACHABLE,
    HttpClient,
    HttpError,
    Response,
    may_share_token,
)

from tests.unit.stand_in_web import Asked, Reply, StandInWeb, redirect

TOKEN = "hf_canary"
DIGEST = "ab" * 32
COMMIT = "c" * 40


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def client(slept: list[float]) -> HttpClient:
    return HttpClient(timeout_s=5, sleep=slept.append)


def always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda _: reply


def in_turn(*replies: Reply) -> Callable[[Asked], Reply]:
    """The replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def body_of(response: Response) -> bytes:
    with response:
        return b"".join(iter(lambda: response.read(7), b""))


def test_a_plain_answer(client: HttpClient) -> None:
    with StandInWeb(always(Reply(body=b"hello world"))) as web:
        response = client.request("GET", web.url + "/x", headers={"Range": "bytes=0-"})
        assert (response.status, response.length, body_of(response)) == (200, 11, b"hello world")
    (asked,) = web.asked
    assert asked.headers["range"] == "bytes=0-"
    assert asked.headers["accept-encoding"] == "identity"
    assert "authorization" not in asked.headers


def test_hub_headers_come_from_the_hub_and_not_from_its_cdn(client: HttpClient) -> None:
    lies = {"X-Linked-Etag": f'"{"00" * 32}"', "X-Linked-Size": "1", "X-Repo-Commit": "d" * 40}
    with StandInWeb(always(Reply(body=b"x", headers=lies))) as cdn:
        there = redirect(cdn.url.replace("127.0.0.1", "localhost") + "/signed?Signature=canary")
        there.headers.update({"X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": "5"})
        with StandInWeb(always(there)) as hub:
            response = client.request("GET", hub.url + "/o/r/resolve/main/m.gguf", token=TOKEN)
            response.__exit__()
    assert (response.hub.sha256, response.hub.size_bytes, response.hub.commit) == (DIGEST, 5, None)
    assert hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in cdn.asked[0].headers


def test_a_head_can_stop_before_the_cdn(client: HttpClient) -> None:
    there = redirect("http://localhost:9/unreachable")
    there.headers["X-Repo-Commit"] = COMMIT
    moved = redirect("/renamed")
    with StandInWeb(lambda asked: there if asked.path == "/renamed" else moved) as hub:
        response = client.request(
            "HEAD", hub.url + "/old", token=TOKEN, stop_at_foreign_redirect=True
        )
    assert (response.status, response.hub.commit) == (302, COMMIT)
    assert all("authorization" in asked.headers for asked in hub.asked)


def test_the_token_does_not_come_back_with_a_redirect_back(client: HttpClient) -> None:
    with StandInWeb(always(Reply())) as other, StandInWeb(always(Reply(body=b"x"))) as hub:
        hub.answer = in_turn(redirect(other.url + "/away"), redirect("/end"), Reply(body=b"x"))
        other.answer = always(redirect(hub.url + "/back"))
        client.request("GET", hub.url + "/start", token=TOKEN).__exit__()
    sent = {asked.path: "authorization" in asked.headers for asked in [*hub.asked, *other.asked]}
    assert sent == {"/start": True, "/away": False, "/back": False, "/end": False}


@pytest.mark.parametrize(
    ("url", "target", "may"),
    [
        ("https://h/a", "https://h/b", True),
        ("https://h/a", "https://h:443/b", True),
        ("http://h/a", "https://h/b", True),
        ("https://h/a", "http://h/b", False),
        ("https://h/a", "https://h:444/b", False),
        ("https://h/a", "https://cdn.h/b", False),
        ("http://h:80/a", "https://h:8443/b", False),
        ("https://h/a", "https://h@evil/b", False),
    ],
)
def test_who_may_see_the_token(url: str, target: str, may: bool) -> None:
    assert may_share_token(url, target) is may


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("/loop", "redirect loop"),
        ("/{n}", "more than 10 redirects"),
        ("ftp://h/m", "no http(s) URL"),
        ("file:///etc/passwd", "no http(s) URL"),
        ("http://h:port/", "no http(s) URL"),
    ],
)
def test_redirects_that_lead_nowhere(client: HttpClient, location: str, said: str) -> None:
    count = iter(range(100))
    lost = StandInWeb(lambda _: redirect(location.replace("{n}", str(next(count)))))
    with lost as web, pytest.raises(HttpError) as caught:
        client.request("GET", web.url + "/start?Signature=canary")
    assert said in str(caught.value)
    assert "canary" not in str(caught.value)
    assert len(web.asked) <= 11


def test_trouble_is_retried_with_growing_waits(client: HttpClient, slept: list[float]) -> None:
    answers = in_turn(Reply(503), Reply(hang_up=True), Reply(500), Reply(body=b"ok"))
    with StandInWeb(answers) as web:
        assert body_of(client.request("GET", web.url)) == b"ok"
    assert slept == [1, 2, 4]


def test_trouble_that_stays_is_an_error(client: HttpClient, slept: list[float]) -> None:
    with StandInWeb(always(Reply(502))) as web, pytest.raises(HttpError) as caught:
        client.request("GET", web.url)
    assert (caught.value.status, caught.value.transient) == (502, True)
    assert len(web.asked) == MAX_ATTEMPTS
    assert slept == [1, 2, 4, 8, 16]


def test_retry_after_in_seconds(client: HttpClient, slept: list[float]) -> None:
    with StandInWeb(in_turn(Reply(429, headers={"Retry-After": "42"}), Reply(body=b"ok"))) as web:
        assert body_of(client.request("GET", web.url)) == b"ok"
    assert slept == [42]


def test_retry_after_as_a_date(client: HttpClient, slept: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    with StandInWeb(in_turn(Reply(429, headers={"Retry-After": date}), Reply(body=b"ok"))) as web:
        assert body_of(client.request("GET", web.url)) == b"ok"
    assert 60 < slept[0] <= 90


def test_a_wait_that_is_too_long_is_an_error_at_once(
    client: HttpClient, slept: list[float]
) -> None:
    busy = StandInWeb(always(Reply(429, headers={"Retry-After": "3600"})))
    with busy as web, pytest.raises(HttpError, match="asks to wait 3600 s"):
        client.request("GET", web.url)
    assert slept == []


def test_a_closed_port_is_told_soon(client: HttpClient, slept: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/m"
        with pytest.raises(HttpError, match="check the address") as caught:
            client.request("GET", url)
    assert caught.value.status is None
    assert len(slept) == MAX_ATTEMPTS_UNREACHABLE - 1


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [
        (401, None, "gguf_models_hf_token"),
        (403, None, "gguf_models_hf_token"),
        (401, TOKEN, "wrong or expired"),
        (403, TOKEN, "not accepted the repository's terms"),
        (404, None, "check owner, repository, path and revision"),
        (416, None, "fewer bytes than were announced"),
        (418, None, "check the source"),
    ],
)
def test_refusals_say_what_to_do(
    client: HttpClient, slept: list[float], status: int, token: str | None, said: str
) -> None:
    reason = {"X-Error-Message": "Access to model o/r is restricted"}
    refusing = StandInWeb(always(Reply(status, headers=reason)))
    with refusing as web, pytest.raises(HttpError) as caught:
        client.request("GET", web.url + "/m.gguf", token=token)
    message = str(caught.value)
    assert said in message
    assert f"HTTP {status} (Access to model o/r is restricted)" in message
    assert TOKEN not in message
    assert (caught.value.status, slept, len(web.asked)) == (status, [], 1)


def test_a_refusal_by_another_host_is_not_blamed_on_the_token(client: HttpClient) -> None:
    with (
        StandInWeb(always(Reply(403))) as cdn,
        StandInWeb(always(redirect(cdn.url))) as hub,
        pytest.raises(HttpError, match="the token is never sent there"),
    ):
        client.request("GET", hub.url, token=TOKEN)


def test_a_broken_transfer_is_transient(client: HttpClient) -> None:
    with StandInWeb(always(Reply(body=b"x" * 100, cut_after=40))) as web:
        assert len(body_of(client.request("GET", web.url))) == 40


def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with StandInWeb(always(Reply(body=b"by proxy"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert body_of(HttpClient().request("GET", "http://nowhere.invalid/m")) == b"by proxy"
        assert proxy.asked[0].path == "http://nowhere.invalid/m"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with StandInWeb(always(Reply(body=b"direct"))) as web:
            assert body_of(HttpClient().request("GET", web.url)) == b"direct"
    assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("headers", "strong"),
    [({"ETag": '"a"'}, '"a"'), ({"ETag": 'W/"a"'}, None), ({"ETag": '""'}, None), ({}, None)],
)
def test_only_strong_etags_join_ranges(
    client: HttpClient, headers: dict[str, str], strong: str | None
) -> None:
    with (
        StandInWeb(always(Reply(headers=headers))) as web,
        client.request("HEAD", web.url) as response,
    ):
        assert response.strong_etag == strong
