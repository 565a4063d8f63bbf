"""Processes that race on one ledger: shards, runners, takeovers, lapses; then every answer is held against the twin's.

Each decision of the scripts returns its place in the order of all and the server's time. So the record of the processes can be played
to the twin in that order, with that time: the same answers, the same wakes, and in the end the same memory. No place may be missing.

    python tests/chaos/races.py redis://127.0.0.1:6379/0 [--ops 100000] [--racers 8] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random  # noqa: TID251 - the seed is printed
from typing import Any, TypeVar

import redis
from chaos.ledger_memory import DUMP, memory_of_server, memory_of_twin

from laxity.schemas.timing import ManualClock, SystemClock
from laxity.streams.ledger.decisions import Decision, Reply
from laxity.streams.ledger.limits import Limits, RateLimit, SlotLimit
from laxity.streams.ledger.memory import MemoryLedger
from laxity.streams.ledger.protocol import Answer, Candidate, Claim, Exchange, Live, Reconciled, Settle
from laxity.streams.ledger.redis import RedisLedger
from laxity.streams.ledger.scripts import keys

SHARDS = 6  # fewer than racers: some shards have two owners
TTL_MS = 300  # leases lapse all the time
RUNNERS = ("r1", "r2", "r3")
DEMANDS = ("gpu", "cpu", "llm", "billed", "account:a", "account:b", "room:a", "ghost")
LIMITS = Limits(
    resources={
        "llm": RateLimit(
            requests_per_minute=0, tokens_per_minute=60_000, burst_requests=0, burst_tokens=2_000
        ),
        "billed": RateLimit(
            requests_per_minute=60_000,
            tokens_per_minute=600_000,
            burst_requests=20,
            burst_tokens=500,
            refund=True,
        ),
        "gpu": SlotLimit(capacity=3),
        "cpu": SlotLimit(capacity=9),
        "account": SlotLimit(capacity=1, keyed=True),
        "room": SlotLimit(capacity=2, keyed=True),
    }
)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Place:
    """Of one decision."""

    epoch: str
    sequence: int
    now_ms: int
    woken: Sequence[str]


@dataclass(frozen=True, slots=True)
class Op:
    """One call of a racer, what came of it, and the places of its decisions."""

    name: str
    asked: dict[str, Any]
    found: Any
    places: Sequence[Place]


class Recording(RedisLedger):
    """Keeps what it was asked, what it said, and when in the order of all."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, limits=LIMITS, shards=SHARDS, prefix=prefix, ttl_ms=TTL_MS, timeout_s=60)
        self.ops: list[Op] = []
        self._places: list[Place] = []

    def _decide(self, decision: Decision[Result]) -> Result:
        def read(replies: Sequence[Reply]) -> Result:
            self._places = [Place(str(r[1]), int(r[2]), int(r[3]), tuple(r[4])) for r in replies]
            return decision.read(replies)

        return super()._decide(replace(decision, read=read))

    def do(self, name: str, **asked: Any) -> Any:
        """Call the method of that name."""
        found = getattr(self, name)(**asked)
        self.ops.append(Op(name, asked, found, tuple(self._places)))
        return found


