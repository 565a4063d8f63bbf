"""The twin of what runners decide: `lua/claim.lua`, `renew.lua`, `call.lua`, `release.lua`. And of `settle.lua`, `revoke.lua`, `cancel.lua`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laxity.streams.ledger.admission import Moment, over_rate
from laxity.streams.ledger.books import Books, Claimed, Ended, Reservation
from laxity.streams.ledger.limits import CALL_GRACE_MS, CONFIG_RETRY_MS, RateLimit
from laxity.streams.ledger.protocol import Call, Claim, Settle
from laxity.streams.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """The books at one moment. Where something goes back, the names of what was freed are returned."""

    books: Books
    moment: Moment

    # Runners

    def claim(self, reservation_id: str, runner: str) -> Claim:
        """Take up a dispatch."""
        reservation = self._standing(reservation_id)
        if reservation is None:
            return Claim(verdict="recovering" if self.moment.opens_ms else "gone")
        if reservation.runner != runner:
            return Claim(verdict="fenced")
        if reservation.order == "cancel":
            return Claim(verdict="cancelled")
        if reservation.claimed is not Claimed.YES:
            self._extend(reservation)
        return Claim(verdict="claimed", expires_ms=reservation.expires_ms, granted=reservation.granted())

    def renew(self, reservation_id: str, runner: str) -> str:
        """Extend a claimed lease, and tell its order."""
        reservation = self._standing(reservation_id)
        if reservation is None:
            return "recovering" if self.moment.opens_ms else "revoked"
        if reservation.runner != runner or reservation.claimed is Claimed.NO:
            return "revoked"
        self._extend(reservation)
        return reservation.order or "ok"

    def call(self, reservation_id: str, runner: str, resource: str, amount: int, limit: RateLimit) -> Call:
        """One more provider call. A refused one keeps new dispatches off the bucket until it can be asked again."""
        now_ms = self.moment.now_ms
        if self.moment.opens_ms:
            return Call(granted=False, retry_ms=self.moment.opens_ms - now_ms, reason=Reason.RECOVERING)
        reservation = self._standing(reservation_id)
        if reservation is None or reservation.runner != runner or reservation.claimed is Claimed.NO:
            return Call(granted=False, reason=Reason.GONE)
        if reservation.order == "cancel":
            return Call(granted=False, reason=Reason.CANCELLED)
        if over_rate(limit, amount):
            return Call(granted=False, retry_ms=CONFIG_RETRY_MS, reason=Reason.OVER_CAPACITY)
        bucket = self.books.bucket(resource, limit, begun_ms=self.moment.begun_ms, now_ms=now_ms)
        if shortage := bucket.shortage(amount):
            bucket.calls_first_ms = now_ms + shortage[1] + CALL_GRACE_MS
            return Call(granted=False, retry_ms=shortage[1], reason=shortage[0])
        bucket.debit(requests=1, tokens=amount)
        bucket.calls_first_ms = 0
        reservation.rates[resource] = reservation.rates.get(resource, 0) + amount
        return Call(granted=True)

    def release(self, reservation_id: str, runner: str, used: Mapping[str, int]) -> list[str] | None:
        """Slots and credit go back, a stub of one TTL awaits the settlement. None: it was not this runner's to release."""
        reservation = self.books.reservations.get(reservation_id)
        if reservation is None or reservation.released or reservation.runner != runner:
            return None
        if reservation.claimed is Claimed.NO:
            return None
        freed = self.books.free_slots(reservation)
        freed += self.books.settle_rates(reservation, used.items(), self.moment.now_ms)
        reservation.released, reservation.expires_ms = True, self._until_ms()
        return freed

    # Shards

    def settle(self, shard: int, settle: Settle) -> list[str]:
        """Close a reservation of the shard; without one, nothing."""
        reservation = self._of_shard(settle.reservation_id, shard)
        if reservation is None:
            return []
        del self.books.reservations[settle.reservation_id]
        freed = [] if reservation.released else self.books.free_slots(reservation)
        if settle.unclaimed and reservation.claimed is Claimed.NO:
            freed += self.books.refund_unstarted(reservation, self.moment.now_ms)
        else:
            freed += self.books.settle_rates(reservation, settle.used.items(), self.moment.now_ms)
        self.books.bury(settle.reservation_id, Ended.CLOSED, self._until_ms())
        return freed

    def revoke(self, shard: int, reservation_id: str, *, order: str) -> tuple[str, list[str]]:
        """The verdict, and what was freed; a claimed one is given the order, if there is one."""
        reservation = self._of_shard(reservation_id, shard)
        if reservation is None:
            _, ended = self.books.tombstones.get(reservation_id, (0, Ended.CLOSED))
            return "revoked" if ended is Ended.REVOKED else "gone", []
        if reservation.claimed is not Claimed.NO:
            reservation.order = order or reservation.order
            return "claimed", []
        freed = self.books.drop(reservation_id, self.moment.now_ms)
        self.books.bury(reservation_id, Ended.REVOKED, self._until_ms())
        return "revoked", freed

    def _until_ms(self) -> int:
        return self.moment.now_ms + self.moment.ttl_ms

    def _extend(self, reservation: Reservation) -> None:
        reservation.claimed, reservation.expires_ms = Claimed.YES, self._until_ms()

    def _standing(self, reservation_id: str) -> Reservation | None:
        reservation = self.books.reservations.get(reservation_id)
        if reservation is None or reservation.released or reservation.expires_ms <= self.moment.now_ms:
            return None
        return reservation

    def _of_shard(self, reservation_id: str, shard: int) -> Reservation | None:
        reservation = self.books.reservations.get(reservation_id)
        return reservation if reservation is not None and reservation.shard == shard else None
