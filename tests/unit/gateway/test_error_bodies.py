"""Errors in the words of the family that asked, byte for byte as recorded."""

from __future__ import annotations

import json

import pytest

from kloros_llm.gateway.errors import error_body, error_line, family_of
from kloros_llm.gateway.go_text import quote


def test_ollamas() -> None:
    body = error_body("ollama", 404, "model 'nosuch:1b' not found")
    assert body.data == b"""{"error":"model 'nosuch:1b' not found"}"""
    assert body.content_type == "application/json; charset=utf-8"
    text = 'model "nosuch" not found, try pulling it first'
    assert len(error_body("ollama", 404, text).data) == 60


def test_openais() -> None:
    body = error_body("openai", 404, "model 'nosuch' not found")
    assert body.data == (
        b'{"error":{"message":"model \'nosuch\' not found","type":"not_found_error",'
        b'"param":null,"code":null}}\n'
    )
    assert len(body.data) == 99
    assert body.content_type == "application/json"
    assert b'"invalid_request_error"' in error_body("openai", 400, "").data
    assert b'"api_error"' in error_body("openai", 503, "").data


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (503, "overloaded_error")],
)
def test_anthropics(status: int, kind: str) -> None:
    answer = json.loads(error_body("anthropic", status, "no <b>").data)
    assert answer.pop("request_id").startswith("req_")
    assert answer == {"type": "error", "error": {"type": kind, "message": "no <b>"}}


def test_a_line_is_escaped_as_go_escapes() -> None:
    assert error_line("a <b> & é\n") == ('{"error":"a \\u003cb\\u003e \\u0026 é\\n"}\n'.encode())


def test_families() -> None:
    assert family_of("/api/chat") == family_of("/") == family_of("/v1") == "ollama"
    assert family_of("/v1/chat/completions") == "openai"
    assert family_of("/v1/messages") == family_of("/v1/messages/count_tokens") == "anthropic"
    assert family_of("/v1/messagesx") == "openai"


def test_go_quotes() -> None:
    assert quote('a"\\\n\x00\x7f\u00a0é😀\ufeff') == ('"a\\"\\\\\\n\\x00\\x7f\\u00a0é😀\\ufeff"')
