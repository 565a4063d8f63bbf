"""The load of a run: recorded or generated rows with tenants, tiers and deadlines, at a speed, stretched to a load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from random import Random  # noqa: TID251  seeded here, once, from the command line
from typing import Final

from laxity.infra.demo.generator import FAILURE_RATE, GAP_MEAN_MS, Request, assign, at_speed, generate
from laxity.infra.demo.sizing import LOAD_MAX, Capacity, loads, offered
from laxity.infra.demo.trace import TraceRow, read_trace

ARRIVALS_MS: Final = (
    90_000  # of a run that is not told how many tasks: with start, end and tail under three minutes
)
SPEED_DEFAULT: Final = (
    2.0  # leaves the most urgent tier 0.75 s of slack: what a laptop that runs everything can keep
)
ESTIMATE_SIGMA: Final = 0.5  # nobody knows beforehand how long a completion takes
SPARE_ROWS: Final = 2.0  # generated gaps vary: twice the expected number surely spans ARRIVALS_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for. `speed` and `load` None: the stack's, else the defaults; `tasks` None: ARRIVALS_MS of them."""

    trace: Path | None = None
    tasks: int | None = None
    speed: float | None = None
    load: float | None = None
    seed: int = 0
    dedupe: bool = True
    inject_429: float = 0.0
    inject_500: float = FAILURE_RATE

    @property
    def provider_options(self) -> tuple[bool, float, float]:
        """What a provider must be started with."""
        return self.dedupe, self.inject_429, self.inject_500

    @property
    def load_max(self) -> float:
        """What no resource's load may pass."""
        return LOAD_MAX if self.load is None else self.load


def requests_of(wish: Wish, speed: float) -> list[Request]:
    """At this speed. TraceError for a trace that cannot be read."""
    requests = assign(_rows(wish, speed), wish.seed, estimate_sigma=ESTIMATE_SIGMA)
    return at_speed(requests, speed)


def fitted(wish: Wish, requests: Sequence[Request], capacity: Capacity, speed: float) -> list[Request]:
    """The same for a capacity that is what it is: gaps stretched until the load is the one allowed, or shrunk to one that was asked for."""
    factor = loads(offered(requests, speed), capacity).highest / wish.load_max
    if wish.load is None:
        factor = max(1.0, factor)
    stretched = [_later(request, factor) for request in requests]
    if wish.tasks is not None:
        return stretched
    return list(takewhile(lambda request: request.arrival_ms <= ARRIVALS_MS, stretched))


def _later(request: Request, factor: float) -> Request:
    """Arrives `factor` times as late, with as much time to its deadline as before."""
    arrival_ms = round(request.arrival_ms * factor)
    shift_ms = arrival_ms - request.arrival_ms
    return replace(request, arrival_ms=arrival_ms, deadline_ms=request.deadline_ms + shift_ms)


def _rows(wish: Wish, speed: float) -> list[TraceRow]:
    if wish.tasks is not None:
        return list(islice(_source(wish, wish.tasks), wish.tasks))
    until_ms = ARRIVALS_MS * speed
    expected = round(SPARE_ROWS * until_ms / GAP_MEAN_MS) + 1
    return list(takewhile(lambda row: row.arrival_ms <= until_ms, _source(wish, expected)))


def _source(wish: Wish, count: int) -> Iterable[TraceRow]:
    if wish.trace is not None:
        return read_trace(wish.trace)
    return generate(count, Random(wish.seed))  # noqa: S311  a load, no secret
