"""The poll thread: reads dispatches, tells orders from questions, bounds what is unfinished, commits what is finished.

A record below the end that its partition's log had when it was assigned is a question: the runner that got it before may have carried it
out. Everything here runs in one thread, but for `finished`, `assignment` and `stop`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from laxity.consumers.doors import DispatchConsumer, Received
from laxity.consumers.watermark import Watermark
from laxity.schemas.crashpoints import reach
from laxity.schemas.timing import Clock

POLL_MS: Final = 100  # how long a rebalance, a commit or the end may have to wait for a quiet topic
END_WAIT_MS: Final = 500  # for the end of a log; the thread never blocks a second
COMMIT_MS: Final = 500  # what is read again after a crash is only answered, so seldom is enough
BATCH_MAX: Final = 500  # records handed to the loop at once
UNFINISHED_MAX: Final = 5_000  # records read and not finished: some 10 KiB each with their payloads

_log = structlog.get_logger("laxity.agents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A record for the loop. `place` names it towards `finished`."""

    record: Received
    question: bool
    place: Place


@dataclass(eq=False, slots=True, kw_only=True)
class Partition:
    """One assignment of one partition; a partition that comes back is another."""

    number: int
    watermark: Watermark
    end: int | None = None  # of the log when it was assigned; None: not known yet, nothing is read
    committed: int = -1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record was read: an assignment and an offset."""

    partition: Partition
    offset: int


class Intake:
    """Reads one fleet's dispatches for one runner. `deliver` and `changed` are called in the poll thread and must not wait."""

    def __init__(
        self,
        consumer: DispatchConsumer,
        *,
        clock: Clock,
        deliver: Callable[[Sequence[Delivery]], None],
        changed: Callable[[], None],
        unfinished_max: int = UNFINISHED_MAX,
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._deliver = deliver
        self._changed = changed
        self._unfinished_max = unfinished_max
        self._partitions: dict[int, Partition] = {}
        self._assignment: tuple[int, ...] = ()
        self._finished: deque[Place] = deque()
        self._full = False
        self._stopping = threading.Event()
        self._committed_ms = clock.monotonic_ms()
        self.beat_ms = clock.monotonic_ms()  # of the last turn: liveness
        self.failure: BaseException | None = None

    @property
    def assignment(self) -> Sequence[int]:
        """Partitions that are read, lowest first: dispatches sent to them are orders."""
        return self._assignment

    @property
    def unfinished(self) -> int:
        """Records read and not finished, over all assignments that we still have."""
        return sum(p.watermark.unfinished for p in list(self._partitions.values()))

    def finished(self, place: Place) -> None:
        """The record's outcome is durable, or none is needed. From any thread."""
        self._finished.append(place)

    def stop(self) -> None:
        """Commit, leave the group, end the thread. From any thread."""
        self._stopping.set()

    def run(self) -> None:
        """Until `stop`, or until the consumer cannot go on (`failure`)."""
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - the runner is told and ends
            self.failure = error
            _log.exception("intake.failed")
        finally:
            self._partitions.clear()
            self._publish()

    def _read(self) -> None:
        try:
            self._consumer.start(self)
            while not self._stopping.is_set():
                self.turn()
        finally:
            self._take_finished()
            self._consumer.close(self._due())

    def turn(self) -> None:
        """One round; at most a second."""
        self._take_finished()
        self._find_ends()
        self._bound()
        room = 0 if self._full else min(BATCH_MAX, self._unfinished_max - self.unfinished)
        records = self._consumer.poll(max(room, 0), POLL_MS)
        deliveries = [d for d in map(self._delivery, records) if d is not None]
        if deliveries:
            self._deliver(deliveries)
        self._commit()
        self.beat_ms = self._clock.monotonic_ms()

    def assigned(self, partitions: Sequence[int]) -> None:
        """Assignments: nothing is read before the end of the log is known."""
        for number in partitions:
            self._partitions[number] = Partition(number=number, watermark=Watermark())

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Assignments: running work goes on, its outcomes carry their number."""
        self._take_finished()
        positions = {n: p for n, p in self._due().items() if n in partitions}
        self.lost(partitions)
        return positions

    def lost(self, partitions: Sequence[int]) -> None:
        """Assignments: another has them."""
        for number in partitions:
            self._partitions.pop(number, None)
        self._publish()

    def _find_ends(self) -> None:
        """Of new partitions; those that END_WAIT_MS does not suffice for have their turn in the next round."""
        until_ms = self._clock.monotonic_ms() + END_WAIT_MS
        found = []
        for partition in [p for p in self._partitions.values() if p.end is None]:
            left_ms = until_ms - self._clock.monotonic_ms()
            partition.end = self._consumer.log_end(partition.number, left_ms) if left_ms > 0 else None
            if partition.end is None:
                break  # the others would wait as long
            found.append(partition.number)
        if found and not self._full:
            self._consumer.resume(found)
        self._publish()

    def _bound(self) -> None:
        """Stop reading at the bound, go on at half of it."""
        unfinished, readable = (
            self.unfinished,
            [p.number for p in self._partitions.values() if p.end is not None],
        )
        if not self._full and unfinished >= self._unfinished_max:
            self._full = True
            self._consumer.pause(readable)
        elif self._full and unfinished <= self._unfinished_max // 2:
            self._full = False
            self._consumer.resume(readable)

    def _delivery(self, record: Received) -> Delivery | None:
        partition = self._partitions.get(record.partition)
        if partition is None or partition.end is None:
            return None  # it was revoked in this very poll: its next owner reads it
        if partition.committed < 0:
            partition.committed = (
                record.offset
            )  # where reading began: nothing to commit before it is finished
        partition.watermark.received(record.offset)
        return Delivery(
            record=record, question=record.offset < partition.end, place=Place(partition, record.offset)
        )

    def _take_finished(self) -> None:
        while self._finished:
            place = self._finished.popleft()
            place.partition.watermark.finished(place.offset)

    def _due(self) -> dict[int, int]:
        """Positions that moved since the last commit."""
        return {
            p.number: p.watermark.position
            for p in self._partitions.values()
            if p.watermark.position > p.committed
        }

    def _commit(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._committed_ms < COMMIT_MS:
            return
        self._committed_ms = now_ms
        positions = self._due()
        if not positions:
            return
        reach("before_commit")
        self._consumer.commit(positions)
        for number, position in positions.items():
            self._partitions[number].committed = position

    def _publish(self) -> None:
        assignment = tuple(sorted(p.number for p in self._partitions.values() if p.end is not None))
        if assignment != self._assignment:
            self._assignment = assignment
            self._changed()
