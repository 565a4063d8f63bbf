"""Claims that are repeated, renewals that meet a ledger without memory, releases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from laxity.consumers.leases import FENCE_MARGIN_MS, RENEW_IDS_MAX, Lease, Leases, Stop
from laxity.consumers.testing import Inline, ManualTime, settle
from laxity.streams.ledger.limits import LEASE_TTL_MS
from laxity.streams.ledger.protocol import Claim, LedgerUnavailable


class Scripted:
    """A ledger that answers as told; only what a test needs."""

    def __init__(self, time: ManualTime) -> None:
        self.time = time
        self.claims: list[Claim | None] = []
        self.orders: dict[str, str] = {}
        self.down = False
        self.batches: list[int] = []
        self.released: list[str] = []

    def claim(self, *, reservation_id: str, runner: str) -> Claim:
        answer = self.claims.pop(0)
        if answer is None:
            raise LedgerUnavailable("no answer")
        return answer

    def claim_all(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, Claim]:
        return {i: self.claim(reservation_id=i, runner=runner) for i in reservation_ids}

    def release_all(
        self, *, runner: str, releases: Sequence[tuple[str, Mapping[str, int]]]
    ) -> Sequence[bool]:
        return [self.release(reservation_id=i, runner=runner, used=used) for i, used in releases]

    def renew(self, *, runner: str, reservation_ids: Sequence[str]) -> Mapping[str, str]:
        if self.down:
            raise LedgerUnavailable("no answer")
        self.batches.append(len(reservation_ids))
        return {i: self.orders.get(i, "ok") for i in reservation_ids}

    def release(self, *, reservation_id: str, runner: str, used: Mapping[str, int]) -> bool:
        if self.down:
            raise LedgerUnavailable("no answer")
        self.released.append(reservation_id)
        return True


def world() -> tuple[ManualTime, Scripted, Leases]:
    time = ManualTime()
    ledger = Scripted(time)
    door: Any = ledger
    return (
        time,
        ledger,
        Leases(door, runner="r", clock=time.clock, sleep=time.sleep, lanes=(Inline(), Inline())),
    )


async def claimed(leases: Leases, ledger: Scripted, name: str = "a") -> Lease:
    ledger.claims.append(Claim(verdict="claimed", expires_ms=LEASE_TTL_MS))
    lease = await leases.claim(name, give_up_ms=1_000)
    assert isinstance(lease, Lease)
    return lease


async def test_a_claim_that_was_asked_twice_lives_from_the_first_question() -> None:
    time, ledger, leases = world()
    ledger.claims = [None, None, Claim(verdict="claimed")]  # the first may have been carried out
    asked_ms = time.clock.monotonic_ms()
    task = asyncio.create_task(leases.claim("a", give_up_ms=asked_ms + 5_000))
    await time.advance(1_000)
    lease = await task
    assert isinstance(lease, Lease)
    assert lease.fence_at_ms == asked_ms + LEASE_TTL_MS - FENCE_MARGIN_MS


async def test_a_ledger_without_memory_neither_renews_nor_revokes() -> None:
    time, ledger, leases = world()
    lease = await claimed(leases, ledger)
    fence_ms = lease.fence_at_ms
    ledger.orders["a"] = "recovering"
    await time.advance(5_000)
    assert await leases.renew()
    assert (lease.stop, lease.fence_at_ms) == (None, fence_ms)
    ledger.orders["a"] = "ok"
    assert await leases.renew()
    assert lease.fence_at_ms == fence_ms + 5_000


async def test_orders_are_carried_out_and_the_first_reason_stays() -> None:
    _, ledger, leases = world()
    stopped: list[str] = []
    first, second = await claimed(leases, ledger, "a"), await claimed(leases, ledger, "b")
    first.on_stop = lambda: stopped.append("a")
    ledger.orders = {"a": "cancel", "b": "yield"}
    await leases.renew()
    ledger.orders = {"a": "revoked"}
    await leases.renew()
    assert (first.stop, second.stop, second.yield_asked, stopped) == (Stop.CANCELLED, None, True, ["a"])


async def test_many_leases_are_renewed_in_bounded_batches() -> None:
    _, ledger, leases = world()
    for number in range(RENEW_IDS_MAX + 10):
        await claimed(leases, ledger, str(number))
    await leases.renew()
    assert ledger.batches == [RENEW_IDS_MAX, 10]


async def test_a_forgotten_lease_is_not_renewed() -> None:
    _, ledger, leases = world()
    leases.forget(await claimed(leases, ledger))
    await leases.renew()
    assert ledger.batches == []


async def test_the_fence_is_kept_by_our_own_clock() -> None:
    time, ledger, leases = world()
    lease = await claimed(leases, ledger)
    ledger.down = True
    await time.advance(LEASE_TTL_MS - FENCE_MARGIN_MS - 1)
    assert not await leases.renew()
    leases.sweep()
    assert lease.holds(time.clock.monotonic_ms())
    await time.advance(1)
    assert not lease.holds(time.clock.monotonic_ms())
    leases.sweep()
    assert lease.stop is Stop.LEASE_LOST


async def test_a_release_is_repeated_until_the_lease_would_lapse_by_itself() -> None:
    time, ledger, leases = world()
    lease = await claimed(leases, ledger)
    ledger.down = True
    task = asyncio.create_task(leases.release(lease, {}))
    await time.advance(1_000)
    ledger.down = False
    await time.advance(1_000)
    assert await task
    assert ledger.released == ["a"]
    ledger.down = True
    task = asyncio.create_task(leases.release(lease, {}))
    await time.advance(LEASE_TTL_MS + 1_000)
    await settle()
    assert not await task
