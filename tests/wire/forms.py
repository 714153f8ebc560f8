"""What of an answer must be as Ollama's: everything but times, counters and the model's words.

An answer becomes a form, in which what may differ from run to run is a word in angle brackets,
and `differences` tells where two forms are not the same. Of a stream of objects, equal forms that
follow each other count once: how many tokens an answer has is up to the model. Tensors are
compared by name: their order is that of the file.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.wire.exchanges import Answer

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_COUNTS = ("eval_count", "completion_tokens", "total_tokens")
_SPOKEN = re.compile(r"(.*\.)?(response|thinking|(message|delta)\.(content|thinking)|text)")
_IDS = {"chatcmpl": re.compile(r"chatcmpl-\d{1,3}"), "call": re.compile(r"call_[a-z0-9]{8}")}
_FAR_YEAR = 2200
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_EMBEDDING = re.compile(r"embedding|embeddings\[\d+\]")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Difference:
    """Where an answer is not as recorded. `at` is the part of the answer; both sides as JSON."""

    at: str
    recorded: str
    ours: str


def differences(recorded: Answer, ours: Answer, same: Mapping[str, str]) -> list[Difference]:
    """All of them. `same` maps texts of our answer to those that stand for them in the record."""
    found = [*_of_values("status", recorded.status, ours.status)]
    found += _of_values("headers", _headers(recorded), _headers(ours))
    expected = recorded.body.decode()
    text = ours.body.decode()
    for mine, theirs in same.items():
        text = text.replace(json.dumps(mine)[1:-1], theirs)
    if "json" not in recorded.content_type or recorded.status >= 400:
        # Texts, and errors: to the letter.
        return [*found, *_of_values("body", expected, text)]
    found += _of_values("body's end", expected[-1:], text[-1:])
    found += [Difference("body", "strict JSON", one) for one in _style(text)]
    return found + list(_of_values("", form(expected), form(text)))


def event_differences(recorded: Answer, ours: Answer) -> list[Difference]:
    """The same for server-sent events."""
    found = [*_of_values("status", recorded.status, ours.status)]
    found += _of_values("headers", _headers(recorded), _headers(ours))
    return found + list(_of_values("", _events(recorded.body), _events(ours.body)))


def _headers(answer: Answer) -> dict[str, str]:
    """By name, in an order of their own; values where they tell how to read the body."""
    told = ("content-type", "transfer-encoding", "allow")
    found = {name: value if name in told else "<any>" for name, value in answer.headers.items()}
    return dict(sorted((name, value) for name, value in found.items() if name != "date"))


def _style(text: str) -> Iterator[str]:
    """Go's JSON has no spaces, and escapes what HTML knows: scripts search it for `"name":"`."""
    for line in text.splitlines():
        if re.search(r"\s", _STRING.sub('""', line)):
            yield f"spaces: {line[:200]}"
        if re.search("[<>&]", line):
            yield f"<, > or & as they are: {line[:200]}"


def form(text: str) -> Any:
    """Of JSON: of the object, or of the lines of several."""
    values = [json.loads(line) for line in text.splitlines()]
    forms = [form_of(value) for value in _numbered(values)]
    return _once(forms) if text.endswith("\n") or not forms else forms[0]


def _events(body: bytes) -> list[Any]:
    text = body.decode()
    assert text.endswith("\n\n"), text[-50:]
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events), text
    data = [event.removeprefix("data: ") for event in events]
    return _once([one if one == "[DONE]" else form_of(json.loads(one)) for one in data])


def _once(forms: list[Any]) -> list[Any]:
    return [next(equal) for _, equal in itertools.groupby(forms, key=json.dumps)]


def _numbered(values: list[Any]) -> list[Any]:
    """The digests of a pull's layers, by their order."""
    known: dict[str, str] = {}
    result = []
    for value in values:
        match = _DIGEST.fullmatch(value.get("digest", "")) if isinstance(value, dict) else None
        if match is None or "total" not in value:
            result.append(value)
            continue
        name = known.setdefault(match[1], f"<layer {len(known) + 1}>")
        if value["status"] != f"pulling {match[1][:12]}":
            name = f"{name}, of which the status does not tell"
        assert 0 < value.get("completed", 1) <= value["total"], value
        new = {"status": f"pulling {name}", "digest": f"sha256:{name}", "total": "<bytes>"}
        # Absent while it is 0, with Ollama too.
        result.append({key: new.get(key, one) for key, one in value.items() if key != "completed"})
    return result


