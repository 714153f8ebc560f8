"""Options on their way to llama-server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kloros_llm import LlamaAdapter
from tests.stand_in_engine import StandInEngine, in_thread

PNG = b"\x89PNG\r\n\x1a\n\x00"


def asked_with(**kwargs: Any) -> Any:
    """What a call with these keywords sends."""
    engine = StandInEngine()
    with in_thread(engine) as url:
        adapter = LlamaAdapter(url, engine="llama")
        adapter.generate("Hi", **kwargs)
        return engine.asked[-1].body


def test_ollamas_defaults_are_said_whatever_the_servers_are() -> None:
    body = asked_with()
    said = {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n_keep": 4,
        "n_predict": -1,
        "stop": [],
        "mirostat": 0,
    }
    assert body.items() >= said.items()
    assert body["messages"] == [{"role": "user", "content": "Hi"}]


def test_names_are_translated_and_what_a_load_takes_is_left_out() -> None:
    body = asked_with(
        options={"num_predict": 5, "num_keep": 7, "stop": ["a", "b"], "num_ctx": 1, "top_k": 1},
        top_k=2,
        num_gpu=999,
        main_gpu=0,
        use_mlock=True,
        mirostat=2,
        keep_alive="5m",
    )
    assert (body["n_predict"], body["n_keep"], body["stop"]) == (5, 7, ["a", "b"])
    assert (body["top_k"], body["mirostat"]) == (2, 2)
    assert not body.keys() & {"num_ctx", "num_gpu", "main_gpu", "use_mlock", "keep_alive"}
    assert asked_with(max_tokens=9)["n_predict"] == 9
    assert asked_with(temperature=None)["temperature"] == 0.8


def test_unknown_options_are_told_of_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        body = asked_with(options={"temprature": 1})
    assert "option 'temprature' is not known and has no effect" in caplog.text
    assert "temprature" not in body


def test_formats_thinking_and_images(tmp_path: Path) -> None:
    schema = {"type": "object"}
    (tmp_path / "a.png").write_bytes(PNG)
    body = asked_with(format=schema, think=False, images=[PNG, tmp_path / "a.png", "/9j/AAAA"])
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["reasoning_format"] == "deepseek"
    text, *images = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Hi"}
    assert [image["image_url"]["url"][:22] for image in images] == [
        "data:image/png;base64,",
        "data:image/png;base64,",
        "data:image/jpeg;base64",
    ]
    assert asked_with(format="json")["response_format"] == {"type": "json_object"}
    assert asked_with(think="low")["chat_template_kwargs"] == {"reasoning_effort": "low"}


def test_raw_text_has_no_template() -> None:
    body = asked_with(raw=True, format="json")
    assert body["prompt"] == "Hi"
    assert body["json_schema"] == {"type": "object"}
    assert "messages" not in body


def test_a_conversation_in_ollamas_form() -> None:
    engine = StandInEngine()
    with in_thread(engine) as url:
        LlamaAdapter(url, "m", "Be brief.", engine="llama").chat(
            [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "hm",
                    "tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}],
                },
                {"role": "tool", "content": "blue", "tool_name": "look"},
            ]
        )
        body = engine.asked[-1].body
    function = {"name": "look", "arguments": '{"at": "sky"}'}
    assert body["model"] == "m"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "look", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "blue", "name": "look"},
    ]
