"""The ready table against a plain sorted list, over commits, aborts, spills and restarts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from builders import row
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.records import TaskRow
from laxity.streams import ready
from laxity.streams.ready import Pending, ReadyTable
from laxity.streams.state import front, index, keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.store import Write

NO_FLOORS = (0,) * 5
DEMANDS: tuple[dict[str, int], ...] = ({}, {"llm": 1}, {"browser": 1}, {"account:a": 1})


@dataclass
class Model:
    """The store, the table, and what it ought to say."""

    store: MemoryStore = field(default_factory=MemoryStore)
    tasks: dict[str, TaskRow] = field(default_factory=dict)
    seq: int = 0

    def __post_init__(self) -> None:
        self.table = ReadyTable(self.store)
        self.table.load()

    def new(self, deadline: int, tier: int, lane: int) -> tuple[str, TaskRow]:
        self.seq += 1
        return f"t{self.seq}", row(deadline_ms=deadline, tier=tier, demands=DEMANDS[lane], seq=self.seq)

    def batch(self, news: list[tuple[int, int, int]], pops: int, *, commit: bool) -> None:
        added = dict(self.new(*one) for one in news)
        writes: list[Write] = [w for name, task in added.items() for w in index.derive(name, None, task)]
        seen = self.order(writes)
        wanted = self.sorted({**self.tasks, **added})
        assert seen == wanted
        gone = seen[:pops]
        both = {**self.tasks, **added}
        for name in gone:
            writes += [(index.ready_key(both[name]), None)]
        self.check(writes, {n: t for n, t in both.items() if n not in gone})
        local = [*writes, *self.table.housekeeping(writes)]
        if not commit:
            self.check([], self.tasks)
            return
        self.store.write(local)
        self.table.apply(local)
        self.tasks = {n: t for n, t in both.items() if n not in gone}

    def check(self, writes: list[Write], wanted: dict[str, TaskRow]) -> None:
        assert self.order(writes) == self.sorted(wanted)

    def sorted(self, tasks: dict[str, TaskRow]) -> list[str]:
        return sorted(tasks, key=lambda n: (tasks[n].deadline_ms, tasks[n].seq))

    def order(self, writes: list[Write], window: int = 10_000, **more: Any) -> list[str]:
        pending = Pending(writes)
        windows = [(lane, window) for lane in self.table.lanes(pending)]
        _, found = self.table.ordered(pending, windows, (0,) * 5, NO_FLOORS, "edf")
        return [nominee.task_id for nominee in found]

    def restart(self) -> None:
        self.table = ReadyTable(self.store)
        self.table.load()


NEW = st.tuples(st.integers(0, 30), st.integers(0, 4), st.integers(0, 3))
BATCH = st.tuples(
    st.lists(NEW, max_size=25), st.integers(0, 25), st.sampled_from(["commit", "abort", "restart"])
)


@pytest.mark.parametrize("lanes_kept", [0, ready.LANES_KEPT])
@given(batches=st.lists(BATCH, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_order_is_that_of_a_sorted_list(
    lanes_kept: int, batches: list[tuple[list[tuple[int, int, int]], int, str]]
) -> None:
    with (
        patch.object(front, "FRONT_MAX", 8),
        patch.object(ready, "_POSITION_STEP", 4),
        patch.object(ready, "LANES_KEPT", lanes_kept),
    ):
        model = Model()
        for news, pops, end in batches:
            model.batch(news, pops, commit=end != "abort")
            if end == "restart":
                model.restart()
            model.check([], model.tasks)


@given(st.lists(NEW, min_size=1, max_size=40), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_window_bounds_what_one_lane_gives(news: list[tuple[int, int, int]], window: int) -> None:
    model = Model()
    model.batch(news, 0, commit=True)
    per_lane: dict[bytes, list[str]] = {}
    for name in model.sorted(model.tasks):
        per_lane.setdefault(index.lane_of(model.tasks[name])[0], []).append(name)
    wanted = {name for names in per_lane.values() for name in names[:window]}
    assert model.order([], window) == [n for n in model.sorted(model.tasks) if n in wanted]


@given(st.lists(NEW, min_size=1, max_size=20), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_who_is_eligible_does_not_depend_on_the_window(news: list[tuple[int, int, int]], window: int) -> None:
    model = Model()
    model.batch(news, 0, commit=True)
    pending = Pending([])
    windows = [(lane, window) for lane in model.table.lanes(pending)]
    eligible, _ = model.table.ordered(pending, windows, (0,) * 5, NO_FLOORS, "edf")
    assert eligible == [any(t.tier == tier for t in model.tasks.values()) for tier in range(5)]


def test_stored_positions_skip_nothing_when_urgent_work_arrives_below_them() -> None:
    with patch.object(ready, "_POSITION_STEP", 4):
        model = Model()
        model.batch([(100 + i, 2, 0) for i in range(20)], 10, commit=True)
        stored = dict(model.store.scan(keys.POSITION, keys.POSITION + keys.MAX_KEY))
        assert stored, "after ten pops the position was stored"
        model.batch([(1, 2, 0)], 0, commit=True)
        model.restart()
        model.check([], model.tasks)
        lane = index.lane_of(next(iter(model.tasks.values())))[0]
        bound = model.store.get(keys.POSITION + keys.ready_prefix(lane, 2))
        assert bound is not None
        assert bound <= min(index.ready_key(t) for t in model.tasks.values())


def test_a_restart_reads_on_from_the_position_not_from_the_tombstones() -> None:
    model = Model()
    model.batch([(i, 2, 0) for i in range(2_000)], 0, commit=True)
    for _ in range(15):
        model.batch([], 100, commit=True)
    lane = index.lane_of(next(iter(model.tasks.values())))[0]
    bound = model.store.get(keys.POSITION + keys.ready_prefix(lane, 2))
    assert bound is not None
    assert bound > keys.ready_key(lane, 2, 1_000, 0), "at most some hundred tombstones before it"


def test_a_hundred_thousand_ready_tasks_are_held_in_bounded_memory() -> None:
    store, count = MemoryStore(), 100_000
    task = row()
    lane, text = index.lane_of(task)
    store.write(
        [(keys.LANE + lane, text), *((keys.ready_key(lane, 2, i, i), b"t%d" % i) for i in range(count))]
    )
    table = ReadyTable(store)
    table.load()
    popped = 0
    for _ in range(30):
        pending = Pending([])
        windows = [(found, 1_000) for found in table.lanes(pending)]
        _, order = table.ordered(pending, windows, (0,) * 5, NO_FLOORS, "edf")
        nominees = list(order)
        assert [n.task_id for n in nominees] == [f"t{i}" for i in range(popped, popped + 1_000)]
        popped += 1_000
        writes: list[Write] = [(n.key, None) for n in nominees]
        writes += table.housekeeping(writes)
        store.write(writes)
        table.apply(writes)
        entries = sum(len(f._entries) for one in table.lanes(Pending([])) for f in one.fronts)
        assert entries <= 2 * front.FRONT_MAX


def lanes_in(store: MemoryStore) -> int:
    return len(list(store.scan(keys.LANE, keys.LANE + keys.MAX_KEY)))


def test_what_is_asked_for_once_is_not_remembered_for_ever() -> None:
    """Hundreds of sets of resources, one after the other, and back again to the first: each task finds its place."""
    with patch.object(ready, "LANES_KEPT", 20):
        model = Model()
        names = [f"r{i}" for i in range(14)]
        for number in range(500):
            demands = {name: 1 for bit, name in enumerate(names) if (number % 400) >> bit & 1}
            task = row(demands=demands, seq=number + 1)
            for before, after in ((None, task), (task, None)):
                writes = index.derive(f"t{number}", before, after)
                local = [*writes, *model.table.housekeeping(writes)]
                model.store.write(local)
                model.table.apply(local)
                model.tasks = {f"t{number}": task} if after else {}
                model.check([], model.tasks)
            assert len(model.table) <= 22
        assert lanes_in(model.store) <= 22
        assert len(list(model.store.scan(b"", b"\xff"))) <= 22 * 6, "nor anything else of them"


def test_a_lane_whose_tasks_all_wait_for_keyed_slots_is_kept() -> None:
    with patch.object(ready, "LANES_KEPT", 0):
        model = Model()
        task = row(demands={"account:a": 1}, seq=1)
        place = index.ready_key(task)
        parks: list[Write] = [(place, None), (keys.parked_key("account:a", place), b"t")]
        for writes in (index.derive("t", None, task), parks, [], []):
            local = [*writes, *model.table.housekeeping(writes)]
            model.store.write(local)
            model.table.apply(local)
        assert len(model.table) == 1
        back = model.table.parked("account:a", 1)
        local = [*back, *model.table.housekeeping(back)]
        model.store.write(local)
        model.table.apply(local)
        assert model.order([]) == ["t"]
        gone = index.derive("t", task, None)
        for writes in (gone, []):
            local = [*writes, *model.table.housekeeping(writes)]
            model.store.write(local)
            model.table.apply(local)
        assert (len(model.table), lanes_in(model.store)) == (0, 0)
