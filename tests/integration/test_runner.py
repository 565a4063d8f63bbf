"""Runner processes on real Kafka and Redis. The test plays the shard: it reserves in the ledger and writes dispatches in transactions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition

from laxity.infra.local import Endpoints
from laxity.infra.provision import provision
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import reservation_id
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Dispatch, Outcome
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings, settings
from laxity.schemas.timing import SystemClock
from laxity.streams.ledger.limits import Limits
from laxity.streams.ledger.protocol import Answer, Candidate, Exchange
from laxity.streams.ledger.redis import RedisLedger

pytestmark = pytest.mark.integration

CRASH_POINTS = (
    "before_claim", "after_claim", "before_call", "in_call", "after_call", "after_result", "before_commit",
)  # fmt: skip
FLEETS = (
    "default",
    "drain",
    "long",
    "kill",
    "poison",
    *(point.replace("_", "-") for point in CRASH_POINTS),
)
RESOURCES = """
[resources.llm]
kind = "rate"
requests_per_minute = 60000
tokens_per_minute = 6000000
[resources.desk]
kind = "slots"
capacity = 100
"""
CONFIG = RESOURCES + "\n".join(f"[fleets.{fleet}]\npartitions = 2" for fleet in FLEETS)
AGENTS = """
import asyncio
import os
from pathlib import Path

from laxity.consumers import AgentContext, Yield, agent

FLEET = os.environ["TEST_FLEET"]


def note(text: str) -> None:
    with open(os.environ["TEST_NOTES"], "a") as notes:
        notes.write(text + "\\n")


@agent("double", fleet=FLEET)
async def double(ctx: AgentContext, document: dict[str, int]) -> dict[str, int]:
    note(f"double {ctx.task_id} {ctx.idempotency_key()}")
    await ctx.call("llm", 10)
    await asyncio.sleep(0.2)  # longer than an armed in_call waits
    return {"twice": 2 * document["n"]}


@agent("hold", fleet=FLEET)
async def hold(ctx: AgentContext) -> str:
    note(f"hold {ctx.task_id}")
    gate = Path(ctx.headers["gate"])
    while not gate.exists():
        if ctx.should_yield():
            raise Yield(b"so far")
        await asyncio.sleep(0.02)
    return "held"


@agent("deaf", fleet=FLEET)
def deaf(ctx: AgentContext) -> None:
    note(f"deaf {ctx.task_id}")
    import time
    time.sleep(60)
"""
CLOCK = SystemClock()


def eventually(what: str, probe: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The probe's first answer that counts; each probe waits a little itself."""
    end_ms = CLOCK.monotonic_ms() + round(within_s * 1_000)
    while CLOCK.monotonic_ms() < end_ms:
        if found := probe():
            return found
    raise AssertionError(f"not within {within_s} s: {what}")


