"""The access log's lines and Prometheus's numbers."""

from __future__ import annotations

import io
import json
import os
import threading
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from kloros_llm.gateway.engines.backend_metrics import BackendSource
from kloros_llm.gateway.engines.backend_numbers import BackendNumbers
from kloros_llm.gateway.engines.backends import Backends
from kloros_llm.gateway.engines.watch import State
from kloros_llm.gateway.front.access_log import AccessLog, RequestRecord, access_line
from kloros_llm.gateway.front.metrics import GatewayMetrics
from tests.unit.gateway.prometheus_numbers import numbers


def test_a_request_is_counted_with_what_its_handler_told() -> None:
    metrics = GatewayMetrics()
    record = RequestRecord("id", "here", model="m", served="m:latest")
    record.first_token()
    first = record.first_token_s
    record.first_token()
    assert record.first_token_s == first
    record.ended(prompt_tokens=30, completion_tokens=50, completion_ms=1000)
    metrics.request(record, "/api/chat", 200)
    seen = numbers(metrics)
    assert seen["kloros_gateway_requests_total", ("200", "m:latest", "/api/chat")] == 1
    assert seen["kloros_gateway_first_token_seconds_count", ("m:latest", "/api/chat")] == 1
    assert seen["kloros_gateway_request_seconds_count", ("m:latest", "/api/chat")] == 1
    assert seen["kloros_gateway_tokens_per_second_sum", ("m:latest",)] == 50
    assert seen["kloros_gateway_tokens_total", ("prompt", "m:latest")] == 30
    assert seen["kloros_gateway_tokens_total", ("completion", "m:latest")] == 50


def test_names_of_clients_make_no_labels_without_end() -> None:
    metrics = GatewayMetrics()
    for number in range(1000):
        metrics.request(RequestRecord("id", "here", model=f"unknown-{number}"), "/api/chat", 404)
        created = RequestRecord("id", "here", model="x", served=f"created-{number}")
        metrics.request(created, "/api/chat", 200)
    metrics.request(RequestRecord("id", "here"), "/api/tags", 200)
    counted = {
        labels: value
        for (name, labels), value in numbers(metrics).items()
        if name == "kloros_gateway_requests_total"
    }
    assert counted["404", "unknown", "/api/chat"] == 1000
    assert counted["200", "other", "/api/chat"] == 800
    assert counted["200", "", "/api/tags"] == 1
    assert len(counted) == 203


def test_two_gateways_in_a_process_do_not_share_numbers() -> None:
    first, second = GatewayMetrics(), GatewayMetrics()
    first.request(RequestRecord("id", "here"), "/", 200)
    assert ("kloros_gateway_requests_total", ("200", "", "/")) not in numbers(second)


def test_the_backends_numbers_are_told_as_they_are() -> None:
    counted = BackendNumbers(waiting=3, rejected=2, expired=1)
    counted.retries["live"] = 4
    counted.errors["live", "gone"] = 5
    counted.fallbacks["live", "code"] = 6
    counted.running["code"] = 7
    counted.requests["code"] = 8
    state = State("down", datetime.now(UTC), "open", ())
    backends = SimpleNamespace(
        numbers=counted,
        states=lambda: {"live": state, "code": State("up", datetime.now(UTC), "closed", ())},
        breaker_openings=lambda: Counter({"live": 9}),
    )
    metrics = GatewayMetrics()
    metrics.ask(BackendSource(cast(Backends, backends)))
    seen = numbers(metrics)
    wanted: dict[tuple[str, tuple[str, ...]], float] = {
        ("requests_waiting", ()): 3,
        ("requests_rejected_total", ()): 2,
        ("requests_expired_total", ()): 1,
        ("retries_total", ("live",)): 4,
        ("upstream_errors_total", ("live", "gone")): 5,
        ("fallbacks_total", ("code", "live")): 6,
        ("upstream_running", ("code",)): 7,
        ("upstream_running", ("live",)): 0,
        ("upstream_requests_total", ("code",)): 8,
        ("breaker_openings_total", ("live",)): 9,
        ("breaker_state", ("live", "open")): 1,
        ("breaker_state", ("live", "closed")): 0,
        ("breaker_state", ("live", "half-open")): 0,
        ("breaker_state", ("code", "closed")): 1,
        ("instance_up", ("live",)): 0,
        ("instance_up", ("code",)): 1,
    }
    told = {(f"kloros_gateway_{name}", labels): value for (name, labels), value in wanted.items()}
    assert {key: seen.get(key) for key in told} == told
    counted.waiting = 0
    assert numbers(metrics)["kloros_gateway_requests_waiting", ()] == 0


def line_of(record: RequestRecord) -> dict[str, Any]:
    return access_line(record, method="POST", route="/api/chat", status=200, client="127.0.0.1")


def test_a_line_tells_what_is_known_and_no_prompt() -> None:
    record = RequestRecord("the-id", "127.0.0.1:11434", model="m", served="m:latest")
    record.first_token()
    record.ended(prompt_tokens=3, completion_tokens=4, completion_ms=5)
    line = line_of(record)
    assert {name: line[name] for name in ("id", "listener", "client", "method", "route")} == {
        "id": "the-id",
        "listener": "127.0.0.1:11434",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/api/chat",
    }
    assert (line["status"], line["model"], line["prompt_tokens"], line["tokens"]) == (
        200,
        "m:latest",
        3,
        4,
    )
    assert line["ms"] >= line["first_token_ms"] >= 0
    assert "body" not in line
    record.body = "asked"
    assert line_of(record)["body"] == "asked"
    assert len(line_of(RequestRecord("i", "l", model="m" * 100_000))["model"]) == 200


def test_lines_are_whole_and_in_order_whatever_clients_send() -> None:
    output = io.StringIO()
    log = AccessLog(output)
    for number in range(500):
        log.write({"number": number, "model": '\n\udcff\u2028"é'})
    log.close()
    lines = output.getvalue().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["number"] for line in lines] == list(range(500))
    output.getvalue().encode()


def test_a_reader_that_stands_still_holds_nobody_up() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as output:
        log = AccessLog(output)
        for _ in range(30_000):
            log.write({"text": "x" * 100})
        assert log.dropped > 0
        log.close(timeout_s=0.05)
        reader = threading.Thread(
            target=lambda: [None for _ in iter(lambda: os.read(read_end, 1 << 16), b"")]
        )
        reader.start()
        log.close(timeout_s=30)
    reader.join(30)
    os.close(read_end)
