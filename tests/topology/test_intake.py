"""A trigger becomes a task: defaults, names, release times, and every way to be refused."""

from __future__ import annotations

from typing import Any

import pytest
from builders import CONFIG, START_MS, Bench, driver, events, header, letters, task_id, trigger

from laxity.schemas.identity import digest_of, positional_key, run_id_of, task_id_of
from laxity.schemas.limits import DEADLINE_AHEAD_MS_MAX, DEMANDS_MAX
from laxity.schemas.topics import TIERS

DEFAULTS_MS = dict(zip(TIERS, (30_000, 120_000, 600_000, 3_600_000, 86_400_000), strict=True))


@pytest.mark.parametrize("tier", TIERS)
def test_without_a_deadline_the_tier_says_and_it_is_soft(tier: str) -> None:
    d = driver(slots=0)
    d.pipe(tier, trigger(firm=True))
    (row,) = d.table("task").values()
    assert row.deadline_ms == d.clock.now_ms() + DEFAULTS_MS[tier]
    assert not row.firm, "firm needs a deadline of its own"
    assert row.tier == TIERS.index(tier)
    assert (row.state, row.estimate_ms, row.accepted_ms) == ("READY", 0, d.clock.now_ms())


def test_a_given_deadline_is_kept_and_firm_only_when_said() -> None:
    d = driver(slots=0)
    at = d.clock.now_ms() + 5_000
    d.pipe("low", trigger("a", deadline_ms=at))
    d.pipe("low", trigger("b", deadline_ms=at, firm=True))
    rows = {row.key: row for row in d.table("task").values()}
    assert [(rows[k].deadline_ms, rows[k].firm) for k in "ab"] == [(at, False), (at, True)]


def test_the_type_fills_in_what_the_trigger_leaves_open() -> None:
    b = Bench(
        CONFIG
        + '[types.full]\nestimate_ms=700\nmax_attempts=9\non_unknown="park"\ndemands={llm=5, browser=2}\n'
    )
    b.step(b.trigger("a", type="full"), b.trigger("b", type="full", estimate_ms=1, max_attempts=2, on_unknown="retry", demands={"llm": 7}))  # fmt: skip
    a, other = b.live("a"), b.live("b")
    assert (a.estimate_ms, a.max_attempts, a.on_unknown, a.demands) == (
        700,
        9,
        "park",
        {"llm": 5, "browser": 2},
    )
    assert (other.estimate_ms, other.max_attempts, other.on_unknown) == (1, 2, "retry")
    assert other.demands == {"llm": 7, "browser": 2}


def test_a_type_that_nobody_configured_runs_with_defaults() -> None:
    b = Bench()
    b.step(b.trigger(type="never-heard-of"))
    assert (b.live().fleet, b.live().max_attempts, b.live().on_unknown) == ("default", 4, "park")


def test_names_follow_from_tenant_run_and_key() -> None:
    d = driver(slots=0)
    d.pipe("normal", trigger("invoice-7", tenant="acme"))
    d.pipe("normal", trigger("invoice-7", tenant="acme", run_id="run-1"))
    first, second = sorted(d.table("task").items(), key=lambda item: item[1].seq)
    run = digest_of("acme", "invoice-7")
    assert (first[0], first[1].run_id) == (digest_of("acme", run, "invoice-7"), run)
    assert (second[0], second[1].run_id) == (digest_of("acme", "run-1", "invoice-7"), "run-1")


