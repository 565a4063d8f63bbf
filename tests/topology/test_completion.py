"""Outcomes: what each kind ends in, what is told of it, what is settled, and what comes too late."""

from __future__ import annotations

from typing import Any

import pytest
from builders import (
    CONFIG,
    START_MS,
    Bench,
    driver,
    events,
    grant_all,
    header,
    letters,
    outputs,
    silent,
    task_id,
    trigger,
)

from laxity.schemas.limits import CHECKPOINT_BYTES_MAX, EVENT_RESULT_BYTES_MAX, QUANTITY_MAX
from laxity.schemas.records import Dispatch, SettleRow, Usage
from laxity.schemas.serde import decode_row
from laxity.streams.effects import Effects
from laxity.streams.ledger.protocol import Report
from laxity.streams.ledger.vetting import vet_exchange, vet_report
from laxity.streams.state import keys

PRICED = CONFIG + "[prices]\ntokens_in = 3\ntokens_out = 15\nrequests = 100\n"


def settle_rows(b: Bench) -> dict[str, SettleRow]:
    prefix = keys.state_key(keys.SETTLE, b"")
    return {k[1:].decode(): decode_row(SettleRow, v) for k, v in b.store.scan(prefix, prefix + keys.MAX_KEY)}


def dispatches(effects: Effects) -> list[Dispatch]:
    return outputs(effects, "dispatch.", Dispatch)


@pytest.mark.parametrize(
    ("size", "told"), [(EVENT_RESULT_BYTES_MAX, True), (EVENT_RESULT_BYTES_MAX + 1, False)]
)
def test_a_small_result_is_in_the_event_a_large_one_is_referred_to(size: int, *, told: bool) -> None:
    b = Bench()
    b.running()
    record = b.outcome("succeeded", result=b"x" * size)
    effects = b.step(record, say=silent)
    (event,) = events(effects)
    assert event.result == (b"x" * size if told else None)
    ended = b.core._tables.ended(task_id(), b.now_ms)
    assert ended is not None
    assert ended.result_ref == f"laxity.outcomes:0:{record.offset}"
    assert (event.state, b.row(), sum(b.core.backlog())) == ("SUCCEEDED", None, 0)


def test_usage_adds_up_over_outcomes_and_attempts_and_is_priced_once() -> None:
    b = Bench(PRICED)
    b.running()
    b.step(b.outcome("progress", usage={"tokens_in": 100}), say=silent)
    b.step(b.outcome("failed", retryable=True, usage={"tokens_in": 10, "tokens_out": 1}), say=silent)
    b.now_ms += 1_000
    b.step()
    b.step(b.outcome("started"), say=silent)
    effects = b.step(b.outcome("succeeded", usage={"tokens_out": 4, "requests": 2, "pages": 7}), say=silent)
    (event,) = events(effects)
    assert event.usage == {"tokens_in": 110, "tokens_out": 5, "requests": 2, "pages": 7}
    assert event.cost_micros == 110 * 3 + 5 * 15 + 2 * 100
    (usage,) = outputs(effects, "usage", Usage)
    sums = {e.unit: (e.quantity, e.cost_micros) for e in usage.entries}
    assert sums == {
        "tokens_in": (110, 330), "tokens_out": (5, 75), "requests": (2, 200), "pages": (7, 0),
        "tasks": (1, 0), "attempts": (2, 0),
    }  # fmt: skip
    assert {(e.tenant, e.type, e.tier) for e in usage.entries} == {("default", "work", "normal")}


def test_usage_is_summed_per_commit_and_numbered_without_gaps() -> None:
    d = driver(PRICED)
    for i in range(5):
        d.pipe("normal", trigger(f"k{i}"))
        d.work()
    assert [u.sequence for u in d.read("usage")] == [1, 2, 3, 4, 5]
    b = Bench(PRICED)
    b.step(*(b.trigger(f"k{i}") for i in range(3)))
    effects = b.step(*(b.outcome("succeeded", f"k{i}", usage={"tokens_in": 10}) for i in range(3)))
    (usage,) = outputs(effects, "usage", Usage)
    assert {e.unit: e.quantity for e in usage.entries} == {"tokens_in": 30, "tasks": 3, "attempts": 3}


