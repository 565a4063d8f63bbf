"""The twin of `lua/reserve.lua`: candidates in their order, all or nothing each, and nobody overtakes at a resource that refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from laxity.streams.ledger.books import Books, Reservation, Runner
from laxity.streams.ledger.bucket import Bucket
from laxity.streams.ledger.limits import (
    CONFIG_RETRY_MS,
    FLEET_PREFIX,
    RATE_MAX,
    SLOT_RETRY_MS,
    Limit,
    Limits,
    RateLimit,
    SlotLimit,
)
from laxity.streams.ledger.protocol import Candidate, Grant, Refusal
from laxity.streams.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a decision depends on beside the books."""

    now_ms: int
    begun_ms: int  # of the epoch
    opens_ms: int  # 0: open; else nothing new is granted until then
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Short:
    """Why not now."""

    reason: Reason
    resource: str
    retry_ms: int
    rival: str = ""


@dataclass(slots=True, kw_only=True)
class Admission:
    """One reserve call. `blocked` are the resources that refused somebody earlier in it."""

    books: Books
    limits: Limits
    shard: int
    moment: Moment
    grants: list[Grant] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    blocked: dict[str, Short] = field(default_factory=dict)

    def decide(self, candidates: Sequence[Candidate]) -> None:
        """Fill `grants` and `refusals`, each in the order of the candidates."""
        for candidate in candidates:
            # 1. A repeat gets what it got; what was ended stays ended.
            standing = self.books.reservations.get(candidate.reservation_id)
            if standing is not None and self._stands(standing):
                self.grants.append(_grant(candidate.reservation_id, standing))
                continue
            short = self._gone(candidate, standing) or self._recovering()
            # 2. All demands, keyed slots first: who waits for a key holds nothing else up.
            demands = ordered(candidate, self.limits)
            short = short or self._first_short(candidate, demands)
            # 3. Take all of it, or remember who waits for what.
            if short is None:
                self._take(candidate, demands)
            else:
                self._refuse(candidate, short)

    def _stands(self, standing: Reservation) -> bool:
        alive = standing.expires_ms > self.moment.now_ms and not standing.released
        return alive and standing.shard == self.shard

    def _gone(self, candidate: Candidate, standing: Reservation | None) -> Short | None:
        ended = (
            candidate.reservation_id in self.books.tombstones or candidate.reservation_id in self.books.reaped
        )
        return Short(Reason.GONE, "", 0) if ended or standing is not None else None

    def _recovering(self) -> Short | None:
        moment = self.moment
        return Short(Reason.RECOVERING, "", moment.opens_ms - moment.now_ms) if moment.opens_ms else None

    def _first_short(
        self, candidate: Candidate, demands: Sequence[tuple[str, int, Limit | None]]
    ) -> Short | None:
        for name, amount, limit in demands:
            short = self.blocked.get(name) or self._short_of(name, amount, limit)
            if short is not None:
                return short
        fleet = FLEET_PREFIX + candidate.fleet
        return self.blocked.get(fleet) or self._short_of_runner(candidate.fleet)

    def _short_of(self, name: str, amount: int, limit: Limit | None) -> Short | None:
        match limit:
            case None:
                return Short(Reason.UNKNOWN_RESOURCE, name, CONFIG_RETRY_MS)
            case SlotLimit():
                return self._short_of_slots(name, amount, limit)
            case RateLimit():
                return self._short_of_rate(name, amount, limit)

    def _short_of_slots(self, name: str, amount: int, limit: SlotLimit) -> Short | None:
        if amount > limit.capacity:
            return Short(Reason.OVER_CAPACITY, name, CONFIG_RETRY_MS)
        if self.books.used.get(name, 0) + amount > limit.capacity:
            return Short(Reason.KEY_BUSY if limit.keyed else Reason.SLOTS_FULL, name, SLOT_RETRY_MS)
        return None

    def _short_of_rate(self, name: str, amount: int, limit: RateLimit) -> Short | None:
        if over_rate(limit, amount):
            return Short(Reason.OVER_CAPACITY, name, CONFIG_RETRY_MS)
        bucket, now_ms = self._bucket(name, limit), self.moment.now_ms
        if bucket.calls_first_ms > now_ms:
            return Short(Reason.CALLS_FIRST, name, bucket.calls_first_ms - now_ms)
        shortage = bucket.shortage(amount)
        return Short(shortage[0], name, shortage[1]) if shortage else None

    def _short_of_runner(self, fleet: str) -> Short | None:
        best = self.books.best_runner(fleet)
        if best is None:
            return Short(Reason.NO_RUNNER, FLEET_PREFIX + fleet, SLOT_RETRY_MS)
        return Short(Reason.FLEET_FULL, FLEET_PREFIX + fleet, SLOT_RETRY_MS) if best[1].free() <= 0 else None

    def _bucket(self, name: str, limit: RateLimit) -> Bucket:
        return self.books.bucket(name, limit, begun_ms=self.moment.begun_ms, now_ms=self.moment.now_ms)

    def _take(self, candidate: Candidate, demands: Sequence[tuple[str, int, Limit | None]]) -> None:
        rates = {name: amount for name, amount, limit in demands if isinstance(limit, RateLimit)}
        slots = {name: amount for name, amount, limit in demands if isinstance(limit, SlotLimit)}
        for name, amount in rates.items():
            self.books.buckets[name].debit(requests=1, tokens=amount)
        name, runner = self._runner(candidate.fleet)
        reservation = Reservation(
            shard=self.shard,
            fleet=candidate.fleet,
            runner=name,
            partition=runner.partition,
            granted_ms=self.moment.now_ms,
            expires_ms=self.moment.now_ms + self.moment.ttl_ms,
            slots=slots,
            rates=rates,
        )
        self.books.hold(candidate.reservation_id, reservation)
        self.grants.append(_grant(candidate.reservation_id, reservation))

    def _runner(self, fleet: str) -> tuple[str, Runner]:
        best = self.books.best_runner(fleet)
        assert best is not None, f"fleet {fleet!r} was found short of nothing"
        return best

    def _refuse(self, candidate: Candidate, short: Short) -> None:
        reservation_id = candidate.reservation_id
        self.refusals.append(
            Refusal(
                reservation_id=reservation_id,
                reason=short.reason,
                resource=short.resource,
                retry_ms=short.retry_ms,
                rival=short.rival,
            )
        )
        if short.reason not in UNTIMELY:
            self.books.waiting.add(short.resource)
            self.blocked.setdefault(
                short.resource, Short(short.reason, short.resource, short.retry_ms, reservation_id)
            )


