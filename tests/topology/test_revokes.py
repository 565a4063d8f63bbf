"""Bounces, cancels and redrives: what the ledger says decides, and its silence is asked again."""

from __future__ import annotations

from typing import Any

import pytest
from builders import (
    START_MS,
    Bench,
    answer,
    asked,
    driver,
    events,
    grant_all,
    header,
    letters,
    original,
    outputs,
    silent,
    task_id,
    trigger,
    verdicts,
)

from laxity.schemas.records import Command, Dispatch, KeyRow
from laxity.streams.completion import BOUNCE_BACKOFF_MS, BOUNCE_BACKOFF_MS_MAX, UNREADABLE_MAX
from laxity.streams.leases import REVOKES_PER_CALL_MAX
from laxity.streams.ledger.vetting import vet_exchange

ROUND = 3


# Bounces


def test_a_bounce_asks_for_the_reservation_and_dispatches_again_without_an_attempt_spent() -> None:
    b = Bench()
    b.dispatched()
    effects = b.step(b.outcome("bounced", code="late"), say=verdicts("revoked"))
    assert b.exchange.revokes == (f"{task_id()}:0:1",)
    assert [t.reason for t in events(effects)[0].transitions] == ["late"]
    due = b.core.next_wakeup()
    assert due is not None, "nothing else may ever happen: the task would wait for ever"
    assert due <= b.now_ms
    b.step()
    assert (b.live().dispatch_no, b.live().attempt, b.live().state) == (2, 0, "DISPATCHED")


def test_while_the_ledger_is_silent_the_bounce_is_asked_again() -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("bounced"), say=silent)
    due = b.core.next_wakeup()
    assert due is not None
    assert b.now_ms < due <= b.now_ms + 100
    for _ in range(3):
        b.step(say=silent)
        assert b.exchange.revokes == (f"{task_id()}:0:1",)
    after = b.restarted()
    after.step(say=verdicts("revoked"))
    assert after.exchange.revokes == (f"{task_id()}:0:1",)
    assert after.live().state == "READY"


def test_a_claimed_reservation_decides_over_the_bounce() -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("bounced"), say=verdicts("claimed"))
    assert (b.live().state, b.live().revoking) == ("DISPATCHED", "")
    b.step(say=verdicts("claimed"))
    assert b.exchange.revokes == ()


def test_a_reservation_that_is_gone_is_a_lapsed_lease() -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("bounced"), say=verdicts("gone"), end=4)
    assert (b.live().state, b.live().unknown_until, b.live().revoking) == ("UNKNOWN", 4, "")
    assert b.core.next_wakeup() == b.now_ms, "outcomes may have been read that far already"
    b.step(say=verdicts("gone"), end=4)
    assert b.exchange.revokes == ()


def test_the_bounce_of_a_running_task_is_ignored() -> None:
    b = Bench()
    b.running()
    before = b.live()
    b.step(b.outcome("bounced"), say=verdicts("revoked"))
    assert (b.exchange.revokes, b.live()) == ((), before)


def test_a_start_that_follows_the_bounce_withdraws_it() -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("bounced"), say=silent)
    b.step(b.outcome("started"), say=verdicts("revoked"))
    assert (b.live().state, b.live().revoking, b.exchange.revokes) == ("RUNNING", "", ())


@pytest.mark.parametrize("code", ["late", "no_agent"])
def test_a_storm_of_bounces_backs_off_and_a_start_forgives(code: str) -> None:
    b = Bench()
    b.dispatched(deadline_ms=START_MS + 3_600_000)
    waits = []
    for _ in range(12):
        b.step(b.outcome("bounced", code=code), say=verdicts("revoked"))
        row = b.live()
        waits.append(row.due_ms - b.now_ms if row.state == "DELAYED" else 0)
        b.now_ms = max(b.now_ms, row.due_ms)
        b.step()
        assert b.live().state == "DISPATCHED"
    first = 0 if code == "late" else BOUNCE_BACKOFF_MS
    assert waits[0] == first
    assert waits[1:] == [min(BOUNCE_BACKOFF_MS << i, BOUNCE_BACKOFF_MS_MAX) for i in range(1, 12)]
    assert b.live().attempt == 0
    b.step(b.outcome("started"), say=silent)
    assert b.live().bounces == 0


