"""Forged, stale and hostile records on control, outcomes and links: a letter or a remark, never a change of somebody else's task, never a stop."""

from __future__ import annotations

from dataclasses import replace
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Any

import pytest
from builders import (
    CODEC,
    START_MS,
    Bench,
    events,
    header,
    letters,
    original,
    outputs,
    silent,
    task_id,
    trigger,
)
from hostile import corpus
from hostile.mutants import mutated_record

from laxity.schemas import limits
from laxity.schemas.records import Command, Header, Link, Original, Outcome, Usage
from laxity.schemas.topics import TIERS, catalogue
from laxity.streams.effects import Effects

TOPICS = {t.name: t for t in catalogue({"default": 1})}
RECORDS: dict[str, Any] = {
    "control": Command(kind="cancel", command_id="c"),
    "outcomes": Outcome(kind="started", task_id="t", generation=0, dispatch_no=1),
    "links": Link(kind="stray", from_shard=0),
}


def assert_fits(effects: Effects) -> None:
    """A record that the broker refuses would stop the shard for good."""
    for o in effects.outputs:
        size = len(o.key or b"") + len(o.value or b"") + sum(len(n) + len(v or b"") + 8 for n, v in o.headers)
        assert size + 512 <= TOPICS[o.topic].bytes_max, f"{size} bytes for {o.topic}"


NOT_THEIRS = {
    "schema of another record",
    "more than any record",
}  # it is one of theirs; no topic of theirs would take it


@pytest.mark.parametrize("topic", RECORDS)
@pytest.mark.parametrize("name", sorted(corpus.BYTES.keys() - NOT_THEIRS))
def test_bytes(topic: str, name: str) -> None:
    raw, reason = corpus.BYTES[name]
    if raw is not None and raw[:5] == corpus.FRAME:  # its trigger's schema is no schema of theirs
        raw = CODEC.encode(RECORDS[topic])[:5] + raw[5:]
        reason = ""
    b = Bench()
    b.dispatched()
    effects = b.step(b.record(topic, raw, key=b"\xff"), b.trigger("next"), say=silent)
    (letter,) = letters(effects)
    assert (letter.topic, letter.key, letter.value) == ("dlq.internal", b"\xff", raw)
    assert header(letter, "reason") == reason or not reason
    assert b.live().state == "DISPATCHED"
    assert_fits(effects)


@pytest.mark.parametrize(
    "kind", ["started", "progress", "succeeded", "failed", "yielded", "unknown", "bounced"]
)
@pytest.mark.parametrize("change", [{"dispatch_no": 2}, {"dispatch_no": 2**62}, {"dispatch_no": 0}, {"generation": 1}, {"generation": -1}])  # fmt: skip
def test_an_outcome_of_another_dispatch_changes_nothing(kind: str, change: dict[str, Any]) -> None:
    b = Bench()
    b.dispatched()
    before = b.live()
    effects = b.step(b.outcome(kind, **change), say=silent)
    assert b.live() == before
    assert [e.kind for e in events(effects)] in ([], ["late_completion"])


@pytest.mark.parametrize("kind", ["started", "succeeded", "failed", "unknown", "bounced"])
def test_an_outcome_of_a_task_that_is_not_here_changes_nothing(kind: str) -> None:
    b = Bench()
    b.dispatched()
    before = b.live()
    for other in (task_id("k", tenant="another"), task_id("elsewhere"), "", "x", "t:0:1", "\x1b[2J"):
        effects = b.step(b.outcome(kind, task_id=other), say=silent)
        assert not [e for e in events(effects) if e.kind == "transitions"]
    assert b.live() == before


NUMBERS = (-(2**63), -1, 0, 2**53, 2**53 + 1, 2**62, 2**63 - 1)


@pytest.mark.parametrize(
    "kind", ["started", "progress", "succeeded", "failed", "yielded", "unknown", "bounced"]
)
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_an_outcome(kind: str, number: int) -> None:
    b = Bench()
    b.dispatched(demands={"llm": 10})
    small = max(-(2**31), min(number, 2**31 - 1))
    report = b.outcome(
        kind, at_ms=number, attempt=small, retry_after_ms=number, retryable=True,
        used={"llm": number, "NaN": number}, usage={"tokens": number, "1e400": number},
    )  # fmt: skip
    assert_fits(b.step(report))
    b.rest()
    b.now_ms += 10_000
    b.step(b.trigger("next"), woken=("fleet.default",))
    assert b.live("next").state == "DISPATCHED"


def test_reports_that_are_as_large_as_they_may_be_fit_what_is_told_of_them() -> None:
    """500 tasks end in one batch, each with as many units of use as are kept, under the longest names."""
    b = Bench()
    names = [f"k{n}" for n in range(500)]
    for first in range(0, 500, 100):
        b.step(*(b.trigger(name, tenant="t" * 128, type="y" * 128) for name in names[first : first + 100]))
        b.rest()
    reports = []
    for name in names:
        units = {f"{name}-{n}-".ljust(321, "u"): 2**53 - 1 for n in range(64)}
        task = task_id(name, tenant="t" * 128)
        row = b.core._tables.task(task)
        assert row is not None
        reports.append(
            b.record(
                "outcomes",
                Outcome(
                    kind="succeeded", task_id=task, generation=0, dispatch_no=row.dispatch_no, usage=units
                ),
            )
        )
    b.core._tables.drop()
    effects = b.step(*reports)
    assert_fits(effects)
    told = outputs(effects, "usage", Usage)
    assert [u.sequence for u in told] == list(range(told[0].sequence, told[0].sequence + len(told)))
    assert len(told) > 10
    assert sum(len(u.entries) for u in told) == 500 * 64 + 2, "no sum is lost: the units, tasks and attempts"
    b.step(*(b.trigger("next"),))
    assert b.history[-1]


