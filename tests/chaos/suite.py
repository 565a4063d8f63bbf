"""What the chaos suites share: options, one storm (load, faults, heal, drain), the verdict, and its report.

    def main(arguments=None):
        options = parse(arguments, __doc__, name="kills")
        with opened(options) as world:
            storm = Storm(world, options, jobs=..., plans=[...], injuries={...})
            storm.rage()                         # load and faults until all faults are done; then heal and drain
            report = conclude(storm, after=lambda a: (a.i8_nothing_reserved, a.i15_offsets_reset))
        return finish(report, options)

A report is one JSON document: suite, seed, tasks, seconds, faults, points, figures, violations, after, failures (empty: all held).
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from chaos.aftermath import Aftermath, Found
from chaos.checker import SHOWN_MAX, Rules, check, figures
from chaos.history import History, read, triggers_in
from chaos.load import Job, Load, config_text, provider_args
from chaos.member import Life
from chaos.nemesis import KILL, POINT, Fault, Injury, Nemesis, fallen, missed
from chaos.watch import Watch
from chaos.world import Plan, World

from laxity.schemas.timing import SystemClock

LANDED_LEAST: Final = 0.9  # of planned faults
BUSY_LEAST: Final = 0.3  # of kills
DRAIN_S: Final = 180.0
QUIET_S: Final = 5.0  # of load before the first fault
CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of the command line. `root`: kept afterwards if it was given, else a temporary folder."""

    name: str
    seed: int
    tasks: int
    deduplicates: bool
    json: Path | None
    data_dir: Path | None
    span_s: float
    scale: float


