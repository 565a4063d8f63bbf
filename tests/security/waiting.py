"""Wait for a condition, with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from laxity.schemas.timing import SystemClock

T = TypeVar("T")
CLOCK = SystemClock()


def until(what: str, probe: Callable[[], T], within_s: float = 60.0) -> T:
    """The probe's first answer that counts."""
    pause, end_ms = threading.Event(), CLOCK.monotonic_ms() + round(within_s * 1_000)
    while not (found := probe()):
        assert CLOCK.monotonic_ms() < end_ms, f"not within {within_s} s: {what}"
        pause.wait(0.05)
    return found
