"""Dead letters: the original bytes, untouched, under the original headers followed by ours (contract.md, DLQ headers)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from laxity.schemas.records import AttemptNote, Header, Original, TaskRow
from laxity.schemas.serde import Undecodable
from laxity.schemas.topics import TIERS
from laxity.streams.effects import Output, Record
from laxity.streams.reasons import Reason

if TYPE_CHECKING:
    from laxity.streams.batch import Batch, Place

R = TypeVar("R")

HISTORY_BYTES_MAX = 65_536  # what a UI still shows; the broker's default limit for a record is 1 MiB
MESSAGE_CHARS_MAX = 1_024


def original_of(record: Record, prefix: str) -> Original:
    """A record as it was read, with the topic's full name."""
    return Original(
        topic=prefix + record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key,
        value=record.value,
        headers=[Header(name=name, value=value) for name, value in record.headers],
    )


def decoded(batch: Batch, record: Record, kind: type[R]) -> R | None:
    """What a record of control, links or outcomes holds.

    None below the applied mark, where it was dealt with, and for what nobody can read: then there is a letter of it.
    """
    if record.offset < batch.marks.get(record.topic, 0):
        return None
    try:
        return contents(batch.place, record.value, kind, record.problem)
    except Undecodable as error:
        refuse(batch, record, error.reason, error.detail)
        return None


def contents(place: Place, value: bytes | None, kind: type[R], problem: str = "") -> R:
    """The record inside, or Undecodable."""
    if problem:
        raise Undecodable(Reason.UNREADABLE, problem)
    return place.codec.decode(kind, value)


def refuse(batch: Batch, record: Record, reason: str, message: str) -> None:
    """The letter of a record that is no trigger."""
    batch.write(of_record(batch.place, None, original_of(record, batch.place.prefix), reason, message))


def of_task(place: Place, original: Original, row: TaskRow, reason: str, message: str) -> Output:
    """The dead letter of a task that died."""
    return _letter(
        f"dlq.{TIERS[row.tier]}",
        place.shard,
        original,
        reason=reason,
        message=message or (row.history[-1].message if row.history else ""),
        attempts=row.attempt,
        generation=row.generation,
        history=row.history,
    )


def of_record(place: Place, tier: int | None, original: Original, reason: str, message: str) -> Output:
    """The dead letter of a record that never became a task; `tier` None: it was no trigger."""
    topic = "dlq.internal" if tier is None else f"dlq.{TIERS[tier]}"
    return _letter(
        topic, place.shard, original, reason=reason, message=message, attempts=0, generation=0, history=()
    )


def _letter(
    topic: str,
    shard: int,
    original: Original,
    *,
    reason: str,
    message: str,
    attempts: int,
    generation: int,
    history: Sequence[AttemptNote],
) -> Output:
    ours = {
        "reason": str(reason),
        "message": message[:MESSAGE_CHARS_MAX],
        "topic": original.topic,
        "partition": str(original.partition),
        "offset": str(original.offset),
        "timestamp": str(original.timestamp_ms),
        "attempts": str(attempts),
        "generation": str(generation),
        "history": history_text(history),
    }
    headers = [(h.name, h.value) for h in original.headers]
    headers += [(f"laxity.error.{name}", text.encode("utf-8", "replace")) for name, text in ours.items()]
    return Output(
        topic=topic,
        partition=shard,
        key=original.key,
        value=original.value,
        schema=None,
        headers=tuple(headers),
    )


def history_text(history: Sequence[AttemptNote]) -> str:
    """The attempts as JSON, newest kept when it would pass HISTORY_BYTES_MAX."""
    notes = [asdict(note) for note in history]
    while notes:
        text = json.dumps(notes, separators=(",", ":"))
        if len(text) <= HISTORY_BYTES_MAX:
            return text
        notes = notes[max(1, len(notes) // 8) :]
    return "[]"
