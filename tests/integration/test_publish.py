"""Publishing to a real Kafka: what a caller is told is what lies in the topic."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message, TopicPartition

from laxity.infra.cli import main
from laxity.infra.local import Endpoints
from laxity.infra.provision import provision
from laxity.producers.publisher import (
    AsyncPublisher,
    InvalidTrigger,
    Published,
    Publisher,
    PublishFailed,
    trigger_of,
)
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import digest_of, run_id_of, shard_of, task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import TaskEvent, Trigger
from laxity.schemas.settings import Settings, settings
from laxity.schemas.timing import SystemClock

pytestmark = pytest.mark.integration

CONFIG = configuration.load(env={})
SHARDS = 4


@pytest.fixture(scope="module")
def found(stack: Endpoints) -> Settings:
    made = settings(kafka=stack.kafka, registry_url=stack.registry, prefix=f"q{uuid.uuid4().hex[:8]}.")
    provision(made, CONFIG, shards=SHARDS)
    return made


def fetch(found: Settings, published: Published) -> Message:
    consumer = KafkaClients(found, role="test").restore_consumer()
    consumer.assign([TopicPartition(published.topic, published.partition, published.offset)])
    message = consumer.poll(15)
    consumer.close()
    assert message is not None
    assert message.error() is None
    return message


def test_what_is_told_is_what_lies_there(found: Settings) -> None:
    trigger = trigger_of(
        "invoice.check", {"b": 1, "a": "é"}, tenant="acme", business=["7"], demands={"llm": 10}
    )
    with Publisher.connect(found, CONFIG) as publisher:
        done = publisher.publish(trigger, "high", headers=[("laxity-demo", b"r1"), ("x", b"2")])
    message = fetch(found, done)
    assert done.topic == found.names.full("triggers.high")
    assert message.key() == done.run_id.encode() == digest_of("acme", trigger.key).encode()
    assert done.task_id == task_id_of("acme", done.run_id, trigger.key)
    assert done.partition == shard_of(done.run_id, SHARDS)
    assert message.headers() == [("laxity-demo", b"r1"), ("x", b"2")]
    read = open_codec(found).decode(Trigger, message.value())
    assert read == trigger
    assert read.payload == '{"a":"é","b":1}'.encode()


def test_librdkafka_places_runs_where_we_say(found: Settings) -> None:
    """300 runs: the client's partitioner and ours agree on each."""
    triggers = [Trigger(type="t", run_id=f"run-{i}", key="k") for i in range(300)]
    with Publisher.connect(found, CONFIG) as publisher:
        results = publisher.publish_many(triggers, "low")
    placed = [(r.run_id, r.partition) for r in results if isinstance(r, Published)]
    assert placed == [(t.run_id, shard_of(t.run_id, SHARDS)) for t in triggers]
    assert {partition for _, partition in placed} == set(range(SHARDS))


def test_java_places_runs_where_we_say(found: Settings) -> None:
    """The stock console producer, so Java's own partitioner: upstream services need no special setting."""
    topic = found.names.full("triggers.background")
    runs = [f"java-{i}-ü" for i in range(60)]
    done = laxity(
        found,
        *("kafka", "console-producer", "--topic", topic),
        *("--reader-property", "parse.key=true", "--reader-property", "key.separator=|"),
        stdin="".join(f"{run}|value\n" for run in runs),
    )
    assert done.returncode == 0, done.stderr
    consumer = KafkaClients(found, role="test").restore_consumer()
    consumer.assign([TopicPartition(topic, shard, 0) for shard in range(SHARDS)])
    placed: dict[str, int] = {}
    ends: set[int | None] = set()
    while len(ends) < SHARDS:
        message = consumer.poll(15)
        assert message is not None
        if message.error() is not None:
            ends.add(message.partition())
        elif (key := (message.key() or b"").decode()).startswith("java-"):
            placed[key] = message.partition() or 0
    consumer.close()
    assert placed == {run: shard_of(run, SHARDS) for run in runs}


def test_without_a_key_the_position_is_the_key(found: Settings) -> None:
    with Publisher.connect(found, CONFIG) as publisher:
        one, two = publisher.publish(Trigger(type="t")), publisher.publish(Trigger(type="t"))
    assert one.key == f"{one.topic}/{one.partition}/{one.offset}"
    assert one.run_id == run_id_of("default", "", one.key)
    assert one.task_id != two.task_id
    assert fetch(found, one).key() is None


