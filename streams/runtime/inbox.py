"""Records of one shard that were read and not yet taken into a batch. Readers fill it, the shard empties it.

It is bounded by pausing: a lane that is crowded, or held by the shard because its tier has enough waiting, is not read on until it has room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from laxity.schemas.records import InputRange
from laxity.streams.effects import Record
from laxity.streams.runtime.sources import INPUTS, PATIENT, SHARE_PERMILLE

LANE_RECORDS_MAX = 4_000  # eight full batches: a pause throws away what was prefetched, so it must be rare
LANE_BYTES_MAX = 8 * 1024 * 1024  # eight of the largest triggers, whatever their number
LANE_ROOM_DIVISOR = 4  # read on below a quarter of either

_OVERHEAD_BYTES = 200  # of a record beside key, value and headers
_HEADER_OVERHEAD_BYTES = 64  # of a pair: 2 bytes in Kafka may be a header


@dataclass(slots=True)
class _Lane:
    """One input partition. `taken`: offset after what was taken; `next`: offset after what was read."""

    taken: int
    next: int
    records: deque[Record] = field(default_factory=deque)
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Input of one batch."""

    records: Sequence[Record]
    ranges: Sequence[InputRange]


class InputLost(Exception):  # noqa: N818 - a state of the world
    """The partition cannot be read on from where it was: retention, or a topic made anew."""


def _size(record: Record) -> int:
    size = len(record.key or b"") + len(record.value or b"") + _OVERHEAD_BYTES
    if record.headers:
        size += sum(len(name) + len(value or b"") + _HEADER_OVERHEAD_BYTES for name, value in record.headers)
    return size


class Inbox:
    """Thread-safe. `open` first; records that are not next in their lane are stale and dropped."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._held: frozenset[str] = frozenset()
        self._heard: set[str] = set()
        self._nudged = False
        self._lost = ""

    def open(self, positions: Mapping[str, int]) -> None:
        """Start anew: the next offset of each input."""
        with self._changed:
            self._lanes = {topic: _Lane(taken=at, next=at) for topic, at in positions.items()}
            self._lost = ""
            self._changed.notify()

    def put(self, topic: str, records: Sequence[Record]) -> None:
        """Records of one lane in the order of offsets."""
        with self._changed:
            lane = self._lanes.get(topic)
            if lane is None:
                return
            for record in records:
                if record.offset >= lane.next:
                    lane.records.append(record)
                    lane.next = record.offset + 1
                    lane.size += _size(record)
            self._changed.notify()

    def reach_end(self, topic: str, offset: int) -> None:
        """The lane was read to the partition's end: `offset` may lie beyond the last record (transaction markers)."""
        with self._changed:
            lane = self._lanes.get(topic)
            if lane is not None:
                lane.next = max(lane.next, offset)

    def lose(self, reason: str) -> None:
        """The next `take` raises InputLost."""
        with self._changed:
            self._lost = reason
            self._changed.notify()

    def hold(self, topics: Collection[str]) -> None:
        """Read no further in these lanes, whatever their room."""
        self._held = frozenset(topics)

    def crowded(self, topic: str) -> bool:
        """Whether to pause it."""
        lane = self._lanes.get(topic)
        if lane is None:
            return False
        return topic in self._held or len(lane.records) >= LANE_RECORDS_MAX or lane.size >= LANE_BYTES_MAX

    def roomy(self, topic: str) -> bool:
        """Whether to resume it."""
        lane = self._lanes.get(topic)
        if lane is None:
            return True
        few = len(lane.records) * LANE_ROOM_DIVISOR <= LANE_RECORDS_MAX
        return topic not in self._held and few and lane.size * LANE_ROOM_DIVISOR <= LANE_BYTES_MAX

    def waiting(self) -> int:
        """Records that were read and not taken; raises InputLost."""
        if self._lost:
            raise InputLost(self._lost)
        return sum(len(lane.records) for lane in self._lanes.values())

    def patient(self) -> bool:
        """Whether everything that waits belongs to tiers that have time."""
        return not any(lane.records for topic, lane in self._lanes.items() if topic not in PATIENT)

    def moved(self) -> bool:
        """Whether some lane's end lies beyond what was taken (records or markers)."""
        return any(lane.next > lane.taken for lane in self._lanes.values())

    def next(self, topic: str) -> int:
        """Offset after what was read of an input."""
        with self._changed:
            return self._lanes[topic].next

    def positions(self) -> dict[str, int]:
        """Offset after what was taken, by input."""
        with self._changed:
            return {topic: lane.taken for topic, lane in self._lanes.items()}

    def take(self, limit: int) -> Taken:
        """At most `limit` records in canonical order, and how far each lane moved."""
        with self._changed:
            counts = self._shares(limit)
            records: list[Record] = []
            ranges: list[InputRange] = []
            for topic in INPUTS:
                lane = self._lanes.get(topic)
                if lane is not None and (counts[topic] or (lane.next > lane.taken and not lane.records)):
                    ranges.append(self._take(topic, lane, counts[topic], records))
            return Taken(records=records, ranges=ranges)

    def _shares(self, limit: int) -> dict[str, int]:
        """How many of each lane: its share first, then leftovers in order."""
        there = {topic: len(lane.records) for topic, lane in self._lanes.items()}
        counts = {topic: min(n, max(1, limit * SHARE_PERMILLE[topic] // 1000)) for topic, n in there.items()}
        left = limit - sum(counts.values())
        for topic in INPUTS:
            if left > 0 and topic in there:
                more = min(left, there[topic] - counts[topic])
                counts[topic] += more
                left -= more
        return counts

    def _take(self, topic: str, lane: _Lane, count: int, records: list[Record]) -> InputRange:
        first = lane.taken
        for _ in range(count):
            record = lane.records.popleft()
            lane.size -= _size(record)
            records.append(record)
        lane.taken = records[-1].offset + 1 if lane.records else lane.next
        return InputRange(topic=topic, partition=self.shard, first=first, next=lane.taken, count=count)

    def hear(self, resource: str) -> None:
        """The ledger says that a resource has room."""
        with self._changed:
            self._heard.add(resource)
            self._changed.notify()

    def heard(self) -> set[str]:
        """Resources heard of since the last call."""
        with self._changed:
            found, self._heard = self._heard, set()
            return found

    def nudge(self) -> None:
        """End the present or the next wait."""
        with self._changed:
            self._nudged = True
            self._changed.notify()

    def wait(self, timeout_ms: int, *, more_than: int) -> None:
        """Until more than `more_than` records wait, something is heard, a nudge, or the timeout."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._nudged or bool(self._lost or self._heard) or self._count() > more_than,
                max(0, timeout_ms) / 1000,
            )
            self._nudged = False

    def _count(self) -> int:
        return sum(len(lane.records) for lane in self._lanes.values())
