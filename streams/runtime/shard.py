"""The thread of one shard: takes it over, runs batches, starts over when an ownership ends in an error, ends when the shard is taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import TopicPartition

from laxity.schemas.timing import Clock, Millis
from laxity.streams.runtime import ownership
from laxity.streams.runtime.cluster import ClusterError
from laxity.streams.runtime.core import Core
from laxity.streams.runtime.cycle import Cycle, World
from laxity.streams.runtime.inbox import Inbox, InputLost, Taken
from laxity.streams.runtime.ledger_line import LedgerLine
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.ownership import Premises, Stopped
from laxity.streams.runtime.pace import RECORDS_MAX, Pace
from laxity.streams.runtime.positions import SkipRefused
from laxity.streams.runtime.sources import OUTCOMES, TRIGGERS
from laxity.streams.runtime.stores import StateDirectory, Stores, wipe_damaged
from laxity.streams.runtime.transactions import AbortedError, FencedError, TransactionError, Transactions
from laxity.streams.state.rocks import StoreCorruptError, StoreError

START_OVER_MS = 1_000  # at most once a second
HELD_MS = 20  # in a planned hand-over the other one's name goes within a batch; each try asks the board
REFUSED_MS = 10_000  # an operator has to act; offsets are looked at again this often
ABORT_PAUSE_MS = 20  # before the same input is tried again
ABORTS_MAX = (
    50  # of one input in a row: a rebalance passes in a second, what lasts longer must show as not running
)
WAIT_MS_MAX = 250  # an idle shard looks at the ledger and at its clock this often
ENDS_MS = 1_000  # how long the end of a partition (transaction markers) may stay uncommitted
RECOMMIT_MS = (
    24 * 3_600_000
)  # Kafka forgets offsets of topics that the group does not subscribe to after 7 days
EXPIRE_KEYS_MS = 3_600_000
ANSWER_POLL_S = 0.05


class Reading(Protocol):
    """The readers, as one."""

    def attach(self, inbox: Inbox, positions: Mapping[str, int]) -> list[Future[None]]:
        """Begin to fill the inbox."""
        ...

    def detach(self, shard: int) -> list[Future[None]]:
        """Stop filling it."""
        ...

    def group_metadata(self) -> object:
        """Of the group's member: goes with the offsets of a transaction."""
        ...


class Naming(Protocol):
    """The liveness board."""

    def hold(self, shard: int) -> bool:
        """Name it; False: somebody living has it."""
        ...

    def drop(self, shard: int) -> None:
        """Name it no longer."""
        ...

    def named_by_others(self) -> frozenset[int]:
        """Shards of other living processes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all shards of a process share."""

    clock: Clock
    line: LedgerLine
    reading: Reading
    naming: Naming
    directory: StateDirectory
    producer_properties: Callable[[int], Mapping[str, object]]
    busy_shards: Callable[[], int]
    backlog_max: int
    failed: Callable[[BaseException], None]


