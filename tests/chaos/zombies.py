"""Processes that stop and come back after they were replaced, and requests that arrive after their time: both do nothing any more.

    python -m chaos.zombies --tasks 5000 --seed 1 [--no-dedupe] [--json FILE]

Side by side: schedulers are frozen past the session timeout, half of them in a commit that is under way; runners are frozen past the lease
TTL, with calls under way; ends of transactions are kept back for 1 to 30 s, sent again by the client, and then arrive after all, in whatever
transaction is open by then; and the broker itself stands still now and then. All survivors' work must be as if nobody had come back.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Final

from chaos.brokers import Brokers
from chaos.holding import END_TXN, Held, Hold
from chaos.load import jobs
from chaos.nemesis import Fault, Injury, Nemesis
from chaos.proxy import Edge, Proxy
from chaos.suite import Storm, conclude, finish, opened, parse, say
from chaos.wiring import KAFKA, Wiring

SCHEDULERS: Final = ("scheduler-0", "scheduler-1")
RUNNERS: Final = ("runner-0", "runner-1")
ZOMBIES: Final = 25  # of each role
DELAYED_ENDS: Final = 100
BROKER_PAUSES: Final = 4
SESSION_MS: Final = 6_000
TTL_MS: Final = 15_000
PAST: Final = 1.5  # times the timeout
TAKEN_OVER_MS: Final = (
    30_000  # a frozen scheduler sleeps on until its shards run elsewhere, at most so much longer
)
END_LANES: Final = 4  # delayed ends at the same time: each lasts 15 s on average
CATCH_MS: Final = 20_000  # a shard with work commits many times a second
END_DELAY_MS: Final = (1_000, 30_000)
DROP_AFTER_MS: Final = (0, 0, 0, 300, 1_500)  # before the client hears of the lost connection
EVENTUALLY: Final = 4  # times the tasks that are wanted: the load goes on for as long as the faults do


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    options = parse(arguments, __doc__, name="zombies")
    load = jobs(
        seed=options.seed,
        count=EVENTUALLY * options.tasks,
        span_ms=round(EVENTUALLY * options.span_s * 1_000),
        deduplicates=options.deduplicates,
    )
    where = options.data_dir / "brokers" if options.data_dir else None
    with (
        tempfile.TemporaryDirectory(prefix="laxity-broker-", ignore_cleanup_errors=True) as folder,
        Proxy(seed=options.seed) as proxy,
        Brokers(where or Path(folder), count=1, proxy=proxy, edges=SCHEDULERS) as brokers,
    ):
        wiring = Wiring(proxy=proxy, brokers=brokers, through=SCHEDULERS, servers=(KAFKA,))
        with opened(options, kafka=brokers.bootstrap(), route=wiring.route) as world:
            zombies = Zombies(wiring)
            storm = Storm(
                world, options, load, [faults(options.seed, scale=options.scale)], injuries=zombies.injuries
            )
            storm.rage()
            say(f"answers to old ends of transactions, by error code: {zombies.answers}")
            report = conclude(
                storm,
                after=lambda a: (a.i8_nothing_reserved, a.journals_replay, a.i15_offsets_reset),
                more=lambda _: {"a_doubtful_producer_is_replaced": zombies.reused},
            )
    return finish(report, options)


def faults(seed: int, *, scale: float = 1.0) -> list[Fault]:
    """Planned before the run: two lanes of zombies and END_LANES of delayed ends."""
    random = Random(f"zombies {seed}")

    def times(count: int) -> range:
        return range(max(1, round(count * scale)))

    schedulers = [
        _freeze(random, SCHEDULERS, SESSION_MS, "in commit" if n % 2 else "") for n in times(ZOMBIES)
    ]
    pauses = [
        _fault("broker", "broker", random, duration_ms=random.randint(2_000, 8_000))
        for _ in times(BROKER_PAUSES)
    ]
    for n, pause in enumerate(pauses, start=1):
        schedulers.insert(n * len(schedulers) // (len(pauses) + 1), replace(pause, lane="schedulers"))
    runners = [_freeze(random, RUNNERS, TTL_MS, "") for _ in times(ZOMBIES)]
    ends = [
        _fault("end", f"ends-{n % END_LANES}", random, duration_ms=random.randint(*END_DELAY_MS), text=str(random.choice(DROP_AFTER_MS)))
        for n in times(DELAYED_ENDS)
    ]  # fmt: skip
    return [*schedulers, *runners, *ends]


def _freeze(random: Random, victims: Sequence[str], timeout_ms: int, how: str) -> Fault:
    victim = random.choice(victims)
    role = victim.partition("-")[0]
    return replace(
        _fault(f"frozen {role}", f"{role}s", random, duration_ms=round(PAST * timeout_ms), text=how),
        victim=victim,
    )


def _fault(kind: str, lane: str, random: Random, *, duration_ms: int, text: str = "") -> Fault:
    return Fault(
        number=0,
        kind=kind,
        lane=lane,
        victim=kind,
        pause_ms=random.randint(300, 2_500),
        duration_ms=duration_ms,
        text=text,
    )


class Zombies:
    """The injuries of this suite, and what became of old ends of transactions."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self.answers: dict[int | None, int] = {}
        self.reused: list[str] = []

    @property
    def injuries(self) -> dict[str, Injury]:
        """By kind."""
        return {
            "frozen scheduler": self.freeze_scheduler,
            "frozen runner": self.freeze_runner,
            "end": self.delay_end,
            "broker": self.pause_broker,
        }

    def freeze_scheduler(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Past its session. Landed: it had shards, and all of them ran elsewhere before it woke up."""
        world = nemesis.world
        member, others = world[fault.victim], [name for name in SCHEDULERS if name != fault.victim]
        if not nemesis.until(lambda: bool(world.held(fault.victim)), CATCH_MS):
            return False
        if fault.text and not self._in_commit(nemesis, fault):
            return False
        held = world.held(fault.victim)
        if not member.freeze():
            return False
        nemesis.last(fault.duration_ms)

        def taken_over() -> bool:
            return held <= frozenset().union(*(world.held(name) for name in others))

        replaced = nemesis.until(taken_over, TAKEN_OVER_MS)
        return member.thaw() and bool(held) and replaced

    def _in_commit(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Wait until an end of a transaction is on its way, which will arrive about when its sender wakes up."""
        edges = self._wiring.edges(fault.victim, KAFKA)
        hold = Hold(api_key=END_TXN, hold_ms=fault.duration_ms, name=f"fault {fault.number}")
        for edge in edges:
            edge.hold(hold)
        found = nemesis.until(lambda: bool(_caught(edges, hold)), CATCH_MS)
        for edge in edges:
            edge.disarm(hold)
        return found

    def freeze_runner(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Past its leases. Landed: it had attempts under way, and lived on."""
        world, member = nemesis.world, nemesis.world[fault.victim]

        def has_work() -> bool:
            return world.metrics(fault.victim).get("laxity_runner_slots_taken", 0) > 0

        if not nemesis.until(has_work, CATCH_MS) or not member.freeze():
            return False
        nemesis.last(fault.duration_ms)
        return member.thaw()

    def delay_end(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Of whichever scheduler commits next. Landed: sent again before it arrived, and answered."""
        hold = Hold(
            api_key=END_TXN,
            hold_ms=fault.duration_ms,
            drop_after_ms=int(fault.text),
            name=f"fault {fault.number}",
        )
        victim = next((n for n in SCHEDULERS if nemesis.world.held(n) and not nemesis.world[n].frozen), "")
        edges = self._wiring.edges(victim, KAFKA)
        for edge in edges:
            edge.hold(hold)
        nemesis.until(lambda: bool(_caught(edges, hold)), CATCH_MS)
        for edge in edges:
            edge.disarm(hold)
        found = _caught(edges, hold)
        if not found:
            return False
        nemesis.until(lambda: _caught(edges, hold)[0].answer is not None, fault.duration_ms + CATCH_MS)
        held = _caught(edges, hold)[0]
        self._judge(fault, held)
        return held.landed()

    def _judge(self, fault: Fault, held: Held) -> None:
        """A producer that goes on although an old end of its transactions is still on its way: it would end another one."""
        code = held.error_code()
        self.answers[code] = self.answers.get(code, 0) + 1
        if held.reused_ms is not None:
            self.reused.append(f"fault {fault.number}: {held.hold}, answered {code}")

    def pause_broker(self, nemesis: Nemesis, fault: Fault) -> bool:
        """Everybody waits for it."""
        brokers = self._wiring.brokers
        if not brokers.freeze(1):
            return False
        nemesis.last(fault.duration_ms)
        return brokers.thaw(1)


def _caught(edges: Sequence[Edge], hold: Hold) -> list[Held]:
    return [held for edge in edges for held in edge.held() if held.hold == hold]


if __name__ == "__main__":
    sys.exit(main())