@pytest.mark.parametrize("kind", ["succeeded", "failed", "yielded", "unknown"])
def test_an_end_settles_with_what_was_used(kind: str) -> None:
    b = Bench()
    b.running(demands={"llm": 500})
    b.step(b.outcome(kind, used={"llm": 321}, retryable=True), say=silent)
    assert settle_rows(b) == {f"{task_id()}:0:1": SettleRow(used={"llm": 321}, unclaimed=False)}


def test_a_failure_that_is_final_is_a_dead_letter_with_its_history() -> None:
    b = Bench()
    record = b.trigger()
    b.step(record)
    b.step(b.outcome("started"), say=silent)
    effects = b.step(b.outcome("failed", code="refund_rejected", message="no such order"), say=silent)
    (letter,) = letters(effects)
    assert (letter.topic, letter.value) == ("dlq.normal", record.value)
    assert [header(letter, n) for n in ("reason", "message", "attempts", "generation")] == [
        "not_retryable", "no such order", "1", "0",
    ]  # fmt: skip
    assert '"code":"refund_rejected"' in header(letter, "history")
    (event,) = events(effects)
    assert (event.state, event.code, event.message) == ("DEAD", "refund_rejected", "no such order")


def test_poison_dies_at_once_even_if_it_says_retryable() -> None:
    b = Bench()
    b.dispatched()
    (letter,) = letters(b.step(b.outcome("failed", code="poison", retryable=True), say=silent))
    assert header(letter, "reason") == "poison"
    assert b.row() is None


def test_a_checkpoint_comes_back_with_the_next_dispatch_and_a_yield_spends_no_attempt() -> None:
    b = Bench()
    b.running()
    b.step(b.outcome("progress", checkpoint=b"one"), say=silent)
    effects = b.step(b.outcome("yielded"))
    (dispatch,) = dispatches(effects)
    assert (dispatch.checkpoint, dispatch.attempt, dispatch.dispatch_no) == (b"one", 1, 2)
    b.step(b.outcome("started"), say=silent)
    (dispatch,) = dispatches(b.step(b.outcome("yielded", checkpoint=b"two")))
    assert (dispatch.checkpoint, dispatch.attempt, dispatch.dispatch_no) == (b"two", 1, 3)


def test_a_yield_whose_start_was_not_seen_spends_no_attempt_either() -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("yielded"), say=silent)
    assert (b.live().state, b.live().attempt) == ("READY", 0)


def test_an_end_whose_start_was_not_seen_was_an_attempt() -> None:
    b = Bench()
    b.dispatched()
    (event,) = events(b.step(b.outcome("succeeded"), say=silent))
    assert event.attempt == 1


def test_the_dispatch_carries_what_the_runner_needs() -> None:
    b = Bench()
    effects = b.step(
        b.trigger("k", "high", payload=b"\x00\xff", content_type="x/y", headers={"a": "b"},
                  deadline_ms=START_MS + 9_000, estimate_ms=2_000, firm=True, demands={"llm": 5})
    )  # fmt: skip
    (output,) = [o for o in effects.outputs if o.topic == "dispatch.default"]
    (dispatch,) = dispatches(effects)
    assert (output.partition, output.key, output.headers) == (
        0,
        task_id().encode(),
        (
            ("laxity-tier", b"high"),
            ("laxity-shard", b"0"),
            ("laxity-reservation", f"{task_id()}:0:1".encode()),
        ),
    )
    assert (dispatch.payload, dispatch.content_type, dispatch.headers) == (b"\x00\xff", "x/y", {"a": "b"})
    assert (dispatch.latest_start_ms, dispatch.firm, dispatch.estimate_ms) == (START_MS + 7_000, True, 2_000)
    assert dispatch.granted == {"llm": 5, "fleet.default": 1}
    assert (dispatch.generation, dispatch.dispatch_no, dispatch.attempt, dispatch.shard) == (0, 1, 1, 0)


STALE: list[dict[str, Any]] = [{"dispatch_no": 0}, {"dispatch_no": 2}, {"generation": 1}]


