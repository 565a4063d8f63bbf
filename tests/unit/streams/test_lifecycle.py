"""Every pair of state and cause: in the table, or refused with the task left as it was."""

from __future__ import annotations

from itertools import product

import pytest
from builders import START_MS, Bench, row

from laxity.schemas.records import TaskRow
from laxity.streams.batch import Batch
from laxity.streams.errors import IllegalTransitionError
from laxity.streams.lifecycle import LEASED, TERMINAL, TRANSITIONS, Cause, State, next_state
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.tables import Tables

PAIRS = list(product(State, Cause))
TIER = 2
PLACE = Bench().core._place


def batch(before: TaskRow) -> Batch:
    tables = Tables(MemoryStore(), MemoryStore())
    tables.put_task("t", before)
    return Batch(
        place=PLACE,
        tables=tables,
        number=1,
        now_ms=START_MS,
        seq=0,
        waiting=[5] * 5,
        marks={},
    )


@pytest.mark.parametrize(("state", "cause"), PAIRS)
def test_a_step_is_in_the_table_or_leaves_everything_as_it_was(state: State, cause: Cause) -> None:
    before = row(state=state, tier=TIER)
    work = batch(before)
    if (state, cause) in TRANSITIONS:
        after = work.move("t", before, cause, "why")
        assert after.state == TRANSITIONS[state, cause] == next_state(state, cause)
        assert work.tables.task("t") == after
        return
    with pytest.raises(IllegalTransitionError, match=cause):
        work.move("t", before, cause, "why", dispatch_no=9)
    assert work.tables.task("t") is before
    assert work.waiting == [5] * 5
    assert work.close(0) == 0
    assert work.outputs == []


def test_no_way_leads_out_of_an_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in TERMINAL]


def test_every_live_state_can_be_reached_and_left() -> None:
    live = set(State) - TERMINAL - {State.NEW, State.WAITING}  # WAITING comes with the graph
    assert {after for after in TRANSITIONS.values() if after not in TERMINAL} == live
    for state in live | {State.WAITING}:
        ends = {TRANSITIONS[state, cause] for cause in Cause if (state, cause) in TRANSITIONS}
        assert State.CANCELLED in ends, f"{state} cannot be cancelled"


def test_a_task_under_a_lease_neither_expires_nor_is_granted_again() -> None:
    for state in LEASED:
        assert (state, Cause.EXPIRE) not in TRANSITIONS
        assert (state, Cause.GRANT) not in TRANSITIONS


def test_an_unknown_word_is_no_state() -> None:
    with pytest.raises(ValueError, match="LIMBO"):
        next_state("LIMBO", Cause.START)


@pytest.mark.parametrize(
    ("state", "cause", "by"),
    [
        ("", Cause.ACCEPT, 1),
        ("DELAYED", Cause.RELEASE, 0),
        ("READY", Cause.GRANT, -1),
        ("RUNNING", Cause.RETRY, 1),
    ],
)
def test_the_backlog_counts_those_that_wait(state: str, cause: Cause, by: int) -> None:
    before = row(state=state, tier=TIER)
    work = batch(before)
    work.move("t", before, cause, "why")
    assert work.waiting == [5, 5, 5 + by, 5, 5]
