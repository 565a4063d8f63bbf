"""Shards and runners in one process on one real Redis, with Kafka played: to see what the ledger's faults do to what runs.

A shard is the real core in the real cycle over a real `LedgerLine`; a runner is the real `Leases` with two real connections. Only the
transactions are in memory, and an agent's work is a wait. Everybody writes down when work began and ended by their own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from laxity.consumers.leases import Lease, Leases
from laxity.schemas import config as configuration
from laxity.schemas.identity import shard_of
from laxity.schemas.records import Dispatch, InputRange, Journal, Outcome, TaskEvent, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.timing import Millis, SystemClock
from laxity.streams.effects import Record
from laxity.streams.ledger.limits import Limits
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.wakes import ANY, Wakes
from laxity.streams.ledger.wire import TIMEOUT_S
from laxity.streams.runtime.cycle import Cycle, World
from laxity.streams.runtime.inbox import Taken
from laxity.streams.runtime.ledger_line import LedgerLine
from laxity.streams.runtime.meter import Known, ShardMeter
from laxity.streams.runtime.metrics import Metrics
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.stores import Stores
from laxity.streams.runtime.transactions import Message
from laxity.streams.scheduler import Scheduler
from laxity.streams.state.memory import MemoryStore

PREFIX = "town."
CODEC = Codec.local()
CLOCK = SystemClock()
WAIT_MS_MAX = 250  # as in the host: an idle shard looks at the ledger this often
TTL_MS = 6_000  # runners stop 3 s before its end
CAPACITY: Mapping[str, int] = {"gpu": 4, "account:a": 1, "account:b": 1}
CONFIG = configuration.parse(
    f"""
[resources.gpu]
kind = "slots"
capacity = {CAPACITY["gpu"]}
[resources.account]
kind = "keyed"
[types.work]
on_unknown = "retry"
max_attempts = 50
backoff_ms = 10
backoff_ms_max = 50
"""
)
NOTHING = Taken(records=(), ranges=())


@dataclass(slots=True)
class Run:
    """An agent at work. `ended_ms` None: still."""

    task_id: str
    dispatch_no: int
    resources: Sequence[str]
    began_ms: Millis
    ended_ms: Millis | None = None


class Diary:
    """Who ran when, by the runners' own clocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.runs: list[Run] = []

    def begin(self, run: Run) -> Run:
        """Written before the work begins."""
        with self._lock:
            self.runs.append(run)
        return run

    def begun_after(self, at_ms: Millis) -> list[Run]:
        """In order."""
        with self._lock:
            return [run for run in self.runs if run.began_ms >= at_ms]

    def oversold(self) -> list[str]:
        """Moments at which more ran than a resource has room for."""
        found = []
        with self._lock:
            for resource, capacity in CAPACITY.items():
                mine = [run for run in self.runs if resource in run.resources]
                steps = [(run.began_ms, 1, run) for run in mine]
                steps += [(run.ended_ms, 0, run) for run in mine if run.ended_ms is not None]
                running: list[Run] = []
                for at_ms, begins, run in sorted(steps, key=lambda step: step[:2]):
                    running = [*running, run] if begins else [other for other in running if other is not run]
                    if len(running) > capacity:
                        found.append(
                            f"{resource} at {at_ms}: {[(r.task_id[:6], r.dispatch_no) for r in running]}"
                        )
        return found


class Played:
    """Transactions that always commit: what was dispatched goes to the runners, events and refusals are kept."""

    def __init__(self, town: Town, shard: int) -> None:
        self._town, self._shard, self._ends = town, shard, dict[str, int]()

    def commit(
        self, messages: Sequence[Message], _offsets: Any, _metadata: Any, watched: Sequence[str] = ()
    ) -> dict[str, int]:
        for message in messages:
            self._ends[message.topic] = self._ends.get(message.topic, 0) + 1
            topic = message.topic.removeprefix(PREFIX)
            if topic.startswith("dispatch."):
                self._town.dispatched(CODEC.decode(Dispatch, message.value))
            elif topic.startswith("events."):
                self._town.told(CODEC.decode(TaskEvent, message.value))
            elif topic == "journal":
                entry = CODEC.decode(Journal, message.value)
                self._town.reasons |= {(CLOCK.monotonic_ms(), refusal.reason) for refusal in entry.refusals}
        return {name: self._ends[name] for name in watched if name in self._ends}


