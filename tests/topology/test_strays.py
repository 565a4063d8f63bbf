"""Foreign producers, other partitioners, offsets set back: positions are position, keys are memory, marks are both."""

from __future__ import annotations

import pytest
from builders import (
    CODEC,
    CONFIG,
    Bench,
    driver,
    events,
    grant_all,
    journal,
    letters,
    silent,
    task_id,
    trigger,
)

from laxity.schemas.identity import run_id_of, shard_of
from laxity.schemas.records import Link
from laxity.streams.runtime.sources import INPUTS
from laxity.streams.simulator.host import ShardHost
from laxity.streams.testing import TopologyTestDriver


def home(key: str, shards: int) -> int:
    return shard_of(run_id_of("default", "", key), shards)


@pytest.mark.parametrize("key", [b"foreign", None, b""])
def test_a_record_on_the_wrong_partition_is_rehomed_once_and_runs(key: bytes | None) -> None:
    d = driver(shards=3)
    for name in ("a", "b", "c", "d"):
        wrong = (home(name, 3) + 1) % 3
        d.log.append(
            ("triggers.high", wrong, key, CODEC.encode(trigger(name)), (("h", b"\xff"),)), d.clock.now_ms()
        )
    d.settle()
    d.work()
    links = d.read("links")
    assert [link.kind for link in links] == ["stray"] * 4
    assert {link.original.value for link in links} == {CODEC.encode(trigger(n)) for n in "abcd"}
    assert all(link.original.headers[0].value == b"\xff" for link in links)
    assert len([e for e in d.events() if e.kind == "rehomed"]) == 4
    ends = [e for e in d.events() if e.state == "SUCCEEDED"]
    assert {(e.key, e.shard, e.tier) for e in ends} == {(n, home(n, 3), "high") for n in "abcd"}


def test_a_foreign_key_on_the_right_partition_just_runs() -> None:
    d = driver(shards=3)
    d.pipe("normal", trigger("a"), key=b"whatever", partition=home("a", 3))
    d.work()
    assert d.read("links") == []
    assert d.events()[-1].state == "SUCCEEDED"


def test_the_dead_letter_of_a_stray_names_where_it_came_from() -> None:
    d = driver(shards=2)
    wrong = 1 - home("a", 2)
    d.pipe("low", trigger("a", value=-1), partition=wrong)
    (letter,) = d.read("dlq.low")
    assert letter.partition == home("a", 2)
    assert dict(letter.headers)["laxity.error.partition"] == str(wrong).encode()
    assert dict(letter.headers)["laxity.error.topic"] == b"laxity.triggers.low"


def rewound(d: TopologyTestDriver, to: int = 0) -> None:
    """An operator sets every offset back and starts the shards again."""
    for i, disk in enumerate(d.disks):
        for topic in INPUTS:
            d.log.committed[topic, i] = to
        d.shards[i] = ShardHost(d.world, i, disk, d.ledger)
        d.shards[i].start()
    d.settle()


def history(d: TopologyTestDriver) -> None:
    """Successes, failures, conflicts, junk, invalid ones, a cancel, a keyless one."""
    for i in range(6):
        d.pipe("normal", trigger(f"k{i}"))
    d.work()
    d.pipe("normal", trigger("k0", payload=b"conflict"))
    d.pipe("low", b"junk", key=b"j")
    d.pipe("low", trigger("invalid", value=-1))
    d.pipe("low", trigger("")) if len(d.shards) == 1 else None
    d.work()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_reset_reads_all_again_counts_duplicates_and_does_nothing(shards: int) -> None:
    d = driver(shards=shards)
    history(d)
    before = {
        t: len(d.log.all(t)) for t in ("dlq.normal", "dlq.low", "dispatch.default", "outcomes", "usage")
    }
    effects, told = list(d.provider.effects), len(d.events())
    published = sum(len(d.log.all(f"triggers.{tier}")) for tier in ("normal", "low"))
    rewound(d)
    d.work()
    assert {t: len(d.log.all(t)) for t in before} == before
    assert d.provider.effects == effects
    assert len([e for e in d.events() if e.kind == "duplicate"]) == published
    assert len(d.events()) == told + published, "nothing else was told"
    for i, shard in enumerate(d.shards):
        for topic in INPUTS:
            assert d.log.committed[topic, i] == d.log.end(topic, i) or d.log.end(topic, i) == 0
            assert shard.core.mark(topic) == d.log.end(topic, i)


