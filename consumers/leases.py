"""The runner's narrow ledger client: claim, renew (which brings orders), calls, release; and the self-fence.

The ledger is synchronous; its calls run on two threads of this class, so that a queue of claims never delays a renewal. A lease counts as
ours until `FENCE_MARGIN_MS` before the end that the last answered request gave it, on the monotonic clock, counted from the moment that
request was sent. After that the attempt is stopped, whatever the ledger thinks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from typing import Final, TypeVar

from laxity.consumers.bunch import Bunch
from laxity.schemas.config import Config
from laxity.schemas.crashpoints import reach
from laxity.schemas.timing import Clock
from laxity.streams.ledger.limits import LEASE_TTL_MS, TOGETHER_MAX, Limits
from laxity.streams.ledger.protocol import Call, Claim, LedgerUnavailable, RunnerLedger
from laxity.streams.ledger.redis import RedisLedger

T = TypeVar("T")
Sleep = Callable[[int], Awaitable[None]]

CallAnswer = Call
RENEWED: Final = frozenset({"ok", "yield", "cancel"})  # answers that stand for a live lease
RENEWALS_PER_TTL: Final = 3  # two may fail before the fence
FENCE_MARGIN_MS: Final = 3_000  # stopping takes time, and clocks drift apart
RENEW_IDS_MAX: Final = 128  # ids of one renewal: a script stays below a millisecond
CLAIM_MS_MAX: Final = LEASE_TTL_MS  # an unclaimed reservation lapses then: no use in asking on
RETRY_MS: Final = 200  # between tries of a ledger that does not answer


class Stop(StrEnum):
    """Why an attempt is made to end."""

    CANCELLED = "cancelled"  # an operator's order
    REVOKED = "revoked"  # the ledger says that the lease is not ours any more
    LEASE_LOST = "lease_lost"  # no renewal was answered for too long
    DEADLINE = "deadline"  # firm, and late
    TIMEOUT = "timeout"  # it runs longer than any attempt may
    DRAINED = "drained"  # the runner ends and waits no longer


class Lease:
    """One claimed reservation. `stop` is set once; `on_stop` is called at that moment, on the loop."""

    def __init__(
        self,
        *,
        reservation_id: str,
        fence_at_ms: int,
        granted: Mapping[str, int],
        ledger_ahead_ms: int | None,
    ) -> None:
        self.reservation_id = reservation_id
        self.fence_at_ms = fence_at_ms  # monotonic
        self.granted = granted
        self.ledger_ahead_ms = ledger_ahead_ms  # the ledger's clock minus our monotonic one; None: not known
        self.stop_at_ms: int | None = None  # monotonic
        self.stop_at_reason = Stop.TIMEOUT
        self.stop: Stop | None = None
        self.yield_asked = False
        self.on_stop: Callable[[], None] | None = None

    def halt(self, why: Stop) -> None:
        """End the attempt; the first reason stays."""
        if self.stop is None:
            self.stop = why
            if self.on_stop is not None:
                self.on_stop()

    def holds(self, monotonic_ms: int) -> bool:
        """Whether the attempt may start another step."""
        return self.stop is None and monotonic_ms < self.fence_at_ms


class Leases:
    """All leases of one runner, on one event loop. `ledger` and `beats` (renewals, registrations) are each used by one thread."""

    def __init__(
        self,
        ledger: RunnerLedger,
        *,
        beats: RunnerLedger | None = None,
        runner: str,
        clock: Clock,
        sleep: Sleep,
        ttl_ms: int = LEASE_TTL_MS,
        lanes: tuple[Executor, Executor] | None = None,
    ) -> None:
        assert ttl_ms > FENCE_MARGIN_MS, f"ttl_ms {ttl_ms}, more than {FENCE_MARGIN_MS}"
        self._ledger = ledger
        self._beats = beats or ledger
        self._runner = runner
        self._clock = clock
        self._sleep = sleep
        self._ttl_ms = ttl_ms
        self._lanes = lanes or (ThreadPoolExecutor(1, "ledger-work"), ThreadPoolExecutor(1, "ledger-beat"))
        self._live: dict[str, Lease] = {}
        self._claims = Bunch(self._claim_all, size_max=TOGETHER_MAX)
        self._releases = Bunch(self._release_all, size_max=TOGETHER_MAX)

    @property
    def renew_every_ms(self) -> int:
        """How often `renew` is due."""
        return self._ttl_ms // RENEWALS_PER_TTL

    def live(self) -> Sequence[Lease]:
        """Those that are renewed."""
        return tuple(self._live.values())

    async def claim(self, reservation_id: str, *, give_up_ms: int) -> Lease | str:
        """A lease, or the verdict that refused it. A ledger that does not answer is asked again until `give_up_ms` (monotonic): `unavailable`."""
        reach("before_claim")
        asked_ms = self._clock.monotonic_ms()  # the first question: a repeated claim does not live longer
        while True:
            verdict = "unavailable"
            try:
                claim = await self._claims.ask(reservation_id)
                verdict = claim.verdict
            except LedgerUnavailable:
                claim = None
            if claim is not None and verdict == "claimed":
                return self._held(reservation_id, claim, asked_ms)
            if verdict not in {"unavailable", "recovering"} or self._clock.monotonic_ms() >= give_up_ms:
                return verdict
            await self._sleep(RETRY_MS)

    async def renew(self) -> bool:
        """Renew all leases and carry out the orders that come back. False if the ledger did not answer: the fence decides."""
        ids = list(self._live)
        for first in range(0, len(ids), RENEW_IDS_MAX):
            some = ids[first : first + RENEW_IDS_MAX]
            asked_ms = self._clock.monotonic_ms()
            try:
                orders = await self._beat(
                    partial(self._beats.renew, runner=self._runner, reservation_ids=some)
                )
            except LedgerUnavailable:
                return False
            for reservation_id in some:
                self._obey(reservation_id, orders.get(reservation_id, "recovering"), asked_ms)
        return True

    def sweep(self) -> None:
        """Stop what lost its lease by our own clock, or ran into its time limit."""
        now_ms = self._clock.monotonic_ms()
        for lease in self.live():
            if now_ms >= lease.fence_at_ms:
                lease.halt(Stop.LEASE_LOST)
            elif lease.stop_at_ms is not None and now_ms >= lease.stop_at_ms:
                lease.halt(lease.stop_at_reason)

    def forget(self, lease: Lease) -> None:
        """Renew it no longer."""
        if self._live.get(lease.reservation_id) is lease:
            del self._live[lease.reservation_id]

    async def call(self, lease: Lease, resource: str, amount: int) -> CallAnswer:
        """One question about a further call; a ledger that does not answer refuses for RETRY_MS."""
        try:
            return await self._work(
                lambda: self._ledger.call(
                    reservation_id=lease.reservation_id, runner=self._runner, resource=resource, amount=amount
                )
            )
        except LedgerUnavailable:
            return Call(granted=False, retry_ms=RETRY_MS, reason="ledger_unavailable")

    async def release(self, lease: Lease, used: Mapping[str, int]) -> bool:
        """Give the slots back after the durable outcome. True if the ledger answered within the lease's time; else the lease lapses by itself."""
        give_up_ms = self._clock.monotonic_ms() + self._ttl_ms
        while self._clock.monotonic_ms() < give_up_ms:
            try:
                await self._releases.ask((lease.reservation_id, used))
            except LedgerUnavailable:
                await self._sleep(RETRY_MS)
            else:
                return True
        return False

    async def register(self, *, fleet: str, partition: int, credit: int, ttl_ms: int) -> bool:
        """Announce how many dispatches may stand here. False if the ledger did not answer."""
        try:
            await self._beat(
                lambda: self._beats.register(
                    runner=self._runner, fleet=fleet, partition=partition, credit=credit, ttl_ms=ttl_ms
                )
            )
        except LedgerUnavailable:
            return False
        return True

    async def deregister(self, *, fleet: str) -> bool:
        """Ask for no more dispatches. False if the ledger did not answer: the registration lapses by itself."""
        try:
            await self._beat(lambda: self._beats.deregister(runner=self._runner, fleet=fleet))
        except LedgerUnavailable:
            return False
        return True

    def close(self) -> None:
        """End the threads; a call under way ends by its own time limit."""
        for lane in self._lanes:
            lane.shutdown(wait=False, cancel_futures=True)

    def _held(self, reservation_id: str, claim: Claim, asked_ms: int) -> Lease:
        # counted from the question, the ledger's clock is never taken for earlier than it is
        ahead_ms = claim.expires_ms - self._ttl_ms - asked_ms if claim.expires_ms else None
        lease = Lease(
            reservation_id=reservation_id,
            fence_at_ms=self._fence_at(asked_ms),
            granted=dict(claim.granted),
            ledger_ahead_ms=ahead_ms,
        )
        self._live[reservation_id] = lease
        reach("after_claim")
        return lease

    def _fence_at(self, asked_ms: int) -> int:
        return asked_ms + self._ttl_ms - FENCE_MARGIN_MS

    def _obey(self, reservation_id: str, order: str, asked_ms: int) -> None:
        lease = self._live.get(reservation_id)
        if lease is None:
            return  # it ended while the question was under way
        if order == "revoked":
            lease.halt(Stop.REVOKED)
        if order not in RENEWED:
            return  # the ledger has lost its memory: it may enter us again, else the fence decides
        lease.fence_at_ms = max(lease.fence_at_ms, self._fence_at(asked_ms))
        if order == "cancel":
            lease.halt(Stop.CANCELLED)
        elif order == "yield":
            lease.yield_asked = True

    async def _claim_all(self, ids: Sequence[str]) -> Sequence[Claim]:
        found = await self._work(lambda: self._ledger.claim_all(runner=self._runner, reservation_ids=ids))
        return [found[reservation_id] for reservation_id in ids]

    async def _release_all(self, releases: Sequence[tuple[str, Mapping[str, int]]]) -> Sequence[bool]:
        return await self._work(lambda: self._ledger.release_all(runner=self._runner, releases=releases))

    async def _work(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._lanes[0], call)

    async def _beat(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._lanes[1], call)


@contextmanager
def open_ledgers(
    url: str, *, config: Config, shards: int, prefix: str
) -> Iterator[tuple[RunnerLedger, RunnerLedger]]:
    """Two connections to the real ledger: one for work, one for beats."""
    limits = Limits.of(config)
    with ExitStack() as stack:
        doors = [RedisLedger(url, limits=limits, shards=shards, prefix=prefix) for _ in range(2)]
        for door in doors:
            stack.callback(door.close)
        yield doors[0], doors[1]
