"""When a producer may be replaced under a running owner, and when the owner has to start over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from laxity.schemas.timing import ManualClock
from laxity.streams.runtime import transactions
from laxity.streams.runtime.transactions import (
    CALL_S_MAX,
    AbortedError,
    DisownedError,
    DoubtfulError,
    Message,
    Transactions,
)

OFFSETS = [TopicPartition("control", 0, 7)]
MESSAGES = [Message("state", 0, b"k", b"v")]


@dataclass
class Broker:
    """What the fake producers share: how many were initialised, what was committed, and what fails next."""

    inits: int = 0
    inits_that_wait: int = 0
    commits: list[int] = field(default_factory=list)
    refuses_produce: bool = False
    refuses_offsets: int | None = None
    commit_takes_ms: int = 0
    in_offsets: Callable[[], None] = lambda: None
    clock: ManualClock = field(default_factory=ManualClock)

    def producer(self, _properties: dict[str, object]) -> FakeProducer:
        return FakeProducer(self)


class FakeProducer:
    """Counts; raises where it is told to."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def init_transactions(self, _timeout_s: float) -> None:
        if self._broker.inits_that_wait:
            self._broker.inits_that_wait -= 1
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no coordinator", retriable=True))
        self._broker.inits += 1

    def produce(self, *_: Any, **__: Any) -> None:
        if self._broker.refuses_produce:
            raise BufferError

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self._broker.in_offsets()
        if self._broker.refuses_offsets is not None:
            raise KafkaException(KafkaError(self._broker.refuses_offsets, "refused"))

    def begin_transaction(self) -> None: ...

    def abort_transaction(self, _timeout_s: float) -> None: ...

    def commit_transaction(self, timeout_s: float) -> None:
        limit_ms = round(timeout_s * 1000)
        self._broker.clock.advance(min(self._broker.commit_takes_ms, limit_ms))
        if self._broker.commit_takes_ms > limit_ms:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer", retriable=True))
        self._broker.commits.append(self._broker.inits)

    def poll(self, _timeout_s: float) -> None: ...

    def purge(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(transactions, "Producer", made.producer)
    return made


def aborted(broker: Broker) -> Transactions:
    shard = Transactions({}, broker.clock)
    shard.fence()
    broker.refuses_produce = True
    with pytest.raises(AbortedError):
        shard.commit(MESSAGES, OFFSETS, "member")
    broker.refuses_produce = False
    return shard


def test_a_commit_that_was_slow_may_still_be_under_way_so_the_next_producer_is_new(broker: Broker) -> None:
    shard = Transactions({}, broker.clock)
    shard.fence()
    broker.commit_takes_ms = int(CALL_S_MAX * 1000) + 1
    for _ in range(2):
        shard.commit(MESSAGES, OFFSETS, "member")
    broker.commit_takes_ms = 0
    for _ in range(2):
        shard.commit(MESSAGES, OFFSETS, "member")
    assert broker.commits == [1, 2, 3, 3]


def test_a_call_that_does_not_come_back_is_seen_from_other_threads(broker: Broker) -> None:
    shard, seen = Transactions({}, broker.clock), list[int]()

    def hang() -> None:
        broker.clock.advance(21_000)
        seen.append(shard.under_way_ms())

    shard.fence()
    assert shard.under_way_ms() == 0
    broker.in_offsets = hang
    shard.commit(MESSAGES, OFFSETS, "member")
    assert seen == [21_000]
    assert shard.under_way_ms() == 0
    broker.refuses_produce = True
    with pytest.raises(AbortedError):
        shard.commit(MESSAGES, OFFSETS, "member")
    assert shard.under_way_ms() == 0


def test_a_busy_broker_gets_as_long_as_it_keeps_a_transaction_open(broker: Broker) -> None:
    """Given up sooner, every try would end as the last one: a shard that starts over for ever."""
    shard = Transactions({}, broker.clock)
    shard.fence()
    broker.commit_takes_ms = 4_000
    shard.commit(MESSAGES, OFFSETS, "member")
    broker.commit_takes_ms = 5_000  # its own limit: by then it has aborted
    with pytest.raises(DoubtfulError):
        shard.commit(MESSAGES, OFFSETS, "member")


def test_with_offsets_the_group_protects_a_replacement(broker: Broker) -> None:
    aborted(broker).commit(MESSAGES, OFFSETS, "member")
    assert broker.commits == [2]


def test_without_offsets_a_replacement_could_overwrite_a_newer_owner_so_the_shard_starts_over(
    broker: Broker,
) -> None:
    shard = aborted(broker)
    with pytest.raises(DoubtfulError, match="newer owner"):
        shard.commit(MESSAGES, (), None)
    assert (broker.inits, broker.commits) == (1, [])


def test_a_replacement_that_waits_for_its_broker_ends_with_the_ownership(broker: Broker) -> None:
    stopping: list[bool] = []
    shard = Transactions({}, broker.clock)
    shard.fence(lambda: bool(stopping))
    broker.refuses_produce = True
    with pytest.raises(AbortedError):
        shard.commit(MESSAGES, OFFSETS, "member")
    stopping.append(True)
    broker.inits_that_wait = 1_000
    with pytest.raises(DoubtfulError, match="no coordinator"):
        shard.commit(MESSAGES, OFFSETS, "member")
    assert broker.inits_that_wait == 999


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.UNKNOWN_MEMBER_ID, DisownedError),
        (KafkaError.ILLEGAL_GENERATION, DisownedError),
        (KafkaError.NOT_COORDINATOR, AbortedError),
    ],
)
def test_a_refusal_by_the_group_is_told_from_other_aborts(
    broker: Broker, code: int, kind: type[AbortedError]
) -> None:
    shard = Transactions({}, broker.clock)
    shard.fence()
    broker.refuses_offsets = code
    with pytest.raises(AbortedError) as raised:
        shard.commit(MESSAGES, OFFSETS, "member")
    assert type(raised.value) is kind
