"""Dead letters: the original bytes and headers, then ours, in the order of the contract."""

from __future__ import annotations

import json

import pytest
from builders import Bench, header, row

from laxity.schemas.records import AttemptNote, Header, Original
from laxity.streams import letters

OURS = ("reason", "message", "topic", "partition", "offset", "timestamp", "attempts", "generation", "history")
RAW = bytes(range(256))


def origin() -> Original:
    return Original(
        topic="laxity.triggers.low",
        partition=3,
        offset=17,
        timestamp_ms=1_700_000_000_123,
        key=b"\xff\x00",
        value=RAW,
        headers=[
            Header(name="a", value=RAW),
            Header(name="a", value=None),
            Header(name="laxity.error.reason", value=b"x"),
        ],
    )


def note(at: int, **fields: object) -> AttemptNote:
    base: dict[str, object] = {
        "attempt": at,
        "dispatch_no": at,
        "runner": "r",
        "started_ms": 1,
        "ended_ms": 2,
        "code": "boom",
        "message": "m",
    }
    return AttemptNote(**(base | fields))  # type: ignore[arg-type]


def test_headers_are_the_original_ones_then_ours_in_order() -> None:
    place = Bench().core._place
    task = row(tier=3, attempt=2, generation=1, history=[note(1), note(2, message="the last")])
    letter = letters.of_task(place, origin(), task, "attempts_exhausted", "")
    assert letter.headers[:3] == (("a", RAW), ("a", None), ("laxity.error.reason", b"x"))
    ours = letter.headers[3:]
    assert [name for name, _ in ours] == [f"laxity.error.{name}" for name in OURS]
    assert [value for _, value in ours[:-1]] == [
        b"attempts_exhausted", b"the last", b"laxity.triggers.low", b"3", b"17", b"1700000000123", b"2", b"1",
    ]  # fmt: skip
    assert [n["attempt"] for n in json.loads(ours[-1][1] or b"")] == [1, 2]
    assert (letter.topic, letter.partition) == ("dlq.low", place.shard)
    assert (letter.key, letter.value, letter.schema) == (b"\xff\x00", RAW, None)


def test_a_record_that_is_no_trigger_goes_to_the_internal_letters() -> None:
    letter = letters.of_record(Bench().core._place, None, origin(), "trailing_bytes", "4 bytes")
    assert letter.topic == "dlq.internal"
    assert [header(letter, n) for n in ("attempts", "generation", "history")] == ["0", "0", "[]"]


@pytest.mark.parametrize("size", [1, 1_000, 30_000, 70_000])
def test_history_is_json_within_its_limit_and_keeps_the_newest(size: int) -> None:
    notes = [note(i, message="é" * size) for i in range(1, 33)]
    text = letters.history_text(notes)
    assert len(text.encode()) <= letters.HISTORY_BYTES_MAX
    kept = [n["attempt"] for n in json.loads(text)]
    assert kept == list(range(33 - len(kept), 33))
    if size <= 300:
        assert len(kept) == 32


def test_a_message_is_cut_and_lone_surrogates_do_no_harm() -> None:
    letter = letters.of_record(Bench().core._place, 2, origin(), "invalid", "\ud800" + "x" * 10_000)
    assert header(letter, "message") == "?" + "x" * (letters.MESSAGE_CHARS_MAX - 1)
