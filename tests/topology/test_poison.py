"""No bytes on any input stop a shard: they become a dead letter in the same batch, and the next record flows."""

from __future__ import annotations

from random import Random  # noqa: TID251 - the seed is the argument

import pytest
from builders import CODEC, Bench, driver, events, header, letters, original, trigger

from laxity.schemas.records import Command, Link, Outcome
from laxity.schemas.topics import TIERS, catalogue
from laxity.streams.effects import Effects

GOOD = CODEC.encode(trigger())
POISON: dict[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "empty"),
    "nothing": (b"", "empty"),
    "json": (b'{"type": "work"}', "not_framed"),
    "magic alone": (b"\0", "truncated"),
    "unknown id": (b"\0\xff\xff\xff\xff" + GOOD[5:], "schema_unknown"),
    "another record": (CODEC.encode(Link(kind="stray", from_shard=0)), "wrong_schema"),
    "cut": (GOOD[:-3], "truncated"),
    "trailing": (GOOD + b"\0", "trailing_bytes"),
    "bad utf-8": (GOOD.replace(b"work", b"w\xff\xfek"), "bad_utf8"),
}


@pytest.mark.parametrize("name", POISON)
@pytest.mark.parametrize("tier", ["critical", "background"])
def test_undecodable_triggers(name: str, tier: str) -> None:
    raw, reason = POISON[name]
    d = driver()
    headers = (("b", bytes(range(256))), ("n", None))
    record = d.pipe(tier, raw, key=b"\xfe", partition=0, headers=headers)  # type: ignore[arg-type]
    d.pipe(tier, trigger("next"))
    d.work()
    (letter,) = d.read(f"dlq.{tier}")
    assert (letter.key, letter.value) == (b"\xfe", raw)
    assert letter.headers[:2] == headers
    assert header(letter, "reason") == reason
    assert (header(letter, "topic"), header(letter, "offset")) == (
        f"laxity.triggers.{tier}",
        str(record.offset),
    )
    (refused,) = [e for e in d.events() if e.kind == "rejected"]
    assert (refused.code, refused.state, refused.tier) == (reason, "DEAD", tier)
    assert d.events()[-1].state == "SUCCEEDED"


@pytest.mark.parametrize("topic", ["control", "outcomes", "links"])
@pytest.mark.parametrize("name", POISON)
def test_undecodable_internal_records(topic: str, name: str) -> None:
    b = Bench()
    raw = POISON[name][0] if name != "another record" else GOOD
    if topic == "links" and name == "cut":
        raw = CODEC.encode(Link(kind="stray", from_shard=0))[:-1]
    effects = b.step(b.record(topic, raw, key=None), b.trigger())
    (letter,) = letters(effects)
    assert (letter.topic, letter.value, letter.key) == ("dlq.internal", raw, None)
    assert header(letter, "topic") == f"laxity.{topic}"
    assert b.live().state == "DISPATCHED"


def test_links_that_carry_no_trigger() -> None:
    b = Bench()
    stray = original(b.record("nonsense", GOOD))
    records = [
        b.record("links", Link(kind="stray", from_shard=1)),
        b.record("links", Link(kind="stray", from_shard=1, original=stray)),
        b.record("links", Link(kind="edge", from_shard=1, original=original(b.trigger("x")))),
    ]
    effects = b.step(*records)
    assert [(x.topic, header(x, "reason")) for x in letters(effects)] == [("dlq.internal", "invalid")] * 3
    assert b.row("x") is None


def test_an_outcome_of_no_known_kind_is_a_letter_not_a_silence() -> None:
    b = Bench()
    b.dispatched()
    effects = b.step(b.outcome("succeded"), say=lambda _: None)
    assert header(letters(effects, "internal")[0], "reason") == "invalid"
    assert "succeded" in header(letters(effects)[0], "message")
    assert b.live().state == "DISPATCHED"


