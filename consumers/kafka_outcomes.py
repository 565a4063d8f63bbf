"""The real writer of `outcomes`: idempotent, acknowledged by all replicas, awaited from the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from laxity.consumers.errors import NotWritten
from laxity.schemas.records import Outcome
from laxity.schemas.serde import Codec

POLL_S: Final = 0.1
FLUSH_S: Final = 5.0
METADATA_S: Final = 10.0
PERMANENT: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


class KafkaOutcomes:
    """A thread serves delivery reports and hands them to the loop in bunches: one wake-up for many records."""

    def __init__(
        self,
        producer: Producer,
        *,
        codec: Codec,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[str], None],
    ) -> None:
        """NotWritten if the topic does not answer: without it nothing could be reported.

        `on_fatal` hears on the loop that the producer will never write again; the process must start over.
        """
        self._on_fatal = on_fatal
        self._producer = producer
        self._codec = codec
        self._topic = topic
        self._loop = loop
        self._reports: deque[tuple[asyncio.Future[None], Any]] = deque()
        self._partitions = self._count()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="outcome-reports", daemon=True)
        self._thread.start()

    async def write(self, partition: int, key: bytes, outcome: Outcome) -> None:
        """Durable when it returns."""
        if not 0 <= partition < self._partitions:
            raise NotWritten(f"shard {partition}: there are {self._partitions}", permanent=True)
        value = self._encoded(outcome)
        future = self._loop.create_future()
        try:
            self._producer.produce(
                self._topic,
                value=value,
                key=key,
                partition=partition,
                on_delivery=lambda error, _: self._reports.append((future, error)),
            )
        except BufferError as error:
            raise NotWritten("the producer's queue is full") from error
        except KafkaException as error:
            raise self._not_written(error.args[0]) from error
        await future

    def _encoded(self, outcome: Outcome) -> bytes:
        """What an agent gave may be no value of its field; the work is done, so that is the record's end, not the runner's."""
        try:
            return self._codec.encode(outcome)
        except (TypeError, ValueError, OverflowError) as error:
            raise NotWritten(f"it is no outcome: {error}", permanent=True) from error

    def partitions(self) -> int:
        """How many shards there are: fixed for life."""
        return self._partitions

    def close(self) -> None:
        """Wait for what is under way, at most FLUSH_S."""
        self._producer.flush(FLUSH_S)
        self._ended.set()
        self._thread.join(FLUSH_S)

    def _count(self) -> int:
        try:
            found = self._producer.list_topics(self._topic, timeout=METADATA_S).topics[self._topic]
        except KafkaException as error:
            raise NotWritten(f"{self._topic}: {error.args[0].str()}") from error
        if found.error is not None:
            raise NotWritten(f"{self._topic}: {found.error.str()}; run `laxity topics apply`")
        return len(found.partitions)

    def _serve(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(POLL_S)
            if self._reports and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        while self._reports:
            future, error = self._reports.popleft()
            if future.done():
                continue  # nobody waits any more
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(self._not_written(error))

    def _not_written(self, error: KafkaError) -> NotWritten:
        if error.fatal():
            self._on_fatal(f"producer of {self._topic}: {error.str()}")
        return NotWritten(error.str(), permanent=error.code() in PERMANENT)
