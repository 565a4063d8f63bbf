"""One shard's state machine. Pure: no clock, no randomness, no I/O but reads of its own committed store.

A batch has three steps: `nominate` (inputs -> what to ask the ledger), the host's one ledger call, `conclude` (answer -> effects).
After the commit the host calls `applied`, after an abort `aborted`. All that is kept in memory between batches is a cache of the
store, changed only in `applied` and read anew by `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from laxity.schemas.config import Config, Keyed
from laxity.schemas.identity import reservation_id
from laxity.schemas.records import Journal, Link, Mark, ShardRow, TaskRow
from laxity.schemas.serde import Codec
from laxity.schemas.topics import TIERS
from laxity.streams import completion, control, dispatch, ingest, journal, leases, letters, timers
from laxity.streams.batch import Batch, Place
from laxity.streams.effects import BatchInput, Effects, Record
from laxity.streams.errors import StateVersionError
from laxity.streams.ledger.protocol import Answer, Exchange, Live, Settle
from laxity.streams.lifecycle import State
from laxity.streams.ready import ReadyTable
from laxity.streams.reasons import Reason
from laxity.streams.state import index, keys
from laxity.streams.state.changelog import STATE_VERSION
from laxity.streams.state.store import Store, Write
from laxity.streams.state.tables import Tables

SETTLES_PER_CALL_MAX = (
    128  # of one script: above a millisecond of the ledger's only thread; the rest goes with the next call
)
LEDGER_RETRY_MS = 100  # no answer in time: ask again after this
LEASE_CHECK_MS = 2_500  # while leases stand, the ledger is asked at least this often whether one lapsed

_ORDER = ("control", "links", "outcomes", *(f"triggers.{tier}" for tier in TIERS))
"""The canonical order of topics inside a batch."""


class Scheduler:
    """A shard: its tables, and the batch in the making."""

    def __init__(
        self,
        *,
        shard: int,
        shards: int,
        config: Config,
        codec: Codec,
        store: Store,
        keys: Store,
        prefix: str = "laxity.",
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        """`topic_ids`: Kafka's id of each input topic (no prefix), kept with the applied marks. Raises StateVersionError."""
        self._place = Place(shard=shard, shards=shards, prefix=prefix, config=config, codec=codec)
        self._topic_ids = topic_ids or {}
        self._store = store
        self._tables = Tables(store, keys)
        self._ready = ReadyTable(store)
        self._timers = timers.Timers(store)
        self._config_id = config.fingerprint()
        self.load()

    # what the host asks between batches

    def load(self) -> None:
        """Rebuild all caches from the stores: at start, after a restore, and whenever ownership starts over."""
        self._tables.drop()
        self._row = self._tables.shard() or _first_row()
        if self._row.state_version > STATE_VERSION:
            raise StateVersionError(found=self._row.state_version, known=STATE_VERSION)
        self._ready.load()
        self._timers.load()
        self._admission = dispatch.Admission()
        self._owed = dict(self._tables.settles())
        self._revoking: set[str] = set()
        self._ordered: set[str] = set()  # cancelled ones whose runner has the order: no need to ask again
        self._unknown: set[str] = set()
        self._leases = 0
        for task_id, row in self._tables.leased():
            self._leases += 1
            self._note(task_id, row)
        self._tables.drop()
        self._acknowledge: tuple[str, ...] = ()
        self._heard: tuple[str, ...] = ()
        self._wake_ms: int | None = 0
        self._open: _Open | None = None

    @property
    def owner_epoch(self) -> int:
        """Raised by every takeover; durable before it is used."""
        return self._row.owner_epoch

    @property
    def seen_epoch(self) -> str:
        """The ledger's epoch that the state last saw."""
        return self._row.ledger_epoch

    @property
    def number(self) -> int:
        """Of the last committed batch."""
        return self._row.batch

    @property
    def now_ms(self) -> int:
        """Of the batch in the making, else of the last one; never goes back."""
        return self._row.now_ms if self._open is None else self._open.work.now_ms

    def mark(self, topic: str) -> int:
        """Applied mark: the next offset expected; 0: none yet."""
        return next((m.next for m in self._row.marks if m.topic == topic), 0)

    def topic_id(self, topic: str) -> str:
        """The Kafka topic id that the mark belongs to; empty: none yet."""
        return next((m.topic_id for m in self._row.marks if m.topic == topic), "")

    def backlog(self) -> Sequence[int]:
        """Tasks that wait to be dispatched, per tier."""
        return tuple(self._row.waiting) or (0,) * len(TIERS)

    def live(self) -> list[Live]:
        """Every reservation that the state knows, for the ledger's reconcile. Between batches only."""
        assert self._open is None, "live() inside a batch"
        found = [
            Live(
                reservation_id=reservation_id(task_id, row.generation, row.dispatch_no),
                runner=row.runner,
                partition=row.partition,
                granted=row.granted,
                active=row.state != State.UNKNOWN,
            )
            for task_id, row in self._tables.leased()
        ]
        self._tables.drop()
        settled = [
            Live(reservation_id=r, runner="-", partition=0, granted={}, active=False) for r in self._owed
        ]
        return found + settled

    def waits_for(self, resource: str) -> bool:
        """Whether room at this resource would let something go that was refused. Between batches only."""
        return resource in self._admission.blocked or (":" in resource and self._ready.is_parked_on(resource))

    def next_wakeup(self) -> int | None:
        """When a batch is due without records, in wall ms; at or before now: at once."""
        blocked = self._admission.blocked.values()
        times = [t for t in (self._wake_ms, self._timers.next_ms(), *blocked) if t is not None]
        return min(times, default=None)

    # a batch

    def take_over(self, now_ms: int) -> Effects:
        """The next owner epoch, to be committed in a transaction of its own before anything else."""
        batch = BatchInput(records=(), ranges=(), now_ms=now_ms)
        work = self._work(now_ms)
        row = self._next_row(work, self._row.marks, owner_epoch=self._row.owner_epoch + 1)
        entry = journal.entry(self._place, row, config_id=self._config_id, batch=batch)
        self._open = _Open(batch=batch, work=work, marks=row.marks)
        return self._seal(self._open, row, entry)

    def nominate(self, batch: BatchInput) -> Exchange:
        """Step 1: take the inputs in, let due timers act, pick candidates for the ledger."""
        assert self._open is None, "nominate() before applied() or aborted()"
        work = self._work(batch.now_ms)
        for record in sorted(batch.records, key=lambda r: (_ORDER.index(r.topic), r.offset)):
            _STAGES[record.topic](work, record)
        marks = self._advance(batch)
        leases.resolve(work, sorted(self._unknown), _next(marks, leases.OUTCOMES))
        woken = tuple(dict.fromkeys((*self._heard, *batch.woken)))
        due = self._timers.due(work.now_ms)
        unparked = self._unpark(timers.fire(work, due), woken, work.now_ms)
        blocked = {
            name: at
            for name, at in self._admission.blocked.items()
            if at > work.now_ms
            and name not in woken  # what is over must wake nobody, though the ledger be silent
        }
        admission = replace(self._admission, blocked=blocked)
        writes = [*unparked, *self._tables.index_writes()]
        cycle = dispatch.nominate(work, self._ready, writes, admission, batch.held)
        leases.ask(work, sorted(self._revoking | self._tables.touched()))
        exchange = Exchange(
            shard=self._place.shard,
            owner_epoch=self._row.owner_epoch,
            acknowledged=self._acknowledge,
            settles=[
                Settle(reservation_id=r, used=s.used, unclaimed=s.unclaimed)
                for r, s in islice(self._owed.items(), SETTLES_PER_CALL_MAX)
            ],
            revokes=tuple(work.revokes),
            cancels=tuple(work.cancels),
            candidates=[n.candidate for n in cycle.nominations],
        )
        self._open = _Open(
            batch=batch,
            work=work,
            marks=marks,
            cycle=cycle,
            exchange=exchange,
            admission=admission,
            unparked=unparked,
            woken=woken,
            again=bool(unparked) or len(due) >= timers.TIMERS_PER_BATCH_MAX,
        )
        return exchange

    def conclude(self, answer: Answer | None, *, outcomes_end: int = -1) -> Effects:
        """Step 3: the effects. `answer` None: the ledger did not answer in time, so all that was asked is unknown.

        `outcomes_end`: end offset of this shard's `outcomes`, asked after the answer; needed if leases lapsed or a verdict is `gone`.
        """
        opened = self._open
        assert opened is not None, "conclude() without nominate()"
        assert opened.cycle is not None, "conclude() after take_over()"
        work = opened.work
        opened.answer = answer = answer if answer is not None and answer.status == "ok" else None
        lapsed = [*opened.batch.lapsed, *(answer.reaped if answer else ())]
        leases.lapse(work, lapsed, outcomes_end)
        opened.again |= bool(lapsed)  # `outcomes` may have been read to its end already
        if answer is not None:
            opened.again |= not {"gone", "revoked"}.isdisjoint(answer.verdicts.values())  # some may be ready
            leases.conclude(work, answer.verdicts, outcomes_end)
            opened.admission = dispatch.conclude(work, opened.cycle, answer, opened.admission)
            for reservation in answer.settled:
                self._tables.put_settle(reservation, None)
        row = self._next_row(
            work, opened.marks, ledger_epoch=answer.epoch if answer else self._row.ledger_epoch
        )
        batch = replace(opened.batch, woken=opened.woken, lapsed=lapsed, now_ms=work.now_ms)
        entry = journal.entry(
            self._place, row, config_id=self._config_id, batch=batch, answer=answer, outcomes_end=outcomes_end
        )
        return self._seal(opened, row, entry)

    def applied(self) -> None:
        """The batch is committed and in the stores: the caches follow."""
        opened = self._open
        assert opened is not None and opened.row is not None, "applied() without effects"  # noqa: PT018
        before, self._row = self._row, opened.row
        self._ready.apply(opened.local)
        self._timers.apply(opened.local)
        self._admission = dispatch.without_lost_lanes(opened.admission, self._ready)
        self._leases += sum(
            1 if value is not None else -1 for key, value in opened.local if key[:1] == keys.LEASED
        )
        for reservation, settle in self._tables.settle_changes():
            if settle is None:
                self._owed.pop(reservation, None)
            else:
                self._owed[reservation] = settle
        for task_id, task in self._tables.task_changes():
            self._revoking.discard(task_id)
            self._ordered.discard(task_id)
            self._unknown.discard(task_id)
            if task is not None:
                self._note(task_id, task)
        answer = opened.answer
        if answer is not None:
            self._note_orders(answer, is_new=self._row.ledger_epoch != before.ledger_epoch)
            self._heard = tuple(answer.woken)
            self._acknowledge = tuple(answer.reaped)
        self._wake_ms = self._next_wake(opened)
        self._tables.drop()
        self._open = None

    def aborted(self) -> None:
        """The batch did not happen. Its grants are the host's to keep as held."""
        self._tables.drop()
        self._open = None

    # inside

    def _work(self, now_ms: int) -> Batch:
        return Batch(
            place=self._place,
            tables=self._tables,
            number=self._row.batch + 1,
            now_ms=max(now_ms, self._row.now_ms),
            seq=self._row.seq,
            waiting=list(self.backlog()),
            marks={m.topic: m.next for m in self._row.marks if self._is_same_topic(m)},
        )

    def _is_same_topic(self, mark: Mark) -> bool:
        """A topic that was made anew counts from 0 again: the mark of the old one says nothing of it."""
        return self._topic_ids.get(mark.topic, mark.topic_id) == mark.topic_id

    def _next_row(
        self,
        work: Batch,
        marks: Sequence[Mark],
        *,
        owner_epoch: int | None = None,
        ledger_epoch: str | None = None,
    ) -> ShardRow:
        return ShardRow(
            state_version=STATE_VERSION,
            owner_epoch=self._row.owner_epoch if owner_epoch is None else owner_epoch,
            batch=work.number,
            now_ms=work.now_ms,
            seq=work.seq,
            usage_seq=work.close(self._row.usage_seq),
            ledger_epoch=self._row.ledger_epoch if ledger_epoch is None else ledger_epoch,
            marks=marks,
            waiting=work.waiting,
        )

    def _seal(self, opened: _Open, row: ShardRow, entry: Journal) -> Effects:
        state, ended = self._tables.changes(row)
        local = [
            *opened.unparked,
            *self._tables.index_writes(),
            *(opened.cycle.local if opened.cycle else ()),
        ]
        local += self._ready.housekeeping(local)
        outputs = opened.work.outputs
        outputs.append(journal.sealed(self._place, entry, state, ended, outputs))
        opened.row, opened.local = row, local
        return Effects(batch=row.batch, state=state, keys=ended, local=local, outputs=outputs)

    def _advance(self, batch: BatchInput) -> list[Mark]:
        """Marks after this batch; re-reading below a mark leaves it where it is."""
        marks = {m.topic: m for m in self._row.marks}
        for moved in batch.ranges:
            before = marks.get(moved.topic)
            topic_id = self._topic_ids.get(moved.topic, before.topic_id if before else "")
            reached = max(moved.next, before.next if before and before.topic_id == topic_id else 0)
            marks[moved.topic] = Mark(topic=moved.topic, topic_id=topic_id, next=reached)
        return sorted(marks.values(), key=lambda m: _ORDER.index(m.topic))

    def _unpark(
        self, timers_due: Sequence[tuple[bytes, str]], woken: Sequence[str], now_ms: int
    ) -> list[Write]:
        """Tasks whose keyed slot has room again, or may have: as many as it has places, and one to be refused.

        The ledger names a resource again only if somebody was refused there since; without that one nobody would hear of the next release.
        """
        writes: list[Write] = []
        for name in dict.fromkeys([*(n for n in woken if ":" in n), *(name for _, name in timers_due)]):
            resource = self._place.config.resource_of(name)
            places = resource.capacity if isinstance(resource, Keyed) else 1
            writes += self._ready.parked(name, places + 1)
        for key, name in timers_due:
            writes.append((key, None))
            if writes and self._ready.is_parked_on(name):
                writes.append((keys.timer_key(now_ms + dispatch.KEYED_SAFETY_MS, index.KEYED, name), b""))
        return writes

    def _note(self, task_id: str, row: TaskRow) -> None:
        if row.state == State.UNKNOWN:
            self._unknown.add(task_id)
        if row.revoking:
            self._revoking.add(task_id)

    def _note_orders(self, answer: Answer, *, is_new: bool) -> None:
        """Cancels that the ledger has told the runner, or will; a new ledger has forgotten them."""
        if is_new:
            self._revoking |= self._ordered
            self._ordered.clear()
        claimed = {r.partition(":")[0] for r, verdict in answer.verdicts.items() if verdict == "claimed"}
        self._ordered |= claimed & self._revoking
        self._revoking -= claimed

    def _next_wake(self, opened: _Open) -> int | None:
        """When to go on without records: at once where this batch made room for more, later where the ledger was silent."""
        now_ms, answer, cycle = opened.work.now_ms, opened.answer, opened.cycle
        asked = opened.exchange is not None and opened.exchange.asks
        if cycle is None or opened.again or cycle.again:
            return now_ms
        if answer and (answer.grants or self._heard or cycle.local):
            return now_ms
        if answer is None and asked:
            return now_ms + LEDGER_RETRY_MS
        if self._owed or self._acknowledge or self._revoking:
            return now_ms
        return now_ms + LEASE_CHECK_MS if self._leases else None


