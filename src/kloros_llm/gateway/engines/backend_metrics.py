"""What Backends counts, as Prometheus reads it: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .breaker import BreakerState

if TYPE_CHECKING:
    from .backends import Backends

_BY_INSTANCE = ("instance",)


class BackendSource:
    """A source for GatewayMetrics.ask. Instances are those of gateway.toml: a bounded number."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    def collect(self) -> Iterator[Metric]:
        """All numbers as they are now."""
        counted = self._backends.numbers
        yield _gauge("requests_waiting", "Requests that wait for an instance", counted.waiting)
        yield _counter("requests_rejected", "Requests refused: too many waited", counted.rejected)
        yield _counter("requests_expired", "Requests refused: waited too long", counted.expired)
        yield _by_instance("upstream_requests", "Requests sent to an instance", counted.requests)
        running = GaugeMetricFamily(
            "kloros_gateway_upstream_running",
            "Requests that an instance answers",
            None,
            _BY_INSTANCE,
        )
        for name in self._backends.states():
            running.add_metric((name,), counted.running.get(name, 0))
        yield running
        yield _by_instance(
            "retries", "Requests tried again, by the instance that broke off", counted.retries
        )
        fallbacks = CounterMetricFamily(
            "kloros_gateway_fallbacks",
            "Requests that another instance served",
            None,
            ("instance", "fallback"),
        )
        for (name, other), count in sorted(counted.fallbacks.items()):
            fallbacks.add_metric((name, other), count)
        yield fallbacks
        errors = CounterMetricFamily(
            "kloros_gateway_upstream_errors",
            "Errors of an instance, by kind",
            None,
            ("instance", "kind"),
        )
        for (name, kind), count in sorted(counted.errors.items()):
            errors.add_metric((name, kind), count)
        yield errors
        yield _by_instance(
            "breaker_openings",
            "How often an instance's circuit breaker opened",
            self._backends.breaker_openings(),
        )
        yield from self._states()

    def _states(self) -> Iterator[Metric]:
        breaker = GaugeMetricFamily(
            "kloros_gateway_breaker_state",
            "1 for the state that an instance's circuit breaker is in",
            None,
            ("instance", "state"),
        )
        up = GaugeMetricFamily(
            "kloros_gateway_instance_up", "1 where an instance answers", None, _BY_INSTANCE
        )
        for name, state in self._backends.states().items():
            up.add_metric((name,), 1 if state.status == "up" else 0)
            for one in get_args(BreakerState):
                breaker.add_metric((name, one), 1 if state.breaker == one else 0)
        yield breaker
        yield up


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"kloros_gateway_{name}", help_text, value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"kloros_gateway_{name}", help_text, value)


def _by_instance(name: str, help_text: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"kloros_gateway_{name}", help_text, None, _BY_INSTANCE)
    for instance, count in sorted(counts.items()):
        family.add_metric((instance,), count)
    return family
