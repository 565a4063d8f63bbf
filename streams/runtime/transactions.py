"""One shard's transactional producer: fence, commit a batch, and say plainly what became of it.

TransactionError
├── AbortedError     surely not committed: redo the same input
│   └── DisownedError    because the group knows no such member, or not in this generation
├── DoubtfulError    nobody knows: fence anew, restore, start over
└── FencedError      another owner has fenced this one: the shard's task ends here
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from laxity.schemas.kafka import quiet_logger
from laxity.schemas.timing import Clock, Millis
from laxity.streams.runtime.codes import DISOWNED, FENCED, error_of
from laxity.streams.runtime.crashpoints import reach

COMMIT_S_MAX = 4.5  # a busy broker gets as long as it keeps the transaction open: given up sooner, each try would end as the last one
CALL_S_MAX = 2.0  # a commit or abort that takes longer may still be under way when the next one begins
INIT_S_MAX = 10.0  # init waits for the previous transaction of this id to end, at most its timeout of 5 s
# librdkafka sends a commit again by itself when the coordinator's connection is lost, and only its log tells of it: error_cb does not.
TELLING: Mapping[str, object] = {"log.connection.close": True, "log_level": 6}
COORDINATOR_LOST = re.compile(r"\[thrd:TxnCoordinator].* in state UP\b")  # not one that could not be made
Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Message:
    """A record to write; `topic` is the full name; `partition` None: by key. Positional, it is made five times per task."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class TransactionError(Exception):
    """A transaction that is not known to be committed."""


class AbortedError(TransactionError):
    """Nothing of it will ever be read."""


class DisownedError(AbortedError):
    """The group refused the offsets: a rebalance is under way, or the member is out and does not know it."""


class DoubtfulError(TransactionError):
    """Committed or not: only the broker knows."""


class FencedError(TransactionError):
    """A newer owner exists."""


class _Listener:
    """librdkafka's log: calls `lost` when the coordinator's connection was, and passes on what is a warning at least."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._to = quiet_logger()

    def log(self, level: int, text: str, *arguments: object) -> None:
        """As a Logger's."""
        if COORDINATOR_LOST.search(text % arguments):
            self._lost()
        if level >= logging.WARNING:
            self._to.log(level, text, *arguments)


