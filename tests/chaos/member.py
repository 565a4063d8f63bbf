"""One process under test: started in a group of its own, restarted when it dies, killed and frozen by its saved pid alone.

A member remembers every life it had: when it began and ended, how, and the crash point it was armed with. That is what coverage is counted from.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from laxity.infra.local.pids import ProcessId, identify, send
from laxity.infra.local.processes import ProcessSpec, full_environment
from laxity.schemas.crashpoints import VARIABLE
from laxity.schemas.timing import Clock

RESTART_MS = 200  # after a death, as the local supervisor's first
STOP_S = 20.0  # a runner drains its calls, a broker syncs; then SIGKILL
KILLED = -signal.SIGKILL

Environment = Callable[[str], Mapping[str, str]]
"""Variables of the next start of the process of that name, over those of its spec."""


@dataclass(slots=True, kw_only=True)
class Life:
    """One process from birth to death. Times are monotonic; `code` is as Popen has it, None while it lives; `killed`: by us, from outside."""

    process: ProcessId
    began_ms: int
    crashpoint: str
    ended_ms: int = 0
    code: int | None = None
    killed: bool = False

    @property
    def fell(self) -> bool:
        """Whether it died at the crash point that it was armed with."""
        return self.code == KILLED and bool(self.crashpoint) and not self.killed


@dataclass(slots=True, kw_only=True)
class Member:
    """Thread-safe. `crashpoint`: what the next start is armed with, once (`name:n`); the start after it is armed with the one set meanwhile, or none."""

    spec: ProcessSpec
    environment: Environment
    clock: Clock
    born: Callable[[ProcessId], None]
    buried: Callable[[ProcessId], None]
    crashpoint: str = ""
    lives: list[Life] = field(default_factory=list)
    frozen: bool = False
    _popen: subprocess.Popen[bytes] | None = None
    _wanted: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """Of the process: `scheduler-0`."""
        return self.spec.name

    @property
    def role(self) -> str:
        """kafka, registry, redis, provider, scheduler or runner."""
        return self.spec.role

    @property
    def life(self) -> Life | None:
        """The present one; None between a death and the next start."""
        with self._lock:
            return self.lives[-1] if self._popen is not None else None

    def start(self) -> None:
        """Be alive from now on; does nothing to one that is."""
        with self._lock:
            self._wanted = True
            if self._popen is None:
                self._spawn()

    def keep(self) -> None:
        """Notice a death, and start again once the pause is over. Called every few ms by the world's thread."""
        with self._lock:
            if self._popen is not None and self._popen.poll() is not None:
                self._bury(self._popen.returncode)
            due_ms = self.lives[-1].ended_ms + RESTART_MS if self.lives else 0
            if self._wanted and self._popen is None and self.clock.monotonic_ms() >= due_ms:
                self._spawn()

    def kill(self, *, stay_dead: bool = False) -> Life | None:
        """SIGKILL to the process and its group. The life that ended, None if there was none. `stay_dead`: until `start`."""
        with self._lock:
            life = self.life
            if stay_dead:
                self._wanted = False
            if life is None or self._popen is None or not send(life.process, signal.SIGKILL):
                return None
            life.killed = True
            self._bury(self._popen.wait())
            return life

    def freeze(self) -> bool:
        """SIGSTOP; False if there is nobody to stop."""
        return self._signal(signal.SIGSTOP, frozen=True)

    def thaw(self) -> bool:
        """SIGCONT; False if it was killed meanwhile."""
        return self._signal(signal.SIGCONT, frozen=False)

    def stop(self, grace_s: float = STOP_S) -> int | None:
        """A planned end, and stay stopped: SIGTERM, after the grace SIGKILL. The exit code; None if it did not run."""
        with self._lock:
            self._wanted = False
            popen, life = self._popen, self.life
        if popen is None or life is None:
            return None
        self.thaw()
        send(life.process, signal.SIGTERM)
        try:
            popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
        with self._lock:
            if self._popen is popen:
                self._bury(popen.wait())
            return life.code

    def _signal(self, number: signal.Signals, *, frozen: bool) -> bool:
        with self._lock:
            life = self.life
            done = life is not None and send(life.process, number)
            self.frozen = frozen and done
            return done

    def _spawn(self) -> None:
        armed, self.crashpoint = self.crashpoint, ""
        variables = {**full_environment(self.spec), **self.environment(self.name), VARIABLE: armed}
        with self.spec.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.spec.cwd,
                env=variables,
                start_new_session=True,
            )
        pid = self._popen.pid
        process = identify(pid) or ProcessId(pid=pid, started="")  # it may have ended already
        self.lives.append(Life(process=process, began_ms=self.clock.monotonic_ms(), crashpoint=armed))
        self.born(process)

    def _bury(self, code: int) -> None:
        life = self.lives[-1]
        life.ended_ms, life.code = self.clock.monotonic_ms(), code
        self._popen, self.frozen = None, False
        self.buried(life.process)


def inherited(name: str) -> str:
    """A variable of our own environment, empty if it is not set."""
    return os.environ.get(name, "")
