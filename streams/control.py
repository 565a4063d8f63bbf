"""Commands of operators: cancel and redrive. A command that cannot be carried out is told in an event, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from laxity.schemas.identity import payload_digest, positional_key, run_id_of, task_id_of
from laxity.schemas.limits import NAME_CHARS_MAX
from laxity.schemas.records import Command, Trigger
from laxity.schemas.serde import Undecodable
from laxity.schemas.topics import TIERS
from laxity.streams import letters
from laxity.streams.batch import Batch
from laxity.streams.effects import Record
from laxity.streams.ingest import TRIGGERS, Arrival, admit, enrich, refusals
from laxity.streams.lifecycle import LEASED, Cause, State
from laxity.streams.reasons import Reason


def control(batch: Batch, record: Record) -> None:
    """A record of `control`. Below the applied mark it was carried out: an old cancel must not cancel today's tasks."""
    command = letters.decoded(batch, record, Command)
    if command is not None:
        _COMMANDS.get(command.kind, _unsupported)(batch, command)


def _refuse(batch: Batch, command: Command, detail: str) -> None:
    batch.tell(
        "refused_command",
        command.task_id[:NAME_CHARS_MAX],
        0,
        code=command.kind[:NAME_CHARS_MAX],
        detail=detail,
        tenant=command.tenant[:NAME_CHARS_MAX],
    )


def _unsupported(batch: Batch, command: Command) -> None:
    _refuse(
        batch,
        command,
        f"kind {command.kind[:NAME_CHARS_MAX]!r} is not supported; known: {', '.join(sorted(_COMMANDS))}",
    )


def _cancel(batch: Batch, command: Command) -> None:
    row = batch.tables.task(command.task_id)
    if row is None:
        _refuse(batch, command, "no live task has this id")
    elif row.state in LEASED:
        batch.tables.put_task(command.task_id, replace(row, revoking="cancel"))
    else:
        batch.end(command.task_id, row, Cause.CANCEL, Reason.CANCELLED)


def _redrive(batch: Batch, command: Command) -> None:
    """A dead generation lives again as the next one; the provider's key changes only if the last outcome is known."""
    ended = batch.tables.ended(command.task_id, batch.now_ms)
    if batch.tables.task(command.task_id) is not None or command.original is None:
        _refuse(
            batch, command, "the task is live" if command.original else "the command brings no original bytes"
        )
        return
    if ended is None or ended.state != State.DEAD or command.generation != ended.generation + 1:
        known = (
            "no such task is remembered"
            if ended is None
            else f"{ended.state} in generation {ended.generation}"
        )
        _refuse(batch, command, f"generation {command.generation} does not follow: {known}")
        return
    arrival = _arrival(batch, command)
    if arrival is None or (arrival.task_id, _digest(arrival)) != (command.task_id, ended.digest):
        _refuse(batch, command, "the original bytes are not the trigger of this task")
        return
    if found := refusals(batch, arrival):
        _refuse(batch, command, "; ".join(p.text() for p in found)[: letters.MESSAGE_CHARS_MAX])
        return
    row = replace(
        enrich(batch, arrival, ended.digest),
        generation=command.generation,
        effect_generation=ended.effect_generation if ended.unknown else command.generation,
        dispatch_no=ended.dispatch_no,
        after_unknown=ended.unknown,
        firm=False,  # its deadline has most likely passed; the operator wants it run
        due_ms=0,
    )
    batch.tables.put_original(command.task_id, arrival.original)
    admit(batch, command.task_id, row, Reason.REDRIVEN, 0)


def _digest(arrival: Arrival) -> bytes:
    return payload_digest(arrival.trigger.type, arrival.trigger.payload)


def _arrival(batch: Batch, command: Command) -> Arrival | None:
    original = command.original
    assert original is not None, "checked by the caller"
    tier = original.topic.removeprefix(batch.place.prefix).removeprefix(TRIGGERS)
    try:
        trigger = batch.place.codec.decode(Trigger, original.value)
    except Undecodable:
        return None
    key = trigger.key or positional_key(original.topic, original.partition, original.offset)
    run_id = run_id_of(trigger.tenant, trigger.run_id, key)
    task_id = task_id_of(trigger.tenant, run_id, key)
    return Arrival(
        trigger=trigger,
        original=original,
        tier=TIERS.index(tier) if tier in TIERS else TIERS.index("normal"),
        reread=False,
        key=key,
        run_id=run_id,
        task_id=task_id,
    )


_COMMANDS: dict[str, Callable[[Batch, Command], None]] = {"cancel": _cancel, "redrive": _redrive}
