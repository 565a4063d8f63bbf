"""How much a load asks for, and the slots and limits that make it a given share of what there is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from laxity.infra.demo.generator import FAILURE_RATE, Request, service_ms

LOAD_MAX: Final = 0.8  # unless asked for: beyond it waiting grows without bound
OVERHEAD_MS: Final = 50  # a slot is held for claim, start and report besides the call; no speed shortens that
MAX_TOKENS_STEP: Final = 64  # callers bound their answers in round numbers, a little above what they get
REQUESTS_PER_MINUTE_MIN: Final = 60  # its burst, a sixth, still takes a handful of calls at once
BURST_PARTS: Final = 6  # our buckets hold a sixth of a minute: the largest call must fit that
MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What there is: places to run, and what the provider takes per minute (0: no limit)."""

    slots: int
    requests_per_minute: int
    tokens_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What a load asks for on average while it arrives: slots in use at a time, calls and LLM tokens per minute."""

    slots: float
    requests_per_minute: float
    tokens_per_minute: float
    largest_charge: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """Offered divided by capacity."""

    slots: float
    requests: float
    tokens: float

    @property
    def highest(self) -> float:
        """That of the bottleneck."""
        return max(self.slots, self.requests, self.tokens)


def max_tokens(request: Request) -> int:
    """What the call says it generates at most."""
    return max(1, ceil(request.generated_tokens / MAX_TOKENS_STEP)) * MAX_TOKENS_STEP


def charge(request: Request) -> int:
    """LLM tokens that the provider counts for one call: prompt and the most it may generate."""
    return request.context_tokens + max_tokens(request)


def offered(requests: Sequence[Request], speed: float) -> Offered:
    """`requests` with their arrivals at this speed. Calls that fail on purpose are made again, so they count, too. At least one request."""
    services = [service_ms(r.context_tokens, r.generated_tokens, speed) for r in requests]
    tries = 1 / (1 - FAILURE_RATE)
    span_ms = _span_ms(requests, sum(services) / len(services))
    per_minute = tries * MINUTE_MS / span_ms
    return Offered(
        slots=tries * (sum(services) + OVERHEAD_MS * len(requests)) / span_ms,
        requests_per_minute=len(requests) * per_minute,
        tokens_per_minute=sum(map(charge, requests)) * per_minute,
        largest_charge=max(map(charge, requests)),
    )


def size(asked: Offered, load: float, speed: float) -> Capacity:
    """The capacity at which no resource has more than this load. Limits are whole multiples that speed 1 can state."""
    assert load > 0, f"load is {load}"
    return Capacity(
        slots=ceil(asked.slots / load),
        requests_per_minute=_limit(max(asked.requests_per_minute / load, REQUESTS_PER_MINUTE_MIN), speed),
        tokens_per_minute=_limit(
            max(asked.tokens_per_minute / load, asked.largest_charge * BURST_PARTS), speed
        ),
    )


def at_speed_one(limit: int, speed: float) -> int:
    """What a provider that multiplies by speed must be told so that it enforces `limit`."""
    base = round(limit / speed)
    assert round(base * speed) == limit, f"limit {limit} is no multiple that speed {speed} makes"
    return base


def loads(asked: Offered, capacity: Capacity) -> Loads:
    """Shares of what there is."""
    return Loads(
        slots=asked.slots / capacity.slots,
        requests=_share(asked.requests_per_minute, capacity.requests_per_minute),
        tokens=_share(asked.tokens_per_minute, capacity.tokens_per_minute),
    )


def _limit(wanted: float, speed: float) -> int:
    return round(max(1, ceil(wanted / speed)) * speed)


def _share(asked: float, limit: int) -> float:
    return asked / limit if limit else 0.0


def _span_ms(requests: Sequence[Request], mean_ms: float) -> float:
    """From the first arrival to where the next one would be; never so short that there were more slots in use than requests."""
    arrivals = [r.arrival_ms for r in requests]
    between = (max(arrivals) - min(arrivals)) / max(1, len(arrivals) - 1)
    return max(mean_ms, between * len(arrivals))
