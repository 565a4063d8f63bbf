"""A shard's host in memory: the real batch and the real restore over a log, a clock and stores in memory, with a chance to crash at each step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import TopicPartition

from laxity.schemas.config import Config
from laxity.schemas.records import InputRange
from laxity.schemas.serde import Codec
from laxity.schemas.timing import Clock, Millis
from laxity.schemas.topics import Names
from laxity.streams.effects import Effects, Record
from laxity.streams.ledger.protocol import Answer, Exchange, LedgerUnavailable, Live, Reconciled, ShardLedger
from laxity.streams.runtime import cycle
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.sources import INPUTS, OUTCOMES
from laxity.streams.runtime.stores import Stores, derivations
from laxity.streams.runtime.transactions import AbortedError, Message
from laxity.streams.scheduler import Scheduler
from laxity.streams.simulator.log import Log
from laxity.streams.state.changelog import KEYS, STATE
from laxity.streams.state.keys import MAX_KEY
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.restore import Batch, restore

STEPS = (
    "after_poll",
    "before_ledger",
    "after_ledger",
    "after_step",
    "before_commit",
    "after_commit",
    "mid_apply",
    "after_apply",
    "mid_restore",
    "mid_takeover",
)
RECORDS_MAX = 500
TOPIC_ID = "in-memory"


class Crash(BaseException):
    """The process is gone: nothing after this runs, nothing in memory is left."""


def never(_step: str) -> None:
    """A host that does not crash."""


Reach = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Disk:
    """What survives a crash of the process."""

    state: MemoryStore = field(default_factory=MemoryStore)
    keys: MemoryStore = field(default_factory=MemoryStore)

    def copy(self) -> Disk:
        """As it is now: a warm standby's, or a backup."""
        fresh = Disk()
        for old, new in ((self.state, fresh.state), (self.keys, fresh.keys)):
            new.write(list(old.scan(b"", MAX_KEY)))
        return fresh


@dataclass(slots=True, kw_only=True)
class World:
    """What hosts share."""

    log: Log
    clock: Clock
    config: Config
    codec: Codec
    shards: int
    prefix: str = "laxity."


class ShardHost:
    """One process's task for one shard, from takeover to crash or fencing."""

    def __init__(
        self, world: World, shard: int, disk: Disk, ledger: ShardLedger, *, reach: Reach = never
    ) -> None:
        """Takes nothing over yet: `start` does."""
        self._world, self._shard, self._disk, self._reach = world, shard, disk, reach
        self._transactions = _Transactions(world, f"{world.prefix}scheduler.{shard}", reach)
        self._line = _Line(ledger, reach)
        self._aborted: Taken | None = None  # to be run again

    def start(self) -> None:
        """Fence, restore to the end, commit the next owner epoch, reconcile. Raises Crash, FencedError."""
        world, disk = self._world, self._disk
        self._transactions.fence()
        restore_disk(world, self._shard, disk)
        self._reach("mid_restore")
        self.core = Scheduler(
            shard=self._shard,
            shards=world.shards,
            config=world.config,
            codec=world.codec,
            store=disk.state,
            keys=disk.keys,
            prefix=world.prefix,
        )
        self._cycle = cycle.Cycle(self.core, self._cycle_world())
        self._positions = {t: max(world.log.committed.get((t, self._shard), 0), 0) for t in INPUTS}
        self._reach("mid_takeover")
        self._cycle.take_over()
        self._cycle.reconcile()

    def _cycle_world(self) -> cycle.World:
        world, disk = self._world, self._disk
        ids = {STATE: TOPIC_ID, KEYS: TOPIC_ID}
        return cycle.World(
            shard=self._shard,
            stores=Stores(state=disk.state, keys=disk.keys, topic_ids=ids, reach=self._reach),
            transactions=self._transactions,
            outbox=Outbox(prefix=world.prefix, shard=self._shard, codec=world.codec),
            line=self._line,
            group_metadata=lambda: "the group",
            outcomes_end=lambda: world.log.end(OUTCOMES, self._shard),
            clock=world.clock,
            meter=_NoMeter(),
            reach=self._reach,
        )

    def hear(self, resource: str) -> None:
        """The ledger has room at a resource."""
        if self.core.waits_for(resource):
            self._cycle.pending.woken.add(resource)

    def abort_next(self) -> None:
        """The broker aborts the next transaction."""
        self._transactions.aborts_next = True

    def lose_next_answer(self) -> None:
        """The ledger does what it is asked next, and its answer never comes."""
        self._line.loses_next = True

    def due(self) -> bool:
        """Whether there are records to read, something to tell, or a wake-up."""
        wakeup, pending, log = self.core.next_wakeup(), self._cycle.pending, self._world.log
        if wakeup is not None and wakeup <= self._world.clock.now_ms():
            return True
        return bool(pending.woken or pending.lapsed or self._aborted) or any(
            log.end(topic, self._shard) > at for topic, at in self._positions.items()
        )

    def run(self, most: int = RECORDS_MAX, *, late: Collection[str] = ()) -> bool:
        """One batch; False: aborted, the same input comes again. Raises Crash where `reach` says so, FencedError where another took over.

        `late`: topics whose fetch has not come back yet.
        """
        taken = self._aborted or self._poll(most, late)
        try:
            self._cycle.run(taken)
        except AbortedError:
            self._aborted = taken
            return False
        self._aborted = None
        self._positions |= {moved.topic: moved.next for moved in taken.ranges}
        return True

    def look(self) -> bool:
        """What the real host does when nothing else happens: ask whether leases lapsed. Whether a batch came of it."""
        return self._cycle.look_at_ledger() and self.run()

    def _poll(self, most: int, late: Collection[str]) -> Taken:
        records: list[Record] = []
        ranges: list[InputRange] = []
        for topic in INPUTS:
            if topic in late:
                continue
            first, room = self._positions[topic], most - len(records)
            found = self._world.log.read(topic, self._shard, first, room)
            whole = len(found) < room
            end = self._world.log.end(topic, self._shard)
            reached = end if whole else (found[-1].offset + 1 if found else first)
            records += found
            if reached > first:
                ranges.append(self._range(topic, first, reached, len(found)))
        return Taken(records=records, ranges=ranges)

    def _range(self, topic: str, first: int, reached: int, count: int) -> InputRange:
        return InputRange(topic=topic, partition=self._shard, first=first, next=reached, count=count)


