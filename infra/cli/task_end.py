"""Watches the events for the end of one task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from laxity.infra.cli.output import CommandError
from laxity.infra.inspect.catalogue import EVENTS
from laxity.infra.inspect.decoding import Decoder
from laxity.infra.inspect.lookup import Lookup
from laxity.infra.inspect.reading import Reader
from laxity.infra.inspect.tasks import Latest, reason_of, state_of
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import TaskEvent
from laxity.schemas.settings import Settings
from laxity.schemas.timing import SystemClock

ENDS = frozenset({"SUCCEEDED", "DEAD", "EXPIRED", "CANCELLED"})
REFUSALS = frozenset({"rejected", "conflict"})  # of this very trigger


class TaskEnds:
    """Made before the trigger is sent, so that nothing is missed: reads from the present end of all tiers' events.

    All tiers, because a duplicate is told in its own tier, but its task ends in the tier that it was accepted in.
    """

    def __init__(self, settings: Settings) -> None:
        self._clock = SystemClock()
        self._clients = KafkaClients(settings, role="cli")
        self._names = settings.names
        self._decoder = Decoder(open_codec(settings, clients=self._clients), settings.names)
        self._reader = Reader(self._clients, self._clock)
        whole = self._reader.whole([self._names.full(name) for name in EVENTS])
        self._spans = [replace(span, start=span.end) for span in whole]

    def wait(self, task_id: str, timeout_ms: int) -> dict[str, Any]:
        """State, code, message and detail of the end. A duplicate of a finished task ends at once with that one's. CommandError after `timeout_ms`."""
        last = None
        with self._reader:
            for message in self._reader.follow(self._spans, for_ms=timeout_ms):
                event = self._decoder.seen(message).value
                if not isinstance(event, TaskEvent) or event.task_id != task_id:
                    continue
                last = self._before(task_id) if event.kind == "duplicate" else event
                if last is not None and (last.state in ENDS or last.kind in REFUSALS):
                    return _document(last)
        raise CommandError(f"task {task_id} has not ended within {timeout_ms} ms", _present(last))

    def _before(self, task_id: str) -> TaskEvent | None:
        """What became of a task that was there already. None: its events are gone."""
        told = Latest()
        with Reader(self._clients, self._clock) as past:
            _, events = Lookup(reader=past, decoder=self._decoder, names=self._names).events_of(task_id)
        for event in events:
            if event.kind not in REFUSALS:
                told.add(event)
        return next(iter(told.newest_first()), None)


def _present(last: TaskEvent | None) -> str:
    if last is None:
        return "no scheduler has told of it yet"
    return f"it goes on: {state_of(last)}, {reason_of(last)}"


def _document(event: TaskEvent) -> dict[str, Any]:
    return {
        "state": event.state or event.kind.upper(),
        "code": event.code,
        "message": event.message,
        "detail": event.detail,
        "missed_by_ms": event.missed_by_ms,
        "cost_micros": event.cost_micros,
    }
