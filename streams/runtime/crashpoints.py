"""The places of the host where a test may kill the process, as a power cut would (`CRASHPOINT=name:n`, see laxity.schemas.crashpoints)."""

from __future__ import annotations

from laxity.schemas.crashpoints import reach

POINTS = (
    "after_poll",  # records taken, nothing decided
    "after_step",  # decided, nothing begun
    "after_begin",  # an empty transaction is open
    "mid_produce",  # half of the records are in the producer's queue
    "before_offsets",  # all records, no offsets
    "before_commit",  # all records and offsets
    "after_commit",  # committed, nothing in the store
    "mid_apply",  # one of the two stores is written
    "after_apply",  # both are, the core does not know yet
    "mid_restore",  # one batch of a changelog restored
    "mid_takeover",  # fenced and restored, the owner epoch not yet raised
    "before_ledger",
    "after_ledger",
)

__all__ = ["POINTS", "reach"]
