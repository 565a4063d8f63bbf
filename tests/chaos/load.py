"""The load of a chaos run: tasks of every kind, published by several clients that repeat and reorder, each operation logged.

`jobs` draws them from a seed, nothing else. `Load` sends them at their times and logs each operation to a file before it begins and when it ends:
what was not acknowledged may have arrived, so it is `info` and legal both ways.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Any, Final, Self

from chaos.history import Op, OpLog
from chaos.world import World
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from laxity.infra.inspect.orders import cancel
from laxity.producers.publisher import Published, Publisher, PublishFailed, trigger_of
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import run_id_of, shard_of, task_id_of
from laxity.schemas.records import Trigger
from laxity.schemas.timing import Clock
from laxity.schemas.topics import TIERS

MODEL: Final = "llm"
PRODUCERS: Final = 3
TENANTS: Final = ("acme", "globex", "initech")
ACCOUNTS: Final = 60  # keyed slots: few enough that two tasks of one account meet
DESKS: Final = 12  # a dead runner's slots stand for a lease's time
REQUESTS_PER_MINUTE: Final = (
    2_400  # some four times the load, so that a backlog melts, and a burst is refused
)
CONTEXT: Final = 200  # LLM tokens of a prompt
GENERATED_MAX: Final = 40  # at 20 ms each a call takes up to 800 ms
MAX_TOKENS: Final = 64
SPREAD_MS: Final = 3_000  # between the copies of one trigger
TIER_WEIGHTS: Final = (10, 20, 40, 20, 10)
STEPS: Final = (36, 44)  # of a long task: 18 to 22 s, more than one lease
LOOK_MS: Final = 200  # how long the sender sleeps at most before it looks whether it is to stop
POISON: Final = (b"", b"\x00", b"junk", b"\x00\x00\x00\x00\x01", bytes(range(256)), b"\x00\xff\xff\xff\xff{}")


def config_text(*, slots: int = DESKS) -> str:
    """laxity.toml of a chaos run: a rate, slots, keyed slots, and the fleet's own."""
    return f"""
[resources.{MODEL}]
kind = "rate"
requests_per_minute = {REQUESTS_PER_MINUTE}
tokens_per_minute = {REQUESTS_PER_MINUTE * (CONTEXT + MAX_TOKENS)}
[resources.desk]
kind = "slots"
capacity = {slots}
[resources.account]
kind = "keyed"
capacity = 1
[fleets.default]
partitions = 12
[types."chaos.call"]
max_attempts = 12
backoff_ms = 100
backoff_ms_max = 1000
[types."chaos.wrong"]
[types."chaos.long"]
max_attempts = 20
backoff_ms = 100
backoff_ms_max = 1000
"""