def test_a_dispatch_that_no_runner_could_read_is_a_letter() -> None:
    b = Bench()
    raw = original(b.record("dispatch.default", b"\x00junk"))
    effects = b.step(
        b.record("outcomes", Outcome(kind="failed", task_id="", generation=0, dispatch_no=0, original=raw))
    )
    (letter,) = letters(effects, "internal")
    assert (letter.value, header(letter, "reason")) == (b"\x00junk", "poison")
    assert header(letter, "topic") == "laxity.dispatch.default"


HOSTILE = ["\u202eevil", "a\r\nb", "{x}", "../../etc", "__consumer_offsets", "💥" * 40, '"]] redis.call("FLUSHALL")', "<img onerror=x>", "%s%n"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_keys_are_only_keys(text: str) -> None:
    d = driver()
    d.pipe("normal", trigger(text, demands={f"account:{text}": 1}))
    d.work()
    assert d.events()[-1].state == "SUCCEEDED"
    assert d.events()[-1].key == text
    assert d.ledger.reserved(f"account:{text}") == 0


@pytest.mark.parametrize("text", ["a\0b", "x" * 513])
def test_keys_beyond_the_rules_are_refused(text: str) -> None:
    b = Bench()
    assert header(letters(b.step(b.trigger(text)))[0], "reason") == "invalid"


@pytest.mark.parametrize("tenant", ["^.*", "..", "a:b", "a/b", "ten ant", "x" * 129, ""])
def test_hostile_tenants_are_refused(tenant: str) -> None:
    b = Bench()
    effects = b.step(b.trigger(tenant=tenant))
    assert header(letters(effects)[0], "reason") == "invalid"
    assert {o.topic for o in effects.outputs} == {"dlq.normal", "events.normal", "journal"}


def sizes(effects: Effects) -> dict[str, int]:
    return {
        o.topic: max(len(o.value or b"") + len(o.key or b""), 0)
        + sum(len(v or b"") + len(n) for n, v in o.headers)
        for o in effects.outputs
    }


def test_whatever_is_refused_fits_the_topic_it_is_written_to() -> None:
    """A record that the broker refuses would stop the shard for good."""
    limits = {t.name: t.bytes_max for t in catalogue({"default": 1})}
    b = Bench("", shards=2)
    big = "r" * 1_000_000
    strays = [b.trigger(run_id=f"{big}{i}") for i in range(4)]  # half of them belong elsewhere
    commands = [
        b.command("x" * 1_000_000),
        b.command("cancel", task_id="y" * 1_000_000),
        b.command("cancel", tenant="z" * 1_000_000),
    ]
    many = b.trigger("many", demands={f"nothing-{i}" + "n" * 50_000: 1 for i in range(16)})
    outcome = b.record(
        "outcomes", Outcome(kind="succeeded", task_id="t" * 1_000_000, generation=0, dispatch_no=1)
    )
    late = b.record(
        "outcomes", Outcome(kind="failed", task_id="t", generation=0, dispatch_no=1, code="c" * 1_000_000)
    )
    for record in (*strays, *commands, many, outcome, late):
        effects = b.step(record)
        assert len(effects.outputs) > 1, "something was said"
        for topic, size in sizes(effects).items():
            assert size <= limits[topic], f"{size} bytes for {topic}"


def test_random_bytes_on_every_input() -> None:
    random = Random(20_261_121)
    b = Bench()
    topics = ["control", "links", "outcomes", *(f"triggers.{tier}" for tier in TIERS)]
    samples = [GOOD, CODEC.encode(Command(kind="cancel", command_id="c")), CODEC.encode(Link(kind="stray", from_shard=0)), CODEC.encode(Outcome(kind="started", task_id="t", generation=0, dispatch_no=1))]  # fmt: skip
    for _ in range(60):
        records = []
        for topic in topics:
            raw = bytearray(random.choice(samples))
            for _ in range(random.randrange(1, 4)):
                raw[random.randrange(len(raw))] = random.randrange(256)
            records.append(b.record(topic, bytes(raw[: random.randrange(len(raw) + 1)])))
        b.step(*records)
        assert b.core.mark("outcomes") == b.ends["outcomes"]
    b.step(b.trigger("after all"), woken=("fleet.default",))
    assert events(b.history[-1])
