"""Places to run at this runner. A task gives its place back while it waits for others, and takes one again before it goes on.

Whoever comes back goes before whoever is new (it holds a lease and half a result); among equals the earlier deadline goes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush

BACK, NEW = 0, 1


class SlotsClosed(Exception):  # noqa: N818 - a state, not an accident
    """Nobody new gets a place any more."""


class Slots:
    """`capacity` places on one event loop."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, f"capacity {capacity}, at least 1"
        self.capacity = capacity
        self.taken = 0
        self.away = 0  # attempts that gave their place back while they wait
        self._closed = False
        self._seq = 0
        self._queue: list[tuple[int, int, int, asyncio.Future[None]]] = []

    @property
    def queued(self) -> int:
        """How many wait for a place."""
        return sum(not future.done() for *_, future in self._queue)

    async def take(self, deadline_ms: int, rank: int = NEW) -> None:
        """A place, in order of rank and deadline; SlotsClosed for whoever is new after `close`. A cancelled wait leaves nothing behind."""
        if self._closed and rank == NEW:
            raise SlotsClosed
        if self.taken < self.capacity:
            self.taken += 1
            return
        future = asyncio.get_running_loop().create_future()
        self._seq += 1
        heappush(self._queue, (rank, deadline_ms, self._seq, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give()  # the place was handed over in the same turn of the loop
            raise

    def close(self) -> None:
        """Turn away whoever is new, also those who wait already."""
        self._closed = True
        for rank, _, _, future in self._queue:
            if rank == NEW and not future.done():
                future.set_exception(SlotsClosed())

    def give(self) -> None:
        """The place goes to the first who waits."""
        while self._queue:
            *_, future = heappop(self._queue)
            if not future.done():
                future.set_result(None)
                return
        self.taken -= 1
        assert self.taken >= 0, "a slot was given back twice"


class Slot:
    """One attempt's hold on a place. Several may hold it (the attempt, a thread that cannot be stopped); the last one gives it back."""

    def __init__(self, slots: Slots, deadline_ms: int) -> None:
        self._slots = slots
        self._deadline_ms = deadline_ms
        self._holders = 1
        self._waits = 0
        self._has = True
        self._returning = asyncio.Lock()

    def hold(self) -> None:
        """One more who needs the place."""
        self._holders += 1

    def let_go(self) -> None:
        """One less; after the last the place is free."""
        self._holders -= 1
        assert self._holders >= 0, "let go more often than held"
        if self._holders == 0:
            self._give()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Inside, others may use the place; with several waits at once until the last one ends."""
        self._waits += 1
        self._slots.away += self._waits == 1
        self._give()
        try:
            yield
        finally:
            self._waits -= 1
            if self._waits == 0:
                self._slots.away -= 1
                await self._take_again()

    def _give(self) -> None:
        if self._has:
            self._has = False
            self._slots.give()

    async def _take_again(self) -> None:
        async with self._returning:
            if self._has or self._holders == 0:
                return
            await self._slots.take(self._deadline_ms, BACK)
            self._has = True
            if self._holders == 0:  # the attempt ended meanwhile
                self._give()


@asynccontextmanager
async def slot_of(slots: Slots, deadline_ms: int) -> AsyncIterator[Slot]:
    """A place for the time inside, and for as long as others hold it."""
    await slots.take(deadline_ms)
    slot = Slot(slots, deadline_ms)
    try:
        yield slot
    finally:
        slot.let_go()
