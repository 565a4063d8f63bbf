"""One supervised process: started, probed until ready, restarted when it dies, ended on request."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from laxity.infra.local.errors import StackError
from laxity.infra.local.pids import ProcessId, identify, send
from laxity.infra.local.processes import ProcessSpec, full_environment
from laxity.schemas.timing import Clock

BACKOFF_FIRST_MS = 200  # a crash by accident is repaired before anybody looks
BACKOFF_LAST_MS = 5_000  # a crash at every start must not fill the log
STABLE_MS = 10_000  # having run that long, the next crash counts as the first
PROBE_EVERY_S = 0.1
STOP_GRACE_S = 15.0  # Kafka hands over and syncs; a runner drains its calls
LOG_BYTES_MAX = 16 << 20  # a longer log is put aside at the next start, one generation
TAIL_LINES = 3  # what a one-line error can carry
TAIL_BYTES = 2_000

# The child waits for a line before it becomes the program: by then the leash knows its pid, so that no
# moment remains in which a killed supervisor leaves a process that nobody knows.
GATE = ("/bin/sh", "-c", 'read -r go && exec "$@"', "laxity")


class State(StrEnum):
    """Of a child, as status shows it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(slots=True, kw_only=True)
class Hooks:
    """What the supervisor wants to hear: births and deaths at once, every change, and its own end."""

    born: Callable[[ProcessId], None]
    dead: Callable[[ProcessId], None]
    changed: Callable[[], None]
    broke: Callable[[BaseException], None]


def tail(log: Path) -> str:
    """The last lines of a log that say something, for an error message; what is repeated, once."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return " | ".join(dict.fromkeys(line.strip() for line in text.splitlines()[-TAIL_LINES:] if line.strip()))


class Child:
    """Runs one ProcessSpec until `stop`; all methods belong to one event loop."""

    def __init__(self, spec: ProcessSpec, hooks: Hooks, clock: Clock) -> None:
        self.spec = spec
        self.state = State.STOPPED
        self.process: ProcessId | None = None
        self.restarts = 0
        self.since_ms = clock.now_ms()
        self.last_reason = ""
        self._hooks = hooks
        self._clock = clock
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run; does nothing to a running child."""
        if self._task is None or self._task.done():
            self._stopping.clear()
            self._task = asyncio.create_task(self._run(), name=self.spec.name)
            self._task.add_done_callback(self._over)

    def _over(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            self._hooks.broke(error)

    async def stop(self) -> None:
        """End the process (SIGTERM, then SIGKILL) and stay stopped; returns when it is gone."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def until_ready(self, *, timeout_ms: int, deaths_max: int) -> None:
        """Wait for readiness; StackError with the log's end if it dies too often or takes too long."""
        until_ms = self._clock.monotonic_ms() + timeout_ms
        deaths = self.restarts + deaths_max
        while self.state is not State.READY:
            if self._task is not None and self._task.done() and (error := self._task.exception()):
                raise error
            if self.restarts >= deaths or self._clock.monotonic_ms() > until_ms:
                raise self._not_ready(timeout_ms)
            await asyncio.sleep(PROBE_EVERY_S / 2)

    def describe(self) -> dict[str, Any]:
        """The child's row of `status --json`."""
        spec = self.spec
        return {
            "role": spec.role,
            "name": spec.name,
            "pid": self.process.pid if self.process else None,
            "address": spec.address,
            "http": spec.http or None,
            "log": str(spec.log),
            "state": self.state.value,
            "restarts": self.restarts,
            "since_ms": self.since_ms,
            "id": asdict(self.process) if self.process else None,
        }

    def _not_ready(self, timeout_ms: int) -> StackError:
        died = self.state is State.RESTARTING or self.restarts
        why = (
            f"it ended: {tail(self.spec.log)}"
            if died
            else f"not within {timeout_ms // 1000} s: {self.last_reason}"
        )
        return StackError(f"{self.spec.name} does not get ready", why, f"see {self.spec.log}")

    def _set(self, state: State) -> None:
        self.state = state
        self.since_ms = self._clock.now_ms()
        self._hooks.changed()

    async def _run(self) -> None:
        backoff_ms = BACKOFF_FIRST_MS
        while not self._stopping.is_set():
            began_ms = self._clock.monotonic_ms()
            await self._live_once()
            if self._stopping.is_set():
                break
            self.restarts += 1
            self._set(State.RESTARTING)
            if self._clock.monotonic_ms() - began_ms >= STABLE_MS:
                backoff_ms = BACKOFF_FIRST_MS
            await self._pause(backoff_ms / 1000)
            backoff_ms = min(2 * backoff_ms, BACKOFF_LAST_MS)
        self._set(State.STOPPED)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake up to be stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _live_once(self) -> None:
        """From birth to death of one process."""
        popen = await self._spawn()
        exited = asyncio.create_task(popen.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        probing = asyncio.create_task(self._probe_until_ready())
        await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        probing.cancel()
        if not exited.done():
            await self._end(exited)
        stopping.cancel()
        await asyncio.gather(exited, stopping, probing, return_exceptions=True)
        self._buried()

    def _buried(self) -> None:
        if self.process is not None:
            self._hooks.dead(self.process)
        self.process = None

    async def _end(self, exited: "asyncio.Task[int]") -> None:
        assert self.process is not None
        send(self.process, SIGTERM)
        await asyncio.wait({exited}, timeout=STOP_GRACE_S)
        if not exited.done():
            send(self.process, SIGKILL)
            await exited

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Start behind the gate, tell the leash, open the gate."""
        spec = self.spec
        _put_aside(spec.log)
        with spec.log.open("ab") as log:
            popen = await asyncio.create_subprocess_exec(
                *GATE,
                *spec.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=spec.cwd,
                env=full_environment(spec),
                start_new_session=True,
            )
        self.process = identify(popen.pid)
        if self.process is not None:
            self._hooks.born(self.process)
        self._set(State.STARTING)
        assert popen.stdin is not None
        popen.stdin.write(b"go\n")
        popen.stdin.close()
        return popen

    async def _probe_until_ready(self) -> None:
        while reason := await self.spec.probe():
            self.last_reason = reason
            await asyncio.sleep(PROBE_EVERY_S)
        self._set(State.READY)


def _put_aside(log: Path) -> None:
    """Keep one earlier generation of a log that has grown long."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