def test_strays_read_again_are_duplicates_at_home() -> None:
    d = driver(shards=2)
    for name in "abcd":
        d.pipe("high", trigger(name), partition=1 - home(name, 2))
    d.work()
    before, effects = len(d.read("dispatch.default")), list(d.provider.effects)
    rewound(d)
    d.work()
    assert (len(d.read("dispatch.default")), d.provider.effects) == (before, effects)
    assert [e.shard for e in d.events() if e.kind == "duplicate" and e.key == "a"] == [home("a", 2)]
    assert len([e for e in d.events() if e.kind == "duplicate"]) == 4
    assert [link.reread for link in d.read("links")].count(True) == 4


def test_what_is_published_during_a_reset_runs() -> None:
    d = driver()
    history(d)
    d.log.append(("triggers.normal", 0, b"x", CODEC.encode(trigger("new")), ()), d.clock.now_ms())
    rewound(d)
    d.work()
    assert [e.state for e in d.events() if e.task_id == task_id("new")][-1] == "SUCCEEDED"


def test_an_old_cancel_read_again_does_not_cancel() -> None:
    b = Bench()
    b.step(b.trigger(), say=silent)
    old = b.command("cancel", task_id=task_id("later"))
    assert len(events(b.step(old), "refused_command")) == 1
    b.dispatched("later")
    b.step(old)
    assert b.live("later").state == "DISPATCHED"
    assert b.core.mark("control") == 1


@pytest.mark.parametrize("kind", ["succeeded", "failed", "yielded", "bounced", "unknown"])
def test_old_outcomes_and_links_read_again_do_nothing(kind: str) -> None:
    b = Bench()
    b.dispatched()
    record = b.outcome(kind)
    link = b.record("links", Link(kind="edge", from_shard=1))
    b.step(record, link, say=silent)
    state = b.row()
    effects = b.step(record, link, say=silent)
    assert not events(effects)
    assert not letters(effects)
    assert b.row() == state


def test_a_trigger_refused_once_stays_refused_when_the_rules_change() -> None:
    """It was told as dead: a reset must not bring it to life. A new trigger under the key may."""
    b = Bench("")
    record = b.trigger(demands={"llm": 1})
    assert letters(b.step(record))
    after = b.restarted(CONFIG)
    assert [e.kind for e in events(after.step(record))] == ["duplicate"]
    assert after.row() is None
    after.step(after.trigger(demands={"llm": 1}))
    assert after.live().state == "DISPATCHED"


def test_a_topic_made_anew_counts_from_zero_again() -> None:
    """The mark of the old one must not make its first records look as if they had been read."""
    old = Bench(topic_ids={"triggers.normal": "A", "outcomes": "A"})
    for i in range(3):
        old.step(old.trigger(f"old-{i}"), say=silent)
    new = Bench(store=old.store, key_store=old.keys, topic_ids={"triggers.normal": "B", "outcomes": "A"})
    effects = new.step(new.record("triggers.normal", b"junk"), new.trigger("new"))
    assert len(letters(effects)) == 1
    assert new.live("new").state == "DISPATCHED"
    assert (new.core.mark("triggers.normal"), new.core.topic_id("triggers.normal")) == (2, "B")


def test_marks_move_beyond_the_last_record_and_never_back() -> None:
    b = Bench()
    records = [b.trigger(f"k{i}") for i in range(4)]
    b.step(*records)
    assert b.core.mark("triggers.normal") == 4
    b.step(records[1], say=grant_all)
    assert b.core.mark("triggers.normal") == 4
    (moved,) = journal(b.history[-1]).inputs
    assert (moved.first, moved.next) == (1, 2), "the journal says what was really read"
