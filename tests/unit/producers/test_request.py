"""From business values to bytes: keys, payloads, and what is refused before it is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.producers.request import InvalidTrigger, Preparer, canonical_json, trigger_of
from laxity.schemas.config import parse
from laxity.schemas.identity import digest_of, idempotency_key
from laxity.schemas.records import Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.topics import Names

CODEC = Codec.local()
PREPARER = Preparer(parse("[resources.llm]\nkind='rate'\ntokens_per_minute=600"), CODEC, Names("p."))
NOW = 1_790_000_000_000


def refusal(trigger: Trigger, tier: str = "normal", headers: Any = ()) -> list[tuple[str, str]]:
    with pytest.raises(InvalidTrigger) as caught:
        PREPARER.prepare(trigger, tier, headers, NOW)
    return [(p.code, p.field) for p in caught.value.problems]


def test_canonical_json() -> None:
    assert canonical_json({"b": [1, None], "a": "é\u2028"}) == '{"a":"é\u2028","b":[1,null]}'.encode()
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": number})
    with pytest.raises(TypeError):
        canonical_json({"a": object()})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda c: st.lists(c) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), c),
        max_leaves=9,
    )
)
def test_canonical_json_is_stable_and_says_the_same(value: Any) -> None:
    once = canonical_json(value)
    assert json.loads(once) == value
    assert canonical_json(json.loads(once)) == once


@pytest.mark.parametrize("raw", [b"\x00\xff", bytearray(b'{"b": 1}'), memoryview(b"x"), b""])
def test_bytes_pass_untouched(raw: Any) -> None:
    assert trigger_of("t", raw).payload == bytes(raw)


def test_business_fields_make_the_key() -> None:
    made = trigger_of("t", tenant="acme", business=["inv", "7"], event_ms=1_000, window_ms=60_000)
    assert made.key == idempotency_key("acme", "t", ["inv", "7"], 1_000, 60_000)
    assert (
        made.key
        == trigger_of(
            "t", {"other": 1}, tenant="acme", business=["inv", "7"], event_ms=59_999, window_ms=60_000
        ).key
    )
    assert (
        made.key
        != trigger_of("t", tenant="acme", business=["inv", "7"], event_ms=60_000, window_ms=60_000).key
    )
    assert made.key != trigger_of("t", business=["inv", "7"], event_ms=1_000, window_ms=60_000).key
    assert trigger_of("t", tenant="acme").key == ""
    with pytest.raises(ValueError, match="never of the clock"):
        trigger_of("t", business=["a"], window_ms=60_000)
    with pytest.raises(ValueError, match="either key or business"):
        trigger_of("t", key="k", business=["a"])


def test_the_record() -> None:
    trigger = Trigger(type="t", tenant="acme", key="k")
    made = PREPARER.prepare(trigger, "high", [("a", b"1")], NOW)
    assert made.topic == "p.triggers.high"
    assert made.record_key == digest_of("acme", "k").encode()
    assert CODEC.decode(Trigger, made.value) == trigger
    assert made.headers == [("a", b"1")]
    run = PREPARER.prepare(Trigger(type="t", run_id="r1"), "low", (), NOW)
    assert (run.record_key, run.run_id, run.key) == (b"r1", "r1", "")
    assert PREPARER.prepare(Trigger(type="t"), "low", (), NOW).record_key is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"type": b"t"}, "type"),
        ({"tenant": None}, "tenant"),
        ({"payload": "text"}, "payload"),
        ({"payload": {"a": 1}}, "payload"),
        ({"deadline_ms": 1.5}, "deadline_ms"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"firm": 1}, "firm"),
        ({"demands": {"llm": 1.0}}, "demands"),
        ({"demands": {"llm": True}}, "demands"),
        ({"demands": {1: 1}}, "demands"),
        ({"demands": ["llm"]}, "demands"),
        ({"depends_on": "abc"}, "depends_on"),
        ({"depends_on": [1]}, "depends_on"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": None}, "headers"),
    ],
)
def test_values_that_python_would_bend_are_refused(fields: dict[str, Any], field: str) -> None:
    assert refusal(Trigger(**{"type": "t"} | fields)) == [("wrong_type", field)]


def test_the_rule_book_is_asked() -> None:
    assert refusal(Trigger(type="t", demands={"nope": 1}, deadline_ms=-1)) == [
        ("negative", "deadline_ms"),
        ("unknown_resource", "demands.nope"),
    ]


def test_tier_and_record_headers() -> None:
    assert refusal(Trigger(type="t"), "urgent") == [("unknown_choice", "tier")]
    assert refusal(Trigger(type="t"), headers=[("h", b"")] * 33) == [("too_many", "record headers")]
    assert refusal(Trigger(type="t"), headers=[("h", b"v" * 4096)]) == [("too_long", "record header 'h'")]
