"""What each role is for, done as that role: True or a value if it worked, else an exception or False. No act waits for long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from security.deployment import CONFIG, SHARDS, Deployment
from security.waiting import CLOCK

from laxity.producers.publisher import Publisher, trigger_of
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import TaskEvent, Trigger

TERMINAL = frozenset({"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"})
REQUEST_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Task ids: one that succeeds, one that fails for good, one that lies on the wrong partition; and where bytes that are no record lie."""

    good: str
    failing: str
    stray: str
    poison: tuple[int, int]


def publish(made: Deployment, name: str) -> Sent:
    """As the publisher: three triggers and some rubbish."""
    settings = made.settings("publisher")
    config = configuration.parse(CONFIG)
    with Publisher.connect(settings, config) as publisher:
        good = publisher.publish(trigger_of("greet", "world", key=f"good-{name}", run_id=f"run-{name}"))
        failing = publisher.publish(trigger_of("leak", key=f"failing-{name}"))
    codec = open_codec(settings)
    stray = Trigger(type="greet", key=f"stray-{name}", run_id=good.run_id, payload=b'"stray"')
    producer = KafkaClients(settings, role="publisher").producer()
    placed: list[Any] = []
    for value, partition in ((codec.encode(stray), (good.partition + 1) % SHARDS), (b"\0rubbish", 0)):
        producer.produce(
            good.topic, value, b"foreign", partition=partition, on_delivery=lambda e, m: placed.append((e, m))
        )
    assert producer.flush(REQUEST_S) == 0
    assert [error for error, _ in placed] == [None, None]
    poison = next(m for _, m in placed if m.value() == b"\0rubbish")
    return Sent(
        good=good.task_id,
        failing=failing.task_id,
        stray=task_id_of("default", good.run_id, stray.key),
        poison=(poison.partition(), poison.offset()),
    )


class Events:
    """Ends of tasks and dead letters, read as the operator from the present ends on."""

    def __init__(self, made: Deployment) -> None:
        settings = made.settings("operator")
        self._codec = open_codec(settings)
        self._consumer: Any = KafkaClients(settings, role="test").reader("test")
        self._events, self._letters = (settings.names.full(f"{kind}.normal") for kind in ("events", "dlq"))
        places = [TopicPartition(topic, p) for topic in (self._events, self._letters) for p in range(SHARDS)]
        ends = [self._consumer.get_watermark_offsets(place, timeout=REQUEST_S)[1] for place in places]
        self._consumer.assign(
            [TopicPartition(at.topic, at.partition, end) for at, end in zip(places, ends, strict=True)]
        )
        self.ended: dict[str, str] = {}
        self.letters = 0

    def read(self) -> None:
        """What there is by now."""
        for message in self._consumer.consume(500, 0.1):
            if message.error() is not None:
                continue
            if message.topic() == self._letters:
                self.letters += 1
                continue
            event = self._codec.decode(TaskEvent, message.value())
            if event.kind == "transitions" and event.state in TERMINAL:
                self.ended[event.task_id] = event.state

    def has_all(self, sent: Sent) -> bool:
        """Both succeeded, the failing one is dead, two letters are there."""
        self.read()
        wanted = {sent.good: "SUCCEEDED", sent.stray: "SUCCEEDED", sent.failing: "DEAD"}
        return wanted.items() <= self.ended.items() and self.letters >= 2

    def close(self) -> None:
        self._consumer.close()


def look(made: Deployment, sent: Sent) -> bool:
    """As the ui."""
    state = made.document("ui", "tasks", "show", sent.good)["state"]
    listed = made.document("ui", "tasks", "ls")["found"]
    usage = made.laxity("ui", "tail", "usage", "--limit", "1", "--json")
    return bool(state == "SUCCEEDED" and listed and usage.returncode == 0 and usage.stdout)


def operate(made: Deployment) -> bool:
    """As the operator: dead letters, a redrive, a trigger, and the scheduler's offsets set to where they are. No scheduler may run."""
    letters = made.document("operator", "dlq", "ls", "--each")["letters"]
    failed = next(letter for letter in letters if letter["task_id"])
    made.document("operator", "redrive", failed["letter"])
    made.document("operator", "submit", "greet", "--payload", '"again"')
    admin = AdminClient(
        {"bootstrap.servers": made.kafka.roles, "log_level": 0, **made.properties("operator")}
    )
    group = f"{made.prefix}scheduler"
    (asked,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    places = [place for place in asked.result(REQUEST_S).topic_partitions if place.error is None]
    assert places, "the group has offsets"
    (told,) = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)]).values()
    return all(place.error is None for place in told.result(REQUEST_S).topic_partitions)


def works_within(
    made: Deployment, user: str, worked: Callable[[], bool], *, mark: int, limit_s: float, grace_s: float
) -> bool:
    """Whether it worked; gives up `grace_s` after the broker refused something to the user, or after `limit_s`."""
    end_ms = CLOCK.monotonic_ms() + round(limit_s * 1_000)
    refused = False
    while CLOCK.monotonic_ms() < end_ms:
        if worked():
            return True
        if not refused and any(denial.user == user for denial in made.kafka.denials(mark)):
            refused = True
            end_ms = CLOCK.monotonic_ms() + round(grace_s * 1_000)
    return False
