"""What the host asks of the cluster: topic ids, partition counts, ends, committed offsets, and changelogs to read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented, not exported
    AdminClient,
    OffsetSpec,
)

from laxity.streams.runtime.codes import OUT_OF_RANGE, PARTITION_EOF, error_of
from laxity.streams.runtime.crashpoints import reach
from laxity.streams.state.restore import Batch, OffsetGone

REQUEST_S_MAX = 10.0  # at start and takeover
QUICK_S_MAX = 2.0  # inside a batch
BURST_RECORDS_MAX = (
    5_000  # of one write into a store; their bytes are bounded by what the client has prefetched
)
RESTORE_POLL_S = 0.2


class ClusterError(Exception):
    """The cluster did not answer, or a topic is missing; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one partition begins and ends, and what the group has committed of it; None: nothing."""

    low: int
    high: int
    committed: int | None


class Cluster:
    """Thread-safe. `consumer()` makes an unassigned consumer that is no member of the group, but names it. `close` it."""

    def __init__(self, admin: AdminClient, consumer: Callable[[], Consumer]) -> None:
        self._admin = admin
        self._consumer = consumer
        self._asker: Consumer | None = None
        self._asking = threading.Lock()

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Kafka's id of each topic. ClusterError names a topic that does not exist."""
        found: dict[str, str] = {}
        asked = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=REQUEST_S_MAX)
        for topic, answer in asked.items():
            try:
                found[topic] = str(answer.result().topic_id)
            except KafkaException as raised:
                raise ClusterError(f"topic {topic}: {error_of(raised).str()}") from raised
        return found

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        try:
            about = self._admin.list_topics(topic, timeout=REQUEST_S_MAX).topics[topic]
        except KafkaException as raised:
            raise ClusterError(f"topic {topic}: {error_of(raised).str()}") from raised
        if about.error is not None:
            raise ClusterError(f"topic {topic}: {about.error.str()}")
        return len(about.partitions)

    def end(self, topic: str, partition: int) -> int:
        """High watermark, asked now: also what is not committed yet counts."""
        wanted = {TopicPartition(topic, partition): OffsetSpec.latest()}  # type: ignore[no-untyped-call]
        asked = self._admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=QUICK_S_MAX
        )
        try:
            return _known(next(iter(asked.values())))
        except KafkaException as raised:
            raise ClusterError(f"end of {topic}/{partition}: {error_of(raised).str()}") from raised

    def places(self, topics: Sequence[str], partition: int) -> dict[str, Place]:
        """Of each topic: first offset, end of what is committed, and the group's offset once no transaction is pending on it."""
        wanted = [TopicPartition(topic, partition) for topic in topics]
        low = self._ask_offsets(wanted, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        high = self._ask_offsets(wanted, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        try:
            committed = self._committed(wanted)
            return {
                topic: Place(low=_known(low[topic]), high=_known(high[topic]), committed=committed[topic])
                for topic in topics
            }
        except KafkaException as raised:
            raise ClusterError(f"places of partition {partition}: {error_of(raised).str()}") from raised

    def _committed(self, wanted: Sequence[TopicPartition]) -> dict[str, int | None]:
        """By a consumer that is kept for it: asked by the admin client, a coordinator that answers too late ends the process (librdkafka 2.16)."""
        with self._asking:
            if self._asker is None:
                self._asker = self._consumer()
            found = self._asker.committed(list(wanted), timeout=REQUEST_S_MAX)
        return {at.topic: _offset_or_none(at) for at in found}

    def close(self) -> None:
        """Let go of what is kept."""
        with self._asking:
            if self._asker is not None:
                self._asker.close()
            self._asker = None

    def _ask_offsets(self, wanted: Sequence[TopicPartition], spec: OffsetSpec) -> dict[str, Future[Any]]:
        asked = self._admin.list_offsets(
            dict.fromkeys(wanted, spec),
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=REQUEST_S_MAX,
        )
        return {at.topic: answer for at, answer in asked.items()}

    def record_between(self, topic: str, partition: int, first: int, end: int) -> bool:
        """Whether a committed record lies at first <= offset < end; transaction markers and aborted records do not count."""
        consumer = self._consumer()
        try:
            return _record_between(consumer, TopicPartition(topic, partition, first), end)
        finally:
            consumer.close()

    def changelog(self, topic: str, partition: int, *, should_stop: Callable[[], bool]) -> KafkaChangelog:
        """One partition of a changelog."""
        return KafkaChangelog(
            consumer=self._consumer,
            topic=topic,
            partition=partition,
            topic_id=self.topic_ids([topic])[topic],
            should_stop=should_stop,
        )


def _known(answer: Future[Any]) -> int:
    """A leader that has just stood still or come back may answer without an error that it does not know: -1."""
    offset = int(answer.result().offset)
    if offset < 0:
        raise ClusterError(f"the leader answers offset {offset}")
    return offset


def _offset_or_none(at: TopicPartition) -> int | None:
    if at.error is not None:
        raise KafkaException(at.error)
    return at.offset if at.offset >= 0 else None


def _record_between(consumer: Consumer, start: TopicPartition, end: int) -> bool:
    place = f"{start.topic}/{start.partition} from offset {start.offset}"
    consumer.assign([start])
    while True:
        message = consumer.poll(REQUEST_S_MAX)
        if message is None:
            raise ClusterError(f"{place} could not be read")
        error = message.error()
        if error is None or error.code() == PARTITION_EOF:
            return error is None and offset_of(message) < end
        if not error.retriable():
            raise ClusterError(f"{place}: {error.str()}")


def _watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """First offset there is, and the end of what is committed."""
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_S_MAX)
    except KafkaException as raised:
        raise ClusterError(f"watermarks of {topic}/{partition}: {error_of(raised).str()}") from raised
    return low, high


class KafkaChangelog:
    """One partition of a compacted topic, read_committed to its end."""

    def __init__(
        self,
        *,
        consumer: Callable[[], Consumer],
        topic: str,
        partition: int,
        topic_id: str,
        should_stop: Callable[[], bool],
    ) -> None:
        self.topic_id = topic_id
        self._consumer = consumer
        self._topic = topic
        self._partition = partition
        self._should_stop = should_stop

    def read(self, start: int | None) -> Iterator[Batch]:
        """Ends at the partition's end, or early without error when told to stop. Raises OffsetGone, ClusterError."""
        consumer = self._consumer()
        try:
            low, high = _watermarks(consumer, self._topic, self._partition)
            if start is not None and not low <= start <= high:
                raise OffsetGone(
                    f"offset {start} of {self._topic}/{self._partition} is not within {low} to {high}"
                )
            if (low if start is None else start) == high:
                yield Batch(rows=(), next=high, ended=True)
                return
            yield from self._read(consumer, OFFSET_BEGINNING if start is None else start)
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, offset: int) -> Iterator[Batch]:
        consumer.assign([TopicPartition(self._topic, self._partition, offset)])
        while not self._should_stop():
            batch = batch_of(burst(consumer, RESTORE_POLL_S))
            if batch is not None:
                yield batch
                reach("mid_restore")
                if batch.ended:
                    return


