"""How many dispatches may stand at this runner beside those that run."""

from __future__ import annotations

from typing import Final

WAIT_MS: Final = 50  # what a dispatch may wait here, on average: longer, and it had better been sent later, to whoever is free
PREFETCH_MAX: Final = 1_024  # agents that do nothing at all must not empty the scheduler's ready table
SMOOTHING: Final = 8  # a new duration counts an eighth: one long task is no trend


class Pace:
    """Keeps a smoothed duration of attempts; `fixed` overrides what follows from it."""

    def __init__(self, *, slots: int, fixed: int | None = None) -> None:
        self._slots = slots
        self._fixed = fixed
        self._mean_ms: float | None = None

    def took(self, duration_ms: int) -> None:
        """An attempt held its slot for this long."""
        value = max(duration_ms, 1)
        self._mean_ms = (
            value if self._mean_ms is None else self._mean_ms + (value - self._mean_ms) / SMOOTHING
        )

    def prefetch(self) -> int:
        """So many that they start within WAIT_MS; at least one, so that the end of an attempt is followed by a start."""
        if self._fixed is not None:
            return self._fixed
        if self._mean_ms is None:
            return 1
        return min(max(round(self._slots * WAIT_MS / self._mean_ms), 1), PREFETCH_MAX)
