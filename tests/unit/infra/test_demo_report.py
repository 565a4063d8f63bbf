"""Each figure of the report against histories made by hand, so that each can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.infra.demo.provider.line import Kind, Line
from laxity.infra.demo.report import document, faults, figures, percentiles
from laxity.infra.demo.stories import Seen, Sent, Story, tell
from laxity.schemas.records import TaskEvent, Transition

HORIZON = 100_000


def sent(task_id: str = "t", tier: str = "normal", tenant: str = "acme", at: int | None = 1_000) -> Sent:
    return Sent(task_id=task_id, tier=tier, tenant=tenant, appended_ms=at)


def step(before: str, after: str, at: int, reason: str = "why", happened: int = 0) -> Transition:
    return Transition(before=before, after=after, reason=reason, at_ms=at, happened_ms=happened or at)


def seen(*steps: Transition, task_id: str = "t", at: int = 0, batch: int = 0, **fields: Any) -> Seen:
    state = steps[-1].after if steps else ""
    values: dict[str, Any] = {"kind": "transitions", "state": state, "transitions": steps, **fields}
    event = TaskEvent(
        task_id=task_id,
        shard=0,
        batch=batch or (steps[-1].at_ms if steps else 1),
        at_ms=steps[-1].at_ms if steps else 0,
        **values,
    )
    return Seen(event=event, appended_ms=at or event.at_ms)


READY = step("", "READY", 1_010, happened=1_000)
DISPATCHED = step("READY", "DISPATCHED", 1_100)
RUNNING = step("DISPATCHED", "RUNNING", 1_160, happened=1_150)
SUCCEEDED = step("RUNNING", "SUCCEEDED", 2_000)
DONE = [seen(READY), seen(DISPATCHED, at=1_105), seen(RUNNING), seen(SUCCEEDED)]
LINE = Line(
    ts_ms=1_500,
    key="k",
    tenant="acme",
    task="t",
    model="llm",
    tokens_in=3,
    tokens_out=4,
    kind=Kind.EFFECT,
    status=200,
    reason="",
    body="b",
    charged=7,
    arrived_ms=1_400,
)


def story(
    events: Iterable[Seen] = (), lines: Iterable[Line] = (), letters: Iterable[str] = (), **of: Any
) -> Story:
    return tell([sent(**of)], events, lines, letters=set(letters), horizon_ms=HORIZON)[0]


def total(
    events: Iterable[Seen] = (), lines: Iterable[Line] = (), letters: Iterable[str] = ()
) -> dict[str, Any]:
    return figures([story(events, lines, letters)])


def chosen(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: found[name] for name in names}


ENDS = ("completed", "met", "missed", "expired", "dead", "cancelled", "lost")


def ends(**counts: int) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in ENDS}


def test_met() -> None:
    found = total(DONE, [LINE])
    assert chosen(found, *ENDS) == ends(completed=1, met=1)
    assert found["dispatch_ms"]["p50"] == 105  # append to append, not what the shard thought
    assert found["wait_ms"]["p50"] == 150  # from the trigger's append to the record that told of the start
    assert found["attempts"] == 1
    assert not faults(found)


def test_missed_is_completed_after_its_deadline() -> None:
    late = [*DONE[:-1], seen(SUCCEEDED, missed_by_ms=1)]
    assert chosen(total(late), *ENDS) == ends(completed=1, missed=1)


@pytest.mark.parametrize(
    ("state", "name"), [("EXPIRED", "expired"), ("CANCELLED", "cancelled"), ("DEAD", "dead")]
)
def test_other_ends(state: str, name: str) -> None:
    found = total([seen(READY), seen(step("READY", state, 3_000), missed_by_ms=5)], letters=["t"])
    assert chosen(found, *ENDS) == ends(**{name: 1})
    assert not faults(found)


def test_no_event_at_all_is_lost() -> None:
    found = total()
    assert chosen(found, *ENDS) == ends(lost=1)
    assert faults(found) == ["1 acknowledged tasks without an end"]


def test_acknowledged_but_not_in_the_topic_is_lost_not_left_out() -> None:
    found = figures([story(at=None)])
    assert (found["submitted"], found["lost"]) == (1, 1)


def test_started_but_never_ended_is_lost() -> None:
    assert chosen(total(DONE[:-1]), *ENDS) == ends(lost=1)


def test_an_end_after_the_horizon_is_none() -> None:
    on_time = [*DONE[:-1], seen(SUCCEEDED, at=HORIZON)]
    too_late = [*DONE[:-1], seen(SUCCEEDED, at=HORIZON + 1)]
    assert total(on_time)["lost"] == 0
    assert chosen(total(too_late), *ENDS) == ends(lost=1)


def test_dead_without_its_letter_is_a_fault() -> None:
    died = [seen(READY), seen(step("READY", "DEAD", 3_000))]
    assert total(died, letters=["t"])["missing_letters"] == 0
    assert faults(total(died, letters=["another"])) == ["1 dead tasks without a dead letter"]


def test_a_rejected_trigger_is_dead() -> None:
    refused = seen(kind="rejected", state="DEAD", transitions=(), code="invalid", at=1_200)
    found = document([story([refused], letters=["t"])], {})
    assert chosen(found, *ENDS) == ends(dead=1)
    assert found["reasons"] == {"invalid": 1}
    assert found["dispatch_ms"] == {"p50": None, "p95": None, "p99": None}


def test_two_ends_are_a_fault() -> None:
    twice = [*DONE, seen(SUCCEEDED, at=2_500, batch=2_500)]
    found = total(twice)
    assert (found["completed"], found["ended_twice"]) == (1, 1)
    assert faults(found) == ["1 tasks with more than one end"]


def test_duplicates_and_late_completions_are_no_ends() -> None:
    others = [
        seen(kind=kind, state="", transitions=(), at=2_100) for kind in ("duplicate", "late_completion")
    ]
    found = total([*DONE, *others])
    assert (found["ended_twice"], found["completed"]) == (0, 1)


def test_doubled_is_two_effects_whatever_the_key() -> None:
    assert total(DONE, [LINE])["doubled"] == 0
    assert total(DONE, [LINE, replace(LINE, kind=Kind.REPLAY)])["doubled"] == 0
    found = total(DONE, [LINE, replace(LINE, key="another")])
    assert found["doubled"] == 1
    assert faults(found) == ["1 tasks with more than one effect at the provider"]


def test_effects_of_other_tasks_do_not_count() -> None:
    assert total(DONE, [LINE, replace(LINE, task="of another run")])["doubled"] == 0


@pytest.mark.parametrize(
    ("kind", "status", "reason", "over", "all_429"),
    [
        (Kind.REFUSED, 429, "tokens", 1, 1),
        (Kind.REFUSED, 429, "requests", 1, 1),
        (Kind.INJECTED, 429, "limit", 0, 1),
        (Kind.INJECTED, 500, "failure", 0, 0),
        (Kind.REFUSED, 400, "conflict", 0, 0),
        (Kind.REFUSED, 404, "model", 0, 0),
    ],
)
def test_over_limit_and_429(kind: Kind, status: int, reason: str, over: int, all_429: int) -> None:
    found = total(DONE, [LINE, replace(LINE, kind=kind, status=status, reason=reason)])
    assert (found["over_limit"], found["responses_429"]) == (over, all_429)
    assert bool(faults(found)) == bool(over)


def test_usage_and_cost_come_from_the_last_event() -> None:
    last = seen(SUCCEEDED, usage={"tokens_in": 10, "tokens_out": 5, "requests": 1}, cost_micros=2_500_000)
    found = total([*DONE[:-1], last])
    assert chosen(found, "tokens", "tokens_in", "tokens_out", "cost") == {
        "tokens": 15,
        "tokens_in": 10,
        "tokens_out": 5,
        "cost": 2.5,
    }


def test_all_of_it_in_one_commit() -> None:
    found = total([seen(READY, DISPATCHED, RUNNING, SUCCEEDED, at=1_300)])
    assert chosen(found, *ENDS) == ends(completed=1, met=1)
    assert found["dispatch_ms"]["p50"] == 300
    assert found["wait_ms"]["p50"] == 150


def test_each_start_has_a_wait_of_its_own() -> None:
    again = [
        seen(READY, DISPATCHED, RUNNING),
        seen(step("RUNNING", "DELAYED", 1_200)),
        seen(step("DELAYED", "READY", 5_000), step("READY", "DISPATCHED", 5_010)),
        seen(step("DISPATCHED", "RUNNING", 5_030)),
        seen(step("RUNNING", "SUCCEEDED", 6_000)),
    ]
    assert list(story(again).waits_ms) == [150, 30]
    assert story(again).attempts == 2


def test_a_bounce_belongs_to_the_wait_that_it_prolongs() -> None:
    bounced = [
        seen(READY, DISPATCHED),
        seen(step("DISPATCHED", "READY", 1_500), step("READY", "DISPATCHED", 1_510)),
        seen(step("DISPATCHED", "RUNNING", 1_600)),
    ]
    assert list(story(bounced).waits_ms) == [600]
    assert story(bounced).dispatch_ms == 100


def test_events_are_ordered_by_batch_however_they_arrive() -> None:
    assert story(reversed(DONE)) == story(DONE)


def test_groups_by_tier_in_the_order_of_urgency_and_by_tenant() -> None:
    tasks = [sent("a", "low", "x"), sent("b", "critical", "x"), sent("c", "low", "y")]
    events = [seen(SUCCEEDED, task_id="b"), seen(SUCCEEDED, task_id="c", missed_by_ms=7)]
    found = document(tell(tasks, events, [], horizon_ms=HORIZON), {"run": "r"})
    assert list(found["tiers"]) == ["critical", "low"]
    assert chosen(found["tiers"]["low"], "submitted", *ENDS) == {
        "submitted": 2,
        **ends(completed=1, missed=1, lost=1),
    }
    assert {name: of["submitted"] for name, of in found["tenants"].items()} == {"x": 2, "y": 1}
    assert (found["run"], found["submitted"]) == ("r", 3)


def test_unacknowledged_triggers_are_a_fault() -> None:
    assert faults({"unacknowledged": 3}) == ["3 triggers that Kafka did not acknowledge"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], (None, None, None)),
        ([7], (7, 7, 7)),
        (list(range(1, 101)), (50, 95, 99)),
        ([30, 10, 20], (20, 30, 30)),
    ],
)
def test_percentiles_by_nearest_rank(values: list[int], found: tuple[int | None, ...]) -> None:
    assert tuple(percentiles(values).values()) == found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED", "RUNNING"]), st.integers(0, 3)
        ),
        max_size=30,
    )
)
def test_the_sums_hold(tasks: list[tuple[str, int]]) -> None:
    events = [
        seen(step("RUNNING", state, 2_000), task_id=str(index), missed_by_ms=missed)
        for index, (state, missed) in enumerate(tasks)
    ]
    every = [sent(str(index), tenant=f"n{index % 3}") for index in range(len(tasks))]
    found = document(tell(every, events, [], horizon_ms=HORIZON), {})
    for group in (found, *found["tenants"].values()):
        parts = ("completed", "expired", "dead", "cancelled", "lost")
        assert group["submitted"] == sum(group[name] for name in parts)
        assert group["completed"] == group["met"] + group["missed"]
    for name in ("submitted", "lost", "dead"):
        assert found[name] == sum(group[name] for group in found["tenants"].values())
