"""The provider's metrics, one catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from laxity.infra.demo.provider.line import Line

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)  # from a fast demonstration to the longest ordinary call


class Metrics:
    """Counters of one provider, in a registry of its own: several can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "laxity_provider_calls_total",
            "Calls answered, by what the ledger says of them.",
            ("model", "kind", "status"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "laxity_provider_tokens_total",
            "LLM tokens of calls that were served: prompt (in) and generated (out).",
            ("model", "direction"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "laxity_provider_call_seconds",
            "From a call's arrival to its answer, all kinds.",
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.in_flight = Gauge(
            "laxity_provider_in_flight",
            "Calls that have arrived and are not answered.",
            registry=self._registry,
        )

    def count(self, line: Line) -> None:
        """Count a line that is in the ledger; its model is one on offer or empty."""
        self._calls.labels(line.model, line.kind.value, str(line.status)).inc()
        if line.kind == "effect":
            self._tokens.labels(line.model, "in").inc(line.tokens_in)
            self._tokens.labels(line.model, "out").inc(line.tokens_out)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