@dataclass
class Racer:
    """One process: any shard's owner and any runner, as the dice say."""

    ledger: Recording
    dice: Random
    shard: int
    epoch: int = 1
    seen: str = ""
    granted: list[tuple[str, str]] = field(default_factory=list)  # id, runner

    def run(self, ops: int) -> None:
        """Until so many calls are made."""
        kinds: Sequence[tuple[int, Callable[[], None]]] = (
            (10, self.exchange), (4, self.claim), (2, self.claim_all), (3, self.renew), (3, self.call), (4, self.release),
            (2, self.release_all), (1, self.register), (1, self.takeover),
        )  # fmt: skip
        weighted = [kind for weight, kind in kinds for _ in range(weight)]
        self.takeover()
        while len(self.ledger.ops) < ops:
            self.dice.choice(weighted)()

    def exchange(self) -> None:
        """All parts of it, now and then."""
        dice = self.dice
        asked = Exchange(
            shard=self.shard,
            owner_epoch=self.epoch,
            acknowledged=self.some(self.own_id, 2) if dice.random() < 0.3 else (),
            settles=self.some(self.settle, 2) if dice.random() < 0.5 else (),
            revokes=self.some(self.own_id, 1) if dice.random() < 0.2 else (),
            cancels=self.some(self.own_id, 1) if dice.random() < 0.2 else (),
            candidates=self.some(self.candidate, 6) if dice.random() < 0.8 else (),
        )
        answer: Answer = self.ledger.do("exchange", request=asked)
        self.granted = [*self.granted, *((g.reservation_id, g.runner) for g in answer.grants)][-40:]
        if answer.status == "ok":
            self.seen = answer.epoch
        elif answer.status == "fenced":
            self.epoch += dice.randrange(1, 3)

    def takeover(self) -> None:
        """One page or several: all in one call of each."""
        self.epoch += self.dice.random() < 0.3
        live = {
            i: Live(
                reservation_id=i,
                runner=runner,
                partition=1,
                granted={"gpu": 1},
                active=self.dice.random() < 0.8,
            )
            for i, runner in self.granted
            if self.dice.random() < 0.8
        }
        ones = sorted(live.values(), key=lambda one: one.reservation_id)
        page = {"shard": self.shard, "owner_epoch": self.epoch, "seen_epoch": self.seen}
        self.ledger.do("reconcile", **page, live=ones)

    def claim(self) -> None:
        """One."""
        i, runner = self.standing()
        self.ledger.do("claim", reservation_id=i, runner=runner)

    def claim_all(self) -> None:
        """Several of one runner."""
        ids = list(dict.fromkeys(self.some(lambda: self.standing()[0], 5)))
        self.ledger.do("claim_all", runner=self.dice.choice(RUNNERS), reservation_ids=ids)

    def renew(self) -> None:
        """Several of one runner."""
        ids = list(dict.fromkeys(self.some(lambda: self.standing()[0], 5)))
        self.ledger.do("renew", runner=self.dice.choice(RUNNERS), reservation_ids=ids)

    def call(self) -> None:
        """A further call."""
        i, runner = self.standing()
        resource = self.dice.choice(("llm", "billed"))
        self.ledger.do(
            "call", reservation_id=i, runner=runner, resource=resource, amount=self.dice.randrange(300)
        )

    def release(self) -> None:
        """One."""
        i, runner = self.standing()
        self.ledger.do("release", reservation_id=i, runner=runner, used=self.used())

    def release_all(self) -> None:
        """Several of one runner."""
        releases = [(self.standing()[0], self.used()) for _ in range(self.dice.randrange(1, 4))]
        self.ledger.do("release_all", runner=self.dice.choice(RUNNERS), releases=releases)

    def register(self) -> None:
        """Any runner: it comes, stays, lapses or leaves."""
        runner = self.dice.choice(RUNNERS)
        if self.dice.random() < 0.1:
            self.ledger.do("deregister", runner=runner, fleet="f")
            return
        asked = {
            "partition": 1,
            "credit": self.dice.choice((0, 3, 20, 20)),
            "ttl_ms": self.dice.choice((50, 2_000)),
        }
        self.ledger.do("register", runner=runner, fleet="f", **asked)

    # choices

    def some(self, one: Callable[[], Result], most: int) -> list[Result]:
        """At least one."""
        return [one() for _ in range(self.dice.randrange(1, most + 1))]

    def own_id(self) -> str:
        """Of this shard."""
        return f"{self.shard}-{self.dice.randrange(30)}:0:{self.dice.randrange(4)}"

    def standing(self) -> tuple[str, str]:
        """Mostly what was granted to us, now and then another shard's or nobody's."""
        if self.granted and self.dice.random() < 0.9:
            return self.dice.choice(self.granted)
        return f"{self.dice.randrange(SHARDS)}-{self.dice.randrange(30)}:0:1", self.dice.choice(RUNNERS)

    def settle(self) -> Settle:
        """Of this shard."""
        return Settle(reservation_id=self.own_id(), used=self.used(), unclaimed=self.dice.random() < 0.3)

    def candidate(self) -> Candidate:
        """Some demands, in any mixture."""
        names = self.dice.sample(DEMANDS, self.dice.randrange(4))
        demands = {name: self.dice.choice((0, 1, 1, 2, 60)) for name in names}
        return Candidate(reservation_id=self.own_id(), task_id="t", fleet="f", demands=demands, deadline_ms=0)

    def used(self) -> dict[str, int]:
        """Fewer or more than was held."""
        return {"llm": self.dice.randrange(100), "billed": self.dice.randrange(100)}


