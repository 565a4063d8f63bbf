"""Records by stock means alone: confluent-kafka's Consumer and AvroDeserializer, and the registry. Nothing of ours decodes here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from laxity.schemas.timing import SystemClock

REQUEST_S = 20.0
READ_MS = 60_000
POLL_S = 0.5
CLOCK = SystemClock()

Place = tuple[str, int, int]  # topic, partition, offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One committed record. `value` is decoded, None for a tombstone or where `problem` says why not."""

    place: Place
    key: bytes | None
    raw: bytes | None
    headers: Sequence[tuple[str, bytes]]
    value: dict[str, Any] | None
    problem: str

    @property
    def topic(self) -> str:
        return self.place[0]

    def last_header(self, name: str) -> bytes:
        """Ours come last."""
        return next(value for found, value in reversed(self.headers) if found == name)


class Reader:
    """Reads whole topics, or watches them grow. Opens a consumer for each read."""

    def __init__(self, kafka: str, registry: SchemaRegistryClient) -> None:
        self._kafka = kafka
        self._decode = AvroDeserializer(registry)

    def topics(self, prefix: str) -> set[str]:
        """Names of all topics under the prefix, from the broker."""
        with closing(self._consumer()) as consumer:
            return {
                name for name in consumer.list_topics(timeout=REQUEST_S).topics if name.startswith(prefix)
            }

    def whole(self, topics: Iterable[str]) -> list[Found]:
        """All committed records up to the present ends."""
        found, ended = list[Found](), set[tuple[str, int]]()
        with closing(self._consumer()) as consumer:
            places = self._assign(consumer, topics)
            until_ms = CLOCK.monotonic_ms() + READ_MS
            while ended != places:
                assert CLOCK.monotonic_ms() < until_ms, f"not read to the end: {sorted(places - ended)}"
                for message in consumer.consume(500, POLL_S):
                    if _is_end(message):
                        ended.add(_partition(message))
                    elif _partition(message) not in ended:
                        found.append(self._found(message))
        return found

    def watch(
        self, topics: Iterable[str], enough: Callable[[list[Found]], bool], limit_ms: int
    ) -> list[Found]:
        """All records from the beginning, as soon as they are `enough`; else what there is after `limit_ms`."""
        found = list[Found]()
        with closing(self._consumer()) as consumer:
            self._assign(consumer, topics)
            until_ms = CLOCK.monotonic_ms() + limit_ms
            while CLOCK.monotonic_ms() < until_ms and not enough(found):
                messages = consumer.consume(500, POLL_S)
                found += [self._found(message) for message in messages if not _is_end(message)]
        return found

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._kafka,
                "group.id": "interop-stock",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )

    def _assign(self, consumer: Consumer, topics: Iterable[str]) -> set[tuple[str, int]]:
        known = consumer.list_topics(timeout=REQUEST_S).topics
        places = {(topic, partition) for topic in topics for partition in known[topic].partitions}
        consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in places])
        return places

    def _found(self, message: Message) -> Found:
        topic, partition, offset, raw = (
            message.topic(),
            message.partition(),
            message.offset(),
            message.value(),
        )
        assert topic is not None
        assert partition is not None
        assert offset is not None
        value, problem = None, ""
        try:
            value = self._decode(raw, SerializationContext(topic, MessageField.VALUE))
        except Exception as error:  # noqa: BLE001 - the deserialiser lets every error of the parts below through
            problem = f"{type(error).__name__}: {error}"
        headers: Any = message.headers() or []
        return Found(
            place=(topic, partition, offset),
            key=message.key(),
            raw=raw,
            headers=headers,
            value=value,
            problem=problem,
        )


def _partition(message: Message) -> tuple[str, int]:
    topic, partition = message.topic(), message.partition()
    assert topic is not None
    assert partition is not None
    return topic, partition


def _is_end(message: Message) -> bool:
    """The end of a partition; KafkaException for any other error."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return error is not None
