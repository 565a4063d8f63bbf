"""What the host relies on of Kafka, asked of a real broker: fencing, ends, markers, positions, assignment by hand."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from laxity.infra.local import Endpoints
from laxity.schemas import kafka_properties as tables
from laxity.schemas import limits
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.settings import settings
from laxity.schemas.timing import SystemClock
from laxity.streams.runtime.cluster import Cluster, ClusterError, Place
from laxity.streams.runtime.inbox import Inbox
from laxity.streams.runtime.reader import Membership, Reader
from laxity.streams.runtime.sources import BULK, INPUTS, URGENT
from laxity.streams.runtime.transactions import AbortedError, FencedError, Message, Transactions
from laxity.streams.state.restore import OffsetGone

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CLOCK = SystemClock()
SHARDS = 2


def wait_for(what: Callable[[], bool], text: str, ms: int = 40_000) -> None:
    until = CLOCK.monotonic_ms() + ms
    pause = threading.Event()
    while not what():
        assert CLOCK.monotonic_ms() < until, f"not within {ms} ms: {text}"
        pause.wait(0.02)


@dataclass
class Bench:
    clients: KafkaClients
    prefix: str

    def full(self, topic: str) -> str:
        return self.prefix + topic

    def loose(self) -> Consumer:
        strict: dict[str, Any] = {"auto.offset.reset": "error", "fetch.wait.max.ms": 10}
        return Consumer(self.clients.consumer_properties(tables.RESTORE, group="scheduler") | strict)

    def probe(self, more: Mapping[str, object]) -> Consumer:
        strict: dict[str, Any] = {"auto.offset.reset": "error", **more}
        return Consumer(self.clients.consumer_properties(tables.RESTORE, group="scheduler") | strict)

    def cluster(self) -> Cluster:
        return Cluster(self.clients.admin(), self.loose)

    def transactions(self, name: str, **how: Any) -> Transactions:
        fixed: Mapping[str, Any] = {"transactional.id": self.full(name)}
        return Transactions(self.clients.producer_properties(tables.SHARD_PRODUCER, fixed), CLOCK, **how)

    def message(self, topic: str, value: bytes, partition: int = 0) -> Message:
        return Message(self.full(topic), partition, b"k", value)

    def read(self, topic: str, start: int | None = None) -> tuple[list[bytes | None], int]:
        log = self.cluster().changelog(self.full(topic), 0, should_stop=lambda: False)
        batches = list(log.read(start))
        return [value for batch in batches for _, value in batch.rows], batches[-1].next


@pytest.fixture
def bench(stack: Endpoints) -> Bench:
    found = settings(kafka=stack.kafka, prefix=f"k{uuid.uuid4().hex[:8]}.")
    made = Bench(KafkaClients(found, role="test"), found.prefix)
    topics = [NewTopic(made.full(name), SHARDS, 1) for name in (*INPUTS, "state", "keys")]
    admin = made.clients.admin()
    for done in admin.create_topics(topics).values():
        done.result(30)
    return made


def test_a_commit_tells_the_offset_after_the_last_record_of_each_watched_topic(bench: Bench) -> None:
    shard = bench.transactions("s0")
    first = [bench.message("state", b"%d" % n) for n in range(3)]
    names = (bench.full("state"), bench.full("keys"))
    assert shard.commit(first, (), None, names) == {bench.full("state"): 3}
    second = [bench.message("state", b"x"), bench.message("keys", b"y"), bench.message("control", b"z")]
    assert shard.commit(second, (), None, names) == {bench.full("state"): 5, bench.full("keys"): 1}
    shard.close()
    assert bench.read("state") == ([b"0", b"1", b"2", b"x"], 6)
    assert bench.read("state", 5) == ([], 6)
    assert bench.read("state", 6) == ([], 6)


def test_an_owner_that_was_fenced_writes_nothing_and_is_told(bench: Bench) -> None:
    old, new = bench.transactions("s0"), bench.transactions("s0")
    old.commit([bench.message("state", b"old")], (), None)
    new.fence()
    with pytest.raises(FencedError):
        old.commit([bench.message("state", b"zombie")], (), None)
    new.commit([bench.message("state", b"new")], (), None)
    old.close()
    new.close()
    assert bench.read("state")[0] == [b"old", b"new"]


def test_what_cannot_be_written_is_aborted_and_the_next_batch_goes_through(bench: Bench) -> None:
    shard = bench.transactions("s0")
    too_large = bench.message("state", bytes(limits.RECORD_BYTES_MAX + 1))
    with pytest.raises(AbortedError):
        shard.commit([bench.message("state", b"with it"), too_large], (), None)
    shard.fence()
    refused_by_broker = bench.message("state", os.urandom(2 * limits.MIB))
    with pytest.raises(AbortedError):
        shard.commit([bench.message("state", b"with it"), refused_by_broker], (), None)
    shard.fence()
    assert shard.commit([bench.message("state", b"after")], (), None, (bench.full("state"),))
    shard.close()
    assert bench.read("state")[0] == [b"after"]


def test_nobody_fences_while_a_living_process_names_the_shard(bench: Bench) -> None:
    named = [False]
    shard = bench.transactions("s0", is_named_by_others=lambda: named[0])
    shard.commit([bench.message("state", b"1")], (), None)
    shard._on_lost()
    named[0] = True
    with pytest.raises(FencedError, match="another living process"):
        shard.commit([bench.message("state", b"2")], (), None)
    named[0] = False
    shard.fence()
    shard.commit([bench.message("state", b"3")], (), None)
    shard.close()


def test_markers_and_aborted_records_are_not_records_between(bench: Bench) -> None:
    shard = bench.transactions("s0")
    shard.commit([bench.message("outcomes", b"1")], (), None)  # 0, marker 1
    shard._producer.begin_transaction()  # type: ignore[union-attr]
    shard._producer.produce(bench.full("outcomes"), b"never", partition=0)  # type: ignore[union-attr]
    shard._producer.flush(10)  # type: ignore[union-attr]
    shard._producer.abort_transaction(10)  # type: ignore[union-attr]  # 2, marker 3
    shard.commit([bench.message("outcomes", b"2")], (), None)  # 4, marker 5
    shard.close()
    cluster = bench.cluster()
    topic = bench.full("outcomes")
    found = {
        span: cluster.record_between(topic, 0, *span)
        for span in ((0, 1), (1, 4), (1, 5), (2, 4), (5, 6), (6, 6))
    }
    assert found == {(0, 1): True, (1, 4): False, (1, 5): True, (2, 4): False, (5, 6): False, (6, 6): False}
    assert cluster.places([topic], 0) == {topic: Place(low=0, high=6, committed=None)}
    cluster.close()
    assert cluster.end(topic, 0) == 6


def test_an_offset_that_the_topic_does_not_have_is_told(bench: Bench) -> None:
    shard = bench.transactions("s0")
    shard.commit([bench.message("keys", b"%d" % n) for n in range(5)], (), None)
    shard.close()
    admin = bench.clients.admin()
    next(iter(admin.delete_records([TopicPartition(bench.full("keys"), 0, 3)]).values())).result(10)
    for start in (0, 2, 7, 100):
        with pytest.raises(OffsetGone):
            bench.read("keys", start)
    assert bench.read("keys", 3) == ([b"3", b"4"], 6)
    assert bench.read("keys") == ([b"3", b"4"], 6)


def test_topics_that_are_missing_are_named(bench: Bench) -> None:
    cluster = bench.cluster()
    assert cluster.partitions(bench.full("state")) == SHARDS
    first, second = (cluster.topic_ids([bench.full(name)])[bench.full(name)] for name in ("state", "keys"))
    assert first != second
    for ask in (cluster.partitions, lambda name: cluster.topic_ids([name])):
        with pytest.raises(ClusterError, match="nowhere"):
            ask(bench.full("nowhere"))


@dataclass
class Member:
    """Both readers of a process, and what the group told it."""

    bench: Bench
    granted: list[int] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        strict: dict[str, Any] = {"auto.offset.reset": "error"}
        make = self.bench.clients.consumer_properties
        member = Consumer(make(tables.MEMBER, tables.URGENT, group="scheduler") | strict)
        bulk = Consumer(make(tables.BULK, group="scheduler") | strict)
        told = Membership(granted=self.granted.extend, revoked=self.revoked.extend, lost=self.revoked.extend)
        self.urgent = self._reader("urgent", member, URGENT, told)
        self.bulk = self._reader("bulk", bulk, BULK, None)

    def _reader(
        self, name: str, consumer: Consumer, topics: tuple[str, ...], told: Membership | None
    ) -> Reader:
        made = Reader(
            name=name,
            consumer=consumer,
            topics=topics,
            prefix=self.bench.prefix,
            clock=CLOCK,
            membership=told,
            probe=self.bench.probe,
            failed=self.failures.append,
        )
        made.start()
        return made

    def attach(self, shard: int, at: int = 0) -> Inbox:
        inbox = Inbox(shard)
        positions = dict.fromkeys(INPUTS, at)
        inbox.open(positions)
        for reader in (self.urgent, self.bulk):
            reader.attach(inbox, positions).result(10)
        return inbox

    def stop(self) -> None:
        for reader in (self.urgent, self.bulk):
            reader.stop()
        for reader in (self.urgent, self.bulk):
            reader.join(20)
        assert self.failures == []


@pytest.fixture
def members(bench: Bench) -> Iterator[Callable[[], Member]]:
    made: list[Member] = []

    def make() -> Member:
        made.append(Member(bench))
        return made[-1]

    yield make
    for member in made:
        member.stop()


def publish(bench: Bench, first: int, count: int) -> None:
    producer = bench.clients.producer()
    for topic in INPUTS:
        for shard in range(SHARDS):
            for n in range(first, first + count):
                producer.produce(bench.full(topic), b"%d" % n, b"k", partition=shard, headers=[("h", b"1")])
    producer.flush(10)


def test_siblings_are_read_from_the_given_offsets_and_nothing_before_the_shard_is_ready(
    bench: Bench, members: Callable[[], Member]
) -> None:
    publish(bench, 0, 3)
    member = members()
    wait_for(lambda: sorted(member.granted) == [0, 1], "both shards")
    inbox = member.attach(1, at=1)
    wait_for(lambda: inbox.waiting() == 2 * len(INPUTS), "all inputs")
    taken = inbox.take(500)
    assert {(r.topic, r.partition, r.offset) for r in taken.records} == {
        (topic, 1, offset) for topic in INPUTS for offset in (1, 2)
    }
    assert {(r.first, r.next, r.count) for r in taken.ranges} == {(1, 3, 2)}
    assert taken.records[0].headers == (("h", b"1"),)


def test_starting_over_reads_the_same_again_and_a_pause_does_not_outlive_it(
    bench: Bench, members: Callable[[], Member]
) -> None:
    member = members()
    wait_for(lambda: sorted(member.granted) == [0, 1], "both shards")
    first = member.attach(0)
    first.hold(INPUTS)
    publish(bench, 0, 3)
    for reader in (member.urgent, member.bulk):
        wait_for(lambda reader=reader: len(reader._attached[0].paused) == len(reader._names), "paused")  # type: ignore[misc]
    again = member.attach(0)
    wait_for(lambda: again.waiting() == 3 * len(INPUTS), "all again")
    held = again.take(500)
    again.hold(INPUTS)
    again.hold(())
    publish(bench, 3, 2)
    wait_for(lambda: again.waiting() == 2 * len(INPUTS), "goes on after a hold")
    assert len(held.records) == 3 * len(INPUTS)


def test_a_hand_over_moves_a_shard_and_the_others_keep_being_read(
    bench: Bench, members: Callable[[], Member]
) -> None:
    first = members()
    wait_for(lambda: sorted(first.granted) == [0, 1], "both shards")
    inboxes = {shard: first.attach(shard) for shard in (0, 1)}
    second = members()
    wait_for(lambda: len(second.granted) == 1, "one shard moves")
    (moved,) = second.granted
    assert first.revoked == [moved]
    first.bulk.detach(moved).result(10)  # no member: the shard's thread asks for it when it ends
    taken_over = second.attach(moved)
    publish(bench, 0, 5)
    wait_for(lambda: taken_over.waiting() == 5 * len(INPUTS), "the new owner reads")
    wait_for(lambda: inboxes[1 - moved].waiting() == 5 * len(INPUTS), "the old one reads on")
    assert inboxes[moved].waiting() == 0
    wait_for(lambda: sum(second.urgent.lags().values()) > 0, "lags are known")


def test_an_offset_out_of_range_is_told_to_the_shard(bench: Bench, members: Callable[[], Member]) -> None:
    member = members()
    wait_for(lambda: sorted(member.granted) == [0, 1], "both shards")
    inbox = member.attach(0, at=1_000)
    wait_for(lambda: bool(inbox._lost), "lost")