def race(url: str, prefix: str, number: int, seed: int, ops: int, results: Any) -> None:
    """One process."""
    ledger = Recording(url, prefix)
    Racer(ledger=ledger, dice=Random(f"{seed} {number}"), shard=number % SHARDS).run(ops)
    ledger.close()
    results.put(ledger.ops)


# Judging


class ServerTimes(ManualClock):
    """The times at which the server made the decisions of one call, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Iterator[int] = iter(())

    def now_ms(self) -> int:
        return next(self.times)


@dataclass
class Verdict:
    """What a run showed."""

    ops: int = 0
    decisions: int = 0
    mismatches: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def judge(ops: Sequence[Op], run_id: str, memory: dict[str, Any] | None) -> Verdict:
    """Play all calls to the twin in the order of their first decision."""
    clock, verdict, woken = ServerTimes(), Verdict(), list[str]()
    ordered = sorted(ops, key=lambda op: op.places[0].sequence)
    key = ordered[0].places[0].epoch.partition("/")[0]
    twin = MemoryLedger(limits=LIMITS, shards=SHARDS, clock=clock, ttl_ms=TTL_MS, epochs=lambda: key)
    twin.run_id = run_id
    twin.listen(woken.append)
    for op in ordered:
        woken.clear()
        clock.times = iter([place.now_ms for place in op.places])
        expected = getattr(twin, op.name)(**op.asked)
        if isinstance(expected, Answer):
            expected = replace(expected, woken=tuple(dict.fromkeys(woken)))
        told = [name for place in op.places for name in place.woken]
        if (expected, woken, twin.epoch.sequence) != (op.found, told, op.places[-1].sequence):
            verdict.mismatches.append(f"{op}\n  twin: {expected} woke {woken}, at {twin.epoch.sequence}")
        verdict.seen.update(_words(op.found))
    sequences = sorted(place.sequence for op in ops for place in op.places)
    if sequences != list(range(1, len(sequences) + 1)):
        verdict.mismatches.append("places in the order are missing or given twice")
    if memory is not None and memory != (mine := memory_of_twin(twin)):
        wrong = [table for table in memory if memory[table] != mine[table]]
        verdict.mismatches.append(f"in the end the memory differs in {wrong}")
    verdict.ops, verdict.decisions = len(ops), len(sequences)
    return verdict


def _words(found: Any) -> Iterator[str]:
    match found:
        case Answer():
            yield found.status
            yield from found.verdicts.values()
            yield from (refusal.reason for refusal in found.refusals)
            yield from ("granted" for _ in found.grants)
            yield from ("reaped" for _ in found.reaped)
        case Claim():
            yield found.verdict
        case Reconciled():
            yield found.status
            yield from ("lapsed" for _ in found.lapsed)
            yield from ("dropped" for _ in range(found.dropped))
        case _:
            return


def run(url: str, *, ops: int, racers: int, seed: int) -> Verdict:
    """Race, then judge. The processes are forked: call it where no other threads run."""
    prefix = f"race{secrets.token_hex(4)}."
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [
        context.Process(target=race, args=(url, prefix, number, seed, ops // racers, results))
        for number in range(racers)
    ]
    for process in started:
        process.start()
    found: list[Op] = [op for _ in started for op in results.get(timeout=1_800)]
    for process in started:
        process.join(60)
        assert process.exitcode == 0, f"a racer ended with {process.exitcode}"
    with redis.Redis.from_url(url, decode_responses=True) as server:
        names = keys(prefix)
        memory = memory_of_server(server.eval(DUMP, len(names), *names))
        server.delete(*names)
        return judge(found, server.info("server")["run_id"], memory)


def main() -> int:
    """The exit code: 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--ops", type=int, default=100_000)
    parser.add_argument("--racers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**48))
    given = parser.parse_args()
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    verdict = run(given.url, ops=given.ops, racers=given.racers, seed=given.seed)
    for mismatch in verdict.mismatches[:3]:
        sys.stderr.write(f"{mismatch}\n")
    document = {
        "seed": given.seed,
        "racers": given.racers,
        "ops": verdict.ops,
        "decisions": verdict.decisions,
        "mismatches": len(verdict.mismatches),
        "took_ms": clock.monotonic_ms() - begun_ms,
        "seen": dict(sorted(verdict.seen.items())),
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 1 if verdict.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
