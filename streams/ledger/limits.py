"""What the ledger counts and how much of it there is, as plain values; and the bounds of one call to it, with their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from laxity.schemas.config import Config, Rate, Resource
from laxity.schemas.limits import INT_MAX

LEASE_TTL_MS: Final = 15_000  # how long a dead runner may hold a slot; a runner renews each third of it
SLOT_RETRY_MS: Final = 1_000  # a release wakes; this is for the message that was lost
CONFIG_RETRY_MS: Final = 60_000  # only a new configuration helps
CALL_GRACE_MS: Final = 250  # beyond its wait, a refused call keeps new dispatches off the bucket this long

CANDIDATES_MAX: Final = 512  # in one script: some 5 ms of the server's only thread
IDS_MAX: Final = 1_024  # settles, revokes, cancels, acknowledged ids, renewals in one call: the same
TOGETHER_MAX: Final = 64  # claims or releases in one transaction: near 2 ms of the server's only thread
REPORT_MAX: Final = 48  # of a shard's reservations in one script: near a millisecond if all are entered
LOOK_MAX: Final = 2 * REPORT_MAX  # held ones it looks at: at least half are not in the report, and go
RESOURCES_MAX: Final = 2_048  # named in one call, keyed slots counted singly
USED_MAX: Final = 64  # counts in one usage report: demands and a provider's own
REAP_MAX: Final = 64  # leases ended per call: keeps any call near a millisecond after a mass lapse
REAPED_MAX: Final = 256  # lapsed ids told per answer; the rest follow with the next one
CREDIT_MAX: Final = 2**20 - 1  # of a runner; fits the score of the index of free runners

RATE_MAX: Final = 10**10  # per minute; ten minutes of it in the bucket's units stay below 2^53
HELD_MAX: Final = 2**36  # of one resource by one reservation; 100,000 of them add up below 2^53
BUCKET_UNITS: Final = 60_000  # of one LLM token or request: the refill of a millisecond is then an integer
DEBT_MINUTES_MAX: Final = 10  # a wrong usage report must not close a resource for good
FLEET_PREFIX: Final = "fleet."  # `fleet.NAME` in a granted vector is the runner's credit


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Requests and LLM tokens per minute, refilled continuously; 0 in a dimension: not limited.

    `refund`: whether LLM tokens that a started task did not use go back. Off by default: a provider that debits prompt and
    `max_tokens` at arrival gives nothing back, so a refund here would send more than it takes. On for one that bills by use.
    """

    requests_per_minute: int
    tokens_per_minute: int
    burst_requests: int
    burst_tokens: int
    refund: bool = False

    def __post_init__(self) -> None:
        """ValueError names the field that is out of range."""
        for name in ("requests_per_minute", "tokens_per_minute", "burst_requests", "burst_tokens"):
            _within(name, getattr(self, name), RATE_MAX)
        for name in ("requests", "tokens"):
            if getattr(self, f"{name}_per_minute") and not getattr(self, f"burst_{name}"):
                raise ValueError(f"burst_{name}=0 with a limit of {name} per minute: at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLimit:
    """Places to be held at the same time; `keyed`: that many for each key."""

    capacity: int
    keyed: bool = False

    def __post_init__(self) -> None:
        """ValueError if the capacity is out of range."""
        _within("capacity", self.capacity, INT_MAX)


Limit = RateLimit | SlotLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """All resources by name."""

    resources: Mapping[str, Limit]

    def __post_init__(self) -> None:
        """ValueError for a name that would read as a fleet."""
        for name in self.resources:
            if name.startswith(FLEET_PREFIX):
                raise ValueError(f"resource {name!r}: names that begin with {FLEET_PREFIX!r} are for fleets")

    @classmethod
    def of(cls, config: Config) -> Limits:
        """Those of the configuration."""
        return cls(resources={name: _limit_of(resource) for name, resource in config.resources.items()})

    def of_demand(self, demand: str) -> Limit | None:
        """The limit behind a demand: `account` for `account:acme`. None: no such resource, or a key too many or too few."""
        name, colon, _ = demand.partition(":")
        limit = self.resources.get(name)
        keyed = isinstance(limit, SlotLimit) and limit.keyed
        return limit if keyed == bool(colon) else None


def _limit_of(resource: Resource) -> Limit:
    if isinstance(resource, Rate):
        return RateLimit(
            requests_per_minute=resource.requests_per_minute,
            tokens_per_minute=resource.tokens_per_minute,
            burst_requests=resource.burst_requests,
            burst_tokens=resource.burst_tokens,
        )
    return SlotLimit(capacity=resource.capacity, keyed=resource.kind == "keyed")


def _within(field: str, value: int, limit: int) -> None:
    if not 0 <= value <= limit:
        raise ValueError(f"{field}={value}: must be between 0 and {limit}")
