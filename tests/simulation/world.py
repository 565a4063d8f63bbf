"""A small deployment in memory under a random nemesis: one seed, one history."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - the seed is the argument

from laxity.schemas import config as configuration
from laxity.schemas.identity import digest_of, run_id_of
from laxity.schemas.records import Command, Dispatch, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.timing import ManualClock
from laxity.schemas.topics import TIERS
from laxity.streams.ledger.limits import LEASE_TTL_MS, Limits
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.runtime.sources import INPUTS
from laxity.streams.runtime.transactions import FencedError
from laxity.streams.simulator.host import STEPS, Crash, Disk, ShardHost, World
from laxity.streams.simulator.runner import RUNNER_STEPS, Provider, SimRunner
from laxity.streams.testing import log_for

CONFIG = """
policy = "edf"
[resources.llm]
kind = "rate"
requests_per_minute = 600
tokens_per_minute = 60000
[resources.browser]
kind = "slots"
capacity = 2
[resources.account]
kind = "keyed"
[fleets.default]
partitions = 4
[types.work]
max_attempts = 3
backoff_ms = 200
"""
SHARDS = 2
RUNNERS = 2
CLOCK_STEP_MS = 2_000  # a lease ends 3 s after its holder has fenced itself


@dataclass
class Fuse:
    """Crashes at a chosen step, once; counts what was reached."""

    armed: str = ""
    reached: dict[str, int] = field(default_factory=dict)

    def __call__(self, step: str) -> None:
        self.reached[step] = self.reached.get(step, 0) + 1
        if step == self.armed:
            self.armed = ""
            raise Crash(step)


class Deployment:
    """Shards, runners, a ledger, a provider, and what was published."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.config = configuration.parse(
            CONFIG + f'\non_unknown = "{self.random.choice(["retry", "park"])}"\n'
        )
        self.codec = Codec.local()
        self.log = log_for(self.config, SHARDS)
        self.world = World(
            log=self.log, clock=self.clock, config=self.config, codec=self.codec, shards=SHARDS
        )
        self.ledger = MemoryLedger(limits=Limits.of(self.config), shards=SHARDS, clock=self.clock)
        deduplicates = self.config.type_of("work").on_unknown == "retry"
        self.provider = Provider(dedupe=deduplicates)
        self.disks = [Disk() for _ in range(SHARDS)]
        self.copies = [Disk() for _ in range(SHARDS)]
        self.stepped = False  # the wall clock is ahead of where it should be
        self.fuse = Fuse()
        self.shards: list[ShardHost | None] = [None] * SHARDS
        self.sleepers: list[SimRunner] = []
        self.runners: list[SimRunner | None] = [None] * RUNNERS
        self.births = 0
        self.published = 0
        self.keys: list[str] = []
        self.resets = 0
        self.crashed: set[int] = set()  # shards whose stores are as a crash left them
        self.calm = False
        self.ledger.listen(self._woken)

    def _woken(self, name: str) -> None:
        for shard in self.shards:
            if shard is not None and self.random.random() < 0.8:  # pub/sub loses messages
                shard.hear(name)

    # what may happen

    def publish(self) -> None:
        pick, now_ms = self.random.random(), self.clock.now_ms()
        tier = self.random.choice(TIERS)
        self.published += 1
        if pick < 0.04:
            junk = self.random.randbytes(self.random.randrange(12))
            self.log.append(
                (f"triggers.{tier}", self.random.randrange(SHARDS), b"junk", junk, (("h", b"1"),)), now_ms
            )
            return
        if pick < 0.2 and self.keys:
            key, payload = self.random.choice(self.keys), b"{}" if pick < 0.17 else b"[]"
        else:
            key, payload = ("" if pick < 0.25 else f"key-{self.published}"), b"{}"
        if key and payload == b"{}":
            self.keys.append(key)
        run = run_id_of("default", "", key).encode()
        partition = self.random.randrange(SHARDS) if pick > 0.9 or not key else None
        self.log.append(
            (f"triggers.{tier}", partition, run, self.codec.encode(self._trigger(key, payload)), ()), now_ms
        )

    def _trigger(self, key: str, payload: bytes) -> Trigger:
        r, now_ms = self.random, self.clock.now_ms()
        demands = {}
        if r.random() < 0.6:
            demands["llm"] = r.choice([0, 100, 5_000, 20_000])
        if r.random() < 0.3:
            demands["browser"] = r.choice([1, 1, 2, 3])
        if r.random() < 0.3:
            demands[f"account:{r.choice('ab')}"] = 1
        return Trigger(
            type="work",
            key=key,
            payload=payload,
            demands=demands,
            firm=r.random() < 0.3,
            deadline_ms=r.choice([0, now_ms + r.randrange(100, 60_000)]),
            estimate_ms=r.choice([0, 500]),
            not_before_ms=r.choice([0, 0, 0, now_ms + r.randrange(3_000)]),
        )

    def command(self) -> None:
        """Cancel something that may live anywhere."""
        if self.keys:
            key = self.random.choice(self.keys)
            run = run_id_of("default", "", key)
            command = Command(kind="cancel", command_id="c", task_id=digest_of("default", run, key))
            self.log.append(
                ("control", None, run.encode(), self.codec.encode(command), ()), self.clock.now_ms()
            )

    def run_shard(self, index: int) -> None:
        try:
            shard = self.shards[index]
            if shard is None:
                shard = ShardHost(self.world, index, self.disks[index], self.ledger, reach=self.fuse)
                shard.start()
                self.shards[index] = shard
            elif shard.due():
                late = [topic for topic in INPUTS if self.random.random() < 0.1 and not self.calm]
                shard.run(most=self.random.choice([1, 3, 500]), late=late)
        except (Crash, FencedError):
            self.shards[index] = None
            self.crashed.add(index)

    def tick(self, index: int) -> None:
        try:
            if self.runners[index] is None:
                self.births += 1
                self.runners[index] = SimRunner(
                    f"runner-{index}-{self.births}", self.world, self.ledger, self.provider, self.clock,
                    partition=index, slots=3, verdict=self._verdict, reach=self.fuse,
                )  # fmt: skip
            runner = self.runners[index]
            assert runner is not None
            runner.tick()
        except Crash:
            self.runners[index] = None

    def _verdict(self, _dispatch: Dispatch) -> tuple[str, str, bool]:
        pick = self.random.random()
        if pick < 0.75:
            return "succeeded", "", False
        return ("failed", "boom", pick < 0.95) if pick < 0.98 else ("failed", "poison", False)

    def sleep(self) -> None:
        """A runner is thought dead and is not: it goes on after its successor began."""
        index = self.random.randrange(RUNNERS)
        old, self.runners[index] = self.runners[index], None
        if old is not None:
            self.sleepers.append(old)

    def wake(self) -> None:
        if self.sleepers:
            with suppress(Crash):
                self.random.choice(self.sleepers).tick()

    def crash(self) -> None:
        self.fuse.armed = self.random.choice([*STEPS, *RUNNER_STEPS])

    def abort(self) -> None:
        for shard in self.shards:
            if shard is not None:
                shard.abort_next()

    def zombie(self) -> None:
        """A shard's owner is thought dead and is not: it comes back once its successor runs."""
        index = self.random.randrange(SHARDS)
        old, self.shards[index] = self.shards[index], None
        if old is None:
            return
        self.disks[index] = Disk()  # its successor runs elsewhere
        self.run_shard(index)
        if old.due():
            try:
                assert not old.run(), "a zombie committed a batch"
            except (FencedError, Crash):
                return

    def lose_disk(self) -> None:
        index = self.random.randrange(SHARDS)
        self.shards[index] = None
        self.disks[index] = Disk()

    def copy_disk(self) -> None:
        index = self.random.randrange(SHARDS)
        self.copies[index] = self.disks[index].copy()

    def stale_disk(self) -> None:
        """A shard goes on from an old copy: a standby takes over, or a backup was put back."""
        index = self.random.randrange(SHARDS)
        self.shards[index] = None
        self.disks[index] = self.copies[index].copy()

    def compact(self) -> None:
        index = self.random.randrange(SHARDS)
        self.log.compacted["state", index] = self.log.end("state", index)

    def step_clock(self) -> None:
        """The wall clock jumps, by less than a lease's margin, and back another time."""
        self.clock.step(-CLOCK_STEP_MS if self.stepped else CLOCK_STEP_MS)
        self.stepped = not self.stepped

    def reset(self) -> None:
        """An operator stops a shard and sets its offsets back to somewhere."""
        index = self.random.randrange(SHARDS)
        self.shards[index] = None
        self.resets += 1
        for topic in INPUTS:
            self.log.committed[topic, index] = self.random.randrange(
                self.log.committed.get((topic, index), 0) + 1
            )

    def reset_all(self) -> None:
        """Stop, set every offset back to the start, go on."""
        self.shards = [None] * SHARDS
        self.resets += 1
        for topic in INPUTS:
            for index in range(SHARDS):
                self.log.committed[topic, index] = 0
        self.heal()

    def lose_ledger(self) -> None:
        self.ledger.lose() if self.random.random() < 0.5 else self.ledger.restart()

    def silence(self) -> None:
        self.ledger.available = not self.ledger.available

    def lose_answer(self) -> None:
        """A shard's next question is answered too late for it."""
        shard = self.random.choice(self.shards)
        if shard is not None:
            shard.lose_next_answer()

    def advance(self) -> None:
        self.clock.advance(self.random.choice([1, 20, 200, 1_000, 6_000]))

    def step(self) -> None:
        kinds, weights = zip(*STEP_WEIGHTS, strict=True)
        kind = self.random.choices(kinds, weights)[0]
        if kind in {"run_shard", "tick"}:
            getattr(self, kind)(self.random.randrange(2))
        else:
            getattr(self, kind)()

    # the end

    def heal(self) -> None:
        """No more faults: run until nothing moves, leases have lapsed and timers have fired."""
        self.fuse.armed = ""
        self.ledger.available = self.calm = True
        quiet = 0
        for _ in range(4_000):
            before = sum(self.log.ends.values())
            for index in range(SHARDS):
                self.run_shard(index)
            for index in range(RUNNERS):
                self.tick(index)
            live = any(s is None or s.core.backlog() != (0,) * 5 or s.core.live() for s in self.shards)
            live = live or any(not r.released for r in self.ledger.books.reservations.values())
            quiet = quiet + 1 if sum(self.log.ends.values()) == before and not live else 0
            if quiet > 3:
                return
            moved = sum(self.log.ends.values()) != before
            self.clock.advance(50 if moved else LEASE_TTL_MS // 10)
            for shard in self.shards:
                if shard is not None and not moved:
                    shard.look()
        raise AssertionError("does not come to rest")


STEP_WEIGHTS = (
    ("publish", 16),
    ("run_shard", 40),
    ("tick", 24),
    ("advance", 10),
    ("crash", 6),
    ("abort", 2),
    ("zombie", 1),
    ("lose_disk", 0.5),
    ("lose_ledger", 0.5),
    ("silence", 1.5),
    ("lose_answer", 2),
    ("copy_disk", 1),
    ("stale_disk", 0.5),
    ("compact", 0.5),
    ("step_clock", 0.5),
    ("command", 1),
    ("reset", 0.3),
    ("sleep", 1),
    ("wake", 6),
)