def test_a_bounce_for_no_reason_that_we_know_is_told_as_a_bounce() -> None:
    b = Bench()
    b.dispatched()
    effects = b.step(b.outcome("bounced", code="x" * 5_000), say=verdicts("revoked"))
    assert [t.reason for t in events(effects)[0].transitions] == ["bounced"]


def unreadable(b: Bench, **over: Any) -> Any:
    """What a runner reports that cannot read the live dispatch but for its headers."""
    raw = original(b.record("dispatch.default", b"\x00junk"))
    return b.outcome("failed", code="poison", message="schema_unknown: schema id 7", original=raw, **over)


def test_a_dispatch_that_no_runner_can_read_becomes_the_dead_letter_of_its_task() -> None:
    b = Bench()
    record = b.trigger(deadline_ms=START_MS + 3_600_000)
    b.step(record)
    for refusal in range(1, UNREADABLE_MAX + 1):
        assert b.live().dispatch_no == refusal
        effects = b.step(unreadable(b), say=verdicts("revoked"))
        if refusal < UNREADABLE_MAX:
            assert not letters(effects), "another runner may read it"
            b.now_ms = max(b.now_ms, b.live().due_ms)
            b.step()
    assert b.now_ms < START_MS + 60_000
    (event,) = events(effects)
    assert (event.state, event.code, event.message, event.attempt) == (
        "DEAD", "poison", "schema_unknown: schema id 7", 0,
    )  # fmt: skip
    (letter,) = letters(effects)
    assert (letter.topic, letter.value) == ("dlq.normal", record.value)
    assert (header(letter, "reason"), header(letter, "attempts")) == ("poison", "0")
    b.step(b.command("redrive", generation=1, original=original(record)))
    assert (b.live().state, b.live().generation) == ("DISPATCHED", 1)


def test_one_runner_that_can_read_it_is_enough() -> None:
    b = Bench()
    b.dispatched(deadline_ms=START_MS + 3_600_000)
    for _ in range(UNREADABLE_MAX - 1):
        b.step(unreadable(b), say=verdicts("revoked"))
        b.now_ms = max(b.now_ms, b.live().due_ms)
        b.step()
    b.step(b.outcome("started"), say=silent)
    (event,) = events(b.step(b.outcome("succeeded")))
    assert (event.state, event.attempt) == ("SUCCEEDED", 1)


@pytest.mark.parametrize("state", ["DISPATCHED", "RUNNING", "UNKNOWN"])
def test_an_old_or_needless_report_of_bytes_changes_nothing(state: str) -> None:
    b = in_state(state)
    before = b.live()
    stale = unreadable(b, dispatch_no=before.dispatch_no + 1)
    effects = b.step(stale, *([] if state == "DISPATCHED" else [unreadable(b)]), say=verdicts("revoked"))
    assert (b.live(), events(effects), letters(effects)) == (before, [], [])


def test_bounces_in_bulk_go_out_in_bounded_calls_until_all_are_answered() -> None:
    b = Bench("")
    count = 4 * REVOKES_PER_CALL_MAX + 100
    names = [f"k{i}" for i in range(count)]
    for at in range(0, count, 128):
        b.step(*(b.trigger(n) for n in names[at : at + 128]))
    b.rest()
    b.step(*(b.outcome("bounced", n) for n in names), say=silent)
    seen: set[str] = set()
    for _ in range(8):
        b.step(say=verdicts("claimed"))
        vet_exchange(b.exchange)
        assert len(b.exchange.revokes) <= REVOKES_PER_CALL_MAX
        assert not seen & set(b.exchange.revokes)
        seen |= set(b.exchange.revokes)
        if len(seen) < count:
            assert b.core.next_wakeup() == b.now_ms
    assert len(seen) == count


# Cancels


