"""Ranges of a shard's inputs, as a replay asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from laxity.infra.inspect.inputs import ShardInputs
from laxity.infra.inspect.reading import Span
from laxity.schemas.records import InputRange
from laxity.schemas.topics import Names

VALUES = [b"a", b"", b"c", b"", b"", b"f"]


class Message:
    """As the client's: as long as its value, so that one of no bytes is false."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __len__(self) -> int:
        return len(VALUES[self._offset])

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 2, self._offset

    def key(self) -> None: ...

    def headers(self) -> None: ...

    def value(self) -> bytes:
        return VALUES[self._offset]


class Log:
    def whole(self, topics: Sequence[str], partition: int) -> list[Span]:
        return [Span(topic=topics[0], partition=partition, start=0, end=len(VALUES))]

    def read(self, spans: Sequence[Span]) -> Iterator[Message]:
        for span in spans:
            for offset in range(span.start, span.end):
                yield Message(offset)

    def close(self) -> None: ...


def test_records_of_no_bytes_are_records_wherever_a_range_begins() -> None:
    log: Any = Log()
    inputs = ShardInputs(lambda: log, Names("p."))
    found = [
        [
            r.offset
            for r in inputs.read(InputRange(topic="control", partition=0, first=a, next=b, count=b - a))
        ]
        for a, b in ((0, 1), (1, 3), (3, 4), (4, 6), (0, 6))
    ]
    inputs.close()
    assert found == [[0], [1, 2], [3], [4, 5], [0, 1, 2, 3, 4, 5]]