def forged(**fields: Any) -> Original:
    base = Original(
        topic="laxity.triggers.normal", partition=0, offset=5, timestamp_ms=START_MS, key=b"k", value=CODEC.encode(trigger("forged"))
    )  # fmt: skip
    return replace(base, **fields)


ORIGINALS: dict[str, Original] = {
    "no bytes": forged(value=None),
    "poison": forged(value=b"\0"),
    "time -2^63": forged(timestamp_ms=-(2**63)),
    "time 2^63-1": forged(timestamp_ms=2**63 - 1),
    "offset -2^63": forged(offset=-(2**63), value=CODEC.encode(trigger(""))),
    "partition -1": forged(partition=-(2**31), value=CODEC.encode(trigger(""))),
    "no topic": forged(topic=""),
    "another topic": forged(topic="laxity.state"),
    "Kafka's topic": forged(topic="__consumer_offsets"),
    "long topic": forged(topic="laxity.triggers.normal" * 10_000),
    "no tier": forged(topic="laxity.triggers."),
    "large key": forged(key=bytes(2 * limits.MIB - 5_000)),
    "large value": forged(value=bytes(2 * limits.MIB - 5_000)),
    "large trigger": forged(value=CODEC.encode(trigger("forged", payload=bytes(limits.MIB)))),
    "large headers": forged(headers=(Header(name="h" * limits.MIB, value=b""),)),
    "many headers": forged(headers=(Header(name="", value=None),) * 20_000),
    "hostile tenant": forged(value=CODEC.encode(trigger("forged", tenant="^.*"))),
    "firm and long ago": forged(
        timestamp_ms=-(2**63), value=CODEC.encode(trigger("forged", deadline_ms=1, firm=True))
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_link_with_a_forged_record(name: str) -> None:
    b = Bench()
    effects = b.step(b.record("links", Link(kind="stray", from_shard=-1, original=ORIGINALS[name])))
    assert_fits(effects)
    b.rest()
    b.now_ms += 10_000
    b.step(b.trigger("next"), woken=("fleet.default",))
    assert b.live("next").state == "DISPATCHED"


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("generation", [1, 2, -1, 2**31 - 1])
def test_a_redrive_with_a_forged_record(name: str, generation: int) -> None:
    b = Bench()
    b.dispatched("forged")
    b.step(b.outcome("failed", "forged", code="x", retryable=False))
    b.rest()
    command = Command(kind="redrive", command_id="c", task_id=task_id("forged"), generation=generation, original=ORIGINALS[name])  # fmt: skip
    effects = b.step(b.record("control", command), say=silent)
    assert_fits(effects)
    refused = [e for e in events(effects) if e.kind == "refused_command"]
    assert bool(refused) or (generation == 1 and name in {"firm and long ago", "time -2^63", "time 2^63-1", "another topic", "no topic", "no tier", "Kafka's topic", "long topic", "offset -2^63", "partition -1"})  # fmt: skip
    b.rest()
    b.now_ms += 10_000
    b.step(b.trigger("next"), woken=("fleet.default",))
    assert b.live("next").state == "DISPATCHED"


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_undecodable_dispatch_that_is_forged(name: str) -> None:
    b = Bench()
    report = Outcome(kind="failed", task_id="", generation=0, dispatch_no=0, original=ORIGINALS[name])
    effects = b.step(b.record("outcomes", report))
    (letter,) = letters(effects, "internal")
    assert (letter.key, letter.value) == (ORIGINALS[name].key, ORIGINALS[name].value)
    assert_fits(effects)


@pytest.mark.parametrize(
    "kind", ["cancel", "redrive", "pause", "drop everything", "", "\x1b[2J", "x" * 100_000]
)
@pytest.mark.parametrize("task", ["", "x" * 100_000, "\0", "../..", "t:0:1", task_id("not here")])
def test_commands_for_what_is_not_here(kind: str, task: str) -> None:
    b = Bench()
    b.dispatched()
    before = b.live()
    command = Command(kind=kind, command_id="", task_id=task, tenant="^.*" * 1_000, generation=-1)
    effects = b.step(b.record("control", command), say=silent)
    assert [e.kind for e in events(effects)] == ["refused_command"]
    assert b.live() == before
    assert_fits(effects)


@pytest.mark.parametrize("seed", range(8))
def test_hostile_values_everywhere_stop_nothing(seed: int) -> None:
    """Records that decode, with every field anything that its type allows; live tasks among them as targets."""
    random = Random(f"hostile {seed}")
    b = Bench()
    for n in range(4):
        b.dispatched(f"k{n}")
    inputs = [*RECORDS, *(f"triggers.{tier}" for tier in TIERS)]
    for _ in range(40):
        records = []
        for topic in inputs:
            sample = RECORDS.get(topic) or trigger(f"k{random.randrange(6)}")
            value = mutated_record(random, sample)
            if topic != "links" and hasattr(value, "task_id") and random.random() < 0.7:
                row = b.row(f"k{random.randrange(4)}")
                value = replace(value, task_id=task_id(f"k{random.randrange(4)}"))
                if row is not None and topic == "outcomes":
                    value = replace(value, generation=row.generation, dispatch_no=row.dispatch_no)
            if getattr(value, "original", None) is not None and random.random() < 0.5:
                value = replace(value, original=original(b.trigger(f"k{random.randrange(4)}")))
            records.append(b.record(topic, value, timestamp_ms=b.now_ms))
        effects = b.step(*records, end=b.ends["outcomes"])
        assert_fits(effects)
        b.now_ms += 1_000
    b.step(b.trigger("after all", "critical"), woken=("fleet.default",))
    b.rest()
    assert b.row("after all") is not None