def parse(
    arguments: Sequence[str] | None,
    description: str | None,
    *,
    name: str,
    tasks: int = 5_000,
    span_s: float = 600.0,
) -> Options:
    """Prints the seed. From here on SIGTERM ends this process as Ctrl-C does: with all that it started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(
        prog=f"chaos.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=tasks)
    parser.add_argument("--dedupe", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("--data-dir", type=Path, help="kept afterwards; else a temporary one")
    parser.add_argument("--span", type=float, default=span_s, help="seconds over which the tasks come")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the planned faults, for a short run"
    )
    given = parser.parse_args(arguments)
    say(f"suite {name}, seed {given.seed}, {given.tasks} tasks")
    return Options(
        name=name,
        seed=given.seed,
        tasks=given.tasks,
        deduplicates=given.dedupe,
        json=given.json,
        data_dir=given.data_dir,
        span_s=given.span,
        scale=given.scale,
    )


def say(text: str) -> None:
    """One line for whoever watches."""
    sys.stderr.write(f"{CLOCK.monotonic_ms() // 1_000 % 100_000:5d} {text}\n")
    sys.stderr.flush()


@contextmanager
def opened(
    options: Options, *, before: Callable[[Path], AbstractContextManager[None]] | None = None, **over: Any
) -> Iterator[World]:
    """A world for the load of this suite; `over` are fields of its Plan, `before` surrounds it, given its folder."""
    with ExitStack() as around:
        folder = around.enter_context(
            tempfile.TemporaryDirectory(prefix=f"laxity-{options.name}-", ignore_cleanup_errors=True)
        )
        plan = Plan(
            root=(options.data_dir or Path(folder)).resolve(),
            config=config_text(),
            provider_args=provider_args(seed=options.seed, deduplicates=options.deduplicates),
        )
        if before is not None:
            around.enter_context(before(plan.root))
        say(f"starting a world in {plan.root}")
        with World(replace(plan, **over)) as world:
            say("ready")
            yield world
            say("ending the world")


@dataclass(slots=True)
class Storm:
    """One load under plans of faults that are carried out one after the other."""

    world: World
    options: Options
    jobs: Sequence[Job]
    plans: Sequence[Sequence[Fault]]
    injuries: Mapping[str, Injury] = field(default_factory=dict)
    began_ms: int = field(default_factory=CLOCK.monotonic_ms)
    undrained: int = 0
    nemesis: Nemesis = field(init=False)
    load: Load = field(init=False)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        numbers = itertools.count(1)
        self.plans = [[replace(fault, number=next(numbers)) for fault in plan] for plan in self.plans]
        self.nemesis = Nemesis(world=self.world, injuries=self.injuries, say=say)
        self.load = Load(self.world, self.jobs, self.log, least=self.options.tasks)
        self.watch = Watch(self.world)

    @property
    def faults(self) -> list[Fault]:
        """Of all plans."""
        return [fault for plan in self.plans for fault in plan]

    @property
    def log(self) -> Path:
        """Of the clients' operations."""
        return self.world.plan.root / "operations.jsonl"

    def rage(self) -> None:
        """Load first, then faults beside it until all are done and enough was sent; then all are well again, and the work drains."""
        self.watch.start()
        self.load.start()
        for plan in self.plans:
            self.nemesis.last(round(QUIET_S * 1_000))
            say(f"{len(plan)} faults")
            self.nemesis.start(plan)
            self._see_through()
            self.heal()
        self.load.stop()
        self.load.join()
        say(f"sent: {dict(self.load.counts)}, late by {self.load.late_ms} ms at most")
        self.drain()

    def _see_through(self) -> None:
        """The load failing ends the run: faults without load are no evidence."""
        pause = threading.Event()
        while self.nemesis.busy:
            if self.load.done.is_set():
                self.nemesis.stop()
            pause.wait(0.2)
        self.nemesis.join()

    def heal(self) -> None:
        """Everybody runs and is ready; who does not get ready is a failure of the run, and the checks tell what came of it."""
        for member in self.world.members.values():
            member.crashpoint = ""
            life = member.life
            if life is not None and life.crashpoint:
                member.kill()  # armed still: the point was never passed
            if member.frozen:
                member.thaw()
        try:
            self.world.await_ready()
        except TimeoutError as error:
            self.nemesis.failures.append(f"after the heal: {error}")

    def drain(self) -> None:
        """Until every task in Kafka has ended, or DRAIN_S is over."""
        wanted, pause = self._task_ids(), threading.Event()
        until_ms = CLOCK.monotonic_ms() + round(DRAIN_S * 1_000)
        while (left := wanted - self.watch.ended) and CLOCK.monotonic_ms() < until_ms:
            pause.wait(0.5)
        self.undrained = len(left)
        say(f"drained: {len(wanted)} tasks, {len(left)} left")
        self.watch.stop()

    def _task_ids(self) -> set[str]:
        return {sent.task_id for sent in triggers_in(self.world.settings, CLOCK) if sent.trigger is not None}


