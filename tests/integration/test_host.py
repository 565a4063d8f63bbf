"""Scheduler processes on real Kafka, Redis and registry: what others can read must be right whoever dies when."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from laxity.infra.local import Endpoints
from laxity.infra.local.redis_server import find_redis_server
from laxity.infra.provision import provision
from laxity.producers.publisher import Publisher
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Dispatch, Journal, Outcome, TaskEvent, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings, settings
from laxity.schemas.timing import SystemClock
from laxity.streams.ledger.limits import Limits
from laxity.streams.ledger.protocol import LedgerUnavailable
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.runtime.assembly import Assembly
from laxity.streams.runtime.codes import PARTITION_EOF
from laxity.streams.runtime.crashpoints import POINTS
from laxity.streams.runtime.settings import HostSettings
from laxity.streams.runtime.sources import INPUTS
from laxity.streams.runtime.transactions import DoubtfulError, Transactions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CONFIG_TEXT = "[fleets.default]\npartitions = 4\n[types.echo]\nestimate_ms = 10\n"
CONFIG = configuration.parse(CONFIG_TEXT)
SHARDS = 4
CLOCK = SystemClock()
WAIT_MS = 60_000
TERMINAL = {"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"}


def wait_for(what: Callable[[], bool], text: str, ms: int = WAIT_MS) -> None:
    until = CLOCK.monotonic_ms() + ms
    pause = threading.Event()
    while not what():
        assert CLOCK.monotonic_ms() < until, f"not within {ms} ms: {text}"
        pause.wait(0.05)


@dataclass
class Process:
    """One scheduler process."""

    popen: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    def port(self) -> int:
        wait_for(lambda: bool(self.said("scheduler.started")) or self.popen.poll() is not None, "start")
        assert self.popen.poll() is None, self.log.read_text()
        return int(self.said("scheduler.started")[0]["port"])

    def ready(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port()}/readyz", timeout=5).status_code == 200

    def shards(self) -> int:
        for line in httpx.get(f"http://127.0.0.1:{self.port()}/metrics", timeout=5).text.splitlines():
            if line.startswith("laxity_shards_running "):
                return int(float(line.split()[1]))
        return 0

    def lags(self, topic: str) -> list[int]:
        lines = httpx.get(f"http://127.0.0.1:{self.port()}/metrics", timeout=5).text.splitlines()
        found = (line for line in lines if line.startswith("laxity_consumer_lag{") and f'.{topic}"' in line)
        return [int(float(line.split()[-1])) for line in found]

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@dataclass
class World:
    """One deployment under a prefix of its own, a runner that answers every dispatch, and readers of what was committed."""

    found: Settings
    config_file: Path
    root: Path
    codec: Codec
    clients: KafkaClients
    processes: list[Process] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def start(self, *, name: str = "", crash: str = "", skip: str = "", protocol: str = "") -> Process:
        name = name or f"p{len(self.processes)}"
        log = self.root / f"{name}-{len(self.processes)}.log"
        env = os.environ | {
            "LAXITY_KAFKA": self.found.kafka,
            "LAXITY_REGISTRY_URL": self.found.registry_url,
            "LAXITY_REDIS_URL": self.found.redis_url,
            "LAXITY_PREFIX": self.found.prefix,
            "LAXITY_CONFIG": str(self.config_file),
            "LAXITY_SCHEDULER_STATE_DIR": str(self.root / name),
            "LAXITY_SCHEDULER_ACCEPT_SKIP": skip,
            "CRASHPOINT": crash,
        }
        if protocol:
            env["LAXITY_KAFKA__GROUP__PROTOCOL"] = protocol
        with log.open("wb") as out:
            popen = subprocess.Popen([sys.executable, "-m", "laxity.streams.runtime"], env=env, stderr=out)
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def started(self, **how: str) -> Process:
        process = self.start(**how)
        wait_for(process.ready, "ready")
        return process

    def publish(self, count: int, *, tier: str = "normal", start: int = 0) -> None:
        with Publisher.connect(self.found, CONFIG) as publisher:
            triggers = [Trigger(type="echo", key=f"k{n}", payload=b"{}") for n in range(start, start + count)]
            publisher.publish_many(triggers, tier)

    def read(self, topic: str) -> list[Message]:
        """All committed records there are."""
        consumer = self.clients.reader("test")
        name = self.found.names.full(topic)
        partitions = len(consumer.list_topics(name, timeout=10).topics[name].partitions)
        consumer.assign([TopicPartition(name, p, 0) for p in range(partitions)])
        found: list[Message] = []
        ended: set[int | None] = set()
        until = CLOCK.monotonic_ms() + 20_000
        while len(ended) < partitions:
            assert CLOCK.monotonic_ms() < until, f"{topic} cannot be read to its end"
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    found.append(message)
                else:
                    assert error.code() == PARTITION_EOF
                    ended.add(message.partition())
        consumer.close()
        return found

    def events(self, tier: str = "normal") -> list[TaskEvent]:
        return [self.codec.decode(TaskEvent, m.value()) for m in self.read(f"events.{tier}")]

    def ended(self, tier: str = "normal") -> Counter[str]:
        return Counter(e.key for e in self.events(tier) if e.kind == "transitions" and e.state in TERMINAL)

    def dispatched(self) -> Counter[tuple[str, int]]:
        found = [self.codec.decode(Dispatch, m.value()) for m in self.read("dispatch.default")]
        return Counter((d.key, d.dispatch_no) for d in found)

    def check(self, count: int, tier: str = "normal") -> None:
        """Each accepted trigger ended exactly once; no dispatch number was used twice; batches are numbered without gap or repeat."""
        wait_for(lambda: len(self.ended(tier)) >= count, f"{count} tasks ended")
        assert self.ended(tier) == {f"k{n}": 1 for n in range(count)}
        assert set(self.dispatched().values()) == {1}
        journal = [(m.partition(), self.codec.decode(Journal, m.value())) for m in self.read("journal")]
        for shard in range(SHARDS):
            mine = [entry for partition, entry in journal if partition == shard]
            assert [entry.batch for entry in mine] == list(range(1, len(mine) + 1))
            reached = dict.fromkeys(INPUTS, 0)
            for moved in (moved for entry in mine for moved in entry.inputs):
                assert moved.first == reached[moved.topic], f"shard {shard}: {moved}"
                reached[moved.topic] = moved.next

    def stop(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.terminate()
        for process in self.processes:
            try:
                process.popen.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Answering(threading.Thread):
    """A runner with much credit that reports success for each dispatch, once per dispatch number."""

    def __init__(self, world: World, redis_url: str) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._ledger = RedisLedger(
            redis_url, limits=Limits.of(CONFIG), shards=SHARDS, prefix=world.found.prefix, timeout_s=2
        )
        self._ending = threading.Event()

    def run(self) -> None:
        world, clock = self._world, CLOCK
        consumer = world.clients.reader("runner")
        topic = world.found.names.full("dispatch.default")
        consumer.assign([TopicPartition(topic, 0, 0)])
        producer = world.clients.producer()
        due = 0
        while not self._ending.is_set():
            if clock.monotonic_ms() >= due:
                due = clock.monotonic_ms() + 1_000
                self._register()
            for message in consumer.consume(500, 0.05):
                if message.error() is None:
                    order = world.codec.decode(Dispatch, message.value())
                    for kind in ("started", "succeeded"):
                        outcome = Outcome(
                            kind=kind,
                            task_id=order.task_id,
                            generation=order.generation,
                            dispatch_no=order.dispatch_no,
                            attempt=order.attempt,
                            runner="r1",
                            at_ms=clock.now_ms(),
                        )
                        producer.produce(
                            world.found.names.full("outcomes"),
                            world.codec.encode(outcome),
                            order.task_id,
                            partition=order.shard,
                        )
            producer.poll(0)
        producer.flush(10)
        consumer.close()
        self._ledger.close()

    def _register(self) -> None:
        with suppress(LedgerUnavailable):  # a test may have stopped it
            self._ledger.register(runner="r1", fleet="default", partition=0, credit=5_000, ttl_ms=10_000)

    def stop(self) -> None:
        self._ending.set()
        self.join(20)


@contextmanager
def deployed(stack: Endpoints, redis_url: str, folder: Path) -> Iterator[World]:
    prefix = f"h{uuid.uuid4().hex[:8]}."
    found = settings(kafka=stack.kafka, registry_url=stack.registry, redis_url=redis_url, prefix=prefix)
    provision(found, CONFIG, shards=SHARDS)
    config_file = folder / "laxity.toml"
    config_file.write_text(CONFIG_TEXT)
    made = World(found, config_file, folder, open_codec(found), KafkaClients(found, role="test"))
    runner = Answering(made, redis_url)
    runner.start()
    try:
        yield made
    finally:
        made.stop()
        runner.stop()


@pytest.fixture
def world(stack: Endpoints, tmp_path: Path) -> Iterator[World]:
    with deployed(stack, stack.redis, tmp_path) as made:
        yield made


@dataclass
class OwnRedis:
    """A Redis that this test may break."""

    folder: Path
    port: int
    popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def start(self) -> None:
        command = [str(find_redis_server().path), "--port", str(self.port), "--bind", "127.0.0.1"]
        with (self.folder / "redis.log").open("ab") as log:
            self.popen = subprocess.Popen(
                [*command, "--save", "", "--dir", str(self.folder)], stdout=log, stderr=log
            )
        wait_for(self.answers, "Redis answers")

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(20)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made = OwnRedis(tmp_path, port)
    made.start()
    yield made
    made.kill()


def test_one_process_runs_everything_and_stops_cleanly(world: World) -> None:
    process = world.started()
    world.publish(200)
    world.check(200)
    metrics = httpx.get(f"http://127.0.0.1:{process.port()}/metrics").text
    assert 'laxity_tasks_ended_total{state="SUCCEEDED",tier="normal"} 200.0' in metrics
    assert httpx.get(f"http://127.0.0.1:{process.port()}/livez").json() == {"ok": True, "problems": []}
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(20) == 0
    assert not [*process.said("scheduler.failed"), *process.said("shard.starts_over")]
    assert json.loads((world.root / "p0" / "holding.json").read_text())["shards"] == []


def test_a_warm_restart_reads_nothing_twice_and_restores_only_what_is_new(world: World) -> None:
    first = world.started(name="same")
    world.publish(50)
    world.check(50)
    first.popen.terminate()
    first.popen.wait(20)
    world.publish(50, start=50)
    second = world.started(name="same")
    world.check(100)
    restored = second.said("shard.restored")
    assert {line["rows"] for line in restored} == {0}
    assert not second.said("shard.wiped")


def test_killed_processes_are_replaced_and_nothing_is_lost_or_doubled(world: World) -> None:
    a, b = world.started(), world.started()
    wait_for(lambda: (a.shards(), b.shards()) == (2, 2), "two shards each")
    world.publish(300)
    a.kill()
    world.publish(300, start=300)
    wait_for(lambda: b.shards() == SHARDS, "the survivor has all shards")
    c = world.start()
    world.publish(300, start=600)
    wait_for(lambda: len(world.ended()) > 300, "work goes on")
    b.kill()
    world.check(900)
    assert c.popen.poll() is None


def test_a_ledger_that_is_flushed_killed_and_empty_again_costs_nothing(
    stack: Endpoints, own_redis: OwnRedis, tmp_path: Path
) -> None:
    with deployed(stack, own_redis.url, tmp_path) as world:
        process = world.started()
        world.publish(100)
        wait_for(lambda: len(world.ended()) > 20, "work begins")
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
        world.publish(100, start=100)
        world.check(200)
        own_redis.kill()
        world.publish(50, start=200)
        wait_for(lambda: not process.ready(), "it says that the ledger is away")
        assert "ledger" in httpx.get(f"http://127.0.0.1:{process.port()}/readyz").text
        wait_for(lambda: sum(process.lags("triggers.normal")) == 0, "intake goes on without it")
        assert len(world.ended()) == 200
        own_redis.start()
        world.check(250)
        wait_for(process.ready, "ready again")


def test_a_survivor_ends_the_transactions_of_a_dead_process_before_their_timeout(world: World) -> None:
    doomed, survivor = world.start(crash="before_commit:25"), world.started()
    wait_for(lambda: survivor.shards() == SHARDS // 2, "half of the shards")
    while doomed.popen.poll() is None:
        world.publish(5, start=5 * len(world.batches))
        world.batches.append(1)
    wait_for(lambda: len(survivor.said("peer.rescued")) >= SHARDS // 2, "rescued", ms=5_000)
    rescued = survivor.said("peer.rescued")
    assert {line["why"] for line in rescued} == {""}
    given_up = {line["shard"] for line in doomed.said("shard.revoked")}  # to the survivor, while both lived
    assert {line["shard"] for line in rescued} == {
        line["shard"] for line in doomed.said("shard.running")
    } - given_up
    world.check(5 * len(world.batches))


@pytest.mark.slow
def test_the_newer_group_protocol_hands_over_too(world: World) -> None:
    a = world.started(protocol="consumer")
    world.publish(100)
    wait_for(lambda: len(world.ended()) > 20, "work begins")
    b = world.start(protocol="consumer")
    wait_for(lambda: b.shards() == SHARDS // 2, "half of the shards move")
    world.publish(100, start=100)
    a.popen.terminate()
    assert a.popen.wait(20) == 0
    world.publish(100, start=200)
    world.check(300)


def test_bytes_that_are_no_trigger_become_a_dead_letter_and_the_next_record_flows(world: World) -> None:
    world.started()
    producer = world.clients.producer()
    topic = world.found.names.full("triggers.high")
    poison = [b"", b"\x00", b"junk", b"\x00\x00\x00\x00\x01", bytes(range(256))]
    for at, value in enumerate(poison):
        producer.produce(topic, value, b"key\xff", partition=at % SHARDS, headers=[("h", b"\xfe")])
    producer.flush(10)
    world.publish(20, tier="high")
    world.check(20, tier="high")
    letters = world.read("dlq.high")
    assert sorted(m.value() or b"" for m in letters) == sorted(poison)
    assert {m.key() for m in letters} == {b"key\xff"}
    assert all(list(m.headers() or ())[0] == ("h", b"\xfe") for m in letters)  # noqa: RUF015


def test_a_stopped_zombie_that_wakes_up_writes_nothing(world: World) -> None:
    zombie = world.started()
    world.publish(100)
    zombie.popen.send_signal(signal.SIGSTOP)
    other = world.start()
    world.publish(100, start=100)
    wait_for(lambda: bool(len(other.said("shard.running")) >= SHARDS), "taken over")
    world.check(200)
    zombie.popen.send_signal(signal.SIGCONT)
    world.publish(100, start=200)
    world.check(300)


def test_commits_that_fail_or_whose_fate_is_unknown_lose_and_double_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: of nine transactions one is aborted, one is committed and its answer lost, one hangs before its commit."""
    real, numbers = Transactions._end, itertools.count(1)
    fates = Counter[str]()

    def shaky(self: Transactions, producer: Any) -> None:
        fate = {2: "aborted", 5: "answer lost", 8: "never sent"}.get(next(numbers) % 9, "committed")
        fates[fate] += 1
        if fate == "aborted":
            self._abort(producer, KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT)))
        if fate != "never sent":
            real(self, producer)
        if fate != "committed":
            self._disturbed = True
            raise DoubtfulError(fate)

    monkeypatch.setattr(Transactions, "_end", shaky)
    assembly = Assembly(world.found, HostSettings(state_dir=world.root / "here"), CONFIG)
    thread = threading.Thread(target=assembly.run)
    thread.start()
    try:
        for start in range(0, 120, 20):
            world.publish(20, start=start)
            wait_for(lambda start=start: len(world.ended()) >= start, "work goes on")  # type: ignore[misc]
        world.check(120)
    finally:
        assembly.host.stop()
        thread.join(20)
    assert min(fates.values()) >= 3, fates


