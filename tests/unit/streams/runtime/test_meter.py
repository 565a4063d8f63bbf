"""Metrics from effects."""

from collections.abc import Sequence

from laxity.schemas.records import Dispatch, InputRange, SettleRow, TaskEvent, Transition
from laxity.schemas.serde import encode_row
from laxity.schemas.timing import ManualClock
from laxity.streams.effects import Change, Effects, Output
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.meter import Known, ShardMeter
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.state import keys

CLOCK = ManualClock(10_000)


def event(kind: str, state: str = "", **more: object) -> Output:
    told = TaskEvent(
        kind=kind, task_id=str(more.pop("task_id", "t")), tier="high", shard=0, batch=1, at_ms=4_000, state=state,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return Output(topic="events.high", partition=0, key=b"t", value=encode_row(told), schema=TaskEvent)


def measured(outputs: Sequence[Output], state: Sequence[Change] = ()) -> tuple[Metrics, ShardMeter]:
    metrics = Metrics()
    meter = ShardMeter(0, metrics, Known(types={"echo"}, resources={"llm", "fleet.default"}), CLOCK)
    effects = Effects(batch=1, state=state, keys=(), local=(), outputs=outputs)
    moved = InputRange(topic="outcomes", partition=0, first=0, next=9, count=4)
    meter.batch(effects, Taken(records=(), ranges=[moved]), silent=True, took_ms=12)
    return metrics, meter


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"laxity_{name}", labels)


def test_misses_are_counted_by_tier_and_known_type_only_once_a_task_ends() -> None:
    metrics, _ = measured(
        [
            event("transitions", "SUCCEEDED", type="echo", missed_by_ms=5),
            event("transitions", "EXPIRED", type="tenant-made-this-up", missed_by_ms=5),
            event("transitions", "SUCCEEDED", type="echo"),
            event("transitions", "RUNNING", type="echo", missed_by_ms=5),
        ]
    )
    assert value(metrics, "deadline_missed_total", tier="high", type="echo") == 1
    assert value(metrics, "deadline_missed_total", tier="high", type="other") == 1
    assert value(metrics, "deadline_missed_total", tier="high", type="tenant-made-this-up") is None
    assert value(metrics, "tasks_ended_total", tier="high", state="SUCCEEDED") == 2


def test_what_happens_to_triggers_is_counted_by_kind() -> None:
    kinds = ("duplicate", "duplicate", "conflict", "rehomed")
    metrics, _ = measured([*(event(kind) for kind in kinds), event("rejected", code="truncated")])
    assert value(metrics, "duplicates_total", tier="high") == 2
    assert value(metrics, "conflicts_total", tier="high") == 1
    assert value(metrics, "strays_total", tier="high") == 1
    assert value(metrics, "rejected_total", reason="truncated") == 1
    assert value(metrics, "ledger_unanswered_total", shard="0") == 1
    assert value(metrics, "batch_records_total", topic="outcomes") == 4


def test_dispatches_that_came_back_are_counted_by_reason() -> None:
    def step(before: str, after: str, reason: str) -> Transition:
        return Transition(before=before, after=after, reason=reason, at_ms=4_000)

    steps = (
        step("DISPATCHED", "DELAYED", "no_agent"),
        step("DELAYED", "READY", "retry"),
        step("READY", "DISPATCHED", "granted"),
        step("DISPATCHED", "READY", "redelivered"),
        step("DISPATCHED", "READY", "yielded"),
        step("DISPATCHED", "DELAYED", "poison"),
        step("DISPATCHED", "CANCELLED", "cancelled"),
    )
    metrics, _ = measured([event("transitions", "CANCELLED", transitions=steps)])
    found = {reason: value(metrics, "dispatch_bounced_total", reason=reason) for reason in ("no_agent", "redelivered", "poison", "yielded", "cancelled")}  # fmt: skip
    assert found == {"no_agent": 1, "redelivered": 1, "poison": 1, "yielded": None, "cancelled": None}


def test_reserved_and_used_have_one_label_per_resource_whatever_the_keys() -> None:
    order = Dispatch(
        task_id="t", tenant="a", run_id="r", key="k", type="echo", shard=0, generation=0, dispatch_no=1, attempt=1,
        runner="r", deadline_ms=0, latest_start_ms=0, granted={"llm": 30, "account:acme": 1, "fleet.default": 1},
    )  # fmt: skip
    row = SettleRow(used={"llm": 12}, unclaimed=False)
    metrics, _ = measured(
        [Output(topic="dispatch.default", partition=0, key=b"t", value=encode_row(order), schema=Dispatch)],
        [
            Change(table=keys.SETTLE, key=b"t:0:1", value=encode_row(row)),
            Change(table=keys.SETTLE, key=b"t:0:0", value=None),
        ],
    )
    assert value(metrics, "resource_reserved_total", resource="llm") == 30
    assert value(metrics, "resource_reserved_total", resource="other") == 1
    assert value(metrics, "resource_reserved_total", resource="fleet.default") == 1
    assert value(metrics, "resource_used_total", resource="llm") == 12


def test_the_oldest_wait_is_that_of_a_task_that_still_waits() -> None:
    metrics, meter = measured(
        [event("transitions", "READY", task_id="a"), event("transitions", "READY", task_id="b")]
    )
    meter.waiting([0, 2, 0, 0, 0])
    assert value(metrics, "queue_depth", tier="high", shard="0") == 2
    assert value(metrics, "oldest_wait_seconds", tier="high", shard="0") == 6
    step = Transition(before="READY", after="DISPATCHED", reason="granted", at_ms=4_000)
    gone = [event("transitions", "DISPATCHED", task_id=task, transitions=(step,)) for task in "ab"]
    meter.batch(
        Effects(batch=2, state=(), keys=(), local=(), outputs=gone),
        Taken(records=(), ranges=()),
        silent=False,
        took_ms=1,
    )
    meter.waiting([0, 0, 0, 0, 0])
    assert value(metrics, "oldest_wait_seconds", tier="high", shard="0") == 0
    assert value(metrics, "dispatched_total", tier="high") == 2
    meter.gone()
    assert value(metrics, "queue_depth", tier="high", shard="0") is None


def test_letters_of_what_was_no_trigger_are_counted_by_our_reason() -> None:
    headers = (("laxity.error.reason", b"forged"), ("laxity.error.reason", b"unreadable"))
    letter = Output(topic="dlq.internal", partition=0, key=None, value=None, schema=None, headers=headers)
    metrics, _ = measured([letter])
    assert value(metrics, "rejected_total", reason="unreadable") == 1


def test_a_hundred_thousand_names_make_no_series() -> None:
    """Tenants, types, resources and fleets that anybody may invent: what is labelled is configured, the rest is one label."""
    metrics, meter = measured([])
    for n in range(100_000):
        meter._event(
            TaskEvent(
                kind="transitions", task_id=f"t{n}", tenant=f"tenant{n}", type=f"type{n}", tier="high", shard=0, batch=1,
                at_ms=n, state="DEAD", missed_by_ms=1,
            )
        )  # fmt: skip
        meter._add(metrics.used, {f"fleet.{n}": 1, f"resource{n}": 1, f"account:{n}": 1})
    series = sum(len(family.samples) for family in metrics.registry.collect())
    assert series < 200, (
        "of 2,000 that a process may have, with every shard, tier, type and resource of a deployment"
    )
