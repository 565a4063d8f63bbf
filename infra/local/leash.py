"""The leash: a small process that ends the stack's children when the supervisor is gone, however it died.

It reads its standard input, a pipe that only the supervisor holds. `+PID START` and `-PID START` say which
children run; the end of the file means that the supervisor is gone, and whoever still runs is ended.
"""

import sys
from collections.abc import Iterable

from laxity.infra.local.pids import ProcessId, end_all

GRACE_MS = 6_000  # Kafka's controlled shutdown takes 1-2 s; all must be over within 10 s


def line_for(sign: str, process: ProcessId) -> bytes:
    """One line of the pipe; sign is + (started) or - (ended)."""
    return f"{sign}{process.pid} {process.started}\n".encode()


def still_running(lines: Iterable[str]) -> set[ProcessId]:
    """Follow the lines to the end of the file; a torn last line names nobody."""
    running: set[ProcessId] = set()
    for line in lines:
        if not line.endswith("\n"):
            continue
        pid, _, started = line[1:].strip().partition(" ")
        process = ProcessId(pid=int(pid), started=started)
        (running.add if line[0] == "+" else running.discard)(process)
    return running


def main() -> None:
    """Wait for the supervisor's end, then end its children."""
    end_all(still_running(sys.stdin), grace_ms=GRACE_MS)


if __name__ == "__main__":
    main()