@pytest.mark.parametrize("fields", [{}, {"not_before_ms": START_MS + 9_000}])
def test_what_waits_is_cancelled_at_once(fields: dict[str, Any]) -> None:
    b = Bench()
    b.step(b.trigger(**fields), say=silent)
    effects = b.step(b.command("cancel"))
    (event,) = events(effects)
    assert (event.state, b.row(), sum(b.core.backlog())) == ("CANCELLED", None, 0)
    assert asked(b.exchange) == []
    assert not letters(effects)
    b.now_ms += 10_000
    b.step()
    assert b.core.next_wakeup() is None


def in_state(state: str) -> Bench:
    b = Bench()
    b.dispatched() if state == "DISPATCHED" else b.running(on_unknown="retry")
    if state == "UNKNOWN":
        b.step(lapsed=(b.reservation(),), end=99, say=silent)
    assert b.live().state == state
    return b


@pytest.mark.parametrize("state", ["DISPATCHED", "RUNNING", "UNKNOWN"])
@pytest.mark.parametrize("verdict", ["revoked", "gone"])
def test_what_is_leased_is_cancelled_with_the_ledger_s_word(state: str, verdict: str) -> None:
    b = in_state(state)
    effects = b.step(b.command("cancel"), say=silent)
    assert (b.live().state, events(effects)) == (state, [])
    for _ in range(2):
        b.step(say=silent)
        assert b.exchange.cancels == (f"{task_id()}:0:1",)
    effects = b.step(say=verdicts(verdict), end=99)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert ended is not None
    assert ended.unknown == (verdict != "revoked")
    b.step(say=verdicts(verdict), end=99)
    assert b.exchange.cancels == ()


def ordered(state: str = "RUNNING") -> Bench:
    """A cancel of which the runner has the order."""
    b = in_state(state)
    b.step(b.command("cancel"), say=verdicts("claimed"))
    assert (b.live().state, b.live().revoking) == (state, "cancel")
    return b


def test_a_cancelled_task_that_is_claimed_ends_with_its_attempt_and_is_settled() -> None:
    b = ordered()
    b.step(say=silent)
    assert b.exchange.cancels == (), "the order stands"
    assert [one.reservation_id for one in b.core.live() if one.active] == [b.reservation()], (
        "it holds its slots"
    )
    effects = b.step(b.outcome("failed", code="cancelled", used={"llm": 7}), say=silent)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    b.step()
    (settle,) = b.exchange.settles
    assert (settle.reservation_id, settle.used, settle.unclaimed) == (f"{task_id()}:0:1", {"llm": 7}, False)
    assert b.row() is None


@pytest.mark.parametrize("state", ["DISPATCHED", "RUNNING"])
def test_or_with_its_lease(state: str) -> None:
    b = ordered(state)
    b.step(lapsed=(b.reservation(),), end=b.ends.get("outcomes", 0), say=silent)
    effects = b.step(say=silent)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    assert b.row() is None


def test_what_was_done_before_the_order_came_is_done() -> None:
    b = ordered()
    effects = b.step(b.outcome("succeeded"), say=silent)
    assert [e.state for e in events(effects)] == ["SUCCEEDED"]


def test_a_ledger_that_forgot_the_order_is_told_again_and_so_is_one_of_a_new_owner() -> None:
    b = ordered()
    b.step(say=lambda _: answer(epoch="e2"))
    b.step(say=verdicts("claimed"))
    assert list(b.exchange.cancels) == [f"{task_id()}:0:1"]
    b.step(say=silent)
    assert not list(b.exchange.cancels)
    b.core.load()
    b.step(say=silent)
    assert list(b.exchange.cancels) == [f"{task_id()}:0:1"]


@pytest.mark.parametrize("kind", ["failed", "yielded", "unknown"])
@pytest.mark.parametrize("same_batch", [True, False])
def test_no_new_attempt_starts_once_a_cancel_is_committed(kind: str, *, same_batch: bool) -> None:
    """The attempt ends by itself while the ledger is still silent: that is the end of the task."""
    b = in_state("RUNNING")
    cancel, end = b.command("cancel"), b.outcome(kind, retryable=True)
    effects = (
        [b.step(cancel, end, say=silent)] if same_batch else [b.step(x, say=silent) for x in (cancel, end)]
    )
    assert b.row() is None
    assert events(effects[-1])[-1].state == "CANCELLED"
    b.now_ms += 3_600_000
    b.rest()
    assert not outputs(b.history[-1], "dispatch.", Dispatch)
    assert b.core.backlog() == (0,) * 5


