"""When the next batch begins.

Transactions per second, not tasks, set the latency, so the interval stretches with their cost and with the number of busy shards in the
process; after a pause longer than the interval a batch begins at once, and a full batch never waits.
"""

from __future__ import annotations

from laxity.schemas.timing import Millis

RECORDS_MAX = 500  # beyond it a batch's latency grows and its cost per record no longer falls
INTERVAL_MS_MIN = 2
INTERVAL_MS_MAX = 20
PATIENT_MS_MAX = 100  # where only the low and background tiers wait
COST_WEIGHT = 4  # the newest batch counts a quarter


class Pace:
    """Of one shard. Times are of a monotonic clock."""

    __slots__ = ("_begun_ms", "_cost_ms")

    def __init__(self) -> None:
        self._begun_ms: Millis | None = None
        self._cost_ms = 0

    def interval_ms(self, *, busy_shards: int, patient: bool) -> Millis:
        """From the beginning of a batch to that of the next."""
        longest, factor = (PATIENT_MS_MAX, 5) if patient else (INTERVAL_MS_MAX, 1)
        return max(INTERVAL_MS_MIN, min(longest, self._cost_ms * max(1, busy_shards) * factor))

    def wait_ms(self, now_ms: Millis, waiting: int, *, busy_shards: int, patient: bool) -> Millis:
        """How long to gather more; 0: begin."""
        if self._begun_ms is None or waiting >= RECORDS_MAX:
            return 0
        return max(0, self._begun_ms + self.interval_ms(busy_shards=busy_shards, patient=patient) - now_ms)

    def ran(self, begun_ms: Millis, ended_ms: Millis) -> None:
        """A batch was carried out."""
        self._begun_ms = begun_ms
        cost = ended_ms - begun_ms
        self._cost_ms = (self._cost_ms * (COST_WEIGHT - 1) + cost + COST_WEIGHT // 2) // COST_WEIGHT
