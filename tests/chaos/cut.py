"""The chaos suites cut down to what every test run can afford: twenty kills in two lanes under a few hundred tasks, all invariants.

python -m chaos.cut [--seed 1] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Final

from chaos.kills import RUNNER_POINTS, SERVERS, between, count
from chaos.load import jobs
from chaos.nemesis import KILL, Fault, chains
from chaos.suite import Options, Report, Storm, conclude, finish, opened, parse

from laxity.streams.runtime.crashpoints import POINTS as SCHEDULER_POINTS

TASKS: Final = 300
SPAN_S: Final = 60.0
AT_SCHEDULERS: Final = 8  # crash points, drawn from all of them
AT_RUNNERS: Final = 5
EVENTUALLY: Final = 10  # times the tasks that are wanted: the load goes on for as long as the faults do, on a busy machine, too


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    options = parse(arguments, __doc__, name="cut", tasks=TASKS, span_s=SPAN_S)
    return finish(run(options), options)


def run(options: Options) -> Report:
    """A world of its own, one storm, the checks."""
    load = jobs(
        seed=options.seed,
        count=EVENTUALLY * options.tasks,
        span_ms=round(EVENTUALLY * options.span_s * 1_000),
        deduplicates=options.deduplicates,
    )
    with opened(options) as world:
        storm = Storm(world, options, load, [faults(options.seed)])
        storm.rage()
        return conclude(storm, after=lambda a: (a.i8_nothing_reserved,))


def faults(seed: int) -> list[Fault]:
    """Twenty kills: fifteen processes of ours, most at crash points, and every server once, Redis twice."""
    random = Random(f"cut {seed}")
    schedulers = [(p, count(random, p)) for p in random.sample(SCHEDULER_POINTS, AT_SCHEDULERS)]
    runners = [(p, random.randint(1, 4)) for p in random.sample(RUNNER_POINTS, AT_RUNNERS)]
    servers = random.sample((*SERVERS, "redis"), len(SERVERS) + 1)
    single = [Fault(number=0, lane="others", kind=KILL, victim=name, pause_ms=500) for name in servers]
    victims = random.sample(("scheduler-0", "scheduler-1"), 2)
    return [
        *chains(lane="schedulers", victims=victims, points=schedulers, length=AT_SCHEDULERS),
        *between(
            list(chains(lane="others", victims=("runner-0",), points=runners, length=AT_RUNNERS)), single
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