@pytest.mark.parametrize("started", [True, False])
def test_nor_does_a_lapsed_lease_bring_a_cancelled_task_back(*, started: bool) -> None:
    b = in_state("RUNNING" if started else "DISPATCHED")
    b.step(b.command("cancel"), say=silent)
    b.step(lapsed=(b.reservation(),), end=b.ends.get("outcomes", 0), say=silent)
    effects = b.step(say=silent)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    assert b.row() is None


def test_a_cancelled_task_with_an_unknown_outcome_is_cancelled_not_parked() -> None:
    b = Bench()
    b.running(on_unknown="park")
    b.step(b.command("cancel"), say=silent)
    effects = b.step(b.outcome("unknown"), say=silent)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    assert not letters(effects)
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert ended is not None
    assert ended.unknown


def test_a_runner_that_heard_of_the_cancel_first_ends_the_task_as_cancelled() -> None:
    b = in_state("RUNNING")
    b.step(b.command("cancel"), say=silent)
    effects = b.step(b.outcome("failed", code="cancelled"), say=silent)
    assert [e.state for e in events(effects)] == ["CANCELLED"]
    assert not letters(effects)
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert ended is not None
    assert ended.unknown


def test_an_outcome_before_the_ledger_s_word_still_counts() -> None:
    b = in_state("RUNNING")
    b.step(b.command("cancel"), say=silent)
    effects = b.step(b.outcome("succeeded"), say=verdicts("claimed"))
    assert [e.state for e in events(effects)] == ["SUCCEEDED"]


def test_a_cancel_of_what_is_not_here_is_told() -> None:
    b = Bench()
    (event,) = events(b.step(b.command("cancel", "nobody", tenant="acme")))
    assert (event.kind, event.code, event.task_id, event.tenant) == (
        "refused_command",
        "cancel",
        task_id("nobody"),
        "acme",
    )
    (event,) = events(b.step(b.command("reprioritise", "nobody")))
    assert (event.kind, "cancel, redrive" in event.detail) == ("refused_command", True)


def test_a_cancelled_running_task_does_no_further_step_and_then_frees_its_slots() -> None:
    d = driver()
    d.pipe("normal", trigger(demands={"browser": 2}))
    for _ in range(2):
        d.runners[0].tick()
        d.settle()
    d.send("control", Command(kind="cancel", command_id="c", task_id=task_id()))
    assert d.ledger.reserved("browser") == 2, "it runs until it hears of it"
    d.work()
    assert (d.table("task"), d.ledger.reserved("browser"), d.provider.effects) == ({}, 0, [])
    assert d.events()[-1].state == "CANCELLED"
    d.pipe("normal", trigger("next", demands={"browser": 2}))
    d.work()
    assert d.events()[-1].state == "SUCCEEDED"


# Redrive


def dead(b: Bench, *, known: bool) -> Any:
    record = b.trigger(on_unknown="park")
    b.step(record)
    b.step(b.outcome("started"), say=silent)
    b.step(b.outcome("failed" if known else "unknown"))
    assert b.row() is None
    return record


@pytest.mark.parametrize(("known", "effect_generation"), [(True, 1), (False, 0)])
def test_a_dead_task_lives_again_as_the_next_generation(effect_generation: int, *, known: bool) -> None:
    b = Bench()
    record = dead(b, known=known)
    effects = b.step(b.command("redrive", generation=1, original=original(record)))
    (dispatch,) = outputs(effects, "dispatch.", Dispatch)
    assert (dispatch.generation, dispatch.dispatch_no, dispatch.attempt) == (1, 2, 1)
    assert (dispatch.effect_generation, dispatch.after_unknown) == (effect_generation, not known)
    assert [t.reason for t in events(effects)[0].transitions] == ["redriven", "granted"]
    b.step(b.outcome("started"), say=silent)
    (letter,) = letters(b.step(b.outcome("failed")))
    assert header(letter, "generation") == "1"
    assert (letter.value, header(letter, "offset")) == (record.value, str(record.offset))
    assert b.step(b.command("redrive", generation=2, original=original(record)))
    assert b.live().generation == 2


