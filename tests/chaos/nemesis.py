"""Kills processes of a running stack with SIGKILL, one after the other, by the pids that the stack itself names."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 - the seed is the argument

from laxity.infra.local.data_dir import DataDir, read_record
from laxity.schemas.timing import Clock

BACK_MS = 60_000  # a killed process that is not ready again by then is a failure of its own
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill: who, when, how long until ready again (-1: never), and whether tasks were under way."""

    name: str
    at_ms: int
    back_ms: int
    busy: int


@dataclass(slots=True, kw_only=True)
class Nemesis:
    """Kills every process `rounds` times, in an order drawn from the seed, with quiet time between."""

    data_dir: Path
    seed: int
    rounds: int
    pause_ms: int
    busy: Callable[[], int]
    clock: Clock
    kills: list[Kill] = field(default_factory=list)
    failure: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until all rounds are done or `stop` is called. What goes wrong is kept in `failure`."""
        random = Random(self.seed)
        names = [str(row["name"]) for row in self._rows()]
        for _ in range(self.rounds):
            random.shuffle(names)
            for name in names:
                if not self._await_work() or self._stop.wait(random.uniform(0.3, 1) * self.pause_ms / 1_000):
                    return
                self._kill(name)
                if self.failure:
                    return

    def stop(self) -> None:
        """No further kill."""
        self._stop.set()

    def counts(self) -> Counter[str]:
        """Kills per process that hit while tasks were under way."""
        return Counter(kill.name for kill in self.kills if kill.busy)

    def _rows(self) -> Sequence[dict[str, object]]:
        record = read_record(DataDir.at(self.data_dir))
        assert record is not None, f"no stack in {self.data_dir}"
        rows: Sequence[dict[str, object]] = record["processes"]
        return rows

    def _row(self, name: str) -> dict[str, object]:
        return next(row for row in self._rows() if row["name"] == name)

    def _await_work(self) -> bool:
        """Chaos that hits an idle system is no evidence."""
        while not self._stop.is_set():
            if self.busy():
                return True
            self._stop.wait(POLL_S)
        return False

    def _kill(self, name: str) -> None:
        victim, busy, at_ms = self._row(name), self.busy(), self.clock.now_ms()
        pid = victim["pid"]
        assert isinstance(pid, int), f"{name} has no pid"
        os.kill(pid, signal.SIGKILL)
        began = self.clock.monotonic_ms()
        while self.clock.monotonic_ms() - began < BACK_MS:
            row = self._row(name)
            if row["pid"] != pid and row["state"] == "ready":
                back_ms = self.clock.monotonic_ms() - began
                self.kills.append(Kill(name=name, at_ms=at_ms, back_ms=back_ms, busy=busy))
                return
            self._stop.wait(POLL_S)
        self.kills.append(Kill(name=name, at_ms=at_ms, back_ms=-1, busy=busy))
        self.failure = f"{name} was killed and is not ready again after {BACK_MS} ms"
