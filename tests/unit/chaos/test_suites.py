"""What the suites plan and measure, without any process: plans come from their seed, coverage and gaps are counted rightly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from chaos import kills, stores, together
from chaos.flatness import flatness, sorted_out, spans
from chaos.history import Booked, History, Place
from chaos.load import EVERYTHING, jobs
from chaos.member import KILLED, Life
from chaos.nemesis import KILL, POINT, Fault, Strike, missed
from chaos.suite import coverage

from laxity.infra.local.pids import ProcessId
from laxity.schemas.records import Journal, JournalGrant
from laxity.streams.runtime.crashpoints import POINTS


def test_a_load_comes_from_its_seed_and_has_every_kind_of_task() -> None:
    made = jobs(seed=3, count=2_000, span_ms=60_000, deduplicates=True)
    assert made == jobs(seed=3, count=2_000, span_ms=60_000, deduplicates=True)
    assert made != jobs(seed=4, count=2_000, span_ms=60_000, deduplicates=True)
    assert {kind for kind, is_kind in EVERYTHING.items() if not any(is_kind(job) for job in made)} == set()
    assert made[-1].at_ms < 60_000


def test_where_the_provider_does_not_deduplicate_every_task_says_park() -> None:
    assert {j.trigger.on_unknown for j in jobs(seed=3, count=300, span_ms=1, deduplicates=False)} == {"park"}


def test_the_plan_of_kills_has_every_point_as_often_as_wanted_and_a_kill_before_each_chain() -> None:
    plan = kills.faults(7, rounds=5)
    assert plan == kills.faults(7, rounds=5)
    points = Counter((f.victim.partition("-")[0], f.point) for f in plan if f.kind == POINT)
    assert points == kills.wanted_points(5)
    assert len(plan) > 100
    for lane in {fault.lane for fault in plan}:
        mine = [fault for fault in plan if fault.lane == lane]
        for before, fault in zip([None, *mine], mine, strict=False):
            if fault.kind == POINT:
                assert before is not None
                assert before.victim == fault.victim
                assert before.kind in {KILL, POINT}
    assert {f.victim for f in plan if f.kind == KILL} == {
        "scheduler-0", "scheduler-1", "runner-0", "runner-1", *kills.SERVERS,
    }  # fmt: skip


def test_the_points_of_the_host_are_all_planned() -> None:
    assert {point for role, point in kills.wanted_points(1) if role == "scheduler"} == set(POINTS)


def test_the_plan_of_stores_has_every_kind_however_short() -> None:
    for scale in (0.1, 1.0):
        assert {fault.kind for fault in stores.faults(1, scale=scale)} == {*stores.INJURIES, KILL}
    kinds = Counter(fault.kind for fault in stores.faults(1, scale=1.0))
    assert (kinds["flushall"], kinds["lose_state"], kinds[KILL]) == (10, 5, 5)
    rots = [fault.text for fault in stores.faults(1, scale=1.0) if fault.kind == "rot"]
    assert sorted(rots) == sorted(stores.ROTS)


def strike(at_ms: int, **over: Any) -> Strike:
    made = Strike(
        number=1, lane="lone", kind=KILL, victim="scheduler-0", what="kill -9", at_ms=at_ms, over_ms=at_ms,
        landed=True, busy=True, held=(0,),
    )  # fmt: skip
    return replace(made, **over)


def test_missed_faults_are_named_by_kind() -> None:
    faults = [Fault(number=n, lane="l", kind="freeze", victim="redis") for n in (1, 2)]
    assert missed([strike(0)], faults) == ["freeze: [2]"]
    assert missed([strike(0), strike(0, number=2, landed=False)], faults) == ["freeze: [2]"]


def booked(shard: int, at_ms: int, *, grants: bool = False) -> Booked:
    grant = JournalGrant(reservation_id="t:0:1", runner="r", partition=0, granted={}, granted_ms=at_ms)
    entry = Journal(
        shard=shard, batch=1, owner_epoch=1, now_ms=at_ms, state_version=1, config_id="", effects_hash=b"",
        grants=[grant] if grants else [],
    )  # fmt: skip
    place = Place(topic="journal", partition=shard, offset=at_ms)
    return Booked(place=place, appended_ms=at_ms, entry=entry)


def history(*silent: int, shards: int = 2) -> History:
    """A batch of each shard every second, but from 100 s to 104 s for those that are silent."""
    times = [(n, t) for n in range(shards) for t in range(90_000, 120_000, 1_000)]
    return History(booked=[booked(n, t) for n, t in times if n not in silent or not 100_000 < t < 104_000])


def test_a_silence_counts_for_shards_that_were_not_killed() -> None:
    heard = {0: list(range(90_000, 120_000, 500)), 1: list(range(90_000, 120_000, 500))}
    assert flatness(history(0), heard, [strike(100_500)])["others_write_on"] == []
    found = flatness(history(0, 1), heard, [strike(100_500)])["others_write_on"]
    assert found == ["journal: shard 1 was silent for 4000 ms after fault 1 (scheduler-0)"]
    assert flatness(history(), {**heard, 1: [90_000, 119_000]}, [strike(100_500)])["readers_read_on"] != []


def test_silences_are_those_that_reach_into_the_time_asked_for() -> None:
    assert spans([0, 10, 20, 50, 60], 21, 40) == [30]
    assert spans([0, 10, 20, 50, 60], 15, 55) == [10, 30, 10]
    assert spans([], 0, 10) == []


@pytest.mark.parametrize(
    ("at_ms", "shard", "group"),
    [
        (80_000, 1, "neither"),  # long before the first kill
        (98_000, 1, "quiet"),
        (101_000, 1, "neither"),  # within 3 s of the kill
        (104_000, 1, "beside"),
        (104_000, 0, "neither"),  # a shard that was killed
        (99_950, 1, "neither"),  # under way when it happened
    ],
)
def test_latencies_are_told_apart_by_the_kills_around_them(at_ms: int, shard: int, group: str) -> None:
    quiet, beside = sorted_out([(at_ms, shard, 70)], [strike(100_000)])
    assert (quiet, beside) == ([70] if group == "quiet" else [], [70] if group == "beside" else [])


def test_latency_beside_kills_is_judged_only_by_enough_of_it() -> None:
    assert flatness(history(), {}, [strike(100_500)])["latency_stays_flat"] == [
        "too few latencies to judge: 0 quiet, 0 beside kills"
    ]


@pytest.mark.parametrize(
    ("first_ms", "away", "held"), [(4_000, 0, True), (6_000, 0, False), (20_000, 1, True), (22_000, 1, False)]
)
def test_admission_must_be_back_in_time(first_ms: int, away: int, held: bool) -> None:  # noqa: FBT001
    flush = strike(100_000, victim="redis", what="flushall")
    others = [strike(99_000, over_ms=101_000)] * away
    found = History(booked=[booked(0, 100_000 + first_ms, grants=True)])
    assert (list(stores.admission_returns(found, [flush, *others])) == []) is held


def test_the_table_has_a_row_per_suite_and_tells_what_failed() -> None:
    report = {
        "suite": "kills", "seed": 1, "tasks": 9, "faults": {"landed": 3, "planned": 4, "kill_9": 2, "busy": 1},
        "violations": {"a": [], "b": ["x"]}, "after": {"c": {"why": ""}}, "seconds": 5, "failures": ["b: x"],
    }  # fmt: skip
    assert together.row(report) == ["kills", "1", "9", "3/4", "2", "1", "2/3", "5", "FAILED"]
    broken = together.row({"suite": "storms", "seed": 1, "failures": ["ended with 1 and no report"]})
    assert broken == ["storms", "1", "-", "-/-", "-", "-", "0/0", "-", "FAILED"]
    assert together.table([together.row(report), broken]).splitlines()[1].startswith("kills   1     9")


def storm(strikes: list[Strike], planned: int, lives: list[tuple[str, Life]]) -> Any:
    """As much of a storm as coverage looks at."""
    world = _World(lives)
    faults = [Fault(number=n, lane="l", kind=KILL, victim="scheduler-0") for n in range(1, planned + 1)]
    return SimpleNamespace(nemesis=SimpleNamespace(strikes=strikes), faults=faults, world=world)


class _World:
    """Lives, and members by name."""

    def __init__(self, lives: list[tuple[str, Life]]) -> None:
        self._lives = lives

    def lives(self) -> list[tuple[str, Life]]:
        return self._lives

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(role=name.partition("-")[0])


def life(point: str, *, killed: bool = False) -> tuple[str, Life]:
    process = ProcessId(pid=1, started="1")
    return "scheduler-0", Life(
        process=process, began_ms=0, crashpoint=f"{point}:1", code=KILLED, killed=killed
    )


def test_a_run_whose_faults_missed_or_hit_idle_processes_is_no_evidence() -> None:
    landed = [strike(0, number=n) for n in range(1, 11)]
    assert coverage(storm(landed, 11, []), {}) == []
    assert "10 of 12 faults landed" in coverage(storm(landed, 12, []), {})[0]
    idle = [replace(s, busy=s.number < 3) for s in landed]
    assert coverage(storm(idle, 10, []), {}) == ["coverage: 2 of 10 kills hit a busy process"]


def test_a_crash_point_counts_when_the_process_died_there_by_itself() -> None:
    landed = [strike(0)]
    wanted = {("scheduler", "after_poll"): 2}
    lives = [life("after_poll"), life("after_poll")]
    assert coverage(storm(landed, 1, lives), wanted) == []
    lives = [life("after_poll"), life("after_poll", killed=True)]
    assert coverage(storm(landed, 1, lives), wanted) == [
        "coverage: scheduler died 1 times at after_poll, wanted 2"
    ]
