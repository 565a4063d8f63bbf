"""One key, one task: what counts as the same, for how long, and what a conflict leaves untouched."""

from __future__ import annotations

from typing import Any

import pytest
from builders import START_MS, Bench, driver, events, header, letters, silent, task_id, trigger

from laxity.schemas.limits import KEYS_KEPT_MS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"deadline_ms": START_MS + 1},
        {"firm": True, "deadline_ms": START_MS - 1},
        {
            "value": 9,
            "estimate_ms": 5,
            "max_attempts": 9,
            "headers": {"a": "b"},
            "not_before_ms": START_MS + 9,
        },
        {"deadline_ms": 2**60},  # invalid by itself, and ignored all the same
    ],
)
@pytest.mark.parametrize("tier", ["normal", "critical"])
def test_the_first_one_counts(fields: dict[str, Any], tier: str) -> None:
    b = Bench()
    b.step(b.trigger("k"), say=silent)
    before = b.live()
    effects = b.step(b.trigger("k", tier, **fields), say=silent)
    (event,) = events(effects, "duplicate")
    assert (event.task_id, event.tier, event.state) == (task_id(), tier, "")
    assert event.detail.startswith(f"laxity.triggers.{tier}/0/")
    assert not letters(effects)
    assert b.live() == before


@pytest.mark.parametrize("fields", [{"payload": b"[]"}, {"payload": b""}, {"type": "other"}])
@pytest.mark.parametrize("ended", [False, True])
def test_another_payload_or_type_is_a_conflict(fields: dict[str, Any], *, ended: bool) -> None:
    b = Bench()
    b.dispatched()
    if ended:
        b.step(b.outcome("succeeded"))
    before = b.row()
    record = b.record("triggers.high", trigger(**fields), key=b"\xff", headers=(("x", b"\x00\xff"),))
    effects = b.step(record, say=silent)
    (letter,) = letters(effects)
    assert (letter.topic, letter.value, letter.key) == ("dlq.high", record.value, b"\xff")
    assert letter.headers[0] == ("x", b"\x00\xff")
    assert header(letter, "reason") == "idempotency_conflict"
    (event,) = events(effects, "conflict")
    assert (event.task_id, event.state, event.code) == (task_id(), "", "idempotency_conflict")
    assert b.row() == before


def test_type_and_payload_do_not_run_together() -> None:
    b = Bench()
    b.step(b.trigger("k", type="ab", payload=b"c"))
    assert (
        header(letters(b.step(b.trigger("k", type="a", payload=b"bc")))[0], "reason")
        == "idempotency_conflict"
    )


def test_in_one_batch_the_lower_offset_of_the_more_urgent_tier_counts() -> None:
    b = Bench()
    records = [b.trigger("k", "low"), b.trigger("k", "high"), b.trigger("k", "high", payload=b"x")]
    effects = b.step(*reversed(records))
    assert [e.kind for e in events(effects)] == ["conflict", "duplicate", "transitions"]
    assert b.live().tier == 1


@pytest.mark.parametrize("end", ["succeeded", "failed", "expired", "cancelled"])
def test_ended_tasks_are_remembered_for_fifteen_days(end: str) -> None:
    b = Bench()
    if end == "expired":
        b.step(b.trigger(firm=True, deadline_ms=START_MS - 1))
    elif end == "cancelled":
        b.step(b.trigger(), say=silent)
        b.step(b.command("cancel"))
    else:
        b.dispatched()
        b.step(b.outcome(end))
    assert b.row() is None
    b.now_ms = START_MS + KEYS_KEPT_MS - 1
    assert [e.kind for e in events(b.step(b.trigger()))] == ["duplicate"]
    b.now_ms += 1
    effects = b.step(b.trigger())
    assert [e.kind for e in events(effects)] == ["transitions"]
    assert b.live().state == "DISPATCHED"


def test_tenants_and_runs_do_not_meet() -> None:
    d = driver(slots=0)
    for fields in (
        {},
        {"tenant": "other"},
        {"run_id": "r1"},
        {"run_id": "r2"},
        {"tenant": "other", "run_id": "r1"},
    ):
        d.pipe("normal", trigger("k", **fields))
    assert len(d.table("task")) == 5
    assert not [e for e in d.events() if e.kind != "transitions"]


def test_a_storm_of_copies_is_one_effect() -> None:
    d = driver(shards=3)
    for i in range(60):
        d.pipe(("low", "high", "normal")[i % 3], trigger("k"), partition=i % 3, key=b"x")
        if i % 10 == 5:
            d.work()
    d.work()
    assert len(d.provider.effects) == 1
    kinds = [e.kind for e in d.events() if e.kind != "rehomed"]
    assert kinds.count("duplicate") == 59
    assert [e.state for e in d.events() if e.state in {"SUCCEEDED", "DEAD", "EXPIRED"}] == ["SUCCEEDED"]
    assert {e.task_id for e in d.events()} == {task_id("k")}
