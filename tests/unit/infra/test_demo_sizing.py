from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random  # noqa: TID251

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.infra.demo import configuration
from laxity.infra.demo.generator import Request, assign, at_speed, generate, service_ms
from laxity.infra.demo.load import ARRIVALS_MS, Wish, fitted, requests_of
from laxity.infra.demo.provider.limits import MINUTE_MS, ModelBuckets
from laxity.infra.demo.provider.settings import parse_model
from laxity.infra.demo.sizing import (
    OVERHEAD_MS,
    Capacity,
    charge,
    loads,
    max_tokens,
    offered,
    size,
)
from laxity.schemas import config
from laxity.schemas.config import Rate
from laxity.streams.ledger.bucket import Bucket
from laxity.streams.ledger.limits import RateLimit


def load_of(count: int, speed: float = 1.0, seed: int = 0) -> list[Request]:
    return at_speed(assign(generate(count, Random(seed)), seed), speed)


def rows(*arrivals_ms: int, context: int = 0, generated: int = 50) -> list[Request]:
    """Each takes 1 s at speed 1."""
    one = load_of(1)[0]
    return [
        Request(
            index=index,
            arrival_ms=at,
            context_tokens=context,
            generated_tokens=generated,
            tenant=one.tenant,
            tier="normal",
            value=1,
            deadline_ms=at + 2_000,
            estimate_ms=1_000,
            fails_first=False,
        )
        for index, at in enumerate(arrivals_ms)
    ]


def test_offered_load_of_a_known_arrival_process() -> None:
    asked = offered(rows(*range(0, 10_000, 500)), 1.0)  # 20 calls of 1 s in 10 s, and their failures
    tries = 1 / 0.985
    assert asked.slots == pytest.approx(tries * 20 * (1_000 + OVERHEAD_MS) / 10_000)
    assert asked.requests_per_minute == pytest.approx(tries * 120)
    assert asked.tokens_per_minute == pytest.approx(tries * 120 * 64)
    assert asked.largest_charge == 64


def test_a_single_request_is_one_slot_for_as_long_as_it_takes() -> None:
    assert offered(rows(0), 1.0).slots == pytest.approx((1_000 + OVERHEAD_MS) / 1_000 / 0.985)


@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 5),
    speed=st.sampled_from([0.1, 0.3, 1.0, 1.7, 2.0, 4.0, 20.0, 333.3]),
    wanted=st.sampled_from([0.2, 0.8, 1.3, 3.0]),
)
def test_sizing_keeps_to_the_load_and_provider_and_configuration_agree(
    count: int, seed: int, speed: float, wanted: float
) -> None:
    requests = load_of(count, speed, seed)
    asked = offered(requests, speed)
    capacity = size(asked, wanted, speed)
    assert loads(asked, capacity).highest <= wanted + 0.01
    assert capacity.tokens_per_minute // 6 >= max(map(charge, requests)) - 1
    # what the scheduler is told is what the provider enforces
    ours = config.parse(configuration.text(capacity, speed)).resources["llm"]
    model = parse_model(configuration.model_argument(capacity, speed))
    theirs = ModelBuckets(model, speed=speed, now_ms=0)
    assert isinstance(ours, Rate)
    assert ours.requests_per_minute == theirs.requests.limit == capacity.requests_per_minute
    assert ours.tokens_per_minute == theirs.tokens.limit == capacity.tokens_per_minute


def test_the_bottleneck_is_the_load() -> None:
    asked = offered(rows(*range(0, 10_000, 500)), 1.0)
    assert loads(asked, Capacity(slots=1, requests_per_minute=1_000, tokens_per_minute=0)).highest > 2
    assert loads(asked, Capacity(slots=100, requests_per_minute=12, tokens_per_minute=0)).highest > 10
    assert loads(asked, Capacity(slots=100, requests_per_minute=0, tokens_per_minute=768)).highest > 10
    assert loads(asked, Capacity(slots=100, requests_per_minute=0, tokens_per_minute=0)).tokens == 0


def test_backoffs_are_divided_by_the_speed() -> None:
    capacity = Capacity(slots=4, requests_per_minute=600, tokens_per_minute=60_000)
    types = config.parse(configuration.text(capacity, 20.0)).types
    assert {name: (t.backoff_ms, t.backoff_ms_max) for name, t in types.items()} == {
        "demo.chat": (50, 500),
        "demo.summarise": (50, 500),
    }


@given(generated=st.integers(0, 5_000))
def test_answers_fit_the_bound_that_the_call_states(generated: int) -> None:
    request = rows(0, generated=generated)[0]
    assert generated <= max_tokens(request) < generated + 65
    assert max_tokens(request) >= 1


