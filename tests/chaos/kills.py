"""Every process killed while a load runs, most of them at named crash points: nothing lost, nothing done twice, nothing left reserved.

    python -m chaos.kills --tasks 5000 --seed 1 [--no-dedupe] [--json FILE]

Part one: chains of crash points through both schedulers, beside them chains through the runners and kills of broker, Redis, registry
and provider. Part two: schedulers only, 20 s apart: the shards that were not killed must not notice.
Then everything heals and drains, the checker reads Kafka and the provider's ledger, offsets are reset and state directories are lost.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Final

from chaos.flatness import flatness
from chaos.load import jobs
from chaos.nemesis import KILL, Fault, chains
from chaos.suite import Storm, conclude, finish, opened, parse

from laxity.streams.runtime.crashpoints import POINTS as SCHEDULER_POINTS

RUNNER_POINTS: Final = (
    "before_claim", "after_claim", "before_call", "in_call", "after_call", "after_result", "before_commit",
)  # fmt: skip
EARLY: Final = frozenset({"mid_restore", "mid_takeover"})  # passed while a process takes over, once per shard
ROUNDS: Final = 5  # deaths at each point, at least
CHAIN: Final = 7  # points in a row on one process
SERVERS: Final = ("kafka", "redis", "registry", "provider")
LONE: Final = "lone"  # the lane of part two
LONE_KILLS: Final = 20
LONE_PAUSE_MS: Final = 20_000
EVENTUALLY: Final = 10  # times the tasks that are wanted: the load goes on for as long as the faults do, on a busy machine, too


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    options = parse(arguments, __doc__, name="kills")
    rounds, lone = max(1, round(ROUNDS * options.scale)), max(1, round(LONE_KILLS * options.scale))
    plan = (faults(options.seed, rounds=rounds), lone_kills(options.seed, lone))
    load = jobs(
        seed=options.seed,
        count=EVENTUALLY * options.tasks,
        span_ms=round(EVENTUALLY * options.span_s * 1_000),
        deduplicates=options.deduplicates,
    )
    with opened(options) as world:
        storm = Storm(world, options, load, plan)
        storm.rage()
        report = conclude(
            storm,
            points=wanted_points(rounds),
            after=lambda a: (
                a.i8_nothing_reserved,
                a.journals_replay,
                a.i15_offsets_reset,
                a.i16_state_restored,
            ),
            more=lambda history: flatness(
                history, storm.watch.heard, [s for s in storm.nemesis.strikes if s.lane == LONE]
            ),
        )
    return finish(report, options)


def faults(seed: int, *, rounds: int) -> list[Fault]:
    """Part one. Two lanes, so two faults at once at most."""
    random = Random(f"kills {seed}")
    schedulers = [
        (p, count(random, p))
        for _ in range(rounds)
        for p in random.sample(SCHEDULER_POINTS, len(SCHEDULER_POINTS))
    ]
    runners = [
        (p, random.randint(1, 6))
        for _ in range(rounds)
        for p in random.sample(RUNNER_POINTS, len(RUNNER_POINTS))
    ]
    chain = list(
        chains(lane="schedulers", victims=("scheduler-0", "scheduler-1"), points=schedulers, length=CHAIN)
    )
    others = list(chains(lane="others", victims=("runner-0", "runner-1"), points=runners, length=CHAIN))
    servers = [name for _ in range(rounds) for name in random.sample(SERVERS, len(SERVERS))]
    return [*chain, *between(others, [_kill(name, random) for name in servers])]


def count(random: Random, point: str) -> int:
    """Which passing kills: the early ones once or twice per start, the others after some batches."""
    return random.randint(1, 2) if point in EARLY else random.randint(3, 25)


def _kill(name: str, random: Random) -> Fault:
    return Fault(number=0, lane="others", kind=KILL, victim=name, pause_ms=random.randint(500, 3_000))


def between(chain: Sequence[Fault], single: Sequence[Fault]) -> list[Fault]:
    """The single ones spread over the gaps of the chains, never within one: an armed process would wait for nobody."""
    starts = [n for n, fault in enumerate(chain) if fault.kind == KILL]
    segments = [list(chain[a:b]) for a, b in zip(starts, [*starts[1:], len(chain)], strict=True)]
    mixed: list[Fault] = []
    for number, segment in enumerate(segments):
        share = single[number * len(single) // len(segments) : (number + 1) * len(single) // len(segments)]
        mixed += [*segment, *share]
    return mixed


def lone_kills(seed: int, count: int) -> list[Fault]:
    """Part two: one scheduler at a time, at least LONE_PAUSE_MS apart."""
    random = Random(f"lone {seed}")
    return [
        Fault(
            number=0,
            lane=LONE,
            kind=KILL,
            victim=f"scheduler-{random.randrange(2)}",
            pause_ms=LONE_PAUSE_MS + random.randint(0, 1_000),
        )
        for _ in range(count)
    ]


def wanted_points(rounds: int) -> dict[tuple[str, str], int]:
    """How often each crash point must have been hit; one miss in a round of many is the coverage's matter, not the point's."""
    wanted = {("scheduler", point): rounds for point in SCHEDULER_POINTS}
    return wanted | {("runner", point): rounds for point in RUNNER_POINTS}


if __name__ == "__main__":
    sys.exit(main())
