"""The clocks."""

from __future__ import annotations

import sys
import time

import pytest

from laxity.schemas.timing import SystemClock


@pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux's clock by its name")
def test_durations_go_on_while_the_machine_sleeps() -> None:
    """A lease in the ledger does not sleep with us. CLOCK_BOOTTIME is CLOCK_MONOTONIC plus the time asleep."""
    before_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    seen_ms = SystemClock().monotonic_ms()
    assert before_ms <= seen_ms <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
