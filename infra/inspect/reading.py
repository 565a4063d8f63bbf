"""Partitions read by hand: from an offset or a time to the ends that they had at the beginning, read_committed; no group, no commits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from laxity.infra.inspect.errors import InspectError
from laxity.schemas import kafka_headers
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.timing import Clock, Millis

REQUEST_S: Final = 10.0  # a broker that is starting answers within that
SILENCE_MS_MAX: Final = 15_000  # a read that gets nothing for so long, short of its end, has failed
POLL_S: Final = 0.2
CHUNK: Final = 500  # records handed over at once
_EOF: Final = KafkaError._PARTITION_EOF  # noqa: SLF001 - the client's own name for it

Message = Any
"""confluent_kafka.Message with topic, partition, offset, timestamp, key, value, headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Offsets start <= offset < end of one partition; `topic` is the full name."""

    topic: str
    partition: int
    start: int
    end: int

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition


class Reader:
    """One consumer for one read at a time. A context manager. Every method raises InspectError for what the cluster refuses."""

    def __init__(self, clients: KafkaClients, clock: Clock) -> None:
        self._clock = clock
        self._consumer: Consumer = clients.reader("inspect")
        self._reading = 0  # number of the read that has the consumer; 0: closed, or none yet
        self._reads = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the consumer; a read that was not finished ends."""
        self._reading = 0
        self._consumer.close()

    # where to read

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Number of partitions of each topic, those that do not exist left out."""
        seen = self._ask(self._consumer.list_topics, timeout=REQUEST_S).topics
        return {name: len(seen[name].partitions) for name in topics if name in seen and not seen[name].error}

    def whole(self, topics: Iterable[str], partition: int | None = None) -> list[Span]:
        """All that the topics hold now (or one partition of each). Topics that do not exist are left out."""
        counts = self.partitions(topics)
        places = [(name, n) for name, count in counts.items() for n in range(count) if partition in {None, n}]
        return [self._span(topic, number) for topic, number in places]

    def since(self, spans: Sequence[Span], since_ms: Millis) -> list[Span]:
        """The spans from the first record that was appended at `since_ms` or later."""
        if not spans or since_ms <= 0:
            return list(spans)
        asked = [TopicPartition(span.topic, span.partition, since_ms) for span in spans]
        found = {
            (at.topic, at.partition): at.offset
            for at in self._ask(self._consumer.offsets_for_times, asked, timeout=REQUEST_S)
        }
        return [_from(span, found[span.place]) for span in spans]

    def _span(self, topic: str, partition: int) -> Span:
        low, high = self._ask(
            self._consumer.get_watermark_offsets, TopicPartition(topic, partition), timeout=REQUEST_S
        )
        return Span(topic=topic, partition=partition, start=low, end=high)

    # reading

    def read(self, spans: Sequence[Span]) -> Iterator[Message]:
        """Every record of the spans, each partition in order, then the end."""
        left = {span.place: span for span in spans if span.start < span.end}
        if not left:
            return
        for message in self._messages(list(left.values()), patient=False):
            span = left.get((message.topic(), message.partition()))
            if span is None:
                continue
            if message.error() is None and message.offset() < span.end:
                yield message
            if message.error() is not None or message.offset() >= span.end - 1:
                del left[span.place]
                if not left:
                    return

    def follow(self, spans: Sequence[Span], for_ms: Millis | None = None) -> Iterator[Message]:
        """Every record from the starts of the spans on, for `for_ms` or for ever."""
        found = self._messages(spans, patient=True, for_ms=for_ms)
        return (message for message in found if message.error() is None)

    def last(self, spans: Sequence[Span], count: int) -> list[Message]:
        """The newest `count` records of the spans together, oldest first. Markers leave gaps, so it looks further back until it has enough."""
        back, found = 2 * count, list[Message]()
        while True:
            tails = [replace(span, start=max(span.start, span.end - back)) for span in spans]
            found = list(self.read(tails))
            if len(found) >= count or all(t.start == s.start for t, s in zip(tails, spans, strict=True)):
                return sorted(found, key=_age)[-count:] if count else []
            back *= 4

    def _messages(
        self, spans: Sequence[Span], *, patient: bool, for_ms: Millis | None = None
    ) -> Iterator[Message]:
        """Records and ends of partitions as they come."""
        self._reads += 1
        mine = self._reading = self._reads
        self._ask(self._consumer.assign, [TopicPartition(s.topic, s.partition, s.start) for s in spans])
        begun_ms = heard_ms = self._clock.monotonic_ms()
        try:
            while self._reading == mine:
                messages = self._gather()
                now_ms = self._clock.monotonic_ms()
                if not messages and not patient and now_ms - heard_ms > SILENCE_MS_MAX:
                    raise InspectError(f"nothing could be read for {SILENCE_MS_MAX} ms", "is Kafka well?")
                heard_ms = now_ms if messages else heard_ms
                yield from (message for message in messages if _is_news(message))
                if for_ms is not None and now_ms - begun_ms > for_ms:
                    return
        finally:
            if self._reading == mine:
                self._consumer.unassign()

    def _gather(self) -> list[Message]:
        """What is there, waiting only for the first."""
        first = self._ask(self._consumer.poll, POLL_S)
        return [] if first is None else [first, *self._ask(self._consumer.consume, CHUNK, 0)]

    def _ask(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KafkaException as error:
            raise InspectError("Kafka does not answer as it should", error.args[0].str()) from error


def _age(message: Message) -> tuple[int, str, int, int]:
    return message.timestamp()[1], message.topic(), message.partition(), message.offset()


def _from(span: Span, offset: int) -> Span:
    """`offset` below 0: no record is that young."""
    return replace(span, start=max(span.start, offset) if offset >= 0 else span.end)


def _is_news(message: Message) -> bool:
    """A record or the end of a partition; InspectError for what will not go away by itself."""
    error = message.error()
    if error is None or error.code() == _EOF:
        return True
    if error.retriable():
        return False
    raise InspectError(f"{message.topic()}/{message.partition()} cannot be read", error.str())


def headers_of(message: Message) -> Sequence[tuple[str, bytes | None]]:
    """In order; one that says so where the client cannot give them."""
    try:
        return kafka_headers.headers_of(message)
    except kafka_headers.HeadersUnreadable as error:
        return ((f"({error})", None),)
