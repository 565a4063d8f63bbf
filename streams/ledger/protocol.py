"""The seam to the ledger: what a shard asks in its one call per batch, and what a runner asks for its own leases.

`memory.py` is the twin in Python, `redis.py` the real one over `lua/*.lua`; a property test compares them decision by decision.
Everything is integers. A reservation id is `task:generation:dispatch_no`; it is the fence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task that asks to start. All of `demands` and one runner of `fleet`, or nothing.

    `demands`: a rate resource takes its amount of LLM tokens and one request; slots take that many; `name:key` is one keyed slot.
    """

    reservation_id: str
    task_id: str
    fleet: str
    demands: Mapping[str, int]
    deadline_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Close a reservation: slots return; of rate tokens, those not in `used` go back only if it was surely never claimed (`unclaimed`).

    Idempotent by a tombstone of one TTL; without reservation and tombstone it refunds nothing and is acknowledged all the same.
    """

    reservation_id: str
    used: Mapping[str, int]
    unclaimed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A shard's one call per batch, carried out in the order of the fields, in one round trip."""

    shard: int
    owner_epoch: int
    acknowledged: Sequence[str] = ()  # reaped ids whose batch has committed: the ledger forgets them
    settles: Sequence[Settle] = ()
    revokes: Sequence[str] = ()  # bounce: take the reservation back unless it is claimed
    cancels: Sequence[str] = ()  # as revoke; a claimed one gets the order `cancel` with its next renewal
    candidates: Sequence[Candidate] = ()  # in the order of choose()

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask; without, the call only hears what was reaped."""
        return bool(self.candidates or self.settles or self.revokes or self.cancels or self.acknowledged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A reservation that stands: repeated calls under its id return the same."""

    reservation_id: str
    runner: str
    partition: int
    granted: Mapping[str, int]  # vector held, the fleet's slot included as `fleet.NAME`: 1
    granted_ms: int  # the ledger's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Not now. `reason` is of `streams/reasons.py`; `retry_ms` is when a rate has refilled, or a safety interval for slots (a release wakes)."""

    reservation_id: str
    reason: str
    resource: str
    retry_ms: int
    rival: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the ledger decided; the journal records all of it.

    `status`: `ok`; `recovering`: it lost its memory or changed server, reconcile first, nothing was granted; `fenced`: a higher owner_epoch has spoken.
    """

    status: str
    epoch: str  # epoch key and server run_id in one
    sequence: int  # order of the decisions over all callers
    now_ms: int = 0  # the ledger's clock
    grants: Sequence[Grant] = ()
    refusals: Sequence[Refusal] = ()
    verdicts: Mapping[str, str] = field(
        default_factory=dict
    )  # of revokes and cancels: revoked | claimed | gone
    settled: Sequence[str] = ()
    reaped: Sequence[str] = ()  # leases of this shard that lapsed, until acknowledged
    woken: Sequence[
        str
    ] = ()  # resources with room since the last answer (from pub/sub; the host adds what it heard)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A reservation that a shard's state knows. `active`: dispatched or running (else unknown or to be settled: kept, never entered again)."""

    reservation_id: str
    runner: str
    partition: int
    granted: Mapping[str, int]
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One page of a shard's reconciliation: all that it knows of the ids in (`after`, `upto`], by bytes. `pages.py` makes them."""

    shard: int
    owner_epoch: int
    seen_epoch: str  # the ledger's, that the state last saw
    within: str = ""  # epoch of the pages before; "" for the first: a loss in between voids them
    after: str = ""  # "": from the start
    upto: str = ""  # "": to the end, which is the last page
    live: Sequence[Live] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """Outcome of a takeover or of a ledger's loss, of one page or of all.

    `lapsed` are active ids that the ledger lacks (they count as reaped): in the epoch that the state last saw, or because they were
    named after it grants again. In a new epoch, before it grants, they were entered again. Every other reservation of the shard was dropped.
    """

    status: str  # ok | fenced | recovering: the ledger lost its memory between two pages, begin anew
    epoch: str
    lapsed: Sequence[str] = ()
    dropped: int = 0
    restored: int = 0
    more: bool = False  # of one page: there is more to drop, ask the same again


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`verdict`: claimed (a repeat by the same runner too) | gone | taken | fenced (other runner) | cancelled | recovering."""

    verdict: str
    expires_ms: int = 0  # by the ledger's clock
    granted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Rate tokens for one more provider call of a running task: `granted`, or when to ask again."""

    granted: bool
    retry_ms: int = 0
    reason: str = ""


class ShardLedger(Protocol):
    """The shard's door."""

    def exchange(self, request: Exchange) -> Answer:
        """One round trip. Raises LedgerUnavailable: everything asked is then unknown and is asked again under the same ids."""
        ...

    def report(self, page: Report) -> Reconciled:
        """One step of `reconcile`, one round trip. Raises LedgerUnavailable: begin with the first page again."""
        ...

    def reconcile(self, *, shard: int, owner_epoch: int, seen_epoch: str, live: Sequence[Live]) -> Reconciled:
        """Takeover, and after status `recovering`: all pages. Idempotent; the shard asks nothing meanwhile."""
        ...


class RunnerLedger(Protocol):
    """The runner's door: nothing but its own registration, leases and calls."""

    def register(self, *, runner: str, fleet: str, partition: int, credit: int, ttl_ms: int) -> str:
        """Announce or refresh this runner for `ttl_ms`; returns the epoch ("" while recovering).

        `credit` is the most reservations that may stand here at once, not what is free: the ledger subtracts those that stand,
        so that an announcement cannot race with a grant. 0 drains.
        """
        ...

    def deregister(self, *, runner: str, fleet: str) -> None:
        """Nothing is sent here any more; leases stay until released."""
        ...

    def claim(self, *, reservation_id: str, runner: str) -> Claim:
        """Take up a dispatch; the lease then lives by renewal."""
        ...

    def claim_all(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, Claim]:
        """As `claim` of each in turn, in one round trip; at most TOGETHER_MAX."""
        ...

    def renew(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, str]:
        """Extend claimed leases, never resurrect one. Per id: ok | cancel | yield | revoked | recovering.

        `recovering`: the ledger lost its memory and the shard has not reported yet; not extended, ask again until the lease
        ends by the runner's own clock.
        """
        ...

    def call(self, *, reservation_id: str, runner: str, resource: str, amount: int) -> Call:
        """Requests and LLM tokens for a further call of a running task."""
        ...

    def release(self, *, reservation_id: str, runner: str, used: Mapping[str, int]) -> bool:
        """After the durable outcome: slots return, waiters are woken. True if this call did it."""
        ...

    def release_all(
        self, *, runner: str, releases: Sequence[tuple[str, Mapping[str, int]]]
    ) -> Sequence[bool]:
        """As `release` of each (id, used) in turn, in one round trip; at most TOGETHER_MAX. In their order."""
        ...


class LedgerUnavailable(Exception):  # noqa: N818 - a state of the world, not a bug
    """No answer in time, or the server refuses to serve."""
