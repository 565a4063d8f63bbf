"""A process by pid *and* start time, so that a recycled pid is never signalled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from laxity.schemas.timing import Clock, SystemClock

POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """`started` is opaque: equal for the same process, different for a later one with the same pid."""

    pid: int
    started: str


def _linux_start(pid: int) -> str | None:
    """Ticks since boot, with the boot's id, of a process that is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command may hold spaces and brackets
    if fields[0] in {"Z", "X"}:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return f"{boot}:{fields[19]}"


def _other_start(pid: int) -> str | None:
    """The start as `ps` prints it (macOS, BSD), of a process that is not a zombie."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": os.defpath}
    )
    state, _, start = answer.stdout.strip().partition(" ")
    return start.strip() if start and not state.startswith("Z") else None


def start_of(pid: int) -> str | None:
    """The process's start, None if there is no such process (a zombie counts as none)."""
    return _linux_start(pid) if sys.platform.startswith("linux") else _other_start(pid)


def identify(pid: int) -> ProcessId | None:
    """Identity of a living process."""
    started = start_of(pid)
    return ProcessId(pid=pid, started=started) if started else None


def is_alive(process: ProcessId) -> bool:
    """Whether this very process lives."""
    return start_of(process.pid) == process.started


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal the process and its group, if it leads one; False if it is gone."""
    if not is_alive(process):
        return False
    try:
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def end_all(processes: Iterable[ProcessId], *, grace_ms: int, clock: Clock | None = None) -> int:
    """SIGTERM, wait at most `grace_ms` for all, then SIGKILL; returns how many were alive. Blocks."""
    clock = clock or SystemClock()
    living = [process for process in processes if send(process, signal.SIGTERM)]
    count = len(living)
    until_ms = clock.monotonic_ms() + grace_ms
    while living and clock.monotonic_ms() < until_ms:
        time.sleep(POLL_S)
        living = [process for process in living if is_alive(process)]
    for process in living:
        send(process, signal.SIGKILL)
    return count
