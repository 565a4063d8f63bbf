"""Metrics of one shard, read off the effects of its committed batches: the pure core knows nothing of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from prometheus_client import Counter

from laxity.schemas.records import Dispatch, SettleRow, TaskEvent
from laxity.schemas.serde import decode_row
from laxity.schemas.timing import Clock, Millis
from laxity.schemas.topics import TIERS
from laxity.streams.effects import Effects, Output
from laxity.streams.lifecycle import TERMINAL, State
from laxity.streams.reasons import BOUNCES, Reason
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.state.keys import SETTLE

INTERNAL = "dlq.internal"
OTHER = "other"  # types and resources that are not configured share one label
WAITING = frozenset({State.READY, State.DELAYED})
REFUSALS = BOUNCES | {Reason.POISON}  # why a dispatch came back without an attempt
WATCHED_MAX = 2_048  # ready tasks per tier whose wait is watched: the first to come are the longest to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Names that may become labels."""

    types: Collection[str]
    resources: Collection[str]  # and fleets, as the ledger names them: `fleet.default`

    def type(self, name: str) -> str:
        """The type, or `other`."""
        return name if name in self.types else OTHER

    def resource(self, name: str) -> str:
        """The resource without its key, or `other`; a runner may report any name as used."""
        plain = name.partition(":")[0]
        return plain if plain in self.resources else OTHER


class ShardMeter:
    """Counts what was committed."""

    def __init__(self, shard: int, metrics: Metrics, known: Known, clock: Clock) -> None:
        self._shard = str(shard)
        self._metrics = metrics
        self._known = known
        self._clock = clock
        self._ready: tuple[dict[str, Millis], ...] = tuple({} for _ in TIERS)

    def batch(self, effects: Effects, taken: Taken, *, silent: bool, took_ms: Millis) -> None:
        """A batch is committed and in the stores. `silent`: the ledger was asked and did not answer in time."""
        metrics = self._metrics
        metrics.batches.labels(self._shard).inc()
        metrics.batch_seconds.observe(took_ms / 1000)
        if silent:
            metrics.unanswered.labels(self._shard).inc()
        for moved in taken.ranges:
            metrics.records.labels(moved.topic).inc(moved.count)
        for out in effects.outputs:
            if out.schema is TaskEvent and out.value is not None:
                self._event(decode_row(TaskEvent, out.value))
            elif out.topic == INTERNAL:
                metrics.rejected.labels(_reason(out)).inc()
            elif out.schema is Dispatch and out.value is not None:
                self._dispatch(decode_row(Dispatch, out.value))
        for change in effects.state:
            if change.table == SETTLE and change.value is not None:
                self._add(metrics.used, decode_row(SettleRow, change.value).used)

    def _dispatch(self, order: Dispatch) -> None:
        self._add(self._metrics.reserved, order.granted)

    def _add(self, counter: Counter, amounts: Mapping[str, int]) -> None:
        for name, amount in amounts.items():
            counter.labels(self._known.resource(name)).inc(max(0, amount))

    def _event(self, event: TaskEvent) -> None:
        metrics, tier = self._metrics, event.tier or OTHER
        if event.kind == "duplicate":
            metrics.duplicates.labels(tier).inc()
        elif event.kind == "conflict":
            metrics.conflicts.labels(tier).inc()
        elif event.kind == "rehomed":
            metrics.strays.labels(tier).inc()
        elif event.kind == "rejected":
            metrics.rejected.labels(event.code or OTHER).inc()
        elif event.kind == "transitions":
            self._moved(event, tier)

    def _moved(self, event: TaskEvent, tier: str) -> None:
        metrics = self._metrics
        ready = self._ready[TIERS.index(tier)] if tier in TIERS else {}
        if event.state == State.READY:
            if len(ready) < WATCHED_MAX:
                ready.setdefault(event.task_id, event.at_ms)
        else:
            ready.pop(event.task_id, None)
        metrics.dispatched.labels(tier).inc(sum(step.after == State.DISPATCHED for step in event.transitions))
        for step in event.transitions:
            if step.before == State.DISPATCHED and step.after in WAITING and step.reason in REFUSALS:
                metrics.bounced.labels(step.reason).inc()
        if event.state in TERMINAL:
            metrics.ended.labels(tier, event.state).inc()
            if event.missed_by_ms > 0:
                metrics.deadline_missed.labels(tier, self._known.type(event.type)).inc()

    def waiting(self, backlog: Collection[int]) -> None:
        """Tasks waiting per tier, and how long the oldest has."""
        now_ms = self._clock.now_ms()
        for tier, count, ready in zip(TIERS, backlog, self._ready, strict=True):
            self._metrics.depth.labels(tier, self._shard).set(count)
            oldest_ms = next(iter(ready.values()), now_ms)
            self._metrics.oldest_wait.labels(tier, self._shard).set(max(0, now_ms - oldest_ms) / 1000)

    def committed(self, took_ms: Millis) -> None:
        """A transaction was committed."""
        self._metrics.commit_seconds.observe(took_ms / 1000)

    def aborted(self) -> None:
        """A transaction was aborted."""
        self._metrics.aborts.labels(self._shard).inc()

    def restored(self, changelog: str, rows: int, took_ms: Millis) -> None:
        """A changelog was read."""
        self._metrics.restore_seconds.labels(self._shard, changelog).set(took_ms / 1000)
        self._metrics.restored_rows.labels(changelog).inc(rows)

    def started_over(self) -> None:
        """An ownership ended in an error."""
        self._metrics.starts_over.labels(self._shard).inc()
        for ready in self._ready:
            ready.clear()

    def gone(self) -> None:
        """The shard is another process's: its gauges go."""
        for tier in TIERS:
            for gauge in (self._metrics.depth, self._metrics.oldest_wait):
                gauge.remove(tier, self._shard)


def _reason(letter: Output) -> str:
    """Ours is the last header of its name."""
    found = next((v for name, v in reversed(letter.headers) if name == "laxity.error.reason"), None)
    return (found or OTHER.encode()).decode()
