"""Stage 1: a trigger becomes a task, a duplicate, a stray for another shard, or a dead letter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from laxity.schemas.identity import payload_digest, positional_key, run_id_of, shard_of, task_id_of
from laxity.schemas.limits import NAME_CHARS_MAX, RUN_ID_CHARS_MAX, TIME_MS_MAX, TOPIC_CHARS_MAX
from laxity.schemas.records import Link, Original, TaskRow, Trigger
from laxity.schemas.serde import Undecodable, encode_row
from laxity.schemas.topics import TIERS
from laxity.schemas.validation import Problem, original_problems, problems
from laxity.streams import letters, urgency
from laxity.streams.batch import Batch
from laxity.streams.effects import Output, Record
from laxity.streams.lifecycle import Cause, State
from laxity.streams.reasons import Reason

TRIGGERS = "triggers."
_TOPICS = frozenset(TRIGGERS + tier for tier in TIERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A decoded trigger with its names resolved."""

    trigger: Trigger
    original: Original
    tier: int
    reread: bool  # read again below the applied mark: whatever had to be said of it was said
    key: str
    run_id: str
    task_id: str

    @property
    def accepted_ms(self) -> int:
        """When it was appended, as far as a stamp can be believed."""
        return min(max(self.original.timestamp_ms, 0), TIME_MS_MAX)


def ingest(batch: Batch, record: Record) -> None:
    """A record of a trigger topic."""
    original = letters.original_of(record, batch.place.prefix)
    reread = record.offset < batch.marks.get(record.topic, 0)
    _arrive(batch, original, record.topic, reread=reread, problem=record.problem)


def adopt(batch: Batch, link: Link) -> str:
    """A stray that another shard sent here. Returns why it is none; empty: it was taken in."""
    original = link.original
    if link.kind != "stray" or original is None:
        return f"kind {link.kind[:NAME_CHARS_MAX]!r} without a trigger's record"
    topic = original.topic.removeprefix(batch.place.prefix)
    if topic not in _TOPICS:
        return f"topic {original.topic[:TOPIC_CHARS_MAX]!r} has no triggers"
    if found := original_problems(original):
        return _text(found)
    _arrive(batch, original, topic, reread=link.reread)
    return ""


def _arrive(batch: Batch, original: Original, topic: str, *, reread: bool, problem: str = "") -> None:
    tier = TIERS.index(topic.removeprefix(TRIGGERS))
    try:
        trigger = letters.contents(batch.place, original.value, Trigger, problem)
    except Undecodable as error:
        _refuse(batch, original, tier, error.reason, error.detail, reread=reread)
        return
    if found := original_problems(original):
        _refuse(batch, original, tier, Reason.INVALID, _text(found), reread=reread)
        return
    arrival = _resolve(trigger, original, tier, reread=reread)
    home = shard_of(arrival.run_id, batch.place.shards)
    if home == batch.place.shard:
        _settle_in(batch, arrival)
    else:
        _rehome(batch, arrival, home)


def _refuse(batch: Batch, original: Original, tier: int, reason: str, text: str, *, reread: bool) -> None:
    """What is no trigger, or comes in a record that no trigger may have; read again it was refused before."""
    if reread:
        batch.tell("duplicate", "", tier, code=reason, detail=_where(original))
        return
    batch.write(letters.of_record(batch.place, tier, original, reason, text))
    batch.tell("rejected", "", tier, code=reason, detail=_where(original), state=State.DEAD)


def _text(found: Iterable[Problem]) -> str:
    return "; ".join(problem.text() for problem in found)


def _resolve(trigger: Trigger, original: Original, tier: int, *, reread: bool) -> Arrival:
    key = trigger.key or positional_key(original.topic, original.partition, original.offset)
    run_id = run_id_of(trigger.tenant, trigger.run_id, key)
    return Arrival(
        trigger=trigger,
        original=original,
        tier=tier,
        reread=reread,
        key=key,
        run_id=run_id,
        task_id=task_id_of(trigger.tenant, run_id, key),
    )


def _where(original: Original) -> str:
    return f"{original.topic}/{original.partition}/{original.offset}"


def _rehome(batch: Batch, arrival: Arrival, home: int) -> None:
    link = Link(kind="stray", from_shard=batch.place.shard, original=arrival.original, reread=arrival.reread)
    batch.write(
        Output(
            topic="links",
            partition=home,
            key=arrival.run_id[:RUN_ID_CHARS_MAX].encode(),  # a longer one is refused where it arrives
            value=encode_row(link),
            schema=Link,
        )
    )
    batch.tell("rehomed", arrival.task_id, arrival.tier, detail=f"{_where(arrival.original)} to shard {home}")


