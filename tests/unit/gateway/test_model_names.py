"""Names as Ollama's types/model/name.go takes, shows and compares them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.ollama_api.model_names import ModelName, display_name, name_key, parse_name


@pytest.mark.parametrize(
    ("text", "display", "key"),
    [
        ("smollm2:135m", "smollm2:135m", "registry.ollama.ai/library/smollm2:135m"),
        ("Derived", "Derived:latest", "registry.ollama.ai/library/derived:latest"),
        ("me/Smol-copy:v1", "me/Smol-copy:v1", "registry.ollama.ai/me/smol-copy:v1"),
        ("registry.ollama.ai/library/x", "x:latest", "registry.ollama.ai/library/x:latest"),
        ("LIBRARY/x:Q4_K_M", "x:Q4_K_M", "registry.ollama.ai/library/x:q4_k_m"),
        (
            "http://127.0.0.1:15000/library/smollm2:135m",
            "127.0.0.1:15000/library/smollm2:135m",
            "127.0.0.1:15000/library/smollm2:135m",
        ),
        ("hf.co/a-b/C.GGUF:Q8_0", "hf.co/a-b/C.GGUF:Q8_0", "hf.co/a-b/c.gguf:q8_0"),
        ("_x", "_x:latest", "registry.ollama.ai/library/_x:latest"),
    ],
)
def test_a_name(text: str, display: str, key: str) -> None:
    assert display_name(text) == display
    assert name_key(text) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "../../etc",
        "x:",
        ":x",
        "/x",
        "x/",
        "//",
        "-x",
        ".x",
        "a b",
        "a/b/c/d/e",
        "a.b/x",
        "x:y:z",
        "x@sha256",
        "é",
        "x" * 81,
        "n" * 81 + "/x",
        "x:" + "t" * 81,
        "x\n",
        "x\x00",
    ],
)
def test_no_name(text: str) -> None:
    assert parse_name(text) is None
    assert name_key(text) is None
    assert display_name(text) == text


def test_case_is_kept_and_does_not_matter() -> None:
    name = parse_name("Qwen2.5:7B")
    assert name == ModelName("registry.ollama.ai", "library", "Qwen2.5", "7B")
    assert name_key("Qwen2.5:7B") == name_key("qwen2.5:7b")


@given(st.text(alphabet="aZ0_-.:/@ é", max_size=30))
def test_a_shown_name_is_the_same_name(text: str) -> None:
    name = parse_name(text)
    if name is not None:
        assert parse_name(name.display) == name or name.namespace.lower() == "library"
        assert name_key(name.display) == name.key
        assert parse_name(name.full) == name