@dataclass(kw_only=True)
class Shard:
    """Shard 1 of a deployment, and a reader of all outcomes."""

    settings: Settings
    clients: KafkaClients
    codec: Codec
    ledger: RedisLedger
    producer: Any
    reader: Any
    outcomes: list[Outcome] = field(default_factory=list)

    def reserve(self, fleet: str, task_id: str, number: int) -> Any:
        def ask() -> Any:
            candidate = Candidate(
                reservation_id=reservation_id(task_id, 0, number),
                task_id=task_id,
                fleet=fleet,
                demands={"llm": 10, "desk": 1},
                deadline_ms=CLOCK.now_ms(),
            )
            answer = self.exchange(candidates=[candidate])
            self.read()  # waits a little
            return answer.grants[0] if answer.grants else None

        return eventually(f"a runner of {fleet}", ask)

    def exchange(self, **what: Any) -> Answer:
        return self.ledger.exchange(Exchange(shard=1, owner_epoch=1, **what))

    def dispatch(self, fleet: str, type_: str, payload: bytes = b"", **over: Any) -> Dispatch:
        task_id, number = over.pop("task_id", uuid.uuid4().hex), over.pop("dispatch_no", 1)
        grant = self.reserve(fleet, task_id, number)
        now_ms = CLOCK.now_ms()
        values: dict[str, Any] = {
            "task_id": task_id, "tenant": "acme", "run_id": task_id, "key": task_id, "type": type_, "shard": 1,
            "generation": 0, "dispatch_no": number, "attempt": 1, "runner": grant.runner, "payload": payload,
            "deadline_ms": now_ms + 600_000, "latest_start_ms": now_ms + 500_000, "granted": dict(grant.granted),
            "granted_ms": grant.granted_ms,
        }  # fmt: skip
        dispatch = Dispatch(**values | over)
        self.write(fleet, grant.partition, self.codec.encode(dispatch), task_id.encode())
        return dispatch

    def write(self, fleet: str, partition: int, value: bytes, key: bytes) -> None:
        """In a transaction of its own, as a batch of a shard: its marker leaves a gap in the offsets."""
        self.producer.begin_transaction()
        topic = self.settings.names.full(f"dispatch.{fleet}")
        self.producer.produce(topic, value=value, key=key, partition=partition)
        self.producer.commit_transaction(10)

    def read(self) -> list[Outcome]:
        for message in self.reader.consume(500, 0.05):
            if message.error() is None:
                self.outcomes.append(self.codec.decode(Outcome, message.value()))
        return self.outcomes

    def of(self, task_id: str) -> list[Outcome]:
        return [outcome for outcome in self.read() if outcome.task_id == task_id]

    def kinds(self, task_id: str) -> list[str]:
        return [outcome.kind for outcome in self.of(task_id)]

    def wait(self, task_id: str, kind: str, within_s: float = 60.0) -> Outcome:
        found: Outcome = eventually(
            f"{kind} of {task_id}",
            lambda: next((o for o in self.of(task_id) if o.kind == kind), None),
            within_s,
        )
        return found

    def committed(self, fleet: str, partition: int) -> int:
        consumer = self.clients.agents_consumer(fleet)  # never subscribes: no member
        topic = self.settings.names.full(f"dispatch.{fleet}")
        try:
            return int(consumer.committed([TopicPartition(topic, partition)], timeout=10)[0].offset)
        finally:
            consumer.close()


@pytest.fixture(scope="module")
def shard(stack: Endpoints) -> Iterator[Shard]:
    where = settings(
        kafka=stack.kafka,
        registry_url=stack.registry,
        redis_url=stack.redis,
        prefix=f"r{uuid.uuid4().hex[:8]}.",
    )
    config = configuration.parse(CONFIG)
    provision(where, config, shards=2)
    clients = KafkaClients(where, role="test")
    ledger = RedisLedger(
        where.redis_url, limits=Limits.of(config), shards=2, prefix=where.prefix, timeout_s=5
    )
    for number in (0, 1):
        ledger.reconcile(shard=number, owner_epoch=1, seen_epoch="", live=[])
    producer = clients.transactional_producer("scheduler.1")
    producer.init_transactions(30)
    reader = clients.reader("outcomes-of-the-test")
    reader.assign([TopicPartition(where.names.full("outcomes"), p, 0) for p in (0, 1)])
    yield Shard(
        settings=where,
        clients=clients,
        codec=open_codec(where),
        ledger=ledger,
        producer=producer,
        reader=reader,
    )
    reader.close()
    ledger.close()


@dataclass(kw_only=True)
class Runners:
    """Starts runner processes; ends by pid whatever it started."""

    folder: Path
    environment: Mapping[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, fleet: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        types = "".join(f'[types.{t}]\nfleet = "{fleet}"\n' for t in ("double", "hold", "deaf"))
        (self.folder / f"{fleet}.toml").write_text(CONFIG + "\n" + types)
        with (self.folder / f"{fleet}-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "laxity.infra.cli", "agents", "my_agents", *arguments],
                cwd=self.folder,
                env={**self.environment, "TEST_FLEET": fleet, "LAXITY_CONFIG": f"{fleet}.toml"} | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def log(self, number: int) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"*-{number}.log"))


