"""A read_committed reader of all events while the storm goes on: who has ended, and when each shard was last heard of.

What it sees late, every reader sees late: an open transaction of a dead process stops readers of its partitions, and of no others.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from chaos.world import World
from confluent_kafka import Consumer, KafkaException, TopicPartition

from laxity.schemas.contracts import open_codec
from laxity.schemas.records import TaskEvent
from laxity.schemas.topics import TIERS
from laxity.streams.lifecycle import TERMINAL


@dataclass(slots=True)
class Watch:
    """A thread, from the topics' beginning. `ended`: task ids with a terminal event; `heard`: per shard, UTC ms of each arrival."""

    world: World
    ended: set[str] = field(default_factory=set)
    heard: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    events: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failure: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._guarded, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Raises what stopped it before."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        if self._failure:
            raise self._failure[0]

    def _guarded(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 - `stop` raises it
            self._failure.append(error)

    def _read(self) -> None:
        world = self.world
        clients = world.clients("watch")
        codec, names = open_codec(world.settings, clients=clients), world.settings.names
        consumer: Consumer = clients.reader("watch")
        places = [(names.full(f"events.{tier}"), n) for tier in TIERS for n in range(world.plan.shards)]
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in places])
        message: Any
        try:
            while not self._stop.is_set():
                for message in consumer.consume(500, 0.1):
                    error = message.error()
                    if error is None:
                        self._take(codec.decode(TaskEvent, message.value()), message.partition())
                    elif error.fatal():
                        raise KafkaException(error)
        finally:
            consumer.close()

    def _take(self, event: TaskEvent, shard: int) -> None:
        self.events += 1
        self.heard[shard].append(self.world.clock.now_ms())
        if event.kind == "transitions" and event.state in TERMINAL:
            self.ended.add(event.task_id)
