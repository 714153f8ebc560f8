"""That the comparison of answers sees what clients would see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.wire.deviations import SCENES, entries
from tests.wire.exchanges import TRANSCRIPTS, Answer, Exchange, read_exchange, recorded
from tests.wire.forms import Difference, differences, event_differences


def exchange(name: str) -> Exchange:
    return read_exchange(TRANSCRIPTS / f"{name}.txt")


def changed(name: str, old: str, new: str) -> list[Difference]:
    """The differences to an answer that has `new` for every `old`."""
    recorded = exchange(name).answer
    ours = replace(recorded, body=recorded.body.replace(old.encode(), new.encode()))
    assert ours != recorded, "the recording does not have it"
    if recorded.content_type == "text/event-stream":
        return event_differences(recorded, ours)
    return differences(recorded, ours, {})


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_recording_is_as_itself(path: Path) -> None:
    answer = read_exchange(path).answer
    events = answer.content_type == "text/event-stream"
    assert (event_differences(answer, answer) if events else differences(answer, answer, {})) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("10-generate-warm-nostream", "Rayleigh", "another"),
        ("10-generate-warm-nostream", '"eval_count":48', '"eval_count":47'),
        ("10-generate-warm-nostream", "T12:38:00.215855861Z", "T12:38:01.5Z"),
        ("11-generate-stream", '"response":" Blue"', '"response":" Red"'),
        ("73-v1-chat-stream", "chatcmpl-553", "chatcmpl-7"),
        ("131-tools-chat-stream", "call_w270xwua", "call_00000000"),
        ("25-embed-ok-string", "[-0.035866246", "[-0.5"),
    ],
)
def test_what_may_differ(name: str, old: str, new: str) -> None:
    assert changed(name, old, new) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "at"),
    [
        ("02-get-root", "running", "runing", "body"),
        ("50-err-model-missing", "nosuch", "noSuch", "body"),
        ("10-generate-warm-nostream", '"done":true', '"done": true', "body"),
        ("42-debug-render", "\\u003c", "<", "body"),
        ("10-generate-warm-nostream", '"prompt_eval_count":36', '"prompt_eval_count":1', "context"),
        ("10-generate-warm-nostream", "9690,198", "9690,197", "context"),
        ("10-generate-warm-nostream", '"load_duration":1984677,', "", "load_duration"),
        ("10-generate-warm-nostream", ":1984677", ":0", "load_duration"),
        ("10-generate-warm-nostream", ":1984677", ":19.5", "load_duration"),
        ("10-generate-warm-nostream", "55861Z", "55861+00:00", "created_at"),
        ("10-generate-warm-nostream", '"done_reason":"length"', '"done_reason":"eos"', "done"),
        ("10-generate-warm-nostream", '"done":true', '"done":1', "done"),
        ("10-generate-warm-nostream", '"response"', '"text"', "response"),
        ("80-preload", '"response":"","done":true', '"done":true,"response":""', ": order"),
        ("11-generate-stream", '"response":" Blue"', '"response":""', "[1]"),
        ("13-chat-stream", '"done":false}\n', '"done":false,"n":1}\n', "[0].n"),
        ("131-tools-chat-stream", '{"city":"Paris"}', '"{\\"city\\":\\"Paris\\"}"', "arguments"),
        ("131-tools-chat-stream", '"index":0', '"index":1', "index"),
        ("130-tools-chat", '"prompt_eval_count":207', '"prompt_eval_count":206', "prompt_eval"),
        ("73-v1-chat-stream", "data: [DONE]\n\n", "", "[4]"),
        ("73-v1-chat-stream", '"total_tokens":36', '"total_tokens":35', "total_tokens"),
        ("72-v1-chat", '"prompt_tokens":32', '"prompt_tokens":31', "prompt_tokens"),
        ("04-tags", "346b0aab", "346b0aac", "digest"),
        ("83-ps-forever", "2319-", "2026-", "expires_at"),
        ("92-tags-after-copy", '"size":98363007', '"size":98363008', "size"),
        ("07-show", "PARAMETER num_ctx 2048", "PARAMETER num_ctx 1024", "modelfile"),
        ("07-show", '"llama.context_length":8192', '"llama.context_length":8192.0', "model_info"),
        ("07-show", '"Q8_0"', '"Q4_0"', "tensors"),
        ("95-create-derived", "creating new", "using existing", "status"),
        ("142-pull-again", "pulling fbacade46b4d", "pulling fbacade46b4e", "status"),
        ("25-embed-ok-string", "[[-0.035866246,", "[[", "embeddings"),
    ],
)
def test_what_may_not(name: str, old: str, new: str, at: str) -> None:
    found = changed(name, old, new)
    assert any(at in one.at for one in found), found


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("status", 500),
        ("headers", {"content-type": "application/json", "content-length": "39"}),
        ("headers", {"content-type": "application/json; charset=utf-8", "transfer-encoding": "x"}),
    ],
)
def test_status_and_headers(part: str, value: object) -> None:
    recorded = exchange("50-err-model-missing").answer
    ours = Answer(**{**vars(recorded), part: value})
    found = differences(recorded, ours, {})
    assert found
    assert all(one.at.startswith(part) for one in found)


def test_the_path_of_a_model_is_that_of_the_recording() -> None:
    recorded = exchange("07-show").answer
    path = "/usr/share/ollama/.ollama/models/blobs/sha256-941f309b54caaad6747569ba43712bcde44a2be3"
    ours = replace(recorded, body=recorded.body.replace(path.encode(), b"/var/m"))
    assert [one.at for one in differences(recorded, ours, {})] == ["modelfile"]
    assert differences(recorded, ours, {"/var/m": path}) == []


def test_all_exchanges_are_there() -> None:
    assert len(recorded()) == 66


def test_the_table_is_of_known_exchanges_and_gives_reasons() -> None:
    known = {one.name for one in recorded()}
    for one in entries():
        assert one["exchanges"], one
        assert one["exchanges"] == ["*"] or set(one["exchanges"]) <= known, one
        assert one["scenes"], one
        assert set(one["scenes"]) <= set(SCENES), one
        assert len(one["reason"]) > 20, one
        assert one["parts"], one
        assert all(len(part) == 3 for part in one["parts"]), one
