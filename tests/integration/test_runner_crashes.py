"""The effect protocol under every crash of a runner: real processes, a real scheduler, a provider that counts what it did.

What must be seen for each point. `started`: whether the dispatch that crashed left a durable start. Effects by the time of the end.

| the runner dies        | started | retry              | park                       | reconcile          |
|------------------------|---------|--------------------|----------------------------|--------------------|
| before or after claim  | no      | done, 1 attempt    | done, 1 attempt            | done, 1 attempt    |
| before the call        | yes     | done, 2 attempts   | dead, nothing was done     | done, 2 attempts   |
| in or after the call   | yes     | done, 2, replayed  | dead, it was done          | done, 2, found     |
| after result, commit   | yes     | done, 1 attempt    | done, 1 attempt            | done, 1 attempt    |
"""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from integration.paying import MODES, Deployment, deployment, eventually, started, task_of

from laxity.infra.local import Endpoints
from laxity.schemas.records import TaskEvent

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

POINTS = (
    "before_claim", "after_claim", "before_call", "in_call", "after_call", "after_result", "before_commit",
)  # fmt: skip
NEVER_BEGAN = POINTS[:2]
DONE = POINTS[3:5]  # and nobody knows
KNOWN = POINTS[5:]
QUICK = [("park", point) for point in POINTS] + [("retry", point) for point in POINTS[2:5]]
ALL = [(mode, point) for mode in MODES for point in POINTS]
TOGETHER = 11  # runners at a time


def fleet_of(mode: str, point: str) -> str:
    return f"{mode}-{point.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """What was left behind by a crash in each case, once all tasks had ended."""

    place: Deployment
    ends: Mapping[str, list[TaskEvent]]

    def check(self, mode: str, point: str, task_id: str) -> None:
        (end,) = self.ends[task_id]
        dead = mode == "park" and point in POINTS[2:5]
        attempts = 2 if point in POINTS[2:5] and not dead else 1
        assert (end.state, end.attempt) == ("DEAD" if dead else "SUCCEEDED", attempts)
        assert end.transitions[-1].reason == ("outcome_unknown" if dead else "succeeded")
        outcomes = self.place.outcomes(task_id)
        assert started(outcomes, 1) == (point not in NEVER_BEGAN)
        assert sum(o.kind == "started" for o in outcomes) == attempts, "one for each attempt"
        calls = Counter(line.kind.value for line in self.place.calls(mode) if line.task == task_id)
        assert calls["effect"] == (0 if dead and point == "before_call" else 1)
        assert calls["replay"] == (mode == "retry" and point in DONE)
        reasons = [letter["reason"] for letter in self.place.letters(task_id)]
        assert reasons == (["outcome_unknown"] if dead else [])


def crash(place: Deployment, cases: list[tuple[str, str]], turn: str = "") -> Crashed:
    """Run each case in a fleet of its own: start a runner that dies, then one that lives; wait for the ends."""
    fleets = {fleet_of(*case): case for case in cases}
    place.publish(*fleets, turn=turn)
    dying = {fleet: place.runner(fleet, crash=f"{point}:1") for fleet, (_, point) in fleets.items()}
    living: list[subprocess.Popen[bytes]] = []

    def replaced() -> bool:
        for fleet in [fleet for fleet, process in dying.items() if process.poll() is not None]:
            assert dying.pop(fleet).returncode == -signal.SIGKILL, place.log(fleet)
            living.append(place.runner(fleet))
        return not dying

    eventually("every runner died where it was told to", replaced, 240)
    wanted = {task_of(fleet, turn) for fleet in fleets}
    ends = eventually("every task ended", lambda: (e := place.ended()).keys() >= wanted and e, 180)
    eventually("nothing is reserved", lambda: place.reserved() == 0, 90)
    for process in living:
        process.terminate()
    return Crashed(place=place, ends=ends)


@pytest.fixture(scope="module")
def place(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    fleets = [fleet_of(*case) for case in ALL]
    with deployment(stack, tmp_path_factory.mktemp("crashes"), fleets) as made:
        yield made


@pytest.fixture(scope="module")
def crashed(place: Deployment) -> Crashed:
    return crash(place, QUICK)


@pytest.mark.parametrize(("mode", "point"), QUICK)
def test_a_crash_at_any_step_loses_nothing_and_does_nothing_twice(
    crashed: Crashed, mode: str, point: str
) -> None:
    crashed.check(mode, point, task_of(fleet_of(mode, point)))


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("turn", range(3))
def test_again_and_in_every_mode(place: Deployment, turn: int) -> None:
    for first in range(0, len(ALL), TOGETHER):
        cases = ALL[first : first + TOGETHER]
        seen = crash(place, cases, f"again-{turn}-")
        for mode, point in cases:
            seen.check(mode, point, task_of(fleet_of(mode, point), f"again-{turn}-"))
