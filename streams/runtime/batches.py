"""The batches of one ownership: when the next one begins, what goes into it, and how often it is tried."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from laxity.schemas.timing import Clock, Millis
from laxity.streams.runtime.core import Core
from laxity.streams.runtime.cycle import Cycle
from laxity.streams.runtime.inbox import Inbox, Taken
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.meter import ShardMeter
from laxity.streams.runtime.ownership import Stopped
from laxity.streams.runtime.pace import RECORDS_MAX, Pace
from laxity.streams.runtime.sources import TRIGGERS
from laxity.streams.runtime.standing import Standing
from laxity.streams.runtime.stores import Stores
from laxity.streams.runtime.transactions import AbortedError

ABORT_PAUSE_MS = 20  # before the same input is tried again
ABORTS_MAX = (
    50  # of one input in a row: a rebalance passes in a second, what lasts longer must show as not running
)
WAIT_MS_MAX = 250  # an idle shard looks at the ledger and at its clock this often
ENDS_MS = 1_000  # how long the end of a partition (transaction markers) may stay uncommitted
RECOMMIT_MS = (
    24 * 3_600_000
)  # Kafka forgets offsets of topics that the group does not subscribe to after 7 days
RECOMMIT_AGAIN_MS = 60_000  # after an abort
EXPIRE_KEYS_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the batches of a shard work with. `ending`: its shard is to end; `ran` is told when each batch was done."""

    shard: int
    clock: Clock
    core: Core
    cycle: Cycle
    stores: Stores
    inbox: Inbox
    meter: ShardMeter
    standing: Standing
    ending: threading.Event
    busy_shards: Callable[[], int]  # of the process
    backlog_max: int
    ran: Callable[[Millis], None]


class Batches:
    """`run` until told to end, or until something ends the ownership."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._pace = Pace()
        now_ms = work.clock.monotonic_ms()
        self._batch_ms = self._expire_ms = now_ms
        self._recommit_due_ms = now_ms + RECOMMIT_MS
        self._log = logger(shard=work.shard)

    def run(self) -> None:
        """Raises TransactionError, StoreError, InputLost, Stopped."""
        while not self._work.ending.is_set():
            if self._due():
                self._batch()
            if self._work.clock.monotonic_ms() >= self._recommit_due_ms:
                self._recommit()

    def _due(self) -> bool:
        """Wait for work; True: begin a batch."""
        work, inbox, pending = self._work, self._work.inbox, self._work.cycle.pending
        waiting = inbox.waiting()
        pending.woken |= {name for name in inbox.heard() if work.core.waits_for(name)}
        now_ms = work.clock.monotonic_ms()
        wake_ms = self._wake_in_ms()
        if waiting or wake_ms <= 0 or pending.woken or pending.lapsed or self._ends_are_old(now_ms):
            hold_ms = self._pace.wait_ms(
                now_ms,
                waiting,
                busy_shards=work.busy_shards(),
                patient=waiting > 0 and wake_ms > 0 and inbox.patient(),
            )
            if hold_ms <= 0:
                return True
            inbox.wait(hold_ms, more_than=RECORDS_MAX - 1)
            return False
        inbox.wait(min(wake_ms, WAIT_MS_MAX), more_than=0)
        return inbox.waiting() == 0 and work.cycle.look_at_ledger()

    def _wake_in_ms(self) -> Millis:
        wake_ms = self._work.core.next_wakeup()
        return WAIT_MS_MAX if wake_ms is None else wake_ms - self._work.clock.now_ms()

    def _ends_are_old(self, now_ms: Millis) -> bool:
        return now_ms - self._batch_ms >= ENDS_MS and self._work.inbox.moved()

    def _batch(self) -> None:
        work = self._work
        begun_ms = work.clock.monotonic_ms()
        self._carry_out(work.inbox.take(RECORDS_MAX))
        self._batch_ms = work.clock.monotonic_ms()
        work.ran(self._batch_ms)
        self._pace.ran(begun_ms, self._batch_ms)
        self._hold_back()
        if self._batch_ms - self._expire_ms >= EXPIRE_KEYS_MS:
            self._expire_ms = self._batch_ms
            work.stores.drop_expired_keys(work.clock.now_ms())

    def _carry_out(self, taken: Taken) -> None:
        """The same input until it is committed, or the ownership ends: at the latest by its ABORTS_MAX'th abort. Raises MemberLostError."""
        work = self._work
        for left in reversed(range(ABORTS_MAX)):
            try:
                work.cycle.run(taken)
            except AbortedError as error:
                work.meter.aborted()
                self._log.warning(Event.ABORTED, why=str(error))
                work.standing.aborted(error)
                if not left:
                    raise
                if work.ending.wait(ABORT_PAUSE_MS / 1000):
                    raise Stopped from error
            else:
                if taken.ranges:
                    work.standing.accepted()
                return

    def _hold_back(self) -> None:
        """Where enough of a tier waits already, its triggers stay in Kafka."""
        work = self._work
        backlog = work.core.backlog()
        work.meter.waiting(backlog)
        full = [topic for topic, waits in zip(TRIGGERS, backlog, strict=True) if waits >= work.backlog_max]
        work.inbox.hold(full)

    def _recommit(self) -> None:
        """Offsets of quiet partitions, before Kafka forgets them."""
        work, now_ms = self._work, self._work.clock.monotonic_ms()
        try:
            work.cycle.recommit(work.inbox.positions())
        except AbortedError as error:
            self._log.warning(Event.ABORTED, why=str(error))
            self._recommit_due_ms = now_ms + RECOMMIT_AGAIN_MS
        else:
            self._recommit_due_ms = now_ms + RECOMMIT_MS
