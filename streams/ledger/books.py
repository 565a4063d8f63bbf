"""The twin's books: what the ledger remembers, and the moves that its decisions share. `lua/books.lua` has the same moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from laxity.streams.ledger.bucket import Bucket
from laxity.streams.ledger.limits import FLEET_PREFIX, REAP_MAX, RateLimit


class Claimed(IntEnum):
    """What the ledger knows of a claim. RESTORED: entered again after a loss, so it may have been claimed before."""

    NO = 0
    YES = 1
    RESTORED = 2


class Ended(IntEnum):
    """What a tombstone says. REVOKED: taken back before anyone claimed it, so a repeated revoke answers the same."""

    CLOSED = 0
    REVOKED = 1


@dataclass(slots=True, kw_only=True)
class Reservation:
    """One grant. `released`: its slots are back, only the settlement of its LLM tokens is awaited."""

    shard: int
    fleet: str
    runner: str
    partition: int
    granted_ms: int
    expires_ms: int
    slots: dict[str, int]
    rates: dict[str, int]
    claimed: Claimed = Claimed.NO
    order: str = ""
    released: bool = False

    def granted(self) -> dict[str, int]:
        """The vector held, the runner's credit included."""
        held = self.slots | self.rates
        return held | {FLEET_PREFIX + self.fleet: 1} if self.fleet else held


@dataclass(slots=True, kw_only=True)
class Runner:
    """`credit`: the most reservations that may stand here; `used`: those that do. Gone once lapsed and empty."""

    partition: int = 0
    credit: int = 0
    used: int = 0
    expires_ms: int = 0

    def free(self) -> int:
        """May be negative after the credit was lowered."""
        return self.credit - self.used