class Shard(threading.Thread):
    """Batches as the host runs them: when there is input, when the core is due, and a look at the ledger in between."""

    def __init__(self, town: Town, number: int, url: str) -> None:
        super().__init__(name=f"shard-{number}", daemon=True)
        self._number, self._inputs, self._ends = number, list[Record](), dict[str, int]()
        self._changed = threading.Condition()
        self._ledger = RedisLedger(
            url, limits=Limits.of(CONFIG), shards=town.shards, prefix=PREFIX, ttl_ms=TTL_MS
        )
        self.line = LedgerLine(self._ledger, CLOCK)
        self._stopping, self._heard = False, set[str]()
        self.failure: BaseException | None = None
        state, keys = MemoryStore(), MemoryStore()
        self.core = Scheduler(
            shard=number,
            shards=town.shards,
            config=CONFIG,
            codec=CODEC,
            store=state,
            keys=keys,
            prefix=PREFIX,
        )
        world = World(
            shard=number,
            stores=Stores(state=state, keys=keys, topic_ids={"state": "s", "keys": "k"}),
            transactions=Played(town, number),
            outbox=Outbox(prefix=PREFIX, shard=number, codec=CODEC),
            line=self.line,
            group_metadata=lambda: None,
            outcomes_end=lambda: self._ends.get("outcomes", 0),
            clock=CLOCK,
            meter=ShardMeter(number, Metrics(), Known(types=(), resources=()), CLOCK),
        )
        self._cycle = Cycle(self.core, world)

    def put(self, topic: str, value: Any, key: str) -> None:
        """A record for this shard."""
        with self._changed:
            offset = self._ends.get(topic, 0)
            self._ends[topic] = offset + 1
            self._inputs.append(
                Record(
                    topic=topic,
                    partition=self._number,
                    offset=offset,
                    timestamp_ms=CLOCK.now_ms(),
                    key=key.encode(),
                    value=CODEC.encode(value),
                )
            )
            self._changed.notify()

    def hear(self, resource: str) -> None:
        """The ledger has room there."""
        with self._changed:
            self._heard.add(resource)
            self._changed.notify()

    def run(self) -> None:
        try:
            self._cycle.take_over()
            self._cycle.reconcile()
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.failure = error
            raise

    def _turn(self) -> None:
        wake_ms = self.core.next_wakeup()
        wait_ms = WAIT_MS_MAX if wake_ms is None else min(WAIT_MS_MAX, wake_ms - CLOCK.now_ms())
        pending = self._cycle.pending
        with self._changed:
            if not (self._inputs or self._heard or pending.lapsed) and wait_ms > 0:
                self._changed.wait(wait_ms / 1_000)
            records, self._inputs = self._inputs[:200], self._inputs[200:]
            heard, self._heard = self._heard, set()
        pending.woken |= {name for name in heard if self.core.waits_for(name)}
        due = wake_ms is not None and wake_ms <= CLOCK.now_ms()
        if records or due or pending.woken or pending.lapsed or self._cycle.look_at_ledger():
            self._cycle.run(Taken(records=records, ranges=self._ranges(records)))

    def _ranges(self, records: Sequence[Record]) -> list[InputRange]:
        found = []
        for topic in dict.fromkeys(r.topic for r in records):
            offsets = [r.offset for r in records if r.topic == topic]
            first, end = min(offsets), max(offsets) + 1
            found.append(
                InputRange(topic=topic, partition=self._number, first=first, next=end, count=len(offsets))
            )
        return found

    def die(self) -> None:
        """Nothing more is heard of it."""
        self._stopping = True
        with self._changed:
            self._changed.notify()
        self.join(20)
        self.line.close()
        self._ledger.close()