class Shard(threading.Thread):
    """Daemon thread; `stop` and join. `status` and `refusal` are for health checks."""

    def __init__(
        self, shard: int, around: Surroundings, premises: Callable[[Callable[[], bool]], Premises]
    ) -> None:
        super().__init__(name=f"shard-{shard}", daemon=True)
        self.shard = shard
        self.status = "starting"
        self.refusal = ""
        self.busy_ms: Millis = 0
        self._around = around
        self._clock = around.clock
        self._ending = threading.Event()
        self._premises = premises(self._ending.is_set)
        self._inbox = Inbox(shard)
        self._before: Sequence[threading.Thread] = ()
        self._log = logger(shard=shard)

    # from outside

    def follow(self, before: Sequence[threading.Thread]) -> None:
        """Begin only after these: earlier threads of this shard, which still have its stores, its name and its place at the readers."""
        self._before = before

    def stop(self) -> None:
        """Finish the batch under way, then end."""
        self._ending.set()
        self._inbox.nudge()

    def hear(self, resource: str) -> None:
        """The ledger has room at a resource."""
        self._inbox.hear(resource)

    # the thread

    def run(self) -> None:
        """One ownership after the other until stopped."""
        try:
            self._wait_for_those_before()
            while not self._ending.is_set():
                self._ending.wait(self._one_ownership() / 1000)
        except Exception as error:  # noqa: BLE001 - a bug: the process ends, another one takes the shard
            self._around.failed(error)
        finally:
            self.status = "ended"
            self._premises.meter.gone()

    def _wait_for_those_before(self) -> None:
        for thread in self._before:
            self.status = "waiting for its last thread"
            while thread.is_alive() and not self._ending.is_set():
                thread.join(ANSWER_POLL_S)

    def _one_ownership(self) -> Millis:
        """Until something ends it; returns how long to wait before the next."""
        if not self._around.naming.hold(self.shard):
            self.status = "held by another process"
            return HELD_MS
        transactions = Transactions(
            self._around.producer_properties(self.shard),
            self._clock,
            is_named_by_others=self._is_named_by_others,
        )
        try:
            self._own(transactions)
        except Stopped:
            return 0
        except SkipRefused as error:
            return self._refused(error)
        except (TransactionError, ClusterError, StoreError, InputLost) as error:
            return self._starts_over(error)
        finally:
            self._around.naming.drop(self.shard)
            self._settle(self._around.reading.detach(self.shard))
            transactions.close()
        return 0

    def _is_named_by_others(self) -> bool:
        return self.shard in self._around.naming.named_by_others()

    def _refused(self, error: SkipRefused) -> Millis:
        self.status, self.refusal = "refused", str(error)
        self._log.error(Event.REFUSED, why=str(error))
        return REFUSED_MS

    def _starts_over(self, error: Exception) -> Millis:
        self.status = "starting over"
        if isinstance(error, StoreCorruptError):
            wipe_damaged(error)  # else the same block would end each ownership
        event = Event.FENCED if isinstance(error, FencedError) else Event.STARTS_OVER
        self._log.warning(event, why=str(error), kind=type(error).__name__)
        self._premises.meter.started_over()
        return START_OVER_MS

    def _own(self, transactions: Transactions) -> None:
        premises = self._premises
        self.status = "fencing"
        transactions.fence(self._ending.is_set)
        ids = ownership.topic_ids(premises)
        stores = Stores.open(self._around.directory.shard(self.shard), ids)
        try:
            self.status = "restoring"
            ownership.restore_stores(premises, stores)
            core = ownership.make_core(premises, stores)
            cycle = Cycle(core, self._world(stores, transactions))
            self.status = "taking over"
            cycle.take_over()
            cycle.reconcile()
            starts = ownership.starts(premises, core)
            cycle.pending.skipped += [start.accepted for start in starts.values() if start.accepted]
            self._read({name: start.offset for name, start in starts.items()})
            self.status, self.refusal = "running", ""
            _Loop(self, cycle, core, stores).run()
        finally:
            stores.close()

    def _world(self, stores: Stores, transactions: Transactions) -> World:
        premises = self._premises
        outcomes = premises.prefix + OUTCOMES
        return World(
            shard=self.shard,
            stores=stores,
            transactions=transactions,
            outbox=Outbox(prefix=premises.prefix, shard=self.shard, codec=premises.codec),
            line=self._around.line,
            group_metadata=self._around.reading.group_metadata,
            outcomes_end=lambda: premises.cluster.end(outcomes, self.shard),
            clock=self._clock,
            meter=premises.meter,
        )

    def _read(self, positions: Mapping[str, int]) -> None:
        self._inbox.open(positions)
        self._settle(self._around.reading.attach(self._inbox, positions))
        if self._ending.is_set():
            raise Stopped
        self._log.info(Event.RUNNING, positions=dict(positions))

    def _settle(self, answers: list[Future[None]]) -> None:
        """Wait for the readers, unless we are to end: the one that revokes us is then waiting for us."""
        for answer in answers:
            while not self._ending.is_set():
                try:
                    answer.result(ANSWER_POLL_S)
                    break
                except NotYetError:
                    continue