@dataclass(slots=True, kw_only=True)
class _Open:
    """A batch between nominate and applied."""

    batch: BatchInput
    work: Batch
    marks: Sequence[Mark]
    cycle: dispatch.Cycle | None = None
    exchange: Exchange | None = None
    admission: dispatch.Admission = field(default_factory=dispatch.Admission)
    unparked: list[Write] = field(default_factory=list)
    woken: Sequence[str] = ()
    again: bool = False
    answer: Answer | None = None
    row: ShardRow | None = None
    local: list[Write] = field(default_factory=list)


def _next(marks: Sequence[Mark], topic: str) -> int:
    return next((m.next for m in marks if m.topic == topic), 0)


def _link(batch: Batch, record: Record) -> None:
    """A record of `links`. Below the applied mark it was dealt with."""
    link = letters.decoded(batch, record, Link)
    if link is not None and (problem := ingest.adopt(batch, link)):
        letters.refuse(batch, record, Reason.INVALID, problem)


_STAGES: dict[str, Callable[[Batch, Record], None]] = {
    "control": control.control,
    "links": _link,
    "outcomes": completion.complete,
    **{f"triggers.{tier}": ingest.ingest for tier in TIERS},
}


def _first_row() -> ShardRow:
    return ShardRow(
        state_version=STATE_VERSION,
        owner_epoch=0,
        batch=0,
        now_ms=0,
        seq=0,
        usage_seq=0,
        ledger_epoch="",
        waiting=(0,) * len(TIERS),
    )