@pytest.mark.parametrize(
    "kind", ["started", "progress", "succeeded", "failed", "yielded", "unknown", "bounced"]
)
@pytest.mark.parametrize("fence", STALE)
def test_what_comes_under_another_fence_changes_nothing(kind: str, fence: dict[str, Any]) -> None:
    b = Bench()
    b.running()
    before = b.live()
    effects = b.step(
        b.outcome(kind, **{"code": "why", "usage": {"tokens_in": 5}, "used": {"llm": 1}, **fence}), say=silent
    )
    assert b.live() == before
    assert settle_rows(b) == {}
    late = events(effects)
    assert [e.kind for e in late] == (
        ["late_completion"] if kind in {"succeeded", "failed", "yielded", "unknown"} else []
    )
    if late:
        sent = {"dispatch_no": 1, "generation": 0, **fence}
        assert (late[0].dispatch_no, late[0].generation) == (sent["dispatch_no"], sent["generation"])
        assert (late[0].detail, late[0].code, late[0].state) == (kind, "why", "")


@pytest.mark.parametrize("kind", ["succeeded", "failed", "unknown"])
def test_the_second_end_of_a_task_is_recorded_and_ignored(kind: str) -> None:
    b = Bench()
    b.running()
    first, second = b.outcome("succeeded"), b.outcome(kind)
    b.step(first, say=grant_all)
    effects = b.step(second, say=silent)
    assert [(e.kind, e.task_id) for e in events(effects)] == [("late_completion", task_id())]
    assert not letters(effects)


def test_a_start_told_twice_counts_once() -> None:
    b = Bench()
    b.running()
    before = b.live()
    b.now_ms += 5
    b.step(b.outcome("started"), say=silent)
    assert b.live() == before


# What a runner that is wrong, or not ours, may report


HUGE = 2**63 - 1
ODD: dict[str, dict[str, Any]] = {
    "negative used": {"used": {"llm": -1}},
    "huge used": {"used": {"llm": HUGE}},
    "no name": {"used": {"": 1}},
    "long name": {"used": {"ü" * 300: 1}},
    "many": {"used": {f"u{i}": 1 for i in range(2_000)}},
    "negative usage": {"usage": {"tokens_in": -5}},
    "huge usage": {"usage": {"tokens_in": HUGE}},
    "checkpoint": {"checkpoint": b"x" * (CHECKPOINT_BYTES_MAX + 1)},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["progress", "succeeded", "failed", "yielded", "unknown"])
def test_a_wrong_report_is_told_and_its_sound_part_counts(name: str, kind: str) -> None:
    b = Bench(PRICED)
    b.running(demands={"llm": 5})
    for _ in range(2):
        effects = b.step(b.outcome(kind, retryable=True, **ODD[name]), say=silent)
        if kind != "progress":
            break
    (letter,) = letters(effects, "internal")
    assert header(letter, "reason") == "invalid"
    assert header(letter, "message").startswith(next(iter(ODD[name])))
    if kind == "progress":
        assert b.live().checkpoint is None
        assert all(0 <= n <= QUANTITY_MAX for n in b.live().usage.values())
    else:
        assert b.row() is None or b.live().state in {"DELAYED", "READY"}
    b.nominate()
    vet_exchange(b.exchange)


@pytest.mark.parametrize("runner", ["", "x" * 100_000])
@pytest.mark.parametrize("attempt", [-9, 0, 2**31 - 1])
def test_who_ran_and_which_attempt_it_was_the_shard_knows_better(runner: str, attempt: int) -> None:
    b = Bench()
    b.dispatched()
    b.step(b.outcome("started", runner=runner, attempt=attempt), say=silent)
    assert (b.live().runner, b.live().attempt) == ("runner", 1)
    vet_report(Report(shard=0, owner_epoch=1, seen_epoch="", live=b.core.live()))
    b.step(b.outcome("failed", runner=runner, attempt=attempt, retryable=True), say=silent)
    assert (b.live().state, b.live().attempt) == ("DELAYED", 1)
    assert b.live().history[0].runner == "runner"


def test_long_texts_are_cut() -> None:
    b = Bench()
    b.running()
    long = "x" * 400_000
    effects = b.step(b.outcome("failed", code=long, message=long), say=silent)
    assert all(len(o.value or b"") < 10_000 for o in effects.outputs)
    assert header(letters(effects)[0], "message") == "x" * 1_024


def test_costs_and_sums_stop_at_their_limit() -> None:
    b = Bench(CONFIG + "[prices]\ntokens_in = 1000000\n")
    b.running()
    for _ in range(3):
        b.step(b.outcome("progress", usage={"tokens_in": QUANTITY_MAX}), say=silent)
    (event,) = events(b.step(b.outcome("succeeded"), say=silent))
    assert (event.usage["tokens_in"], event.cost_micros) == (QUANTITY_MAX, QUANTITY_MAX)
