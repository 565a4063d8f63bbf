"""Places where a process can be made to die, for the tests of what a crash leaves behind.

`CRASHPOINT=name:n` kills this process with SIGKILL when it reaches the place `name` for the n-th time. Nothing is armed otherwise.
"""

from __future__ import annotations

import os
import re
import signal

VARIABLE = "CRASHPOINT"


class _Trap:
    """Counts down to the kill."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.left = count


def _armed(text: str) -> _Trap | None:
    if not text:
        return None
    found = re.fullmatch(r"([a-z][a-z_]*):([1-9][0-9]{0,8})", text)
    if found is None:
        raise ValueError(f"{VARIABLE} is {text!r}: write name:n, n from 1")
    return _Trap(found[1], int(found[2]))


_trap = _armed(os.environ.get(VARIABLE, ""))  # read once: a place that is not armed costs one comparison


def armed(name: str) -> bool:
    """Whether this place is the one that kills."""
    return _trap is not None and _trap.name == name


def reach(name: str) -> None:
    """The process is at the place `name`."""
    if _trap is None or _trap.name != name:
        return
    _trap.left -= 1
    if _trap.left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
