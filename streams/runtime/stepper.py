"""Past records that the client cannot read, and not one record further.

A batch whose checksum is wrong, or that cannot be unpacked, is reported by the client again and again, at the offset where the batch
begins; of one whose inside is malformed (a hand-made length that the broker lets pass) it says nothing, fetches it again and again, and
stands; and a hand-made offset it takes for true. None says where the batch ends, so that is found out by reading from places behind it,
with a consumer of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from laxity.schemas.timing import Clock
from laxity.streams.runtime.codes import OUT_OF_RANGE, PARTITION_EOF

LOOK_MS_MAX: Final = 2_000  # for an answer of the broker; without one nothing is skipped
SILENT_RECORDS_MAX: Final = 64  # passed at a time where nothing tells how large the batch is: some seconds
PARTIAL_FETCHES: Final = (
    4  # of one place, none with a record in it: the client cannot read what the broker sends
)
STATISTICS_MS: Final = 20
_POLL_S: Final = 0.02

UNREADABLE: Final = frozenset({
    int(KafkaError._BAD_MSG),  # noqa: SLF001 - a checksum, or the frame of a batch
    int(KafkaError._BAD_COMPRESSION),  # noqa: SLF001 - also what unpacks to more than we receive
    int(KafkaError._NOT_IMPLEMENTED),  # noqa: SLF001 - an unknown codec or format
    int(KafkaError.INVALID_MSG),  # the broker's own word for a rotten log
    int(KafkaError.MSG_SIZE_TOO_LARGE),
})  # fmt: skip

MakeConsumer = Callable[[Mapping[str, object]], Consumer]
"""With further properties: no member of the group, assigned by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Unreadable offsets: first <= offset < end. `why` is the client's word for it."""

    first: int
    end: int
    why: str

    def text(self) -> str:
        """For people."""
        return f"offsets {self.first} to {self.end - 1}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What reading from an offset shows. `base`: where the batch begins that cannot be read; -1: nobody says."""

    broken: bool
    base: int = -1
    why: str = ""


_READABLE = _Look(broken=False)


class NoAnswer(Exception):  # noqa: N818 - a state of the world
    """The broker sent nothing: whether the records can be read is not known."""


class Search:
    """Looks at one partition. `close` it."""

    def __init__(self, make: MakeConsumer, topic: str, partition: int, clock: Clock) -> None:
        self._topic, self._partition, self._clock = topic, partition, clock
        self._partials = 0
        self._consumer = make({
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": self._count,
            "fetch.error.backoff.ms": STATISTICS_MS,
            "fetch.wait.max.ms": STATISTICS_MS,
        })  # fmt: skip

    def close(self) -> None:
        """Let go of the consumer."""
        self._consumer.close()

    def extent(self, at: int) -> Extent | None:
        """The unreadable records from `at` on; None: it can be read. Raises NoAnswer."""
        found = self._look(at)
        if not found.broken:
            return None
        end = self._end(at, found.base) if found.base >= 0 else self._end_of_silence(at)
        return Extent(first=at, end=end, why=found.why)

    def _end(self, at: int, base: int) -> int:
        """The first offset that is not of the batch at `base`: gallop, then halve."""
        low, step = at, 1
        while self._is_of(low + step, base):
            low, step = low + step, 2 * step
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_of(middle, base) else (low, middle)
        return high

    def _is_of(self, at: int, base: int) -> bool:
        found = self._look(at)
        return found.broken and found.base == base

    def _end_of_silence(self, at: int) -> int:
        """One by one: a jump could pass good records between two bad batches."""
        end = at + 1
        while end - at < SILENT_RECORDS_MAX and (found := self._look(end)).broken and found.base < 0:
            end += 1
        return end

    def _look(self, at: int) -> _Look:
        found = self._read(at)
        return found if isinstance(found, _Look) else self._judged(found, at)

    def _judged(self, found: Message[bytes, bytes], at: int) -> _Look:
        """A record that stands further on than was asked: behind a gap that transactions left, or where somebody says that it does."""
        offset = found.offset() or 0
        if offset == at:
            return _READABLE
        there = self._read(offset)
        if isinstance(there, _Look):
            if there.broken or offset < self._end_of_log():
                raise NoAnswer(f"{self._topic}/{self._partition}: offset {offset} cannot be read now")
            return _Look(broken=True, why=f"a record claims offset {offset}, beyond the end of the log")
        if _identity(there) == _identity(found):
            return _READABLE
        return _Look(broken=True, why=f"a record claims offset {offset}, where another stands")

    def _end_of_log(self) -> int:
        """The leader is asked: what a fetch told may be older than the record."""
        at = TopicPartition(self._topic, self._partition)
        try:
            found = self._consumer.get_watermark_offsets(at, timeout=LOOK_MS_MAX / 1_000, cached=False)
        except KafkaException as error:
            raise NoAnswer(f"the end of {self._topic}/{self._partition} is not known") from error
        if found is None:
            raise NoAnswer(f"the end of {self._topic}/{self._partition} is not known")
        return int(found[1])

    def _read(self, at: int) -> Message[bytes, bytes] | _Look:
        """The first record from there on, or why there is none."""
        self._consumer.assign([TopicPartition(self._topic, self._partition, at)])
        began_ms, partials = self._clock.monotonic_ms(), self._partials
        while self._clock.monotonic_ms() - began_ms < LOOK_MS_MAX:
            message = self._consumer.poll(_POLL_S)
            if message is not None:
                error = message.error()
                if error is None:
                    return message
                if error.code() in UNREADABLE:
                    base = message.offset() or 0
                    return _Look(broken=True, base=base, why=error.str()) if base <= at else _READABLE
                if error.code() == PARTITION_EOF or error.code() in OUT_OF_RANGE:
                    return _READABLE
            elif self._partials - partials >= PARTIAL_FETCHES:
                return _Look(broken=True, why="the client finds no record in what the broker sends")
        raise NoAnswer(f"{self._topic}/{self._partition} from offset {at}: nothing within {LOOK_MS_MAX} ms")

    def _count(self, statistics: str) -> None:
        brokers: Mapping[str, Mapping[str, int]] = json.loads(statistics).get("brokers", {})
        self._partials = sum(broker.get("rxpartial", 0) for broker in brokers.values())


def _identity(message: Message[bytes, bytes]) -> tuple[object, ...]:
    return message.offset(), message.timestamp(), message.key(), message.value()


def extent_at(make: MakeConsumer, topic: str, partition: int, at: int, clock: Clock) -> Extent | None:
    """What cannot be read from `at` on, None if what comes there can be. Raises NoAnswer."""
    search = Search(make, topic, partition, clock)
    try:
        return search.extent(at)
    finally:
        search.close()
