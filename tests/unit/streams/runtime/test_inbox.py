"""The inbox: order, bounds, positions."""

import threading
from dataclasses import replace

import pytest

from laxity.schemas.timing import SystemClock
from laxity.streams.effects import Record
from laxity.streams.runtime.inbox import LANE_BYTES_MAX, LANE_RECORDS_MAX, Inbox, InputLost
from laxity.streams.runtime.sources import INPUTS


def record(topic: str, offset: int, size: int = 1) -> Record:
    return Record(topic=topic, partition=3, offset=offset, timestamp_ms=0, key=b"k", value=b"v" * size)


def opened(**positions: int) -> Inbox:
    inbox = Inbox(3)
    inbox.open({topic: positions.get(topic.replace("triggers.", ""), 0) for topic in INPUTS})
    return inbox


def test_records_come_in_canonical_order_and_ranges_say_how_far() -> None:
    inbox = opened(normal=5)
    inbox.put("triggers.normal", [record("triggers.normal", 5), record("triggers.normal", 7)])
    inbox.put("outcomes", [record("outcomes", 0)])
    taken = inbox.take(100)
    assert [(r.topic, r.offset) for r in taken.records] == [
        ("outcomes", 0), ("triggers.normal", 5), ("triggers.normal", 7)
    ]  # fmt: skip
    assert [(r.topic, r.partition, r.first, r.next, r.count) for r in taken.ranges] == [
        ("outcomes", 3, 0, 1, 1), ("triggers.normal", 3, 5, 8, 2)
    ]  # fmt: skip
    assert inbox.take(100).ranges == []


def test_stale_records_are_dropped() -> None:
    inbox = opened(normal=5)
    inbox.put("triggers.normal", [record("triggers.normal", 4), record("triggers.normal", 5)])
    inbox.put("triggers.normal", [record("triggers.normal", 5)])
    assert [r.offset for r in inbox.take(9).records] == [5]


def test_markers_move_the_range_beyond_the_last_record_only_once_the_lane_is_empty() -> None:
    inbox = opened()
    inbox.put("links", [record("links", n) for n in range(3)])
    inbox.reach_end("links", 9)
    first, second = inbox.take(2), inbox.take(2)
    assert [(r.first, r.next, r.count) for r in (*first.ranges, *second.ranges)] == [(0, 2, 2), (2, 9, 1)]
    inbox.reach_end("links", 12)
    assert inbox.waiting() == 0
    assert inbox.moved()
    assert [(r.first, r.next, r.count) for r in inbox.take(2).ranges] == [(9, 12, 0)]
    inbox.reach_end("links", 12)
    assert not inbox.moved()


def test_headers_count_towards_the_size_of_a_lane() -> None:
    """Two bytes in Kafka may be a header: half a million of them are no small record."""
    inbox = opened()
    many = replace(record("outcomes", 0), headers=(("", None),) * (LANE_BYTES_MAX // 64))
    inbox.put("outcomes", [many])
    assert inbox.crowded("outcomes")
    assert inbox.next("outcomes") == 1
    inbox.take(1)
    assert inbox.roomy("outcomes")


def test_a_flood_keeps_no_other_input_out() -> None:
    inbox = opened()
    for topic in INPUTS:
        inbox.put(topic, [record(topic, n) for n in range(2_000)])
    taken = inbox.take(500)
    counts = {moved.topic: moved.count for moved in taken.ranges}
    assert len(taken.records) == 500
    assert min(counts.values()) >= 15
    assert set(counts) == set(INPUTS)


def test_leftovers_of_shares_are_used() -> None:
    inbox = opened()
    inbox.put("triggers.background", [record("triggers.background", n) for n in range(800)])
    assert len(inbox.take(500).records) == 500
    assert len(inbox.take(500).records) == 300


@pytest.mark.parametrize(("count", "size"), [(LANE_RECORDS_MAX, 1), (8, LANE_BYTES_MAX // 8)])
def test_a_crowded_lane_says_so_until_it_is_down_to_a_quarter(count: int, size: int) -> None:
    inbox = opened()
    inbox.put("triggers.low", [record("triggers.low", n, size) for n in range(count - 1)])
    assert not inbox.crowded("triggers.low")
    inbox.put("triggers.low", [record("triggers.low", count - 1, size)])
    assert inbox.crowded("triggers.low")
    inbox.take(count // 2)
    assert not inbox.roomy("triggers.low")
    inbox.take(count)
    assert inbox.roomy("triggers.low")


def test_a_held_lane_is_crowded_although_it_is_empty() -> None:
    inbox = opened()
    inbox.hold(["triggers.normal"])
    assert (inbox.crowded("triggers.normal"), inbox.roomy("triggers.normal")) == (True, False)
    inbox.hold([])
    assert (inbox.crowded("triggers.normal"), inbox.roomy("triggers.normal")) == (False, True)


def test_what_came_before_a_new_start_is_forgotten() -> None:
    inbox = opened()
    inbox.put("outcomes", [record("outcomes", n) for n in range(5)])
    inbox.open(dict.fromkeys(INPUTS, 2))
    assert inbox.waiting() == 0
    inbox.put("outcomes", [record("outcomes", n) for n in range(5)])
    assert [r.offset for r in inbox.take(9).records] == [2, 3, 4]


def test_a_lost_input_is_told_until_it_is_opened_anew() -> None:
    inbox = opened()
    inbox.lose("retention")
    with pytest.raises(InputLost, match="retention"):
        inbox.waiting()
    inbox.open(dict.fromkeys(INPUTS, 0))
    assert inbox.waiting() == 0


def test_a_wait_ends_with_a_nudge_a_wake_or_a_record() -> None:
    clock = SystemClock()
    for action in (
        lambda inbox: inbox.nudge(),
        lambda inbox: inbox.hear("llm"),
        lambda inbox: inbox.put("control", [record("control", 0)]),
    ):
        inbox = opened()
        thread = threading.Timer(0.05, action, (inbox,))
        thread.start()
        begun_ms = clock.monotonic_ms()
        inbox.wait(30_000, more_than=0)
        assert clock.monotonic_ms() - begun_ms < 15_000
        thread.join()


def test_what_is_heard_is_told_once() -> None:
    inbox = opened()
    inbox.hear("llm")
    assert inbox.heard() == {"llm"}
    assert inbox.heard() == set()