@pytest.mark.parametrize("shards", [1, 3])
def test_keyless_triggers_are_each_a_task_named_by_their_place(shards: int) -> None:
    d = driver(slots=0, shards=shards)
    records = [d.pipe("normal", trigger(""), partition=i % shards) for i in range(6)]
    wanted = {}
    for i in range(6):
        key = positional_key("laxity.triggers.normal", i % shards, i // shards)
        wanted[task_id_of("default", run_id_of("default", "", key), key)] = key
    assert len(records) == len(wanted) == 6
    assert {name: row.key for name, row in d.table("task").items()} == wanted


def test_not_before_waits_and_the_tier_s_time_runs_from_then() -> None:
    d = driver()
    at = d.clock.now_ms() + 5_000
    d.pipe("critical", trigger(not_before_ms=at))
    (row,) = d.table("task").values()
    assert (row.state, row.reason, row.deadline_ms) == ("DELAYED", "not_before", at + 30_000)
    d.advance(4_999, step_ms=4_999)
    assert not d.read("dispatch.default")
    d.advance(1)
    (dispatch,) = d.read("dispatch.default")
    assert dispatch.task_id == task_id()
    assert [(t.before, t.after, t.reason) for e in d.events() for t in e.transitions] == [
        ("", "DELAYED", "not_before"),
        ("DELAYED", "READY", "released"),
        ("READY", "DISPATCHED", "granted"),
    ]


def test_a_release_time_of_the_past_is_no_delay() -> None:
    b = Bench()
    b.step(b.trigger(not_before_ms=START_MS - 1))
    assert (b.live().state, b.live().due_ms) == ("DISPATCHED", 0)


@pytest.mark.parametrize(("late_ms", "state"), [(0, "DISPATCHED"), (1, "EXPIRED")])
def test_a_firm_task_that_cannot_finish_expires_at_once(late_ms: int, state: str) -> None:
    b = Bench()
    fields: dict[str, Any] = {"deadline_ms": START_MS + 1_000 - late_ms, "firm": True, "estimate_ms": 1_000}
    effects = b.step(b.trigger(**fields))
    assert [e.state for e in events(effects)] == [state]
    assert not letters(effects), "expired is no dead letter"
    if state == "EXPIRED":
        (event,) = events(effects)
        assert [t.reason for t in event.transitions] == ["latest_start_passed"]
        assert (event.missed_by_ms, b.row()) == (0, None)
        assert [e.kind for e in events(b.step(b.trigger(**fields)))] == ["duplicate"]


def test_how_late_an_expired_task_is_stands_in_its_event() -> None:
    b = Bench()
    (event,) = events(b.step(b.trigger(deadline_ms=START_MS - 250, firm=True)))
    assert (event.state, event.missed_by_ms) == ("EXPIRED", 250)


def test_a_soft_task_past_its_deadline_still_runs_and_its_lateness_is_told() -> None:
    b = Bench()
    b.dispatched(deadline_ms=START_MS - 250)
    (event,) = events(b.step(b.outcome("succeeded"), say=lambda _: None))
    assert (event.state, event.missed_by_ms) == ("SUCCEEDED", 250)


def test_a_firm_task_that_waits_expires_by_its_timer_one_ms_after_its_latest_start() -> None:
    d = driver(slots=0)
    d.pipe("normal", trigger(deadline_ms=d.clock.now_ms() + 3_000, estimate_ms=1_000, firm=True))
    d.advance(2_000, step_ms=2_000)
    assert [row.state for row in d.table("task").values()] == ["READY"]
    d.advance(1)
    assert d.table("task") == {}
    assert [d.events()[-1].state, d.events()[-1].missed_by_ms] == ["EXPIRED", 0]
    d.work()
    assert d.read("dispatch.default") == []


BAD: dict[str, dict[str, Any]] = {
    "type": {"type": ""},
    "tenant": {"tenant": "a b"},
    "run_id": {"run_id": "x" * 257},
    "workflow": {"workflow": "é"},
    "key": {"key": "k" * 513},
    "content_type": {"content_type": "text/\n"},
    "deadline_ms": {"deadline_ms": START_MS + DEADLINE_AHEAD_MS_MAX + 1},
    "not_before_ms": {"not_before_ms": -1},
    "estimate_ms": {"estimate_ms": 2**62},
    "value": {"value": -1},
    "max_attempts": {"max_attempts": 101},
    "demands.gpu": {"demands": {"gpu": 1}},
    "demands.browser": {"demands": {"browser": 3}},
    "demands.account": {"demands": {"account": 1}},
    "demands.llm": {"demands": {"llm": -1}},
    "demands": {"demands": {f"account:{i}": 1 for i in range(DEMANDS_MAX + 1)}},
    "on_unknown": {"on_unknown": "guess"},
    "headers.a b": {"headers": {"a b": "c"}},
    "depends_on": {"depends_on": ["other"]},
}


@pytest.mark.parametrize("field", BAD)
def test_what_is_invalid_is_one_dead_letter_that_names_the_field_and_the_next_one_runs(field: str) -> None:
    b = Bench()
    record = b.trigger(**{"key": "k", **BAD[field]})
    effects = b.step(record, b.trigger("next"))
    (letter,) = letters(effects, "normal")
    assert (letter.key, letter.value) == (record.key, record.value)
    assert header(letter, "reason") == "invalid"
    assert header(letter, "message").startswith(field)
    (refused,) = events(effects, "rejected")
    assert (refused.state, refused.code) == ("DEAD", "invalid")
    assert b.live("next").state == "DISPATCHED"
    assert b.row("k") is None


def test_all_problems_are_told_at_once() -> None:
    b = Bench()
    effects = b.step(b.trigger(value=-1, max_attempts=-1, depends_on=["x"]))
    message = header(letters(effects)[0], "message")
    assert all(field in message for field in ("value", "max_attempts", "depends_on"))


def test_what_the_type_adds_counts_towards_the_limit_of_demands() -> None:
    """Else the ledger would refuse the whole call, for ever."""
    b = Bench(CONFIG.replace("[types.parked]", "[types.parked]\ndemands = {llm = 1}"))
    effects = b.step(b.trigger(type="parked", demands={f"account:{i}": 1 for i in range(DEMANDS_MAX)}))
    assert header(letters(effects)[0], "message").startswith("demands")
    b.step(b.trigger("fits", type="parked", demands={f"account:{i}": 1 for i in range(DEMANDS_MAX - 1)}))
    assert len(b.exchange.candidates[0].demands) == DEMANDS_MAX


@pytest.mark.parametrize("stamp", [-1, 0, 2**63 - 1])
def test_a_timestamp_that_no_broker_gave_stops_nothing(stamp: int) -> None:
    b = Bench()
    b.step(b.record("triggers.low", trigger(), timestamp_ms=stamp))
    assert b.live().state == "DISPATCHED"
