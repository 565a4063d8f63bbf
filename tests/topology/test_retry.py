"""Retries: within the envelope, never past the deadline, never more than allowed; unknown outcomes by the word of the type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import START_MS, Bench, driver, events, header, journal, letters, silent, task_id, trigger

from laxity.schemas.records import Dispatch
from laxity.schemas.serde import decode_row
from laxity.streams.completion import backoff_ms
from laxity.streams.timers import TIMERS_PER_BATCH_MAX


def failed(b: Bench, **fields: Any) -> None:
    b.step(b.outcome("failed", retryable=True, **fields), say=silent)


def test_attempts_are_counted_delayed_and_end_in_a_letter_with_all_of_them() -> None:
    b = Bench()
    b.running()
    for attempt in (1, 2):
        failed(b, code=f"e{attempt}")
        row = b.live()
        delay = backoff_ms(task_id(), 0, attempt, 200, 1_000)
        assert (row.state, row.reason, row.due_ms) == ("DELAYED", "retry", b.now_ms + delay)
        assert (row.runner, row.granted, row.started_ms) == ("", {}, 0)
        b.now_ms = row.due_ms
        b.step()
        assert (b.live().state, b.live().dispatch_no) == ("DISPATCHED", attempt + 1)
        b.step(b.outcome("started"), say=silent)
    effects = b.step(b.outcome("failed", retryable=True, code="e3", message="enough"), say=silent)
    (letter,) = letters(effects)
    assert [header(letter, n) for n in ("reason", "attempts", "message")] == [
        "attempts_exhausted",
        "3",
        "enough",
    ]
    notes = json.loads(header(letter, "history"))
    assert [(n["attempt"], n["dispatch_no"], n["code"]) for n in notes] == [
        (1, 1, "e1"),
        (2, 2, "e2"),
        (3, 3, "e3"),
    ]
    assert all(START_MS <= n["started_ms"] <= n["ended_ms"] for n in notes)


def test_a_delay_that_is_not_over_dispatches_nothing() -> None:
    d = driver(verdict=lambda x: ("failed" if x.attempt == 1 else "succeeded", "e", True))
    d.pipe("normal", trigger())
    d.work()
    (row,) = d.table("task").values()
    wait = row.due_ms - d.clock.now_ms()
    assert wait > 1
    d.advance(wait - 1, step_ms=wait - 1)
    d.work()
    assert len(d.read("dispatch.default")) == 1
    d.advance(1)
    d.work()
    assert [e.state for e in d.events()][-1] == "SUCCEEDED"
    assert len(d.provider.effects) == 1


def test_the_provider_s_own_wait_counts_where_it_is_longer() -> None:
    b = Bench()
    b.running()
    failed(b, retry_after_ms=30_000)
    assert b.live().due_ms == b.now_ms + 30_000


@pytest.mark.parametrize("wait_ms", [-(2**63), -1, 0])
def test_a_wait_of_the_past_is_no_wait(wait_ms: int) -> None:
    b = Bench()
    b.running()
    failed(b, retry_after_ms=wait_ms)
    assert b.now_ms <= b.live().due_ms <= b.now_ms + 200


@pytest.mark.parametrize("firm", [True, False])
@pytest.mark.parametrize("over_ms", [0, 1])
def test_no_retry_begins_after_the_last_moment(over_ms: int, *, firm: bool) -> None:
    """Firm: the latest start. Soft: the deadline."""
    b = Bench()
    last_ms = START_MS + (6_000 if firm else 10_000)
    b.running(deadline_ms=START_MS + 10_000, estimate_ms=4_000, firm=firm)
    effects = b.step(
        b.outcome("failed", retryable=True, retry_after_ms=last_ms - START_MS + over_ms), say=silent
    )
    if over_ms:
        assert header(letters(effects)[0], "reason") == "deadline_exhausted"
        assert b.row() is None
    else:
        assert b.live().due_ms == last_ms


@pytest.mark.parametrize("firm", [True, False])
def test_the_backoff_shrinks_into_the_time_that_is_left(*, firm: bool) -> None:
    for i in range(30):
        b = Bench()
        b.running(f"k{i}", deadline_ms=START_MS + 50, firm=firm)
        b.step(b.outcome("failed", f"k{i}", retryable=True), say=silent)
        assert START_MS <= b.live(f"k{i}").due_ms <= START_MS + 50


def test_a_firm_retry_that_still_misses_its_start_expires() -> None:
    b = Bench()
    b.running(deadline_ms=START_MS + 50, firm=True)
    failed(b)
    b.now_ms = START_MS + 51
    effects = b.step()
    assert [e.state for e in events(effects)] == ["EXPIRED"]


def test_one_batch_fires_a_bounded_number_of_timers_and_goes_on() -> None:
    b = Bench("")
    for n in range(3):
        b.step(*(b.trigger(f"k{n}-{i}", not_before_ms=START_MS + 5) for i in range(200)))
    b.now_ms += 5
    before = len(b.history)
    b.rest()
    released = [len(events(e)) for e in b.history[before:]]
    assert max(released) <= TIMERS_PER_BATCH_MAX + 128
    assert sum(b.core.backlog()) == 0


# Unknown outcomes


@pytest.mark.parametrize("on_unknown", ["retry", "reconcile"])
def test_an_unknown_outcome_is_tried_again_and_the_runner_is_told(on_unknown: str) -> None:
    b = Bench()
    b.running(on_unknown=on_unknown)
    b.step(b.outcome("unknown", message="timeout"), say=silent)
    assert (b.live().state, b.live().after_unknown) == ("DELAYED", True)
    assert b.live().history[0].code == "outcome_unknown"
    b.now_ms = b.live().due_ms
    effects = b.step()
    (dispatch,) = [o for o in effects.outputs if o.topic == "dispatch.default"]
    assert b.live().attempt == 1
    sent = decode_row(Dispatch, dispatch.value or b"")
    assert (sent.after_unknown, sent.on_unknown, sent.attempt) == (True, on_unknown, 2)
    failed(b)
    assert not b.live().after_unknown, "now the outcome is known"


def test_a_parked_unknown_dies_with_its_reason_and_is_never_tried_again() -> None:
    b = Bench()
    b.running(on_unknown="park")
    effects = b.step(b.outcome("unknown", message="timeout"), say=silent)
    (letter,) = letters(effects)
    assert (header(letter, "reason"), header(letter, "message")) == ("outcome_unknown", "timeout")
    (event,) = events(effects)
    assert [t.after for t in event.transitions] == ["UNKNOWN", "DEAD"]
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert ended is not None
    assert ended.unknown


def test_unknown_attempts_are_exhausted_too() -> None:
    b = Bench()
    b.running(max_attempts=1, on_unknown="retry")
    (letter,) = letters(b.step(b.outcome("unknown"), say=silent))
    assert header(letter, "reason") == "attempts_exhausted"


# Lapsed leases


def lapsed(b: Bench) -> None:
    b.step(lapsed=(b.reservation(),), end=b.ends.get("outcomes", 0) + 3, say=silent)


def test_a_lapsed_task_is_unknown_until_outcomes_is_read_to_the_end_seen_then() -> None:
    b = Bench()
    b.running()
    end = b.ends["outcomes"]
    b.step(lapsed=(b.reservation(),), end=end + 2, say=silent)
    assert (b.live().state, b.live().unknown_until) == ("UNKNOWN", end + 2)
    b.step(say=silent)
    b.step(b.outcome("progress"), say=silent)
    assert b.live().state == "UNKNOWN"
    b.step(b.outcome("progress"), say=silent)
    assert b.live().state == "DELAYED"
    assert b.live().after_unknown


@pytest.mark.parametrize(
    ("kind", "state"), [("succeeded", None), ("failed", "DELAYED"), ("yielded", "READY")]
)
def test_an_outcome_that_arrives_in_between_wins(kind: str, state: str | None) -> None:
    b = Bench()
    b.running()
    lapsed(b)
    b.step(b.outcome(kind, retryable=True), say=silent)
    row = b.row()
    assert (row.state if row else None) == state
    assert row is None or not row.after_unknown


@pytest.mark.parametrize("kind", ["succeeded", "failed"])
def test_an_outcome_in_the_very_record_that_was_waited_for_wins(kind: str) -> None:
    b = Bench()
    b.running()
    b.step(lapsed=(b.reservation(),), end=b.ends["outcomes"] + 1, say=silent)
    effects = b.step(b.outcome(kind), say=silent)
    assert [e.state for e in events(effects)] == ["SUCCEEDED" if kind == "succeeded" else "DEAD"]


def test_what_never_started_is_dispatched_again_without_an_attempt_spent() -> None:
    b = Bench()
    b.dispatched(on_unknown="park")
    b.step(lapsed=(b.reservation(),), end=0, say=silent)
    assert b.live().state == "UNKNOWN"
    assert b.core.next_wakeup() == b.now_ms, "outcomes was read to its end already"
    effects = b.step()
    assert [t.reason for t in events(effects)[0].transitions] == ["never_started", "granted"]
    assert (b.live().attempt, b.live().dispatch_no) == (0, 2)
    assert not letters(effects)


def test_a_start_that_is_read_while_unknown_counts() -> None:
    b = Bench()
    b.dispatched(on_unknown="park")
    b.step(lapsed=(b.reservation(),), end=1, say=silent)
    effects = b.step(b.outcome("started"), say=silent)
    assert header(letters(effects)[0], "reason") == "outcome_unknown"


def test_a_lapse_of_the_past_is_nobody_s() -> None:
    b = Bench()
    b.running()
    old = b.reservation()
    b.step(b.outcome("yielded"))
    b.step(lapsed=(old, f"{'0' * 32}:0:1"), end=9, say=silent)
    assert b.live().state == "DISPATCHED"


def test_a_lease_that_lapses_and_returns_with_its_runner_asleep() -> None:
    """Through the ledger: the shard asks while leases stand, the runner's late result is recorded and ignored."""
    d = driver()
    d.pipe("normal", trigger(on_unknown="park"))
    runner = d.runners[0]
    for _ in range(2):
        runner.tick()
    d.settle()
    assert [r.state for r in d.table("task").values()] == ["RUNNING"]
    d.advance(20_000, step_ms=500)
    assert d.table("task") == {}
    assert [e.state for e in d.events()][-1] == "DEAD"
    assert dict(d.read("dlq.normal")[0].headers)["laxity.error.reason"] == b"outcome_unknown"
    d.work()
    assert d.provider.effects == [], "the fence was checked before the call"


def test_the_journal_knows_the_end_that_was_waited_for() -> None:
    b = Bench()
    b.running()
    effects = b.step(lapsed=(b.reservation(),), end=7, say=silent)
    assert (journal(effects).outcomes_end, list(journal(effects).reaped)) == (7, [f"{task_id()}:0:1"])
    b.dispatched("other")
    with pytest.raises(AssertionError, match="end of outcomes"):
        b.step(lapsed=(b.reservation("other"),), say=silent)
