"""The committed offset never passes unfinished work, and reaches the end once all is finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laxity.consumers.watermark import Watermark


@given(
    gaps=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    start=st.integers(0, 1_000),
    data=st.data(),
)
def test_the_mark_is_the_lowest_unfinished_offset(gaps: list[int], start: int, data: st.DataObject) -> None:
    mark = Watermark()
    offsets, unfinished, received = start, set[int](), list[int]()
    before = -1
    for gap in gaps:
        offsets += gap
        mark.received(offsets)
        received.append(offsets)
        unfinished.add(offsets)
        for done in data.draw(st.lists(st.sampled_from(received), max_size=3)):
            mark.finished(done)
            unfinished.discard(done)
        expected = min(unfinished) if unfinished else offsets + 1
        assert mark.position == expected
        assert mark.unfinished == len(unfinished)
        assert mark.position >= before, "a mark went back"
        before = mark.position
        offsets += 1
    for offset in received:
        mark.finished(offset)
    assert mark.position == received[-1] + 1
    assert mark.unfinished == 0


def test_nothing_received_is_nothing_to_commit() -> None:
    assert Watermark().position == -1


def test_one_long_task_costs_no_memory_for_those_that_finish_behind_it() -> None:
    mark = Watermark()
    mark.received(0)
    for offset in range(1, 100_000):
        mark.received(offset)
        mark.finished(offset)
    assert mark.position == 0
    assert mark.unfinished == 1
