"""One runner: a fleet's dispatches in, outcomes out, until it is told to stop.

poll thread (intake.py) ── deliveries ──▶ desk: question? known? ──▶ execution.py, one coroutine each
register every second   renew every TTL/3   sweep five times a second                  (all on one event loop)
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

import structlog

from laxity.consumers.desk import Desk
from laxity.consumers.doors import DispatchConsumer
from laxity.consumers.execution import Execution
from laxity.consumers.intake import Delivery, Intake
from laxity.consumers.leases import Leases, Sleep, Stop
from laxity.consumers.metrics import RunnerMetrics
from laxity.consumers.pace import Pace
from laxity.consumers.slots import Slots
from laxity.schemas.timing import Clock

REGISTER_MS: Final = 1_000
REGISTER_TTL_MS: Final = 3_000  # two announcements may be lost
SWEEP_MS: Final = 200  # how exactly a fence or a time limit is kept
RENEW_RETRY_MS: Final = 1_000  # after a renewal without an answer
YIELD_MS: Final = 5_000  # before the end of the grace agents are asked to yield
STOP_MS: Final = 7_000  # for stopped agents to end and their outcomes to be written
LEAVE_MS: Final = 5_000  # to commit and leave the group; without a broker that never ends
HANG_MS: Final = 10_000  # a loop or thread that did not turn for so long hangs
HOST_CHARS_MAX: Final = 64

_number = count(1)
_log = structlog.get_logger("laxity.agents")


class RunnerFailed(Exception):  # noqa: N818 - it says what happened
    """The runner cannot go on; its supervisor starts another."""


def runner_name(clock: Clock) -> str:
    """`{host}-{pid}-{start}-{n}`: never the same twice, so that a lease can tell a restarted runner from the one that died."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:HOST_CHARS_MAX]
    return f"{host}-{os.getpid()}-{clock.now_ms()}-{next(_number)}"


class Runner:
    """Owns the loops of one runner; everything it needs is given to it."""

    def __init__(
        self,
        *,
        name: str,
        fleet: str,
        consumer: DispatchConsumer,
        leases: Leases,
        execution: Execution,
        desk: Desk,
        slots: Slots,
        pace: Pace,
        metrics: RunnerMetrics,
        clock: Clock,
        sleep: Sleep,
        grace_ms: int,
    ) -> None:
        self.name = name
        self.fleet = fleet
        self._leases = leases
        self._execution = execution
        self._desk = desk
        self._slots = slots
        self._pace = pace
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._grace_ms = grace_ms
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._broken = False
        self._registered: tuple[int, int] | None = None  # partition, monotonic ms of the last answer
        self._beat_ms = clock.monotonic_ms()
        self._intake = Intake(consumer, clock=clock, deliver=self._deliver, changed=self._assignment_changed)
        desk.open(self._intake.finished, self.fail)
        metrics.slots.set(slots.capacity)

    def stop(self) -> None:
        """Drain and end; on the loop."""
        self._stop.set()

    def fail(self, error: BaseException) -> None:
        """End as soon as possible: something must not go on. On the loop."""
        self._broken = True
        self._end(error)

    def _end(self, error: BaseException) -> None:
        """End because of this, but let what runs come to its end."""
        self._failure = self._failure or error
        self._stop.set()

    def alive(self) -> bool:
        """Neither the loop nor the poll thread hangs. From any thread."""
        now_ms = self._clock.monotonic_ms()
        return max(now_ms - self._beat_ms, now_ms - self._intake.beat_ms) < HANG_MS

    def ready(self) -> bool:
        """Dispatches can come: registered with a partition of its own. From any thread."""
        registered = self._registered
        return registered is not None and self._clock.monotonic_ms() - registered[1] < REGISTER_TTL_MS

    async def run(self) -> None:
        """Until `stop`, then drained. RunnerFailed if something made it end."""
        thread = threading.Thread(target=self._intake.run, name="dispatch-poll", daemon=True)
        thread.start()
        with self._background(self._renew_for_ever(), self._sweep_for_ever()):
            with self._background(self._register_for_ever()):
                await self._stop.wait()
            self._registered = None
            await self._leases.deregister(fleet=self.fleet)
            if not self._broken:
                await self._drain()
        self._desk.close()
        self._intake.stop()
        await asyncio.to_thread(thread.join, LEAVE_MS / 1_000)
        if thread.is_alive():
            _log.warning(
                "runner.group_not_left", after_ms=LEAVE_MS
            )  # the broker does not answer: it will notice
        self._leases.close()
        if self._failure is not None:
            raise RunnerFailed(f"runner {self.name}: {self._failure}") from self._failure

    async def _drain(self) -> None:
        """Finish what runs; ask it to yield when time runs short; stop it when time is up."""
        _log.info("runner.draining", running=len(self._leases.live()), grace_ms=self._grace_ms)
        self._execution.drain()
        yield_ms = min(YIELD_MS, self._grace_ms // 2)
        if await self._desk.idle(self._grace_ms - yield_ms):
            return
        for lease in self._leases.live():
            lease.yield_asked = True
        if await self._desk.idle(yield_ms):
            return
        for lease in self._leases.live():
            lease.halt(Stop.DRAINED)
        if not await self._desk.idle(STOP_MS):
            _log.warning("runner.left_behind", tasks=self._desk.unfinished)

    async def _register_for_ever(self) -> None:
        while True:
            self._changed.clear()
            await self._register()
            try:
                await asyncio.wait_for(self._changed.wait(), REGISTER_MS / 1_000)
            except TimeoutError:
                continue

    async def _register(self) -> None:
        assignment = self._intake.assignment
        self._metrics.partitions.set(len(assignment))
        if not assignment:
            if self._registered is not None and await self._leases.deregister(fleet=self.fleet):
                self._registered = None
            return
        credit = self._slots.capacity + self._pace.prefetch() + self._slots.away
        answered = await self._leases.register(
            fleet=self.fleet, partition=assignment[0], credit=credit, ttl_ms=REGISTER_TTL_MS
        )
        if answered:
            if self._registered is None or self._registered[0] != assignment[0]:
                _log.info("runner.registered", runner=self.name, fleet=self.fleet, partition=assignment[0])
            self._registered = (assignment[0], self._clock.monotonic_ms())
        self._metrics.credit.set(credit if answered else 0)

    async def _renew_for_ever(self) -> None:
        while True:
            answered = await self._leases.renew()
            if not answered:
                self._metrics.renewals_failed.inc()
                _log.warning("leases.not_renewed", leases=len(self._leases.live()))
            await self._sleep(self._leases.renew_every_ms if answered else RENEW_RETRY_MS)

    async def _sweep_for_ever(self) -> None:
        while True:
            self._leases.sweep()
            self._metrics.slots_taken.set(self._slots.taken)
            self._metrics.unfinished.set(self._desk.unfinished)
            self._beat_ms = self._clock.monotonic_ms()
            if self._intake.failure is not None:
                self._end(self._intake.failure)  # nothing more comes, but outcomes can be written
            await self._sleep(SWEEP_MS)

    @contextmanager
    def _background(self, *loops: Coroutine[Any, Any, None]) -> Iterator[None]:
        """Run beside what is inside; one that breaks ends the runner."""
        tasks = [self._loop.create_task(loop) for loop in loops]
        for task in tasks:
            task.add_done_callback(self._loop_ended)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._desk.accept, deliveries)

    def _assignment_changed(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)