class Runner(threading.Thread):
    """Claims, holds for a while, releases; registers and renews as the real one does."""

    def __init__(self, town: Town, name: str, url: str, *, work_ms: Millis, credit: int) -> None:
        super().__init__(name=name, daemon=True)
        self._town, self._work_ms, self._credit = town, work_ms, credit
        self._ledgers = [
            RedisLedger(
                url,
                limits=Limits.of(CONFIG),
                shards=town.shards,
                prefix=PREFIX,
                ttl_ms=TTL_MS,
                timeout_s=TIMEOUT_S,
            )
            for _ in range(2)
        ]
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._live())
        for ledger in self._ledgers:
            ledger.close()

    def take(self, order: Dispatch) -> None:
        """A dispatch was read."""

        def begin() -> None:
            task = self._loop.create_task(self._attempt(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    def stop(self) -> None:
        """Begin nothing more, wait for what runs."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self.join(30)

    async def _live(self) -> None:
        async def sleep(ms: int) -> None:
            await asyncio.sleep(ms / 1_000)

        self._leases = Leases(
            self._ledgers[0],
            beats=self._ledgers[1],
            runner=self.name,
            clock=CLOCK,
            sleep=sleep,
            ttl_ms=TTL_MS,
        )
        beats = [self._loop.create_task(beat) for beat in (self._register(), self._renew(), self._sweep())]
        await self._stopped.wait()
        for beat in beats:
            beat.cancel()
        await asyncio.gather(*self._tasks, *beats, return_exceptions=True)

    async def _register(self) -> None:
        while True:
            await self._leases.register(fleet="default", partition=0, credit=self._credit, ttl_ms=3_000)
            await asyncio.sleep(1)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._leases.renew_every_ms / 1_000)
            await self._leases.renew()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self._leases.sweep()

    async def _attempt(self, order: Dispatch) -> None:
        asked = f"{order.task_id}:{order.generation}:{order.dispatch_no}"
        lease = await self._leases.claim(asked, give_up_ms=CLOCK.monotonic_ms() + TTL_MS)
        if isinstance(lease, str):
            self._town.report(order, "bounced", code="fenced")
            return
        self._town.report(order, "started")
        ended = await self._work(order, lease)
        self._leases.forget(lease)
        if ended is None:
            self._town.report(order, "succeeded", result=b"{}")
        else:
            self._town.report(order, "failed", code=ended, retryable=True)
        await self._leases.release(lease, {})

    async def _work(self, order: Dispatch, lease: Lease) -> str | None:
        halted = asyncio.Event()
        lease.on_stop = halted.set
        if lease.stop is not None:
            return str(lease.stop)
        resources = [name for name in order.granted if name in CAPACITY]
        run = self._town.diary.begin(Run(order.task_id, order.dispatch_no, resources, CLOCK.monotonic_ms()))
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(halted.wait(), self._work_ms / 1_000)
        finally:
            run.ended_ms = CLOCK.monotonic_ms()
        return str(lease.stop) if lease.stop is not None else None


@dataclass
class Town:
    """All of it."""

    shards: int
    diary: Diary = field(default_factory=Diary)
    shard: dict[int, Shard] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)  # task -> terminal state
    reasons: set[tuple[Millis, str]] = field(default_factory=set)  # when, why: refusals in the journal
    submitted: int = 0

    def dispatched(self, order: Dispatch) -> None:
        """To its runner, if that is still there."""
        if order.runner in self.runners:
            self.runners[order.runner].take(order)

    def told(self, event: TaskEvent) -> None:
        """Ends are kept."""
        if event.state in {"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"}:
            self.ended[event.task_id] = event.state

    def report(self, order: Dispatch, kind: str, **fields: Any) -> None:
        """An outcome, to the shard of the task."""
        outcome = Outcome(
            kind=kind,
            task_id=order.task_id,
            generation=order.generation,
            dispatch_no=order.dispatch_no,
            attempt=order.attempt,
            runner=order.runner,
            **fields,
        )
        self.shard[order.shard].put("outcomes", outcome, order.task_id)

    def submit(self, count: int) -> None:
        """Work of all kinds, to the shards in turn."""
        for _ in range(count):
            number = self.submitted = self.submitted + 1
            run_id = f"run-{number}"
            demands = {"gpu": 1} if number % 4 else {f"account:{'ab'[number % 8 // 4]}": 1}
            trigger = Trigger(type="work", run_id=run_id, key="k", payload=b"{}", demands=demands)
            self.shard[shard_of(run_id, self.shards)].put("triggers.normal", trigger, run_id)

    def hear(self, resource: str) -> None:
        """From the ledger, to all shards of the process."""
        if resource != ANY:
            for shard in list(self.shard.values()):
                shard.hear(resource)

    def why_since(self, at_ms: Millis) -> set[str]:
        """Reasons of refusals from then on."""
        return {reason for told_ms, reason in list(self.reasons) if told_ms >= at_ms}

    def failures(self) -> list[BaseException]:
        """Of shards: there are none in a test that passes."""
        return [shard.failure for shard in self.shard.values() if shard.failure is not None]


@contextmanager
def town(url: str, *, shards: int = 2, runners: int = 2, work_ms: Millis = 150) -> Iterator[Town]:
    """Live; everything has ended on return."""
    made = Town(shards)
    with ExitStack() as stack:
        for number in range(runners):
            runner = Runner(made, f"r{number}", url, work_ms=work_ms, credit=8)
            made.runners[runner.name] = runner
            stack.callback(runner.stop)
        for number in range(shards):
            made.shard[number] = Shard(made, number, url)
            stack.callback(made.shard[number].die)
        wakes, stop = Wakes(url, prefix=PREFIX), threading.Event()
        listener = threading.Thread(target=wakes.run, args=(made.hear, stop), name="wakes", daemon=True)
        stack.callback(wakes.close)
        stack.callback(listener.join, 10)
        stack.callback(stop.set)
        for thread in (*made.runners.values(), *made.shard.values(), listener):
            thread.start()
        yield made