def batch_of(messages: Sequence[Message[bytes, bytes]]) -> Batch | None:
    """Messages of one partition, in order; None where they tell nothing. Raises OffsetGone, or ClusterError for what does not pass by itself."""
    rows: list[tuple[bytes, bytes | None]] = []
    end, ended = -1, False
    for message in messages:
        error = message.error()
        if error is None:
            rows.append((message.key() or b"", message.value()))
            end, ended = offset_of(message) + 1, False
        elif error.code() == PARTITION_EOF:
            end, ended = offset_of(message), True
        elif error.code() in OUT_OF_RANGE:
            raise OffsetGone(f"{message.topic()}/{message.partition()}: {error.str()}")
        elif not error.retriable():
            raise ClusterError(f"{message.topic()}/{message.partition()}: {error.str()}")
    return None if end < 0 else Batch(rows=rows, next=end, ended=ended)


def burst(consumer: Consumer, wait_s: float) -> list[Message[bytes, bytes]]:
    """What the client has prefetched, at most BURST_RECORDS_MAX; waits only while there is nothing."""
    first = consumer.poll(wait_s)
    return [] if first is None else [first, *consumer.consume(BURST_RECORDS_MAX - 1, 0)]


def offset_of(message: Message[bytes, bytes]) -> int:
    """A message that was read has one."""
    offset = message.offset()
    assert offset is not None, "a message without an offset"
    return offset
