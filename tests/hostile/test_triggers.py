"""Every hostile record of the corpus through the real shard: the code that was foreseen, the same bytes in the DLQ, and the next trigger is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from builders import CODEC, CONFIG, START_MS, Bench, driver, header, letters, trigger
from hostile import corpus

from laxity.schemas import limits
from laxity.schemas.records import Trigger
from laxity.schemas.timing import ManualClock
from laxity.streams.effects import Record
from laxity.streams.testing import TopologyTestDriver

TOPICS = {
    "triggers.normal",
    "dlq.normal",
    "events.normal",
    "dispatch.default",
    "outcomes",
    "state",
    "keys",
    "journal",
    "usage",
}
HEADERS = (("b", bytes(range(256))), ("n", None))


def shard() -> TopologyTestDriver:
    return driver(clock=ManualClock(START_MS))


def pipe(
    d: TopologyTestDriver,
    raw: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] = HEADERS,
    key: bytes | None = b"\xfe",
) -> Record:
    return d.send("triggers.normal", raw, key=key, partition=0, headers=headers)


def assert_refused(d: TopologyTestDriver, sent: Record, reason: str, code: str = "") -> None:
    """One letter with everything as it was; after it a good trigger is carried out."""
    (letter,) = d.read("dlq.normal")
    assert (letter.key, letter.value) == (sent.key, sent.value)
    assert tuple(letter.headers[: len(sent.headers)]) == tuple(sent.headers)
    ours = letter.headers[len(sent.headers) :]
    assert len(ours) == len({name for name, _ in ours}) == 9, "ours come last, each once"
    assert header(letter, "reason") == reason
    assert code.replace("_", " ") in header(letter, "message")
    assert len(header(letter, "message")) <= 1_024
    place = (header(letter, "topic"), header(letter, "partition"), header(letter, "offset"))
    assert place == ("laxity.triggers.normal", "0", str(sent.offset))
    (refused,) = [e for e in d.events() if e.kind == "rejected"]
    assert (refused.code, refused.state) == (reason, "DEAD")
    assert_goes_on(d)


def assert_goes_on(d: TopologyTestDriver) -> None:
    d.pipe("normal", trigger("after all"))
    d.work()
    assert [e.state for e in d.events() if e.key == "after all"][-1] == "SUCCEEDED"


@pytest.mark.parametrize("name", corpus.BYTES)
def test_bytes(name: str) -> None:
    raw, reason = corpus.BYTES[name]
    d = shard()
    assert_refused(d, pipe(d, raw), reason)


def test_cut_at_every_byte() -> None:
    d = shard()
    cuts = [corpus.GOOD[:end] for end in range(len(corpus.GOOD))]
    for cut in cuts:
        pipe(d, cut)
    found = d.read("dlq.normal")
    assert [letter.value for letter in found] == cuts
    assert {header(letter, "reason") for letter in found} == {"empty", "truncated"}
    assert_goes_on(d)


def test_every_flipped_bit_ends_in_a_task_or_in_a_letter() -> None:
    """Which of the two is the decoder's business; nothing is lost, and nothing stops the shard."""
    d = shard()
    flips = []
    for position in range(len(corpus.GOOD) * 8):
        flipped = bytearray(corpus.GOOD)
        flipped[position // 8] ^= 1 << position % 8
        flips.append(bytes(flipped))
        pipe(d, flips[-1])
    d.work()
    ended = {(e.task_id, e.generation) for e in d.events() if e.kind == "transitions" and e.state != "READY"}
    told = [e for e in d.events() if e.kind in {"duplicate", "rejected", "conflict"}]
    assert len(ended) + len(told) == len(flips), "each flip has one end"
    refused = [e for e in told if e.kind != "duplicate"]
    assert len(d.read("dlq.normal")) == len(refused) > len(flips) // 3
    assert_goes_on(d)


@pytest.mark.parametrize("name", corpus.VALUES)
def test_values(name: str) -> None:
    case = corpus.VALUES[name]
    d = shard()
    sent = pipe(d, CODEC.encode(trigger(**case.fields)), key=b"r")
    if case.code:
        assert_refused(d, sent, "invalid", "" if name == "1,001 dependencies" else case.code)
    else:
        d.advance(1_000)  # a bucket is empty at first
        d.work()
        assert (d.read("dlq.normal"), d.events()[-1].state) == ([], "SUCCEEDED")


@pytest.mark.parametrize("name", corpus.NAMES)
@pytest.mark.parametrize("field", ["tenant", "type", "run_id", "workflow", "key"])
def test_names(name: str, field: str) -> None:
    text, is_name, is_key = corpus.NAMES[name]
    fits = is_key if field == "key" else is_name
    d = shard()
    sent = pipe(d, CODEC.encode(trigger(**{"key": "hostile", field: text})))
    if fits:
        d.work()
        assert (d.read("dlq.normal"), d.events()[-1].state) == ([], "SUCCEEDED")
        assert getattr(d.events()[-1], "type" if field == "workflow" else field) in {text, "work"}
    else:
        assert_refused(d, sent, "invalid")
    written = {topic for topic, _ in d.log.records}
    assert written <= TOPICS, "no text of a record names a topic"


@pytest.mark.parametrize("name", corpus.HEADERS)
def test_headers(name: str) -> None:
    headers, code = corpus.HEADERS[name]
    d = shard()
    sent = pipe(d, CODEC.encode(trigger()), headers)
    if code:
        assert_refused(d, sent, "invalid", code)
    else:
        d.work()
        assert (d.read("dlq.normal"), d.events()[-1].state) == ([], "SUCCEEDED")


def test_forged_headers_of_ours_stand_before_ours() -> None:
    d = shard()
    sent = pipe(d, b"poison", corpus.HEADERS["ours forged twice"][0])
    assert_refused(d, sent, "not_framed")


@pytest.mark.parametrize("name", corpus.KEYS)
@pytest.mark.parametrize("raw", [CODEC.encode(trigger()), b"poison"], ids=["good", "poison"])
def test_record_keys(name: str, raw: bytes) -> None:
    d = shard()
    sent = pipe(d, raw, key=corpus.KEYS[name])
    if raw == b"poison":
        assert_refused(d, sent, "not_framed")
    elif len(sent.key or b"") + len(raw) > limits.TRIGGER_RECORD_BYTES_MAX:
        assert_refused(d, sent, "invalid")
    else:
        d.work()
        assert d.events()[-1].state == "SUCCEEDED"


def test_the_largest_trigger_and_one_byte_more() -> None:
    d = shard()
    largest = corpus.largest()
    d.pipe("normal", largest)
    d.work()
    assert (d.read("dlq.normal"), d.events()[-1].state) == ([], "SUCCEEDED")
    more = Trigger(type=largest.type, key="larger!", payload=largest.payload + b"\0")
    assert_refused(d, pipe(d, CODEC.encode(more)), "invalid", "too_large")


@pytest.mark.parametrize("stamp", [-(2**63), -1, 0, 2**53, 2**63 - 1])
@pytest.mark.parametrize("fields", [{}, {"deadline_ms": 1, "firm": True}, {"not_before_ms": 2**53}])
def test_stamps_that_no_broker_gives(stamp: int, fields: dict[str, Any]) -> None:
    b = Bench(CONFIG)
    b.step(b.record("triggers.low", trigger(**fields), timestamp_ms=stamp))
    b.rest()
    effects = b.step(b.trigger("after all"), woken=("fleet.default",))
    assert b.live("after all").state == "DISPATCHED"
    assert not letters(effects)


def test_what_the_host_could_not_read_is_a_pointer_to_it() -> None:
    b = Bench(CONFIG)
    why = "offsets 7 to 9: bad checksum"
    for topic, dlq in (
        ("triggers.low", "dlq.low"),
        ("outcomes", "dlq.internal"),
        ("control", "dlq.internal"),
    ):
        effects = b.step(b.record(topic, None, key=None, timestamp_ms=-1, problem=why, offset=7))
        (letter,) = letters(effects)
        assert (letter.topic, letter.key, letter.value) == (dlq, None, None)
        assert (header(letter, "reason"), header(letter, "offset")) == ("unreadable", "7")
        assert header(letter, "message") == why
