"""Members that come and go every 2 s, networks that part, brokers that fall: on both group protocols, nothing is lost and nothing done twice.

    python -m chaos.storms --tasks 5000 --seed 1 [--protocol classic|consumer] [--no-dedupe] [--json FILE]

One world per protocol, on three brokers, half of the tasks each. For five minutes side by side: schedulers and runners join and leave (SIGTERM
and kill -9 mixed); on each edge (scheduler to Kafka and Redis, runner to Kafka, Redis and provider) one direction or both are cut off,
connections become half-open, bytes are late and connections reset; brokers are killed (leader, transaction coordinator, controller), rolled,
frozen, and two of three stopped, so that nothing can be written.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from itertools import product
from pathlib import Path
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Final

from chaos.brokers import Brokers
from chaos.load import jobs
from chaos.nemesis import Fault, Injury, Nemesis
from chaos.proxy import CLEAR, Proxy, Weather
from chaos.suite import Options, Report, Storm, conclude, finish, opened, parse, say
from chaos.wiring import KAFKA, PROVIDER, REDIS, Wiring

from laxity.schemas.timing import SystemClock

PROTOCOLS: Final = ("classic", "consumer")
STEADY: Final = ("scheduler-0", "scheduler-1", "runner-0", "runner-1")  # with edges of their own
GUESTS: Final = {
    "scheduler": ("scheduler-2", "scheduler-3"),
    "runner": ("runner-2", "runner-3"),
}  # one shard for each
STORM_MS: Final = 300_000
EVERY_MS: Final = {"scheduler": 2_000, "runner": 4_000}  # wanted between two rebalances of a group
REBALANCES_LEAST: Final = 0.4  # of those wanted: a guest takes seconds to start, more on a crowded machine
JOIN_MS: Final = 20_000  # a guest that is not ready by then leaves all the same
ASK_EVERY_MS: Final = 300
STAY_MS: Final = (0, 1_500)
AWAY_FROM_GROUP_MS: Final = (0, 500)
READY_S: Final = 1.0  # for an answer of a process on this machine
KILLED_SHARE: Final = 0.5  # of those who leave
EDGES: Final = (
    ("scheduler", KAFKA), ("runner", KAFKA), ("scheduler", REDIS), ("runner", REDIS), ("runner", PROVIDER),
)  # fmt: skip
WAYS: Final[Mapping[str, Weather]] = {
    "up": Weather(up=False),
    "down": Weather(down=False),
    "both": Weather(up=False, down=False),
    "rough": Weather(delay_ms=20, jitter_ms=200, resets=0.01),
}
HALF_OPEN: Final = "half-open"
CATCH_MS: Final = 15_000  # a runner without a call has no connection to the provider
PARTED_MS: Final = (2_000, 9_000)  # some longer than a session, some shorter
BROKER_FAULTS: Final = (
    "kill leader", "stop two", "kill coordinator", "kill controller", "freeze leader", "roll 1", "roll 2", "roll 3",
)  # fmt: skip
BROKER_AWAY_MS: Final = 4_000  # a killed broker's, beyond its session of 3 s: its leaders have moved by then
EVENTUALLY: Final = 4  # times the tasks that are wanted: the load goes on for as long as the faults do
CLOCK: Final = SystemClock()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--protocol", choices=PROTOCOLS, action="append", help="only this one")
    chosen, others = chooser.parse_known_args(arguments)
    options = parse(others, __doc__, name="storms", span_s=STORM_MS / 1_000)
    protocols = chosen.protocol or PROTOCOLS
    share = replace(options, tasks=options.tasks // len(protocols))
    return finish(together([one(protocol, share) for protocol in protocols], protocols), options)


def one(protocol: str, options: Options) -> Report:
    """The storm on one protocol."""
    say(f"group protocol {protocol}")
    load = jobs(
        seed=options.seed,
        count=EVENTUALLY * options.tasks,
        span_ms=round(EVENTUALLY * options.span_s * 1_000),
        deduplicates=options.deduplicates,
        name=f"{options.seed}-{protocol}",
    )
    root = options.data_dir / protocol if options.data_dir else None
    with (
        tempfile.TemporaryDirectory(prefix="laxity-brokers-", ignore_cleanup_errors=True) as folder,
        Proxy(seed=options.seed) as proxy,
        Brokers(root / "brokers" if root else Path(folder), proxy=proxy, edges=STEADY) as brokers,
    ):
        wiring = Wiring(proxy=proxy, brokers=brokers, through=STEADY)
        where = replace(options, data_dir=root)
        env = {"LAXITY_KAFKA__GROUP__PROTOCOL": "consumer"} if protocol == "consumer" else {}
        with opened(where, kafka=brokers.bootstrap(), route=wiring.route, env=env) as world:
            storms = Storms(wiring, Random(f"members {options.seed}"))
            plan = faults(options.seed, world.settings.prefix, scale=options.scale)
            storm = Storm(world, options, load, [plan], injuries=storms.injuries)
            storm.rage()
            say(f"edges: {wiring.counts()}; changes: {storms.changes}, rebalances: {storms.rebalances}")
            return conclude(
                storm, after=lambda a: (a.i8_nothing_reserved, a.journals_replay, a.i15_offsets_reset)
            )


def faults(seed: int, prefix: str, *, scale: float = 1.0) -> list[Fault]:
    """Planned before the run. Four lanes: two of members, one of the network, one of the brokers."""
    random = Random(f"storms {seed}")
    parted = list(product(EDGES, [*WAYS, HALF_OPEN]))
    random.shuffle(parted)
    network = [
        Fault(
            number=0,
            kind="network",
            lane="network",
            victim=f"{role}-{random.randrange(2)}",
            pause_ms=random.randint(500, 4_000),
            duration_ms=random.randint(*PARTED_MS),
            text=f"{server} {how}",
        )
        for (role, server), how in parted[: max(1, round(len(parted) * scale))]
    ]
    fallen = BROKER_FAULTS[: max(1, round(len(BROKER_FAULTS) * scale))]
    brokers = [
        Fault(
            number=0,
            kind="brokers",
            lane="brokers",
            victim=f"broker: {what}",
            pause_ms=random.randint(2_000, 6_000),
            duration_ms=BROKER_AWAY_MS,
            text=f"{what} {prefix}",
        )
        for what in fallen
    ]
    members = [
        Fault(number=0, kind="members", lane=f"{role}s", victim=f"{role}s", duration_ms=round(STORM_MS * scale), text=role)
        for role in GUESTS
    ]  # fmt: skip
    return [*network, *brokers, *members]


@dataclass(slots=True)
class Storms:
    """The injuries of this suite."""

    wiring: Wiring
    random: Random
    changes: Counter[str] = field(default_factory=Counter)
    rebalances: Counter[str] = field(default_factory=Counter)
    _adding: threading.Lock = field(default_factory=threading.Lock)

    @property
    def injuries(self) -> dict[str, Injury]:
        """By kind."""
        return {"members": self.members, "network": self.network, "brokers": self.brokers}

    # members

    def members(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Guests come and go. Landed: the group was rebalanced so often that it had no rest."""
        role, world = fault.text, nemesis.world
        group = f"{world.settings.prefix}{'scheduler' if role == 'scheduler' else 'agents.default'}"
        before, until_ms = self._generation(group), CLOCK.monotonic_ms() + fault.duration_ms
        seeds = [self.random.random() for _ in GUESTS[role]]
        with ThreadPoolExecutor(len(GUESTS[role])) as threads:
            done = [
                threads.submit(self._come_and_go, nemesis, name, Random(seed), until_ms)
                for name, seed in zip(GUESTS[role], seeds, strict=True)
            ]
        self.changes[role] = sum(each.result() for each in done)
        for name in GUESTS[role]:
            world.add(name)  # what follows has them all
        self.rebalances[role] = self._generation(group) - before
        return self.rebalances[role] >= REBALANCES_LEAST * fault.duration_ms / EVERY_MS[role]

    def _come_and_go(self, nemesis: Nemesis, name: str, random: Random, until_ms: int) -> int:
        """One guest, over and over; how often it joined or left."""
        world, changes = nemesis.world, 0
        while CLOCK.monotonic_ms() < until_ms:
            with self._adding:
                member = world.add(name)
            given_up_ms = CLOCK.monotonic_ms() + JOIN_MS
            while not _is_ready(member.spec.http) and CLOCK.monotonic_ms() < given_up_ms:
                nemesis.last(ASK_EVERY_MS)
            nemesis.last(random.randint(*STAY_MS))
            if random.random() < KILLED_SHARE:
                member.kill(stay_dead=True)
            else:
                world.remove(name)
            changes += 2
            nemesis.last(random.randint(*AWAY_FROM_GROUP_MS))
        return changes

    def _generation(self, group: str) -> int:
        """The group's last generation or epoch, by what its coordinators wrote."""
        told = re.compile(
            rf"Stabilized group {re.escape(group)} generation (\d+)|\[GroupId {re.escape(group)}\] Bumped group epoch to (\d+)"
        )
        logs = (self.wiring.brokers.log(number) for number in self.wiring.brokers.nodes)
        return max((int(m[1] or m[2]) for log in logs for m in told.finditer(log)), default=0)

    # network

    def network(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Something lies between a process and a server. Landed: there were connections that it lay on."""
        server, _, how = fault.text.partition(" ")
        connected = nemesis.until(lambda: self.wiring.connections(fault.victim, server) > 0, CATCH_MS)
        if how == HALF_OPEN:
            self.wiring.strand(fault.victim, server)
        else:
            self.wiring.turn(fault.victim, server, WAYS[how])
        nemesis.last(fault.duration_ms)
        self.wiring.turn(fault.victim, server, CLEAR)
        return connected

    # brokers

    def brokers(self, nemesis: Nemesis, fault: Fault) -> bool:
        """One fault of a broker, or of two. Landed: they were up before, and all were in sync again after it."""
        cluster = self.wiring.brokers
        what, _, prefix = fault.text.rpartition(" ")
        shard = self.random.randrange(nemesis.world.plan.shards)
        find: dict[str, Callable[[], int]] = {
            "leader": lambda: cluster.leader(f"{prefix}state", shard),
            "coordinator": lambda: cluster.transaction_coordinator(f"{prefix}scheduler.{shard}"),
            "controller": cluster.controller,
        }
        cluster.until_in_sync()
        how, who = what.split()
        first = self.random.choice(list(cluster.nodes)) if how == "stop" else 0
        victims = (
            [n for n in cluster.nodes if n != first]
            if how == "stop"
            else [find[who]() if who in find else int(who)]
        )
        do = {"kill": cluster.kill, "roll": cluster.stop, "freeze": cluster.freeze, "stop": cluster.kill}[how]
        hit = [do(victim) for victim in victims]
        nemesis.last(0 if how == "roll" else fault.duration_ms)
        for victim in victims:
            if how == "freeze":
                cluster.thaw(victim)
            else:
                cluster.start(victim)
        cluster.until_in_sync()
        return all(hit)


def _is_ready(url: str) -> bool:
    """Whether a process says so; a hundred times cheaper than a client with all its settings."""
    asked = HTTPConnection(url.removeprefix("http://"), timeout=READY_S)
    try:
        asked.request("GET", "/readyz")
        return asked.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        asked.close()


def together(reports: Sequence[Report], names: Sequence[str]) -> Report:
    """One report of several worlds."""
    first = reports[0]
    violations: dict[str, list[str]] = {}
    for report in reports:
        for name, found in report.violations.items():
            violations.setdefault(name, []).extend(found)
    every = list(zip(names, reports, strict=True))
    sums: Counter[str] = Counter()
    for report in reports:
        sums.update(
            {
                name: value
                for name, value in report.faults.items()
                if isinstance(value, int) and not name.endswith("_max")
            }
        )
    return replace(
        first,
        tasks=sum(report.tasks for report in reports),
        seconds=sum(report.seconds for report in reports),
        faults={**sums, **{name: report.faults for name, report in every}},
        points=dict(sum((Counter(report.points) for report in reports), Counter())),
        figures=dict(sum((Counter(report.figures) for report in reports), Counter())),
        violations=violations,
        after={f"{name}: {check}": found for name, report in every for check, found in report.after.items()},
        strikes=[{**strike, "world": name} for name, report in every for strike in report.strikes],
        failures=[f"{name}: {failure}" for name, report in every for failure in report.failures],
    )


if __name__ == "__main__":
    sys.exit(main())
