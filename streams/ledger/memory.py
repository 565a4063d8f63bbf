"""The ledger's twin in Python: same decisions as the scripts, time from a Clock, no server. For tests and the simulator.

It can lose its memory (`lose`), change its identity as a failover does (`restart`), fall silent (`available = False`), and be
looked into (`reserved`, `holders`, `free_credit`). One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from laxity.schemas.timing import Clock
from laxity.streams.ledger.admission import Admission, Moment, over_rate
from laxity.streams.ledger.books import Books, Claimed, Ended, Reservation, Runner
from laxity.streams.ledger.limits import (
    CALL_GRACE_MS,
    CONFIG_RETRY_MS,
    FLEET_PREFIX,
    LEASE_TTL_MS,
    REAPED_MAX,
    SLOT_RETRY_MS,
    USED_MAX,
    Limits,
    RateLimit,
)
from laxity.streams.ledger.protocol import (
    Answer,
    Call,
    Claim,
    Exchange,
    LedgerUnavailable,
    Live,
    Reconciled,
    Settle,
)
from laxity.streams.ledger.reconciliation import Reconciliation
from laxity.streams.ledger.vetting import (
    vet_amount,
    vet_amounts,
    vet_exchange,
    vet_fleet,
    vet_ids,
    vet_live,
    vet_name,
    vet_owner,
    vet_registration,
)
from laxity.streams.reasons import Reason


class MemoryLedger:
    """Both doors, ShardLedger and RunnerLedger, over one set of books.

    `shards`: how many must report after a loss before anything is granted. `epochs` names new epochs (a counter if not given).
    """

    def __init__(
        self,
        *,
        limits: Limits,
        shards: int,
        clock: Clock,
        ttl_ms: int = LEASE_TTL_MS,
        epochs: Callable[[], str] | None = None,
    ) -> None:
        self.available = True
        self.books = Books()
        self.limits = limits
        self._clock, self._shards, self._ttl_ms = clock, shards, ttl_ms
        self._numbers = count(1)
        self._new_epoch = epochs or (lambda: f"epoch-{next(self._numbers)}")
        self.run_id = "run-1"
        self.sequence = 0
        self.epoch_key, self.epoch_run_id, self.begun_ms = "", "", 0
        self.owners: dict[int, int] = {}  # shard -> highest owner epoch that spoke
        self.reports: dict[int, int] = {}  # shard -> owner epoch under which it reconciled in this epoch
        self._woken: list[str] = []  # by the call under way
        self._heard: dict[int, list[str]] = {}  # shard -> woken since its last answer
        self._listeners: list[Callable[[str], None]] = []

    # What tests and the simulator may do and see

    def lose(self) -> None:
        """The server forgets everything (FLUSHALL, or a start without its file)."""
        self.books = Books()
        self.sequence = 0
        self.epoch_key, self.epoch_run_id, self.begun_ms = "", "", 0
        self.owners, self.reports = {}, {}

    def restart(self, run_id: str = "") -> None:
        """Another server process with the same memory: a restart from its file, a promoted replica."""
        self.run_id = run_id or f"run-{int(self.run_id.rpartition('-')[2]) + 1}"

    def reserved(self, resource: str) -> int:
        """Held now of slots, of a keyed slot (`name:key`), or of a fleet's credit (`fleet.NAME`)."""
        if not resource.startswith(FLEET_PREFIX):
            return self.books.used.get(resource, 0)
        fleet = resource.removeprefix(FLEET_PREFIX)
        return sum(runner.used for (of, _), runner in self.books.runners.items() if of == fleet)

    def holders(self, resource: str) -> list[str]:
        """Ids of the reservations behind `reserved`, sorted."""
        standing = self.books.reservations.items()
        return sorted(i for i, r in standing if not r.released and resource in r.granted())

    def free_credit(self, fleet: str) -> int:
        """What the live runners of the fleet would still take."""
        runners = self.books.runners.items()
        return sum(max(0, runner.free()) for (of, _), runner in runners if of == fleet)

    def listen(self, callback: Callable[[str], None]) -> None:
        """Call back with the name of a resource that has room, where somebody was refused before; as pub/sub does."""
        self._listeners.append(callback)

    # The shard's door

    def exchange(self, request: Exchange) -> Answer:
        """See ShardLedger."""
        vet_exchange(request)
        now_ms = self._now_ms()
        status = self._gate(request.shard, request.owner_epoch)
        if status != "ok":
            return Answer(status=status, epoch=self._epoch(), sequence=self.sequence, now_ms=now_ms)
        if request.acknowledged:
            self._acknowledge(request.shard, request.acknowledged)
        if request.settles:
            self._settle(request.shard, request.settles, now_ms)
        verdicts: dict[str, str] = {}
        if request.revokes:
            verdicts |= self._revoke(request.shard, request.revokes, now_ms, order="")
        if request.cancels:
            verdicts |= self._revoke(request.shard, request.cancels, now_ms, order="cancel")
        admission = self._admission(request.shard, now_ms)
        if request.candidates:
            self._next()
            self._reap(now_ms)
            admission.decide(request.candidates)
        self._next()
        self._reap(now_ms)
        woken = self._publish()
        return Answer(
            status="ok",
            epoch=self._epoch(),
            sequence=self.sequence,
            now_ms=now_ms,
            grants=tuple(admission.grants),
            refusals=tuple(admission.refusals),
            verdicts=verdicts,
            settled=tuple(settle.reservation_id for settle in request.settles),
            reaped=tuple(self.books.reaped_of(request.shard, REAPED_MAX)),
            woken=self._heard_by(request.shard, woken),
        )

    def reconcile(self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Reconciled:
        """See ShardLedger."""
        vet_owner(shard, owner_epoch)
        vet_live(live)
        now_ms = self._now_ms()
        if owner_epoch < self.owners.get(shard, 0):
            return Reconciled(status="fenced", epoch=self._epoch())
        self.owners[shard] = owner_epoch
        if not self._remembers():
            self._begin(now_ms)
        self._next()
        reconciliation = Reconciliation(
            books=self.books, limits=self.limits, shard=shard, now_ms=now_ms, ttl_ms=self._ttl_ms
        )
        freed = reconciliation.apply(live, same_epoch=seen_epoch == self._epoch())
        self._wake(freed)
        self.reports[shard] = owner_epoch
        self._publish()
        return Reconciled(
            status="ok",
            epoch=self._epoch(),
            lapsed=tuple(reconciliation.lapsed),
            dropped=reconciliation.dropped,
            restored=reconciliation.restored,
        )

    # The runner's door

    def register(self, *, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> str:
        """See RunnerLedger."""
        vet_registration(runner=runner, fleet=fleet, partition=partition, credit=credit, ttl_ms=ttl_ms)
        now_ms = self._now_ms()
        self._next()
        entry = self.books.runners.setdefault((fleet, runner), Runner())
        entry.partition, entry.credit, entry.expires_ms = partition, credit, now_ms + ttl_ms
        if entry.free() > 0:
            self._wake([FLEET_PREFIX + fleet])
        self._publish()
        return self._epoch() if self._remembers() else ""

    def deregister(self, *, runner: str, fleet: str) -> None:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_fleet(fleet)
        self._now_ms()
        self._next()
        self.books.retire((fleet, runner))

    def claim(self, *, reservation_id: str, runner: str) -> Claim:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        now_ms = self._now_ms()
        if not self._remembers():
            return Claim(verdict="recovering")
        self._next()
        reservation = self._standing(reservation_id, now_ms)
        if reservation is None:
            return Claim(verdict="recovering" if self._opens_ms(now_ms) else "gone")
        if reservation.runner != runner:
            return Claim(verdict="fenced")
        if reservation.order == "cancel":
            return Claim(verdict="cancelled")
        if reservation.claimed is not Claimed.YES:
            reservation.claimed = Claimed.YES
            reservation.expires_ms = now_ms + self._ttl_ms
        return Claim(verdict="claimed", expires_ms=reservation.expires_ms, granted=reservation.granted())

    def renew(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, str]:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_ids("reservation_ids", reservation_ids)
        now_ms = self._now_ms()
        if not self._remembers():
            return dict.fromkeys(reservation_ids, "recovering")
        self._next()
        absent = "recovering" if self._opens_ms(now_ms) else "revoked"
        return {i: self._renew(i, runner, now_ms, absent) for i in reservation_ids}

    def call(self, *, reservation_id: str, runner: str, resource: str, amount: int) -> Call:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amount("amount", amount)
        now_ms, limit = self._now_ms(), self.limits.of_demand(resource)
        if not isinstance(limit, RateLimit):
            return Call(granted=False, retry_ms=CONFIG_RETRY_MS, reason=Reason.UNKNOWN_RESOURCE)
        if not self._remembers():
            return Call(granted=False, retry_ms=SLOT_RETRY_MS, reason=Reason.RECOVERING)
        self._next()
        if opens_ms := self._opens_ms(now_ms):
            return Call(granted=False, retry_ms=opens_ms - now_ms, reason=Reason.RECOVERING)
        reservation = self._standing(reservation_id, now_ms)
        if reservation is None or reservation.runner != runner or reservation.claimed is Claimed.NO:
            return Call(granted=False, reason=Reason.GONE)
        if reservation.order == "cancel":
            return Call(granted=False, reason=Reason.CANCELLED)
        if over_rate(limit, amount):
            return Call(granted=False, retry_ms=CONFIG_RETRY_MS, reason=Reason.OVER_CAPACITY)
        bucket = self.books.bucket(resource, limit, begun_ms=self.begun_ms, now_ms=now_ms)
        if shortage := bucket.shortage(amount):
            bucket.calls_first_ms = now_ms + shortage[1] + CALL_GRACE_MS
            return Call(granted=False, retry_ms=shortage[1], reason=shortage[0])
        bucket.debit(requests=1, tokens=amount)
        bucket.calls_first_ms = 0
        reservation.rates[resource] = reservation.rates.get(resource, 0) + amount
        return Call(granted=True)

    def release(self, *, reservation_id: str, runner: str, used: Mapping[str, int]) -> bool:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amounts("used", used, USED_MAX)
        now_ms = self._now_ms()
        if not self._remembers():
            return False
        self._next()
        reservation = self.books.reservations.get(reservation_id)
        if reservation is None or reservation.released or reservation.runner != runner:
            return False
        if reservation.claimed is Claimed.NO:
            return False
        freed = self.books.free_slots(reservation)
        freed += self.books.settle_rates(reservation, used.items(), now_ms)
        reservation.released, reservation.expires_ms = True, now_ms + self._ttl_ms
        self._wake(freed)
        self._publish()
        return True

    # Shared steps

    def _now_ms(self) -> int:
        if not self.available:
            raise LedgerUnavailable("the ledger in memory was made unavailable")
        return self._clock.now_ms()

    def _epoch(self) -> str:
        return f"{self.epoch_key}/{self.epoch_run_id}" if self.epoch_key else ""

    def _remembers(self) -> bool:
        return bool(self.epoch_key) and self.epoch_run_id == self.run_id

    def _begin(self, now_ms: int) -> None:
        """A new epoch: what is remembered may lack the last claims and renewals, so only owners and registrations stay."""
        self.epoch_key, self.epoch_run_id, self.begun_ms = self._new_epoch(), self.run_id, now_ms
        self.reports.clear()
        self.books = self.books.begun_anew()

    def _gate(self, shard: int, owner_epoch: int) -> str:
        if not self._remembers():
            return "recovering"
        if owner_epoch < self.owners.get(shard, 0):
            return "fenced"
        self.owners[shard] = owner_epoch
        return "ok" if self.reports.get(shard) == owner_epoch else "recovering"

    def _opens_ms(self, now_ms: int) -> int:
        """0: all shards have reported, or every lease of before has lapsed; else when the latter is so."""
        opens_ms = self.begun_ms + self._ttl_ms
        return 0 if len(self.reports) >= self._shards or now_ms >= opens_ms else opens_ms

    def _next(self) -> None:
        self.sequence += bool(self.epoch_key)

    def _admission(self, shard: int, now_ms: int) -> Admission:
        moment = Moment(
            now_ms=now_ms, begun_ms=self.begun_ms, opens_ms=self._opens_ms(now_ms), ttl_ms=self._ttl_ms
        )
        return Admission(books=self.books, limits=self.limits, shard=shard, moment=moment)

    def _standing(self, reservation_id: str, now_ms: int) -> Reservation | None:
        reservation = self.books.reservations.get(reservation_id)
        if reservation is None or reservation.released or reservation.expires_ms <= now_ms:
            return None
        return reservation

    def _of_shard(self, reservation_id: str, shard: int) -> Reservation | None:
        reservation = self.books.reservations.get(reservation_id)
        return reservation if reservation is not None and reservation.shard == shard else None

    def _acknowledge(self, shard: int, ids: Sequence[str]) -> None:
        self._next()
        for reservation_id in ids:
            if self.books.reaped.get(reservation_id) == shard:
                del self.books.reaped[reservation_id]

    def _settle(self, shard: int, settles: Sequence[Settle], now_ms: int) -> None:
        self._next()
        for settle in settles:
            reservation = self._of_shard(settle.reservation_id, shard)
            if reservation is None:
                continue
            del self.books.reservations[settle.reservation_id]
            freed = [] if reservation.released else self.books.free_slots(reservation)
            if settle.unclaimed and reservation.claimed is Claimed.NO:
                freed += self.books.refund_unstarted(reservation, now_ms)
            else:
                freed += self.books.settle_rates(reservation, settle.used.items(), now_ms)
            self.books.bury(settle.reservation_id, Ended.CLOSED, now_ms + self._ttl_ms)
            self._wake(freed)

    def _revoke(self, shard: int, ids: Sequence[str], now_ms: int, *, order: str) -> dict[str, str]:
        self._next()
        return {i: self._revoke_one(i, self._of_shard(i, shard), now_ms, order=order) for i in ids}

    def _revoke_one(
        self, reservation_id: str, reservation: Reservation | None, now_ms: int, *, order: str
    ) -> str:
        if reservation is None:
            _, ended = self.books.tombstones.get(reservation_id, (0, Ended.CLOSED))
            return "revoked" if ended is Ended.REVOKED else "gone"
        if reservation.claimed is not Claimed.NO:
            reservation.order = order or reservation.order
            return "claimed"
        self._wake(self.books.drop(reservation_id, now_ms))
        self.books.bury(reservation_id, Ended.REVOKED, now_ms + self._ttl_ms)
        return "revoked"

    def _renew(self, reservation_id: str, runner: str, now_ms: int, absent: str) -> str:
        reservation = self._standing(reservation_id, now_ms)
        if reservation is None:
            return absent
        if reservation.runner != runner or reservation.claimed is Claimed.NO:
            return "revoked"
        reservation.claimed = Claimed.YES
        reservation.expires_ms = now_ms + self._ttl_ms
        return reservation.order or "ok"

    def _reap(self, now_ms: int) -> None:
        self.books.expire_runners(now_ms)
        self._wake(self.books.reap(now_ms))

    def _wake(self, freed: Sequence[str]) -> None:
        """Name each resource that has room again, if somebody was refused there since it was last named."""
        for name in freed:
            if name in self.books.waiting:
                self.books.waiting.discard(name)
                self._woken.append(name)

    def _publish(self) -> list[str]:
        woken, self._woken = self._woken, []
        for name in woken:
            for heard in self._heard.values():
                heard.append(name)
            for callback in self._listeners:
                callback(name)
        return woken

    def _heard_by(self, shard: int, own: Sequence[str]) -> tuple[str, ...]:
        heard = self._heard.setdefault(shard, list(own))
        self._heard[shard] = []
        return tuple(dict.fromkeys(heard))
