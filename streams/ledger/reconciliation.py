"""The twin of the second half of `lua/reconcile.lua`: one page of what a shard knows against what the ledger knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from laxity.streams.ledger.books import Books, Claimed, Reservation
from laxity.streams.ledger.limits import FLEET_PREFIX, LOOK_MAX, Limits, RateLimit
from laxity.streams.ledger.protocol import Live, Report


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """One page. The owner has been checked, the epoch begun. `more`: there is more to drop before anything is entered."""

    books: Books
    limits: Limits
    page: Report
    now_ms: int
    ttl_ms: int
    lapsed: list[str] = field(default_factory=list)
    dropped: int = 0
    restored: int = 0
    more: bool = False

    def apply(self, *, enters: bool) -> list[str]:
        """Drop what the shard does not know, enter again what a loss took (or, unless `enters`, count it as lapsed); the names of what was freed."""
        freed = self._drop_others({one.reservation_id for one in self.page.live})
        if self.more:
            return freed
        for one in self.page.live:
            if not one.active or self._known(one.reservation_id):
                continue
            if not enters or self._ended(one.reservation_id):
                self.lapsed.append(one.reservation_id)
            else:
                self.books.hold(one.reservation_id, self._again(one))
                self.restored += 1
        return freed

    def _drop_others(self, known: set[str]) -> list[str]:
        """No tombstones: the next owner may ask under the same id again, for its predecessor's batch never happened."""
        freed = []
        shard = self.page.shard
        for reservation_id in self._in_range(
            i for i, r in self.books.reservations.items() if r.shard == shard
        ):
            if reservation_id not in known:
                freed += self.books.drop(reservation_id, self.now_ms)
                self.dropped += 1
        for reservation_id in self._in_range(i for i, owner in self.books.reaped.items() if owner == shard):
            if reservation_id not in known:
                del self.books.reaped[reservation_id]
        return freed

    def _in_range(self, ids: Iterable[str]) -> list[str]:
        """The first LOOK_MAX of the page's range."""
        after, upto = self.page.after.encode(), self.page.upto.encode()
        found = sorted(raw for i in ids if (raw := i.encode()) > after and (not upto or raw <= upto))
        self.more |= len(found) > LOOK_MAX
        return [raw.decode() for raw in found[:LOOK_MAX]]

    def _known(self, reservation_id: str) -> bool:
        reservation = self.books.reservations.get(reservation_id)
        return reservation is not None and reservation.shard == self.page.shard

    def _ended(self, reservation_id: str) -> bool:
        standing = self.books.reservations
        return (
            reservation_id in self.books.reaped
            or reservation_id in self.books.tombstones
            or reservation_id in standing
        )

    def _again(self, one: Live) -> Reservation:
        """Its LLM tokens were debited in the lost epoch; the buckets have started empty since."""
        held = [(name, amount) for name, amount in one.granted.items() if not name.startswith(FLEET_PREFIX)]
        fleets = [name.removeprefix(FLEET_PREFIX) for name in one.granted if name.startswith(FLEET_PREFIX)]
        rates = {n: a for n, a in held if isinstance(self.limits.of_demand(n), RateLimit)}
        return Reservation(
            shard=self.page.shard,
            fleet=fleets[0] if fleets else "",
            runner=one.runner,
            partition=one.partition,
            granted_ms=self.now_ms,
            expires_ms=self.now_ms + self.ttl_ms,
            claimed=Claimed.RESTORED,
            slots={n: a for n, a in held if n not in rates},
            rates=rates,
        )
