"""The loop of one ownership: input that aborts, and offsets that are committed again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from laxity.schemas.records import InputRange
from laxity.schemas.timing import ManualClock
from laxity.streams.runtime import batches as module
from laxity.streams.runtime.batches import (
    ABORTS_MAX,
    ENDS_MS,
    RECOMMIT_AGAIN_MS,
    RECOMMIT_MS,
    WAIT_MS_MAX,
    Batches,
    Work,
)
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.standing import DISOWNED_MS_MAX, MemberLostError, Standing
from laxity.streams.runtime.transactions import AbortedError, DisownedError

INPUT = Taken(records=(), ranges=())
MOVED = Taken(records=(), ranges=(InputRange(topic="control", partition=0, first=0, next=1, count=1),))
POSITIONS = {"control": 3, "triggers.low": 9}


@dataclass
class World:
    """A quiet shard whose clock moves while it waits. Aborts as often as it is told to."""

    aborts: int = 0
    refusal: AbortedError = field(default_factory=lambda: AbortedError("a rebalance"))
    step_ms: int = WAIT_MS_MAX
    ends_moved: bool = False
    ending: threading.Event = field(default_factory=threading.Event)
    clock: ManualClock = field(default_factory=ManualClock)
    told: list[str] = field(default_factory=list)
    pending: Any = field(default_factory=lambda: SimpleNamespace(woken=set(), lapsed=[]))

    # as the cycle

    def run(self, taken: Taken) -> None:
        assert taken in {INPUT, MOVED}
        self._try("batch")

    def recommit(self, positions: Mapping[str, int]) -> None:
        assert positions == POSITIONS
        self._try("offsets")

    def look_at_ledger(self) -> bool:
        return False

    def _try(self, what: str) -> None:
        self.told.append(f"{what} at {self.clock.monotonic_ms() - self.begun_ms}")
        if self.aborts:
            self.aborts -= 1
            raise self.refusal

    # as the inbox

    def wait(self, _timeout_ms: int, *, more_than: int) -> None:
        assert more_than == 0
        self.clock.advance(self.step_ms)

    def take(self, _limit: int) -> Taken:
        self.ends_moved = False
        return INPUT

    def batches(self) -> Batches:
        self.begun_ms = self.clock.monotonic_ms()
        inbox: Any = SimpleNamespace(
            waiting=lambda: 0,
            heard=set,
            moved=lambda: self.ends_moved,
            patient=lambda: True,
            positions=lambda: POSITIONS,
            hold=lambda _: None,
            wait=self.wait,
            take=self.take,
        )
        core: Any = SimpleNamespace(next_wakeup=lambda: None, backlog=lambda: (0,) * 5)
        cycle: Any = self
        stores: Any = SimpleNamespace(drop_expired_keys=lambda _: self.told.append("keys"))
        meter: Any = SimpleNamespace(aborted=lambda: self.told.append("aborted"), waiting=lambda _: None)
        return Batches(
            Work(
                shard=0,
                clock=self.clock,
                core=core,
                cycle=cycle,
                stores=stores,
                inbox=inbox,
                meter=meter,
                standing=Standing(self.clock),
                ending=self.ending,
                busy_shards=lambda: 1,
                backlog_max=1,
                ran=lambda _: self.ending.set(),
            )
        )


@pytest.mark.parametrize(("aborts", "runs"), [(0, 1), (ABORTS_MAX - 1, ABORTS_MAX), (ABORTS_MAX, ABORTS_MAX)])
def test_an_input_that_is_aborted_for_ever_ends_the_ownership(
    monkeypatch: pytest.MonkeyPatch, aborts: int, runs: int
) -> None:
    monkeypatch.setattr(module, "ABORT_PAUSE_MS", 0)
    world = World(aborts=aborts)
    batches = world.batches()
    if aborts < ABORTS_MAX:
        batches._carry_out(INPUT)
    else:
        with pytest.raises(AbortedError):
            batches._carry_out(INPUT)
    assert (world.told.count("batch at 0"), world.told.count("aborted")) == (runs, aborts)


def test_a_quiet_shard_commits_its_offsets_again_once_a_day_and_soon_after_an_abort() -> None:
    """Kafka forgets, after a week, offsets of topics that the group is not subscribed to, even while it lives."""
    world = World(aborts=1, step_ms=RECOMMIT_AGAIN_MS)
    batches = world.batches()

    def wait(timeout_ms: int, *, more_than: int) -> None:
        World.wait(world, timeout_ms, more_than=more_than)
        if len(world.told) == 3:
            world.ending.set()

    batches._work.inbox.wait = wait  # type: ignore[method-assign]
    batches.run()
    again_ms = RECOMMIT_MS + RECOMMIT_AGAIN_MS
    assert world.told == [f"offsets at {at}" for at in (RECOMMIT_MS, again_ms, again_ms + RECOMMIT_MS)]


def test_ends_of_partitions_are_committed_within_a_second() -> None:
    """Markers alone are no work, but a lag that stands still would look like a stall."""
    world = World(ends_moved=True)
    world.batches().run()
    assert world.told == [f"batch at {ENDS_MS}"]


def test_a_member_that_the_group_has_forgotten_is_told_from_one_in_a_rebalance() -> None:
    clock = ManualClock()
    standing, rebalance = Standing(clock), DisownedError("unknown member")
    standing.aborted(rebalance)
    clock.advance(DISOWNED_MS_MAX - 1)
    standing.aborted(rebalance)
    standing.accepted()
    standing.aborted(rebalance)
    clock.advance(DISOWNED_MS_MAX - 1)
    standing.aborted(AbortedError("no broker"))
    standing.aborted(rebalance)
    clock.advance(1)
    with pytest.raises(MemberLostError):
        standing.aborted(rebalance)


def test_refusals_count_on_over_ownerships_until_offsets_are_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ABORT_PAUSE_MS", 0)
    world = World(aborts=2 * ABORTS_MAX, refusal=DisownedError("unknown member"))
    batches = world.batches()
    with pytest.raises(DisownedError):
        batches._carry_out(INPUT)
    world.clock.advance(DISOWNED_MS_MAX)
    with pytest.raises(MemberLostError):
        batches._carry_out(INPUT)
    world.aborts = 0
    batches._carry_out(INPUT)
    world.aborts = 1
    with pytest.raises(MemberLostError):
        batches._carry_out(INPUT)
    world.aborts = 0
    batches._carry_out(MOVED)
    world.aborts = 1
    batches._carry_out(MOVED)
