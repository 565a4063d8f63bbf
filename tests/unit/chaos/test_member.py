"""One process under test, with a real process: restarts, crash points armed once, deaths told apart, the stop and the freeze."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.member import RESTART_MS, Member

from laxity.infra.local.pids import ProcessId, is_alive
from laxity.infra.local.processes import ProcessSpec
from laxity.schemas.timing import SystemClock

CLOCK = SystemClock()
PROGRAM = """
import signal, sys, time
from laxity.schemas.crashpoints import reach
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("up", flush=True)
while True:
    reach("here")
    time.sleep(0.01)
"""


async def _ready() -> str | None:
    return None


def until(holds: Callable[[], bool]) -> None:
    end_ms, pause = CLOCK.monotonic_ms() + 20_000, threading.Event()
    while not holds():
        assert CLOCK.monotonic_ms() < end_ms
        pause.wait(0.01)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """Kept alive by a thread, as in a world."""
    spec = ProcessSpec(
        role="runner",
        name="runner-0",
        argv=(sys.executable, "-c", PROGRAM),
        address="",
        log=tmp_path / "log",
        probe=_ready,
    )
    told: list[ProcessId] = []
    made = Member(spec=spec, environment=lambda _: {}, clock=CLOCK, born=told.append, buried=told.remove)
    ending = threading.Event()

    def keep() -> None:
        while not ending.wait(0.01):
            made.keep()

    keeper = threading.Thread(target=keep)
    keeper.start()
    yield made
    made.kill(stay_dead=True)
    ending.set()
    keeper.join()
    assert told == []


def up(member: Member, times: int) -> None:
    until(lambda: member.spec.log.exists() and member.spec.log.read_text().count("up") >= times)


def test_a_killed_process_is_back_after_the_pause(member: Member) -> None:
    member.start()
    up(member, 1)
    killed = member.kill()
    assert killed is not None
    assert (killed.code, killed.killed, killed.fell) == (-signal.SIGKILL, True, False)
    assert not is_alive(killed.process)
    up(member, 2)
    assert len(member.lives) == 2
    assert member.lives[1].began_ms - killed.ended_ms >= RESTART_MS


def test_a_crash_point_arms_one_start_and_its_death_counts(member: Member) -> None:
    member.crashpoint = "here:5"
    member.start()
    until(lambda: len(member.lives) == 2)
    first, second = member.lives
    assert first.fell
    assert (second.crashpoint, second.code) == ("", None)
    up(member, 2)


def test_a_kill_from_outside_is_no_fall_even_if_the_process_was_armed(member: Member) -> None:
    member.crashpoint = "elsewhere:1"
    member.start()
    up(member, 1)
    life = member.kill(stay_dead=True)
    assert life is not None
    assert not life.fell
    assert member.life is None
    assert member.kill() is None


def test_a_planned_stop_has_the_exit_code_and_lasts(member: Member) -> None:
    member.start()
    up(member, 1)
    member.freeze()  # it is thawed first, else it would not hear
    assert member.stop() == 7
    assert member.life is None
    assert member.stop() is None
    member.start()
    up(member, 2)


def test_a_frozen_process_does_nothing_until_it_is_thawed(member: Member) -> None:
    assert member.freeze() is False
    member.start()
    up(member, 1)
    assert member.freeze()
    assert member.life is not None
    stat = Path(f"/proc/{member.life.process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    assert member.frozen
    assert member.thaw()
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] != "T")
    assert not member.frozen
