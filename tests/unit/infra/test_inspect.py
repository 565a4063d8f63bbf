"""What the reading side makes of events, letters, bytes and words: without a broker."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from laxity.infra.cli.cancel import answers
from laxity.infra.cli.dlq import letter_lines
from laxity.infra.cli.inspecting import one_of, since_ms
from laxity.infra.cli.output import CommandError
from laxity.infra.cli.tail import lines
from laxity.infra.cli.tasks import deadline_text, story_lines
from laxity.infra.inspect.catalogue import UnknownTopicError, record_of, topic_of
from laxity.infra.inspect.decoding import Decoder
from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.letters import Letter, grouped, letter_of, parse_reference, task_of
from laxity.infra.inspect.orders import cancel, original_of, redrive
from laxity.infra.inspect.tasks import Latest, only_one, state_of, story
from laxity.infra.inspect.text import duration, instant, json_bytes, json_line, plain, plain_bytes
from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.records import Command, Dispatch, Journal, StateRow, TaskEvent, Transition, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.topics import TIERS, Names, catalogue
from laxity.streams.effects import Change
from laxity.streams.state import changelog
from laxity.streams.testing import TopologyTestDriver

CODEC, NAMES = Codec.local(), Names()
NOW_MS = 1_700_000_000_000
HOSTILE = "\x1b[31mred\x1b[0m \u202eevil\u2066 \r\n\x07 \x9b2J back\\slash"


@dataclass
class Message:
    """As confluent_kafka gives it."""

    name: str
    raw: bytes | None
    raw_key: bytes | None = b"key"
    given: Sequence[tuple[str, bytes | None]] = ()
    at: int = 17
    ms: int = NOW_MS

    def topic(self) -> str:
        return self.name

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 2, self.ms

    def key(self) -> bytes | None:
        return self.raw_key

    def value(self) -> bytes | None:
        return self.raw

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self.given) or None


def seen(name: str, raw: bytes | None, **fields: Any) -> Any:
    return Decoder(CODEC, NAMES).seen(Message(f"laxity.{name}", raw, **fields))


# words and bytes


def test_nothing_that_drives_a_terminal_gets_through() -> None:
    shown = plain(HOSTILE)
    assert shown == r"\x1b[31mred\x1b[0m \u202eevil\u2066 \x0d\x0a\x07 \x9b2J back\\slash"
    assert shown.isprintable()
    assert plain("Grüße, 東京 🙂") == "Grüße, 東京 🙂"


def test_long_texts_are_cut_and_say_so() -> None:
    assert plain("x" * 300) == "x" * 240 + "… (300 characters)"
    assert plain_bytes(b"\xff" * 200).endswith("… (200 bytes)")


@pytest.mark.parametrize(
    ("data", "shown"),
    [(None, "null"), (b"", ""), (b"caf\xc3\xa9", "café"), (b"\xff\x00", "0xff00"), (b"\x1b", r"\x1b")],
)
def test_bytes_for_people(data: bytes | None, shown: str) -> None:
    assert plain_bytes(data) == shown


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xfe", "\u202e".encode(), b"\x00"])
def test_bytes_in_json_are_lossless(data: bytes) -> None:
    found = json.loads(json_line(json_bytes(data)))
    back = found["text"].encode() if "text" in found else base64.b64decode(found["base64"])
    assert back == data
    assert json_bytes(None) is None


def test_a_json_line_is_one_line_of_ascii() -> None:
    line = json_line({"text": HOSTILE + "\u2028"})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["text"] == HOSTILE + "\u2028"


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (0, "0ms"), (999, "999ms"), (12_345, "12.3s"), (250_000, "4m10s"), (11_100_000, "3h05m"),
        (187_200_000, "2d4h"), (-1_500, "-1.5s"),
    ],
)  # fmt: skip
def test_durations(ms: int, shown: str) -> None:
    assert duration(ms) == shown


@pytest.mark.parametrize(
    ("ms", "shown"), [(0, "-"), (NOW_MS + 7, "2023-11-14T22:13:20.007Z"), (2**62, str(2**62)), (-5, "-5")]
)
def test_instants_of_any_number(ms: int, shown: str) -> None:
    assert instant(ms) == shown


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("all", 0),
        ("10m", NOW_MS - 600_000),
        ("500ms", NOW_MS - 500),
        ("2023-11-14T22:13:20Z", NOW_MS),
        ("99999d", 0),
    ],
)
def test_since(text: str, ms: int) -> None:
    assert since_ms(text, NOW_MS) == ms


@pytest.mark.parametrize("text", ["", "10", "m", "yesterday", "2023-11-14T22:13:20", "-5m"])
def test_since_refuses(text: str) -> None:
    with pytest.raises(CommandError, match="--since"):
        since_ms(text, NOW_MS)


def test_choices_are_named() -> None:
    assert one_of("dead", ("READY", "DEAD"), "--state") == "DEAD"
    with pytest.raises(CommandError, match=r"--state 'ded' is none of READY, DEAD"):
        one_of("ded", ("READY", "DEAD"), "--state")


# topics


def test_topics_by_either_name() -> None:
    for topic in catalogue({"gpu-large": 3}):
        assert topic_of(topic.name, NAMES).name == topic_of(f"laxity.{topic.name}", NAMES).name == topic.name
    assert record_of("dispatch.any-fleet") is Dispatch
    assert record_of("dlq.normal") is None


@pytest.mark.parametrize(
    "text", ["", "laxity.", "__consumer_offsets", "^.*", "dispatch", "laxity.laxity.journal"]
)
def test_other_topics_are_none_of_ours(text: str) -> None:
    with pytest.raises(UnknownTopicError):
        topic_of(text, NAMES)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(UnknownTopicError, match=r"events\.critical"):
        topic_of("event.critical", NAMES)


# decoding


def test_a_record_is_decoded_with_its_headers() -> None:
    trigger = Trigger(type="work", payload=b"{}", headers={"a": "b"})
    found = seen("triggers.high", CODEC.encode(trigger), given=(("h", b"\xff"), ("h", None)))
    assert (found.kind, found.value, found.problem) == ("Trigger", trigger, "")
    document = json.loads(json_line(found.document()))
    assert document["value"]["payload"] == {"text": "{}"}
    assert document["headers"] == [{"name": "h", "value": {"base64": "/w=="}}, {"name": "h", "value": None}]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"junk", "not_framed"),
        (b"", "empty"),
        (CODEC.encode(StateRow(table="task", row=b"")), "wrong_schema"),
        (b"\x00\x00\x0f\xff\xffxx", "schema_unknown"),
    ],
)
def test_what_cannot_be_decoded_says_why_and_keeps_its_bytes(raw: bytes, why: str) -> None:
    found = seen("triggers.high", raw)
    assert found.value is None
    assert found.problem.startswith(why)
    assert found.document()["value"] == json_bytes(raw)
    assert any(why in line for line in lines(found))


def test_state_rows_are_decoded_to_their_table() -> None:
    driver = TopologyTestDriver()
    driver.pipe("low", Trigger(type="work", key="k", not_before_ms=driver.clock.now_ms() + 60_000))
    kinds = set()
    for record in driver.log.all("state"):
        found = seen("state", record.value, raw_key=record.key)
        kinds.add(found.kind)
        assert found.document()["key"]["table"] in {"task", "payload", "shard"}
        assert lines(found)
    assert kinds == {"TaskRow", "PayloadRow", "ShardRow"}
    key, _ = changelog.state_row(Change(table="task", key=b"id", value=None), CODEC)
    gone = seen("state", None, raw_key=key)
    assert gone.problem == "tombstone"
    assert gone.document()["key"] == {"table": "task", "text": "id"}


def test_a_table_of_a_newer_release_is_shown_as_it_is() -> None:
    found = seen("state", CODEC.encode(StateRow(table="tomorrow", row=b"\x01")), raw_key=b"zkey")
    assert "tomorrow" in found.problem
    assert found.document()["value"]["row"] == {"text": "\x01"}


def test_every_topic_can_be_shown_whatever_it_holds() -> None:
    for topic in catalogue({"default": 1}):
        for raw in (None, b"", b"\x00", b"\xff" * 40):
            found = seen(topic.name, raw, raw_key=None, given=((HOSTILE, HOSTILE.encode()),))
            assert all(line.isprintable() for line in lines(found))
            assert json_line(found.document()).isprintable()


def test_a_hostile_record_prints_as_one_block() -> None:
    trigger = Trigger(
        type=HOSTILE, key=HOSTILE, payload=HOSTILE.encode(), headers={HOSTILE: HOSTILE}, depends_on=[HOSTILE]
    )
    shown = lines(seen("triggers.low", CODEC.encode(trigger), raw_key=HOSTILE.encode()))
    assert all(line.isprintable() for line in shown)


# tasks


def event(
    state: str,
    at_ms: int = 0,
    *,
    before: str = "",
    reason: str = "r",
    kind: str = "transitions",
    **fields: Any,
) -> TaskEvent:
    moves = [
        Transition(
            before=before, after=state, reason=reason, at_ms=NOW_MS + at_ms, happened_ms=NOW_MS + at_ms
        )
    ]
    base = {
        "task_id": "t",
        "tier": "normal",
        "shard": 0,
        "batch": at_ms,
        "at_ms": NOW_MS + at_ms,
        "state": state,
    }
    return TaskEvent(
        **{"kind": kind, "transitions": moves if kind == "transitions" else [], **base, **fields}
    )


def test_the_newest_event_of_a_task_counts_in_any_order_of_partitions() -> None:
    latest = Latest()
    for one in (event("RUNNING", 20), event("READY", 10), event("READY", 5, task_id="u")):
        latest.add(one)
    assert [(e.task_id, e.state) for e in latest.newest_first()] == [("t", "RUNNING"), ("u", "READY")]


def test_duplicates_and_refusals_do_not_hide_a_task() -> None:
    latest = Latest()
    latest.add(event("RUNNING", 10))
    latest.add(event("", 20, kind="duplicate"))
    latest.add(event("DEAD", 30, kind="rejected", code="invalid"))
    latest.add(event("", 40, kind="conflict"))
    latest.add(event("", 50, kind="refused_command"))
    latest.add(event("DEAD", 60, kind="rejected", task_id=""))
    (found,) = latest.newest_first()
    assert state_of(found) == "RUNNING"
    assert latest.repeats["t"] == 1


def test_a_trigger_that_never_became_a_task_is_told_as_such() -> None:
    latest = Latest()
    latest.add(event("DEAD", 30, kind="rejected", code="invalid"))
    assert [state_of(e) for e in latest.newest_first()] == ["REJECTED"]


def test_the_beginning_of_an_id_is_enough_if_one_task_has_it() -> None:
    assert only_one(["abc1", "abc1"], "ab") == "abc1"
    with pytest.raises(InspectError, match="no event"):
        only_one([], "ab")
    with pytest.raises(InspectError, match=r"fits 7 tasks \(a0, a1, a2, a3, a4, …\)"):
        only_one([f"a{n}" for n in range(7)], "a")


@pytest.fixture
def driver() -> TopologyTestDriver:
    fails = iter([True])
    d = TopologyTestDriver(
        verdict=lambda _: ("failed", "boom", True) if next(fails, False) else ("succeeded", "", False)
    )
    d.pipe("normal", Trigger(type="work", key="k", payload=b"{}", not_before_ms=d.clock.now_ms() + 3_000))
    d.pipe("normal", Trigger(type="work", key="k", payload=b"{}"))
    for _ in range(10):
        d.advance(1_000)
        d.work()
    return d


def test_a_story_of_the_real_core(driver: TopologyTestDriver) -> None:
    events = driver.events()
    now_ms = driver.clock.now_ms()
    told = story(events[0].task_id, reversed(events), now_ms)
    ways = [step.after for step in told.steps]
    assert ways == [
        "DELAYED",
        "READY",
        "DISPATCHED",
        "RUNNING",
        "DELAYED",
        "READY",
        "DISPATCHED",
        "RUNNING",
        "SUCCEEDED",
    ]
    assert told.steps[0].for_ms == told.steps[1].happened_ms - told.steps[0].happened_ms >= 3_000
    assert told.steps[-1].for_ms is None
    assert sum(told.waits_ms.values()) == told.steps[-1].happened_ms - told.steps[0].happened_ms
    assert told.failure[0] == "boom"
    assert [remark.kind for remark in told.remarks] == ["duplicate"]
    document = told.document()
    assert (document["state"], document["attempts"], document["ended_ms"]) == (
        "SUCCEEDED",
        2,
        told.steps[-1].happened_ms,
    )
    json.dumps(document)
    assert any("RUNNING → SUCCEEDED" in line for line in story_lines(told, [], now_ms))


def test_the_last_stay_of_a_living_task_lasts_until_now() -> None:
    told = story("t", [event("READY", 0), event("DISPATCHED", 400, before="READY")], NOW_MS + 1_000)
    assert [step.for_ms for step in told.steps] == [400, 600]
    assert told.waits_ms == {"READY": 400, "DISPATCHED": 600}


def test_a_clock_that_stepped_back_makes_no_negative_stay() -> None:
    told = story("t", [event("READY", 500), event("DISPATCHED", 600, before="READY")], NOW_MS)
    assert [step.for_ms for step in told.steps] == [100, 0]


def test_hearsay_is_no_story() -> None:
    with pytest.raises(InspectError, match="hearsay"):
        story("t", [event("", kind="late_completion")], NOW_MS)


def test_hostile_events_stay_in_their_lines() -> None:
    fields: dict[str, Any] = dict.fromkeys(
        ("task_id", "tenant", "type", "run_id", "key", "runner", "code", "message"), HOSTILE
    )
    told = story(
        HOSTILE,
        [event("DISPATCHED", reason=HOSTILE, result=HOSTILE.encode(), usage={HOSTILE: 1}, **fields)],
        NOW_MS,
    )
    assert all(line.isprintable() for line in story_lines(told, [], NOW_MS))


@pytest.mark.parametrize(
    ("state", "fields", "shown"),
    [
        ("SUCCEEDED", {}, "met"),
        ("SUCCEEDED", {"missed_by_ms": 1_500, "firm": True}, "missed by 1.5s (firm)"),
        ("DEAD", {}, "not reached"),
        ("READY", {}, "in 1.0s"),
        ("READY", {"deadline_ms": NOW_MS - 250}, "overdue 250ms"),
        ("READY", {"deadline_ms": 0}, "-"),
    ],
)
def test_deadlines(state: str, fields: dict[str, Any], shown: str) -> None:
    assert deadline_text(event(state, **({"deadline_ms": NOW_MS + 1_000} | fields)), NOW_MS) == shown


# dead letters


def letter(
    raw: bytes | None = None,
    *,
    topic: str = "dlq.normal",
    given: Sequence[tuple[str, bytes | None]] = (),
    **fields: Any,
) -> Letter:
    ours = {
        "reason": "poison", "message": "no", "topic": "laxity.triggers.normal", "partition": "1", "offset": "9",
        "timestamp": str(NOW_MS), "attempts": "3", "generation": "0", "history": "[]",
    }  # fmt: skip
    kafka = {name: fields.pop(name) for name in ("at", "ms", "raw_key") if name in fields}
    headers = [*given, *((f"laxity.error.{name}", text.encode()) for name, text in (ours | fields).items())]
    return letter_of(seen(topic, raw, given=headers, **kafka))


def test_letters_of_the_real_core() -> None:
    driver = TopologyTestDriver(verdict=lambda _: ("failed", "boom", False))
    sent = driver.pipe(
        "high", Trigger(type="work", payload=b"{}"), key=b"k", partition=0, headers=(("mine", b"1"),)
    )
    driver.work()
    (dead,) = driver.read("dlq.high")
    found = letter_of(seen("dlq.high", dead.value, raw_key=dead.key, given=dead.headers))
    key = positional_key("laxity.triggers.high", 0, sent.offset)
    run_id = run_id_of("default", "", key)
    assert task_of(found) == (task_id_of("default", run_id, key), run_id)
    assert (found.reason, found.attempts, found.headers) == ("not_retryable", 1, [("mine", b"1")])
    assert found.seen.raw == sent.value
    assert found.history[0]["code"] == "boom"
    assert found.document()["origin"]["offset"] == sent.offset
    order = redrive(found, reason="", now_ms=NOW_MS)
    assert order.original is not None
    assert (order.original.value, order.original.key, order.original.offset) == (
        sent.value,
        b"k",
        sent.offset,
    )
    driver.send("control", order)
    assert [e.generation for e in driver.events() if e.state == "DISPATCHED"][-1] == 1


def test_forged_headers_do_not_count() -> None:
    forged = [("laxity.error.reason", b"fine"), ("laxity.error.attempts", b"0"), ("laxity.error.extra", b"x")]
    found = letter(b"junk", given=forged)
    assert (found.reason, found.attempts) == ("poison", 3)
    assert list(found.headers) == forged


def test_nonsense_in_headers_is_no_failure() -> None:
    found = letter(
        b"junk", partition="x", offset="9" * 40, attempts="", history="{not json", topic="dlq.normal"
    )
    assert (found.origin_partition, found.origin_offset, found.attempts, found.history) == (-1, -1, -1, [])
    assert letter(b"junk", history='{"a": 1}').history == []
    assert letter_lines(letter(b"junk", history=f'["{"x" * 9}", {{"ended_ms": "no"}}, 5]'))
    assert letter_of(seen("dlq.low", None)).reason == ""


def test_undecodable_and_hostile_letters_print() -> None:
    for raw in (None, b"", b"\xff", HOSTILE.encode(), CODEC.encode(Trigger(type=HOSTILE, payload=b"\xff"))):
        found = letter(raw, message=HOSTILE, reason=HOSTILE, given=[(HOSTILE, HOSTILE.encode())])
        assert all(line.isprintable() for line in letter_lines(found))
        assert json_line(found.document()).isprintable()


def test_letters_are_grouped_by_topic_and_reason() -> None:
    letters = [
        letter(reason="poison", at=1, ms=30, message="old"),
        letter(reason="poison", at=2, ms=50, message="new"),
        letter(reason="poison", at=3, ms=40, message="late"),
        letter(reason="invalid", at=4, ms=60),
        letter(reason="poison", at=5, ms=10, topic="dlq.internal"),
    ]
    groups = grouped(iter(letters))
    assert [(g.topic, g.reason, g.count) for g in groups] == [
        ("dlq.normal", "poison", 3), ("dlq.internal", "poison", 1), ("dlq.normal", "invalid", 1)
    ]  # fmt: skip
    assert (groups[0].newest, groups[0].message, groups[0].oldest_ms, groups[0].newest_ms) == (
        "normal:2:2",
        "new",
        30,
        50,
    )
    assert grouped([]) == []


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("normal:0:17", "dlq.normal"),
        ("dlq.internal:0:17", "dlq.internal"),
        ("laxity.dlq.low:0:17", "dlq.low"),
        ("0:17", ""),
    ],
)
def test_references(text: str, topic: str) -> None:
    found = parse_reference(text, "laxity.")
    assert (found.topic, found.partition, found.offset) == (topic, 0, 17)


@pytest.mark.parametrize(
    "text", ["", "17", "normal:17", "normal:a:1", "normal:-1:1", "events.normal:0:1", "x:0:1", "normal:0:1:2"]
)
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(InspectError):
        parse_reference(text, "laxity.")


def test_a_reference_round_trips() -> None:
    found = letter(at=123)
    again = parse_reference(found.reference, "")
    assert (again.topic, again.partition, again.offset) == (found.seen.topic, 2, 123)


# orders


def test_only_letters_of_tasks_can_be_redriven() -> None:
    trigger = CODEC.encode(Trigger(type="work", key="k"))
    assert redrive(letter(trigger, generation="4"), reason="", now_ms=NOW_MS).generation == 5
    with pytest.raises(InspectError, match="not_framed"):
        redrive(letter(b"junk"), reason="", now_ms=NOW_MS)
    with pytest.raises(InspectError, match="another type or payload"):
        redrive(letter(trigger, reason="idempotency_conflict"), reason="", now_ms=NOW_MS)
    journal = CODEC.encode(
        Journal(shard=0, batch=1, owner_epoch=1, now_ms=1, state_version=1, config_id="", effects_hash=b"")
    )
    with pytest.raises(InspectError, match="no task"):
        redrive(letter(journal, topic="dlq.internal"), reason="", now_ms=NOW_MS)


def test_an_original_has_its_own_headers_alone() -> None:
    found = original_of(letter(b"x", given=[("mine", b"1"), ("mine", None)]))
    assert [(h.name, h.value) for h in found.headers] == [("mine", b"1"), ("mine", None)]
    assert (found.topic, found.partition, found.offset) == ("laxity.triggers.normal", 1, 9)


def test_commands_are_told_apart_and_signed() -> None:
    one, two = (cancel("t", reason="why", now_ms=NOW_MS) for _ in range(2))
    assert one.command_id != two.command_id
    assert (one.kind, one.task_id, one.reason, one.at_ms) == ("cancel", "t", "why", NOW_MS)
    assert one.operator


def test_what_answers_an_order() -> None:
    stop = Command(kind="cancel", command_id="c", task_id="t")
    assert answers(event("CANCELLED"), stop)
    assert answers(event("", kind="refused_command", code="cancel"), stop)
    assert not answers(event("", kind="refused_command", code="redrive"), stop)
    assert not answers(event("RUNNING"), stop)
    assert not answers(event("CANCELLED", task_id="u"), stop)
    again = Command(kind="redrive", command_id="c", task_id="t", generation=2)
    assert answers(event("READY", generation=2), again)
    assert not answers(event("DEAD", generation=1), again)


def test_the_tiers_have_their_letters_and_events() -> None:
    assert {f"dlq.{tier}" for tier in TIERS} | {f"events.{tier}" for tier in TIERS} <= {
        t.name for t in catalogue({})
    }
