"""An operator's orders: commands on `control` for the shard that has the task."""

from __future__ import annotations

import getpass
import secrets
from dataclasses import replace
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Producer

from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.letters import Letter, task_of
from laxity.schemas.records import Command, Header, Original, Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.timing import Millis
from laxity.schemas.topics import Names
from laxity.streams.reasons import Reason

CONTROL: Final = "control"
ID_BYTES: Final = 16  # no two commands share it
FLUSH_S: Final = 35.0  # the producer itself gives up after 30 s


def cancel(task_id: str, *, reason: str, now_ms: Millis) -> Command:
    """End the task wherever it is; a running one hears of it with its next renewal."""
    return _signed(Command(kind="cancel", command_id="", task_id=task_id, reason=reason), now_ms)


def redrive(letter: Letter, *, reason: str, now_ms: Millis) -> Command:
    """Run a dead letter's task again as the next generation, from the original bytes. InspectError for a letter that is no task's."""
    whose = task_of(letter)
    if whose is None or not isinstance(letter.seen.value, Trigger):
        why = letter.seen.problem or f"it holds a {letter.seen.kind}"
        raise InspectError(f"letter {letter.reference} is of no task that could run", why)
    if letter.reason == Reason.IDEMPOTENCY_CONFLICT:
        why = "its key belongs to a task with another type or payload"
        raise InspectError(f"letter {letter.reference} was never a task", why, "publish it under another key")
    task_id, run_id = whose
    command = Command(
        kind="redrive",
        command_id="",
        tenant=letter.seen.value.tenant,
        task_id=task_id,
        run_id=run_id,
        generation=max(0, letter.generation) + 1,
        original=original_of(letter),
        reason=reason,
    )
    return _signed(command, now_ms)


def original_of(letter: Letter) -> Original:
    """The record as it was before it died: its place, its bytes, its own headers."""
    return Original(
        topic=letter.origin,
        partition=letter.origin_partition,
        offset=letter.origin_offset,
        timestamp_ms=letter.origin_timestamp_ms,
        key=letter.seen.key,
        value=letter.seen.raw,
        headers=[Header(name=name, value=value) for name, value in letter.headers],
    )


def _signed(command: Command, now_ms: Millis) -> Command:
    try:
        operator = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        operator = "unknown"
    return replace(command, command_id=secrets.token_hex(ID_BYTES), at_ms=now_ms, operator=operator)


def send(producer: Producer, names: Names, codec: Codec, command: Command, shard: int) -> None:
    """Returns once the brokers have it. InspectError if they do not take it; it may arrive nevertheless, and a repeat does no harm."""
    refusals: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            refusals.append(error)

    topic = names.full(CONTROL)
    try:
        producer.produce(
            topic,
            key=command.command_id.encode(),
            value=codec.encode(command),
            partition=shard,
            on_delivery=delivered,
        )
    except KafkaException as error:
        raise InspectError(f"{topic}/{shard} takes no command", error.args[0].str()) from error
    left = producer.flush(FLUSH_S)
    if refusals or left:
        raise InspectError(
            f"{topic}/{shard} took no command", refusals[0].str() if refusals else "no answer in time"
        )
