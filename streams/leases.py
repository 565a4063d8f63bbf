"""What the ledger tells of reservations: leases that lapsed, reservations taken back, cancels that took hold.

The ledger knows that a lease is gone, not whether the work was done: that stands in `outcomes`, so a lapsed task is UNKNOWN until
`outcomes` has been read to the end seen at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from laxity.schemas.identity import reservation_id
from laxity.schemas.records import TaskRow
from laxity.streams.batch import Batch
from laxity.streams.completion import bounced, resolve_unknown
from laxity.streams.lifecycle import LEASED, Cause, State
from laxity.streams.reasons import Reason

OUTCOMES = "outcomes"
REVOKES_PER_CALL_MAX = (
    128  # of each kind: above a millisecond of the ledger's only thread; runners bounce in bulk
)


def holder(batch: Batch, reservation: str) -> tuple[str, TaskRow] | None:
    """The task whose live dispatch a reservation is, or None if it is of the past."""
    task_id = reservation.partition(":")[0]
    row = batch.tables.task(task_id)
    if row is None or row.state not in LEASED:
        return None
    return (task_id, row) if reservation == reservation_id(task_id, row.generation, row.dispatch_no) else None


def lapse(batch: Batch, reservations: Iterable[str], outcomes_end: int) -> None:
    """Leases that ran out: unknown until `outcomes_end` has been read."""
    for reservation in reservations:
        found = holder(batch, reservation)
        if found is not None and found[1].state != State.UNKNOWN:
            assert outcomes_end >= 0, f"{reservation} lapsed: the end of outcomes was not asked"
            task_id, row = found
            batch.move(task_id, row, Cause.LOSE, Reason.LEASE_LAPSED, unknown_until=outcomes_end)


def resolve(batch: Batch, task_ids: Iterable[str], read_to: int) -> None:
    """Unknown tasks whose outcome would have been read by now."""
    for task_id in task_ids:
        row = batch.tables.task(task_id)
        if row is not None and row.state == State.UNKNOWN and 0 <= row.unknown_until <= read_to:
            resolve_unknown(batch, task_id, row, started=row.started_ms > 0)


def ask(batch: Batch, task_ids: Iterable[str]) -> None:
    """Revokes and cancels that the ledger has yet to answer, this batch's included; the rest goes with the next call."""
    for task_id in task_ids:
        row = batch.tables.task(task_id)
        if row is None or row.state not in LEASED or not row.revoking:
            continue
        asked = batch.cancels if row.revoking == "cancel" else batch.revokes
        if len(asked) >= REVOKES_PER_CALL_MAX:
            continue
        asked[reservation_id(task_id, row.generation, row.dispatch_no)] = task_id


def conclude(batch: Batch, verdicts: Mapping[str, str], outcomes_end: int) -> None:
    """Answers to `ask`. Claimed: the lease decides over a bounce, and the runner hears of a cancel with its next renewal.

    The task is then cancelled when that runner's attempt ends, or its lease: until then it holds what it holds, whoever takes the
    shard over and whatever the ledger forgets.
    """
    for reservation, verdict in verdicts.items():
        found = holder(batch, reservation)
        if found is None:
            continue
        task_id, row = found
        if row.revoking == "cancel":
            if verdict != "claimed":
                batch.end(task_id, row, Cause.CANCEL, Reason.CANCELLED, known=verdict == "revoked")
        elif row.revoking and verdict == "revoked" and row.state == State.DISPATCHED:
            bounced(batch, task_id, row)
        elif row.revoking:
            batch.tables.put_task(task_id, replace(row, revoking=""))
            if verdict == "gone":
                lapse(batch, [reservation], outcomes_end)
