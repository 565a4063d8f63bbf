"""The supervisor's end of the leash: keeps one leash process alive and told who runs."""

import asyncio
import sys

from laxity.infra.local.leash import line_for
from laxity.infra.local.pids import ProcessId

RESTART_PAUSE_S = 0.2  # a leash that dies at once must not spin


class LeashPipe:
    """One leash at a time; should somebody kill it, the next one hears of every living child."""

    def __init__(self) -> None:
        self._running: set[ProcessId] = set()
        self._watching: asyncio.Task[None] | None = None
        self._popen: asyncio.subprocess.Process

    async def hold(self) -> None:
        """Start the leash and watch over it."""
        await self._start()
        self._watching = asyncio.create_task(self._watch(), name="leash")

    def born(self, process: ProcessId) -> None:
        """A child runs; from here on the leash ends it if we cannot."""
        self._running.add(process)
        self._tell("+", process)

    def dead(self, process: ProcessId) -> None:
        """A child is over and reaped: its pid may belong to somebody else soon."""
        self._running.discard(process)
        self._tell("-", process)

    async def let_go(self) -> None:
        """Close the pipe; the leash ends whoever is left, then itself."""
        if self._watching is None:
            return
        self._watching.cancel()
        await asyncio.wait({self._watching})
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        await self._popen.wait()

    def _tell(self, sign: str, process: ProcessId) -> None:
        """Written at once: a line fits the pipe. To a dead leash it is lost, and its successor told anew."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line_for(sign, process))

    async def _start(self) -> None:
        self._popen = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "laxity.infra.local.leash",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        for process in self._running:
            self._tell("+", process)

    async def _watch(self) -> None:
        while True:
            await self._popen.wait()
            await asyncio.sleep(RESTART_PAUSE_S)
            await self._start()
