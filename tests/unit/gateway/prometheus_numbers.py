"""What Prometheus would read, for tests."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kloros_llm.gateway.front.metrics import GatewayMetrics


def numbers(metrics: GatewayMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and its labels' values, these in the order of their names."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
