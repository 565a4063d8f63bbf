"""The shard under a nemesis in memory: crashes between any two steps, aborts, zombies, lost disks, a ledger that forgets or is silent."""

from __future__ import annotations

import os

import pytest
from simulation import oracle
from simulation.world import Deployment

from laxity.streams.simulator.host import STEPS
from laxity.streams.simulator.runner import RUNNER_STEPS

SEEDS = int(os.environ.get("LAXITY_CRASH_SEEDS", "500"))
SHARE = 50  # seeds per test, so that a failure names a small range
STEPS_PER_SEED = 250


def run(seed: int) -> Deployment:
    deployment = Deployment(seed)
    for _ in range(STEPS_PER_SEED):
        deployment.step()
        oracle.check_now(deployment)
    deployment.heal()
    oracle.check(deployment)
    oracle.check_replay(deployment)
    return deployment


@pytest.mark.parametrize("first", range(0, SEEDS, SHARE))
def test_histories_keep_the_invariants(first: int) -> None:
    reached: set[str] = set()
    for seed in range(first, first + SHARE):
        try:
            reached |= run(seed).fuse.reached.keys()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert reached >= {*STEPS, *RUNNER_STEPS}
