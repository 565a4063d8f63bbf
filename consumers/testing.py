"""Stand-ins for tests of agents and of the runner: a clock that is moved by hand, topics in memory, a ledger without threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from heapq import heappop, heappush
from typing import Any, TypeVar

from laxity.consumers.doors import Assignments, Received
from laxity.consumers.errors import NotWritten
from laxity.schemas.records import Outcome
from laxity.schemas.timing import ManualClock

T = TypeVar("T")
SETTLE_TURNS = 40  # of the loop: more than any chain of ready callbacks here is long


class ManualTime:
    """A ManualClock and a `sleep` that only it ends."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._seq = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    async def sleep(self, ms: int) -> None:
        """Until the clock has been moved by `ms`."""
        future = asyncio.get_running_loop().create_future()
        self._seq += 1
        heappush(self._sleepers, (self.clock.monotonic_ms() + ms, self._seq, future))
        await future

    async def advance(self, ms: int) -> None:
        """Move the clock, stopping at each sleeper's time to let it go on."""
        end_ms = self.clock.monotonic_ms() + ms
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_ms:
            due_ms, _, future = heappop(self._sleepers)
            self.clock.advance(max(due_ms - self.clock.monotonic_ms(), 0))
            if not future.done():
                future.set_result(None)
            await settle()
        self.clock.advance(end_ms - self.clock.monotonic_ms())
        await settle()


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


class Inline(Executor):
    """Runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """The finished call."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future carries it
            future.set_exception(error)
        return future


class MemoryOutcomes:
    """`outcomes` in memory. `refuse` makes the next writes fail, `hold` makes them wait."""

    def __init__(self, shards: int = 4) -> None:
        self.written: list[tuple[int, Outcome]] = []
        self.refuse: list[NotWritten] = []
        self.open = asyncio.Event()
        self.open.set()
        self.close_after: int | None = None  # writes until `open` is cleared
        self._shards = shards

    @property
    def kinds(self) -> list[str]:
        """Of all outcomes in order."""
        return [outcome.kind for _, outcome in self.written]

    @property
    def last(self) -> Outcome:
        """The newest."""
        return self.written[-1][1]

    async def write(self, partition: int, key: bytes, outcome: Outcome) -> None:  # noqa: ARG002 - the seam's parameters
        """Appended when it returns."""
        await self.open.wait()
        if self.refuse:
            raise self.refuse.pop(0)
        self.written.append((partition, outcome))
        if len(self.written) == self.close_after:
            self.open.clear()

    def partitions(self) -> int:
        """How many shards there are."""
        return self._shards


class MemoryDispatches:
    """A fleet's topic and this member's view of it, in memory. A test appends records and moves partitions; `poll` never waits."""

    def __init__(self, partitions: int = 4) -> None:
        self.logs: dict[int, list[Received]] = {number: [] for number in range(partitions)}
        self.committed: dict[int, int] = {}
        self.paused: set[int] = set()
        self.ends_known = True
        self.closed = False
        self._positions: dict[int, int] = {}
        self._moves: list[Callable[[Assignments], None]] = []
        self._assignments: Assignments | None = None

    def append(
        self,
        partition: int,
        value: bytes | None,
        key: bytes = b"key",
        gap: int = 0,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """A record after `gap` offsets that hold none (transaction markers); returns its offset."""
        log = self.logs[partition]
        offset = self.end(partition) + gap
        log.append(
            Received(
                partition=partition, offset=offset, timestamp_ms=0, key=key, value=value, headers=headers
            )
        )
        return offset

    def end(self, partition: int) -> int:
        """Of the log."""
        log = self.logs[partition]
        return log[-1].offset + 1 if log else 0

    def assign(self, *partitions: int) -> None:
        """The next poll brings these."""

        def move(assignments: Assignments) -> None:
            for number in partitions:
                self._positions[number] = self.committed.get(number, 0)
                self.paused.add(number)
            assignments.assigned(partitions)

        self._moves.append(move)

    def revoke(self, *partitions: int) -> None:
        """The next poll takes these away."""

        def move(assignments: Assignments) -> None:
            self.committed |= assignments.revoked(partitions)
            for number in partitions:
                del self._positions[number]

        self._moves.append(move)

    def start(self, assignments: Assignments) -> None:
        """Join."""
        self._assignments = assignments

    def poll(self, records_max: int, wait_ms: int) -> Sequence[Received]:  # noqa: ARG002 - the seam's parameters
        """What is there."""
        assert self._assignments is not None, "poll before start"
        for move in self._moves:
            move(self._assignments)
        self._moves.clear()
        found: list[Received] = []
        for number, position in self._positions.items():
            if number in self.paused:
                continue
            ready = [r for r in self.logs[number] if r.offset >= position][: records_max - len(found)]
            if ready:
                self._positions[number] = ready[-1].offset + 1
            found += ready
        return found

    def log_end(self, partition: int, wait_ms: int) -> int | None:  # noqa: ARG002
        """Unless `ends_known` is off."""
        return self.end(partition) if self.ends_known else None

    def pause(self, partitions: Sequence[int]) -> None:
        """Deliver no more of these."""
        self.paused |= set(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        """Deliver these again."""
        self.paused -= set(partitions)

    def commit(self, positions: Mapping[int, int]) -> None:
        """At once."""
        self.committed |= positions

    def close(self, positions: Mapping[int, int]) -> None:
        """Commit and leave."""
        self.committed |= positions
        self.closed = True
