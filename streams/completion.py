"""Stage 8: an outcome ends a dispatch: settle, retry at, dead-letter, or note and ignore what comes too late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from laxity.schemas.identity import digest_of
from laxity.schemas.limits import EVENT_RESULT_BYTES_MAX
from laxity.schemas.records import AttemptNote, Outcome, TaskRow
from laxity.streams import letters, reports, urgency
from laxity.streams.batch import Batch
from laxity.streams.effects import Record
from laxity.streams.lifecycle import LEASED, Cause, State
from laxity.streams.reasons import BOUNCES, Reason

HISTORY_MAX = 32  # notes kept in the row; each is some 100 bytes
NOTE_CHARS_MAX = 256
BOUNCE_BACKOFF_MS = (
    250  # doubles with each bounce in a row: a runner that refuses everything must not spin the shard
)
BOUNCE_BACKOFF_MS_MAX = 30_000
UNREADABLE_MAX = 8  # refusals within half a minute: by then every runner that there is has had its turn


def complete(batch: Batch, record: Record) -> None:
    """A record of `outcomes`. Below the applied mark it was dealt with."""
    outcome = letters.decoded(batch, record, Outcome)
    if outcome is None:
        return
    if outcome.original is not None and not outcome.task_id:
        batch.write(letters.of_record(batch.place, None, outcome.original, Reason.POISON, outcome.message))
        return
    sound, problem = reports.vetted(outcome)
    if problem:
        letters.refuse(batch, record, Reason.INVALID, problem)
    if sound is not None:
        _apply(batch, sound, record)


def _apply(batch: Batch, outcome: Outcome, record: Record) -> None:
    row = batch.tables.task(outcome.task_id)
    if row is None or not _is_current(row, outcome):
        if outcome.kind in _FINAL and outcome.original is None:
            tier = 0 if row is None else row.tier
            batch.tell(
                "late_completion",
                outcome.task_id,
                tier,
                generation=outcome.generation,
                dispatch_no=outcome.dispatch_no,
                runner=outcome.runner,
                code=outcome.code,
                detail=outcome.kind,
            )
        return
    used_up = replace(row, usage=reports.added(row.usage, outcome.usage)) if outcome.usage else row
    _HANDLERS[outcome.kind](batch, outcome.task_id, used_up, outcome, record)


def _is_current(row: TaskRow, outcome: Outcome) -> bool:
    fence = (outcome.generation, outcome.dispatch_no)
    return row.state in LEASED and fence == (row.generation, row.dispatch_no)


def _started(batch: Batch, task_id: str, row: TaskRow, _outcome: Outcome, record: Record) -> None:
    if row.started_ms:
        return
    batch.move(
        task_id,
        row,
        Cause.START,
        Reason.STARTED,
        record.timestamp_ms,
        started_ms=record.timestamp_ms,
        attempt=row.attempt + 1,
        bounces=0,
        revoking="" if row.revoking == "bounce" else row.revoking,
    )


def _progress(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, _record: Record) -> None:
    batch.tables.put_task(task_id, _checkpointed(row, outcome))


def _checkpointed(row: TaskRow, outcome: Outcome) -> TaskRow:
    """A report without a checkpoint leaves the last one."""
    return row if outcome.checkpoint is None else replace(row, checkpoint=outcome.checkpoint)


def _succeeded(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, record: Record) -> None:
    batch.settle(task_id, row, outcome.used)
    result = outcome.result if outcome.result and len(outcome.result) <= EVENT_RESULT_BYTES_MAX else None
    where = f"{batch.place.prefix}{record.topic}:{record.partition}:{record.offset}" if outcome.result else ""
    batch.end(
        task_id,
        _ended(row),
        Cause.SUCCEED,
        Reason.SUCCEEDED,
        record.timestamp_ms,
        result=result,
        result_ref=where,
    )


def _failed(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, record: Record) -> None:
    if outcome.original is not None:
        _unreadable(batch, task_id, row, outcome, record)
        return
    batch.settle(task_id, row, outcome.used)
    stopped = outcome.code == Reason.CANCELLED  # in the middle: what it had done, nobody knows
    if stopped and _is_cancelled(batch, task_id, _ended(row), record.timestamp_ms, known=False):
        return
    row = _noted(_ended(row), outcome.code or "failed", outcome.message, record.timestamp_ms)
    if outcome.code == Reason.POISON:
        batch.end(task_id, row, Cause.DIE, Reason.POISON, record.timestamp_ms, message=outcome.message)
    elif not outcome.retryable:
        batch.end(task_id, row, Cause.DIE, Reason.NOT_RETRYABLE, record.timestamp_ms, message=outcome.message)
    else:
        retry(
            batch,
            task_id,
            row,
            record.timestamp_ms,
            not_before_ms=record.timestamp_ms + outcome.retry_after_ms,
        )


def _yielded(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, record: Record) -> None:
    batch.settle(task_id, row, outcome.used)
    give_back(
        batch,
        task_id,
        replace(_checkpointed(row, outcome), attempt=row.attempt - (1 if row.started_ms else 0)),
        Reason.YIELDED,
        record.timestamp_ms,
    )


def _unknown(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, record: Record) -> None:
    batch.settle(task_id, row, outcome.used)
    row = batch.move(task_id, _ended(row), Cause.LOSE, Reason.OUTCOME_UNKNOWN, record.timestamp_ms)
    resolve_unknown(
        batch, task_id, row, started=True, message=outcome.message, happened_ms=record.timestamp_ms
    )


def _bounced(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, _record: Record) -> None:
    """Ask the ledger to take the reservation back; a running task's lease decides, and so does a claimed one's."""
    if row.state == State.DISPATCHED and not row.revoking:
        reason = outcome.code if outcome.code in BOUNCES else Reason.BOUNCED
        batch.tables.put_task(task_id, replace(row, revoking="bounce", reason=reason))


def _unreadable(batch: Batch, task_id: str, row: TaskRow, outcome: Outcome, record: Record) -> None:
    """The runner cannot read what this shard wrote. Another release of it may: a bounce that is noted, and counted by its notes."""
    if row.state == State.DISPATCHED and not row.revoking:
        noted = _noted(row, Reason.POISON, outcome.message, record.timestamp_ms)
        batch.tables.put_task(task_id, replace(noted, revoking="bounce", reason=Reason.POISON))


Handler = Callable[[Batch, str, TaskRow, Outcome, Record], None]
_HANDLERS: dict[str, Handler] = {
    "started": _started,
    "progress": _progress,
    "succeeded": _succeeded,
    "failed": _failed,
    "yielded": _yielded,
    "unknown": _unknown,
    "bounced": _bounced,
}
_FINAL = frozenset({"succeeded", "failed", "unknown", "yielded"})


def _ended(row: TaskRow) -> TaskRow:
    """An attempt that ended was an attempt, even if its start was not seen. The shard counts, whatever the runner says."""
    return replace(row, attempt=row.attempt + (0 if row.started_ms else 1), after_unknown=False)


def _noted(row: TaskRow, code: str, message: str, at_ms: int) -> TaskRow:
    note = AttemptNote(
        attempt=row.attempt,
        dispatch_no=row.dispatch_no,
        runner=row.runner,
        started_ms=row.started_ms,
        ended_ms=at_ms,
        code=code,
        message=message[:NOTE_CHARS_MAX],
    )
    return replace(row, history=(*row.history, note)[-HISTORY_MAX:])


def backoff_ms(task_id: str, generation: int, attempt: int, base_ms: int, most_ms: int) -> int:
    """Full jitter (Brooker, 2015): uniform in 0 .. min(most, base * 2^(attempt - 1)), drawn from the task's own name."""
    window = min(most_ms, base_ms << min(attempt - 1, 40)) if attempt > 0 else 0
    return int(digest_of("backoff", task_id, str(generation), str(attempt)), 16) % (window + 1)


