"""A shard's host in memory: the order of steps of the real one, and a chance to crash between any two of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from laxity.schemas.config import Config
from laxity.schemas.records import InputRange
from laxity.schemas.serde import Codec
from laxity.schemas.topics import TIERS
from laxity.streams.effects import BatchInput, Effects, Output, Record
from laxity.streams.ledger.protocol import Answer, Exchange, LedgerUnavailable, ShardLedger
from laxity.streams.scheduler import Scheduler
from laxity.streams.simulator.log import FencedError, Log, NewRecord, TopicPartition
from laxity.streams.state import changelog, keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.tables import restored

INPUTS = ("control", "links", "outcomes", *(f"triggers.{tier}" for tier in TIERS))
STEPS = (
    "after_poll",
    "after_step",
    "ledger_before",
    "ledger_after",
    "before_commit",
    "after_commit",
    "mid_apply",
    "after_apply",
    "mid_restore",
    "mid_takeover",
)
RECORDS_MAX = 500
_OFFSET = keys.HOST + b"changelog"


class Crash(BaseException):
    """The process is gone: nothing after this runs, nothing in memory is left."""


def never(_step: str) -> None:
    """A host that does not crash."""


@dataclass(slots=True, kw_only=True)
class Disk:
    """What survives a crash of the process."""

    state: MemoryStore = field(default_factory=MemoryStore)
    keys: MemoryStore = field(default_factory=MemoryStore)


@dataclass(slots=True, kw_only=True)
class World:
    """What hosts share."""

    log: Log
    config: Config
    codec: Codec
    shards: int
    prefix: str = "laxity."


class ShardHost:
    """One process's task for one shard, from takeover to crash or fencing."""

    def __init__(
        self,
        world: World,
        shard: int,
        disk: Disk,
        ledger: ShardLedger,
        *,
        reach: Callable[[str], None] = never,
    ) -> None:
        """Takes nothing over yet: `start` does."""
        self._world, self._shard, self._disk, self._ledger, self._reach = world, shard, disk, ledger, reach
        self._id = f"{world.prefix}scheduler.{shard}"
        self._held: tuple[str, ...] = ()
        self._lapsed: tuple[str, ...] = ()
        self.woken: list[str] = []
        self.abort_next = False  # the next transaction is aborted by the broker

    def start(self, now_ms: int) -> None:
        """Fence, restore to the end, commit the next owner epoch, reconcile."""
        log = self._world.log
        self._epoch = log.init(self._id)
        self._restore()
        self._reach("mid_restore")
        self.core = Scheduler(
            shard=self._shard,
            shards=self._world.shards,
            config=self._world.config,
            codec=self._world.codec,
            store=self._disk.state,
            keys=self._disk.keys,
            prefix=self._world.prefix,
        )
        self._positions = {t: max(log.committed.get((t, self._shard), 0), 0) for t in INPUTS}
        self._commit(self.core.take_over(now_ms), {})
        self._reach("mid_takeover")
        self._reconcile()

    def _restore(self) -> None:
        state, keys_store, log = self._disk.state, self._disk.keys, self._world.log
        for topic, store in (("state", state), ("keys", keys_store)):
            stored = int.from_bytes(store.get(_OFFSET) or b"", "big")
            rows = [(r.key or b"", r.value) for r in log.read(topic, self._shard, stored)]
            if topic == "state":
                for change in changelog.state_changes(rows, self._world.codec):
                    store.write(restored(store, [change]))
            else:
                store.write([keys.key_write(c) for c in changelog.keys_changes(rows, self._world.codec)])
            store.write([(_OFFSET, log.end(topic, self._shard).to_bytes(8, "big"))])

    def _reconcile(self) -> bool:
        core = self.core
        try:
            result = self._ledger.reconcile(
                shard=self._shard,
                owner_epoch=core.owner_epoch,
                seen_epoch=core.seen_epoch,
                live=core.live(),
            )
        except LedgerUnavailable:
            return False
        if result.status == "fenced":
            raise FencedError("the ledger knows a higher owner epoch")
        self._lapsed = tuple(dict.fromkeys((*self._lapsed, *result.lapsed)))
        return True

    def due(self, now_ms: int) -> bool:
        """Whether there are records to read or a wake-up is due."""
        wakeup = self.core.next_wakeup()
        if wakeup is not None and wakeup <= now_ms:
            return True
        log = self._world.log
        return bool(self.woken or self._lapsed) or any(
            log.end(t, self._shard) > self._positions[t] for t in INPUTS
        )

    def run(self, now_ms: int, most: int = RECORDS_MAX, *, late: Collection[str] = ()) -> Effects | None:
        """One batch. Raises Crash where `reach` says so, FencedError where another took over. None: aborted, to be redone.

        `late`: topics whose fetch has not come back yet.
        """
        batch = self._poll(now_ms, most, late)
        self._reach("after_poll")
        exchange = self.core.nominate(batch)
        self._reach("ledger_before")
        answer = self._ask(exchange)
        self._reach("ledger_after")
        end = self._world.log.end("outcomes", self._shard)
        effects = self.core.conclude(answer, outcomes_end=end)
        self._reach("after_step")
        asked = {c.reservation_id for c in exchange.candidates}
        if self.abort_next:
            self.abort_next = False
            self.core.aborted()
            refused = {r.reservation_id for r in answer.refusals} if answer else set()
            self._held = tuple(sorted((asked - refused) | set(self._held)))
            return None
        offsets = {(r.topic, r.partition): r.next for r in batch.ranges}
        self._commit(effects, offsets)
        for moved in batch.ranges:
            self._positions[moved.topic] = moved.next
        self._held = tuple(sorted(asked)) if answer is None else ()
        self._lapsed = ()
        self.woken = []
        if answer is not None and answer.status == "recovering":
            self._reconcile()
        return effects

    def look(self) -> None:
        """What the real host asks when nothing else happens: leases that no task stands behind any more lapse then."""
        answer = self._ask(Exchange(shard=self._shard, owner_epoch=self.core.owner_epoch))
        if answer is not None and answer.status == "recovering":
            self._reconcile()

    def _poll(self, now_ms: int, most: int, late: Collection[str]) -> BatchInput:
        records: list[Record] = []
        ranges: list[InputRange] = []
        for topic in INPUTS:
            if topic in late:
                continue
            first = self._positions[topic]
            found = self._world.log.read(topic, self._shard, first, most - len(records))
            end = self._world.log.end(topic, self._shard)
            whole = len(found) < most - len(records)
            records += found
            reached = end if whole else (found[-1].offset + 1 if found else first)
            if reached > first:
                ranges.append(
                    InputRange(
                        topic=topic, partition=self._shard, first=first, next=reached, count=len(found)
                    )
                )
        return BatchInput(
            records=records,
            ranges=ranges,
            now_ms=now_ms,
            held=self._held,
            lapsed=self._lapsed,
            woken=tuple(self.woken),
        )

    def _ask(self, exchange: Exchange) -> Answer | None:
        try:
            answer = self._ledger.exchange(exchange)
        except LedgerUnavailable:
            return None
        if answer.status == "fenced":
            raise FencedError("the ledger knows a higher owner epoch")
        return answer

    def _commit(self, effects: Effects, offsets: dict[TopicPartition, int]) -> None:
        """The transaction, then the stores, then the caches."""
        self._reach("before_commit")
        log, now_ms = self._world.log, self.core.now_ms
        log.commit(self._id, self._epoch, self._news(effects), offsets, now_ms)
        self._reach("after_commit")
        end = log.end("state", self._shard).to_bytes(8, "big")
        writes = [*(keys.state_write(c) for c in effects.state), *effects.local, (_OFFSET, end)]
        self._disk.state.write(writes)
        self._reach("mid_apply")
        end = log.end("keys", self._shard).to_bytes(8, "big")
        self._disk.keys.write([*(keys.key_write(c) for c in effects.keys), (_OFFSET, end)])
        self._reach("after_apply")
        self.core.applied()

    def _news(self, effects: Effects) -> list[NewRecord]:
        codec, shard = self._world.codec, self._shard
        news: list[NewRecord] = [("state", shard, *changelog.state_row(c, codec), ()) for c in effects.state]
        news += [("keys", shard, *changelog.keys_row(c, codec), ()) for c in effects.keys]
        return news + [_new(output, codec) for output in effects.outputs]


def _new(output: Output, codec: Codec) -> NewRecord:
    value = output.value
    if output.schema is not None and value is not None:
        value = codec.frame(output.schema, value)
    return (output.topic, output.partition, output.key, value, output.headers)