def test_a_run_that_is_not_told_how_long_spans_the_default() -> None:
    for speed in (1.0, 4.0):
        requests = requests_of(Wish(), speed)
        assert 0.9 * ARRIVALS_MS < requests[-1].arrival_ms <= ARRIVALS_MS


def test_speed_divides_arrivals_deadlines_and_estimates_alike() -> None:
    slow, fast = requests_of(Wish(tasks=40), 1.0), requests_of(Wish(tasks=40), 10.0)
    assert [r.index for r in slow] == [r.index for r in fast]
    for one, other in zip(slow, fast, strict=True):
        assert other.arrival_ms == pytest.approx(one.arrival_ms / 10, abs=1)
        assert other.deadline_ms == pytest.approx(one.deadline_ms / 10, abs=1)
        assert other.estimate_ms == pytest.approx(one.estimate_ms / 10, abs=1)
        sizes = (one.context_tokens, one.generated_tokens)
        assert service_ms(*sizes, speed=10.0) == pytest.approx(service_ms(*sizes) / 10, abs=1)


def slack(requests: Sequence[Request]) -> list[int]:
    return [r.deadline_ms - r.arrival_ms for r in requests]


def test_a_stack_that_is_too_small_gets_the_load_later_not_shorter_deadlines() -> None:
    requests = requests_of(Wish(tasks=100), 1.0)
    small = Capacity(slots=5, requests_per_minute=0, tokens_per_minute=0)
    before = loads(offered(requests, 1.0), small).highest
    after = fitted(Wish(tasks=100), requests, small, 1.0)
    assert before > 3
    assert loads(offered(after, 1.0), small).highest == pytest.approx(0.8, rel=0.02)
    assert slack(after) == slack(requests)


def test_a_stack_that_is_large_enough_gets_the_load_as_it_is() -> None:
    requests = requests_of(Wish(tasks=100), 1.0)
    large = Capacity(slots=1_000, requests_per_minute=0, tokens_per_minute=0)
    assert fitted(Wish(tasks=100), requests, large, 1.0) == requests


def test_a_load_that_is_asked_for_is_made_in_both_directions() -> None:
    requests = requests_of(Wish(tasks=100), 1.0)
    for slots in (5, 40):
        there = Capacity(slots=slots, requests_per_minute=0, tokens_per_minute=0)
        made = fitted(Wish(tasks=100, load=1.3), requests, there, 1.0)
        assert loads(offered(made, 1.0), there).highest == pytest.approx(1.3, rel=0.05)


@given(
    calls=st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 5_000)), max_size=80),
    capacity=st.builds(
        Capacity,
        slots=st.just(1),
        requests_per_minute=st.integers(60, 5_000),
        tokens_per_minute=st.integers(6_000, 10**6),
    ),
)
def test_what_our_bucket_grants_up_to_five_seconds_late_fits_the_provider(
    calls: list[tuple[int, int]], capacity: Capacity
) -> None:
    """Burst + rate x delay is at most a quarter of the provider's bucket: safe by arithmetic."""
    limit = RateLimit(
        requests_per_minute=capacity.requests_per_minute,
        tokens_per_minute=capacity.tokens_per_minute,
        burst_requests=capacity.requests_per_minute // 6,
        burst_tokens=capacity.tokens_per_minute // 6,
    )
    full = 10**6  # a minute and more after the epoch began: the worst case is a full bucket
    ours, tokens = Bucket(limit=limit, refilled_ms=0), capacity.tokens_per_minute // 6
    granted: list[int] = []
    at_ms = full
    for gap_ms, delay_ms in calls:
        at_ms += gap_ms % 50  # as fast as anybody can ask
        ours.refill(at_ms)
        if ours.shortage(tokens // 3) is None:
            ours.debit(requests=1, tokens=tokens // 3)
            granted.append(at_ms + delay_ms)
    model = parse_model(f"llm:{capacity.requests_per_minute}:{capacity.tokens_per_minute}")
    provider = ModelBuckets(model, speed=1.0, now_ms=full - MINUTE_MS)
    assert [provider.admit(at, tokens=tokens // 3) for at in sorted(granted)] == [None] * len(granted)


def test_a_configuration_that_another_run_had_is_kept(tmp_path: Path) -> None:
    for content in ("a = 1\n", "b = 1\n", "b = 1\n", "a = 1\n"):
        path = configuration.write(tmp_path, content)
        assert path.read_text() == content
    assert sorted(file.read_text() for file in configuration.files_in(tmp_path)) == [
        "a = 1\n",
        "a = 1\n",
        "b = 1\n",
    ]
