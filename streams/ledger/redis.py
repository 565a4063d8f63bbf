"""The real ledger: decisions run as scripts on Redis (6.2 or later) or Valkey, by the server's own time.

One object per process, used by one thread at a time (the ledger thread of a scheduler, the lease thread of a runner).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TypeVar

from laxity.schemas.timing import Clock
from laxity.streams.ledger import decisions
from laxity.streams.ledger.decisions import Decision
from laxity.streams.ledger.limits import CONFIG_RETRY_MS, LEASE_TTL_MS, USED_MAX, Limits, RateLimit
from laxity.streams.ledger.pages import all_of
from laxity.streams.ledger.protocol import Answer, Call, Claim, Exchange, Live, Reconciled, Report
from laxity.streams.ledger.scripts import DECISIONS, channel, keys
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
from laxity.streams.ledger.wire import TIMEOUT_S, Run, Wire
from laxity.streams.reasons import Reason

Result = TypeVar("Result")
SERVER_TIME = ""  # as the first argument of every script


class RedisLedger:
    """Both doors, ShardLedger and RunnerLedger. `prefix` is the deployment's (`laxity.`); `shards` its number of shards, set once.

    `clock` is for tests that move time by hand: scripts then take its time for the server's. All processes of a deployment must
    use the server's. Every method raises LedgerUnavailable when there is no answer in time: what was asked is then unknown.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: Limits,
        shards: int,
        prefix: str = "laxity.",
        ttl_ms: int = LEASE_TTL_MS,
        timeout_s: float = TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        self._wire = Wire(url, timeout_s=timeout_s)
        self._limits = limits
        self._shards, self._ttl_ms, self._clock = shards, ttl_ms, clock
        self._keys, self._channel = {name: keys(prefix, name) for name in DECISIONS}, channel(prefix)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._wire.close()

    # The shard's door

    def exchange(self, request: Exchange) -> Answer:
        """See ShardLedger. `woken` is what this very call freed; others' are heard by `wakes.py`."""
        vet_exchange(request)
        return self._decide(decisions.exchange(request, self._limits))

    def report(self, page: Report) -> Reconciled:
        """See ShardLedger."""
        vet_report(page)
        return self._decide(decisions.report(page, self._limits, new_key=secrets.token_hex(8)))

    def reconcile(self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Reconciled:
        """See ShardLedger."""
        return all_of(self.report, shard=shard, owner_epoch=owner_epoch, seen_epoch=seen_epoch, live=live)

    # The runner's door

    def register(self, *, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> str:
        """See RunnerLedger."""
        vet_registration(runner=runner, fleet=fleet, partition=partition, credit=credit, ttl_ms=ttl_ms)
        return self._decide(
            decisions.register(runner=runner, fleet=fleet, partition=partition, credit=credit, ttl_ms=ttl_ms)
        )

    def deregister(self, *, runner: str, fleet: str) -> None:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_fleet(fleet)
        self._decide(decisions.deregister(runner=runner, fleet=fleet))

    def claim(self, *, reservation_id: str, runner: str) -> Claim:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        return self._decide(decisions.claim(reservation_id=reservation_id, runner=runner))

    def claim_all(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, Claim]:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_together("reservation_ids", reservation_ids)
        parts = [decisions.claim(reservation_id=i, runner=runner) for i in reservation_ids]
        claims = self._decide(decisions.together(parts))
        return dict(zip(reservation_ids, claims, strict=True))

    def renew(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, str]:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_ids("reservation_ids", reservation_ids)
        return self._decide(decisions.renew(runner=runner, reservation_ids=reservation_ids))

    def call(self, *, reservation_id: str, runner: str, resource: str, amount: int) -> Call:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amount("amount", amount)
        limit = self._limits.of_demand(resource)
        if not isinstance(limit, RateLimit):
            return Call(granted=False, retry_ms=CONFIG_RETRY_MS, reason=Reason.UNKNOWN_RESOURCE)
        return self._decide(
            decisions.call(
                reservation_id=reservation_id, runner=runner, resource=resource, amount=amount, limit=limit
            )
        )

    def release(self, *, reservation_id: str, runner: str, used: Mapping[str, int]) -> bool:
        """See RunnerLedger."""
        vet_name("reservation_id", reservation_id)
        vet_name("runner", runner)
        vet_amounts("used", used, USED_MAX)
        return self._decide(decisions.release(reservation_id=reservation_id, runner=runner, used=used))

    def release_all(
        self, *, runner: str, releases: Sequence[tuple[str, Mapping[str, int]]]
    ) -> Sequence[bool]:
        """See RunnerLedger."""
        vet_name("runner", runner)
        vet_together("releases", [reservation_id for reservation_id, _ in releases])
        for _, used in releases:
            vet_amounts("used", used, USED_MAX)
        parts = [decisions.release(reservation_id=i, runner=runner, used=used) for i, used in releases]
        return self._decide(decisions.together(parts))

    def _decide(self, decision: Decision[Result]) -> Result:
        def compose(run_id: str) -> list[Run]:
            now = SERVER_TIME if self._clock is None else self._clock.now_ms()
            common = (now, run_id, self._channel, self._ttl_ms, self._shards)
            return [
                (name, (len(self._keys[name]), *self._keys[name], *common, *arguments))
                for name, arguments in decision.steps
            ]

        return decision.read(self._wire.evaluate(compose))