def provider_args(*, seed: int, deduplicates: bool) -> tuple[str, ...]:
    """Of a provider whose limits are those of the configuration."""
    limits = f"{MODEL}:{REQUESTS_PER_MINUTE}:{REQUESTS_PER_MINUTE * (CONTEXT + MAX_TOKENS)}"
    dedupe = "--dedupe" if deduplicates else "--no-dedupe"
    return ("--model", limits, "--seed", str(seed), "--inject-500", "0.01", dedupe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to send. `at_ms` from the beginning; `copies`: (delay, producer) of each sending; `deadline_ms` from `at_ms`."""

    index: int
    at_ms: int
    tier: str
    trigger: Trigger
    deadline_ms: int
    copies: Sequence[tuple[int, int]]
    conflict: bool = False  # one more copy, with another payload
    cancel_ms: int = -1  # from at_ms; -1: never
    poison: bytes | None = None  # these bytes instead


def jobs(*, seed: int, count: int, span_ms: int, deduplicates: bool, name: str = "") -> list[Job]:
    """`count` tasks, evenly over the span, and some records that become none. Pure."""
    random = Random(f"load {seed} {name}")
    return [
        _job(random, index, index * span_ms // count, name or str(seed), deduplicates=deduplicates)
        for index in range(count)
    ]


EVERYTHING: Final[Mapping[str, Callable[[Job], bool]]] = {
    "poison": lambda job: job.poison is not None,
    "conflict": lambda job: job.conflict,
    "cancelled": lambda job: job.cancel_ms >= 0,
    "firm": lambda job: job.trigger.firm,
    "without a key": lambda job: not job.trigger.key,
    "of a run": lambda job: bool(job.trigger.run_id),
    "copied": lambda job: len(job.copies) > 1,
    "wrong": lambda job: job.trigger.type == "chaos.wrong",
    "long": lambda job: job.trigger.type == "chaos.long",
    "hopeless": lambda job: job.trigger.max_attempts > 0,
    "with a slot": lambda job: "desk" in job.trigger.demands,
    "with a key's slot": lambda job: any(name.startswith("account:") for name in job.trigger.demands),
    "of the most urgent tier": lambda job: job.tier == TIERS[0],
    "of the least urgent tier": lambda job: job.tier == TIERS[-1],
}
"""What a load of some size has, for a test that it does."""


def _job(random: Random, index: int, at_ms: int, name: str, *, deduplicates: bool) -> Job:
    tier = random.choices(TIERS, TIER_WEIGHTS)[0]
    job = Job(
        index=index,
        at_ms=at_ms,
        tier=tier,
        trigger=_trigger(random, index, name, deduplicates=deduplicates),
        deadline_ms=random.randint(60_000, 300_000),
        copies=_copies(random),
    )
    draw = random.random()
    if draw < 0.02:
        return replace(job, poison=random.choice(POISON))
    if draw < 0.05:
        return replace(job, conflict=True)
    if draw < 0.08:
        return replace(job, cancel_ms=random.choice((0, 200, 1_000, 4_000)))
    if draw < 0.20:  # late is worthless: some cannot be met
        trigger = replace(job.trigger, firm=True, estimate_ms=random.choice((0, 500)))
        return replace(job, trigger=trigger, deadline_ms=random.randint(1_000, 30_000))
    if draw < 0.25:  # no key: every sending is a task of its own
        return replace(job, trigger=replace(job.trigger, key=""), copies=job.copies[:1])
    if draw < 0.30:
        return replace(job, trigger=replace(job.trigger, run_id=f"run-{name}-{index % 50}"))
    return job


def _copies(random: Random) -> list[tuple[int, int]]:
    count = random.choices((1, 2, 3), (60, 28, 12))[0]
    return [(random.randrange(SPREAD_MS) if n else 0, random.randrange(PRODUCERS)) for n in range(count)]


def _trigger(random: Random, index: int, name: str, *, deduplicates: bool) -> Trigger:
    kind = random.choices(("call", "wrong", "hopeless", "long"), (940, 35, 15, 10))[0]
    payload = {
        "model": MODEL,
        "text": f"task {index} of {name}",
        "context_tokens": CONTEXT,
        "generate_tokens": random.randint(2, GENERATED_MAX),
        "max_tokens": MAX_TOKENS,
        "failures": 99 if kind == "hopeless" else random.choices((0, 1, 2), (90, 7, 3))[0],
        "steps": random.randint(*STEPS) if kind == "long" else 0,
    }
    demands = {MODEL: CONTEXT + MAX_TOKENS}
    if random.random() < 0.4:
        demands["desk"] = 1
    if random.random() < 0.4:
        demands[f"account:{random.randrange(ACCOUNTS)}"] = 1
    unknown = random.choice(("retry", "reconcile")) if deduplicates and kind == "call" else "retry"
    return trigger_of(
        f"chaos.{'call' if kind == 'hopeless' else kind}",
        payload,
        tenant=random.choice(TENANTS),
        key=f"{name}-{index}",
        demands=demands,
        on_unknown=unknown if deduplicates else "park",
        max_attempts=3 if kind == "hopeless" else 0,
    )


Action = Callable[[], None]


@dataclass(slots=True)
class Load:
    """Sends jobs from a thread of its own. A context manager; leaving waits until every operation has ended."""

    world: World
    jobs: Sequence[Job]
    log: Path
    least: int = 0  # jobs that are sent in any case
    producers: int = PRODUCERS
    counts: Counter[str] = field(default_factory=Counter)
    late_ms: int = 0  # the most that a sending was behind its time
    done: threading.Event = field(default_factory=threading.Event)
    _failure: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _pause: threading.Event = field(default_factory=threading.Event)  # never set
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first job's time is now."""
        self._thread = threading.Thread(target=self._guarded, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more than `least`."""
        self._stop.set()

    def join(self) -> None:
        """Until every operation has an end. Raises what went wrong."""
        assert self._thread is not None
        self._thread.join()
        if self._failure:
            raise self._failure[0]

    def _guarded(self) -> None:
        try:
            with _Clients(self.world, self.log, self.counts, self.producers) as clients:
                self._run(clients)
        except BaseException as error:  # noqa: BLE001 - `join` raises it
            self._failure.append(error)
        finally:
            self.done.set()

    def _run(self, clients: _Clients) -> None:
        clock = self.world.clock
        began_ms, utc_ms = clock.monotonic_ms(), clock.now_ms()
        for due_ms, index, action in sorted(self._actions(clients, utc_ms), key=lambda entry: entry[0]):
            while (wait_ms := began_ms + due_ms - clock.monotonic_ms()) > 0 and not self._is_over(index):
                self._pause.wait(min(wait_ms, LOOK_MS) / 1_000)
            if self._is_over(index):
                continue
            self.late_ms = max(self.late_ms, -wait_ms)
            action()

    def _is_over(self, index: int) -> bool:
        return self._stop.is_set() and index >= self.least

    def _actions(self, clients: _Clients, utc_ms: int) -> list[tuple[int, int, Action]]:
        return [
            (due_ms, job.index, action)
            for job in self.jobs
            for due_ms, action in _steps(clients, job, utc_ms)
        ]


def _steps(clients: _Clients, job: Job, utc_ms: int) -> list[tuple[int, Action]]:
    """When, and what is sent."""
    if job.poison is not None:
        value, tier, number = job.poison, job.tier, job.index
        return [(job.at_ms, lambda: clients.poison(value, tier, number))]
    trigger = replace(job.trigger, deadline_ms=utc_ms + job.at_ms + job.deadline_ms)
    steps: list[tuple[int, Action]] = [
        (job.at_ms + delay_ms, partial(clients.publish, trigger, job.tier, producer))
        for delay_ms, producer in job.copies
    ]
    if job.conflict:
        other = replace(trigger, payload=trigger.payload + b" ")
        steps.append((job.at_ms + SPREAD_MS // 2, lambda: clients.publish(other, job.tier, 0)))
    if job.cancel_ms >= 0:
        steps.append((job.at_ms + job.cancel_ms, lambda: clients.cancel(trigger)))
    return steps


class _Clients:
    """Publishers and a raw producer, and the log of what they were told."""

    def __init__(self, world: World, log: Path, counts: Counter[str], producers: int) -> None:
        self._world = world
        self._clock: Clock = world.clock
        self._log = OpLog(log)
        self._counts = counts
        self._numbers = itertools.count(1 + log.stat().st_size)  # a second load goes on in the same file
        settings, config = world.settings, world.config
        self._publishers = [Publisher.connect(settings, config) for _ in range(producers)]
        clients = world.clients("load")
        self._names = settings.names
        self._codec = open_codec(settings, clients=clients)
        self._raw: Producer = clients.producer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for publisher in self._publishers:
            publisher.flush(40)
        self._raw.flush(40)
        for publisher in self._publishers:
            publisher.close()
        self._log.close()

    def publish(self, trigger: Trigger, tier: str, producer: int) -> None:
        """As a client of ours."""
        publisher = self._publishers[producer % len(self._publishers)]
        headers = [("chaos", str(producer).encode())]
        prepared = publisher.prepare(trigger, tier, headers)
        op = self._begin("trigger", prepared.value)
        try:
            future = publisher.send(trigger, tier, headers)
        except PublishFailed as error:  # never given to the client library
            self._end(op, "fail", text=str(error))
            return
        future.add_done_callback(lambda found: self._published(op, found))

    def _published(self, op: Op, found: Future[Published]) -> None:
        error = found.exception()
        if error is not None:
            self._end(op, "info", text=str(error))
            return
        at = found.result()
        place = f"{self._names.short(at.topic)}/{at.partition}/{at.offset}"
        self._end(op, "ok", task_id=at.task_id, place=place)

    def poison(self, value: bytes, tier: str, number: int) -> None:
        """Bytes that are no trigger, under a key and headers that are no text."""
        op = self._begin("poison", value)

        def told(error: KafkaError | None, message: Message[Any, Any]) -> None:
            if error is not None:
                self._end(op, "info", text=error.str())
            else:
                self._end(op, "ok", place=f"triggers.{tier}/{message.partition()}/{message.offset()}")

        topic, headers = self._names.full(f"triggers.{tier}"), [("h", b"\xfe\x00"), ("h", None)]
        self._produce(
            op, topic, value, b"\xff" + str(number).encode(), number % self._world.plan.shards, told, headers
        )

    def cancel(self, trigger: Trigger) -> None:
        """An operator's order to stop the task, whether it is there already or not."""
        if not trigger.key:
            return
        run_id = run_id_of(trigger.tenant, trigger.run_id, trigger.key)
        task_id = task_id_of(trigger.tenant, run_id, trigger.key)
        command = cancel(task_id, reason="chaos", now_ms=self._clock.now_ms())
        op = self._begin("cancel", command.command_id.encode(), task_id=task_id)

        def told(error: KafkaError | None, _: Message[Any, Any]) -> None:
            self._end(
                op, "ok" if error is None else "info", task_id=task_id, text=error.str() if error else ""
            )

        shard = shard_of(run_id, self._world.plan.shards)
        self._produce(
            op,
            self._names.full("control"),
            self._codec.encode(command),
            command.command_id.encode(),
            shard,
            told,
            [],
        )

    def _produce(
        self,
        op: Op,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        told: Callable[[KafkaError | None, Message[Any, Any]], None],
        headers: list[tuple[str, bytes | None]],
    ) -> None:
        try:
            self._raw.produce(topic, value, key, partition=partition, on_delivery=told, headers=headers)  # type: ignore[arg-type]
        except (BufferError, KafkaException) as error:
            self._end(op, "fail", text=str(error))
        self._raw.poll(0)

    def _begin(self, what: str, value: bytes, *, task_id: str = "") -> Op:
        op = Op(
            number=next(self._numbers),
            step="invoke",
            what=what,
            at_ms=self._clock.now_ms(),
            task_id=task_id,
            digest=hashlib.sha256(value).hexdigest(),
        )
        self._log.write(op)
        self._counts[f"{what}.invoke"] += 1
        return op

    def _end(self, op: Op, step: str, *, task_id: str = "", place: str = "", text: str = "") -> None:
        now_ms = self._clock.now_ms()
        self._log.write(
            replace(op, step=step, at_ms=now_ms, task_id=task_id or op.task_id, place=place, text=text)
        )
        self._counts[f"{op.what}.{step}"] += 1
