"""Watches a tier's events for the end of one task."""

from __future__ import annotations

from typing import Any

from confluent_kafka import TopicPartition

from laxity.infra.cli.output import CommandError
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import TaskEvent
from laxity.schemas.settings import Settings
from laxity.schemas.timing import SystemClock

ENDS = frozenset({"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"})
REFUSALS = frozenset({"rejected", "conflict"})  # of this very trigger
_ASK_S = 10.0
_POLL_S = 0.2


class TaskEnds:
    """Made before the trigger is sent, so that nothing is missed: reads from the present end of the tier's events."""

    def __init__(self, settings: Settings, tier: str) -> None:
        clients = KafkaClients(settings, role="cli")
        self._codec = open_codec(settings, clients=clients)
        self._consumer = clients.restore_consumer()
        topic = settings.names.full(f"events.{tier}")
        partitions = self._consumer.list_topics(topic, timeout=_ASK_S).topics[topic].partitions
        self._consumer.assign([self._end(topic, number) for number in partitions])

    def wait(self, task_id: str, timeout_ms: int) -> dict[str, Any]:
        """State, code, message and detail of the end. A duplicate of a finished task ends at once with that one's state. CommandError after `timeout_ms`."""
        clock = SystemClock()
        deadline_ms = clock.monotonic_ms() + timeout_ms
        try:
            while clock.monotonic_ms() < deadline_ms:
                message = self._consumer.poll(_POLL_S)
                if message is None or message.error() is not None:
                    continue
                event = self._codec.decode(TaskEvent, message.value())
                if event.task_id == task_id and (event.state in ENDS or event.kind in REFUSALS):
                    return _document(event)
        finally:
            self._consumer.close()
        raise CommandError(f"task {task_id} has not ended within {timeout_ms} ms", "it goes on")

    def _end(self, topic: str, number: int) -> TopicPartition:
        _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_ASK_S)
        return TopicPartition(topic, number, high)


def _document(event: TaskEvent) -> dict[str, Any]:
    return {
        "state": event.state or event.kind.upper(),
        "code": event.code,
        "message": event.message,
        "detail": event.detail,
        "missed_by_ms": event.missed_by_ms,
        "cost_micros": event.cost_micros,
    }
