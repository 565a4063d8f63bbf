"""Questions to a running deployment: events of tasks, dead letters, one letter, the shard's journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from laxity.infra.inspect.catalogue import EVENTS, LETTERS
from laxity.infra.inspect.decoding import Decoder, Seen
from laxity.infra.inspect.errors import InspectError
from laxity.infra.inspect.letters import Letter, Reference, letter_of, task_of
from laxity.infra.inspect.reading import Reader, Span
from laxity.infra.inspect.tasks import only_one
from laxity.schemas.records import TaskEvent
from laxity.schemas.timing import Millis
from laxity.schemas.topics import Names

CLOCKS_APART_MS: Final = 300_000  # the broker stamps letters, the shard stamps events


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One reader, one decoder; one question at a time."""

    reader: Reader
    decoder: Decoder
    names: Names

    def spans(self, topics: Iterable[str], since_ms: Millis = 0, partition: int | None = None) -> list[Span]:
        """All that the topics (names without prefix) hold since then. InspectError if none of them exists."""
        full = [self.names.full(name) for name in topics]
        found = self.reader.whole(full, partition)
        if not found:
            raise InspectError(f"topic {full[0]} does not exist", "", "laxity topics apply")
        return self.reader.since(found, since_ms)

    def events(self, topics: Sequence[str] = EVENTS, since_ms: Millis = 0) -> Iterator[TaskEvent]:
        """Of all tasks; what is no event is left out (`laxity tail` shows it)."""
        for message in self.reader.read(self.spans(topics, since_ms)):
            value = self.decoder.seen(message).value
            if isinstance(value, TaskEvent):
                yield value

    def events_of(self, task: str, since_ms: Millis = 0) -> tuple[str, list[TaskEvent]]:
        """The id that begins with `task`, and its events. InspectError for none or several. Only keys are looked at, so it is quick."""
        wanted = task.encode()
        messages = [
            message
            for message in self.reader.read(self.spans(EVENTS, since_ms))
            if (message.key() or b"").startswith(wanted)
        ]
        values = [value for message in messages if isinstance(value := self._value(message), TaskEvent)]
        task_id = only_one((value.task_id for value in values if value.task_id), task)
        return task_id, [value for value in values if value.task_id == task_id]

    def _value(self, message: object) -> object:
        return self.decoder.seen(message).value

    def letters(self, topics: Sequence[str] = LETTERS, since_ms: Millis = 0) -> Iterator[Letter]:
        """Dead letters, each partition in order."""
        for message in self.reader.read(self.spans(topics, since_ms)):
            yield letter_of(self.decoder.seen(message))

    def letter(self, reference: Reference) -> Letter:
        """The one at that place. InspectError if it is not there, or if several topics have one and none was named."""
        topics = [reference.topic] if reference.topic else LETTERS
        spans = [
            replace(span, start=reference.offset, end=reference.offset + 1)
            for span in self.spans(topics, partition=reference.partition)
            if span.start <= reference.offset < span.end
        ]
        found = [letter_of(self.decoder.seen(message)) for message in self.reader.read(spans)]
        place = f"{reference.topic or 'dlq.*'}:{reference.partition}:{reference.offset}"
        if not found:
            raise InspectError(f"there is no letter {place}", "", "laxity dlq ls --each")
        if len(found) > 1:
            raise InspectError(f"{place} fits several", ", ".join(letter.reference for letter in found))
        return found[0]

    def letters_of(self, task_id: str, topics: Sequence[str] = LETTERS, since_ms: Millis = 0) -> list[Letter]:
        """Those of one task (a full id), oldest first."""
        return [
            letter
            for letter in self.letters(topics, since_ms - CLOCKS_APART_MS)
            if (task_of(letter) or ("",))[0] == task_id
        ]

    def seen(self, spans: Sequence[Span]) -> Iterator[Seen]:
        """Records of any topic."""
        return (self.decoder.seen(message) for message in self.reader.read(spans))