def form_of(value: Any, path: str = "", whole: Mapping[str, Any] | None = None) -> Any:
    """The value with what varies taken out. `whole` is the object that it is a member of."""
    name = path.rpartition(".")[2]
    if name == "context" and isinstance(value, list) and whole:
        prompt = whole.get("prompt_eval_count", 0)
        return [*value[:prompt], "<ids>"] if len(value) > prompt else value
    if _EMBEDDING.fullmatch(path) and isinstance(value, list):
        return f"<{len(value)} numbers>" if all(isinstance(one, float) for one in value) else value
    if isinstance(value, dict):
        return {
            key: form_of(one, f"{path}.{key}" if path else key, value) for key, one in value.items()
        }
    if isinstance(value, list):
        if path == "tensors":
            value = sorted(value, key=lambda one: str(one["name"]))
        return [form_of(one, f"{path}[{at}]", whole) for at, one in enumerate(value)]
    return _form_of_scalar(value, path, whole)


def _form_of_scalar(value: Any, path: str, whole: Mapping[str, Any] | None) -> Any:
    name = path.rpartition(".")[2]
    if isinstance(value, str):
        return _form_of_text(value, name, path)
    if isinstance(value, int) and not isinstance(value, bool):
        return _form_of_number(value, name, whole)
    return value


def _form_of_text(value: str, name: str, path: str) -> str:
    if name.endswith("_at") and _TIME.fullmatch(value):
        return "<never>" if int(value[:4]) > _FAR_YEAR else "<time>"
    if name == "id":
        for kind, pattern in _IDS.items():
            if pattern.fullmatch(value):
                return f"<{kind}>"
    if name in ("done_reason", "finish_reason") and value in ("stop", "length"):
        return "<stop or length>"
    if _SPOKEN.fullmatch(path) and value:
        return "<text>"
    return value


def _form_of_number(value: int, name: str, whole: Mapping[str, Any] | None) -> int | str:
    if name in _DURATIONS and value > 0:
        return "<ns>"
    if name == "created" and value > 0:
        return "<seconds>"
    if name in _COUNTS and value > 0:
        parts = (whole or {}).get("prompt_tokens", 0), (whole or {}).get("completion_tokens", 0)
        return value if name == "total_tokens" and sum(parts) != value else "<count>"
    return value


def _of_values(at: str, recorded: Any, ours: Any) -> Iterator[Difference]:
    if isinstance(recorded, dict) and isinstance(ours, dict):
        yield from _of_objects(at, recorded, ours)
    elif isinstance(recorded, list) and isinstance(ours, list):
        yield from _of_lists(at, recorded, ours)
    elif recorded is _ABSENT or ours is _ABSENT or not _equal(recorded, ours):
        yield Difference(at, _told(recorded), _told(ours))


def _of_lists(at: str, recorded: list[Any], ours: list[Any]) -> Iterator[Difference]:
    """Numbers are those of the record; what is too much has the number of what it comes before."""
    theirs_told, ours_told = [list(map(json.dumps, side)) for side in (recorded, ours)]
    matcher = difflib.SequenceMatcher(None, theirs_told, ours_told, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        pairs = itertools.zip_longest(recorded[a:b], ours[c:d], fillvalue=_ABSENT)
        for number, (theirs, mine) in enumerate(pairs, a):
            yield from _of_values(f"{at}[{number}]", theirs, mine)


def _of_objects(at: str, recorded: dict[str, Any], ours: dict[str, Any]) -> Iterator[Difference]:
    both = [key for key in recorded if key in ours]
    order = [key for key in ours if key in recorded]
    if both != order:
        yield Difference(f"{at}: order", _told(both), _told(order))
    for key in [*recorded, *(key for key in ours if key not in recorded)]:
        below = f"{at}.{key}" if at else key
        yield from _of_values(below, recorded.get(key, _ABSENT), ours.get(key, _ABSENT))


_ABSENT = object()


def _equal(recorded: Any, ours: Any) -> bool:
    # 1 and 1.0 and True are different things in JSON.
    return type(recorded) is type(ours) and bool(recorded == ours)


def _told(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