UNTIMELY = frozenset({Reason.GONE, Reason.RECOVERING, Reason.UNKNOWN_RESOURCE, Reason.OVER_CAPACITY})
"""Refusals that no release ends: they hold nobody up and wake nobody."""


def over_rate(limit: RateLimit, tokens: int) -> bool:
    """More than a minute of the bucket: it would block it for longer than any window."""
    return tokens > (limit.tokens_per_minute or RATE_MAX)


def ordered(candidate: Candidate, limits: Limits) -> list[tuple[str, int, Limit | None]]:
    """Demands with their limits in the one order of checking: unknown, keyed, slots, rates; by name within."""
    known = [(name, amount, limits.of_demand(name)) for name, amount in candidate.demands.items()]
    return sorted(known, key=lambda demand: (rank_of(demand[2]), demand[0]))


def rank_of(limit: Limit | None) -> int:
    """0 unknown, 1 keyed, 2 slots, 3 rate."""
    if limit is None:
        return 0
    if isinstance(limit, SlotLimit):
        return 1 if limit.keyed else 2
    return 3


def _grant(reservation_id: str, reservation: Reservation) -> Grant:
    return Grant(
        reservation_id=reservation_id,
        runner=reservation.runner,
        partition=reservation.partition,
        granted=reservation.granted(),
        granted_ms=reservation.granted_ms,
    )
