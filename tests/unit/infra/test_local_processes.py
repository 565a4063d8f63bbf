"""Pids, leash and supervised children, with real processes."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from laxity.infra.local.child import GATE, Child, Hooks, State
from laxity.infra.local.errors import StackError
from laxity.infra.local.leash import line_for, still_running
from laxity.infra.local.leash_pipe import LeashPipe
from laxity.infra.local.pids import ProcessId, end_all, identify, is_alive, send
from laxity.infra.local.processes import ProcessSpec
from laxity.schemas.timing import SystemClock

CLOCK = SystemClock()
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
)


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(SLEEP, start_new_session=True) as popen:
        yield popen
        popen.kill()


@pytest.fixture
def another() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(SLEEP, start_new_session=True) as popen:
        yield popen
        popen.kill()


def identity(popen: "subprocess.Popen[bytes]") -> ProcessId:
    found = identify(popen.pid)
    assert found is not None
    return found


def test_a_recycled_pid_is_not_signalled(sleeper: "subprocess.Popen[bytes]") -> None:
    real = identity(sleeper)
    earlier = ProcessId(pid=real.pid, started="another start")
    assert not is_alive(earlier)
    assert not send(earlier, signal.SIGKILL)
    assert end_all([earlier], grace_ms=100) == 0
    assert sleeper.poll() is None


def test_a_zombie_counts_as_dead(sleeper: "subprocess.Popen[bytes]") -> None:
    process = identity(sleeper)
    sleeper.kill()
    deadline = CLOCK.monotonic_ms() + 5_000
    while is_alive(process):
        assert CLOCK.monotonic_ms() < deadline
    assert sleeper.returncode is None, "not reaped yet, and yet not alive"


def test_end_all_kills_who_ignores_the_polite_signal() -> None:
    with subprocess.Popen(STUBBORN, start_new_session=True, stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        assert end_all([identity(popen)], grace_ms=200) == 1
        assert popen.wait(timeout=5) == -signal.SIGKILL


def test_the_leash_follows_births_and_deaths() -> None:
    first, second = ProcessId(pid=1, started="boot:1"), ProcessId(pid=2, started="Mon Jan  1 00:00:00 2024")
    lines = [line_for("+", first), line_for("+", second), line_for("-", first)]
    text = b"".join(lines).decode()
    assert still_running(text.splitlines(keepends=True)) == {second}
    assert still_running([*text.splitlines(keepends=True), "+3"]) == {second}, "a torn line names nobody"


def test_the_leash_ends_who_is_left_when_its_pipe_closes(sleeper: "subprocess.Popen[bytes]") -> None:
    command = [sys.executable, "-m", "laxity.infra.local.leash"]
    with subprocess.Popen(STUBBORN, start_new_session=True, stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        with subprocess.Popen(command, stdin=subprocess.PIPE) as leash:
            assert leash.stdin is not None
            leash.stdin.write(line_for("+", identity(sleeper)) + line_for("+", identity(stubborn)))
            leash.stdin.flush()
            assert sleeper.poll() is None
            leash.stdin.close()
            assert sleeper.wait(timeout=10) == -signal.SIGTERM
            assert stubborn.wait(timeout=10) == -signal.SIGKILL
            assert leash.wait(timeout=10) == 0


def test_a_child_whose_supervisor_died_before_the_gate_never_starts(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    with subprocess.Popen([*GATE, "/usr/bin/touch", str(trace)], stdin=subprocess.PIPE) as popen:
        assert popen.stdin is not None
        popen.stdin.close()
        assert popen.wait(timeout=5) != 0
    assert not trace.exists()


class World:
    """Children with a probe that a test decides on, and what the supervisor heard."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.answer: str | None = None
        self.born: list[ProcessId] = []
        self.dead: list[ProcessId] = []
        self.broken: list[BaseException] = []
        self.disk_full = False

    def change(self) -> None:
        if self.disk_full:
            raise OSError("no space left")

    async def probe(self) -> str | None:
        return self.answer

    def child(self, argv: tuple[str, ...]) -> Child:
        spec = ProcessSpec(
            role="thing",
            name="thing",
            argv=argv,
            address="-",
            log=self.folder / "thing.log",
            probe=self.probe,
        )
        return Child(
            spec,
            Hooks(
                born=self.born.append, dead=self.dead.append, changed=self.change, broke=self.broken.append
            ),
            CLOCK,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the condition is another process's
            await asyncio.sleep(0.01)


async def ready(child: Child) -> None:
    await child.until_ready(timeout_ms=10_000, deaths_max=3)


async def test_a_killed_child_comes_back_and_is_counted(world: World) -> None:
    child = world.child(SLEEP)
    child.start()
    await ready(child)
    first = child.process
    assert first is not None
    send(first, signal.SIGKILL)
    await until(lambda: child.restarts == 1)
    await ready(child)
    assert child.process not in {None, first}
    await child.stop()
    assert world.dead == world.born
    assert not any(is_alive(process) for process in world.born)
    assert child.state is State.STOPPED
    assert child.restarts == 1, "a stop by request is no restart"


async def test_a_stopped_child_can_be_started_again(world: World) -> None:
    child = world.child(SLEEP)
    child.start()
    await ready(child)
    await child.stop()
    child.start()
    await ready(child)
    assert len(world.born) == 2
    await child.stop()


async def test_a_child_that_cannot_start_is_reported_with_its_last_words(world: World) -> None:
    world.answer = "no answer"
    child = world.child((sys.executable, "-c", "raise SystemExit('no such module: agents')"))
    child.start()
    with pytest.raises(StackError, match=r"thing does not get ready.*no such module: agents.*thing\.log"):
        await ready(child)
    await child.stop()
    assert child.restarts >= 3


async def test_backoff_doubles(world: World) -> None:
    world.answer = "no answer"
    child = world.child(("/bin/sh", "-c", "exit 1"))
    began = CLOCK.monotonic_ms()
    child.start()
    await until(lambda: len(world.born) == 4)
    elapsed = CLOCK.monotonic_ms() - began
    await child.stop()
    assert elapsed >= 200 + 400 + 800


async def test_a_child_that_never_answers_names_the_reason(world: World) -> None:
    world.answer = "port 1 refuses"
    child = world.child(SLEEP)
    child.start()
    with pytest.raises(StackError, match="port 1 refuses"):
        await child.until_ready(timeout_ms=300, deaths_max=3)
    await child.stop()
    assert not is_alive(world.born[0])


async def test_a_long_log_is_put_aside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laxity.infra.local.child.LOG_BYTES_MAX", 10)
    log = world.folder / "thing.log"
    log.write_text("an earlier life\n")
    child = world.child(("/bin/sh", "-c", "echo new life; sleep 60"))
    child.start()
    await until(lambda: log.exists() and "new life" in log.read_text())
    await child.stop()
    assert "earlier" in (world.folder / "thing.log.1").read_text()
    assert "earlier" not in log.read_text()


async def test_a_failure_of_supervision_itself_is_told(world: World) -> None:
    child = world.child(SLEEP)
    child.start()
    await ready(child)
    world.disk_full = True
    send(world.born[0], signal.SIGKILL)
    await until(lambda: bool(world.broken))
    assert "no space left" in str(world.broken[0])
    await child.stop()


async def test_a_killed_leash_is_replaced_and_knows_everybody(
    sleeper: "subprocess.Popen[bytes]", another: "subprocess.Popen[bytes]"
) -> None:
    pipe = LeashPipe()
    await pipe.hold()
    pipe.born(identity(sleeper))
    pipe.born(identity(another))
    pipe.dead(identity(another))
    first = pipe._popen
    first.kill()
    await until(lambda: pipe._popen is not first)
    await pipe.let_go()
    await until(lambda: sleeper.poll() == -signal.SIGTERM)
    assert another.poll() is None, "its pid may be somebody else's"
