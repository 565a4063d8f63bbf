"""The runner's metrics, in one catalogue with help text. No task, run or tenant is a label."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0, 3_600.0)
"""From an agent that only computes to one that works for an hour."""


class RunnerMetrics:
    """One set per process; `registry` is what /metrics shows."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.running = Gauge("laxity_runner_running", "Attempts whose agent runs.", registry=r)
        self.slots = Gauge("laxity_runner_slots", "Places to run.", registry=r)
        self.slots_taken = Gauge("laxity_runner_slots_taken", "Places in use.", registry=r)
        self.credit = Gauge("laxity_runner_credit", "Dispatches that may stand at this runner.", registry=r)
        self.unfinished = Gauge(
            "laxity_runner_unfinished_records", "Dispatches read and not finished.", registry=r
        )
        self.partitions = Gauge("laxity_runner_partitions", "Assigned partitions of the fleet.", registry=r)
        self.claims = Counter(
            "laxity_runner_claims", "Claims by the ledger's verdict.", ["verdict"], registry=r
        )
        self.outcomes = Counter(
            "laxity_runner_outcomes", "Durable outcomes; none: left to the lease.", ["kind"], registry=r
        )
        self.bounces = Counter(
            "laxity_runner_bounces", "Dispatches that were not taken up, by reason.", ["code"], registry=r
        )
        self.poison = Counter("laxity_runner_poison", "Dispatches that could not be decoded.", registry=r)
        self.renewals_failed = Counter(
            "laxity_runner_renewals_failed", "Renewals without an answer.", registry=r
        )
        self.run_seconds = Histogram(
            "laxity_runner_run_seconds",
            "From the durable start to the agent's end.",
            buckets=SECONDS,
            registry=r,
        )
        self.call_wait_seconds = Histogram(
            "laxity_runner_call_wait_seconds",
            "Wait of an attempt for further provider calls.",
            buckets=SECONDS,
            registry=r,
        )
