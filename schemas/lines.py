"""Where a process's log lines go: each at once, whole, past every buffer.

A disk that is full under the log costs lines and nothing else: a log call never raises, and nothing is left to be flushed at the exit.
"""

from __future__ import annotations

import os
from contextlib import suppress


class Lines:
    """What structlog wants of a logger, on a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def msg(self, line: str) -> None:
        """Write it, or lose it."""
        with suppress(OSError):
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace") + b"\n")

    debug = info = warning = error = critical = exception = log = msg