def retry(batch: Batch, task_id: str, row: TaskRow, happened_ms: int, *, not_before_ms: int = 0) -> None:
    """Another attempt after a backoff that ends before the deadline; no attempt or no time left: the task dies."""
    if _is_cancelled(batch, task_id, row, happened_ms, known=not row.after_unknown):
        return
    last_ms = urgency.latest_start(row) if row.firm else row.deadline_ms
    earliest_ms = max(batch.now_ms, not_before_ms)
    if row.attempt >= row.max_attempts or earliest_ms > last_ms:
        spent = row.attempt >= row.max_attempts
        reason = Reason.ATTEMPTS_EXHAUSTED if spent else Reason.DEADLINE_EXHAUSTED
        batch.end(task_id, row, Cause.DIE, reason, happened_ms, known=not row.after_unknown)
        return
    type_ = batch.place.config.type_of(row.type)
    most_ms = min(type_.backoff_ms_max, last_ms - batch.now_ms)
    delay_ms = backoff_ms(task_id, row.generation, row.attempt, type_.backoff_ms, most_ms)
    due_ms = max(earliest_ms, batch.now_ms + delay_ms)
    batch.move(task_id, row, Cause.RETRY, Reason.RETRY, happened_ms, due_ms=due_ms, **_UNLEASED)