Checks = Callable[[Aftermath], Sequence[Callable[[], Found]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `--json` gets."""

    suite: str
    seed: int
    tasks: int
    deduplicates: bool
    seconds: int
    faults: Mapping[str, Any]
    points: Mapping[str, int]
    figures: Mapping[str, int]
    violations: Mapping[str, Sequence[str]]
    after: Mapping[str, Any]
    strikes: Sequence[Mapping[str, Any]]
    failures: Sequence[str]


def conclude(
    storm: Storm,
    *,
    points: Mapping[tuple[str, str], int] | None = None,
    after: Checks = lambda _: (),
    more: Callable[[History], Mapping[str, Sequence[str]]] = lambda _: {},
) -> Report:
    """Read the history, check it, look at the coverage, then the aftermath.

    `points`: how often each (role, crash point) must have been hit. `more`: violations that only this suite can see.
    """
    world, options = storm.world, storm.options
    rules = Rules(config=world.config, deduplicates=options.deduplicates)
    history = read(world.settings, world.ledger, storm.log, CLOCK)
    violations = {**check(history, rules), **more(history)}
    found = figures(history, rules)
    say(f"{found}")
    aftermath = Aftermath(world, say, deduplicates=options.deduplicates)
    done = aftermath.run(*after(aftermath))
    failures = [*storm.nemesis.failures, *coverage(storm, points or {})]
    failures += [f"{name}: {text}" for name, texts in violations.items() for text in texts[:SHOWN_MAX]]
    failures += [f"{name}: {result['why']}" for name, result in done.items() if result["why"]]
    if storm.undrained:
        failures.append(f"{storm.undrained} tasks had not ended {DRAIN_S} s after the heal")
    return Report(
        suite=options.name,
        seed=options.seed,
        tasks=found["tasks"],
        deduplicates=options.deduplicates,
        seconds=(CLOCK.monotonic_ms() - storm.began_ms) // 1_000,
        faults=_summary(storm),
        points={f"{role}.{point}": n for (role, point), n in sorted(fallen(world).items())},
        figures=found,
        violations=violations,
        after=done,
        strikes=[asdict(strike) for strike in storm.nemesis.strikes],
        failures=failures,
    )


def coverage(storm: Storm, points: Mapping[tuple[str, str], int]) -> list[str]:
    """Why the run is no evidence; empty: it is."""
    strikes, planned = storm.nemesis.strikes, len(storm.faults)
    landed = [strike for strike in strikes if strike.landed]
    kills = [strike for strike in landed if strike.kind in {KILL, POINT}]
    busy = sum(strike.busy for strike in kills)
    hit = fallen(storm.world)
    why = []
    if len(landed) < LANDED_LEAST * planned:
        why.append(f"coverage: {len(landed)} of {planned} faults landed; {missed(strikes, storm.faults)}")
    if kills and busy < BUSY_LEAST * len(kills):
        why.append(f"coverage: {busy} of {len(kills)} kills hit a busy process")
    why += [
        f"coverage: {role} died {hit[role, point]} times at {point}, wanted {wanted}"
        for (role, point), wanted in points.items()
        if hit[role, point] < wanted
    ]
    return why


def _summary(storm: Storm) -> dict[str, Any]:
    strikes = storm.nemesis.strikes
    kills = Counter(storm.world[name].role for name, life in storm.world.lives() if _was_killed(life))
    return {
        "planned": len(storm.faults),
        "landed": sum(strike.landed for strike in strikes),
        "busy": sum(strike.busy for strike in strikes if strike.landed),
        "by_kind": dict(Counter(strike.kind for strike in strikes if strike.landed)),
        "kill_9": kills.total(),
        "kill_9_by_role": dict(kills),
        "unforeseen_ends": unforeseen(storm.world),
        "back_ms_max": max((strike.back_ms for strike in strikes), default=-1),
    }


def _was_killed(life: Life) -> bool:
    return life.code == -signal.SIGKILL


def unforeseen(world: World) -> dict[str, list[int]]:
    """Exit codes of schedulers and runners that ended although nobody killed or stopped them."""
    found: dict[str, list[int]] = {}
    for name, life in world.lives():
        if world[name].role in {"scheduler", "runner"} and life.code not in {None, 0, -signal.SIGKILL}:
            assert life.code is not None
            found.setdefault(name, []).append(life.code)
    return found


def finish(report: Report, options: Options) -> int:
    """Print it, write it. The exit code: 0 if all held."""
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n", "utf-8")
    say(f"faults: {dict(report.faults)}")
    say(f"points: {dict(report.points)}")
    for name, texts in report.violations.items():
        say(f"{name}: {'held' if not texts else f'{len(texts)} VIOLATIONS'}")
    for name, result in report.after.items():
        say(f"{name}: {'FAILED: ' + result['why'] if result['why'] else 'held'} {result['figures']}")
    for failure in report.failures:
        say(f"FAILED: {failure}")
    verdict = "FAILED" if report.failures else "held"
    say(f"suite {report.suite}, seed {report.seed}: {report.tasks} tasks in {report.seconds} s: {verdict}")
    return 1 if report.failures else 0
