"""The journal: one record per batch with all that its decisions depended on, and the hash of what came of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from laxity.schemas.records import Journal, JournalGrant, JournalRefusal, JournalVerdict, ShardRow
from laxity.schemas.serde import encode_row
from laxity.streams.batch import Place
from laxity.streams.effects import BatchInput, Change, Output
from laxity.streams.ledger.protocol import Answer, Grant, Refusal


def entry(
    place: Place,
    row: ShardRow,
    *,
    config_id: str,
    batch: BatchInput,
    answer: Answer | None = None,
    outcomes_end: int = -1,
) -> Journal:
    """What the batch depended on; the hash is put in by `sealed`."""
    found = Journal(
        shard=place.shard,
        batch=row.batch,
        owner_epoch=row.owner_epoch,
        now_ms=row.now_ms,
        state_version=row.state_version,
        config_id=config_id,
        inputs=batch.ranges,
        woken=batch.woken,
        reaped=batch.lapsed,
        held=batch.held,
        skipped=batch.skipped,
        outcomes_end=outcomes_end,
        effects_hash=b"",
    )
    if answer is None:
        return found
    return replace(
        found,
        answered=True,
        ledger_sequence=answer.sequence,
        ledger_epoch=answer.epoch,
        grants=[_grant(g) for g in answer.grants],
        refusals=[_refusal(r) for r in answer.refusals],
        verdicts=[JournalVerdict(reservation_id=r, verdict=v) for r, v in answer.verdicts.items()],
        settled=answer.settled,
    )


def _grant(grant: Grant) -> JournalGrant:
    return JournalGrant(
        reservation_id=grant.reservation_id,
        runner=grant.runner,
        partition=grant.partition,
        granted=grant.granted,
        granted_ms=grant.granted_ms,
    )


def _refusal(refusal: Refusal) -> JournalRefusal:
    return JournalRefusal(
        reservation_id=refusal.reservation_id,
        reason=refusal.reason,
        resource=refusal.resource,
        retry_ms=refusal.retry_ms,
        rival=refusal.rival,
    )


def answer_of(journal: Journal) -> Answer | None:
    """The ledger's answer as it was recorded, for a replay; reaped ids come back as lapsed ones."""
    if not journal.answered:
        return None
    return Answer(
        status="ok",
        epoch=journal.ledger_epoch,
        sequence=journal.ledger_sequence,
        grants=[
            Grant(
                reservation_id=g.reservation_id,
                runner=g.runner,
                partition=g.partition,
                granted=g.granted,
                granted_ms=g.granted_ms,
            )
            for g in journal.grants
        ],
        refusals=[
            Refusal(
                reservation_id=r.reservation_id,
                reason=r.reason,
                resource=r.resource,
                retry_ms=r.retry_ms,
                rival=r.rival,
            )
            for r in journal.refusals
        ],
        verdicts={v.reservation_id: v.verdict for v in journal.verdicts},
        settled=journal.settled,
    )


def sealed(
    place: Place, journal: Journal, state: Sequence[Change], keys: Sequence[Change], outputs: Sequence[Output]
) -> Output:
    """The journal's record with the hash of all other effects."""
    journal = replace(journal, effects_hash=effects_hash(state, keys, outputs))
    key = str(place.shard).encode()
    return Output(topic="journal", partition=place.shard, key=key, value=encode_row(journal), schema=Journal)


def effects_hash(state: Iterable[Change], keys: Iterable[Change], outputs: Iterable[Output]) -> bytes:
    """SHA-256 over all effects in order; every field is framed by its length, None is told from empty."""
    digest = hashlib.sha256()
    for change in (*state, *keys):
        _add(digest, b"c", change.table.encode(), change.key, change.value)
    for output in outputs:
        partition = -1 if output.partition is None else output.partition
        _add(digest, b"o", output.topic.encode(), str(partition).encode(), output.key, output.value)
        for name, value in output.headers:
            _add(digest, b"h", name.encode(), value)
    return digest.digest()


def _add(digest: hashlib._Hash, *fields: bytes | None) -> None:
    for field in fields:
        digest.update(b"\xff" * 4 if field is None else len(field).to_bytes(4, "big") + field)