def test_a_redriven_firm_task_runs_although_its_time_is_over() -> None:
    b = Bench()
    record = b.trigger(firm=True, deadline_ms=START_MS + 100, not_before_ms=START_MS + 50)
    b.step(record)
    b.now_ms += 60
    b.step()
    b.step(b.outcome("failed"))
    b.now_ms += 86_400_000
    b.step(b.command("redrive", generation=1, original=original(record)))
    assert (b.live().state, b.live().firm) == ("DISPATCHED", False)


def test_what_cannot_be_redriven_is_told_and_changes_nothing() -> None:
    b = Bench()
    record = dead(b, known=True)
    other = b.trigger(payload=b"other")
    foreign = b.trigger("foreign")
    unfit = b.trigger(on_unknown="park", demands={"llm": -5})
    b.dispatched("alive")
    b.dispatched("done")
    b.step(b.outcome("succeeded", "done"))
    good = original(record)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("k", {"generation": 0, "original": good}),
        ("k", {"generation": 2, "original": good}),
        ("k", {"generation": 1}),
        ("k", {"generation": 1, "original": original(other)}),
        ("k", {"generation": 1, "original": original(foreign)}),
        ("k", {"generation": 1, "original": original(unfit)}),
        ("k", {"generation": 1, "original": original(b.record("triggers.low", b"junk"))}),
        ("alive", {"generation": 1, "original": good}),
        ("done", {"generation": 1, "original": good}),
        ("unheard", {"generation": 1, "original": good}),
    ]
    for key, fields in cases:
        effects = b.step(b.command("redrive", key, **fields))
        told = events(effects)
        assert [e.kind for e in told] == ["refused_command"], fields
        assert told[0].detail
        assert b.row("k") is None
        assert not letters(effects)
    b.step(b.command("redrive", generation=1, original=good))
    assert b.live().generation == 1


def test_a_second_redrive_of_the_same_generation_is_refused() -> None:
    b = Bench()
    record = dead(b, known=True)
    twice = [b.command("redrive", generation=1, original=original(record)) for _ in range(2)]
    effects = b.step(*twice)
    assert [e.kind for e in events(effects)] == ["refused_command", "transitions"]
    assert len(outputs(effects, "dispatch.", Dispatch)) == 1
    b.step(b.outcome("failed"))
    assert [
        e.kind for e in events(b.step(b.command("redrive", generation=1, original=original(record))))
    ] == ["refused_command"]


def test_an_outcome_of_the_old_generation_does_not_end_the_new_one() -> None:
    b = Bench()
    record = dead(b, known=True)
    b.step(b.command("redrive", generation=1, original=original(record)))
    for number in (1, 2):
        b.step(b.outcome("succeeded", generation=0, dispatch_no=number), say=silent)
    assert b.live().state == "DISPATCHED"


def test_a_duplicate_meets_the_redriven_task_and_then_its_new_end() -> None:
    b = Bench()
    record = dead(b, known=True)
    b.step(b.command("redrive", generation=1, original=original(record)))
    assert [e.kind for e in events(b.step(b.trigger(on_unknown="park"), say=silent))] == ["duplicate"]
    b.now_ms += 2 * 86_400_000  # the end falls into another day's bucket
    b.step(b.outcome("succeeded"), say=grant_all)
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert isinstance(ended, KeyRow)
    assert (ended.state, ended.generation) == ("SUCCEEDED", 1)
    assert [e.kind for e in events(b.step(b.command("redrive", generation=2, original=original(record)), say=lambda _: answer()))] == ["refused_command"]  # fmt: skip
