from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import log
from random import Random  # noqa: TID251  seeded here, passed in
from statistics import fmean, median, pstdev, stdev

import pytest

from laxity.infra.demo.generator import TIERS, assign, at_speed, generate, service_ms
from laxity.infra.demo.trace import TraceRow

SEED = 20_240_229
LAXITY = {mix.tier: mix.laxity_ms for mix in TIERS}


def rows(count: int, *, gap_cv: float = 1.0) -> list[TraceRow]:
    return generate(count, Random(SEED), gap_cv=gap_cv)


@pytest.mark.parametrize(
    ("context", "generated", "speed", "expected"),
    [
        (8_000, 0, 1, 1_000),
        (0, 50, 1, 1_000),
        (374, 44, 1, 927),
        (8_000, 50, 4, 500),
        (0, 0, 1, 1),
        (8, 0, 10, 1),
    ],
)
def test_service_time_is_the_sum_of_reading_and_writing(
    context: int, generated: int, speed: float, expected: int
) -> None:
    assert service_ms(context, generated, speed) == expected


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed is"):
        service_ms(1, 1, speed)


def test_tenants_and_tiers_have_the_stated_shares() -> None:
    requests = assign(rows(20_000), SEED)
    tenants = [count for _, count in sorted(Counter(request.tenant for request in requests).items())]
    assert tenants[0] / 20_000 == pytest.approx(0.30, abs=0.015)
    assert sum(tenants[:5]) / 20_000 == pytest.approx(0.75, abs=0.015)
    assert tenants == sorted(tenants, reverse=True)
    tiers = Counter(request.tier for request in requests)
    for tier, share in {"critical": 0.1, "high": 0.2, "normal": 0.4, "low": 0.2, "background": 0.1}.items():
        assert tiers[tier] / 20_000 == pytest.approx(share, abs=0.015)
    assert sum(request.fails_first for request in requests) / 20_000 == pytest.approx(0.015, abs=0.004)


def test_tenant_and_tier_are_independent() -> None:
    requests = [request for request in assign(rows(20_000), SEED) if request.tenant == "tenant-01"]
    critical = sum(request.tier == "critical" for request in requests)
    assert critical / len(requests) == pytest.approx(0.1, abs=0.02)


def test_the_deadline_leaves_service_and_the_tiers_laxity() -> None:
    requests = assign(rows(500), SEED, laxity_factor=0.5)
    for request in requests:
        service = service_ms(request.context_tokens, request.generated_tokens)
        assert request.deadline_ms - request.arrival_ms - service == LAXITY[request.tier] // 2
        assert request.estimate_ms == service
    assert (min(LAXITY.values()), max(LAXITY.values())) == (1_500, 60_000)
    assert {(request.tier, request.value) for request in requests} == {
        ("critical", 16),
        ("high", 8),
        ("normal", 4),
        ("low", 2),
        ("background", 1),
    }


@pytest.mark.parametrize("cv", [1.0, 3.0, 13.0])
def test_gaps_have_the_mean_and_variation_asked_for(cv: float) -> None:
    load = generate(60_000, Random(SEED), gap_mean_ms=10_000, gap_cv=cv)
    gaps = [after.arrival_ms - before.arrival_ms for before, after in pairwise(load)]
    assert load[0].arrival_ms == 0
    assert fmean(gaps) == pytest.approx(10_000, rel=0.15)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_sizes_resemble_the_recorded_conversations() -> None:
    load = rows(20_000)
    assert fmean(row.context_tokens for row in load) == pytest.approx(1_100, rel=0.05)
    assert fmean(row.generated_tokens for row in load) == pytest.approx(225, rel=0.1)
    assert max(row.generated_tokens for row in load) <= 1_000
    assert min(min(row.context_tokens, row.generated_tokens) for row in load) >= 1


def test_the_same_seed_gives_the_same_load_and_another_seed_another() -> None:
    assert rows(300) == rows(300)
    assert rows(300) != generate(300, Random(SEED + 1))
    assert assign(rows(300), 1) == assign(rows(300), 1)
    assert assign(rows(300), 1) != assign(rows(300), 2)


def test_a_shorter_load_is_the_beginning_of_a_longer_one() -> None:
    load = rows(300)
    assert assign(load[:100], SEED) == assign(load, SEED)[:100]
    assert load[:1] == rows(1)


def test_an_empty_load_is_empty() -> None:
    assert rows(0) == []
    assert assign([], SEED) == []


def test_estimates_err_by_a_lognormal_factor() -> None:
    requests = assign(rows(20_000), SEED, estimate_sigma=0.5)
    errors = [
        log(request.estimate_ms / service_ms(request.context_tokens, request.generated_tokens))
        for request in requests
    ]
    assert median(errors) == pytest.approx(0, abs=0.02)
    assert stdev(errors) == pytest.approx(0.5, rel=0.03)


def test_speed_divides_all_times() -> None:
    request = assign([TraceRow(arrival_ms=1_000, context_tokens=8_000, generated_tokens=50)], SEED)[0]
    (fast,) = at_speed([request], 4)
    assert fast.arrival_ms == 250
    assert fast.deadline_ms == round(request.deadline_ms / 4)
    assert fast.estimate_ms == 500
    assert (fast.tier, fast.tenant, fast.context_tokens) == (request.tier, request.tenant, 8_000)


def test_factors_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="laxity_factor is -1"):
        assign([], SEED, laxity_factor=-1)
    with pytest.raises(ValueError, match="gap_cv is 0"):
        generate(1, Random(SEED), gap_cv=0)
    with pytest.raises(ValueError, match="speed is 0"):
        at_speed([], 0)
