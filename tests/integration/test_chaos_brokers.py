"""The faults of the proxy, on a real cluster: each bites, and ours survive it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.brokers import Brokers, java_hash
from chaos.holding import ADD_PARTITIONS_TO_TXN, END_TXN, PRODUCE, TXN_OFFSET_COMMIT, Held, Hold
from chaos.proxy import CLEAR, Proxy, Weather
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from laxity.infra.local import Endpoints
from laxity.infra.provision import provision
from laxity.schemas import kafka_properties as tables
from laxity.schemas.config import load
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.settings import settings
from laxity.schemas.timing import SystemClock
from laxity.streams.runtime.cluster import Cluster, ClusterError
from laxity.streams.runtime.transactions import AbortedError, DoubtfulError, Message, Transactions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CLOCK = SystemClock()
EDGE = "client"
HELD_MS = 2_500  # long enough for the retry and for another transaction to be open
RECOVERY_MS_MAX = 30_000
OUTDATED = {47, 90}  # INVALID_PRODUCER_EPOCH, PRODUCER_FENCED


def wait_for(what: Callable[[], object], text: str, ms: int = 40_000) -> None:
    until, pause = CLOCK.monotonic_ms() + ms, threading.Event()
    while not what():
        assert CLOCK.monotonic_ms() < until, f"not within {ms} ms: {text}"
        pause.wait(0.02)


class Bench:
    """A topic of its own on the cluster, and clients that go through the proxy."""

    def __init__(self, cluster: Brokers) -> None:
        self.cluster = cluster
        self.name = f"t{uuid.uuid4().hex[:8]}"
        self.direct = {"bootstrap.servers": cluster.bootstrap()}
        found = settings(kafka=cluster.bootstrap(EDGE), prefix=f"{self.name}.")
        self.clients = KafkaClients(found, role="test")
        admin = self.clients.admin()  # named, so that it lives until the answer is there
        admin.create_topics([NewTopic(self.name, 1, -1)])[self.name].result(30)

    def shard(self, **more: tables.Value) -> Transactions:
        fixed = {"transactional.id": self.name} | {
            key.replace("_", "."): value for key, value in more.items()
        }
        return Transactions(self.clients.producer_properties(tables.SHARD_PRODUCER, fixed), CLOCK)

    def message(self, value: bytes) -> Message:
        return Message(self.name, 0, b"k", value)

    def hold(self, hold: Hold) -> None:
        """At whichever broker the request will arrive."""
        for edge in self.cluster.edges(EDGE):
            edge.hold(hold)

    def held(self) -> list[Held]:
        """Those of this test."""
        every = (held for edge in self.cluster.edges(EDGE) for held in edge.held())
        return [held for held in every if self.name.encode() in held.request.frame]

    def heal(self) -> None:
        for edge in self.cluster.edges(EDGE):
            edge.disarm()
            edge.turn(CLEAR)

    def committed(self) -> list[bytes | None]:
        """What a reader that waits for commits sees now."""
        more: dict[str, Any] = {"group.id": "r", "enable.partition.eof": True, "enable.auto.commit": False}
        consumer = Consumer(self.direct | more)
        consumer.assign([TopicPartition(self.name, 0, 0)])
        found = []
        try:
            while (message := consumer.poll(20)) is not None and message.error() is None:
                found.append(message.value())
        finally:
            consumer.close()
        return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """A single node: enough for faults of the wire."""
    with (
        Proxy(seed=1) as proxy,
        Brokers(tmp_path_factory.mktemp("one"), count=1, proxy=proxy, edges=[EDGE]) as cluster,
    ):
        yield cluster


@pytest.fixture
def bench(one: Brokers) -> Iterator[Bench]:
    made = Bench(one)
    yield made
    made.heal()


def test_java_hashes_as_java_does() -> None:
    assert java_hash("laxity.scheduler.0") == abs(_by_hand("laxity.scheduler.0"))
    assert java_hash("polygenelubricants") == 0, "the string whose hash is the smallest integer"
    assert java_hash("abc") == 96_354


def _by_hand(text: str) -> int:
    total = 0
    for char in text:
        total = total * 31 + ord(char)
    return (total + (1 << 31)) % (1 << 32) - (1 << 31)


def test_an_old_end_of_transaction_ends_the_next_one_of_a_producer_that_goes_on(bench: Bench) -> None:
    properties = bench.clients.producer_properties(
        tables.SHARD_PRODUCER, {"transactional.id": bench.name, "transaction.timeout.ms": 30_000}
    )
    producer = Producer(properties)
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(bench.name, b"first")
    bench.hold(Hold(api_key=END_TXN, hold_ms=HELD_MS, drop_after_ms=0, part=bench.name.encode()))
    producer.commit_transaction(20)
    (held,) = bench.held()
    assert held.retried_ms is not None, "the client sent it again, and that one passed"
    producer.begin_transaction()
    producer.produce(bench.name, b"second")
    producer.flush(20)
    assert bench.committed() == [b"first"]
    wait_for(lambda: bench.held()[0].answer is not None, "the old bytes are answered")
    assert bench.held()[0].landed()
    assert bench.held()[0].reused_ms is not None
    assert bench.held()[0].error_code() == 0, "the broker takes them for the end of the second"
    wait_for(lambda: bench.committed() == [b"first", b"second"], "what nobody committed is read")


def test_an_old_end_of_transaction_does_nothing_to_a_shard(bench: Bench) -> None:
    consumer, shard = bench.clients.reader("shard"), bench.shard()
    shard.commit([bench.message(b"first")], (), None)
    bench.hold(Hold(api_key=END_TXN, hold_ms=HELD_MS, drop_after_ms=0, part=bench.name.encode()))
    offsets = [TopicPartition(bench.name, 0, 1)]
    shard.commit([bench.message(b"second")], offsets, consumer.consumer_group_metadata())
    shard.commit([bench.message(b"third")], offsets, consumer.consumer_group_metadata())
    wait_for(lambda: bench.held()[0].answer is not None, "the old bytes are answered")
    assert bench.held()[0].landed()
    assert bench.held()[0].reused_ms is None
    assert bench.held()[0].error_code() in OUTDATED
    shard.close()
    consumer.close()
    assert bench.committed() == [b"first", b"second", b"third"]


def test_what_was_written_but_not_acknowledged_before_an_abort_hides_what_a_producer_that_goes_on_writes(
    bench: Bench,
) -> None:
    """The next record gets the sequence number of the aborted one: the broker drops it as repeated, and acknowledges it."""
    late = {"transaction.timeout.ms": 30_000, "retry.backoff.ms": 4_000, "retry.backoff.max.ms": 4_000}
    properties = bench.clients.producer_properties(
        tables.SHARD_PRODUCER, {"transactional.id": bench.name, "metadata.recovery.strategy": "none"}
    )
    producer = Producer(properties | late)
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(bench.name, b"first")
    producer.commit_transaction(20)
    bench.hold(Hold(api_key=PRODUCE, hold_ms=0, drop_after_ms=20, part=bench.name.encode()))
    producer.begin_transaction()
    producer.produce(bench.name, b"second")
    wait_for(lambda: bench.held() and bench.held()[0].answer and bench.held()[0].dropped_ms, "it is written")
    assert producer.flush(0.5) == 1, "it waits for its retry"
    producer.abort_transaction(20)
    told: list[object] = []
    producer.begin_transaction()
    producer.produce(bench.name, b"third", on_delivery=lambda error, _: told.append(error))
    producer.commit_transaction(20)
    producer.flush(20)
    assert told == [None], "it is acknowledged"
    assert bench.committed() == [b"first"], "and nobody will ever read it"


@pytest.mark.parametrize("api_key", [END_TXN, ADD_PARTITIONS_TO_TXN, PRODUCE, TXN_OFFSET_COMMIT])
def test_a_kind_of_request_can_be_held(bench: Bench, api_key: int) -> None:
    consumer = bench.clients.reader("held")
    shard = bench.shard()
    shard.commit([bench.message(b"first")], (), None)
    bench.hold(Hold(api_key=api_key, hold_ms=600))
    begun = CLOCK.monotonic_ms()
    offsets = [TopicPartition(bench.name, 0, 1)]
    shard.commit([bench.message(b"second")], offsets, consumer.consumer_group_metadata())
    assert CLOCK.monotonic_ms() - begun >= 600
    assert [held.request.api_key for held in bench.held()[-1:]] == [api_key]
    shard.close()
    consumer.close()


def test_nothing_passes_a_partition(bench: Bench) -> None:
    producer = bench.clients.producer()
    delivered: list[object] = []
    for edge in bench.cluster.edges(EDGE):
        edge.turn(Weather(up=False))
    producer.produce(bench.name, b"late", on_delivery=lambda error, _: delivered.append(error))
    assert producer.flush(0.5) == 1
    assert bench.committed() == []
    bench.heal()
    assert producer.flush(20) == 0
    assert delivered == [None]
    assert bench.committed() == [b"late"]


@pytest.mark.slow
def test_three_nodes_keep_what_two_of_them_have(stack: Endpoints, tmp_path: Path) -> None:
    with Brokers(tmp_path) as cluster:
        found = settings(
            kafka=cluster.bootstrap(), registry_url=stack.registry, prefix=f"c{uuid.uuid4().hex[:8]}."
        )
        assert provision(found, load(), shards=2).replicas == 3
        clients, state = KafkaClients(found, role="test"), f"{found.prefix}state"
        admin = clients.admin()
        topics = admin.list_topics(timeout=20).topics
        ours = [topic for name, topic in topics.items() if name.startswith(found.prefix)]
        assert {len(partition.replicas) for topic in ours for partition in topic.partitions.values()} == {3}
        fixed: dict[str, tables.Value] = {"transactional.id": f"{found.prefix}scheduler.0"}
        shard = Transactions(clients.producer_properties(tables.SHARD_PRODUCER, fixed), CLOCK)
        changelog = Cluster(admin, clients.restore_consumer).changelog

        def committed() -> list[bytes | None]:
            while True:  # a shard starts over until somebody answers
                try:
                    read = changelog(state, 0, should_stop=lambda: False).read(None)
                    return [value for batch in read for _, value in batch.rows]
                except ClusterError:
                    continue

        shard.commit([Message(state, 0, b"k", b"1")], (), None)
        cluster.until_ready()
        assert cluster.controller() in cluster.nodes
        victims = {
            "leader": lambda: cluster.leader(state, 0),
            "coordinator": lambda: cluster.transaction_coordinator(f"{found.prefix}scheduler.0"),
            "controller": cluster.controller,
        }
        for value, (role, who) in enumerate(victims.items(), start=2):
            victim = who()
            assert cluster.kill(victim), role
            assert victim not in cluster.running()
            begun = CLOCK.monotonic_ms()
            _until_committed(shard, Message(state, 0, b"k", b"%d" % value), committed)
            assert CLOCK.monotonic_ms() - begun < RECOVERY_MS_MAX, f"{role} {victim}"
            cluster.start(victim)
            cluster.until_in_sync()
        shard.close()
        assert committed() == [b"1", b"2", b"3", b"4"]


def _until_committed(
    shard: Transactions, message: Message, committed: Callable[[], list[bytes | None]]
) -> None:
    """As a shard does: the same again while it surely did not happen; after a doubtful end it fences and looks."""
    while True:
        try:
            shard.commit([message], (), None)
        except AbortedError:
            continue
        except DoubtfulError:
            shard.fence()
            if message.value in committed():
                return
        else:
            return
