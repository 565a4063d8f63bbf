"""Produces prepared records and turns delivery reports into results. One thread polls the client; callers wait on futures."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from laxity.producers.request import Prepared
from laxity.schemas.identity import positional_key, run_id_of, task_id_of

OnDelivery = Callable[[KafkaError | None, Message], None]
Position = tuple[str, int, int]

POLL_S = 0.05  # how long a closing publisher waits for its thread, at most
FULL_WAIT_S = 0.02  # between two tries at a full queue
_TRIES_PER_S = round(1 / FULL_WAIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The broker has the trigger, on all in-sync replicas. The ids are those that the scheduler derives, too."""

    task_id: str
    run_id: str
    key: str
    topic: str
    partition: int
    offset: int


class PublishFailed(Exception):  # noqa: N818 - a result
    """No acknowledgement. `retriable`: the same trigger may be sent again; with a key of its own that is always safe."""

    def __init__(self, reason: str, *, retriable: bool) -> None:
        super().__init__(reason)
        self.retriable = retriable


class Outbox:
    """A producer and the thread that serves its delivery reports."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="laxity-publisher", daemon=True)
        self._thread.start()

    def try_send(self, prepared: Prepared) -> Future[Published] | None:
        """Queue a record; None if the queue is full. PublishFailed if the client will not take it at all or was closed."""
        result: Future[Published] = Future()
        return result if self._try_produce(prepared, partial(_conclude, result, prepared)) else None

    def _try_produce(self, prepared: Prepared, on_delivery: OnDelivery) -> bool:
        """False if the queue is full."""
        if self._stopped.is_set():
            raise PublishFailed("the publisher is closed", retriable=True)
        try:
            self._producer.produce(
                prepared.topic,
                value=prepared.value,
                key=prepared.record_key,
                headers=list(prepared.headers) or None,
                on_delivery=on_delivery,
            )
        except BufferError:
            return False
        except KafkaException as error:
            raise _failure(error.args[0]) from error
        return True

    def send(self, prepared: Prepared, timeout_s: float) -> Future[Published]:
        """As try_send, waiting for room: that is the back-pressure. PublishFailed if there is none in time."""
        result: Future[Published] = Future()
        self._produce(prepared, partial(_conclude, result, prepared), timeout_s)
        return result

    def send_all(self, batch: Sequence[Prepared], timeout_s: float) -> list[Published | PublishFailed]:
        """One result per record, in order. Without a future for each, which would cost more than all the rest of it."""
        answers = Answers(len(batch))
        for index, prepared in enumerate(batch):
            on_delivery = partial(answers.take, index)
            try:
                self._produce(prepared, on_delivery, timeout_s)
            except PublishFailed as error:
                answers.put(index, error)
        answers.done.wait(timeout_s)
        return [_result(prepared, answer) for prepared, answer in zip(batch, answers.found, strict=True)]

    def _produce(self, prepared: Prepared, on_delivery: OnDelivery, timeout_s: float) -> None:
        for _ in range(max(1, round(timeout_s * _TRIES_PER_S))):
            if self._try_produce(prepared, on_delivery):
                return
            self._stopped.wait(FULL_WAIT_S)
        raise PublishFailed(
            f"the send queue was full for {timeout_s} s: the broker is too slow or away", retriable=True
        )

    def flush(self, timeout_s: float) -> int:
        """Wait until everything queued is answered; the number of records that are not."""
        return int(self._producer.flush(timeout_s))

    def close(self, timeout_s: float) -> int:
        """Flush, end the thread; the number of records without an answer. A second call does nothing."""
        if self._stopped.is_set():
            return 0
        left = self.flush(timeout_s)
        self._stopped.set()
        self._thread.join()
        return left

    def _serve(self) -> None:
        while not self._stopped.is_set():
            self._producer.poll(POLL_S)


class Answers:
    """Delivery reports of a batch by index; `done` is set with the last one."""

    def __init__(self, size: int) -> None:
        self.found: list[Position | PublishFailed | None] = [None] * size
        self.done = threading.Event()
        self._left = itertools.count(size - 1, -1)  # next() is atomic: reports may come on several threads
        if not size:
            self.done.set()

    def take(self, index: int, error: KafkaError | None, message: Message) -> None:
        """A delivery report."""
        self.put(index, _position(message) if error is None else _failure(error))

    def put(self, index: int, answer: Position | PublishFailed) -> None:
        """What became of one record."""
        self.found[index] = answer
        if next(self._left) == 0:
            self.done.set()


def _conclude(
    result: Future[Published], prepared: Prepared, error: KafkaError | None, message: Message
) -> None:
    if not result.set_running_or_notify_cancel():
        return  # the caller gave up waiting
    if error is not None:
        result.set_exception(_failure(error))
    else:
        result.set_result(_published(prepared, _position(message)))


def _position(message: Message) -> Position:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None, "a delivery report names its topic"
    assert partition is not None, "a delivery report names its partition"
    assert offset is not None, "a delivery report names its offset"
    return topic, partition, offset


def _result(prepared: Prepared, answer: Position | PublishFailed | None) -> Published | PublishFailed:
    if answer is None:
        return PublishFailed("no delivery report in time", retriable=True)
    return answer if isinstance(answer, PublishFailed) else _published(prepared, answer)


def _published(prepared: Prepared, position: Position) -> Published:
    topic, partition, offset = position
    key = prepared.key or positional_key(topic, partition, offset)
    run_id = prepared.run_id or run_id_of(prepared.tenant, "", key)
    return Published(
        task_id=task_id_of(prepared.tenant, run_id, key),
        run_id=run_id,
        key=key,
        topic=topic,
        partition=partition,
        offset=offset,
    )


def _failure(error: KafkaError) -> PublishFailed:
    """A timed-out record may have arrived; sent again under its key it is a duplicate, which is harmless."""
    retriable = not error.fatal() and error.code() not in _HOPELESS
    return PublishFailed(f"{error.name()}: {error.str()}", retriable=retriable)


_HOPELESS = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - the client's own name for it
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_RECORD,
}