class _Loop:
    """Batches of one ownership."""

    def __init__(self, shard: Shard, cycle: Cycle, core: Core, stores: Stores) -> None:
        self._shard = shard
        self._cycle = cycle
        self._core = core
        self._stores = stores
        self._clock = shard._clock  # noqa: SLF001 - one thing in two classes
        self._around = shard._around  # noqa: SLF001
        self._inbox = shard._inbox  # noqa: SLF001
        self._premises = shard._premises  # noqa: SLF001
        self._ending = shard._ending  # noqa: SLF001
        self._pace = Pace()
        now_ms = self._clock.monotonic_ms()
        self._batch_ms = self._recommit_ms = self._expire_ms = now_ms

    def run(self) -> None:
        """Until stopped; raises what ends an ownership."""
        while not self._ending.is_set():
            if self._due():
                self._batch()
            elif self._clock.monotonic_ms() - self._recommit_ms >= RECOMMIT_MS:
                self._recommit()

    def _due(self) -> bool:
        """Wait for work; True: begin a batch."""
        waiting = self._inbox.waiting()
        pending = self._cycle.pending
        pending.woken |= {name for name in self._inbox.heard() if self._core.waits_for(name)}
        now_ms = self._clock.monotonic_ms()
        wake_ms = self._wake_in_ms()
        if waiting or wake_ms <= 0 or pending.woken or pending.lapsed or self._ends_are_old(now_ms):
            hold_ms = self._pace.wait_ms(
                now_ms,
                waiting,
                busy_shards=self._around.busy_shards(),
                patient=waiting > 0 and wake_ms > 0 and self._inbox.patient(),
            )
            if hold_ms <= 0:
                return True
            self._inbox.wait(hold_ms, more_than=RECORDS_MAX - 1)
            return False
        self._inbox.wait(min(wake_ms, WAIT_MS_MAX), more_than=0)
        return self._inbox.waiting() == 0 and self._cycle.look_at_ledger()

    def _wake_in_ms(self) -> Millis:
        wake_ms = self._core.next_wakeup()
        return WAIT_MS_MAX if wake_ms is None else wake_ms - self._clock.now_ms()

    def _ends_are_old(self, now_ms: Millis) -> bool:
        return now_ms - self._batch_ms >= ENDS_MS and self._inbox.moved()

    def _batch(self) -> None:
        begun_ms = self._clock.monotonic_ms()
        self._carry_out(self._inbox.take(RECORDS_MAX))
        self._batch_ms = self._shard.busy_ms = self._clock.monotonic_ms()
        self._pace.ran(begun_ms, self._batch_ms)
        self._hold_back()
        if self._batch_ms - self._expire_ms >= EXPIRE_KEYS_MS:
            self._expire_ms = self._batch_ms
            self._stores.drop_expired_keys(self._clock.now_ms())

    def _carry_out(self, taken: Taken) -> None:
        """The same input until it is committed, or the ownership ends: at the latest by its ABORTS_MAX'th abort."""
        for left in reversed(range(ABORTS_MAX)):
            try:
                self._cycle.run(taken)
            except AbortedError as error:
                self._premises.meter.aborted()
                self._shard._log.warning(Event.ABORTED, why=str(error))  # noqa: SLF001
                if not left:
                    raise
                if self._ending.wait(ABORT_PAUSE_MS / 1000):
                    raise Stopped from error
            else:
                return

    def _hold_back(self) -> None:
        """Where enough of a tier waits already, its triggers stay in Kafka."""
        backlog = self._core.backlog()
        self._premises.meter.waiting(backlog)
        full = [
            topic for topic, waits in zip(TRIGGERS, backlog, strict=True) if waits >= self._around.backlog_max
        ]
        self._inbox.hold(full)

    def _recommit(self) -> None:
        """Offsets of quiet partitions, before Kafka forgets them."""
        self._recommit_ms = self._clock.monotonic_ms()
        self._cycle.recommit(
            [
                TopicPartition(self._premises.prefix + name, self._shard.shard, at)
                for name, at in self._inbox.positions().items()
            ]
        )
