"""A shard moves between processes while work comes in: how long it stands still, and that its siblings do not notice."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration.deployment import CLOCK, SHARDS, Process, World, deployed, wait_for
from integration.trickle import TIER, Trickle, Watcher, gap_ms, written

from laxity.infra.local import Endpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PLANNED_MS = 1_000
SESSION_MS = 6_000
STAYING_MS = 500  # of a shard that stays where it is: the trickle, and other people's processes on two cores
KILLED_MS = SESSION_MS + 3_000
PROTOCOLS = ["classic", "consumer"]
AFTER_MS = 1_500  # of steady work before and after what is measured


@pytest.fixture
def world(stack: Endpoints, tmp_path: Path) -> Iterator[World]:
    with deployed(stack, stack.redis, tmp_path) as made:
        yield made


def shards_of(process: Process) -> set[int]:
    """By its own log."""
    held: set[int] = set()
    for line in process.lines():
        if line["event"] == "shard.running":
            held.add(line["shard"])
        elif line["event"] == "shard.revoked":
            held.discard(line["shard"])
    return held


def steady(ms: int = AFTER_MS) -> None:
    """Let work come in for a while."""
    until = CLOCK.monotonic_ms() + ms
    wait_for(lambda: CLOCK.monotonic_ms() >= until, "time passes")


@dataclass
class Run:
    """Two processes under a trickle; `moved` are the shards of the one that joined last."""

    world: World
    trickle: Trickle
    watcher: Watcher
    protocol: str

    def started(self) -> Process:
        process = self.world.start(protocol=self.protocol)
        wait_for(lambda: len(shards_of(process)) > 0, "it has a shard")
        return process

    def balanced(self, *processes: Process) -> None:
        wait_for(lambda: sum(len(shards_of(p)) for p in processes) == SHARDS, "every shard runs")

    def finish(self, what: str, from_ms: int, moved: set[int]) -> tuple[dict[int, int], dict[int, int]]:
        """The gaps of each shard: in its journal, and in what a reader of its events saw. Checks that nothing was lost or doubled."""
        steady()
        to_ms = CLOCK.now_ms() - AFTER_MS // 2
        sent = self.trickle.stop()
        self.world.check_keys(sent, TIER)
        seen = self.watcher.stop()
        journal = _gaps(written(self.world, "journal"), from_ms, to_ms)
        events = _gaps(seen, from_ms, to_ms)
        figures = {"moved": sorted(moved), "journal": journal, "events": events}
        sys.stderr.write(f"{what}, {self.protocol}: {json.dumps(figures)}\n")
        return journal, events


def _gaps(times: Mapping[int, Sequence[int]], from_ms: int, to_ms: int) -> dict[int, int]:
    return {shard: gap_ms(mine, from_ms, to_ms) for shard, mine in times.items()}


@pytest.fixture(params=PROTOCOLS)
def run(world: World, request: pytest.FixtureRequest) -> Iterator[Run]:
    made = Run(world, Trickle(world), Watcher(world, f"events.{TIER}"), request.param)
    made.watcher.start()
    yield made
    made.trickle.stop()
    made.watcher.stop()


def test_a_planned_hand_over_stops_the_moving_shards_for_a_second_and_no_other(run: Run) -> None:
    """A process joins, then it leaves with SIGTERM."""
    stays = run.started()
    run.balanced(stays)
    run.trickle.start()
    steady()
    joined_ms = CLOCK.now_ms()
    joins = run.started()
    wait_for(lambda: len(shards_of(joins)) == SHARDS // 2, "half of the shards move")
    run.balanced(stays, joins)
    moved = shards_of(joins)
    steady()
    left_ms = CLOCK.now_ms()
    joins.popen.send_signal(signal.SIGTERM)
    assert joins.popen.wait(20) == 0
    run.balanced(stays)
    journal, events = run.finish("joins and leaves", joined_ms, moved)
    assert left_ms > joined_ms
    for gaps in (journal, events):
        assert max(gaps[shard] for shard in moved) <= PLANNED_MS
        assert max(gap for shard, gap in gaps.items() if shard not in moved) <= STAYING_MS


def test_a_killed_process_is_replaced_after_its_session_and_the_others_shards_go_on(run: Run) -> None:
    stays = run.started()
    dies = run.started()
    run.balanced(stays, dies)
    run.trickle.start()
    steady()
    moved = shards_of(dies)
    killed_ms = CLOCK.now_ms()
    dies.kill()
    run.balanced(stays)
    journal, events = run.finish("killed", killed_ms, moved)
    assert max(journal[shard] for shard in moved) <= KILLED_MS
    for gaps in (journal, events):
        assert max(gap for shard, gap in gaps.items() if shard not in moved) <= 3_000
