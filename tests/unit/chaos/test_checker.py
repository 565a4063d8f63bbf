"""The checker checked: a small history in which all holds, and each violation planted in it once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chaos.checker import CHECKS, Rules, check, figures
from chaos.history import ERROR, Booked, History, Op, Ordered, Place, Raw, Reported, Sent, Told, sent_of

from laxity.infra.demo.provider.line import Kind, Line
from laxity.schemas import config as configuration
from laxity.schemas.identity import run_id_of, task_id_of
from laxity.schemas.records import Dispatch, InputRange, Journal, Outcome, TaskEvent, Transition, Trigger

PREFIX = "laxity."
CONFIG = configuration.parse(
    """
[resources.llm]
kind = "rate"
requests_per_minute = 600
tokens_per_minute = 600000
[resources.desk]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
capacity = 1
[fleets.default]
partitions = 4
"""
)
RULES = Rules(config=CONFIG)
DEMANDS = {"llm": 10, "desk": 1, "account:a": 1}


def name_of(key: str) -> str:
    return task_id_of("default", run_id_of("default", "", key), key)


def place(topic: str, offset: int) -> Place:
    return Place(topic=topic, partition=0, offset=offset)


def sent(offset: int, trigger: Trigger | None, value: bytes = b"") -> Sent:
    raw = Raw(
        place=place("triggers.normal", offset),
        appended_ms=1_000 + offset,
        key=b"k",
        value=value or repr(trigger).encode(),
        headers=(("h", b"1"),),
    )
    return sent_of(raw, trigger, PREFIX)


def event(offset: int, key: str, *steps: str, batch: int = 1, **fields: Any) -> Told:
    """Steps are states one after the other, from where the task was."""
    names = list(steps)
    transitions = [
        Transition(before=before, after=after, reason=fields.get("reason", "x"), at_ms=2_000)
        for before, after in itertools.pairwise(names)
    ]
    fields.pop("reason", None)
    told = TaskEvent(
        kind="transitions",
        task_id=name_of(key),
        tier="normal",
        shard=0,
        batch=batch,
        at_ms=2_000,
        state=names[-1],
        transitions=transitions,
        **{"accepted_ms": 1_000, "attempt": 1, "dispatch_no": 1, **fields},
    )
    return Told(place=place("events.normal", offset), appended_ms=3_000 + offset, event=told)


def note(offset: int, kind: str, task_id: str, detail: str = "", **fields: Any) -> Told:
    told = TaskEvent(
        kind=kind, task_id=task_id, tier="normal", shard=0, batch=1, at_ms=2_000, detail=detail, **fields
    )
    return Told(place=place("events.normal", offset), appended_ms=3_000, event=told)


def order(offset: int, key: str, number: int = 1, **fields: Any) -> Ordered:
    dispatch = Dispatch(
        task_id=name_of(key), tenant="default", run_id="r", key=key, type="work", shard=0, generation=0,
        dispatch_no=number, attempt=1, runner="r", deadline_ms=9_000, latest_start_ms=8_000, **fields,
    )  # fmt: skip
    return Ordered(place=place("dispatch.default", offset), appended_ms=3_000, dispatch=dispatch)


def report(offset: int, key: str, kind: str, at_ms: int, number: int = 1) -> Reported:
    outcome = Outcome(
        kind=kind, task_id=name_of(key), generation=0, dispatch_no=number, runner="r", at_ms=at_ms
    )
    return Reported(place=place("outcomes", offset), appended_ms=at_ms, outcome=outcome)


def effect(of: str, start_ms: int, end_ms: int, **over: Any) -> Line:
    values: dict[str, Any] = {
        "ts_ms": end_ms, "key": f"effect-{of}", "tenant": "default", "task": name_of(of), "model": "llm",
        "tokens_in": 1, "tokens_out": 1, "kind": Kind.EFFECT, "status": 200, "reason": "", "body": "b",
        "charged": 10, "arrived_ms": start_ms,
    }  # fmt: skip
    return Line(**values | over)


def letter(offset: int, of: Sent, reason: str, **over: Any) -> Raw:
    ours = {
        "reason": reason,
        "message": "",
        "topic": PREFIX + of.raw.place.topic,
        "partition": str(of.raw.place.partition),
        "offset": str(of.raw.place.offset),
        "timestamp": str(of.raw.appended_ms),
        "attempts": "1",
        "generation": "0",
        "history": "[]",
    }
    headers = (*of.raw.headers, *((ERROR + name, text.encode()) for name, text in ours.items()))
    made = Raw(
        place=place("dlq.normal", offset),
        appended_ms=4_000,
        key=of.raw.key,
        value=of.raw.value,
        headers=headers,
    )
    return replace(made, **over)


def batch(number: int, first: int, next_: int, epoch: int = 1) -> Booked:
    moved = InputRange(topic="triggers.normal", partition=0, first=first, next=next_, count=1)
    entry = Journal(
        shard=0, batch=number, owner_epoch=epoch, now_ms=2_000, state_version=1, config_id="c", inputs=[moved],
        effects_hash=b"",
    )  # fmt: skip
    return Booked(place=place("journal", number - 1), appended_ms=3_000, entry=entry)


GOOD = Trigger(type="work", key="good", payload=b"1", demands=DEMANDS)
DEAD = Trigger(type="work", key="dead", payload=b"2", demands=DEMANDS)
LATE = Trigger(type="work", key="late", payload=b"3", firm=True, deadline_ms=1_500)
SENT = [
    sent(0, GOOD),
    sent(1, GOOD),  # a copy
    sent(2, replace(GOOD, payload=b"other")),  # a conflict
    sent(3, DEAD),
    sent(4, None, b"junk"),
    sent(5, LATE),
]
ORIGIN = f"{PREFIX}triggers.normal/0"


def whole() -> History:
    return History(
        sent=SENT,
        told=[
            event(0, "good", "", "READY", "DISPATCHED"),
            event(1, "good", "DISPATCHED", "RUNNING", "SUCCEEDED", batch=2),
            note(2, "duplicate", name_of("good"), f"{ORIGIN}/1"),
            note(3, "conflict", name_of("good"), "key 'good' has another payload"),
            event(4, "dead", "", "READY", "DISPATCHED", "RUNNING", "DEAD", accepted_ms=1_003),
            note(5, "rejected", "", f"{ORIGIN}/4"),
            event(6, "late", "", "EXPIRED", accepted_ms=1_005, firm=True, dispatch_no=0, missed_by_ms=7),
        ],
        ordered=[order(0, "good"), order(1, "dead")],
        reported=[
            report(0, "good", "started", 100),
            report(1, "good", "succeeded", 200),
            report(2, "dead", "started", 200),
            report(3, "dead", "failed", 300),
        ],
        booked=[batch(1, 0, 3), batch(2, 3, 6)],
        letters=[
            letter(0, SENT[2], "idempotency_conflict"),
            letter(1, SENT[3], "not_retryable"),
            letter(2, SENT[4], "undecodable"),
        ],
        calls=[effect("good", 110, 190)],
        ops=[
            Op(number=1, step="invoke", what="trigger", at_ms=900),
            Op(
                number=1, step="ok", what="trigger", at_ms=990, place="triggers.normal/0/0",
                digest=hashlib.sha256(SENT[0].raw.value or b"").hexdigest(),
            ),
            Op(number=2, step="invoke", what="trigger", at_ms=900, digest="never arrived"),
            Op(number=2, step="info", what="trigger", at_ms=990),
        ],
        prefix=PREFIX,
    )  # fmt: skip


Plant = Callable[[History], History]


def changed(h: History, name: str, items: list[Any]) -> History:
    over: dict[str, Any] = {name: items}
    return replace(h, **over)


def without(name: str, *indices: int) -> Plant:
    def plant(h: History) -> History:
        return changed(h, name, [x for n, x in enumerate(getattr(h, name)) if n not in indices])

    return plant


def more(name: str, *items: Any) -> Plant:
    return lambda h: changed(h, name, [*getattr(h, name), *items])


def instead(name: str, index: int, item: Any) -> Plant:
    def plant(h: History) -> History:
        return changed(h, name, [item if n == index else x for n, x in enumerate(getattr(h, name))])

    return plant


def both(*plants: Plant) -> Plant:
    def plant(h: History) -> History:
        for each in plants:
            h = each(h)
        return h

    return plant


OTHER = Trigger(type="work", key="other", payload=b"4", demands=DEMANDS)
OTHER_RUNS = both(
    more("sent", sent(6, OTHER)),
    more("told", event(7, "other", "", "READY", "DISPATCHED", "RUNNING", "SUCCEEDED", accepted_ms=1_006)),
    more("ordered", order(2, "other")),
    more("reported", report(4, "other", "started", 300), report(5, "other", "succeeded", 400)),
    more("calls", effect("other", 310, 390)),
)

PLANTED: list[tuple[str, str, Plant]] = [
    ("an acknowledged record that Kafka lost", "acknowledged_is_there", without("sent", 0)),
    (
        "acknowledged bytes that changed",
        "acknowledged_is_there",
        instead("ops", 1, Op(number=1, step="ok", what="trigger", at_ms=990, place="triggers.normal/0/0", digest="00")),
    ),
    ("a task that never ended", "i1_one_end_each", without("told", 1)),
    ("a trigger that nobody saw", "i1_one_end_each", more("sent", sent(6, OTHER))),
    ("a task that ended twice", "i1_one_end_each", more("told", event(7, "good", "SUCCEEDED", "SUCCEEDED", batch=3))),
    ("a task without a trigger", "i1_one_end_each", more("told", event(7, "ghost", "", "EXPIRED"))),
    ("a copy that nobody counted", "i2_one_task_per_key", without("told", 2)),
    ("a copy counted twice", "i2_one_task_per_key", more("told", note(7, "duplicate", name_of("good"), f"{ORIGIN}/1"))),
    ("a conflict without a letter", "i2_one_task_per_key", without("letters", 0)),
    ("an effect done twice under one key", "i3_at_most_one_effect", more("calls", effect("good", 191, 192))),
    (
        "an effect done twice under two keys",
        "i3_at_most_one_effect",
        more("calls", effect("good", 191, 192, key="another")),
    ),
    ("a success without an effect", "i3_at_most_one_effect", without("calls", 0)),
    ("an effect that nobody ordered", "i3_at_most_one_effect", without("ordered", 0)),
    (
        "two calls at a time for one account",
        "i7_never_above_capacity",
        both(OTHER_RUNS, more("calls", effect("dead", 320, 380))),
    ),
    (
        "two attempts at a time for one account",
        "i7_never_above_capacity",
        both(OTHER_RUNS, instead("reported", 3, report(3, "dead", "failed", 350))),
    ),
    (
        "a call that the provider had no room for",
        "i7_never_above_capacity",
        more("calls", effect("dead", 210, 210, kind=Kind.REFUSED, status=429, reason="tokens")),
    ),
    ("a dispatch number used twice", "i9_only_the_newest_dispatch_ends_a_task", more("ordered", order(2, "good"))),
    (
        "an end by an old dispatch",
        "i9_only_the_newest_dispatch_ends_a_task",
        more("ordered", order(2, "good", number=2)),
    ),
    ("a success that nobody reported", "i9_only_the_newest_dispatch_ends_a_task", without("reported", 1)),
    (
        "an attempt too many, as counted",
        "i13_attempts",
        instead("told", 1, event(1, "good", "DISPATCHED", "RUNNING", "SUCCEEDED", batch=2, attempt=5)),
    ),
    (
        "an attempt too many, as started",
        "i13_attempts",
        more("reported", *(report(9 + n, "good", "started", 500 + n, number=2 + n) for n in range(4))),
    ),
    ("a dead task without a letter", "i14_letters", without("letters", 1)),
    ("a dead task with two letters", "i14_letters", more("letters", letter(3, SENT[3], "not_retryable"))),
    ("a letter for what did not die", "i14_letters", more("letters", letter(3, SENT[0], "not_retryable"))),
    ("poison without a letter", "i14_letters", without("letters", 2)),
    ("a letter with other bytes", "i14_letters", instead("letters", 2, letter(2, SENT[4], "x", value=b"junk2"))),
    ("a letter with another key", "i14_letters", instead("letters", 2, letter(2, SENT[4], "x", key=None))),
    (
        "a letter that lost a header",
        "i14_letters",
        instead("letters", 2, letter(2, SENT[4], "x", headers=letter(2, SENT[4], "x").headers[1:])),
    ),
    ("a batch that is missing", "i18_one_writer", without("booked", 0)),
    ("a batch written twice", "i18_one_writer", more("booked", batch(2, 6, 6))),
    ("an input read twice", "i18_one_writer", instead("booked", 1, batch(2, 2, 6))),
    ("an input that was skipped", "i18_one_writer", instead("booked", 1, batch(2, 4, 6))),
    ("an owner epoch that fell", "i18_one_writer", instead("booked", 0, batch(1, 0, 3, epoch=2))),
    (
        "a dispatch after the latest start",
        "i22_expired_is_never_dispatched",
        instead("ordered", 0, replace(order(0, "good"), dispatch=replace(order(0, "good").dispatch, firm=True, latest_start_ms=1_999))),
    ),
    (
        "lateness told before the end",
        "i22_expired_is_never_dispatched",
        instead("told", 0, event(0, "good", "", "READY", "DISPATCHED", missed_by_ms=3)),
    ),
    ("life after the end", "i25_paths", more("told", event(7, "good", "SUCCEEDED", "READY", batch=3))),
    ("a step that is missing", "i25_paths", instead("told", 1, event(1, "good", "RUNNING", "SUCCEEDED", batch=2))),
    ("a step that cannot be", "i25_paths", instead("told", 0, event(0, "good", "", "READY", "RUNNING", "DISPATCHED"))),
    ("a batch told twice", "i25_paths", instead("told", 1, event(1, "good", "DISPATCHED", "RUNNING", "SUCCEEDED", batch=1))),
    (
        "a soft task that expired",
        "ends_have_their_cause",
        instead("told", 6, event(6, "late", "", "EXPIRED", accepted_ms=1_005, dispatch_no=0)),
    ),
    (
        "a task that nobody cancelled",
        "ends_have_their_cause",
        instead("told", 4, event(4, "dead", "", "READY", "CANCELLED", accepted_ms=1_003)),
    ),
    (
        "an unknown outcome that killed a task that says retry",
        "ends_have_their_cause",
        both(
            instead("sent", 3, sent(3, replace(DEAD, on_unknown="retry"))),
            instead("told", 4, event(4, "dead", "", "READY", "DISPATCHED", "RUNNING", "DEAD", accepted_ms=1_003, reason="outcome_unknown")),
        ),
    ),
    ("a record of ours that nobody can read", "readable", lambda h: replace(h, unreadable=["journal/0/7: trailing bytes"])),
]  # fmt: skip


def test_a_history_in_which_all_holds_has_no_violation() -> None:
    assert check(whole(), RULES) == {each.__name__: [] for each in CHECKS}
    found = figures(whole(), RULES)
    assert (found["triggers"], found["tasks"], found["succeeded"], found["dead"], found["expired"]) == (
        6,
        3,
        1,
        1,
        1,
    )
    assert (found["duplicates"], found["conflicts"], found["rejected"], found["letters"]) == (1, 1, 1, 3)
    assert found["unacknowledged"] == 1


def test_another_task_beside_them_breaks_nothing() -> None:
    assert check(OTHER_RUNS(whole()), RULES) == {each.__name__: [] for each in CHECKS}


@pytest.mark.parametrize(("what", "name", "plant"), PLANTED, ids=[what for what, _, _ in PLANTED])
def test_a_planted_violation_is_caught(what: str, name: str, plant: Plant) -> None:
    assert check(plant(whole()), RULES)[name], what


def test_every_check_has_its_violations() -> None:
    assert {name for _, name, _ in PLANTED} == {each.__name__ for each in CHECKS}


def test_an_attempt_that_lost_its_lease_holds_nothing() -> None:
    """A frozen runner reports long after; by then others have its slot, rightly."""
    planted = both(OTHER_RUNS, instead("reported", 3, report(3, "dead", "failed", 350)))(whole())
    lapsed = event(4, "dead", "", "READY", "DISPATCHED", "RUNNING", "UNKNOWN", "DEAD", accepted_ms=1_003)
    assert check(instead("told", 4, lapsed)(planted), RULES)["i7_never_above_capacity"] == []
