"""A thread that polls one consumer and fills inboxes. There are two: the urgent inputs (the group's member) and the bulk tiers.

The consumer belongs to this thread: others ask by `attach` and `detach`. The client lets one thread in at a time, and a poll that waits
keeps all others out, so what they may see (lags, the group's metadata) is taken down here after each poll. The group only tells which
shards are ours; partitions are assigned by hand once a shard has been restored and knows its positions, and taken away in the callback
that revokes them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from laxity.schemas.kafka_headers import Headers, HeadersUnreadable, headers_of
from laxity.schemas.timing import Clock, Millis
from laxity.streams.effects import Record
from laxity.streams.runtime.codes import OUT_OF_RANGE, PARTITION_EOF
from laxity.streams.runtime.inbox import Inbox
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.runtime.order import credible
from laxity.streams.runtime.sources import ANCHOR, TRANSACTIONAL
from laxity.streams.runtime.stepper import UNREADABLE, Extent, MakeConsumer, NoAnswer, extent_at

POLL_S = 0.05  # how late a request or a resumed lane may be served on a quiet consumer
GATHER_MAX = 1_000  # records taken from the client at once, beyond the first
LAGS_EVERY_MS = 1_000  # for metrics
SILENT_MS = 1_000  # records are there and none comes: it is looked at why
DEAF_MS = 5_000  # a partition that was assigned is heard of at once, by a record or by its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What the group tells, on the reader's thread. `revoked` returns once the shards have let go."""

    granted: Callable[[Sequence[int]], None]
    revoked: Callable[[Sequence[int]], None]
    lost: Callable[[Sequence[int]], None]


@dataclass(slots=True)
class _Attached:
    inbox: Inbox
    paused: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)  # not at the consumer, until it is known where to read on
    looking: set[str] = field(default_factory=set)  # somebody finds out
    looked_at: dict[str, int] = field(
        default_factory=dict
    )  # where it is known what comes, whatever its offset
    heard_ms: dict[str, Millis] = field(default_factory=dict)  # of a record, an end, an error, or a look
    unheard: set[str] = field(default_factory=set)  # since they were assigned


