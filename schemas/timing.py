"""Time as an argument: milliseconds, a Clock protocol, the system's clock and one that tests move by hand."""

from __future__ import annotations

import time
from typing import Protocol

Millis = int


class Clock(Protocol):
    """Where time comes from. Everything but `SystemClock` and `ManualClock` takes one as an argument."""

    def now_ms(self) -> Millis:
        """Wall clock, UTC, in milliseconds since 1970; may step backwards."""
        ...

    def monotonic_ms(self) -> Millis:
        """For durations and time limits of this process; never steps."""
        ...


# A lease goes on while this machine sleeps, and time.monotonic() of Linux and macOS stops: these clocks do not.
_AWAKE_AND_ASLEEP = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class SystemClock:
    """The clocks of the operating system."""

    def now_ms(self) -> Millis:
        """Wall clock, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> Millis:
        """Monotonic clock, counting also while the machine is suspended."""
        if _AWAKE_AND_ASLEEP is None:  # Windows, whose monotonic clock does count
            return time.monotonic_ns() // 1_000_000
        return time.clock_gettime_ns(_AWAKE_AND_ASLEEP) // 1_000_000


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: Millis = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 0

    def now_ms(self) -> Millis:
        """As set."""
        return self._now_ms

    def monotonic_ms(self) -> Millis:
        """Sum of all advances."""
        return self._monotonic_ms

    def advance(self, ms: Millis) -> None:
        """Move both clocks forward."""
        assert ms >= 0, f"advance by {ms} ms: use step() to move the wall clock back"
        self._now_ms += ms
        self._monotonic_ms += ms

    def step(self, ms: Millis) -> None:
        """Step the wall clock alone, in either direction, as an operator or NTP would."""
        self._now_ms += ms
