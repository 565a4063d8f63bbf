"""One batch, step by step: what is told to the next batch when something goes wrong in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from laxity.schemas.records import InputRange
from laxity.schemas.serde import Codec
from laxity.schemas.timing import ManualClock
from laxity.streams.effects import BatchInput, Change, Effects
from laxity.streams.ledger.protocol import Answer, Candidate, Exchange, Live, Reconciled
from laxity.streams.runtime.cluster import ClusterError
from laxity.streams.runtime.cycle import IDLE_ASK_MS, LAPSED_MAX, RECONCILE_EVERY_MS, Cycle, World
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.meter import Known, ShardMeter
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.stores import Stores
from laxity.streams.runtime.transactions import AbortedError, DoubtfulError, FencedError
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.restore import position

NOTHING = Taken(records=(), ranges=())
MOVED = Taken(
    records=(),
    ranges=[InputRange(topic="outcomes", partition=2, first=0, next=7, count=3)],
)


def candidate(name: str) -> Candidate:
    return Candidate(reservation_id=name, task_id="t", fleet="default", demands={}, deadline_ms=0)


@dataclass
class FakeCore:
    """Nominates what it is told to and writes down what it is given."""

    candidates: Sequence[str] = ()
    inputs: list[BatchInput] = field(default_factory=list)
    answers: list[Answer | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    owner_epoch: int = 1
    seen_epoch: str = ""

    def take_over(self, now_ms: int) -> Effects:
        self.owner_epoch += 1
        return self._effects()

    def live(self) -> Sequence[Live]:
        return ()

    def nominate(self, batch: BatchInput) -> Exchange:
        self.inputs.append(batch)
        return Exchange(shard=2, owner_epoch=1, candidates=[candidate(name) for name in self.candidates])

    def conclude(self, answer: Answer | None, *, outcomes_end: int = -1) -> Effects:
        self.answers.append(answer)
        self.ends.append(outcomes_end)
        return self._effects()

    def _effects(self) -> Effects:
        return Effects(
            batch=1,
            state=[Change(table="shard", key=b"shard", value=b"row")],
            keys=(),
            local=[(b"Rx", b"1")],
            outputs=(),
        )

    def applied(self) -> None:
        self.log.append("applied")

    def aborted(self) -> None:
        self.log.append("aborted")

    def waits_for(self, resource: str) -> bool:
        return False

    def next_wakeup(self) -> int | None:
        return None

    def mark(self, topic: str) -> int:
        return 0

    def topic_id(self, topic: str) -> str:
        return ""

    def backlog(self) -> Sequence[int]:
        return (0,) * 5


@dataclass
class FakeTransactions:
    """Commits, unless it is told to fail."""

    failure: Exception | None = None
    offsets: list[list[tuple[str, int, int]]] = field(default_factory=list)

    def commit(
        self, messages: Sequence[Any], offsets: Sequence[Any], metadata: Any, watched: Sequence[str] = ()
    ) -> dict[str, int]:
        if self.failure is not None:
            raise self.failure
        self.offsets.append([(at.topic, at.partition, at.offset) for at in offsets])
        assert (metadata is not None) == bool(offsets)
        return {name: 11 for name in watched if any(m.topic == name for m in messages)}


@dataclass
class FakeLine:
    """Gives the answers it is told to."""

    answer: Answer | None = None
    reconciled: Reconciled | None = field(default_factory=lambda: Reconciled(status="ok", epoch="e"))
    asked: list[Exchange] = field(default_factory=list)
    begun: int = 0
    pending: bool = False

    def ask(self, exchange: Exchange) -> Answer | None:
        self.asked.append(exchange)
        return self.answer

    def begin_reconcile(self, **_: Any) -> Future[Reconciled]:
        self.begun += 1
        future: Future[Reconciled] = Future()
        if not self.pending:
            future.set_result(self.reconciled or Reconciled(status="none", epoch=""))
        return future

    def finish(self, begun: Future[Reconciled], *, wait_ms: int = 0) -> Reconciled | None:
        if not begun.done():
            return None
        return self.reconciled


def ok(**more: Any) -> Answer:
    return Answer(status=more.pop("status", "ok"), epoch="e", sequence=1, **more)


@dataclass
class Bench:
    core: FakeCore = field(default_factory=FakeCore)
    transactions: FakeTransactions = field(default_factory=FakeTransactions)
    line: FakeLine = field(default_factory=FakeLine)
    clock: ManualClock = field(default_factory=ManualClock)
    end: Callable[[], int] = lambda: 99
    stores: Stores = field(
        default_factory=lambda: Stores(
            state=MemoryStore(), keys=MemoryStore(), topic_ids={"state": "s", "keys": "k"}
        )
    )

    def cycle(self, *, skipped: Sequence[str] = ()) -> Cycle:
        known = Known(types=(), resources=())
        world = World(
            shard=2,
            stores=self.stores,
            transactions=self.transactions,
            outbox=Outbox(prefix="p.", shard=2, codec=Codec.local()),
            line=self.line,
            group_metadata=lambda: "member",
            outcomes_end=lambda: self.end(),  # noqa: PLW0108 - looked up when called
            clock=self.clock,
            meter=ShardMeter(2, Metrics(), known, self.clock),
        )
        return Cycle(self.core, world, skipped)

    def reconciled(self, **how: Any) -> Cycle:
        cycle = self.cycle(**how)
        cycle.reconcile()
        return cycle


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_batch_commits_offsets_with_the_prefix_and_then_writes_the_store(bench: Bench) -> None:
    bench.reconciled().run(MOVED)
    assert bench.transactions.offsets == [[("p.outcomes", 2, 7)]]
    assert bench.stores.state.get(b"Rx") == b"1"
    here = position(bench.stores.state)
    assert here is not None
    assert (here.topic_id, here.next) == ("s", 11)
    assert bench.core.log == ["applied"]


@pytest.mark.parametrize("failure", [AbortedError("a"), DoubtfulError("d"), FencedError("f")])
def test_what_was_not_committed_is_not_in_the_store_and_its_reservations_stay_held(
    bench: Bench, failure: Exception
) -> None:
    cycle = bench.reconciled(skipped=["word"])
    bench.core.candidates = ("t:0:1", "t:0:2")
    bench.line.answer = ok(reaped=())
    bench.transactions.failure = failure
    with pytest.raises(type(failure)):
        cycle.run(MOVED)
    assert list(bench.stores.state.scan(b"", b"\xff")) == []
    assert bench.core.log == ["aborted"]
    bench.transactions.failure = None
    bench.core.candidates = ()
    cycle.run(MOVED)
    again = bench.core.inputs[-1]
    assert (again.held, again.skipped, again.ranges) == (["t:0:1", "t:0:2"], ("word",), MOVED.ranges)
    cycle.run(NOTHING)
    assert (bench.core.inputs[-1].held, bench.core.inputs[-1].skipped) == ([], ())


def test_what_was_asked_without_an_answer_is_held_until_an_answered_batch(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:1",)
    cycle.run(NOTHING)
    assert bench.core.answers == [None]
    bench.line.answer = ok()
    cycle.run(NOTHING)
    cycle.run(NOTHING)
    assert [batch.held for batch in bench.core.inputs] == [[], ["t:0:1"], []]


def test_nothing_is_asked_before_the_ledger_has_agreed(bench: Bench) -> None:
    bench.line.reconciled = None
    bench.line.answer = ok()
    bench.core.candidates = ("t:0:1",)
    cycle = bench.reconciled()
    cycle.run(NOTHING)
    assert bench.line.asked == []
    assert not cycle.look_at_ledger()
    bench.clock.advance(IDLE_ASK_MS)
    bench.line.reconciled = Reconciled(status="ok", epoch="e", lapsed=("t:0:9",))
    assert cycle.look_at_ledger()
    cycle.run(NOTHING)
    assert (bench.core.inputs[-1].lapsed, bench.core.ends[-1]) == (("t:0:9",), 99)
    cycle.run(NOTHING)
    assert bench.core.inputs[-1].lapsed == ()


def test_a_ledger_that_lost_its_memory_is_reconciled_before_it_is_asked_again(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:1",)
    bench.line.answer = ok(status="recovering")
    cycle.run(NOTHING)
    cycle.run(NOTHING)
    assert (len(bench.line.asked), bench.line.begun) == (2, 2)
    assert bench.core.inputs[-1].held == []  # dropped by the ledger


def test_a_busy_shard_reconciles_between_batches_and_never_waits_for_it(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:1",)
    bench.line.answer = ok(status="recovering")
    cycle.run(NOTHING)
    bench.line.pending = True
    bench.line.answer = ok()
    for _ in range(3):
        cycle.run(MOVED)
    assert (len(bench.line.asked), bench.line.begun) == (1, 2)
    assert cycle._agreeing is not None
    cycle._agreeing.set_result(Reconciled(status="ok", epoch="e"))
    cycle.run(MOVED)
    assert len(bench.line.asked) == 2


def test_a_ledger_that_loses_its_memory_while_it_is_told_is_told_again(bench: Bench) -> None:
    bench.line.reconciled = Reconciled(status="recovering", epoch="e")
    bench.line.answer = ok()
    bench.core.candidates = ("t:0:1",)
    cycle = bench.reconciled()
    cycle.run(NOTHING)
    assert (bench.line.asked, bench.line.begun) == ([], 1)
    bench.clock.advance(RECONCILE_EVERY_MS)
    bench.line.reconciled = Reconciled(status="ok", epoch="e")
    cycle.run(NOTHING)
    assert (len(bench.line.asked), bench.line.begun) == (1, 2)


def test_a_silent_ledger_is_asked_to_reconcile_once_a_second(bench: Bench) -> None:
    bench.line.reconciled = None
    cycle = bench.reconciled()
    for _ in range(10):
        cycle.run(NOTHING)
        bench.clock.advance(IDLE_ASK_MS // 5)
    assert bench.line.begun == 2


@pytest.mark.parametrize("answer", [ok(reaped=("t:0:1",)), ok(verdicts={"t:0:1": "gone"})])
def test_the_end_of_outcomes_is_asked_where_it_is_needed(bench: Bench, answer: Answer) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:2",)
    bench.line.answer = ok(verdicts={"t:0:1": "claimed"})
    cycle.run(NOTHING)
    bench.line.answer = answer
    cycle.run(NOTHING)
    assert bench.core.ends == [-1, 99]


def test_without_that_end_the_batch_is_tried_again(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:2",)
    bench.line.answer = ok(reaped=("t:0:1",))

    def away() -> int:
        raise ClusterError("no leader")

    bench.end = away
    with pytest.raises(AbortedError, match="no leader"):
        cycle.run(MOVED)
    assert bench.core.log == ["aborted"]
    bench.end = lambda: 5
    cycle.run(MOVED)
    assert bench.core.ends == [5]


def test_a_higher_owner_epoch_anywhere_ends_the_ownership(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.core.candidates = ("t:0:2",)
    bench.line.answer = ok(status="fenced")
    with pytest.raises(FencedError):
        cycle.run(NOTHING)
    assert bench.transactions.offsets == []
    bench.line.reconciled = Reconciled(status="fenced", epoch="e")
    with pytest.raises(FencedError):
        cycle.reconcile()


def test_a_quiet_shard_asks_once_a_second_whether_leases_lapsed(bench: Bench) -> None:
    cycle = bench.reconciled()
    assert not cycle.look_at_ledger()
    bench.clock.advance(IDLE_ASK_MS)
    bench.line.answer = ok()
    assert not cycle.look_at_ledger()
    bench.clock.advance(IDLE_ASK_MS)
    bench.line.answer = ok(reaped=("t:0:1",))
    assert cycle.look_at_ledger()
    assert [_empty(exchange) for exchange in bench.line.asked] == [True, True]


def test_what_a_quiet_shard_heard_reaches_its_core(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.clock.advance(IDLE_ASK_MS)
    bench.line.answer = ok(reaped=("t:0:1",))
    assert cycle.look_at_ledger()
    cycle.run(NOTHING)
    assert bench.core.answers == [bench.line.answer]
    assert bench.core.ends == [99]


def _empty(exchange: Exchange) -> bool:
    return not (exchange.candidates or exchange.settles or exchange.acknowledged)


def test_an_empty_exchange_is_not_sent_with_every_batch(bench: Bench) -> None:
    cycle = bench.reconciled()
    bench.line.answer = ok()
    for _ in range(5):
        cycle.run(NOTHING)
    assert bench.line.asked == []


def test_woken_resources_are_told_until_a_batch_with_them_has_committed(bench: Bench) -> None:
    cycle = bench.reconciled()
    cycle.pending.woken |= {"llm", "browser"}
    bench.transactions.failure = AbortedError("a")
    with pytest.raises(AbortedError):
        cycle.run(NOTHING)
    bench.transactions.failure = None
    cycle.run(NOTHING)
    cycle.run(NOTHING)
    assert [batch.woken for batch in bench.core.inputs] == [["browser", "llm"], ["browser", "llm"], []]


def test_a_takeover_that_is_not_committed_leaves_nothing(bench: Bench) -> None:
    cycle = bench.cycle()
    bench.transactions.failure = DoubtfulError("d")
    with pytest.raises(DoubtfulError):
        cycle.take_over()
    assert bench.core.log == ["aborted"]
    assert list(bench.stores.state.scan(b"", b"\xff")) == []
    bench.transactions.failure = None
    cycle.take_over()
    assert bench.core.log == ["aborted", "applied"]


def test_a_mass_of_lapsed_leases_is_told_in_batches_and_none_is_lost_by_an_abort(bench: Bench) -> None:
    lost = [f"t:0:{n}" for n in range(LAPSED_MAX + 2)]
    bench.line.reconciled = Reconciled(status="ok", epoch="e", lapsed=tuple(lost))
    bench.line.answer = ok()
    cycle = bench.reconciled()
    bench.transactions.failure = AbortedError("a")
    with pytest.raises(AbortedError):
        cycle.run(NOTHING)
    bench.transactions.failure = None
    for _ in range(3):
        cycle.run(NOTHING)
    told = [list(batch.lapsed) for batch in bench.core.inputs[1:]]
    assert told == [lost[:LAPSED_MAX], lost[LAPSED_MAX:], []]
