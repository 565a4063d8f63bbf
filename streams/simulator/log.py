"""Kafka's log as far as a shard sees it: partitions, offsets with gaps for transaction markers, fenced producers, committed offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from laxity.schemas.identity import murmur2
from laxity.streams.effects import Record
from laxity.streams.runtime.transactions import FencedError

Place = tuple[str, int]
NewRecord = tuple[str, int | None, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
"""Topic, partition (None: by key), key, value, headers."""


@dataclass(slots=True)
class Log:
    """All topics. Every read is read_committed, because uncommitted records are never appended here."""

    partitions: Mapping[str, int]
    records: dict[Place, list[Record]] = field(default_factory=dict)
    ends: dict[Place, int] = field(default_factory=dict)
    committed: dict[Place, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    compacted: dict[Place, int] = field(default_factory=dict)  # below it only the last record of each key

    def init(self, transactional_id: str) -> int:
        """Fence earlier producers of this id; returns the epoch to produce under."""
        self.epochs[transactional_id] = self.epochs.get(transactional_id, 0) + 1
        return self.epochs[transactional_id]

    def commit(
        self,
        transactional_id: str,
        epoch: int,
        news: Iterable[NewRecord],
        offsets: Mapping[Place, int],
        now_ms: int,
    ) -> None:
        """A whole transaction: records, a marker behind them in each partition, offsets. Raises FencedError."""
        if self.epochs.get(transactional_id) != epoch:
            raise FencedError(f"{transactional_id}: epoch {epoch}, now {self.epochs.get(transactional_id)}")
        touched = {self._append(new, now_ms) for new in news}
        for partition in touched:
            self.ends[partition] += 1
        self.committed.update(offsets)

    def append(self, new: NewRecord, now_ms: int) -> int:
        """One record outside transactions; returns its offset."""
        return self.ends[self._append(new, now_ms)] - 1

    def _append(self, new: NewRecord, now_ms: int) -> Place:
        topic, partition, key, value, headers = new
        count = self.partitions[topic]
        at = (topic, murmur2(key or b"") % count if partition is None else partition)
        assert at[1] < count, f"partition {at[1]} of {topic}, which has {count}"
        offset = self.ends.get(at, 0)
        record = Record(
            topic=topic,
            partition=at[1],
            offset=offset,
            timestamp_ms=now_ms,
            key=key,
            value=value,
            headers=tuple(headers),
        )
        self.records.setdefault(at, []).append(record)
        self.ends[at] = offset + 1
        return at

    def end(self, topic: str, partition: int) -> int:
        """The next offset, markers included."""
        return self.ends.get((topic, partition), 0)

    def read(self, topic: str, partition: int, start: int, most: int = 1_000_000) -> list[Record]:
        """Records from `start` on."""
        records = self.records.get((topic, partition), [])
        low, high = 0, len(records)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if records[middle].offset < start else (low, middle)
        return records[low : low + most]

    def read_compacted(self, topic: str, partition: int, start: int) -> list[Record]:
        """What compaction has left from `start` on; tombstones stay."""
        below = self.compacted.get((topic, partition), 0)
        last = {r.key: r.offset for r in self.read(topic, partition, 0) if r.offset < below}
        found = self.read(topic, partition, start)
        return [r for r in found if r.offset >= below or last[r.key] == r.offset]

    def all(self, topic: str) -> list[Record]:
        """Every record of a topic, partition by partition."""
        return [r for p in range(self.partitions[topic]) for r in self.read(topic, p, 0)]
