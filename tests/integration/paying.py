"""A deployment of its own on the session's servers, with a real scheduler, real runners and real providers: tasks that pay once, or never.

A task's fleet says everything: `{on_unknown}-{name}`. Its type has the same name; its agent calls the provider of its mode: one that
deduplicates for `retry`, one that does not for `park` and `reconcile`. With a header `gate` the first attempt waits for that file before
the call, and with `then=return` it makes none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import Consumer, TopicPartition

from laxity.infra.demo.provider.ledger import read_ledger
from laxity.infra.demo.provider.line import Line
from laxity.infra.local import Endpoints
from laxity.infra.provision import provision
from laxity.producers.publisher import Publisher
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import run_id_of, task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Outcome, TaskEvent, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings, settings
from laxity.schemas.timing import SystemClock
from laxity.streams.lifecycle import TERMINAL
from laxity.streams.runtime.codes import PARTITION_EOF

CLOCK = SystemClock()
MODES = ("retry", "park", "reconcile")
SHARDS = 2
PROMPT = b'{"model":"llm","text":"pay","context_tokens":800,"generate_tokens":15,"max_tokens":15}'  # 400 ms
RESOURCES = """
[resources.llm]
kind = "rate"
requests_per_minute = 60000
tokens_per_minute = 60000000
[resources.desk]
kind = "slots"
capacity = 1000
"""
AGENTS = """
import asyncio
import os
from pathlib import Path

from laxity.consumers import AgentContext, agent
from laxity.infra.demo import chat
from laxity.infra.demo.chat import Completion, Prompt, ask_effect, complete
from laxity.schemas.timing import SystemClock

FLEET, MODE = os.environ["TEST_FLEET"], os.environ["TEST_MODE"]


def note(ctx: AgentContext, what: str) -> None:
    with open(f"{FLEET}.notes", "a") as notes:
        notes.write(f"{ctx.task_id} {ctx.attempt} {SystemClock().now_ms()} {what}\\n")


async def held(ctx: AgentContext, gate: Path) -> None:
    try:
        while not gate.exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note(ctx, "stopped")
        raise
    note(ctx, "went on")


@agent(FLEET, fleet=FLEET, on_unknown=MODE)
async def pay(ctx: AgentContext, prompt: Prompt) -> Completion:
    note(ctx, "began")
    gate = ctx.headers.get("gate")
    if gate and ctx.attempt == 1:
        await held(ctx, Path(gate))
        if ctx.headers.get("then") == "return":
            return Completion(id="late", text="", tokens_in=0, tokens_out=0)
    # the connection stands before the call: a crash in the call is one with the request at the provider
    await chat._client(asyncio.get_running_loop()).get(f"{chat._base_url()}/livez")
    return await complete(ctx, prompt)


@pay.reconcile
async def ask(ctx: AgentContext, prompt: Prompt) -> Completion:
    return await ask_effect(ctx)
"""


def eventually(what: str, probe: Callable[[], Any], within_s: float = 90.0) -> Any:
    """The probe's first answer that counts."""
    until_ms = CLOCK.monotonic_ms() + round(within_s * 1_000)
    pause = threading.Event()
    while CLOCK.monotonic_ms() < until_ms:
        if found := probe():
            return found
        pause.wait(0.05)
    raise AssertionError(f"not within {within_s} s: {what}")


class Tail:
    """All committed records of a topic; each `read` goes on to what is its end then."""

    def __init__(self, consumer: Consumer, name: str) -> None:
        self._consumer, self._name = consumer, name
        partitions = consumer.list_topics(name, timeout=20).topics[name].partitions
        self._at = dict.fromkeys(partitions, 0)
        self._found: list[Any] = []
        consumer.assign([TopicPartition(name, p, 0) for p in partitions])

    def read(self) -> Sequence[Any]:
        """What there is."""
        ends = {p: self._end(p) for p in self._at}
        until_ms = CLOCK.monotonic_ms() + 30_000
        while any(self._at[p] < end for p, end in ends.items()):
            assert CLOCK.monotonic_ms() < until_ms, f"{self._name} cannot be read to its end"
            for message in self._consumer.consume(1_000, 0.2):
                self._take(message)
        return self._found

    def close(self) -> None:
        self._consumer.close()

    def _end(self, partition: int) -> int:
        place = TopicPartition(self._name, partition)
        return int(self._consumer.get_watermark_offsets(place, timeout=20)[1])

    def _take(self, message: Any) -> None:
        if message.error() is None:
            self._found.append(message)
            self._at[message.partition()] = message.offset() + 1
        else:  # markers have offsets too
            assert message.error().code() == PARTITION_EOF, message.error()
            self._at[message.partition()] = message.offset()


