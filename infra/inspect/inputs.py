"""The input records of one shard by ranges of offsets, as a replay asks for them: each topic is read on from where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from laxity.infra.inspect.reading import Message, Reader, Span
from laxity.schemas.kafka_headers import Headers, HeadersUnreadable, headers_of
from laxity.schemas.records import InputRange
from laxity.schemas.topics import Names
from laxity.streams.effects import Record


@dataclass(slots=True, kw_only=True)
class _Cursor:
    """One topic's partition: `ahead` was read already and lies at or beyond `position`."""

    reader: Reader
    records: Iterator[Message]
    position: int
    ahead: Message | None = None

    def take(self) -> Message | None:
        """The next one; None: there is none. A message of no bytes is false in itself."""
        return next(self.records, None) if self.ahead is None else self.ahead


class ShardInputs:
    """Ranges in about the order of their offsets; going back costs a new read. `open_reader` makes a reader for each topic."""

    def __init__(self, open_reader: Callable[[], Reader], names: Names) -> None:
        self._open_reader, self._names = open_reader, names
        self._cursors: dict[tuple[str, int], _Cursor] = {}

    def close(self) -> None:
        """Let go of all readers."""
        for cursor in self._cursors.values():
            cursor.records.close()  # type: ignore[attr-defined]  # a generator: its consumer is unassigned here
            cursor.reader.close()
        self._cursors.clear()

    def read(self, moved: InputRange) -> Sequence[Record]:
        """All committed records of the range that are still there."""
        cursor = self._cursor(moved)
        found = []
        while (message := cursor.take()) is not None:
            cursor.ahead = message
            if message.offset() >= moved.next:
                break
            cursor.ahead = None
            if message.offset() >= moved.first:
                found.append(record_of(message, moved.topic))
        cursor.position = moved.next
        return found

    def _cursor(self, moved: InputRange) -> _Cursor:
        at = (moved.topic, moved.partition)
        cursor = self._cursors.get(at)
        if cursor is None or moved.first < cursor.position:
            reader = self._open_reader() if cursor is None else cursor.reader
            if cursor is not None:
                cursor.records.close()  # type: ignore[attr-defined]
            cursor = _Cursor(reader=reader, records=self._records(reader, moved), position=moved.first)
            self._cursors[at] = cursor
        return cursor

    def _records(self, reader: Reader, moved: InputRange) -> Iterator[Message]:
        full = self._names.full(moved.topic)
        spans = reader.whole([full], moved.partition)
        return reader.read(
            [
                Span(topic=full, partition=s.partition, start=max(moved.first, s.start), end=s.end)
                for s in spans
            ]
        )


def record_of(message: Message, topic: str) -> Record:
    """A message as the core took it; `topic` without prefix."""
    headers: Headers = ()
    problem = ""
    try:
        headers = headers_of(message)
    except HeadersUnreadable as error:
        problem = str(error)
    return Record(
        topic=topic,
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=headers,
        problem=problem,
    )