class Transactions:
    """The producer of one transactional id; replaced by a new one whenever its last commit or abort was not smooth.

    librdkafka has no transactions of version 2, so a delayed EndTxn could end the *next* transaction of the same producer.
    """

    def __init__(
        self,
        properties: Mapping[str, object],
        clock: Clock,
        *,
        is_named_by_others: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_named_by_others`: a living process says that the id is its own, so that a replacement would fence the rightful owner."""
        self._properties = properties
        self._is_named_by_others = is_named_by_others
        self._clock = clock
        self._producer: Producer | None = None
        self._disturbed = False
        self._began_ms: Millis | None = None  # the transaction under way
        self._should_stop: Callable[[], bool] = lambda: False

    def under_way_ms(self) -> Millis:
        """How long the transaction under way has taken; 0: there is none. From any thread."""
        began_ms = self._began_ms
        return 0 if began_ms is None else self._clock.monotonic_ms() - began_ms

    def fence(self, should_stop: Callable[[], bool] | None = None) -> None:
        """A new producer; ends whatever transaction the id has open. Raises FencedError, or DoubtfulError if told to stop.

        `should_stop` holds for replacements during `commit` too: one that waits for its broker must not outlive the ownership.
        """
        self._should_stop = should_stop or self._should_stop
        self.close()
        self._producer = Producer({**self._properties, **TELLING, "logger": _Listener(self._on_lost)})
        self._disturbed = False
        while True:
            try:
                self._producer.init_transactions(INIT_S_MAX)
            except KafkaException as raised:
                error = error_of(raised)
                if error.code() in FENCED:
                    raise FencedError(str(error)) from raised
                if self._should_stop() or not error.retriable():
                    raise DoubtfulError(f"init_transactions: {error}") from raised
            else:
                return

    def _on_lost(self) -> None:
        """The coordinator's connection: a commit that was under way on it may still arrive, after the one that was sent instead."""
        self._disturbed = True

    def commit(
        self,
        messages: Sequence[Message],
        offsets: Sequence[TopicPartition],
        metadata: Any,
        watched: Sequence[str] = (),
    ) -> dict[str, int]:
        """One transaction. Returns, for each watched topic that got records, the offset after the last one.

        `metadata` is the group metadata of the consumer that is a member; needed with offsets.

        A producer that has to be replaced: the new one fences whoever has the id by now, so the old epoch protects nobody any more.
        With offsets the group's generation does; without, DoubtfulError, and a start over reads what a successor may have committed.
        """
        if self._producer is None or self._disturbed:
            if self._is_named_by_others():
                raise FencedError("another living process has the shard")
            if self._producer is not None and not offsets:
                raise DoubtfulError(
                    "the producer has to be replaced, and nothing in this batch would tell a newer owner"
                )
            self.fence()
        producer = self._producer
        assert producer is not None, "fence() makes one"
        ends = dict.fromkeys(watched, -1)
        with self._under_way():
            try:
                self._prepare(producer, messages, offsets, metadata, ends)
            except (KafkaException, BufferError) as raised:
                self._abort(producer, raised)
            reach("before_commit")
            self._end(producer)
        return {topic: end for topic, end in ends.items() if end >= 0}

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._began_ms = self._clock.monotonic_ms()
        try:
            yield
        finally:
            self._began_ms = None

    def _prepare(
        self,
        producer: Producer,
        messages: Sequence[Message],
        offsets: Sequence[TopicPartition],
        metadata: Any,
        ends: dict[str, int],
    ) -> None:
        producer.begin_transaction()
        reach("after_begin")
        self._produce(producer, messages, ends)
        reach("before_offsets")
        if offsets:
            producer.send_offsets_to_transaction(list(offsets), metadata, CALL_S_MAX)

    def _produce(self, producer: Producer, messages: Sequence[Message], ends: dict[str, int]) -> None:
        last = {m.topic: at for at, m in enumerate(messages) if m.topic in ends}
        half = len(messages) // 2

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is None:
                ends[message.topic()] = message.offset() + 1

        for at, m in enumerate(messages):
            if at == half:
                reach("mid_produce")
            extra: dict[str, Any] = {} if m.partition is None else {"partition": m.partition}
            if last.get(m.topic) == at:
                extra["on_delivery"] = delivered
            if m.headers:
                extra["headers"] = list(m.headers)
            producer.produce(m.topic, m.value, m.key, **extra)

    def _abort(self, producer: Producer, raised: Exception) -> NoReturn:
        """Before the commit was asked for: it surely did not happen, however the abort goes."""
        error = error_of(raised) if isinstance(raised, KafkaException) else None
        # The client drops what waits for a retry as if it had never been written. If it had, this producer's next records would have its
        # sequence numbers, and the broker would drop them as repeats and acknowledge them.
        self._disturbed = True
        if error is not None and error.code() in FENCED:
            raise FencedError(str(error)) from raised
        try:
            producer.abort_transaction(CALL_S_MAX)
        except KafkaException as second:
            if error_of(second).code() in FENCED:
                raise FencedError(str(second)) from raised
        kind = DisownedError if error is not None and error.code() in DISOWNED else AbortedError
        raise kind(str(raised)) from raised

    def _end(self, producer: Producer) -> None:
        begun_ms: Millis = self._clock.monotonic_ms()
        try:
            producer.commit_transaction(COMMIT_S_MAX)
            producer.poll(0)
        except KafkaException as raised:
            error = error_of(raised)
            if error.code() not in FENCED and error.txn_requires_abort():
                self._abort(producer, raised)
            self._disturbed = True
            kind = FencedError if error.code() in FENCED else DoubtfulError
            raise kind(f"commit_transaction: {error}") from raised
        if self._clock.monotonic_ms() - begun_ms > CALL_S_MAX * 1000:
            self._disturbed = True

    def close(self) -> None:
        """Let go of the producer. One that failed is dropped as it is: its transaction ends by the next fence or by its timeout."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        if self._disturbed:
            producer.purge()
        else:
            producer.close()