_UNLEASED: dict[str, Any] = {
    "runner": "",
    "granted": {},
    "dispatched_ms": 0,
    "started_ms": 0,
    "revoking": "",
    "unknown_until": -1,
}


def give_back(batch: Batch, task_id: str, row: TaskRow, reason: str, happened_ms: int = 0) -> None:
    """Ready again at once, no attempt spent."""
    if not _is_cancelled(batch, task_id, row, happened_ms, known=True):
        batch.move(task_id, row, Cause.RETURN, reason, happened_ms, ready_ms=batch.now_ms, **_UNLEASED)


def _is_cancelled(batch: Batch, task_id: str, row: TaskRow, happened_ms: int, *, known: bool) -> bool:
    """Whether a cancel waits for the ledger's word: then the end of this dispatch is the end of the task."""
    if row.revoking != "cancel":
        return False
    batch.end(task_id, row, Cause.CANCEL, Reason.CANCELLED, happened_ms, known=known)
    return True


def bounced(batch: Batch, task_id: str, row: TaskRow) -> None:
    """The reservation was taken back before any claim: it surely never started. Again after a short, growing wait.

    What UNREADABLE_MAX runners could not read is a dead letter: the original of the task, which can be redriven.
    """
    if sum(note.code == Reason.POISON for note in row.history) >= UNREADABLE_MAX:
        batch.end(task_id, row, Cause.DIE, Reason.POISON)
        return
    if row.bounces == 0 and row.reason != Reason.NO_AGENT:
        give_back(batch, task_id, replace(row, bounces=1), row.reason)
        return
    wait_ms = min(BOUNCE_BACKOFF_MS << min(row.bounces, 16), BOUNCE_BACKOFF_MS_MAX)
    batch.move(
        task_id,
        replace(row, bounces=row.bounces + 1),
        Cause.DELAY,
        row.reason,
        due_ms=batch.now_ms + wait_ms,
        **_UNLEASED,
    )


def resolve_unknown(
    batch: Batch, task_id: str, row: TaskRow, *, started: bool, message: str = "", happened_ms: int = 0
) -> None:
    """Nobody will ever tell: if it had started, what the task type says of an unknown outcome applies."""
    if not started:
        give_back(batch, task_id, row, Reason.NEVER_STARTED, happened_ms)
        return
    if _is_cancelled(batch, task_id, row, happened_ms, known=False):
        return
    noted = _noted(row, Reason.OUTCOME_UNKNOWN, message, happened_ms or batch.now_ms)
    if row.on_unknown == "park":
        batch.end(
            task_id, noted, Cause.DIE, Reason.OUTCOME_UNKNOWN, happened_ms, known=False, message=message
        )
    else:
        retry(batch, task_id, replace(noted, after_unknown=True), happened_ms)
