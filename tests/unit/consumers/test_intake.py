"""The poll thread's rounds over a topic in memory, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from laxity.consumers.doors import ConsumerFailed
from laxity.consumers.intake import COMMIT_MS, Delivery, Intake
from laxity.consumers.testing import MemoryDispatches
from laxity.schemas.timing import ManualClock


@dataclass(kw_only=True)
class Desk:
    """An intake and what it delivered."""

    topic: MemoryDispatches = field(default_factory=MemoryDispatches)
    clock: ManualClock = field(default_factory=ManualClock)
    got: list[Delivery] = field(default_factory=list)
    changes: int = 0
    intake: Intake = field(init=False)
    unfinished_max: int = 100

    def __post_init__(self) -> None:
        self.intake = Intake(
            self.topic,
            clock=self.clock,
            deliver=self.got.extend,
            changed=self._changed,
            unfinished_max=self.unfinished_max,
        )
        self.topic.start(self.intake)

    def _changed(self) -> None:
        self.changes += 1

    def turns(self, count: int = 3) -> list[Delivery]:
        """What came in so many rounds, with time for a commit in each."""
        self.got.clear()
        for _ in range(count):
            self.clock.advance(COMMIT_MS)
            self.intake.turn()
        return list(self.got)


def offsets(deliveries: list[Delivery]) -> list[tuple[int, bool]]:
    return [(delivery.record.offset, delivery.question) for delivery in deliveries]


def test_what_lay_there_at_assignment_is_a_question_what_comes_later_an_order() -> None:
    desk = Desk()
    for _ in range(2):
        desk.topic.append(1, b"old")
    desk.topic.assign(1)
    assert offsets(desk.turns()) == [(0, True), (1, True)]
    desk.topic.append(1, b"new", gap=3)
    assert offsets(desk.turns()) == [(5, False)]


def test_nothing_is_read_and_nothing_announced_before_the_end_of_the_log_is_known() -> None:
    desk = Desk()
    desk.topic.ends_known = False
    desk.topic.append(1, b"old")
    desk.topic.assign(1)
    assert desk.turns() == []
    assert not desk.intake.assignment
    desk.topic.append(1, b"sent to whoever had it before")
    desk.topic.ends_known = True
    assert offsets(desk.turns()) == [(0, True), (1, True)]
    assert desk.intake.assignment == (1,)


def test_many_new_partitions_do_not_hold_the_thread_beyond_its_time() -> None:
    desk = Desk()
    ask, asked = desk.topic.log_end, list[tuple[int, int]]()

    def slow(partition: int, wait_ms: int) -> int | None:
        asked.append((partition, wait_ms))
        desk.clock.advance(200)
        return ask(partition, wait_ms)

    desk.topic.log_end = slow  # type: ignore[method-assign]
    desk.topic.assign(0, 1, 2, 3)
    desk.intake.turn()
    desk.intake.turn()
    assert asked == [(0, 500), (1, 300), (2, 100)]
    assert list(desk.intake.assignment) == [0, 1, 2]
    desk.intake.turn()
    assert list(desk.intake.assignment) == [0, 1, 2, 3]


def test_the_offset_waits_for_the_oldest_unfinished_record() -> None:
    desk = Desk()
    desk.topic.assign(0)
    desk.turns()
    for _ in range(3):
        desk.topic.append(0, b"x", gap=1)
    first, second, third = desk.turns()
    desk.intake.finished(third.place)
    desk.intake.finished(second.place)
    desk.turns()
    assert desk.topic.committed == {}  # the oldest is where reading began: nothing to commit
    desk.intake.finished(first.place)
    desk.turns()
    assert desk.topic.committed == {0: 6}


def test_a_partition_that_goes_leaves_its_position_and_what_finishes_later_harms_nothing() -> None:
    desk = Desk()
    desk.topic.assign(0, 1)
    desk.turns()
    desk.topic.append(0, b"a")
    desk.topic.append(0, b"b")
    first, second = desk.turns()
    desk.intake.finished(first.place)
    desk.topic.revoke(0)
    desk.turns()
    assert desk.topic.committed[0] == 1
    assert desk.intake.assignment == (1,)
    desk.intake.finished(second.place)
    desk.turns()
    assert desk.topic.committed[0] == 1  # another one's partition now
    desk.topic.assign(0)
    assert offsets(desk.turns()) == [(1, True)]  # it came back: asked about


def test_the_bound_on_unfinished_records_stops_reading_until_half_are_finished() -> None:
    desk = Desk(unfinished_max=4)
    desk.topic.assign(0)
    desk.turns()
    for _ in range(10):
        desk.topic.append(0, b"x")
    first = desk.turns()
    assert len(first) == 4
    assert desk.turns() == []
    assert desk.topic.paused >= {0}
    desk.intake.finished(first[3].place)
    assert desk.turns() == []
    desk.intake.finished(first[2].place)
    assert len(desk.turns()) == 2
    assert desk.intake.unfinished == 4


def test_rebalances_are_served_while_reading_is_stopped() -> None:
    desk = Desk(unfinished_max=2)
    desk.topic.assign(0)
    desk.turns()
    for _ in range(5):
        desk.topic.append(0, b"x")
    desk.turns()
    desk.topic.append(1, b"old")
    desk.topic.assign(1)
    assert desk.turns() == []  # still full
    assert desk.intake.assignment == (0, 1)
    desk.topic.revoke(0)
    assert offsets(desk.turns()) == [(0, True)]  # the unfinished ones went with their partition


def test_changes_of_the_assignment_are_told_once_each() -> None:
    desk = Desk()
    desk.turns()
    assert desk.changes == 0
    desk.topic.assign(2, 0)
    desk.turns()
    assert (desk.changes, desk.intake.assignment) == (1, (0, 2))
    desk.topic.revoke(0)
    desk.turns()
    assert (desk.changes, desk.intake.assignment) == (2, (2,))


def test_the_end_commits_what_is_finished_and_leaves() -> None:
    desk = Desk()
    desk.topic.assign(0)
    desk.turns()
    desk.topic.append(0, b"x")
    (only,) = desk.turns()
    desk.intake.finished(only.place)
    desk.intake.stop()
    desk.intake.run()
    assert desk.topic.committed == {0: 1}
    assert desk.topic.closed
    assert desk.intake.assignment == ()


def test_a_consumer_that_cannot_go_on_ends_the_thread_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()

    def fail(records_max: int, wait_ms: int) -> list[object]:
        raise ConsumerFailed("fenced")

    monkeypatch.setattr(desk.topic, "poll", fail)
    desk.intake.run()
    assert str(desk.intake.failure) == "fenced"
    assert desk.topic.closed
