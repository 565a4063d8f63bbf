"""Load for the demonstration: recorded rows, or rows like them, with tenant, tier, value and deadline.

All times are ms after the start of the run, at speed 1; `at_speed` makes a run shorter. What a row is given
depends only on the seed and its place, so the first N rows of a long load are the load of N rows.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from math import exp, inf, log
from statistics import NormalDist
from typing import TYPE_CHECKING

from laxity.infra.demo.draws import draw_unit
from laxity.infra.demo.trace import TraceRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random  # noqa: TID251  only the type: the caller seeds it and passes it in

CONTEXT_TOKENS_PER_SECOND = 8_000  # prompt tokens are read at this rate …
GENERATED_TOKEN_MS = 20  # … and each generated token takes this long
FAILURE_RATE = 0.015  # calls that fail although nothing is wrong with them
TENANTS = 10  # with this exponent the first sends 0.30 of all, the first five 0.75
TENANT_EXPONENT = 0.87
GAP_CV = 1.0  # of the inter-arrival times: 1 Poisson, 3 bursts, 13 the recorded code trace
GAP_MEAN_MS = 206.0  # of the recorded conversation trace, as are the means of the tokens below
CONTEXT_TOKENS_MEAN, CONTEXT_TOKENS_MAX = 1_100, 14_000
GENERATED_TOKENS_MEAN, GENERATED_TOKENS_MAX = 230, 1_000
TOKENS_SIGMA = 0.8  # of the logarithm, both counts


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMix:
    """How often a tier occurs, what one of its tasks is worth, how long it can wait."""

    tier: str
    share: float
    value: int
    laxity_ms: int


TIERS = (
    TierMix(tier="critical", share=0.1, value=16, laxity_ms=1_500),
    TierMix(tier="high", share=0.2, value=8, laxity_ms=4_000),
    TierMix(tier="normal", share=0.4, value=4, laxity_ms=10_000),
    TierMix(tier="low", share=0.2, value=2, laxity_ms=25_000),
    TierMix(tier="background", share=0.1, value=1, laxity_ms=60_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One task of the load; `fails_first` says that a host without the provider fails its first attempt."""

    index: int
    arrival_ms: int
    context_tokens: int
    generated_tokens: int
    tenant: str
    tier: str
    value: int
    deadline_ms: int
    estimate_ms: int
    fails_first: bool


def service_ms(context_tokens: int, generated_tokens: int, speed: float = 1.0) -> int:
    """How long the provider takes for one call, in ms, at least 1."""
    at_speed_one = context_tokens * 1_000 / CONTEXT_TOKENS_PER_SECOND + generated_tokens * GENERATED_TOKEN_MS
    return max(1, round(at_speed_one / _valid_positive("speed", speed)))


def assign(
    rows: Iterable[TraceRow], seed: int, *, laxity_factor: float = 1.0, estimate_sigma: float = 0.0
) -> list[Request]:
    """Each row with a tenant, tier, value, deadline = arrival + service + factor x the tier's laxity.

    The estimate is the service time times a lognormal error with this sigma (0: perfect).
    """
    if not 0 <= laxity_factor < inf or not 0 <= estimate_sigma < inf:
        raise ValueError(
            f"laxity_factor is {laxity_factor}, estimate_sigma {estimate_sigma}; neither may be below 0 or infinite"
        )
    return [_request(row, index, seed, laxity_factor, estimate_sigma) for index, row in enumerate(rows)]


def generate(
    count: int, random: Random, *, gap_mean_ms: float = GAP_MEAN_MS, gap_cv: float = GAP_CV
) -> list[TraceRow]:
    """`count` rows with Gamma inter-arrivals of this mean and coefficient of variation, for `assign`."""
    _valid_positive("gap_mean_ms", gap_mean_ms)
    _valid_positive("gap_cv", gap_cv)
    shape = 1 / gap_cv**2
    arrivals = accumulate(
        (random.gammavariate(shape, gap_mean_ms / shape) for _ in range(count - 1)), initial=0.0
    )
    return [
        TraceRow(arrival_ms=int(arrival), context_tokens=context, generated_tokens=generated)
        for arrival, (context, generated) in zip(arrivals, _sizes(random), strict=False)
    ][: max(0, count)]


def at_speed(requests: Iterable[Request], speed: float) -> list[Request]:
    """The same load `speed` times as fast: arrivals, deadlines and estimates divided by it."""
    _valid_positive("speed", speed)
    return [
        replace(
            request,
            arrival_ms=round(request.arrival_ms / speed),
            deadline_ms=round(request.deadline_ms / speed),
            estimate_ms=max(1, round(request.estimate_ms / speed)),
        )
        for request in requests
    ]


def _request(row: TraceRow, index: int, seed: int, laxity_factor: float, sigma: float) -> Request:
    service = service_ms(row.context_tokens, row.generated_tokens)
    mix = TIERS[bisect_right(_TIER_BOUNDS, draw_unit(seed, "tier", index))]
    return Request(
        index=index,
        arrival_ms=row.arrival_ms,
        context_tokens=row.context_tokens,
        generated_tokens=row.generated_tokens,
        tenant=f"tenant-{1 + bisect_right(_TENANT_BOUNDS, draw_unit(seed, 'tenant', index)):02d}",
        tier=mix.tier,
        value=mix.value,
        deadline_ms=row.arrival_ms + service + round(laxity_factor * mix.laxity_ms),
        estimate_ms=max(1, round(service * _error(sigma, draw_unit(seed, "estimate", index)))),
        fails_first=draw_unit(seed, "failure", index) < FAILURE_RATE,
    )


def _error(sigma: float, unit: float) -> float:
    """Lognormal with median 1; the draw is kept off 0, where the normal distribution has no value."""
    return exp(sigma * NormalDist().inv_cdf(max(unit, 2**-53)))


def _sizes(random: Random) -> Iterator[tuple[int, int]]:
    """Context and generated tokens: lognormal, so most are small and a few are large."""
    while True:
        yield (
            _size(random, CONTEXT_TOKENS_MEAN, CONTEXT_TOKENS_MAX),
            _size(random, GENERATED_TOKENS_MEAN, GENERATED_TOKENS_MAX),
        )


def _size(random: Random, mean: int, most: int) -> int:
    return min(most, max(1, round(random.lognormvariate(log(mean) - TOKENS_SIGMA**2 / 2, TOKENS_SIGMA))))


def _bounds(weights: list[float]) -> list[float]:
    """Upper edges of all classes but the last, which takes what remains: no rounding loses a draw."""
    return [edge / sum(weights) for edge in accumulate(weights)][:-1]


def _valid_positive(name: str, value: float) -> float:
    if not 0 < value < inf:
        raise ValueError(f"{name} is {value}; it must be above 0 and finite")
    return value


_TENANT_BOUNDS = _bounds([rank**-TENANT_EXPONENT for rank in range(1, TENANTS + 1)])
_TIER_BOUNDS = _bounds([mix.share for mix in TIERS])