@dataclass(slots=True)
class Books:
    """All of the ledger's memory but the epoch. Everything here is lost with the server."""

    reservations: dict[str, Reservation] = field(default_factory=dict)
    tombstones: dict[str, tuple[int, Ended]] = field(default_factory=dict)  # id -> lapses at, how it ended
    reaped: dict[str, int] = field(default_factory=dict)  # id -> shard
    used: dict[str, int] = field(default_factory=dict)  # slots and keyed slots; no zeros
    buckets: dict[str, Bucket] = field(default_factory=dict)
    runners: dict[tuple[str, str], Runner] = field(default_factory=dict)  # by fleet and name
    waiting: set[str] = field(default_factory=set)  # resources that refused someone since their last wake

    def begun_anew(self) -> Books:
        """Books for a new epoch: the live registrations with nothing standing at them."""
        live = {key: runner for key, runner in self.runners.items() if runner.expires_ms}
        for runner in live.values():
            runner.used = 0
        return Books(runners=live)

    def bucket(self, name: str, limit: RateLimit, *, begun_ms: int, now_ms: int) -> Bucket:
        """The bucket under `limit`, refilled; a new one has filled since the epoch began."""
        bucket = self.buckets.get(name)
        if bucket is None:
            bucket = self.buckets[name] = Bucket(limit=limit, refilled_ms=begun_ms)
        bucket.adopt(limit, now_ms)
        return bucket

    def free_slots(self, reservation: Reservation) -> list[str]:
        """Slots and the runner's credit go back; the names of what was freed, in order."""
        freed = list(reservation.slots)
        for name, amount in reservation.slots.items():
            self._use(name, -amount)
        if reservation.fleet:
            freed.append(FLEET_PREFIX + reservation.fleet)
            key = (reservation.fleet, reservation.runner)
            runner = self.runners[key]
            runner.used -= 1
            if runner.used == 0 and runner.expires_ms == 0:
                del self.runners[key]
        return freed

    def refund_unstarted(self, reservation: Reservation, now_ms: int) -> list[str]:
        """All of the rates go back, if it was surely never claimed; the names of what was freed."""
        if reservation.claimed is not Claimed.NO:
            return []
        freed = []
        for name, tokens in reservation.rates.items():
            if bucket := self.buckets.get(name):
                bucket.refill(now_ms)
                bucket.credit(requests=1, tokens=tokens)
                freed.append(name)
        return freed

    def settle_rates(
        self, reservation: Reservation, used: Iterable[tuple[str, int]], now_ms: int
    ) -> list[str]:
        """Actual LLM tokens: more are debited, fewer given back where the resource says so. Only once for each difference."""
        freed = []
        for name, tokens in used:
            held, bucket = reservation.rates.get(name), self.buckets.get(name)
            if held is None or bucket is None or tokens == held:
                continue
            bucket.refill(now_ms)
            if tokens > held:
                bucket.debit(requests=0, tokens=tokens - held)
            elif bucket.limit.refund:
                bucket.credit(requests=0, tokens=held - tokens)
                freed.append(name)
            else:
                continue
            reservation.rates[name] = tokens
        return freed

    def hold(self, reservation_id: str, reservation: Reservation) -> None:
        """Enter a reservation and take its slots and credit; rates were debited by who granted it."""
        self.reservations[reservation_id] = reservation
        for name, amount in reservation.slots.items():
            self._use(name, amount)
        if reservation.fleet:
            key = (reservation.fleet, reservation.runner)
            runner = self.runners.setdefault(key, Runner(partition=reservation.partition))
            runner.used += 1

    def drop(self, reservation_id: str, now_ms: int) -> list[str]:
        """Forget a reservation and take back what surely was not used; the names of what was freed."""
        reservation = self.reservations.pop(reservation_id)
        if reservation.released:
            return []
        return self.free_slots(reservation) + self.refund_unstarted(reservation, now_ms)

    def bury(self, reservation_id: str, ended: Ended, until_ms: int) -> None:
        """Leave a tombstone, so that a repeat does nothing."""
        self.tombstones[reservation_id] = (until_ms, ended)

    def reap(self, now_ms: int) -> list[str]:
        """End what has lapsed, oldest first, at most REAP_MAX leases and tombstones; the names of what was freed."""
        buried = ((2 * until_ms + ended, i) for i, (until_ms, ended) in self.tombstones.items())
        for lapsed in _oldest(buried, 2 * now_ms + 1):
            del self.tombstones[lapsed]
        freed = []
        for lapsed in _oldest(((r.expires_ms, i) for i, r in self.reservations.items()), now_ms):
            reservation = self.reservations[lapsed]
            if not reservation.released:
                self.reaped[lapsed] = reservation.shard
            freed += self.drop(lapsed, now_ms)
        return freed

    def expire_runners(self, now_ms: int) -> None:
        """Runners that stopped announcing themselves get nothing more; their leases stay until they lapse."""
        for key, runner in list(self.runners.items()):
            if 0 < runner.expires_ms <= now_ms:
                self.retire(key)

    def retire(self, key: tuple[str, str]) -> None:
        """Send nothing to this runner any more; forget it once nothing stands there."""
        runner = self.runners.get(key)
        if runner is None:
            return
        runner.credit = runner.expires_ms = 0
        if runner.used == 0:
            del self.runners[key]

    def best_runner(self, fleet: str) -> tuple[str, Runner] | None:
        """The live runner with most free credit, ties by name; None if no live runner takes anything."""
        live = [(name, r) for (of, name), r in self.runners.items() if of == fleet and r.credit > 0]
        return min(live, key=lambda one: (-max(0, one[1].free()), one[0].encode()), default=None)

    def acknowledge(self, shard: int, ids: Iterable[str]) -> None:
        """Forget lapsed ids of the shard."""
        for reservation_id in ids:
            if self.reaped.get(reservation_id) == shard:
                del self.reaped[reservation_id]

    def reaped_of(self, shard: int, count_max: int) -> list[str]:
        """Lapsed ids of the shard that it has not acknowledged, in order of their bytes."""
        mine = (reservation_id for reservation_id, owner in self.reaped.items() if owner == shard)
        return sorted(mine, key=str.encode)[:count_max]

    def _use(self, name: str, amount: int) -> None:
        self.used[name] = self.used.get(name, 0) + amount
        if self.used[name] <= 0:
            del self.used[name]


def _oldest(entries: Iterable[tuple[int, str]], now_ms: int) -> list[str]:
    """Ids that have lapsed at `now_ms`, in the order of a sorted set: by time, then by bytes."""
    due = sorted((at, i.encode()) for at, i in entries if at <= now_ms)
    return [raw.decode() for _, raw in due[:REAP_MAX]]
