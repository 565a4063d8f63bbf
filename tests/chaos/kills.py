"""Every process killed while a load runs: nothing lost, nothing done twice, nothing left reserved; then the replay promises.

    python tests/chaos/kills.py --tasks 5000 --rounds 2 --seed 1 [--no-dedupe] [--trace FILE.csv] [--json FILE]

Checks, from Kafka, the provider's ledger and Redis alone, in this order:
  1. the figures of the demonstration: lost, doubled, ended twice, over the limit, missing dead letters: all 0; every process was hit;
  2. nothing is reserved in Redis once leases have lapsed;
  3. offsets set back to the start with Kafka's own tool: lag rises and falls to 0, as many duplicates as records read again, no new
     effect, no dispatch of an ended task, and a trigger published meanwhile runs;
  4. each shard's journal replays to the same effects;
  5. state, Redis and all topics but the triggers, dead letters, schedules and contracts gone, triggers read again: all run;
  6. a state directory deleted and restored: the same tables, by their hashes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos import aftermath
from chaos.nemesis import Nemesis

from laxity.infra.demo.display import console_for, display_for
from laxity.infra.demo.ground import Ground, ground_for
from laxity.infra.demo.load import Wish
from laxity.infra.demo.run import demonstrate
from laxity.infra.local.settings import StackSettings
from laxity.schemas.timing import SystemClock

PROCESSES = 8  # of `laxity up`
ZEROES = ("lost", "doubled", "ended_twice", "over_limit", "missing_letters")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything held; 1: something did not, printed."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="laxity-kills-") as folder:
        root = Path(options.data_dir or folder)
        stack = StackSettings(data_dir=root)
        wish = Wish(trace=options.trace, tasks=options.tasks, speed=options.speed, dedupe=options.dedupe)
        with ground_for(wish, stack, _say) as ground:
            document, nemesis = _storm(ground, wish, root, options)
            failures = _failures(document, nemesis, options.rounds)
            figures = ("submitted", "completed", "met", "missed", "expired", "dead", "cancelled", *ZEROES)
            _say(
                f"kills: {dict(nemesis.counts())}; "
                + ", ".join(f"{name} {document[name]}" for name in figures)
            )
            after = aftermath.run(ground, root, _say, deduplicates=options.dedupe)
    report = {
        "seed": options.seed,
        "demo": document,
        "kills": [asdict(k) for k in nemesis.kills],
        "after": after,
    }
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    failures += [f"{name}: {check['why']}" for name, check in after.items() if check["why"]]
    for name, check in after.items():
        _say(f"{name}: {'FAILED: ' + check['why'] if check['why'] else 'held'} {check['figures']}")
    for failure in failures:
        _say(f"FAILED: {failure}")
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=2, help="kills of each process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=4.0)
    parser.add_argument("--pause-ms", type=int, default=4_000, help="quiet time between two kills, at most")
    parser.add_argument("--dedupe", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--data-dir", help="kept afterwards; else a temporary one")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _storm(
    ground: Ground, wish: Wish, root: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], Nemesis]:
    """The demonstration under the nemesis."""
    clock = SystemClock()
    counter = aftermath.UnderWay(ground)
    nemesis = Nemesis(
        data_dir=root,
        seed=options.seed,
        rounds=options.rounds,
        pause_ms=options.pause_ms,
        busy=counter,
        clock=clock,
    )
    thread = threading.Thread(target=nemesis.run, name="nemesis")
    thread.start()
    try:
        with display_for(console_for(stderr=True), _say) as display:
            document = asyncio.run(demonstrate(ground, wish, f"{clock.now_ms():x}", display, clock))
    finally:
        nemesis.stop()
        thread.join()
    return document, nemesis


def _failures(document: dict[str, Any], nemesis: Nemesis, rounds: int) -> list[str]:
    failures = [f"{name} is {document[name]}, must be 0" for name in ZEROES if document[name]]
    if nemesis.failure:
        failures.append(nemesis.failure)
    hit = nemesis.counts()
    names = {kill.name for kill in nemesis.kills}
    failures += [
        f"{name} was hit {hit[name]} times, wanted {rounds}" for name in sorted(names) if hit[name] < rounds
    ]
    if rounds and len(names) < PROCESSES:
        failures.append(f"only {sorted(names)} were hit")
    return failures


if __name__ == "__main__":
    sys.exit(main())
