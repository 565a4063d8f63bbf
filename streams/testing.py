"""TopologyTestDriver: the real shards over a log in memory and a manual clock, for tests of what you build on Laxity.

    driver = TopologyTestDriver()
    driver.pipe("normal", Trigger(type="summarise", key="invoice-7"))
    driver.work()                                   # runners in memory carry out what was dispatched
    assert driver.events()[-1].state == "SUCCEEDED"
    driver.advance(60_000)                          # timers fire
    assert driver.table("task") == {}

No broker, no Redis, no sleeping; the same code that runs in production decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from laxity.schemas import config as configuration
from laxity.schemas.identity import positional_key, run_id_of
from laxity.schemas.records import (
    Command,
    Dispatch,
    Journal,
    KeyRow,
    Link,
    Outcome,
    PayloadRow,
    SettleRow,
    ShardRow,
    TaskEvent,
    TaskRow,
    Trigger,
    Usage,
)
from laxity.schemas.serde import Codec, decode_row
from laxity.schemas.timing import ManualClock
from laxity.schemas.topics import TIERS
from laxity.streams.effects import Record
from laxity.streams.ledger.limits import Limits
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.protocol import LedgerUnavailable
from laxity.streams.simulator.host import Disk, ShardHost, World
from laxity.streams.simulator.log import Log
from laxity.streams.simulator.runner import Provider, SimRunner, Verdict, success
from laxity.streams.state import keys

BATCHES_MAX = 10_000  # a topology that has not come to rest by then never will
_ROWS = {keys.TASK: TaskRow, keys.PAYLOAD: PayloadRow, keys.SETTLE: SettleRow, keys.SHARD: ShardRow}
_RECORDS: dict[str, type] = {
    "dispatch": Dispatch,
    "events": TaskEvent,
    "usage": Usage,
    "journal": Journal,
    "links": Link,
    "outcomes": Outcome,
    "control": Command,
    "triggers": Trigger,
    "keys": KeyRow,
}
R = TypeVar("R")


def log_for(config: configuration.Config, shards: int) -> Log:
    """An empty log with every topic of a deployment."""
    names = ["control", "links", "outcomes", "state", "keys", "usage", "journal", "dlq.internal"]
    names += [f"{kind}.{tier}" for kind in ("triggers", "events", "dlq") for tier in TIERS]
    partitions = dict.fromkeys(names, shards)
    partitions |= {f"dispatch.{fleet.name}": fleet.partitions for fleet in config.fleets.values()}
    return Log(partitions)


class TopologyTestDriver:
    """All shards of a deployment, with runners in memory that work only when told to."""

    def __init__(
        self,
        config: configuration.Config | None = None,
        *,
        shards: int = 1,
        clock: ManualClock | None = None,
        slots: int = 4,
        verdict: Verdict = success,
    ) -> None:
        """One runner per configured fleet with `slots` slots; `verdict` says what its agents make of a dispatch."""
        self.config = config or configuration.parse(configuration.packaged_text())
        self.clock = clock or ManualClock()
        self.codec = Codec.local()
        self.log = log_for(self.config, shards)
        self.world = World(
            log=self.log, clock=self.clock, config=self.config, codec=self.codec, shards=shards
        )
        self.ledger = MemoryLedger(limits=Limits.of(self.config), shards=shards, clock=self.clock)
        self.provider = Provider()
        self.runners = [
            SimRunner(
                f"runner-{fleet}",
                self.world,
                self.ledger,
                self.provider,
                self.clock,
                partition=0,
                fleet=fleet,
                slots=slots,
                verdict=verdict,
            )
            for fleet in self.config.fleets
        ]
        self.disks = [Disk() for _ in range(shards)]
        self.shards = [ShardHost(self.world, i, disk, self.ledger) for i, disk in enumerate(self.disks)]
        for shard in self.shards:
            shard.start()
        for runner in self.runners:
            runner.register()
        self.settle()

    def pipe(
        self,
        tier: str,
        trigger: Trigger | bytes,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> Record:
        """Publish to a tier as any producer would, and run the shards to rest. Bytes are written as they are."""
        if isinstance(trigger, Trigger):
            key = key or run_id_of(trigger.tenant, trigger.run_id, trigger.key).encode()
            trigger = self.codec.encode(trigger)
        return self.send(f"triggers.{tier}", trigger, key=key, partition=partition, headers=headers)

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> Record:
        """Write any record (bytes as they are) to any topic, and run the shards to rest."""
        raw = value if value is None or isinstance(value, bytes) else self.codec.encode(value)
        self.log.append((topic, partition, key, raw, headers), self.clock.now_ms())
        self.settle()
        return max(self.log.all(topic), key=lambda record: (record.timestamp_ms, record.offset))

    def settle(self) -> None:
        """Run batches until no shard has anything left to do now."""
        for _ in range(BATCHES_MAX):
            due = [shard for shard in self.shards if shard.due()]
            for shard in due:
                shard.run()
            if not due and not any(shard.look() for shard in self.shards):
                return
        raise AssertionError(f"not at rest after {BATCHES_MAX} batches")

    def work(self, rounds: int = 1_000) -> None:
        """Let the runners carry out what was dispatched, and the shards go on, until nothing moves."""
        for _ in range(rounds):
            moved = [runner.tick() for runner in self.runners]
            self.settle()
            if not any(moved):
                return
        raise AssertionError(f"still moving after {rounds} rounds")

    def advance(self, ms: int, *, step_ms: int = 1_000) -> None:
        """Move the clock, in steps, letting timers fire and runners renew, where `ledger.available`."""
        for done in range(0, ms, step_ms):
            self.clock.advance(min(step_ms, ms - done))
            for runner in self.runners:
                with suppress(LedgerUnavailable):
                    runner.register()
            self.settle()

    def read(self, topic: str) -> list[Any]:
        """Every record of a topic, decoded; dead letters as raw Records."""
        kind = _RECORDS.get(topic.partition(".")[0])
        records = self.log.all(topic)
        return records if kind is None else [self.codec.decode(kind, record.value) for record in records]

    def events(self) -> list[TaskEvent]:
        """The events of all tiers, in the order of batches."""
        found = [event for tier in TIERS for event in self.read(f"events.{tier}")]
        return sorted(found, key=lambda event: (event.at_ms, event.shard, event.batch))

    def table(self, name: str) -> Mapping[str, Any]:
        """A changelogged table of all shards, decoded: task, payload, settle, shard."""
        prefix = keys.state_key(name, b"")
        rows = (row for disk in self.disks for row in disk.state.scan(prefix, prefix + keys.MAX_KEY))
        return {key[1:].decode(): decode_row(_ROWS[name], value) for key, value in rows}

    def position(self, tier: str, trigger: Record) -> str:
        """The idempotency key that a trigger without one gets."""
        return positional_key(f"{self.world.prefix}triggers.{tier}", trigger.partition, trigger.offset)
