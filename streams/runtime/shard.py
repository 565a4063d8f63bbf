"""The thread of one shard: takes it over, runs batches, starts over when an ownership ends in an error, ends when the shard is taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from laxity.schemas.serde import Undecodable
from laxity.schemas.timing import Clock, Millis
from laxity.streams.errors import StateVersionError
from laxity.streams.ledger.protocol import Reconciled
from laxity.streams.runtime import ownership
from laxity.streams.runtime.batches import Batches, Work
from laxity.streams.runtime.cluster import ClusterError
from laxity.streams.runtime.copies import Copies
from laxity.streams.runtime.core import Core
from laxity.streams.runtime.cycle import Cycle, World
from laxity.streams.runtime.inbox import Inbox, InputLost
from laxity.streams.runtime.ledger_line import LedgerLine
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.ownership import Premises, Stopped
from laxity.streams.runtime.positions import SkipRefused
from laxity.streams.runtime.sources import OUTCOMES
from laxity.streams.runtime.standing import Standing
from laxity.streams.runtime.stores import StateDirectory, Stores, wipe_damaged
from laxity.streams.runtime.transactions import FencedError, TransactionError, Transactions
from laxity.streams.state.changelog import ForeignRowError
from laxity.streams.state.rocks import StoreCorruptError, StoreLockedError

START_OVER_MS = 1_000  # at most once a second
HELD_MS = 20  # in a planned hand-over the other one's name goes within a batch; each try asks the board
REFUSED_MS = 10_000  # an operator has to act; offsets are looked at again this often
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
    copies: Copies
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
        self._entered_ms: Millis = around.clock.monotonic_ms()
        self._took_ms: dict[str, Millis] = {}
        self.released = threading.Event()  # told to end, and no batch is under way any more
        self._around = around
        self._clock = around.clock
        self._ending = threading.Event()
        self._premises = premises(self._ending.is_set)
        self._inbox = Inbox(shard)
        self._standing = Standing(around.clock)
        self._before: Sequence[threading.Thread] = ()
        self._transactions: Transactions | None = None
        self._log = logger(shard=shard)

    # from outside

    def follow(self, before: Sequence[threading.Thread]) -> None:
        """Begin only after these: earlier threads of this shard, which still have its stores, its name and its place at the readers."""
        self._before = before

    def stop(self) -> None:
        """Finish the batch under way, then end."""
        self._ending.set()
        self._inbox.nudge()

    def under_way_ms(self) -> Millis:
        """How long its transaction under way has taken; 0: there is none."""
        transactions = self._transactions
        return 0 if transactions is None else transactions.under_way_ms()

    def hear(self, resource: str) -> None:
        """The ledger has room at a resource."""
        self._inbox.hear(resource)

    # the thread

    def run(self) -> None:
        """One ownership after the other until stopped."""
        try:
            self._wait_for_those_before()
            if not self._ending.is_set():
                with self._around.copies.claimed(self.shard):
                    self._live()
        except Exception as error:  # noqa: BLE001 - a disk that refuses, or a bug: the process ends, another one takes the shard
            self._around.failed(error)
        finally:
            self.status = "ended"
            self.released.set()
            self._premises.meter.gone()

    def _live(self) -> None:
        while not self._ending.is_set():
            self._ending.wait(self._one_ownership() / 1000)

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
        self._transactions = transactions
        try:
            with ExitStack() as closing:  # in the reverse order
                closing.callback(transactions.close)
                closing.callback(lambda: self._settle(self._around.reading.detach(self.shard)))
                try:
                    self._own(transactions, closing)
                finally:
                    self._let_go()
        except Stopped:
            return 0
        except (SkipRefused, StateVersionError, ForeignRowError, Undecodable) as error:
            return self._refused(error)
        except (TransactionError, ClusterError, StoreCorruptError, StoreLockedError, InputLost) as error:
            return self._starts_over(error)
        return 0

    def _let_go(self) -> None:
        """No batch of ours is under way: another owner may begin while we tidy up."""
        self._around.naming.drop(self.shard)
        if self._ending.is_set():
            self.released.set()

    def _is_named_by_others(self) -> bool:
        return self.shard in self._around.naming.named_by_others()

    def _refused(self, error: Exception) -> Millis:
        """The shard stays ours and stands still until somebody acts: ending would take its siblings along, and then the next process."""
        self.status, self.refusal = "refused", str(error)
        self._log.error(Event.REFUSED, why=str(error))
        return REFUSED_MS

    def _starts_over(self, error: Exception) -> Millis:
        self.status, self.refusal = "starting over", f"starting over: {error}"
        if isinstance(error, StoreCorruptError):
            wipe_damaged(error)  # else the same block would end each ownership
        event = Event.FENCED if isinstance(error, FencedError) else Event.STARTS_OVER
        self._log.warning(event, why=str(error), kind=type(error).__name__)
        self._premises.meter.started_over()
        return START_OVER_MS

    def _own(self, transactions: Transactions, closing: ExitStack) -> None:
        premises = self._premises
        self._enter("fencing")
        transactions.fence(self._ending.is_set)
        ids = ownership.changelog_ids(premises.cluster, premises.prefix)
        stores = Stores.open(self._around.directory.shard(self.shard), ids)
        closing.callback(stores.close)
        self._enter("restoring")
        ownership.restore_stores(premises, stores)
        core = ownership.make_core(premises, stores)
        cycle = Cycle(core, self._world(stores, transactions))
        self._enter("taking over")
        cycle.take_over()
        self._enter("reconciling")
        cycle.reconcile()
        self._enter("looking up positions")
        starts = ownership.starts(premises, core)
        cycle.pending.skipped += [start.accepted for start in starts.values() if start.accepted]
        self._enter("attaching")
        self._read({name: start.offset for name, start in starts.items()})
        self._enter("running")
        self.refusal = ""
        Batches(self._work(core, cycle, stores)).run()

    def _enter(self, status: str) -> None:
        """The next step; how long each took is told with the last one."""
        now_ms = self._clock.monotonic_ms()
        self._took_ms[self.status] = now_ms - self._entered_ms
        self.status, self._entered_ms = status, now_ms

    def _work(self, core: Core, cycle: Cycle, stores: Stores) -> Work:
        return Work(
            shard=self.shard,
            clock=self._clock,
            core=core,
            cycle=cycle,
            stores=stores,
            inbox=self._inbox,
            meter=self._premises.meter,
            standing=self._standing,
            ending=self._ending,
            busy_shards=self._around.busy_shards,
            backlog_max=self._around.backlog_max,
            ran=self._ran,
        )

    def _ran(self, now_ms: Millis) -> None:
        self.busy_ms = now_ms

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
            agreed=self._agreed,
        )

    def _agreed(self, found: Reconciled) -> None:
        self._log.info(
            Event.RECONCILED, lapsed=len(found.lapsed), dropped=found.dropped, restored=found.restored
        )

    def _read(self, positions: Mapping[str, int]) -> None:
        self._inbox.open(positions)
        self._settle(self._around.reading.attach(self._inbox, positions))
        if self._ending.is_set():
            raise Stopped
        self._log.info(Event.RUNNING, positions=dict(positions), took_ms=self._took_ms)

    def _settle(self, answers: list[Future[None]]) -> None:
        """Wait for the readers, unless we are to end: the one that revokes us is then waiting for us."""
        for answer in answers:
            while not self._ending.is_set():
                try:
                    answer.result(ANSWER_POLL_S)
                    break
                except NotYetError:
                    continue
