from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from laxity.infra.demo.provider.limits import MINUTE_MS, MinuteBucket, ModelBuckets, buckets_after
from laxity.infra.demo.provider.line import Kind, Line
from laxity.infra.demo.provider.settings import ModelLimit, ProviderSettings

CALLS = st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 400)), max_size=60)


@given(limit=st.integers(1, 500), calls=CALLS)
def test_the_bucket_is_exactly_the_continuous_one(limit: int, calls: list[tuple[int, int]]) -> None:
    bucket = MinuteBucket(limit=limit, now_ms=0)
    level, now_ms = Fraction(limit), 0
    for gap_ms, units in calls:
        now_ms += gap_ms
        level = min(Fraction(limit), level + Fraction(gap_ms * limit, MINUTE_MS))
        wait_ms = bucket.wait_ms(now_ms, units)
        assert bucket.remaining(now_ms) == int(level)
        assert (wait_ms == 0) == (level >= units)
        if wait_ms == 0:
            bucket.take(now_ms, units)
            level -= units
        elif units <= limit:  # it fits exactly when it says, and no ms before
            assert level + Fraction(wait_ms * limit, MINUTE_MS) >= units
            assert level + Fraction((wait_ms - 1) * limit, MINUTE_MS) < units


@given(limit=st.integers(1, 500), calls=CALLS)
def test_no_window_admits_more_than_a_minutes_limit_and_what_was_refilled(
    limit: int, calls: list[tuple[int, int]]
) -> None:
    bucket = MinuteBucket(limit=limit, now_ms=0)
    now_ms, taken = 0, [(0, 0)]
    for gap_ms, units in calls:
        now_ms += gap_ms
        if bucket.wait_ms(now_ms, units) == 0:
            bucket.take(now_ms, units)
            taken.append((now_ms, units))
    for start, (start_ms, _) in enumerate(taken):
        for end in range(start, len(taken)):
            window_ms = taken[end][0] - start_ms
            admitted = sum(units for _, units in taken[start : end + 1])
            assert admitted <= limit + Fraction(window_ms * limit, MINUTE_MS)


def test_a_clock_that_stands_or_steps_back_refills_nothing() -> None:
    bucket = MinuteBucket(limit=60, now_ms=10_000)
    bucket.take(10_000, 60)
    assert bucket.remaining(4_000) == 0
    assert bucket.remaining(10_999) == 0
    assert bucket.remaining(11_000) == 1


def model(requests: int, tokens: int) -> ModelLimit:
    return ModelLimit(name="m", requests_per_minute=requests, tokens_per_minute=tokens)


def test_a_call_takes_from_both_limits_or_from_neither() -> None:
    buckets = ModelBuckets(model(2, 100), speed=1, now_ms=0)
    assert buckets.admit(0, tokens=60) is None
    short = buckets.admit(0, tokens=60)
    assert short is not None
    assert (short.unit, short.remaining, short.asked, short.wait_ms) == ("tokens", 40, 60, 12_000)
    assert buckets.requests.remaining(0) == 1
    assert buckets.admit(0, tokens=40) is None
    short = buckets.admit(0, tokens=0)
    assert short is not None
    assert (short.unit, short.wait_ms) == ("requests", 30_000)


def test_the_limit_that_is_longest_in_the_way_is_named_and_too_large_is_never() -> None:
    buckets = ModelBuckets(model(1, 100), speed=1, now_ms=0)
    assert buckets.admit(0, tokens=1) is None
    both = buckets.admit(0, tokens=100)
    assert both is not None
    assert (both.unit, both.wait_ms) == ("requests", 60_000)
    never = buckets.admit(0, tokens=101)
    assert never is not None
    assert (never.unit, never.wait_ms) == ("tokens", -1)


def test_speed_multiplies_limits() -> None:
    buckets = ModelBuckets(model(2, 100), speed=2.5, now_ms=0)
    assert (buckets.requests.limit, buckets.tokens.limit) == (5, 250)


def line(arrived_ms: int, charged: int, name: str = "m") -> Line:
    return Line(
        ts_ms=arrived_ms + 5,
        key="k",
        tenant="",
        task="",
        model=name,
        tokens_in=1,
        tokens_out=1,
        kind=Kind.EFFECT,
        status=200,
        reason="",
        body="",
        charged=charged,
        arrived_ms=arrived_ms,
    )


def test_a_restart_finds_the_buckets_as_they_were() -> None:
    settings = ProviderSettings(ledger=Path("unused"), models=(model(60, 6_000),))
    now_ms = 1_000_000
    # the first is old, the last two lie ahead of a clock that was set back or name a model no longer on offer
    lines = [
        line(now_ms - 61_000, 6_000),
        line(now_ms - 1_000, 5_000),
        line(now_ms - 10_000, 900),
        line(now_ms + 1, 999),
        line(now_ms - 5, 999, "gone"),
    ]
    buckets = buckets_after(settings, lines, now_ms=now_ms, monotonic_ms=77)
    assert buckets.keys() == {"m"}
    # 900 ten seconds ago are refilled, 5,000 one second ago are not but for 100
    assert buckets["m"].tokens.remaining(77) == 1_100
    assert buckets["m"].requests.remaining(77) == 60
    assert buckets_after(settings, [], now_ms=now_ms, monotonic_ms=77)["m"].tokens.remaining(77) == 6_000
