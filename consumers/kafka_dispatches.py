"""The real consumer of `dispatch.{fleet}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from laxity.consumers.doors import Assignments, ConsumerFailed, Received
from laxity.schemas.kafka_headers import Headers, HeadersUnreadable, headers_of

BATCH_WAIT_S: Final = 0.0  # what has arrived already; `poll` did the waiting

_log = structlog.get_logger("laxity.agents")


class KafkaDispatches:
    """Cooperative: partitions come and go one by one, those that stay are not disturbed."""

    def __init__(self, consumer: Consumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic
        self._assignments: Assignments | None = None

    def start(self, assignments: Assignments) -> None:
        """Join the group."""
        self._assignments = assignments
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, records_max: int, wait_ms: int) -> Sequence[Received]:
        """The first record wakes; those that have arrived by then come with it."""
        first: Any = self._consumer.poll(wait_ms / 1_000)
        messages = [] if first is None else [first]
        if first is not None and records_max > 1:
            messages += self._consumer.consume(records_max - 1, BATCH_WAIT_S)
        return [_received(message) for message in messages if self._is_record(message)]

    def log_end(self, partition: int, wait_ms: int) -> int | None:
        """Of what is committed: no runner can have read what lies beyond, so those are orders."""
        place = TopicPartition(self._topic, partition)
        try:
            found = self._consumer.get_watermark_offsets(place, timeout=wait_ms / 1_000, cached=False)
        except KafkaException as error:
            _log.warning("partition.end_unknown", partition=partition, error=str(error))
            return None
        return None if found is None else int(found[1])

    def pause(self, partitions: Sequence[int]) -> None:
        """Deliver no more of these."""
        self._consumer.pause(self._named(partitions))

    def resume(self, partitions: Sequence[int]) -> None:
        """Deliver these again."""
        self._consumer.resume(self._named(partitions))

    def commit(self, positions: Mapping[int, int]) -> None:
        """In the background. The client sends it before it lets go of a partition or leaves the group."""
        offsets = [TopicPartition(self._topic, p, offset) for p, offset in positions.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            # an older position is safe: what is read again is a question to its shard
            _log.warning("offsets.not_committed", error=str(error))

    def close(self, positions: Mapping[int, int]) -> None:
        """Commit and leave."""
        if positions:
            self.commit(positions)
        self._assignments = None  # leaving revokes what was just committed
        self._consumer.close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
            if self._assignments is not None:
                self._assignments.assigned([tp.partition for tp in partitions])

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._assignments is not None:
            positions = self._assignments.revoked([tp.partition for tp in partitions])
            if positions:
                self.commit(positions)
        self._consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._assignments is not None:
            self._assignments.lost([tp.partition for tp in partitions])
        consumer.incremental_unassign(partitions)

    def _is_record(self, message: Any) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.fatal():
            raise ConsumerFailed(f"{self._topic}: {error.str()}")
        if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's own name for it
            _log.warning("consumer.error", topic=self._topic, error=error.str())
        return False

    def _named(self, partitions: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]


def _received(message: Any) -> Received:
    return Received(
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=_headers(message),
    )


def _headers(message: Any) -> Headers:
    """None where the client cannot give them: a shard puts in nothing that it cannot."""
    try:
        return headers_of(message)
    except HeadersUnreadable:
        return ()