QUICK = {"after_commit"}  # the others by `-m slow`


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, marks=() if point in QUICK else pytest.mark.slow) for point in POINTS],
)
def test_a_crash_at_any_point_costs_nothing(world: World, point: str) -> None:
    """The process dies at the point, a restart in the same directory goes on."""
    early = point in {"mid_restore", "mid_takeover"}
    if point == "mid_restore":
        first = world.started(name="first")
        world.publish(60)
        world.check(60)
        first.kill()
    doomed = world.start(name="same", crash=f"{point}:{2 if early else 12}")
    if not early:
        wait_for(doomed.ready, "ready")
        world.publish(60)
    doomed.popen.wait(60)
    assert doomed.popen.returncode == -signal.SIGKILL
    world.started(name="same")
    world.publish(40, start=60)
    if point == "mid_takeover":
        world.publish(60)
    world.check(100)


def test_offsets_moved_beyond_the_marks_are_refused_until_an_operator_accepts(world: World) -> None:
    first = world.started(name="same")
    world.publish(40)
    world.check(40)
    first.popen.terminate()
    first.popen.wait(20)
    world.publish(40, start=40)
    topic = world.found.names.full("triggers.normal")
    ends = [_move_to_end(world, topic, shard) for shard in range(SHARDS)]
    second = world.start(name="same")
    wait_for(lambda: len(second.said("shard.refused")) >= SHARDS, "refused")
    text = httpx.get(f"http://127.0.0.1:{second.port()}/readyz").text
    words = [f"{topic}:{shard}:{end}" for shard, end in enumerate(ends)]
    assert all(f"--accept-skip {word}" in text for word in words)
    second.popen.terminate()
    assert second.popen.wait(20) == 0
    world.started(name="same", skip=",".join(words))
    world.publish(10, start=80)
    wait_for(lambda: len(world.ended()) == 50, "the rest runs")
    skipped = [s for m in world.read("journal") for s in world.codec.decode(Journal, m.value()).skipped]
    assert sorted(skipped) == sorted(words)


