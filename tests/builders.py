"""Small builders for tests of the core: configurations, records, and a bench around one bare shard with a ledger that is told what to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from laxity.schemas import config as configuration
from laxity.schemas.identity import run_id_of, task_id_of
from laxity.schemas.records import (
    Command,
    InputRange,
    Journal,
    Original,
    Outcome,
    TaskEvent,
    TaskRow,
    Trigger,
)
from laxity.schemas.serde import Codec, decode_row
from laxity.schemas.topics import TIERS
from laxity.streams.effects import BatchInput, Effects, Record
from laxity.streams.ledger.protocol import Answer, Candidate, Exchange, Grant, Refusal
from laxity.streams.scheduler import Scheduler
from laxity.streams.state import keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.testing import TopologyTestDriver

START_MS = 1_700_000_000_000
CODEC = Codec.local()
CONFIG = """
[resources.llm]
kind = "rate"
requests_per_minute = 6000
tokens_per_minute = 600000
[resources.browser]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
[types.work]
max_attempts = 3
backoff_ms = 200
backoff_ms_max = 1000
on_unknown = "retry"
[types.parked]
on_unknown = "park"
"""
R = TypeVar("R")


def config(text: str = CONFIG) -> configuration.Config:
    return configuration.parse(text)


def driver(text: str = CONFIG, **options: Any) -> TopologyTestDriver:
    return TopologyTestDriver(config(text), **options)


def trigger(key: str = "k", **fields: Any) -> Trigger:
    return Trigger(**{"type": "work", "key": key, "payload": b"{}", **fields})


def task_id(key: str = "k", tenant: str = "default", run_id: str = "") -> str:
    return task_id_of(tenant, run_id_of(tenant, run_id, key), key)


def row(**fields: Any) -> TaskRow:
    base: dict[str, Any] = {
        "tenant": "default",
        "run_id": "r",
        "key": "k",
        "type": "work",
        "tier": 2,
        "fleet": "default",
        "state": "READY",
        "reason": "accepted",
        "seq": 1,
        "accepted_ms": START_MS,
        "deadline_ms": START_MS + 60_000,
        "firm": False,
        "estimate_ms": 0,
        "demands": {},
        "digest": b"d" * 32,
        "max_attempts": 3,
    }
    return TaskRow(**(base | fields))


Say = Callable[[Exchange], Answer | None]


def answer(**fields: Any) -> Answer:
    return Answer(**{"status": "ok", "epoch": "e1", "sequence": 1, **fields})


def grant(candidate: Candidate) -> Grant:
    return Grant(
        reservation_id=candidate.reservation_id,
        runner="runner",
        partition=0,
        granted={**candidate.demands, f"fleet.{candidate.fleet}": 1},
        granted_ms=START_MS,
    )


def grant_all(exchange: Exchange) -> Answer:
    """Everything is granted, settled, revoked."""
    return answer(
        grants=[grant(c) for c in exchange.candidates],
        settled=[s.reservation_id for s in exchange.settles],
        verdicts=dict.fromkeys((*exchange.revokes, *exchange.cancels), "revoked"),
    )


def silent(_exchange: Exchange) -> None:
    """No answer in time."""


def refuse(resource: str, reason: str = "slots_full", retry_ms: int = 1_000) -> Say:
    """Every candidate is refused for one resource."""

    def say(exchange: Exchange) -> Answer:
        refusals = [
            Refusal(reservation_id=c.reservation_id, reason=reason, resource=resource, retry_ms=retry_ms)
            for c in exchange.candidates
        ]
        return answer(refusals=refusals, settled=[s.reservation_id for s in exchange.settles])

    return say


def verdicts(verdict: str) -> Say:
    """Every revoke and cancel is answered so; candidates are neither granted nor refused."""
    return lambda exchange: answer(verdicts=dict.fromkeys((*exchange.revokes, *exchange.cancels), verdict))


class Bench:
    """One shard without a host: batches by hand, the ledger's answers as told; `exchange` is what was last asked of it."""

    def __init__(
        self,
        text: str = CONFIG,
        *,
        shard: int = 0,
        shards: int = 1,
        store: MemoryStore | None = None,
        key_store: MemoryStore | None = None,
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config(text)
        self.store, self.keys = store or MemoryStore(), key_store or MemoryStore()
        self.now_ms = START_MS
        self.ends: dict[str, int] = {}
        self.shard = shard
        self.core = Scheduler(
            shard=shard,
            shards=shards,
            config=self.config,
            codec=CODEC,
            store=self.store,
            keys=self.keys,
            topic_ids=topic_ids,
        )
        self.exchange = Exchange(shard=shard, owner_epoch=0)
        self.history: list[Effects] = []
        self._commit(self.core.take_over(self.now_ms))

    def record(self, topic: str, value: Any, *, offset: int | None = None, **fields: Any) -> Record:
        """The next record of a topic, or one at a given offset."""
        at = self.ends.get(topic, 0) if offset is None else offset
        self.ends[topic] = max(self.ends.get(topic, 0), at + 1)
        raw = value if value is None or isinstance(value, bytes) else CODEC.encode(value)
        return Record(
            **{
                "topic": topic,
                "partition": self.shard,
                "offset": at,
                "timestamp_ms": self.now_ms,
                "key": b"r",
                "value": raw,
                **fields,
            }
        )

    def trigger(self, key: str = "k", tier: str = "normal", **fields: Any) -> Record:
        return self.record(f"triggers.{tier}", trigger(key, **fields))

    def outcome(self, kind: str, key: str = "k", **fields: Any) -> Record:
        """Of the task's current dispatch, unless `fields` say otherwise."""
        found = self.row(key) or row()
        base: dict[str, Any] = {
            "kind": kind,
            "task_id": task_id(key),
            "generation": found.generation,
            "dispatch_no": found.dispatch_no,
            "attempt": found.attempt + (0 if found.started_ms else 1),
            "runner": "runner",
        }
        return self.record("outcomes", Outcome(**(base | fields)))

    def command(self, kind: str, key: str = "k", **fields: Any) -> Record:
        return self.record(
            "control", Command(**{"kind": kind, "command_id": "c", "task_id": task_id(key), **fields})
        )

    def nominate(self, *records: Record, **fields: Any) -> Exchange:
        ranges = []
        for topic in dict.fromkeys(r.topic for r in records):
            offsets = [r.offset for r in records if r.topic == topic]
            first, end = min(offsets), max(offsets) + 1
            ranges.append(
                InputRange(topic=topic, partition=self.shard, first=first, next=end, count=len(offsets))
            )
        batch = BatchInput(**{"records": records, "ranges": ranges, "now_ms": self.now_ms, **fields})
        self.exchange = self.core.nominate(batch)
        return self.exchange

    def step(
        self, *records: Record, say: Say = grant_all, end: int = -1, commit: bool = True, **fields: Any
    ) -> Effects:
        """One batch from its records to the caches; `fields` are those of BatchInput."""
        exchange = self.nominate(*records, **fields)
        effects = self.core.conclude(say(exchange), outcomes_end=end)
        if commit:
            self._commit(effects)
        else:
            self.core.aborted()
        return effects

    def _commit(self, effects: Effects) -> None:
        self.store.write([*(keys.state_write(c) for c in effects.state), *effects.local])
        self.keys.write([keys.key_write(c) for c in effects.keys])
        self.core.applied()
        self.history.append(effects)

    def rest(self, say: Say = grant_all, batches: int = 50) -> None:
        """Batches without input until nothing is due at this instant."""
        for _ in range(batches):
            due = self.core.next_wakeup()
            if due is None or due > self.now_ms:
                return
            self.step(say=say)
        raise AssertionError(f"still at work after {batches} batches")

    def restarted(self, text: str | None = None) -> Bench:
        """Another process over the same stores."""
        bench = Bench.__new__(Bench)
        bench.__dict__.update(self.__dict__)
        bench.config = self.config if text is None else config(text)
        place = self.core._place
        bench.core = Scheduler(
            shard=self.shard,
            shards=place.shards,
            config=bench.config,
            codec=CODEC,
            store=self.store,
            keys=self.keys,
        )
        bench._commit(bench.core.take_over(bench.now_ms))
        return bench

    def row(self, key: str = "k") -> TaskRow | None:
        raw = self.store.get(keys.state_key(keys.TASK, task_id(key).encode()))
        return None if raw is None else decode_row(TaskRow, raw)

    def live(self, key: str = "k") -> TaskRow:
        found = self.row(key)
        assert found is not None, f"{key} is not live"
        return found

    def reservation(self, key: str = "k", ahead: int = 0) -> str:
        found = self.live(key)
        return f"{task_id(key)}:{found.generation}:{found.dispatch_no + ahead}"

    def dispatched(self, key: str = "k", tier: str = "normal", **fields: Any) -> TaskRow:
        """Publish and dispatch one task."""
        self.step(self.trigger(key, tier, **fields))
        found = self.live(key)
        assert found.state == "DISPATCHED"
        return found

    def running(self, key: str = "k", tier: str = "normal", **fields: Any) -> TaskRow:
        """Publish, dispatch and start one task."""
        self.dispatched(key, tier, **fields)
        self.step(self.outcome("started", key), say=silent)
        return self.live(key)


def outputs(effects: Effects, topic: str, kind: type[R]) -> list[R]:
    """What a batch wrote to a topic (a prefix of its name), decoded."""
    return [decode_row(kind, o.value or b"") for o in effects.outputs if o.topic.startswith(topic)]


def events(effects: Effects, kind: str = "") -> list[TaskEvent]:
    return [e for e in outputs(effects, "events.", TaskEvent) if kind in {"", e.kind}]


def letters(effects: Effects, tier: str = "") -> list[Any]:
    return [o for o in effects.outputs if o.topic.startswith(f"dlq.{tier}")]


def journal(effects: Effects) -> Journal:
    return outputs(effects, "journal", Journal)[0]


def header(letter: Any, name: str) -> str:
    raw = dict(letter.headers)[f"laxity.error.{name}"]
    return str(raw.decode())


def original(record: Record, prefix: str = "laxity.") -> Original:
    return Original(
        topic=prefix + record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key,
        value=record.value,
    )


def asked(exchange: Exchange) -> Sequence[str]:
    """Task ids of the candidates, in order."""
    return [c.task_id for c in exchange.candidates]


def per_tier(effects: Sequence[Effects]) -> Mapping[str, int]:
    """Dispatches per tier."""
    counts = dict.fromkeys(TIERS, 0)
    for one in effects:
        for output in one.outputs:
            if output.topic.startswith("dispatch."):
                counts[(dict(output.headers)["laxity-tier"] or b"").decode()] += 1
    return counts
