"""What a batch wants of the world, as values: the pure core returns them, the host carries them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laxity.schemas.records import InputRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A Kafka record as it was read. Bytes are as on the wire; nothing is decoded.

    `problem`: why the host could not get all of it, empty if it could. What it has of it is here; a letter of it points to its place.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row of a changelogged table. `value` is the row's Avro without framing; None deletes."""

    table: str
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A record to write. `topic` has no prefix (`dispatch.default`); `partition` None: by key, murmur2.

    `schema` names the record type of `value`, which is then Avro without framing: the host puts the pinned id before it.
    Without `schema` the value is written untouched (dead letters).
    """

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    schema: type | None
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """All that a batch depends on besides the stores; the journal records it (records by their ranges)."""

    records: Sequence[Record]
    ranges: Sequence[
        InputRange
    ]  # per input partition that moved; `next` may lie beyond the last record (transaction markers)
    now_ms: int  # wall clock of the host; the core clamps it monotone
    held: Sequence[str] = ()  # reservation ids asked in an unfinished batch: used or released now
    lapsed: Sequence[str] = ()  # from reconcile: count as reaped
    woken: Sequence[str] = ()  # resources heard of since the last batch
    skipped: Sequence[str] = ()  # TOPIC:PARTITION:OFFSET accepted by the operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """One batch's effects.

    The host commits `state`, `keys`, `outputs` and the input offsets in one transaction, then writes `state`, `keys` and `local`
    to the stores in one write each, then calls the core's `applied()`.
    """

    batch: int
    state: Sequence[Change]
    keys: Sequence[Change]
    local: Sequence[tuple[bytes, bytes | None]]
    outputs: Sequence[Output]
