"""Limits from the configuration, and what is refused before anything is decided."""

import math
from typing import Any

import pytest

from laxity.schemas.config import parse
from laxity.streams.ledger.limits import HELD_MAX, IDS_MAX, RATE_MAX, REPORT_MAX, Limits, RateLimit, SlotLimit
from laxity.streams.ledger.protocol import Candidate, Exchange, Live, Report, Settle
from laxity.streams.ledger.vetting import vet_exchange, vet_registration, vet_report

TOML = """
[resources.llm]
kind = "rate"
requests_per_minute = 60
tokens_per_minute = 6000
[resources.gpu]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
"""


def test_limits_of_a_configuration() -> None:
    limits = Limits.of(parse(TOML))
    assert limits.of_demand("llm") == RateLimit(
        requests_per_minute=60, tokens_per_minute=6_000, burst_requests=10, burst_tokens=1_000, refund=False
    )
    assert limits.of_demand("gpu") == SlotLimit(capacity=2)
    assert limits.of_demand("account:acme:eu") == SlotLimit(capacity=1, keyed=True)


@pytest.mark.parametrize("demand", ["account", "gpu:a", "llm:", "nothing", ""])
def test_a_key_belongs_to_keyed_resources_only(demand: str) -> None:
    assert Limits.of(parse(TOML)).of_demand(demand) is None


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SlotLimit(capacity=-1), "capacity=-1"),
        (lambda: SlotLimit(capacity=2**31), "capacity=2147483648"),
        (lambda: rate(tokens_per_minute=RATE_MAX + 1), "tokens_per_minute=10000000001"),
        (lambda: rate(tokens_per_minute=1), "burst_tokens=0"),
        (lambda: Limits(resources={"fleet.x": SlotLimit(capacity=1)}), "fleet.x"),
    ],
)
def test_limits_out_of_range_are_named(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def rate(**fields: int) -> RateLimit:
    whole: dict[str, Any] = {
        "requests_per_minute": 0, "tokens_per_minute": 0, "burst_requests": 0, "burst_tokens": 0, **fields
    }  # fmt: skip
    return RateLimit(**whole)


def candidate(**fields: Any) -> Candidate:
    whole = {
        "reservation_id": "a:0:1",
        "task_id": "a",
        "fleet": "f",
        "demands": {},
        "deadline_ms": 0,
        **fields,
    }
    return Candidate(**whole)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"shard": -1}, "shard=-1"),
        ({"shard": 64}, "shard=64"),
        ({"owner_epoch": 2**53}, "owner_epoch"),
        ({"owner_epoch": 1.0}, "owner_epoch"),
        ({"revokes": [""]}, "revokes"),
        ({"revokes": ["x"] * (IDS_MAX + 1)}, "1025 entries in one call, at most 1024"),
        ({"cancels": ["x" * 513]}, "cancels"),
        ({"candidates": [candidate(fleet="a/b")]}, "must not contain '/'"),
        ({"candidates": [candidate(demands={"fleet.f": 1})]}, "not as a demand"),
        ({"candidates": [candidate(demands={str(i): 1 for i in range(17)})]}, "17 entries"),
        ({"candidates": [candidate(demands={"gpu": math.nan})]}, r"demands\[gpu\]=nan"),
        ({"candidates": [candidate(demands={"gpu": True})]}, r"demands\[gpu\]=True"),
        ({"candidates": [candidate()] * 513}, "513 entries"),
        ({"settles": [Settle(reservation_id="a", used={"llm": -1}, unclaimed=False)]}, r"used\[llm\]=-1"),
    ],
)
def test_an_exchange_out_of_range_is_named(parts: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        vet_exchange(Exchange(**{"shard": 0, "owner_epoch": 1, **parts}))


def test_what_was_granted_can_always_be_reported() -> None:
    """The largest vector a grant can have passes the check of a reconciliation."""
    assert max(RATE_MAX, 2**31 - 1) <= HELD_MAX
    assert 1_000_000 * (2**31 - 1) < 2**53, "restored slots add up exactly"
    granted = {f"r{i}": RATE_MAX for i in range(16)} | {"fleet.f": 1}
    vet_report(report(live("a", granted)))


def live(reservation_id: str, granted: dict[str, int]) -> Live:
    return Live(reservation_id=reservation_id, runner="r", partition=0, granted=granted, active=True)


def report(*ones: Live, after: str = "", upto: str = "") -> Report:
    return Report(shard=0, owner_epoch=1, seen_epoch="", after=after, upto=upto, live=ones)


def test_a_page_speaks_for_its_range_only() -> None:
    vet_report(report(live("b", {}), live("c", {}), after="a", upto="c"))
    for one in ("a", "ab", "d"):
        with pytest.raises(ValueError, match="is not in"):
            vet_report(report(live(one, {}), after="b", upto="c"))
    with pytest.raises(ValueError, match="49 entries in one call, at most 48"):
        vet_report(report(*[live(str(i), {}) for i in range(REPORT_MAX + 1)]))


@pytest.mark.parametrize(
    "fields",
    [
        {"credit": -1},
        {"credit": 2**20},
        {"ttl_ms": 0},
        {"partition": 1_024},
        {"runner": ""},
        {"fleet": "a/b"},
    ],
)
def test_a_registration_out_of_range_is_named(fields: dict[str, Any]) -> None:
    whole: dict[str, Any] = {
        "runner": "r",
        "fleet": "f",
        "partition": 0,
        "credit": 1,
        "ttl_ms": 1_000,
        **fields,
    }
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        vet_registration(**whole)
