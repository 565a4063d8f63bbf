"""The rule book of triggers, at each of its edges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.schemas import limits
from laxity.schemas.config import parse
from laxity.schemas.records import Trigger
from laxity.schemas.validation import problems

NOW = 1_790_000_000_000
WEEK = 7 * 24 * 3_600_000
CONFIG = parse("""
[resources.llm]
kind = "rate"
requests_per_minute = 10
tokens_per_minute = 600
[resources.calls]
kind = "rate"
requests_per_minute = 10
[resources.browser]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
capacity = 1
""")


def found(**fields: Any) -> list[tuple[str, str]]:
    return [(p.code, p.field) for p in problems(Trigger(**{"type": "t"} | fields), CONFIG, NOW)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "Invoice_check.v2@eu+1=a-b", "tenant": "a" * 128, "workflow": "w"},
        {"run_id": "r" * 256, "key": "any: {text} ../ № 🧾 \n"},
        {"key": "k" * 512},
        {"deadline_ms": NOW + WEEK, "not_before_ms": NOW + WEEK},
        {"deadline_ms": 1, "firm": True},  # passed: it expires, which is no mistake of form
        {"estimate_ms": 12 * 3_600_000, "value": 2**53 - 1, "max_attempts": 100},
        {"demands": {"llm": 600}},  # over the burst of 100, within the minute
        {"demands": {"llm": 0}},  # one request of no tokens
        {"demands": {"calls": 10**9}},  # no limit of tokens
        {"demands": {"browser": 2, "account:a:b/ü": 1}},
        {"depends_on": ("a", "run:r:b:c")},
        {"depends_on": ("same",), "key": "other"},
        {"depends_on": tuple(f"k{i}" for i in range(1_000))},
        {"on_unknown": "reconcile"},
        {"headers": {f"h{i}": "v" for i in range(32)}},
        {"headers": {"h": "v" * 4_095}},
        {"payload": b"\0" * (limits.TRIGGER_BYTES_MAX - 100)},
    ],
)
def test_what_is_accepted(fields: dict[str, Any]) -> None:
    assert found(**fields) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": ""}, ("missing", "type")),
        ({"tenant": ""}, ("missing", "tenant")),
        ({"type": "a b"}, ("bad_name", "type")),
        ({"type": "../x"}, ("bad_name", "type")),
        ({"type": "t\n"}, ("bad_name", "type")),
        ({"type": "<img onerror=x>"}, ("bad_name", "type")),
        ({"tenant": "a:b"}, ("bad_name", "tenant")),
        ({"tenant": "{a}"}, ("bad_name", "tenant")),
        ({"tenant": "^.*"}, ("bad_name", "tenant")),
        ({"tenant": "\u202eacme"}, ("bad_name", "tenant")),
        ({"tenant": "a" * 129}, ("too_long", "tenant")),
        ({"run_id": "r:1"}, ("bad_name", "run_id")),
        ({"run_id": "r" * 257}, ("too_long", "run_id")),
        ({"workflow": "."}, ("bad_name", "workflow")),
        ({"key": "k\0"}, ("bad_text", "key")),
        ({"key": "\ud800"}, ("bad_text", "key")),
        ({"key": "ü" * 257}, ("too_long", "key")),
        ({"content_type": "text/\r\nx"}, ("bad_text", "content_type")),
        ({"content_type": "x" * 129}, ("too_long", "content_type")),
        ({"deadline_ms": -1}, ("negative", "deadline_ms")),
        ({"deadline_ms": NOW + WEEK + 1}, ("too_far", "deadline_ms")),
        ({"deadline_ms": 2**62}, ("too_far", "deadline_ms")),
        ({"not_before_ms": -1}, ("negative", "not_before_ms")),
        ({"not_before_ms": NOW + WEEK + 1}, ("too_far", "not_before_ms")),
        ({"deadline_ms": NOW + 5, "not_before_ms": NOW + 6}, ("not_before_after_deadline", "not_before_ms")),
        ({"estimate_ms": -1}, ("negative", "estimate_ms")),
        ({"estimate_ms": 12 * 3_600_000 + 1}, ("too_large", "estimate_ms")),
        ({"value": -1}, ("negative", "value")),
        ({"value": 2**53}, ("too_large", "value")),
        ({"max_attempts": -1}, ("negative", "max_attempts")),
        ({"max_attempts": 101}, ("too_large", "max_attempts")),
        ({"demands": {"nope": 1}}, ("unknown_resource", "demands.nope")),
        ({"demands": {"fleet.default": 1}}, ("unknown_resource", "demands.fleet.default")),
        ({"demands": {"": 1}}, ("unknown_resource", "demands.")),
        ({"demands": {"llm": -1}}, ("negative", "demands.llm")),
        ({"demands": {"llm": 601}}, ("demand_over_capacity", "demands.llm")),
        ({"demands": {"calls": 2**53}}, ("too_large", "demands.calls")),
        ({"demands": {"browser": 0}}, ("too_small", "demands.browser")),
        ({"demands": {"browser": 3}}, ("demand_over_capacity", "demands.browser")),
        ({"demands": {"browser:x": 1}}, ("key_unexpected", "demands.browser:x")),
        ({"demands": {"browser:": 1}}, ("key_unexpected", "demands.browser:")),
        ({"demands": {"account": 1}}, ("key_missing", "demands.account")),
        ({"demands": {"account:": 1}}, ("key_missing", "demands.account:")),
        ({"demands": {"account:a": 2}}, ("demand_over_capacity", "demands.account:a")),
        ({"demands": {"account:a\0": 1}}, ("bad_text", "demands.account:a\\x00")),
        ({"demands": {f"account:{i}": 1 for i in range(17)}}, ("too_many", "demands")),
        ({"depends_on": tuple(f"k{i}" for i in range(1_001))}, ("too_many", "depends_on")),
        ({"depends_on": ("",)}, ("missing", "depends_on.0")),
        ({"depends_on": ("a", "k"), "key": "k"}, ("depends_on_itself", "depends_on.1")),
        ({"depends_on": ("run:r:k",), "key": "k", "run_id": "r"}, ("depends_on_itself", "depends_on.0")),
        ({"depends_on": ("run:r",)}, ("bad_dependency", "depends_on.0")),
        ({"depends_on": ("run::k",)}, ("bad_dependency", "depends_on.0")),
        ({"depends_on": ("a\0",)}, ("bad_text", "depends_on.0")),
        ({"on_unknown": "ignore"}, ("unknown_choice", "on_unknown")),
        ({"headers": {f"h{i}": "" for i in range(33)}}, ("too_many", "headers")),
        ({"headers": {"h": "v" * 4_096}}, ("too_long", "headers.h")),
        ({"headers": {"a b": ""}}, ("bad_name", "headers.a b")),
        ({"headers": {"": ""}}, ("bad_name", "headers.")),
        ({"headers": {"x\r\ny": ""}}, ("bad_name", "headers.x\\r\\ny")),
        ({"payload": b"\0" * limits.TRIGGER_BYTES_MAX}, ("too_large", "payload")),
    ],
)
def test_what_is_refused(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert found(**fields) == [expected]


def test_the_sum_of_small_things_counts_too() -> None:
    big = tuple("k" * 505 + f"{i:07}" for i in range(1_000))
    assert found(depends_on=big, payload=b"\0" * 490_000) == [("too_large", "trigger")]


def test_all_problems_are_told_at_once_with_value_and_limit() -> None:
    texts = [p.text() for p in problems(Trigger(type="", value=-1, demands={"llm": 601}), CONFIG, NOW)]
    assert texts == [
        "type is empty: missing (limit: a name)",
        "value is -1: negative (limit: at least 0)",
        "demands.llm is 601: demand over capacity (limit: 600)",
    ]


@given(
    st.builds(
        Trigger,
        type=st.text(max_size=5),
        tenant=st.text(max_size=5),
        key=st.text(max_size=700),
        run_id=st.text(max_size=5),
        demands=st.dictionaries(st.text(max_size=90), st.integers(), max_size=3),
        headers=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
        depends_on=st.lists(st.text(max_size=9), max_size=3).map(tuple),
        deadline_ms=st.integers(),
        not_before_ms=st.integers(),
    )
)
def test_it_never_raises_and_what_it_says_is_short_printable_ascii(trigger: Trigger) -> None:
    """Problems go into headers, logs and terminals."""
    for problem in problems(trigger, CONFIG, NOW):
        text = problem.text().replace("…", "")
        assert len(text) < 400
        assert text.isascii()
        assert text.isprintable()
