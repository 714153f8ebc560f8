"""Host, Origin and keys: what Ollama lets in, and what it keeps out."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.front.access import Access, Decision, Headers, has_address, read_api_keys


def access(address: str = "127.0.0.1", *origins: str, keys: tuple[bytes, ...] = ()) -> Access:
    return Access(
        address, origins, keys, hostname="Kloros", is_local=lambda ip: str(ip) == "8.8.8.8"
    )


def named(headers: Headers, name: str) -> list[str]:
    return [value for its_name, value in headers if its_name == name]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:11434",
        "127.0.0.1:11434",
        "127.5.5.5",
        "0.0.0.0:1",
        "[::1]:11434",
        "[::ffff:127.0.0.1]:80",
        "::1",
        "10.1.2.3:80",
        "172.31.0.1",
        "192.168.1.1:11434",
        "[fd00::1]:11434",
        "8.8.8.8:11434",
        "kloros:11434",
        "box.local",
        "a.b.internal:1",
        "x.localhost:11434",
    ],
)
def test_hosts_that_are_here(host: str) -> None:
    assert access().decide("GET", host) == Decision()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:11434",
        "localhost.evil.example",
        "127.0.0.1.evil.example:11434",
        "8.8.4.4:11434",
        "172.32.0.1",
        "[2001:db8::1]:1",
        "[::1]",
        "local",
        "localhost:1:2",
        "127.1:80",
        "0x7f.1",
        "localhost ",
        "kloros.example",
    ],
)
def test_rebound_names_stay_out(host: str) -> None:
    assert access().decide("POST", host) == Decision(403)
    assert access("::1").decide("POST", host).status == 403
    # Who listens for others has no name of his own: there the key guards.
    assert access("0.0.0.0").decide("POST", host) == Decision()


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:8080",
        "http://0.0.0.0:1",
        "app://obsidian.md",
        "tauri://localhost",
        "vscode-webview://abc",
        "file://",
        "https://chat.example",
        "https://a.lan",
    ],
)
def test_origins_that_may_ask(origin: str) -> None:
    rules = access("127.0.0.1", "https://chat.example", "https://*.lan")
    decision = rules.decide("POST", "127.0.0.1:11434", origin)
    assert decision.status is None
    assert named(decision.headers, "Access-Control-Allow-Origin") == [origin]
    assert named(decision.headers, "Vary") == ["Origin"]


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://localhostevil",
        "https://chat.example.evil.example",
        "http://chat.example",
        "ftp://localhost",
        "https://.lanx",
        "https://aba.example",
    ],
)
def test_foreign_origins_stay_out(origin: str) -> None:
    rules = access("127.0.0.1", "https://chat.example", "https://*.lan", "https://ab*ba.example")
    for method in ("POST", "OPTIONS"):
        assert rules.decide(method, "127.0.0.1:11434", origin) == Decision(403)


def test_its_own_origin_is_none() -> None:
    assert access().decide("POST", "kloros:11434", "http://kloros:11434") == Decision()


def test_a_preflight_is_answered_before_the_key() -> None:
    rules = access("192.0.2.1", keys=(b"x",))
    decision = rules.decide("OPTIONS", "192.0.2.1", "http://localhost:3000")
    assert decision.status == 204
    assert named(decision.headers, "Access-Control-Allow-Origin") == ["http://localhost:3000"]
    assert "Authorization" in named(decision.headers, "Access-Control-Allow-Headers")[0]
    assert "DELETE" in named(decision.headers, "Access-Control-Allow-Methods")[0]
    assert named(decision.headers, "Access-Control-Max-Age") == ["43200"]
    assert len(named(decision.headers, "Vary")) == 3


def test_every_origin() -> None:
    decision = access("127.0.0.1", "*").decide("GET", "localhost", "https://anybody.example")
    assert decision == Decision(None, (("Access-Control-Allow-Origin", "*"),))


def test_options_without_an_origin() -> None:
    assert access().decide("OPTIONS", "localhost:11434") == Decision(204)
    assert access().decide("OPTIONS", "127.0.0.1:11434") == Decision()


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# old\nfirst-key\n\n  second-key  \n")
    rules = access("192.0.2.1", keys=read_api_keys(file))
    for good in ("Bearer first-key", "bearer  second-key "):
        assert rules.decide("GET", "x", authorization=good) == Decision()
    assert rules.decide("GET", "x", x_api_key="second-key") == Decision()
    for bad in (
        "",
        "first-key",
        "Bearer",
        "Bearer ",
        "Bearer # old",
        "Bearer first-keyx",
        "Basic x",
    ):
        decision = rules.decide("GET", "x", authorization=bad)
        assert decision == Decision(401, (("WWW-Authenticate", "Bearer"),))
    assert rules.decide("GET", "x", authorization="Bearer \udcff").status == 401


def test_a_file_without_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="holds no API key"):
        read_api_keys(file)


def test_an_address_of_this_host() -> None:
    assert has_address(ipaddress.ip_address("127.0.0.1"))
    assert not has_address(ipaddress.ip_address("192.0.2.77"))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.sampled_from("GP"))
def test_any_head_is_decided(host: str, origin: str, authorization: str, method: str) -> None:
    rules = access("127.0.0.1", keys=(b"0" * 32,))
    decision = rules.decide(method, host, origin, authorization)
    assert decision.status in (401, 403)
