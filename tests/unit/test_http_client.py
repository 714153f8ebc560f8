"""The client follows, waits, retries and keeps the token to itself."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.kloros.llm.plugins.module_utils.http_client import (
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_UNREACHABLE,
    HttpClient,
    HttpError,
    Response,
    may_share_token,
)

from testbed.stand_in_hub import StandInHub
from tests.unit.stand_in_web import Asked, Reply, StandInWeb, redirect

TOKEN = "hf_canary"
BODY = bytes(range(250)) * 360
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


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), 10**9])
def test_a_timeout_that_cannot_be_is_refused(timeout_s: float) -> None:
    with pytest.raises(HttpError, match="needed: more than 0, at most 86400"):
        HttpClient(timeout_s)


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


def test_numbers_that_no_file_has_are_not_read(client: HttpClient) -> None:
    """Python raises ValueError from the 4301st digit on."""
    long = "9" * 5000
    headers = {"Content-Range": f"bytes 0-{long}/{long}", "X-Linked-Size": long}
    with (
        StandInWeb(always(Reply(206, b"x", headers))) as web,
        client.request("GET", web.url) as response,
    ):
        assert response.content_range is None
        assert response.total_size is None
        assert response.hub.size_bytes is None
    with (
        StandInWeb(always(Reply(headers={"Content-Length": long}))) as web,
        contextlib.suppress(HttpError),
        client.request("GET", web.url) as response,
    ):
        assert response.length is None
    refusal = Reply(503, headers={"Retry-After": long})
    with StandInWeb(always(refusal)) as web, pytest.raises(HttpError, match="HTTP 503"):
        client.request("GET", web.url)


def test_a_body_that_is_compressed_unasked_is_refused(client: HttpClient) -> None:
    reply = Reply(body=BODY, headers={"Content-Encoding": "gzip"})
    with (
        StandInWeb(always(reply)) as web,
        pytest.raises(HttpError, match=r"compressed \(gzip\)") as caught,
    ):
        client.request("GET", web.url)
    assert not caught.value.transient


def test_what_a_server_says_does_not_reach_the_terminal_raw(client: HttpClient) -> None:
    escape = b"HTTP/9.9\x1b]0;title\x07" + b"x" * 5000 + b"\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer = server.accept()[0]
            with peer:
                peer.recv(4096)
                peer.sendall(escape)

        thread = threading.Thread(target=answer)
        thread.start()
        with client.connection() as connection, pytest.raises(HttpError) as caught:
            connection.request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/\x1b[2J")
        thread.join()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


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


# Connections that are kept


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "acme" / "tiny"
    folder.mkdir(parents=True)
    (folder / "README.md").write_bytes(bytes(200_000))
    with StandInHub(tmp_path) as running:
        yield running


def test_a_connection_is_kept_and_given_up_with_a_body_half_read(
    client: HttpClient, hub: StandInHub
) -> None:
    url = f"{hub.url}/acme/tiny/resolve/main/README.md"
    buffer = memoryview(bytearray(150_000))
    with client.connection() as connection:
        for _ in range(2):
            assert len(body_of(connection.request("GET", url))) == 200_000
        with pytest.raises(HttpError, match="404"):
            connection.request("GET", url + "x")
        with connection.request("GET", url) as response:
            assert response.read_into(buffer)
        assert len(body_of(connection.request("GET", url))) == 200_000
    ports = [record.client_port for record in hub.requests]
    assert len(set(ports[:4])) == 1
    assert ports[4] != ports[0]


def test_a_kept_connection_that_the_server_closed_is_replaced(client: HttpClient) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as server, client.connection() as connection:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        def serve() -> None:
            for _ in range(2):
                peer, _address = server.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert body_of(connection.request("GET", url)) == b"ok"
        assert body_of(connection.request("GET", url)) == b"ok"
        thread.join()


def test_an_abort_ends_a_wait(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, client.connection() as connection:
        threading.Timer(0.2, connection.abort).start()
        with pytest.raises(HttpError) as caught:
            connection.request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert caught.value.transient
        with pytest.raises(HttpError):
            connection.request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/")


def test_a_proxy_keeps_its_connection_and_gets_its_login(
    monkeypatch: pytest.MonkeyPatch, hub: StandInHub
) -> None:
    # The stand-in knows no absolute addresses: its refusal is the answer of the proxy here.
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//me:p%40ss@"))
    with HttpClient().connection() as connection:
        for _ in range(2):
            with pytest.raises(HttpError, match="404"):
                connection.request("GET", "http://nowhere.invalid/m?x=1")
    assert {record.path for record in hub.requests} == {"http://nowhere.invalid/m?x=1"}
    assert len({record.client_port for record in hub.requests}) == 1
    with StandInWeb(always(Reply(body=b"by proxy"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:p%40ss@"))
        assert body_of(HttpClient().request("GET", "http://nowhere.invalid/m")) == b"by proxy"
    login = base64.b64encode(b"me:p@ss").decode()
    assert proxy.asked[0].headers["proxy-authorization"] == f"Basic {login}"


def test_a_proxy_of_another_kind_is_refused_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(HttpError, match="only http"):
        HttpClient().request("GET", "http://nowhere.invalid/m")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=tls.invalid", "-addext", "subjectAltName=DNS:tls.invalid"]
    files = ["-keyout", str(path), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return path


class ConnectProxy:
    """A proxy that knows CONNECT only, and leads every name to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://me:pass@127.0.0.1:{self._server.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._server.accept()
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.asked.append(head.decode())
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            there = socket.create_connection(("127.0.0.1", self._port))
            for one, other in ((client, there), (there, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server_port = server.getsockname()[1]

        def serve() -> None:
            for _ in range(3):
                plain, _address = server.accept()
                with contextlib.suppress(OSError), context.wrap_socket(plain, True) as peer:
                    while peer.recv(65536):
                        peer.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: 90000\r\n\r\n" + BODY)

        threading.Thread(target=serve, daemon=True).start()
        proxy = ConnectProxy(server_port)
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(HttpError, match="the certificate is not trusted"):
            HttpClient().request("GET", "https://tls.invalid/m", token=TOKEN)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("cert.pem")))
        buffer = memoryview(bytearray(90_000))
        with HttpClient().connection() as connection:
            for _ in range(2):
                with connection.request("GET", "https://tls.invalid/m", token=TOKEN) as response:
                    done = 0
                    while count := response.read_into(buffer[done:]):
                        done += count
                assert bytes(buffer) == BODY
        assert body_of(HttpClient().request("GET", "https://tls.invalid/m")) == BODY
    # One for the refusal, one that was kept for two requests, one for the last.
    assert [text.split()[:2] for text in proxy.asked] == [["CONNECT", "tls.invalid:443"]] * 3
    assert all("Basic bWU6cGFzcw==" in text and TOKEN not in text for text in proxy.asked)