@pytest.fixture
def runners(shard: Shard, tmp_path: Path, stack: Endpoints) -> Iterator[Runners]:
    (tmp_path / "my_agents.py").write_text(AGENTS)
    environment = {
        **os.environ,
        **stack.environment(),
        "LAXITY_PREFIX": shard.settings.prefix,
        "TEST_NOTES": str(tmp_path / "notes"),
    }
    made = Runners(folder=tmp_path, environment=environment)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def test_a_dispatch_becomes_an_outcome(shard: Shard, runners: Runners) -> None:
    runner = runners.start("default", "--http-port", "0")
    dispatch = shard.dispatch("default", "double", b'{"n": 21}')
    done = shard.wait(dispatch.task_id, "succeeded")
    assert done.result == b'{"twice":42}'
    assert shard.kinds(dispatch.task_id) == ["started", "succeeded"]
    assert done.runner == dispatch.runner
    port = next(word for word in runners.log(0).split() if word.isdigit() and int(word) > 1_000)
    for path in ("livez", "readyz", "metrics"):
        assert httpx.get(f"http://127.0.0.1:{port}/{path}").status_code == 200
    assert (
        'laxity_runner_outcomes_total{kind="succeeded"} 1.0'
        in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    )
    eventually("the offset is committed", lambda: 1 in {shard.committed("default", p) for p in (0, 1)})
    runner.terminate()
    assert runner.wait(15) == 0


def test_bytes_that_nobody_can_read_are_reported_and_the_next_record_flows(
    shard: Shard, runners: Runners
) -> None:
    runners.start("poison")
    first = shard.dispatch("poison", "double", b'{"n": 1}')
    shard.wait(first.task_id, "succeeded")
    for junk in (b"", b"junk", b"\x00\x00\x00\x00\x07abc", shard.codec.encode(first)[:-3]):
        shard.write("poison", 0, junk, b"k")
        shard.write("poison", 1, junk, b"k")
    second = shard.dispatch("poison", "double", b'{"n": 2}')
    shard.wait(second.task_id, "succeeded")
    eventually("eight reports", lambda: len([o for o in shard.of("") if o.code == "poison"]) == 8)
    originals = [o.original for o in shard.of("") if o.original is not None]
    assert {o.value for o in originals} >= {b"", b"junk", b"\x00\x00\x00\x00\x07abc"}
    assert {o.topic for o in originals} == {shard.settings.names.full("dispatch.poison")}
    third = shard.dispatch("poison", "double", b'{"n": "many"}')
    assert shard.wait(third.task_id, "failed").code == "poison"


def test_one_long_task_stops_nobody_and_holds_the_offset(
    shard: Shard, runners: Runners, tmp_path: Path
) -> None:
    runners.start("long", "--slots", "3")
    gate = tmp_path / "gate"
    long = shard.dispatch("long", "hold", headers={"gate": str(gate)})
    shard.wait(long.task_id, "started")
    others = [shard.dispatch("long", "double", b'{"n": 1}') for _ in range(20)]
    for other in others:
        shard.wait(other.task_id, "succeeded")
    partition = 0 if _end(shard, "long", 0) else 1
    assert shard.committed("long", partition) in {-1001, 0}
    gate.touch()
    shard.wait(long.task_id, "succeeded")
    eventually("the offset moves on", lambda: shard.committed("long", partition) >= 41)


def _end(shard: Shard, fleet: str, partition: int) -> int:
    topic = TopicPartition(shard.settings.names.full(f"dispatch.{fleet}"), partition)
    return int(shard.reader.get_watermark_offsets(topic, timeout=10)[1])


