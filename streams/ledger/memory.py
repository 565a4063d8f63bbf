"""The ledger's twin in Python: same decisions as the scripts, time from a Clock, no server. For tests and the simulator.

It can lose its memory (`lose`), become another server as a failover does (`restart`), fall silent (`available = False`), and be
looked into (`reserved`, `holders`, `free_credit`). One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

from laxity.schemas.timing import Clock
from laxity.streams.ledger.admission import Admission, Moment
from laxity.streams.ledger.books import Books, Runner
from laxity.streams.ledger.epoch import Epoch
from laxity.streams.ledger.leases import Leases
from laxity.streams.ledger.limits import (
    CONFIG_RETRY_MS,
    FLEET_PREFIX,
    LEASE_TTL_MS,
    REAPED_MAX,
    SLOT_RETRY_MS,
    USED_MAX,
    Limits,
    RateLimit,
)
from laxity.streams.ledger.pages import all_of
from laxity.streams.ledger.protocol import (
    Answer,
    Call,
    Claim,
    Exchange,
    LedgerUnavailable,
    Live,
    Reconciled,
    Report,
)
from laxity.streams.ledger.reconciliation import Reconciliation
from laxity.streams.ledger.vetting import (
    vet_amount,
    vet_amounts,
    vet_exchange,
    vet_fleet,
    vet_ids,
    vet_name,
    vet_registration,
    vet_report,
    vet_together,
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
        numbers = count(1)
        self.limits = limits
        self.available = True
        self.run_id = "run-1"
        self.epoch, self.books = Epoch(), Books()
        self._clock, self._shards, self._ttl_ms = clock, shards, ttl_ms
        self._new_key = epochs or (lambda: f"epoch-{next(numbers)}")
        self._heard: dict[int, list[str]] = {}  # shard -> woken since its last answer
        self._listeners: list[Callable[[str], None]] = []

    # What tests and the simulator may do and see

    def lose(self) -> None:
        """The server forgets everything (FLUSHALL, or a start without its file)."""
        self.epoch, self.books = Epoch(), Books()

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
        # Each part is a decision of its own: with its gate, its time, its place in the order.
        if request.acknowledged:
            self._acknowledge(request)
        if request.settles:
            self._settle(request)
        verdicts = self._revoke(request, request.revokes, order="") if request.revokes else {}
        if request.cancels:
            verdicts |= self._revoke(request, request.cancels, order="cancel")
        admission = self._admit(request) if request.candidates else None
        status, moment = self._gate(request)
        if status != "ok":
            return self._answer(status, moment)
        self.epoch.advance()
        self._reap(moment.now_ms)
        shard = request.shard
        heard, self._heard[shard] = self._heard.get(shard, []), []
        return Answer(
            status="ok",
            epoch=self.epoch.name(),
            sequence=self.epoch.sequence,
            now_ms=moment.now_ms,
            grants=tuple(admission.grants) if admission else (),
            refusals=tuple(admission.refusals) if admission else (),
            verdicts=verdicts,
            settled=tuple(settle.reservation_id for settle in request.settles),
            reaped=tuple(self.books.reaped_of(shard, REAPED_MAX)),
            woken=tuple(dict.fromkeys(heard)),
        )

    def report(self, page: Report) -> Reconciled:
        """See ShardLedger."""
        vet_report(page)
        now_ms = self._moment().now_ms
        if status := self._refusal(page):
            if self.epoch.remembers(self.run_id):
                self.epoch.advance()
            return Reconciled(status=status, epoch=self.epoch.name())
        if not self.epoch.remembers(self.run_id):
            # What another server remembered may lack the last claims and renewals.
            self.epoch.begin(self._new_key(), self.run_id, now_ms)
            self.books = self.books.begun_anew()
        self.epoch.advance()
        reconciliation = Reconciliation(
            books=self.books, limits=self.limits, page=page, now_ms=now_ms, ttl_ms=self._ttl_ms
        )
        opens_ms = self.epoch.opens_ms(shards=self._shards, ttl_ms=self._ttl_ms, now_ms=now_ms)
        self._wake(reconciliation.apply(enters=page.seen_epoch != self.epoch.name() and opens_ms > 0))
        if not page.upto and not reconciliation.more:
            self.epoch.reports[page.shard] = page.owner_epoch
        return Reconciled(
            status="ok",
            epoch=self.epoch.name(),
            lapsed=tuple(reconciliation.lapsed),
            dropped=reconciliation.dropped,
            restored=reconciliation.restored,
            more=reconciliation.more,
        )

    def _refusal(self, page: Report) -> str:
        if not self.epoch.own(page.shard, page.owner_epoch):
            return "fenced"
        known = self.epoch.remembers(self.run_id) and self.epoch.name() == page.within
        return "" if known or not page.within else "recovering"

    def reconcile(self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Reconciled:
        """See ShardLedger."""
        return all_of(self.report, shard=shard, owner_epoch=owner_epoch, seen_epoch=seen_epoch, live=live)

    # The runner's door

    def register(self, *, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> str:
        """See RunnerLedger."""
        vet_registration(runner=runner, fleet=fleet, partition=partition, credit=credit, ttl_ms=ttl_ms)
        now_ms = self._moment().now_ms
        self.epoch.advance()
        entry = self.books.runners.setdefault((fleet, runner), Runner())
        entry.partition, entry.credit, entry.expires_ms = partition, credit, now_ms + ttl_ms
        if entry.free() > 0:
            self._wake([FLEET_PREFIX + fleet])
        return self.epoch.name() if self.epoch.remembers(self.run_id) else ""

    def deregister(self, *, runner: str, fleet: str) -> None:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_fleet(fleet)
        self._moment()
        self.epoch.advance()
        self.books.retire((fleet, runner))

    def claim(self, *, reservation_id: str, runner: str) -> Claim:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        leases = self._leases()
        return leases.claim(reservation_id, runner) if leases else Claim(verdict="recovering")

    def claim_all(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, Claim]:
        """See RunnerLedger."""
        vet_together("reservation_ids", reservation_ids)
        return {i: self.claim(reservation_id=i, runner=runner) for i in reservation_ids}

    def renew(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, str]:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_ids("reservation_ids", reservation_ids)
        leases = self._leases()
        return {i: leases.renew(i, runner) if leases else "recovering" for i in reservation_ids}

    def call(self, *, reservation_id: str, runner: str, resource: str, amount: int) -> Call:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amount("amount", amount)
        limit = self.limits.of_demand(resource)
        if not isinstance(limit, RateLimit):
            return Call(granted=False, retry_ms=CONFIG_RETRY_MS, reason=Reason.UNKNOWN_RESOURCE)
        leases = self._leases()
        if leases is None:
            return Call(granted=False, retry_ms=SLOT_RETRY_MS, reason=Reason.RECOVERING)
        return leases.call(reservation_id, runner, resource, amount, limit)

    def release(self, *, reservation_id: str, runner: str, used: Mapping[str, int]) -> bool:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amounts("used", used, USED_MAX)
        leases = self._leases()
        freed = leases.release(reservation_id, runner, used) if leases else None
        self._wake(freed or ())
        return freed is not None

    def release_all(
        self, *, runner: str, releases: Sequence[tuple[str, Mapping[str, int]]]
    ) -> Sequence[bool]:
        """See RunnerLedger."""
        vet_together("releases", [reservation_id for reservation_id, _ in releases])
        return [self.release(reservation_id=i, runner=runner, used=used) for i, used in releases]

    # Shared steps

    def _moment(self) -> Moment:
        if not self.available:
            raise LedgerUnavailable("the ledger in memory was made unavailable")
        now_ms = self._clock.now_ms()
        opens_ms = self.epoch.opens_ms(shards=self._shards, ttl_ms=self._ttl_ms, now_ms=now_ms)
        return Moment(now_ms=now_ms, begun_ms=self.epoch.begun_ms, opens_ms=opens_ms, ttl_ms=self._ttl_ms)

    def _leases(self) -> Leases | None:
        """None: recovering."""
        moment = self._moment()
        if not self.epoch.remembers(self.run_id):
            return None
        self.epoch.advance()
        return Leases(books=self.books, moment=moment)

    def _gate(self, request: Exchange) -> tuple[str, Moment]:
        moment = self._moment()
        return self.epoch.gate(request.shard, request.owner_epoch, self.run_id), moment

    def _answer(self, status: str, moment: Moment) -> Answer:
        return Answer(
            status=status, epoch=self.epoch.name(), sequence=self.epoch.sequence, now_ms=moment.now_ms
        )

    def _acknowledge(self, request: Exchange) -> None:
        if self._gate(request)[0] == "ok":
            self.epoch.advance()
            self.books.acknowledge(request.shard, request.acknowledged)

    def _settle(self, request: Exchange) -> None:
        status, moment = self._gate(request)
        if status != "ok":
            return
        self.epoch.advance()
        for settle in request.settles:
            self._wake(Leases(books=self.books, moment=moment).settle(request.shard, settle))

    def _revoke(self, request: Exchange, ids: Sequence[str], *, order: str) -> dict[str, str]:
        status, moment = self._gate(request)
        verdicts: dict[str, str] = {}
        if status != "ok":
            return verdicts
        self.epoch.advance()
        leases = Leases(books=self.books, moment=moment)
        for reservation_id in ids:
            verdicts[reservation_id], freed = leases.revoke(request.shard, reservation_id, order=order)
            self._wake(freed)
        return verdicts

    def _admit(self, request: Exchange) -> Admission:
        status, moment = self._gate(request)
        admission = Admission(books=self.books, limits=self.limits, shard=request.shard, moment=moment)
        if status == "ok":
            self.epoch.advance()
            self._reap(moment.now_ms)
            admission.decide(request.candidates)
        return admission

    def _reap(self, now_ms: int) -> None:
        self.books.expire_runners(now_ms)
        self._wake(self.books.reap(now_ms))

    def _wake(self, freed: Sequence[str]) -> None:
        """Name each resource that has room again, if somebody was refused there since it was last named."""
        for name in freed:
            if name not in self.books.waiting:
                continue
            self.books.waiting.discard(name)
            for heard in self._heard.values():
                heard.append(name)
            for callback in self._listeners:
                callback(name)