def test_an_invalid_trigger_is_not_sent_nor_are_its_neighbours(found: Settings) -> None:
    with Publisher.connect(found, CONFIG) as publisher:
        before = publisher.publish(Trigger(type="t", run_id="neighbours"), "background")
        with pytest.raises(InvalidTrigger) as caught:
            publisher.publish_many(
                [Trigger(type="t", run_id="neighbours"), Trigger(type="t", demands={"nope": 1})], "background"
            )
        after = publisher.publish(Trigger(type="t", run_id="neighbours"), "background")
    assert caught.value.index == 1
    assert [p.code for p in caught.value.problems] == ["unknown_resource"]
    assert after.offset == before.offset + 1


async def test_asyncio_publishes_many_at_once(found: Settings) -> None:
    async with await AsyncPublisher.connect(found, CONFIG) as publisher:
        done = await asyncio.gather(
            *(publisher.publish(trigger_of("t", i, business=[str(i)])) for i in range(500))
        )
        await publisher.flush()
    assert len({p.task_id for p in done}) == 500


async def test_waiting_for_a_broker_never_blocks_the_loop(
    found: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full queue, nobody there: each publish fails in its time while the loop keeps turning."""
    monkeypatch.setenv("LAXITY_KAFKA__MESSAGE__TIMEOUT__MS", "700")
    monkeypatch.setenv("LAXITY_KAFKA__QUEUE__BUFFERING__MAX__MESSAGES", "3")
    codec, clock, gaps_ms = open_codec(found), SystemClock(), [0]

    async def heart() -> None:
        last_ms = clock.monotonic_ms()
        while True:
            await asyncio.sleep(0.01)
            gaps_ms.append(clock.monotonic_ms() - last_ms)
            last_ms = clock.monotonic_ms()

    producer = KafkaClients(found.model_copy(update={"kafka": "127.0.0.1:9"}), role="test").producer()
    async with AsyncPublisher(Publisher(producer, codec, CONFIG, found.names)) as publisher:
        beating = asyncio.create_task(heart())
        started_ms = clock.monotonic_ms()
        results = await asyncio.gather(
            *(publisher.publish(Trigger(type="t", key=str(i))) for i in range(9)), return_exceptions=True
        )
        beating.cancel()
    assert [type(result) for result in results] == [PublishFailed] * 9
    assert clock.monotonic_ms() - started_ms >= 1_400, "three rounds of a queue of three"
    assert max(gaps_ms) < 700, "no wait of the client stood in the loop"


async def test_a_full_queue_waits_instead_of_failing(
    stack: Endpoints, found: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAXITY_KAFKA__QUEUE__BUFFERING__MAX__MESSAGES", "10")
    async with await AsyncPublisher.connect(found, CONFIG) as publisher:
        done = await publisher.publish_many([Trigger(type="t", run_id=f"r{i}") for i in range(300)])
    assert all(isinstance(result, Published) for result in done)
    with Publisher.connect(found, CONFIG) as blocking:
        results = [blocking.send(Trigger(type="t", run_id=f"r{i}")) for i in range(100)]
        assert all(r.result(30).offset >= 0 for r in results)


def test_a_broker_that_is_away(found: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears in time, and that trying again is safe."""
    monkeypatch.setenv("LAXITY_KAFKA__MESSAGE__TIMEOUT__MS", "700")
    codec = open_codec(found)
    away = found.model_copy(update={"kafka": "127.0.0.1:9"})
    producer = KafkaClients(away, role="test").producer()
    publisher = Publisher(producer, codec, CONFIG, found.names)
    with pytest.raises(PublishFailed, match="_MSG_TIMED_OUT") as caught:
        publisher.publish(Trigger(type="t", key="k"))
    assert caught.value.retriable
    results = publisher.publish_many([Trigger(type="t", key="k"), Trigger(type="t", key="l")])
    assert [type(r) for r in results] == [PublishFailed, PublishFailed]
    publisher.send(Trigger(type="t", key="m"))
    with pytest.raises(PublishFailed, match="1 records were not acknowledged"):
        publisher.flush(0.05)
    publisher.close(2)
    publisher.close(2)
    with pytest.raises(PublishFailed, match="closed"):
        publisher.publish(Trigger(type="t"))


def laxity(found: Settings, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        "LAXITY_KAFKA": found.kafka,
        "LAXITY_REGISTRY_URL": found.registry_url,
        "LAXITY_PREFIX": found.prefix,
        **{
            name: os.environ[name]
            for name in ("PATH", "HOME", "XDG_CACHE_HOME", "JAVA_HOME")
            if name in os.environ
        },
    }
    command = [sys.executable, "-m", "laxity.infra.cli", *arguments]
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_submit(found: Settings) -> None:
    options = "--tier critical --deadline 30s --firm --tenant acme --key k1 --run r1 --demand llm=100 --demand account:a=1"
    more = "--estimate 20s --header a=b=c --workflow w --on-unknown retry --max-attempts 2 --json"
    done = laxity(
        found,
        "submit",
        "invoice.check",
        "--payload",
        "-",
        *options.split(),
        *more.split(),
        stdin='{"b":1, "a":2}',
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    message = fetch(found, Published(**document))
    read = open_codec(found).decode(Trigger, message.value())
    assert document["topic"] == found.names.full("triggers.critical")
    assert document["run_id"] == read.run_id == "r1"
    assert read.payload == b'{"a":2,"b":1}'
    assert (read.firm, read.tenant, read.key, read.estimate_ms) == (True, "acme", "k1", 20_000)
    assert read.demands == {"llm": 100, "account:a": 1}
    assert read.headers == {"a": "b=c"}
    assert 0 < read.deadline_ms - message.timestamp()[1] <= 30_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a b"], "type is a b: bad name"),
        (["t", "--tier", "hi"], "tier is 'hi'"),
        (["t", "--deadline", "30"], "neither a duration nor an instant"),
        (["t", "--deadline", "2030-01-01"], "zone"),
        (["t", "--deadline", "8d"], "7 days ahead"),
        (["t", "--demand", "llm"], "NAME=VALUE"),
        (["t", "--demand", "llm=x"], "not a whole number"),
        (["t", "--demand", "llm=1", "--demand", "llm=2"], "given twice"),
        (["t", "--demand", "llm=-1"], "negative"),
        (["t", "--payload", "{"], "not JSON"),
        (["t", "--payload", "@/nowhere"], "No such file"),
    ],
)
def test_submit_says_what_is_wrong_in_one_line(
    found: Settings,
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["laxity", "submit", *arguments])
    monkeypatch.setenv("LAXITY_KAFKA", found.kafka)
    monkeypatch.setenv("LAXITY_REGISTRY_URL", found.registry_url)
    monkeypatch.setenv("LAXITY_PREFIX", found.prefix)
    with pytest.raises(SystemExit) as caught:
        main()
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.out == ""
    assert says in shown.err
    assert shown.err.count("\n") == 1


