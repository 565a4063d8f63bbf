"""Signals -> sort key. Keys are unsigned integers, smaller is more urgent; frozen when the task enters the table."""

from __future__ import annotations

from laxity.schemas.records import TaskRow


def order_of(row: TaskRow) -> int:
    """Key inside a lane and tier: the deadline (earliest deadline first; `strict` differs only across tiers, see choose.py)."""
    return max(0, row.deadline_ms)


def latest_start(row: TaskRow) -> int:
    """The last instant at which a start can still meet the deadline; an unknown estimate counts as 0."""
    return max(0, row.deadline_ms - row.estimate_ms)
