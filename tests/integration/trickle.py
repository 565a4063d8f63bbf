"""A steady trickle of tasks onto every shard, and the gaps that a hand-over leaves in what others can read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence

from confluent_kafka import TopicPartition
from integration.deployment import CLOCK, CONFIG, SHARDS, World

from laxity.producers.publisher import Publisher
from laxity.schemas.identity import run_id_of, shard_of
from laxity.schemas.records import Trigger
from laxity.streams.runtime.codes import PARTITION_EOF

TRICKLE_MS = 50  # from task to task on each shard: what a gap can be told from
TIER = "high"


def keys_of(shard: int) -> Iterator[str]:
    """Keys whose runs lie on one shard."""
    names = (f"t{n}" for n in itertools.count())
    return (key for key in names if shard_of(run_id_of("default", "", key), SHARDS) == shard)


class Trickle(threading.Thread):
    """One trigger per shard and TRICKLE_MS until stopped."""

    def __init__(self, world: World) -> None:
        super().__init__(name="trickle", daemon=True)
        self._world = world
        self._sent: set[str] = set()
        self._ending = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        keys = [keys_of(shard) for shard in range(SHARDS)]
        try:
            with Publisher.connect(self._world.found, CONFIG) as publisher:
                while not self._ending.wait(TRICKLE_MS / 1000):
                    for mine in keys:
                        key = next(mine)
                        publisher.send(Trigger(type="echo", key=key, payload=b"{}"), TIER)
                        self._sent.add(key)
        except Exception as error:  # noqa: BLE001 - told by stop()
            self.failure = error

    def stop(self) -> set[str]:
        """Keys that were accepted."""
        self._ending.set()
        if self.is_alive():
            self.join(30)
        assert self.failure is None, self.failure
        return self._sent


class Watcher(threading.Thread):
    """Reads a topic as everyone does, read_committed, and notes when each partition's records came."""

    def __init__(self, world: World, topic: str) -> None:
        super().__init__(name=f"watcher-{topic}", daemon=True)
        self._consumer = world.clients.reader(f"watcher-{topic}")
        self._topic = world.found.names.full(topic)
        self._ending = threading.Event()
        self.at_ms: dict[int, list[int]] = {shard: [] for shard in range(SHARDS)}

    def run(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, shard, 0) for shard in range(SHARDS)])
        while not self._ending.is_set():
            for message in self._consumer.consume(500, 0.02):
                error = message.error()
                if error is None:
                    self.at_ms[message.partition() or 0].append(CLOCK.now_ms())
                else:
                    assert error.code() == PARTITION_EOF, error
        self._consumer.close()

    def stop(self) -> Mapping[int, Sequence[int]]:
        self._ending.set()
        self.join(20)
        return self.at_ms


def written(world: World, topic: str) -> Mapping[int, Sequence[int]]:
    """When the records of each partition were written, by the broker."""
    found: dict[int, list[int]] = {shard: [] for shard in range(SHARDS)}
    for message in world.read(topic):
        found[message.partition() or 0].append(message.timestamp()[1])
    return found


def gap_ms(times: Sequence[int], from_ms: int, to_ms: int) -> int:
    """The longest silence that touches the span; the span must lie within what was written."""
    ordered = sorted(times)
    assert ordered, "nothing was written"
    assert ordered[0] <= from_ms, "the span begins before the first record"
    assert ordered[-1] >= to_ms, "nothing was written after the span"
    pairs = itertools.pairwise(ordered)
    return max(after - before for before, after in pairs if after >= from_ms and before <= to_ms)
