"""Errors of the scheduler.

SchedulerError
├── IllegalTransitionError   a bug: the lifecycle has no such step
└── StateVersionError        the rows were written by a newer release
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Root of this package's errors."""


class IllegalTransitionError(SchedulerError):
    """The lifecycle has no such step; the task is left as it was."""

    def __init__(self, *, before: str, cause: str) -> None:
        super().__init__(f"no step {cause!r} from state {before or 'NEW'!r}")


class StateVersionError(SchedulerError):
    """The rows were written by a newer release; this one would misread them."""

    def __init__(self, *, found: int, known: int) -> None:
        super().__init__(
            f"state version {found} is newer than {known}, the newest this release reads: upgrade this process"
        )
