"""Numbers for Prometheus, on a listener of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from .access import Access
from .access_log import RequestRecord

UNKNOWN_MODEL = "unknown"
OTHER_MODELS = "other"
# Clients can create names without end; a label value is kept for ever.
_MODEL_LABELS = 200

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_REQUEST_S = (0.005, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_RATES = (1, 2, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 400, 1000)


class NumbersSource(Protocol):
    """Whoever counts for itself and is asked at each scrape."""

    def collect(self) -> Iterable[Metric]: ...


class _Unobserved:
    """The metrics' own listener: who asks for numbers does not change them."""

    def connected(self, change: int) -> None:
        del change

    def ended(self, reason: str) -> None:
        del reason

    def answered(self, request: web.BaseRequest, status: int) -> None:
        del request, status


class _Asked(Collector):
    def __init__(self, source: NumbersSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source.collect()


class GatewayMetrics:
    """All numbers of the process. Every label has a bounded set of values."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.own_listener = _Unobserved()
        ProcessCollector(registry=self.registry)
        self._models: set[str] = set()
        self._requests = Counter(
            "kloros_gateway_requests",
            "Requests answered, by route, model and status code (499: the client went away)",
            ("route", "model", "code"),
            registry=self.registry,
        )
        self._request_s = Histogram(
            "kloros_gateway_request_seconds",
            "From the receipt of a request to the end of its answer",
            ("route", "model"),
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._first_token_s = Histogram(
            "kloros_gateway_first_token_seconds",
            "From the receipt of a request to the first piece of its answer",
            ("route", "model"),
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self._rate = Histogram(
            "kloros_gateway_tokens_per_second",
            "Rate at which an answer's tokens were generated",
            ("model",),
            buckets=_RATES,
            registry=self.registry,
        )
        self._tokens = Counter(
            "kloros_gateway_tokens",
            "Tokens read (kind=prompt) and generated (kind=completion)",
            ("model", "kind"),
            registry=self.registry,
        )
        self.running = Gauge(
            "kloros_gateway_requests_running",
            "Requests being answered",
            ("listener",),
            registry=self.registry,
        )
        self.connections = Gauge(
            "kloros_gateway_connections",
            "Open connections of clients",
            ("listener",),
            registry=self.registry,
        )
        self.refused = Counter(
            "kloros_gateway_connections_ended",
            "Connections ended for what the client did or left undone",
            ("listener", "reason"),
            registry=self.registry,
        )

        self.log_lines_dropped = Gauge(
            "kloros_gateway_log_lines_dropped",
            "Lines of the access log that nobody took in time",
            registry=self.registry,
        )

    def ask(self, source: NumbersSource) -> None:
        """Ask `source` at each scrape, too."""
        self.registry.register(_Asked(source))

    def request(self, record: RequestRecord, route: str, code: int) -> None:
        """Count an answered request."""
        model = self._model(record)
        self._requests.labels(route, model, str(code)).inc()
        self._request_s.labels(route, model).observe(time.perf_counter() - record.received)
        if record.first_token_s is not None:
            self._first_token_s.labels(route, model).observe(record.first_token_s)
        if record.prompt_tokens:
            self._tokens.labels(model, "prompt").inc(record.prompt_tokens)
        if record.completion_tokens:
            self._tokens.labels(model, "completion").inc(record.completion_tokens)
            # The first token is the prompt's work: a rate needs a second one.
            if record.completion_s > 0 and record.completion_tokens > 1:
                self._rate.labels(model).observe(record.completion_tokens / record.completion_s)

    def _model(self, record: RequestRecord) -> str:
        if not record.served:
            return UNKNOWN_MODEL if record.model else ""
        if record.served not in self._models:
            if len(self._models) >= _MODEL_LABELS:
                return OTHER_MODELS
            self._models.add(record.served)
        return record.served


def metrics_application(metrics: GatewayMetrics, address: str) -> web.Application:
    """`GET /metrics`, and nothing else; pages in a browser are kept out as from the API."""
    access = Access(address)

    async def answer(request: web.Request) -> web.Response:
        asked = request.headers
        decision = access.decide(request.method, asked.get("Host", ""), asked.get("Origin", ""))
        if decision.status is not None:
            return web.Response(status=decision.status)
        # Tens of milliseconds where there are many names.
        text = await asyncio.to_thread(generate_latest, metrics.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/metrics", answer)
    return application