class Waiting:
    """`laxity submit t --wait` under way. The scheduler's part is played here: it tells of every trigger that arrives."""

    def __init__(self, found: Settings, key: str, tier: str) -> None:
        self.task_id = task_id_of("default", run_id_of("default", "", key), key)
        self._names, self._codec = found.names, open_codec(found)
        self._producer = KafkaClients(found, role="test").producer()
        self._arguments = ["submit", "t", "--key", key, "--tier", tier, "--wait", "40s", "--json"]
        self._environment = {
            "LAXITY_KAFKA": found.kafka,
            "LAXITY_REGISTRY_URL": found.registry_url,
            "LAXITY_PREFIX": found.prefix,
        }

    def tell(self, tier: str, kind: str, state: str = "") -> None:
        event = TaskEvent(kind=kind, task_id=self.task_id, shard=1, batch=1, at_ms=1, state=state)
        topic, key = self._names.full(f"events.{tier}"), self.task_id.encode()
        self._producer.produce(topic, partition=1, key=key, value=self._codec.encode(event))
        self._producer.flush(10)

    def document(self, tell: Callable[[], None]) -> dict[str, Any]:
        command = [sys.executable, "-m", "laxity.infra.cli", *self._arguments]
        with subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, text=True) as waiting:
            try:
                return _until_ended(waiting, tell)
            finally:
                waiting.kill()


def test_submit_waits_for_the_end(found: Settings) -> None:
    waiting = Waiting(found, "w1", "high")

    def tell() -> None:
        waiting.tell("high", "transitions", "RUNNING")
        waiting.tell("high", "transitions", "SUCCEEDED")

    document = waiting.document(tell)
    assert document["task_id"] == waiting.task_id
    assert document["state"] == "SUCCEEDED"


def test_submit_again_tells_how_the_task_had_ended(found: Settings) -> None:
    """In the tier that it was accepted in; the repeat came in another, and is told there."""
    waiting = Waiting(found, "w2", "low")
    waiting.tell("high", "transitions", "RUNNING")
    waiting.tell("high", "transitions", "EXPIRED")
    waiting.tell("high", "conflict")
    document = waiting.document(lambda: waiting.tell("low", "duplicate"))
    assert document["state"] == "EXPIRED"


def _until_ended(waiting: subprocess.Popen[str], tell: Callable[[], None]) -> dict[str, Any]:
    """Events before the command began to watch are not for it: tell again until it ends."""
    for _ in range(120):
        tell()
        try:
            out, _ = waiting.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
        found: dict[str, Any] = json.loads(out)
        assert waiting.returncode == (found["state"] != "SUCCEEDED")
        return found
    raise AssertionError("the command did not end")
