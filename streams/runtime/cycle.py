"""One batch, carried out in numbered steps: the only place where a shard's decisions become facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from confluent_kafka import TopicPartition

from laxity.schemas.records import InputRange
from laxity.schemas.timing import Clock, Millis
from laxity.streams.effects import BatchInput, Effects
from laxity.streams.ledger.protocol import Answer, Exchange, Live, Reconciled
from laxity.streams.runtime.cluster import ClusterError
from laxity.streams.runtime.core import Core
from laxity.streams.runtime.crashpoints import reach
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.stores import Stores
from laxity.streams.runtime.transactions import AbortedError, FencedError, Message, TransactionError
from laxity.streams.state.changelog import KEYS, STATE

RECONCILE_MS_MAX = (
    2_000  # at takeover: nothing is admitted before it, but a silent ledger must not stop completions
)
RECONCILE_EVERY_MS = (
    1_000  # while the ledger is away nothing is admitted; asking more often would not bring it back
)
LAPSED_MAX = 1_000  # of one batch: after a long absence a shard may find most of its leases gone, and a transaction has 5 s
IDLE_ASK_MS = 1_000  # a quiet shard hears of lapsed leases this late


class Committing(Protocol):
    """The transactional producer."""

    def commit(
        self,
        messages: Sequence[Message],
        offsets: Sequence[TopicPartition],
        metadata: Any,
        watched: Sequence[str] = (),
    ) -> dict[str, int]:
        """One transaction; see Transactions.commit. Raises TransactionError."""
        ...


class Line(Protocol):
    """The way to the ledger."""

    def ask(self, exchange: Exchange) -> Answer | None:
        """One round trip; None: no answer in time."""
        ...

    def begin_reconcile(
        self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]
    ) -> Future[Reconciled]:
        """Report what lives."""
        ...

    def finish(self, begun: Future[Reconciled], *, wait_ms: Millis = 0) -> Reconciled | None:
        """What came of it; None: nothing yet, or (where `begun.done()`) no answer."""
        ...


class Meter(Protocol):
    """Counts what was committed."""

    def committed(self, took_ms: Millis) -> None:
        """A transaction."""
        ...

    def batch(self, effects: Effects, taken: Taken, *, silent: bool, took_ms: Millis) -> None:
        """A batch, committed and in the stores."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a batch touches besides its core. The simulator brings its own: the order of steps is this module's under both."""

    shard: int
    stores: Stores
    transactions: Committing
    outbox: Outbox
    line: Line
    group_metadata: Callable[[], object]
    outcomes_end: Callable[[], int]  # raises ClusterError
    clock: Clock
    meter: Meter
    agreed: Callable[[Reconciled], None] = lambda _: None  # told of each reconciliation
    reach: Callable[[str], None] = reach


@dataclass(slots=True, kw_only=True)
class Pending:
    """What the next batch must be told, kept until a batch with it has committed."""

    held: set[str] = field(default_factory=set)
    lapsed: list[str] = field(default_factory=list)
    woken: set[str] = field(default_factory=set)
    skipped: list[str] = field(default_factory=list)


