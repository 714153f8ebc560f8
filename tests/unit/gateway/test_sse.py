"""The event parser: any split of any stream gives the same events."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kloros_llm.gateway.engines import sse
from kloros_llm.gateway.engines.sse import EventParser, EventTooLargeError


def parsed(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    return [data for chunk in chunks for data in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b'data: {"a":1}\n\n', [b'{"a":1}']),
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:1\n\n", [b"1"]),
        (b":\n\ndata: 1\n\n: ping\n\n", [b"1"]),
        (b": ping\ndata: 1\n\n", [b"1"]),
        (b"event: x\nid: 3\ndata: 1\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b"\n\n\ndata: 1\n\n\n\n", [b"1"]),
        (b"data: 1\n\ndata: cut", [b"1"]),
        (b"data: 1\n\ndata: cut\n", [b"1"]),
        (b"", []),
        (b"no field\n\n", []),
    ],
)
def test_events_however_they_are_split(body: bytes, events: list[bytes]) -> None:
    assert parsed(body) == events
    assert parsed(*(body[i : i + 1] for i in range(len(body)))) == events
    for middle in range(len(body)):
        assert parsed(body[:middle], body[middle:]) == events


_text = st.text(max_size=20)


@given(st.lists(_text, max_size=6), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_characters_survive_any_split(texts: list[str], cuts: list[int], carriage: bool) -> None:
    events = [json.dumps({"content": text}, ensure_ascii=False).encode() for text in texts]
    newline = b"\r\n" if carriage else b"\n"
    body = b"".join(b"data: " + event + newline + newline for event in events)
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    chunks = [body[a:b] for a, b in itertools.pairwise(places)]
    assert [json.loads(data)["content"] for data in parsed(*chunks)] == texts


def test_an_endless_event_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_LIMIT", 1000)
    parser = EventParser()
    assert not parser.feed(b"data: " + b"x" * 900)
    with pytest.raises(EventTooLargeError):
        parser.feed(b"x" * 200)
