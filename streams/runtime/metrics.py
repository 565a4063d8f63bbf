"""The catalogue of the scheduler's metrics. Labels are bounded: tier, configured type, configured resource, shard, topic; never a task, a run or a tenant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

COMMIT_SECONDS = (
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
)  # the interval is 2 to 100 ms, the limit 2 s

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per series, which nothing reads

Lags = Callable[[], Mapping[tuple[str, int], int]]


class _LagCollector(Collector):
    """Asks for lags when scraped: they change with every fetch."""

    def __init__(self, lags: Lags) -> None:
        self._lags = lags

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "laxity_consumer_lag",
            "Records not yet read, by topic and partition.",
            labels=("topic", "partition"),
        )
        for (topic, partition), lag in sorted(self._lags().items()):
            family.add_metric((topic, str(partition)), lag)
        return [family]


class Metrics:
    """One registry per process; `lags` is asked at each scrape."""

    def __init__(self, lags: Lags = dict) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LagCollector(lags))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"laxity_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"laxity_{name}", text, labels, registry=self.registry)

        self.deadline_missed = counter(
            "deadline_missed_total", "Tasks that ended after their deadline or never.", "tier", "type"
        )
        self.ended = counter("tasks_ended_total", "Tasks that reached a terminal state.", "tier", "state")
        self.dispatched = counter("dispatched_total", "Attempts handed to a runner.", "tier")
        self.bounced = counter(
            "dispatch_bounced_total", "Dispatches that came back without an attempt.", "reason"
        )
        self.depth = gauge("queue_depth", "Tasks that wait to be dispatched.", "tier", "shard")
        self.oldest_wait = gauge(
            "oldest_wait_seconds",
            "How long the longest waiting task of a tier has been ready.",
            "tier",
            "shard",
        )
        self.reserved = counter("resource_reserved_total", "Demand granted by the ledger.", "resource")
        self.used = counter("resource_used_total", "Actual use, as runners reported it.", "resource")
        self.batches = counter("batches_total", "Batches committed.", "shard")
        self.records = counter("batch_records_total", "Input records in committed batches.", "topic")
        self.batch_seconds = Histogram(
            "laxity_batch_seconds",
            "From taking the input to the written store.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        self.commit_seconds = Histogram(
            "laxity_commit_seconds",
            "One transaction, from its beginning to the commit's answer.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        self.aborts = counter(
            "batch_aborts_total", "Transactions that were aborted and tried again.", "shard"
        )
        self.unanswered = counter("ledger_unanswered_total", "Batches without the ledger's answer.", "shard")
        self.strays = counter(
            "strays_total", "Triggers on a partition of another shard, sent on to it.", "tier"
        )
        self.duplicates = counter("duplicates_total", "Triggers whose task was already known.", "tier")
        self.conflicts = counter("conflicts_total", "Triggers that reuse a key with other content.", "tier")
        self.rejected = counter(
            "rejected_total", "Records that never became a task, now dead letters.", "reason"
        )
        self.restore_seconds = gauge("restore_seconds", "Duration of the last restore.", "shard", "changelog")
        self.restored_rows = counter(
            "restored_rows_total", "Changelog records read at restores.", "changelog"
        )
        self.starts_over = counter("shard_starts_over_total", "Ownerships that ended in an error.", "shard")
        self.shards = gauge("shards_running", "Shards that this process runs.")
        self.standby_lag = gauge(
            "standby_lag", "Changelog records that a warm copy of another process's shard lacks.", "shard"
        )

    def standby_ended(self, shard: int) -> None:
        """There is no copy of it here any more."""
        self.standby_lag.remove(str(shard))