class Cycle:
    """Batches of one ownership of one shard. After AbortedError the same input may be run again; after any other error it is over."""

    def __init__(self, core: Core, world: World, skipped: Sequence[str] = ()) -> None:
        self._core = core
        self._world = world
        self.pending = Pending(skipped=list(skipped))
        self._reconciled = False
        self._agreeing: Future[Reconciled] | None = None
        self._agree_ms: Millis = 0
        self._asked = False  # in the batch under way
        self._asked_ms: Millis = 0

    # before the first batch

    def take_over(self) -> None:
        """Owner epoch + 1, durable before it is used. Raises TransactionError."""
        effects = self._core.take_over(self._world.clock.now_ms())
        try:
            self._carry_out(effects, ())
        except TransactionError:
            self._core.aborted()
            raise

    def reconcile(self) -> None:
        """Agree with the ledger on what is reserved; where it is silent nothing is admitted until it answers. Raises FencedError."""
        self._agree(wait_ms=RECONCILE_MS_MAX)

    def _agree(self, *, wait_ms: Millis = 0) -> None:
        """Begin to reconcile, or see what came of it. Meanwhile this shard asks nothing, so what it has reserved can only shrink."""
        world, core = self._world, self._core
        now_ms = world.clock.monotonic_ms()
        if self._agreeing is None:
            if now_ms < self._agree_ms:
                return
            self._agreeing = world.line.begin_reconcile(
                shard=world.shard, owner_epoch=core.owner_epoch, seen_epoch=core.seen_epoch, live=core.live()
            )
        found = world.line.finish(self._agreeing, wait_ms=wait_ms)
        if found is not None and found.status != "recovering":
            self._agreed(found)
        elif self._agreeing.done():  # no answer, or it lost its memory while we told it
            self._agreeing, self._agree_ms = None, now_ms + RECONCILE_EVERY_MS

    def _agreed(self, found: Reconciled) -> None:
        if found.status == "fenced":
            raise FencedError("the ledger knows a higher owner epoch")
        self._agreeing, self._reconciled = None, True
        self._asked_ms = self._world.clock.monotonic_ms()
        self.pending.lapsed += found.lapsed
        self.pending.held.clear()  # what is not live was dropped
        self._world.agreed(found)

    # a batch

    def run(self, taken: Taken) -> None:
        """Raises TransactionError, StoreError."""
        world, core, pending = self._world, self._core, self.pending
        begun_ms = world.clock.monotonic_ms()
        world.reach("after_poll")
        if not self._reconciled:
            self._agree()
        # 1. What came in, and what earlier batches left open.
        batch = self._input(taken)
        # 2. Nominate: pure.
        exchange = core.nominate(batch)
        answer: Answer | None = None
        try:
            # 3. Ask the ledger; wait 20 ms, longer only after late answers.
            answer = self._ask(exchange)
            # 4. Conclude: pure. Lapsed leases need the end of `outcomes`, asked after the answer.
            end = self._outcomes_end(answer, batch)
            effects = core.conclude(answer, outcomes_end=end)
            world.reach("after_step")
            # 5. Commit, then 6. write the stores.
            self._carry_out(effects, taken.ranges)
        except TransactionError:
            core.aborted()
            refused = {refusal.reservation_id for refusal in answer.refusals} if answer else set()
            pending.held |= {candidate.reservation_id for candidate in exchange.candidates} - refused
            raise
        # 7. What was told is told; what is unknown stays held.
        unknown = exchange.candidates if answer is None or answer.status != "ok" else ()
        pending.held = {candidate.reservation_id for candidate in unknown}
        del pending.lapsed[: len(batch.lapsed)]
        pending.woken -= set(batch.woken)
        pending.skipped.clear()
        silent = answer is None and self._asked
        world.meter.batch(effects, taken, silent=silent, took_ms=world.clock.monotonic_ms() - begun_ms)
        if answer is not None and answer.status == "recovering":
            self._reconciled = False

    def _input(self, taken: Taken) -> BatchInput:
        pending = self.pending
        return BatchInput(
            records=taken.records,
            ranges=taken.ranges,
            now_ms=self._world.clock.now_ms(),
            held=sorted(pending.held),
            lapsed=tuple(pending.lapsed[:LAPSED_MAX]),
            woken=sorted(pending.woken),
            skipped=tuple(pending.skipped),
        )

    def _ask(self, exchange: Exchange) -> Answer | None:
        now_ms = self._world.clock.monotonic_ms()
        self._asked = False
        if not self._reconciled:
            return None
        if not exchange.asks and now_ms - self._asked_ms < IDLE_ASK_MS:
            return None
        self._asked, self._asked_ms = True, now_ms
        answer = self._world.line.ask(exchange)
        if answer is not None and answer.status == "fenced":
            raise FencedError("the ledger knows a higher owner epoch")
        return answer

    def _outcomes_end(self, answer: Answer | None, batch: BatchInput) -> int:
        gone = answer is not None and (answer.reaped or "gone" in answer.verdicts.values())
        if not gone and not batch.lapsed:
            return -1
        try:
            return self._world.outcomes_end()
        except ClusterError as error:
            raise AbortedError(str(error)) from error

    def _carry_out(self, effects: Effects, ranges: Sequence[InputRange]) -> None:
        world, box = self._world, self._world.outbox
        begun_ms = world.clock.monotonic_ms()
        offsets = [TopicPartition(box.prefix + r.topic, r.partition, r.next) for r in ranges]
        ends = world.transactions.commit(
            box.messages(effects),
            offsets,
            world.group_metadata() if offsets else None,
            (box.state_topic, box.keys_topic),
        )
        world.reach("after_commit")
        world.meter.committed(world.clock.monotonic_ms() - begun_ms)
        assert box.state_topic in ends, "the shard's own row is part of every batch"
        by_name = {STATE: ends.get(box.state_topic, -1), KEYS: ends.get(box.keys_topic, -1)}
        world.stores.apply(effects, by_name, world.clock.now_ms())
        world.reach("after_apply")
        self._core.applied()

    # between batches

    def recommit(self, positions: Mapping[str, int]) -> None:
        """Only offsets: of each input, the next one. Raises TransactionError."""
        box = self._world.outbox
        offsets = [TopicPartition(box.prefix + name, box.shard, at) for name, at in positions.items()]
        self._world.transactions.commit((), offsets, self._world.group_metadata())

    def look_at_ledger(self) -> bool:
        """When nothing else happens: ask whether leases lapsed, or reconcile anew. True: a batch is due. Raises FencedError."""
        if not self._reconciled:
            self._agree()
            return self._reconciled
        if self._world.clock.monotonic_ms() - self._asked_ms < IDLE_ASK_MS:
            return False
        answer = self._ask(Exchange(shard=self._world.shard, owner_epoch=self._core.owner_epoch))
        if answer is None or (answer.status == "ok" and not answer.reaped):
            return False
        self._asked_ms = 0  # the batch asks again at once, however little else it has to ask
        self._reconciled = answer.status == "ok"
        return True
