"""Delivery reports become results, whatever the client does. The client is a fake; the real one is in tests/integration."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from laxity.producers.delivery import Outbox, Published, PublishFailed
from laxity.producers.publisher import Publisher
from laxity.producers.request import InvalidTrigger
from laxity.schemas.config import parse
from laxity.schemas.identity import run_id_of, task_id_of
from laxity.schemas.records import Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.timing import ManualClock
from laxity.schemas.topics import Names

CONFIG = parse("")


class FakeMessage:
    """Position of a record."""

    def __init__(self, topic: str, offset: int) -> None:
        self._topic, self._offset = topic, offset

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return self._offset


class FakeProducer:
    """Acknowledges each record when it is polled, unless `answer` says another thing; its queue holds `room` records."""

    def __init__(self, room: int = 1_000) -> None:
        self.waiting: queue.Queue[tuple[str, Callable[..., None]]] = queue.Queue(room)
        self.sent: list[dict[str, Any]] = []
        self.answer: KafkaError | None = None
        self.refusal: KafkaError | None = None
        self.silent = False

    def produce(self, topic: str, **record: Any) -> None:
        if self.refusal is not None:
            raise KafkaException(self.refusal)
        try:
            self.waiting.put_nowait((topic, record["on_delivery"]))
        except queue.Full:
            raise BufferError("Local: Queue full") from None
        self.sent.append({"topic": topic} | record)

    def poll(self, timeout_s: float) -> int:
        if self.silent:
            return 0
        try:
            topic, report = self.waiting.get(timeout=timeout_s)
        except queue.Empty:
            return 0
        report(self.answer, FakeMessage(topic, len(self.sent)))
        return 1

    def flush(self, timeout_s: float) -> int:
        while not self.silent and not self.waiting.empty():
            self.poll(0)
        return self.waiting.qsize()


@pytest.fixture
def fake() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def publisher(fake: FakeProducer) -> Iterator[Publisher]:
    made = Publisher(fake, Codec.local(), CONFIG, Names("p."), ManualClock())  # type: ignore[arg-type]
    yield made
    fake.silent = False
    made.close()


def test_a_report_becomes_a_result(publisher: Publisher, fake: FakeProducer) -> None:
    done = publisher.publish(Trigger(type="t", key="k"), "high", [("b", b"1"), ("a", b"2"), ("b", b"3")])
    run_id = run_id_of("default", "", "k")
    assert done == Published(
        task_id=task_id_of("default", run_id, "k"),
        run_id=run_id,
        key="k",
        topic="p.triggers.high",
        partition=2,
        offset=1,
    )
    assert fake.sent[0]["headers"] == [("b", b"1"), ("a", b"2"), ("b", b"3")], "in order, repeated names too"
    assert fake.sent[0]["key"] == run_id.encode()


@pytest.mark.parametrize(
    ("code", "retriable"),
    [
        (KafkaError._MSG_TIMED_OUT, True),
        (KafkaError.NOT_ENOUGH_REPLICAS, True),
        (KafkaError.MSG_SIZE_TOO_LARGE, False),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, False),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, False),
    ],
)
def test_an_error_becomes_a_failure_that_says_whether_to_try_again(
    code: int, *, retriable: bool, publisher: Publisher, fake: FakeProducer
) -> None:
    fake.answer = KafkaError(code)
    with pytest.raises(PublishFailed, match=KafkaError(code).name()) as caught:
        publisher.publish(Trigger(type="t"))
    assert caught.value.retriable is retriable
    (failed,) = publisher.publish_many([Trigger(type="t")])
    assert isinstance(failed, PublishFailed)
    assert failed.retriable is retriable


def test_a_client_that_takes_nothing(publisher: Publisher, fake: FakeProducer) -> None:
    fake.refusal = KafkaError(KafkaError._FATAL)
    with pytest.raises(PublishFailed, match="_FATAL"):
        publisher.publish(Trigger(type="t"))
    results = publisher.publish_many([Trigger(type="t"), Trigger(type="t")])
    assert [type(result) for result in results] == [PublishFailed, PublishFailed]


def test_order_of_a_batch(publisher: Publisher) -> None:
    assert publisher.publish_many([]) == []
    results = publisher.publish_many([Trigger(type="t", key=str(i)) for i in range(50)])
    assert [r.key for r in results if isinstance(r, Published)] == [str(i) for i in range(50)]


def test_nothing_of_a_bad_batch_is_sent(publisher: Publisher, fake: FakeProducer) -> None:
    with pytest.raises(InvalidTrigger, match=r"^trigger 1: type is empty"):
        publisher.publish_many([Trigger(type="t"), Trigger(type="")])
    assert fake.sent == []


def test_a_caller_that_gave_up_harms_nobody(publisher: Publisher, fake: FakeProducer) -> None:
    fake.silent = True
    given_up, other = publisher.send(Trigger(type="t", key="a")), publisher.send(Trigger(type="t", key="b"))
    assert given_up.cancel()
    fake.silent = False
    assert other.result(10).key == "b"
    assert publisher.publish(Trigger(type="t", key="c")).key == "c", "the thread still serves"


def test_a_full_queue_fails_in_time() -> None:
    fake = FakeProducer(room=1)
    fake.silent = True
    publisher = Publisher(fake, Codec.local(), CONFIG, clock=ManualClock())  # type: ignore[arg-type]
    outbox: Outbox = publisher._outbox
    prepared = publisher.prepare(Trigger(type="t"))
    assert outbox.try_send(prepared) is not None
    assert outbox.try_send(prepared) is None
    with pytest.raises(PublishFailed, match="queue was full") as caught:
        outbox.send(prepared, 0.1)
    assert caught.value.retriable
    with pytest.raises(PublishFailed, match="1 records were not acknowledged"):
        publisher.close(0)
    with pytest.raises(PublishFailed, match="closed"):
        publisher.publish(Trigger(type="t"))


def test_leaving_the_context_tells_what_is_unacknowledged_but_hides_no_error(fake: FakeProducer) -> None:
    fake.silent = True
    made = Publisher(fake, Codec.local(), CONFIG, clock=ManualClock())  # type: ignore[arg-type]
    with pytest.raises(PublishFailed, match="not acknowledged"), made:
        made.send(Trigger(type="t"))
    other = Publisher(fake, Codec.local(), CONFIG, clock=ManualClock())  # type: ignore[arg-type]
    other.send(Trigger(type="t"))
    with pytest.raises(InvalidTrigger), other:
        other.send(Trigger(type=""))