def _settle_in(batch: Batch, arrival: Arrival) -> None:
    """What is known by its key is never judged again: of a duplicate all but type and payload is ignored."""
    digest = payload_digest(arrival.trigger.type, arrival.trigger.payload)
    known = _known_digest(batch, arrival.task_id)
    if arrival.reread or known == digest:
        batch.tell(
            "duplicate", arrival.task_id, arrival.tier, **_names(arrival), detail=_where(arrival.original)
        )
    elif known is not None:
        _reject(
            batch, arrival, Reason.IDEMPOTENCY_CONFLICT, f"key {arrival.key!r} has another type or payload"
        )
    elif found := refusals(batch, arrival):
        _reject(batch, arrival, Reason.INVALID, _text(found))
    else:
        _accept(batch, arrival, digest)


def refusals(batch: Batch, arrival: Arrival) -> list[Problem]:
    """Why the trigger cannot become a task; empty: it can."""
    found = original_problems(arrival.original)
    found += problems(arrival.trigger, batch.place.config, arrival.accepted_ms)
    return [*found, _NO_GRAPH] if arrival.trigger.depends_on else found


_NO_GRAPH = Problem(
    code="unsupported",
    field="depends_on",
    value="set",
    limit="dependencies are not scheduled by this release",
)


def _names(arrival: Arrival) -> dict[str, object]:
    t = arrival.trigger
    return {"tenant": t.tenant, "type": t.type, "run_id": arrival.run_id, "key": arrival.key}


def _known_digest(batch: Batch, task_id: str) -> bytes | None:
    """Digest of the live or remembered task under this id."""
    live = batch.tables.task(task_id)
    if live is not None:
        return live.digest
    ended = batch.tables.ended(task_id, batch.now_ms)
    return None if ended is None else ended.digest


def _reject(batch: Batch, arrival: Arrival, reason: Reason, text: str) -> None:
    batch.write(letters.of_record(batch.place, arrival.tier, arrival.original, reason, text))
    kind = "conflict" if reason == Reason.IDEMPOTENCY_CONFLICT else "rejected"
    state = "" if kind == "conflict" else State.DEAD
    batch.tell(
        kind,
        arrival.task_id,
        arrival.tier,
        **_names(arrival),
        code=str(reason),
        detail=text[: letters.MESSAGE_CHARS_MAX],
        state=state,
        accepted_ms=arrival.accepted_ms,
    )


def _accept(batch: Batch, arrival: Arrival, digest: bytes) -> None:
    row = enrich(batch, arrival, digest)
    batch.tables.put_original(arrival.task_id, arrival.original)
    admit(batch, arrival.task_id, row, Reason.ACCEPTED, arrival.accepted_ms)


def admit(batch: Batch, task_id: str, row: TaskRow, reason: Reason, happened_ms: int) -> None:
    """A new row enters the lifecycle: expired, delayed or ready."""
    if row.firm and batch.now_ms > urgency.latest_start(row):
        batch.end(task_id, row, Cause.EXPIRE, Reason.LATEST_START_PASSED, happened_ms)
    elif row.due_ms > batch.now_ms:
        batch.move(task_id, row, Cause.DELAY, Reason.NOT_BEFORE, happened_ms)
    else:
        batch.move(task_id, row, Cause.ACCEPT, reason, happened_ms, due_ms=0, ready_ms=batch.now_ms)


def enrich(batch: Batch, arrival: Arrival, digest: bytes) -> TaskRow:
    """The task's row with the defaults of its type and tier. A firm deadline must be given: without one a task is soft."""
    t, config = arrival.trigger, batch.place.config
    type_, tier = config.type_of(t.type), config.tiers[arrival.tier]
    accepted_ms = arrival.accepted_ms
    return TaskRow(
        tenant=t.tenant,
        run_id=arrival.run_id,
        key=arrival.key,
        type=t.type,
        tier=arrival.tier,
        fleet=type_.fleet,
        state=State.NEW,
        reason="",
        seq=batch.next_seq(),
        accepted_ms=accepted_ms,
        deadline_ms=t.deadline_ms or max(accepted_ms, t.not_before_ms) + tier.deadline_ms,
        firm=t.firm and t.deadline_ms > 0,
        estimate_ms=t.estimate_ms or type_.estimate_ms,
        due_ms=t.not_before_ms,
        demands={**type_.demands, **t.demands},
        digest=digest,
        max_attempts=t.max_attempts or type_.max_attempts,
        on_unknown=t.on_unknown or type_.on_unknown,
    )
