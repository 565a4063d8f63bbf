"""The arithmetic of the rate buckets: exact, bounded, and safe against a provider's own window."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from laxity.streams.ledger.bucket import Bucket
from laxity.streams.ledger.limits import BUCKET_UNITS, DEBT_MINUTES_MAX, RATE_MAX, RateLimit

LAX_MAX = 2**53


def limit_of(rate: int, burst: int) -> RateLimit:
    return RateLimit(requests_per_minute=0, tokens_per_minute=rate, burst_requests=0, burst_tokens=burst)


rates = st.one_of(st.integers(1, 1_000), st.integers(1, RATE_MAX))
operations = st.lists(
    st.tuples(
        st.sampled_from(("pass", "debit", "credit", "ask")),
        st.one_of(st.integers(0, 5_000), st.integers(0, 2**53 - 1)),
    ),
    max_size=30,
)


@given(rate=rates, burst=rates, script=operations)
def test_levels_are_integers_that_a_double_holds(
    rate: int, burst: int, script: list[tuple[str, int]]
) -> None:
    bucket, now_ms = Bucket(limit=limit_of(rate, burst), refilled_ms=0), 0
    for name, amount in script:
        match name:
            case "pass":
                now_ms += amount
                bucket.refill(now_ms)
            case "debit":
                bucket.debit(requests=1, tokens=amount)
            case "credit":
                bucket.credit(requests=1, tokens=amount)
            case "ask":
                _check_wait(bucket, amount, now_ms)
        assert -rate * DEBT_MINUTES_MAX * BUCKET_UNITS <= bucket.tokens <= burst * BUCKET_UNITS
        assert abs(bucket.tokens) < LAX_MAX
        assert bucket.requests == 0, "an unlimited dimension counts nothing"


def _check_wait(bucket: Bucket, amount: int, now_ms: int) -> None:
    """The wait that is told is exact: one ms earlier is too early."""
    shortage = bucket.shortage(amount)
    if shortage is None:
        return
    _, wait_ms = shortage
    for passes_ms, enough in ((wait_ms - 1, False), (wait_ms, True)):
        later = Bucket(limit=bucket.limit, refilled_ms=now_ms, tokens=bucket.tokens)
        later.refill(now_ms + passes_ms)
        assert (later.shortage(amount) is None) is enough


@given(rate=rates, burst=rates, parts=st.lists(st.integers(0, 10**6), max_size=20))
def test_refilling_often_equals_refilling_once(rate: int, burst: int, parts: list[int]) -> None:
    often = Bucket(limit=limit_of(rate, burst), refilled_ms=0)
    once = Bucket(limit=limit_of(rate, burst), refilled_ms=0)
    now_ms = 0
    for part in parts:
        now_ms += part
        often.refill(now_ms)
    once.refill(now_ms)
    assert often == once


@given(rate=rates, burst=rates, back=st.integers(1, 10**7))
def test_a_clock_that_steps_back_refills_nothing_twice(rate: int, burst: int, back: int) -> None:
    bucket = Bucket(limit=limit_of(rate, burst), refilled_ms=10**8)
    bucket.refill(10**8 - back)
    assert bucket.tokens == 0
    bucket.refill(10**8 - back + 1)
    assert bucket.tokens == min(rate, burst * BUCKET_UNITS)


@given(
    per_minute=st.integers(600, 10**6),
    asks=st.lists(
        st.tuples(st.integers(0, 4_000), st.integers(1, 1_100), st.integers(0, 5_000)),
        min_size=1,
        max_size=60,
    ),
)
def test_a_providers_bucket_of_one_minute_never_refuses(
    per_minute: int, asks: list[tuple[int, int, int]]
) -> None:
    """Burst of a sixth of a minute, a call at most 5 s after its grant, demands up to 11/12 of a minute: burst or demand and the
    refill of the delay stay below the provider's bucket."""
    ours = Bucket(limit=limit_of(per_minute, per_minute // 6), refilled_ms=0)
    calls, now_ms = [], 0
    for passes_ms, twelve_hundredths, delay_ms in asks:
        now_ms += passes_ms
        tokens = per_minute * twelve_hundredths // 1_200
        ours.refill(now_ms)
        if ours.shortage(tokens) is None:
            ours.debit(requests=1, tokens=tokens)
            calls.append((now_ms + delay_ms, tokens))
    level, last_ms = Fraction(per_minute), 0
    for at_ms, tokens in sorted(calls):
        level = min(Fraction(per_minute), level + Fraction(per_minute * (at_ms - last_ms), 60_000)) - tokens
        last_ms = at_ms
        assert level >= 0, f"refused at {at_ms} ms"
