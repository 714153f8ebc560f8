"""The recorded exchanges with a real Ollama, and how one is sent again."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

TRANSCRIPTS = Path(__file__).with_name("transcripts")
_TIMES = "\n### TIMES"
_ANSWER_S = 300


@dataclass(frozen=True)
class Request:
    """As it went over the wire; header names as they were written."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """As it came; header names are in lower case. `body` is without the chunks' sizes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")


@dataclass(frozen=True)
class Exchange:
    """One recording. `name` is that of its file, without its suffix."""

    name: str
    request: Request
    answer: Answer
    date: datetime

    @property
    def number(self) -> int:
        return int(self.name.split("-")[0])


def read_exchange(path: Path) -> Exchange:
    """The recording in a file of transcripts/."""
    asked, _, answered = path.read_text("utf-8").partition("\n### RESPONSE\n")
    head, _, body = asked.removeprefix("### REQUEST\n").partition("\n\n")
    first, *lines = head.splitlines()
    method, target, _ = first.split()
    request = Request(method, target, _headers(lines), body.rstrip("\n").encode())
    head, _, body = answered.rpartition(_TIMES)[0].partition("\n\n")
    first, *lines = head.splitlines()
    headers = {name.lower(): value for name, value in _headers(lines).items()}
    answer = Answer(int(first.split()[1]), headers, body.encode())
    length = headers.get("content-length")
    whole = request.method == "HEAD" or length is None or int(length) == len(answer.body)
    assert whole, f"{path.name}: the recording is not whole"
    return Exchange(path.stem, request, answer, parsedate_to_datetime(headers["date"]))


def _headers(lines: list[str]) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def recorded() -> tuple[Exchange, ...]:
    """All of them, in the order in which they were recorded."""
    found = map(read_exchange, TRANSCRIPTS.glob("*.txt"))
    return tuple(sorted(found, key=lambda one: (one.date, one.number)))


def send(request: Request, port: int) -> Answer:
    """Ask the server on this port of the loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    try:
        connection.putrequest(
            request.method, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            connection.putheader(name, value)
        if request.body or request.method not in ("GET", "HEAD"):
            connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def with_model(request: Request, model: str) -> Request:
    """The same request for another model."""
    old, count = re.subn(
        rb'"model":"[^"]*"', b'"model":"' + model.encode() + b'"', request.body, count=1
    )
    assert count, "the request names no model"
    return replace(request, body=old)