@dataclass(kw_only=True)
class Deployment:
    """Started; `read` refreshes what the topics say."""

    where: Settings
    config: configuration.Config
    folder: Path
    clients: KafkaClients
    codec: Codec
    publisher: Publisher
    redis: redis.Redis
    environment: dict[str, str]
    tails: dict[str, Tail] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)  # URL by mode
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def publish(self, *fleets: str, turn: str = "", **fields: Any) -> None:
        """One task each: `task_of(fleet, turn)`."""
        base: dict[str, Any] = {"payload": PROMPT, "deadline_ms": CLOCK.now_ms() + 3_600_000}
        triggers = [Trigger(**base | {"type": f, "key": turn + f} | fields) for f in fleets]
        self.publisher.publish_many(triggers, "normal")

    def runner(self, fleet: str, *, crash: str = "", **variables: str) -> subprocess.Popen[bytes]:
        """A runner of the fleet, to die at `crash`."""
        mode = fleet.partition("-")[0]
        more = {
            "TEST_FLEET": fleet,
            "TEST_MODE": mode,
            "LAXITY_PROVIDER_URL": self.providers[mode],
            "CRASHPOINT": crash,
        }
        return self.start("laxity.infra.cli", "agents", "paying_agents", name=fleet, **more, **variables)

    def start(self, module: str, *words: str, name: str, **variables: str) -> subprocess.Popen[bytes]:
        """A process of ours; its output in a file of its own."""
        with (self.folder / f"{name}-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.folder,
                env=self.environment | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def notes(self, fleet: str) -> list[tuple[str, int, int, str]]:
        """What its agents noted: task, attempt, time of the wall clock, what."""
        path = self.folder / f"{fleet}.notes"
        lines = path.read_text().splitlines() if path.exists() else []
        parts = [line.split(" ", 3) for line in lines]
        return [(task, int(attempt), int(at), what) for task, attempt, at, what in parts]

    def log(self, name: str) -> str:
        """All that processes of this name have said."""
        return "".join(
            path.read_text("utf-8", "replace") for path in sorted(self.folder.glob(f"{name}-*.log"))
        )

    def messages(self, topic: str) -> Sequence[Any]:
        """All committed records there are, in order within each partition."""
        if topic not in self.tails:
            name = self.where.names.full(topic)
            self.tails[topic] = Tail(self.clients.reader(f"test-{topic}"), name)
        return self.tails[topic].read()

    def letters(self, task_id: str) -> list[dict[str, str]]:
        """Our headers of the task's dead letters, whose value is its trigger as it was sent."""
        found = []
        for message in self.messages("dlq.normal"):
            trigger = self.codec.decode(Trigger, message.value())
            if task_of(trigger.type, trigger.key.removesuffix(trigger.type)) == task_id:
                ours = (h for h in message.headers() if h[0].startswith("laxity.error."))
                found.append({name.removeprefix("laxity.error."): value.decode() for name, value in ours})
        return found

    def outcomes(self, task_id: str) -> list[Outcome]:
        """In order."""
        found = (self.codec.decode(Outcome, m.value()) for m in self.messages("outcomes"))
        return [outcome for outcome in found if outcome.task_id == task_id]

    def events(self) -> list[TaskEvent]:
        """Of the tier that is used here, in order for each task; and of the first, where words about ended tasks are."""
        told = [*self.messages("events.normal"), *self.messages("events.critical")]
        return [self.codec.decode(TaskEvent, message.value()) for message in told]

    def ended(self) -> dict[str, list[TaskEvent]]:
        """Terminal events by task id."""
        found: dict[str, list[TaskEvent]] = {}
        for event in self.events():
            if event.kind == "transitions" and event.state in TERMINAL:
                found.setdefault(event.task_id, []).append(event)
        return found

    def calls(self, mode: str) -> list[Line]:
        """The provider's ledger."""
        path = self.folder / f"provider-{_kind(mode)}.jsonl"
        return list(read_ledger(path)) if path.exists() else []

    def reserved(self) -> int:
        """Reservations that stand in the ledger."""
        names = list(self.redis.scan_iter(match=f"{self.where.prefix}*:reservations", count=1_000))
        return sum(int(self.redis.hlen(name)) for name in names)

    def close(self) -> None:
        """End what was started, by pid."""
        for tail in self.tails.values():
            tail.close()
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def _kind(mode: str) -> str:
    return "dedupe" if mode == "retry" else "no-dedupe"


@contextmanager
def deployment(
    stack: Endpoints, folder: Path, fleets: Iterable[str], more: str = "", **variables: str
) -> Iterator[Deployment]:
    """Topics, a scheduler and both providers; no runner yet."""
    text = RESOURCES + "".join(_section(fleet) for fleet in fleets) + more
    (folder / "laxity.toml").write_text(text)
    (folder / "paying_agents.py").write_text(AGENTS)
    prefix = f"pay{uuid.uuid4().hex[:6]}."
    where = settings(kafka=stack.kafka, registry_url=stack.registry, redis_url=stack.redis, prefix=prefix)
    config = configuration.parse(text)
    provision(where, config, shards=SHARDS)
    environment = (
        os.environ
        | stack.environment()
        | {"LAXITY_PREFIX": prefix, "LAXITY_CONFIG": "laxity.toml"}
        | variables
    )
    with (
        Publisher.connect(where, config) as publisher,
        redis.Redis.from_url(where.redis_url) as client,
    ):
        made = Deployment(
            where=where,
            config=config,
            folder=folder,
            clients=KafkaClients(where, role="test"),
            codec=open_codec(where),
            publisher=publisher,
            redis=client,
            environment=environment,
        )
        yield from _running(made)


def _running(made: Deployment) -> Iterator[Deployment]:
    try:
        made.start(
            "laxity.streams.runtime", name="scheduler", LAXITY_SCHEDULER_STATE_DIR=str(made.folder / "state")
        )
        urls = {kind: _provider(made, kind) for kind in ("dedupe", "no-dedupe")}
        made.providers = {mode: eventually(f"provider {mode}", urls[_kind(mode)]) for mode in MODES}
        yield made
    finally:
        made.close()


def _section(fleet: str) -> str:
    mode = fleet.partition("-")[0]
    return (
        f'[fleets.{fleet}]\npartitions = 2\n[types.{fleet}]\nfleet = "{fleet}"\non_unknown = "{mode}"\n'
        f"max_attempts = 4\nbackoff_ms = 50\ndemands = {{ llm = 1000, desk = 1 }}\n"
    )


def _provider(made: Deployment, kind: str) -> Callable[[], str]:
    """Its address, once it says so."""
    words = ("--ledger", f"provider-{kind}.jsonl", "--model", "llm:1000000:1000000000", "--inject-500", "0")
    made.start("laxity.infra.cli", "provider", f"--{kind}", *words, name=f"provider-{kind}")

    def address() -> str:
        found = re.search(r"listens on (http://\S+?),", made.log(f"provider-{kind}"))
        return found[1] if found else ""

    return address


def task_of(fleet: str, turn: str = "") -> str:
    """The id of the task that `publish` makes for a fleet."""
    key = turn + fleet
    return task_id_of("default", run_id_of("default", "", key), key)


def started(outcomes: Sequence[Outcome], dispatch_no: int) -> bool:
    """Whether a dispatch has a durable start."""
    return any(o.kind == "started" and o.dispatch_no == dispatch_no for o in outcomes)
