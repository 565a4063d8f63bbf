"""A deployment under a prefix of its own on the real servers: scheduler processes, a runner that answers, readers of what was committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka import Message, TopicPartition

from laxity.infra.local import Endpoints
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
from laxity.streams.runtime.codes import PARTITION_EOF
from laxity.streams.runtime.sources import INPUTS

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

    def gauges(self, name: str) -> dict[str, float]:
        """A metric of each shard."""
        lines = httpx.get(f"http://127.0.0.1:{self.port()}/metrics", timeout=5).text.splitlines()
        found = (line for line in lines if line.startswith(f'{name}{{shard="'))
        return {line.split('"')[1]: float(line.split()[-1]) for line in found}

    def lags(self, topic: str) -> list[int]:
        lines = httpx.get(f"http://127.0.0.1:{self.port()}/metrics", timeout=5).text.splitlines()
        found = (line for line in lines if line.startswith("laxity_consumer_lag{") and f'.{topic}"' in line)
        return [int(float(line.split()[-1])) for line in found]

    def holds(self) -> set[int]:
        """Shards that it runs, by its own log."""
        held: set[int] = set()
        for line in self.lines():
            if line["event"] == "shard.running":
                held.add(line["shard"])
            elif line["event"] == "shard.revoked":
                held.discard(line["shard"])
        return held

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

    def start(
        self,
        *,
        name: str = "",
        crash: str = "",
        skip: str = "",
        protocol: str = "",
        packages: str = "",
        state: Path | None = None,
        log: Path | None = None,
    ) -> Process:
        """`packages`: a folder where another release is installed."""
        name = name or f"p{len(self.processes)}"
        log = log or self.root / f"{name}-{len(self.processes)}.log"
        env = self._env() | {
            "LAXITY_SCHEDULER_STATE_DIR": str(state or self.root / name),
            "LAXITY_SCHEDULER_ACCEPT_SKIP": skip,
            "CRASHPOINT": crash,
        }
        if packages:
            env["PYTHONPATH"] = packages
        if protocol:
            env["LAXITY_KAFKA__GROUP__PROTOCOL"] = protocol
        with log.open("wb") as out:
            popen = subprocess.Popen([sys.executable, "-m", "laxity.streams.runtime"], env=env, stderr=out)
        self.processes.append(Process(popen, log))
        return self.processes[-1]

    def _env(self) -> dict[str, str]:
        return os.environ | {
            "LAXITY_KAFKA": self.found.kafka,
            "LAXITY_REGISTRY_URL": self.found.registry_url,
            "LAXITY_REDIS_URL": self.found.redis_url,
            "LAXITY_PREFIX": self.found.prefix,
            "LAXITY_CONFIG": str(self.config_file),
        }

    def started(self, **how: Any) -> Process:
        process = self.start(**how)
        wait_for(process.ready, "ready")
        return process

    def publish(self, count: int, *, tier: str = "normal", start: int = 0) -> None:
        self.publish_keys([f"k{n}" for n in range(start, start + count)], tier)

    def publish_keys(self, keys: Collection[str], tier: str = "normal") -> None:
        with Publisher.connect(self.found, CONFIG) as publisher:
            publisher.publish_many([Trigger(type="echo", key=key, payload=b"{}") for key in keys], tier)

    def read(self, topic: str) -> list[Message]:
        """All committed records there are."""
        consumer = self.clients.reader("test")
        name = self.found.names.full(topic)
        partitions = len(consumer.list_topics(name, timeout=10).topics[name].partitions)
        consumer.assign([TopicPartition(name, p, 0) for p in range(partitions)])
        found: list[Message] = []
        ended: set[int | None] = set()
        until = CLOCK.monotonic_ms() + WAIT_MS
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
        """Of `publish`."""
        self.check_keys({f"k{n}" for n in range(count)}, tier)

    def check_keys(self, keys: Collection[str], tier: str) -> None:
        """Each accepted trigger ended exactly once; no dispatch number was used twice; batches are numbered without gap or repeat."""
        wait_for(lambda: len(self.ended(tier)) >= len(keys), f"{len(keys)} tasks ended")
        assert self.ended(tier) == dict.fromkeys(keys, 1)
        assert set(self.dispatched().values()) == {1}
        journal = [(m.partition(), self.codec.decode(Journal, m.value())) for m in self.read("journal")]
        for shard in range(SHARDS):
            mine = [entry for partition, entry in journal if partition == shard]
            assert [entry.batch for entry in mine] == list(range(1, len(mine) + 1))
            reached = dict.fromkeys(INPUTS, 0)
            for moved in (moved for entry in mine for moved in entry.inputs):
                assert moved.first == reached[moved.topic], f"shard {shard}: {moved}"
                reached[moved.topic] = moved.next

    def replay(self, shard: int) -> None:
        """The shard's journal, decided again, has the same effects."""
        command = [sys.executable, "-m", "laxity.infra.cli", "state", "replay", str(shard)]
        subprocess.run(
            [*command, "--config", str(self.config_file)], env=self._env(), check=True, capture_output=True
        )

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
def deployed(
    stack: Endpoints, redis_url: str, folder: Path, provisioning: Callable[[Settings], None] | None = None
) -> Iterator[World]:
    """`provisioning`: by another release than this one."""
    prefix = f"h{uuid.uuid4().hex[:8]}."
    found = settings(kafka=stack.kafka, registry_url=stack.registry, redis_url=redis_url, prefix=prefix)
    config_file = folder / "laxity.toml"
    config_file.write_text(CONFIG_TEXT)
    if provisioning is None:
        provision(found, CONFIG, shards=SHARDS)
    else:
        provisioning(found)
    made = World(found, config_file, folder, open_codec(found), KafkaClients(found, role="test"))
    runner = Answering(made, redis_url)
    runner.start()
    try:
        yield made
    finally:
        made.stop()
        runner.stop()
