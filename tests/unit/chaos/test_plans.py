"""What the suites `zombies` and `storms` plan before they run: the same for the same seed, and as much as they promise."""

from __future__ import annotations

from collections import Counter

import pytest
from chaos import storms, zombies
from chaos.suite import Report

SCALES = [1.0, 0.05]


def test_the_same_seed_gives_the_same_plan() -> None:
    assert zombies.faults(7) == zombies.faults(7) != zombies.faults(8)
    assert storms.faults(7, "p.") == storms.faults(7, "p.") != storms.faults(8, "p.")


def test_as_many_zombies_and_late_ends_as_promised() -> None:
    plan = zombies.faults(1)
    counts = Counter(fault.kind for fault in plan)
    assert counts["frozen scheduler"] + counts["frozen runner"] == 50
    assert counts["end"] == 100
    assert all(1_000 <= fault.duration_ms <= 30_000 for fault in plan if fault.kind == "end")
    sleeps = {fault.kind: fault.duration_ms for fault in plan}
    assert sleeps["frozen scheduler"] == 1.5 * 6_000
    assert sleeps["frozen runner"] == 1.5 * 15_000
    assert {fault.lane for fault in plan if fault.kind == "broker"} == {"schedulers"}, (
        "it freezes one of two things at a time"
    )


def test_every_edge_is_disturbed_in_every_way_and_every_broker_fault_is_there() -> None:
    plan = storms.faults(1, "p.")
    network = {(f.victim.partition("-")[0], f.text) for f in plan if f.kind == "network"}
    assert len(network) == len(storms.EDGES) * (len(storms.WAYS) + 1)
    assert [f.text for f in plan if f.kind == "brokers"] == [f"{what} p." for what in storms.BROKER_FAULTS]
    assert {f.duration_ms for f in plan if f.kind == "members"} == {300_000}


@pytest.mark.parametrize("scale", SCALES)
def test_a_short_run_has_some_of_each(scale: float) -> None:
    kinds = {"frozen scheduler", "frozen runner", "end", "broker"}
    assert {fault.kind for fault in zombies.faults(1, scale=scale)} == kinds
    assert {fault.kind for fault in storms.faults(1, "p.", scale=scale)} == {"network", "brokers", "members"}


def test_two_worlds_make_one_report() -> None:
    def report(tasks: int, found: list[str], failures: list[str]) -> Report:
        return Report(
            suite="storms", seed=1, tasks=tasks, deduplicates=True, seconds=10, faults={"planned": 3, "back_ms_max": 7}, points={},
            figures={"tasks": tasks}, violations={"i1": found}, after={"i8": {"why": ""}}, strikes=[{"number": 1}], failures=failures,
        )  # fmt: skip

    made = storms.together([report(2, [], []), report(3, ["lost"], ["i1: lost"])], ["a", "b"])
    assert (made.tasks, made.seconds, made.figures) == (5, 20, {"tasks": 5})
    assert made.violations == {"i1": ["lost"]}
    assert made.failures == ["b: i1: lost"]
    assert made.faults["planned"] == 6
    assert set(made.after) == {"a: i8", "b: i8"}
    assert [strike["world"] for strike in made.strikes] == ["a", "b"]