def test_a_killed_runners_work_is_asked_about_and_never_run_again(
    shard: Shard, runners: Runners, tmp_path: Path
) -> None:
    first = runners.start("kill")
    held = shard.dispatch("kill", "hold", headers={"gate": str(tmp_path / "never")})
    shard.wait(held.task_id, "started")
    eventually("the agent runs", lambda: shard.read() is not None and runners.notes())
    first.kill()
    runners.start("kill")
    bounced = shard.wait(held.task_id, "bounced", within_s=90)
    assert (bounced.code, bounced.dispatch_no) == ("redelivered", 1)
    assert shard.kinds(held.task_id) == ["started", "bounced"]
    assert runners.notes() == [f"hold {held.task_id}"]
    name = reservation_id(held.task_id, 0, 1)
    assert shard.exchange(revokes=[name]).verdicts[name] in {"claimed", "gone"}
    # the lease lapses by itself, and the shard hears of it
    eventually("the lease is reaped", lambda: shard.read() is not None and name in shard.exchange().reaped)
    again = shard.dispatch("kill", "double", b'{"n": 4}', task_id=held.task_id, dispatch_no=2, attempt=2)
    assert shard.wait(again.task_id, "succeeded").attempt == 2


def test_a_drain_finishes_what_runs_and_asks_the_rest_to_yield(
    shard: Shard, runners: Runners, tmp_path: Path
) -> None:
    runner = runners.start("drain", "--grace-ms", "4000")
    quick = shard.dispatch("drain", "hold", headers={"gate": str(tmp_path / "quick")})
    slow = shard.dispatch("drain", "hold", headers={"gate": str(tmp_path / "slow")})
    deaf = shard.dispatch("drain", "deaf")
    for one in (quick, slow, deaf):
        shard.wait(one.task_id, "started")
    runner.send_signal(signal.SIGTERM)
    (tmp_path / "quick").touch()
    assert shard.wait(quick.task_id, "succeeded").result == b"held"
    assert shard.wait(slow.task_id, "yielded").checkpoint == b"so far"
    assert shard.wait(deaf.task_id, "unknown").code == "drained"
    assert runner.wait(15) == 0
    refused = shard.exchange(
        candidates=[Candidate(reservation_id="x:0:1", task_id="x", fleet="drain", demands={}, deadline_ms=0)]
    )
    assert [refusal.reason for refusal in refused.refusals] == ["no_runner"]
    assert shard.committed("drain", 0) >= 5 or shard.committed("drain", 1) >= 5


def test_a_second_signal_ends_it_at_once(shard: Shard, runners: Runners, tmp_path: Path) -> None:
    runner = runners.start("drain")
    held = shard.dispatch("drain", "hold", headers={"gate": str(tmp_path / "never")})
    shard.wait(held.task_id, "started")
    runner.send_signal(signal.SIGTERM)
    eventually("it drains", lambda: shard.read() is not None and "runner.draining" in runners.log(0))
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(10) == 130


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_crash_leaves_what_the_next_runner_can_tell(shard: Shard, runners: Runners) -> None:
    """All crash points at once, one fleet each: start, die there, start again, answer."""
    fleets = {point: point.replace("_", "-") for point in CRASH_POINTS}
    dying = {point: runners.start(fleet, CRASHPOINT=f"{point}:1") for point, fleet in fleets.items()}
    sent = {point: shard.dispatch(fleet, "double", b'{"n": 3}') for point, fleet in fleets.items()}
    for point, process in dying.items():
        assert process.wait(60) == -signal.SIGKILL, point
    for fleet in fleets.values():
        runners.start(fleet)
    for point, dispatch in sent.items():
        bounced = shard.wait(dispatch.task_id, "bounced", within_s=90)
        assert bounced.code == "redelivered", point
    seen = {point: shard.kinds(dispatch.task_id) for point, dispatch in sent.items()}
    finished = ["started", "succeeded", "bounced"]
    assert seen == {
        "before_claim": ["bounced"],
        "after_claim": ["bounced"],
        "before_call": ["started", "bounced"],
        "in_call": ["started", "bounced"],
        "after_call": ["started", "bounced"],
        "after_result": finished,
        "before_commit": finished,
    }
    runs = [note.split()[1] for note in runners.notes()]
    ran = [point for point in CRASH_POINTS if sent[point].task_id in runs]
    assert ran == ["before_call", "in_call", "after_call", "after_result", "before_commit"]
    assert len(runs) == len(set(runs)), "a redelivery was run"
