"""The index follows from the rows alone: from any row to any other it ends as if it had been built from scratch."""

from __future__ import annotations

from typing import Any

from builders import START_MS, row
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.records import TaskRow
from laxity.schemas.serde import encode_row
from laxity.streams import urgency
from laxity.streams.effects import Change
from laxity.streams.lifecycle import LEASED, TERMINAL, State
from laxity.streams.state import index, keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.tables import restored

LIVE = sorted(set(State) - TERMINAL - {State.NEW})
ROWS = st.builds(
    row,
    state=st.sampled_from(LIVE),
    tier=st.integers(0, 4),
    seq=st.integers(0, 2**40),
    deadline_ms=st.integers(0, 2**62),
    firm=st.booleans(),
    estimate_ms=st.integers(0, 2**53),
    due_ms=st.integers(0, 2**53),
    fleet=st.sampled_from(["default", "gpu"]),
    demands=st.dictionaries(
        st.sampled_from(["llm", "browser", "account:a", "account:ü", "lock:b"]), st.just(1)
    ),
)
MAYBE = st.none() | ROWS


def without_lanes(rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {k: v for k, v in rows.items() if k[:1] != keys.LANE}


@settings(deadline=None)
@given(st.lists(MAYBE, min_size=2, max_size=6))
def test_any_way_leads_to_what_the_last_row_alone_would_give(rows: list[TaskRow | None]) -> None:
    store = MemoryStore()
    before: TaskRow | None = None
    for after in rows:
        store.write(index.derive("t", before, after))
        before = after
    found = dict(store.scan(b"", b"\xff" * 60))
    wanted = index.entries("t", rows[-1])
    assert without_lanes(found) == without_lanes(wanted)
    assert wanted.items() <= found.items(), "the lane of a ready task is known"


@settings(deadline=None)
@given(st.lists(MAYBE, min_size=1, max_size=6))
def test_a_restore_derives_the_same(rows: list[TaskRow | None]) -> None:
    live, cold = MemoryStore(), MemoryStore()
    live.write(
        [
            w
            for before, after in zip([None, *rows], rows, strict=False)
            for w in index.derive("t", before, after)
        ]
    )
    cold.write([(keys.POSITION + b"x", b"y")])
    changes = [Change(table=keys.TASK, key=b"t", value=None if r is None else encode_row(r)) for r in rows]
    cold.write(restored(cold, changes))
    end = b"\xff" * 60
    cold_rows = {k: v for k, v in cold.scan(b"", end) if k[:1] != b"t"}
    assert without_lanes(cold_rows) == without_lanes(dict(live.scan(b"", end)))


@settings(deadline=None)
@given(ROWS, st.sampled_from(["account:a", "account:ü", "lock:b"]))
def test_leaving_the_ready_table_leaves_the_keyed_slot_s_queue_too(before: TaskRow, keyed: str) -> None:
    store = MemoryStore()
    if before.state != State.READY or keyed not in before.demands:
        return
    ready = index.ready_key(before)
    store.write([(keys.parked_key(keyed, ready), b"t")])  # parked: out of its lane
    store.write(index.derive("t", before, None))
    assert not list(store.scan(keys.PARKED, keys.PARKED + keys.MAX_KEY))


@settings(deadline=None)
@given(ROWS)
def test_what_is_indexed_where(task: TaskRow) -> None:
    kinds = [k[:1] for k in index.entries("t", task)]
    timers = [k for k in index.entries("t", task) if k[:1] == keys.TIMER]
    assert kinds.count(keys.READY) == (task.state == State.READY)
    assert kinds.count(keys.LEASED) == (task.state in LEASED)
    waits = task.state not in LEASED
    assert len(timers) == (task.state == State.DELAYED) + (task.firm and waits)
    if task.firm and waits:
        due = max(keys.read_u64(t, 1) for t in timers if t[9:10] == index.EXPIRE)
        assert due == urgency.latest_start(task) + 1 >= 1


@settings(deadline=None)
@given(ROWS, ROWS)
def test_the_ready_order_is_deadline_then_acceptance(a: TaskRow, b: TaskRow) -> None:
    def place(task: TaskRow) -> tuple[Any, ...]:
        return (index.lane_of(task)[0], task.tier, task.deadline_ms, task.seq)

    assert (index.ready_key(a) < index.ready_key(b)) == (place(a) < place(b))


def test_an_overdue_deadline_still_has_a_place() -> None:
    assert urgency.order_of(row(deadline_ms=-5)) == 0
    assert urgency.latest_start(row(deadline_ms=START_MS, estimate_ms=2**60)) == 0
