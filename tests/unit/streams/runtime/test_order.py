"""Which records may be taken for what they claim."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from laxity.streams.effects import Record
from laxity.streams.runtime.order import credible


def records(offsets: Sequence[int]) -> list[Record]:
    return [
        Record(topic="outcomes", partition=0, offset=offset, timestamp_ms=0, key=None, value=b"")
        for offset in offsets
    ]


@pytest.mark.parametrize(
    ("offsets", "taken"),
    [
        ([], 0),
        ([3, 4, 5], 3),
        ([3], 1),
        ([3, 9], 1),  # what stands between may never come
        ([9], 0),
        ([3, 5, 6, 8, 9], 3),  # behind two transactions of somebody: the last is looked at
        ([3, 8, 9, 4, 5], 1),
        ([3, 9, 4, 5], 1),  # it did come: 9 stands at 4
        ([9, 4], 0),
        ([3, 3, 4], 0),
        ([4, 3], 0),
        ([3, 100], 1),  # beyond the end
        ([100, 101], 0),
        ([1, 2, 3], 3),  # old ones: the inbox drops them
    ],
)
def test_offsets_are_believed_if_they_go_on_in_order(offsets: list[int], taken: int) -> None:
    assert credible(records(offsets), 3, 50, gaps=False) == taken


def test_where_transactions_write_a_gap_is_as_it_should_be() -> None:
    assert credible(records([3, 5]), 3, 50, gaps=True) == 2
    assert credible(records([5]), 3, 50, gaps=True) == 1
    assert credible(records([5, 4]), 3, 50, gaps=True) == 0


def test_what_was_looked_at_is_taken_and_what_follows_is_not() -> None:
    assert credible(records([9]), 3, 50, gaps=False, known=True) == 1
    assert credible(records([3, 3, 5]), 3, 50, gaps=False, known=True) == 2
    assert credible(records([9, 20, 21]), 3, 50, gaps=False, known=True) == 1
