"""What is published before the readers read: ours first, then Node's and Java's, so that every topic of the catalogue holds a record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Message, Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from interop.foreign import Order, Sent, publish
from interop.stack import Stack
from interop.stock import Place
from interop.tools import Tools

from laxity.producers.publisher import Publisher, trigger_of
from laxity.schemas.config import load
from laxity.schemas.settings import settings
from laxity.schemas.topics import TIERS

TYPE = "demo.chat"
POISON = b"\x00\x7f\xff\xff\xffno schema has this id"
FLUSH_S = 30.0
FOREIGN_TIERS = {"node": "high", "java": "critical"}
UNKEYED = 8  # strays by three chances of four each: none among eight is one run in 65,000


def document(text: str) -> dict[str, Any]:
    """What the demonstration's agents take. The keys are not sorted: the canonical form is the writer's work."""
    return {"text": text, "model": "llm", "max_tokens": 20, "generate_tokens": 2, "context_tokens": 10}


@dataclass(slots=True, kw_only=True)
class Load:
    """What was published and what must come of it."""

    succeed: dict[str, str] = field(default_factory=dict)  # task id -> tier
    dead: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    duplicates: set[str] = field(default_factory=set)  # task ids of ours that were published again
    conflicts: set[str] = field(default_factory=set)
    poison: set[Place] = field(default_factory=set)
    sent: dict[str, list[Sent]] = field(default_factory=dict)  # by client


def ours(stack: Stack) -> Load:
    """In each tier: one that runs, the same again, the same key with another payload, and bytes that are no record."""
    found = Load()
    where = settings(kafka=stack.kafka, registry_url=stack.registry, redis_url=stack.redis)
    with Publisher.connect(where, load(env={})) as publisher:
        for tier in TIERS:
            trigger = trigger_of(TYPE, document(original_text(tier)), key=original_key(tier))
            published = publisher.publish(trigger, tier)
            assert publisher.publish(trigger, tier).task_id == published.task_id
            publisher.publish(trigger_of(TYPE, document("another"), key=original_key(tier)), tier)
            found.succeed[published.task_id] = tier
            found.duplicates.add(published.task_id)
            found.conflicts.add(published.task_id)
        failing = publisher.publish(trigger_of(TYPE, {"text": "fields are missing"}, key="fails"))
        found.dead.add(failing.task_id)
    found.poison = _poison(stack, [*(f"laxity.triggers.{tier}" for tier in TIERS), "laxity.outcomes"])
    found.cancelled.add(_waiting(stack))
    _schedule(stack)
    return found


def original_key(tier: str) -> str:
    return f"ours-{tier}"


def original_text(tier: str) -> str:
    """Text on which JSON writers differ: two-byte and four-byte characters, a line separator, a slash, a quote."""
    return f'{tier}: Zürich 🚀 \u2028 </a> "b"'


def foreign(client: str, tools: Tools, stack: Stack) -> list[Sent]:
    """New triggers with and without a record key, and duplicates of ours, by a client that knows topic and schema."""
    tier = FOREIGN_TIERS[client]
    return publish(client, tools, stack, f"laxity.triggers.{tier}", orders(client, tier))


def orders(client: str, tier: str) -> Sequence[Order]:
    """`fields` set nothing that has a default, but for two that choose a tenant and a run."""
    plain = [{"key": f"{client}-é🚀-{number}"} for number in range(4)]
    named = [
        {"key": f"{client}-tenant", "tenant": "acme"},
        {"key": f"{client}-run", "run_id": f"{client}-run"},
    ]
    new = [_order(fields, fields["key"], keyed=True) for fields in (*plain, *named)]
    strays = [
        _order({"key": f"{client}-unkeyed-{number}"}, f"unkeyed {number}", keyed=False)
        for number in range(UNKEYED)
    ]
    again = [
        _order({"key": original_key(tier)}, original_text(tier), keyed=True),
        _order({"key": original_key(tier)}, original_text(tier), keyed=False),
    ]
    return [*new, *strays, *again]


def _order(fields: dict[str, str], text: str, *, keyed: bool) -> Order:
    return Order(fields={"type": TYPE, **fields}, document=document(text), keyed=keyed)


def _waiting(stack: Stack) -> str:
    """A task that waits for tomorrow, to be cancelled so that `control` has a record."""
    words = ("submit", TYPE, "--key", "later", "--not-before", "24h", "--deadline", "48h", "--json")
    task_id: str = json.loads(stack.laxity(*words, "--payload", json.dumps(document("later"))))["task_id"]
    return task_id


def _poison(stack: Stack, topics: Sequence[str]) -> set[Place]:
    """The same undecodable bytes to each topic; where they lie."""
    messages = [_delivered(stack, topic, b"poison", POISON) for topic in topics]
    return {_place(message) for message in messages}


def _schedule(stack: Stack) -> None:
    """Nothing writes schedules yet; the registered schema and a stock serialiser do."""
    topic = "laxity.schedules"
    # fastavro does not turn the schema's default of a bytes field into bytes, so that one is given.
    row = {"schedule_id": "nightly", "cron": "0 3 * * *", "type": TYPE, "payload": b""}
    with SchemaRegistryClient({"url": stack.registry}) as client:
        text = client.get_latest_version(f"{topic}-value").schema
        write = AvroSerializer(client, text, conf={"auto.register.schemas": False})
        value = write(row, SerializationContext(topic, MessageField.VALUE))
    assert value is not None
    _delivered(stack, topic, b"nightly", value)


def _delivered(stack: Stack, topic: str, key: bytes, value: bytes) -> Message:
    """Produce by a plain client and wait for the report."""
    reports = list[tuple[Any, Message]]()
    producer = Producer({"bootstrap.servers": stack.kafka})
    producer.produce(
        topic, key=key, value=value, on_delivery=lambda error, message: reports.append((error, message))
    )
    assert producer.flush(FLUSH_S) == 0
    [(error, message)] = reports
    assert error is None
    return message


def _place(message: Message) -> Place:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return topic, partition, offset