def restore_disk(world: World, shard: int, disk: Disk) -> None:
    """Both stores to the ends of their changelogs."""
    stores = {STATE: disk.state, KEYS: disk.keys}
    for topic, derive in derivations(world.codec).items():
        restore(stores[topic], _Changelog(world.log, topic, shard), derive, now_ms=world.clock.now_ms())


@dataclass(slots=True)
class _Changelog:
    """One partition, from a position to its end."""

    log: Log
    topic: str
    partition: int
    topic_id: str = TOPIC_ID

    def read(self, start: int | None) -> Iterator[Batch]:
        found = self.log.read_compacted(self.topic, self.partition, start or 0)
        rows = [(r.key or b"", r.value) for r in found]
        yield Batch(rows=rows, next=self.log.end(self.topic, self.partition), ended=True)


@dataclass(slots=True)
class _Transactions:
    """The transactional producer of one shard."""

    world: World
    transactional_id: str
    reach: Reach
    aborts_next: bool = False
    epoch: int = 0

    def fence(self) -> None:
        self.epoch = self.world.log.init(self.transactional_id)

    def commit(
        self,
        messages: Sequence[Message],
        offsets: Sequence[TopicPartition],
        metadata: Any,
        watched: Sequence[str] = (),
    ) -> dict[str, int]:
        assert metadata or not offsets, "offsets without the group's metadata"
        log, short = self.world.log, Names(self.world.prefix).short
        self.reach("before_commit")
        if self.aborts_next:
            self.aborts_next = False
            raise AbortedError("the broker said so")
        news = [(short(m.topic), m.partition, m.key, m.value, m.headers) for m in messages]
        at = {(short(o.topic), o.partition): o.offset for o in offsets}
        log.commit(self.transactional_id, self.epoch, news, at, self.world.clock.now_ms())
        shard = {m.topic: m.partition or 0 for m in messages}
        return {topic: log.end(short(topic), shard[topic]) for topic in watched if topic in shard}


@dataclass(slots=True)
class _Line:
    """The way to the ledger, without threads."""

    ledger: ShardLedger
    reach: Reach
    loses_next: bool = False

    def ask(self, exchange: Exchange) -> Answer | None:
        self.reach("before_ledger")
        try:
            answer: Answer | None = self.ledger.exchange(exchange)
        except LedgerUnavailable:
            answer = None
        if self.loses_next:
            self.loses_next, answer = False, None
        self.reach("after_ledger")
        return answer

    def begin_reconcile(
        self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]
    ) -> Future[Reconciled]:
        begun: Future[Reconciled] = Future()
        try:
            begun.set_result(
                self.ledger.reconcile(shard=shard, owner_epoch=owner_epoch, seen_epoch=seen_epoch, live=live)
            )
        except LedgerUnavailable as error:
            begun.set_exception(error)
        return begun

    def finish(self, begun: Future[Reconciled], *, wait_ms: Millis = 0) -> Reconciled | None:
        assert wait_ms >= 0, f"waits {wait_ms} ms"
        return None if begun.exception() else begun.result()


class _NoMeter:
    """Nobody looks."""

    def committed(self, took_ms: Millis) -> None:
        """Nothing."""

    def batch(self, effects: Effects, taken: Taken, *, silent: bool, took_ms: Millis) -> None:
        """Nothing."""