def _move_to_end(world: World, topic: str, shard: int) -> int:
    consumer = world.clients.bulk_consumer()
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, shard), timeout=10)
    consumer.commit(offsets=[TopicPartition(topic, shard, end)], asynchronous=False)
    consumer.close()
    return int(end)


def test_offsets_reset_to_the_start_count_duplicates_and_do_nothing_twice(world: World) -> None:
    first = world.started(name="same")
    world.publish(60)
    world.check(60)
    first.popen.terminate()
    first.popen.wait(20)
    before = world.dispatched()
    consumer = world.clients.bulk_consumer()
    names = [world.found.names.full(name) for name in INPUTS]
    consumer.commit(
        offsets=[TopicPartition(name, shard, 0) for name in names for shard in range(SHARDS)],
        asynchronous=False,
    )
    consumer.close()
    world.started(name="same")
    world.publish(1, start=60)
    wait_for(lambda: world.ended()["k60"] == 1, "the new one runs")
    wait_for(lambda: sum(e.kind == "duplicate" for e in world.events()) >= 60, "duplicates are told")
    assert sum(e.kind == "duplicate" for e in world.events()) == 60
    assert world.ended() == {f"k{n}": 1 for n in range(61)}
    assert before - world.dispatched() == Counter()
    assert sum((world.dispatched() - before).values()) == 1