class Reader(threading.Thread):
    """One consumer. `membership` None: it is no member of the group."""

    def __init__(
        self,
        *,
        name: str,
        consumer: Consumer,
        topics: Sequence[str],
        prefix: str,
        clock: Clock,
        membership: Membership | None,
        probe: MakeConsumer,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.consumer = consumer
        self.beat_ms: Millis = clock.monotonic_ms()
        self._names = {prefix + topic: topic for topic in topics}
        self._prefix = prefix
        self._clock = clock
        self._membership = membership
        self._probe = probe
        self._failed = failed
        self._asked: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        self._attached: dict[int, _Attached] = {}
        self._lags: Mapping[tuple[str, int], int] = {}
        self._lags_ms: Millis = clock.monotonic_ms()
        self._group: object = None
        self._ending = threading.Event()
        self._log = logger(reader=name)

    # what other threads ask

    def attach(self, inbox: Inbox, positions: Mapping[str, int]) -> Future[None]:
        """Read the shard's inputs from these offsets on (of `positions`, those that this reader serves)."""
        mine = {topic: positions[topic] for topic in self._names.values()}
        return self._ask(lambda: self._attach(inbox, mine))

    def detach(self, shard: int) -> Future[None]:
        """Read the shard's inputs no longer."""
        return self._ask(lambda: self._detach([shard]))

    def lags(self) -> Mapping[tuple[str, int], int]:
        """Records behind the end that no batch has taken, by full topic and partition, as of a moment ago."""
        return self._lags

    def group_metadata(self) -> object:
        """As of the last poll; a rebalance since then makes a transaction abort, and it is tried again."""
        return self._group

    def stop(self) -> None:
        """Leave the group and close the consumer; join afterwards."""
        self._ending.set()

    def _ask(self, action: Callable[[], None]) -> Future[None]:
        answer: Future[None] = Future()
        self._asked.put((action, answer))
        return answer

    # the thread

    def run(self) -> None:
        """Poll until stopped."""
        try:
            if self._membership is not None:
                self._subscribe(self._membership)
            while not self._ending.is_set():
                self.beat_ms = self._clock.monotonic_ms()
                self._serve()
                self._flow()
                messages = self._poll()
                self._take_down()
                self._deliver(messages)
        except Exception as error:  # noqa: BLE001 - the process must not live on without a reader
            self._failed(error)
        finally:
            self.consumer.close()
            self._refuse()

    def _subscribe(self, member: Membership) -> None:
        def granted(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            consumer.incremental_assign([])  # takes note of the grant; we assign when the shard is ready
            member.granted([at.partition for at in partitions])

        def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
            shards = [at.partition for at in partitions]
            member.revoked(shards)
            self._detach(shards, in_callback=True)

        def lost(_: Consumer, partitions: list[TopicPartition]) -> None:
            shards = [at.partition for at in partitions]
            member.lost(shards)
            self._detach(shards, in_callback=True)

        self.consumer.subscribe([self._prefix + ANCHOR], on_assign=granted, on_revoke=revoked, on_lost=lost)

    def _serve(self) -> None:
        while True:
            try:
                action, answer = self._asked.get_nowait()
            except Empty:
                return
            try:
                action()
            except Exception as error:  # noqa: BLE001 - the asker gets it
                answer.set_exception(error)
            else:
                answer.set_result(None)

    def _refuse(self) -> None:
        while True:
            try:
                _, answer = self._asked.get_nowait()
            except Empty:
                return
            answer.set_exception(RuntimeError(f"reader {self.name} has ended"))

    def _attach(self, inbox: Inbox, positions: Mapping[str, int]) -> None:
        self._detach([inbox.shard])
        wanted = [TopicPartition(self._prefix + topic, inbox.shard, at) for topic, at in positions.items()]
        self.consumer.incremental_assign(wanted)
        self.consumer.resume(wanted)  # a pause outlives an assignment
        self._attached[inbox.shard] = _Attached(
            inbox, heard_ms=dict.fromkeys(positions, self.beat_ms), unheard=set(positions)
        )

    def _detach(self, shards: Sequence[int], *, in_callback: bool = False) -> None:
        """In a callback the call is due even for nothing, else the client would take everything away."""
        gone = {shard: found for shard in shards if (found := self._attached.pop(shard, None)) is not None}
        if gone or in_callback:
            self.consumer.incremental_unassign(
                [
                    TopicPartition(name, shard)
                    for shard, attached in gone.items()
                    for name, topic in self._names.items()
                    if topic not in attached.away
                ]
            )

    def _flow(self) -> None:
        """Pause lanes that are crowded, resume those that have room again."""
        for shard, attached in self._attached.items():
            for name, topic in self._names.items():
                if topic in attached.away:
                    continue
                if topic not in attached.paused:
                    if attached.inbox.crowded(topic):
                        attached.paused.add(topic)
                        self.consumer.pause([TopicPartition(name, shard)])
                elif attached.inbox.roomy(topic):
                    attached.paused.discard(topic)
                    attached.heard_ms[topic] = self.beat_ms
                    self.consumer.resume([TopicPartition(name, shard)])

    def _poll(self) -> list[Message[bytes, bytes]]:
        """One record as soon as there is one, and whatever else is there already."""
        first = self.consumer.poll(POLL_S)
        return [] if first is None else [first, *self.consumer.consume(GATHER_MAX, 0)]

    def _take_down(self) -> None:
        if self._membership is not None:
            self._group = self.consumer.consumer_group_metadata()
        if self.beat_ms - self._lags_ms >= LAGS_EVERY_MS:
            self._lags_ms = self.beat_ms
            self._look_at_silence()
            self._assign_anew()
            self._lags = {place: lag for shard in self._attached for place, lag in self._shard_lags(shard)}

    def _shard_lags(self, shard: int) -> Iterator[tuple[tuple[str, int], int]]:
        attached = self._attached[shard]
        taken = attached.inbox.positions()
        for name, topic in self._names.items():
            if topic in attached.away:
                continue
            _, high = self.consumer.get_watermark_offsets(TopicPartition(name, shard), cached=True)
            if high >= 0 and topic in taken:
                yield (name, shard), max(0, high - taken[topic])

    def _deliver(self, messages: Sequence[Message[bytes, bytes]]) -> None:
        """In order. What comes after something that cannot be read is read again once that has been passed."""
        batches: dict[tuple[str, int], list[Record]] = {}
        for message in messages:
            error = message.error()
            if error is None:
                record = self._record(message)
                batches.setdefault((record.topic, record.partition), []).append(record)
            else:
                self._put(batches)
                self._report(message, error)
        self._put(batches)

    def _put(self, batches: dict[tuple[str, int], list[Record]]) -> None:
        for (topic, shard), records in batches.items():
            attached = self._attached.get(shard)
            if attached is None or topic in attached.away:
                continue
            attached.heard_ms[topic] = self.beat_ms
            attached.unheard.discard(topic)
            sound = self._credible(attached, topic, records)
            attached.inbox.put(topic, records[:sound])
            if sound < len(records):
                self._take_away(attached, topic)
        batches.clear()

    def _credible(self, attached: _Attached, topic: str, records: Sequence[Record]) -> int:
        """How many of them are taken as they come."""
        expected, high = attached.inbox.next(topic), self._high(topic, attached.inbox.shard)
        known = attached.looked_at.get(topic) == expected
        return credible(records, expected, high or 0, gaps=topic in TRANSACTIONAL, known=known)

    def _high(self, topic: str, shard: int) -> int | None:
        """The end of the log as the last fetch told it: no record stands there, whatever its batch says.

        None: that fetch was refused, as behind a record that claims a place far beyond the end; what was read before is looked at again.
        """
        at = TopicPartition(self._prefix + topic, shard)
        high = self.consumer.get_watermark_offsets(at, cached=True)[1]
        return high if high >= 0 else None

    def _record(self, message: Message[bytes, bytes]) -> Record:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None, "a record without a topic"
        assert partition is not None, "a record without a partition"
        assert offset is not None, "a record without an offset"
        headers: Headers = ()
        problem = ""
        try:
            headers = headers_of(message)
        except HeadersUnreadable as error:
            problem = str(error)
        return Record(
            topic=self._names[topic],
            partition=partition,
            offset=offset,
            timestamp_ms=message.timestamp()[1],
            key=message.key(),
            value=message.value(),
            headers=headers,
            problem=problem,
        )

    def _report(self, message: Message[bytes, bytes], error: KafkaError) -> None:
        shard, topic = message.partition(), self._names.get(message.topic() or "")
        attached = None if shard is None else self._attached.get(shard)
        if attached is not None and topic is not None:
            if topic in attached.away:
                return
            attached.heard_ms[topic] = self.beat_ms
        if error.code() == PARTITION_EOF:
            if attached is not None and topic is not None:
                attached.unheard.discard(topic)
                attached.inbox.reach_end(topic, message.offset() or 0)
        elif error.code() in OUT_OF_RANGE and attached is not None:
            attached.inbox.lose(f"{message.topic()}/{shard}: {error.str()}")
        elif error.code() in UNREADABLE and attached is not None and topic is not None:
            self._take_away(attached, topic)
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._log.warning(Event.KAFKA, topic=message.topic(), partition=shard, error=error.str())

    def _assign_anew(self) -> None:
        """The client may leave an assignment undone for ever, after a broker that stood still; the next one makes it do both."""
        for shard, attached in self._attached.items():
            for topic in attached.unheard - attached.away - attached.paused:
                if self.beat_ms - attached.heard_ms[topic] >= DEAF_MS:
                    attached.heard_ms[topic] = self.beat_ms
                    at = TopicPartition(self._prefix + topic, shard, attached.inbox.next(topic))
                    self._log.warning(
                        Event.KAFKA, topic=at.topic, partition=shard, error="assigned, never heard of"
                    )
                    self.consumer.incremental_unassign([at])
                    self.consumer.incremental_assign([at])
                    self.consumer.resume([at])

    # past what cannot be read

    def _look_at_silence(self) -> None:
        """Where records are and none comes, find out why: the client may be unable to read them, and does not say so. One at a time."""
        if any(attached.looking for attached in self._attached.values()):
            return
        for shard, attached in self._attached.items():
            for topic in self._names.values():
                quiet = self.beat_ms - attached.heard_ms[topic] >= SILENT_MS and topic not in attached.paused
                high = self._high(topic, shard) if quiet else None
                if high is not None and high > attached.inbox.next(topic):
                    self._look(attached, topic)
                    return

    def _take_away(self, attached: _Attached, topic: str) -> None:
        """What was fetched behind it goes, too: it is read again."""
        attached.away.add(topic)
        self.consumer.incremental_unassign([TopicPartition(self._prefix + topic, attached.inbox.shard)])
        if topic not in attached.looking:
            self._look(attached, topic)

    def _look(self, attached: _Attached, topic: str) -> None:
        """Beside this thread: what cannot be read from where we are."""
        inbox, at = attached.inbox, attached.inbox.next(topic)
        attached.looking.add(topic)

        def look() -> None:
            try:
                found = extent_at(self._probe, self._prefix + topic, inbox.shard, at, self._clock)
            except NoAnswer:
                self._ask(lambda: self._looked(inbox, topic))
            except Exception as error:  # noqa: BLE001 - the process must not live on with a partition that nobody reads
                self._failed(error)
            else:
                self._ask(lambda: self._looked(inbox, topic, at, found))

        threading.Thread(target=look, name=f"look-{topic}-{inbox.shard}", daemon=True).start()

    def _looked(self, inbox: Inbox, topic: str, at: int = -1, found: Extent | None = None) -> None:
        """`at` -1: nobody answered."""
        attached = self._attached.get(inbox.shard)
        if attached is None or attached.inbox is not inbox:
            return
        attached.looking.discard(topic)
        attached.heard_ms[topic] = self.beat_ms
        if inbox.next(topic) == at:  # else a late record came after all
            attached.looked_at[topic] = at
            if found is not None:
                self._pass(attached, topic, found)
        if topic in attached.away:
            self._bring_back(attached, topic)

    def _pass(self, attached: _Attached, topic: str, found: Extent) -> None:
        """A pointer takes the place of what cannot be read."""
        inbox = attached.inbox
        self._log.error(Event.UNREADABLE, topic=topic, shard=inbox.shard, why=found.text())
        if topic not in attached.away:
            attached.away.add(topic)
            self.consumer.incremental_unassign([TopicPartition(self._prefix + topic, inbox.shard)])
        inbox.put(topic, [_pointer(topic, inbox.shard, found)])
        inbox.reach_end(topic, found.end)

    def _bring_back(self, attached: _Attached, topic: str) -> None:
        """Read on behind what came last."""
        shard, at = attached.inbox.shard, attached.inbox.next(topic)
        wanted = [TopicPartition(self._prefix + topic, shard, at)]
        self.consumer.incremental_assign(wanted)
        self.consumer.resume(wanted)
        attached.away.discard(topic)
        attached.paused.discard(topic)


def _pointer(topic: str, shard: int, found: Extent) -> Record:
    return Record(
        topic=topic,
        partition=shard,
        offset=found.first,
        timestamp_ms=-1,
        key=None,
        value=None,
        problem=found.text(),
    )
