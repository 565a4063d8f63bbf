"""What a reader does about a client that forgets what it was told to read."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import TopicPartition

from laxity.schemas.timing import ManualClock
from laxity.streams.runtime.codes import PARTITION_EOF
from laxity.streams.runtime.inbox import Inbox
from laxity.streams.runtime.reader import DEAF_MS, Reader

SHARD = 2


class Client:
    """Reads nothing. `calls`: what it was told, with the offset."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, int, int]] = []

    def get_watermark_offsets(self, _: TopicPartition, *, cached: bool) -> tuple[int, int]:
        assert cached
        return -1001, -1001

    def __getattr__(self, name: str) -> Any:
        def told(places: list[TopicPartition]) -> None:
            self.calls += [(name, at.topic, at.partition, at.offset) for at in places]

        return told


class End:
    def __init__(self, topic: str, offset: int) -> None:
        self._topic, self._offset = topic, offset

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return SHARD

    def offset(self) -> int:
        return self._offset

    def error(self) -> Any:
        class Eof:
            def code(self) -> int:
                return PARTITION_EOF

        return Eof()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def reader(client: Client) -> Reader:
    topics = ("triggers.low", "triggers.normal")
    made = Reader(
        name="bulk",
        consumer=client,  # type: ignore[arg-type]
        topics=topics,
        prefix="p.",
        clock=ManualClock(),
        membership=None,
        probe=lambda _: pytest.fail("nothing is to be looked at"),
        failed=lambda error: pytest.fail(str(error)),
    )
    inbox = Inbox(SHARD)
    positions = dict.fromkeys(topics, 7)
    inbox.open(positions)
    made._attach(inbox, positions)
    return made


def pass_time(reader: Reader, ms: int) -> None:
    reader.beat_ms += ms
    reader._take_down()


def test_a_partition_that_was_assigned_and_is_never_heard_of_is_assigned_anew(
    reader: Reader, client: Client
) -> None:
    end: Any = End("p.triggers.normal", 7)
    reader._report(end, end.error())
    client.calls.clear()
    pass_time(reader, DEAF_MS - 1)
    assert client.calls == []
    pass_time(reader, 1_000)
    place = ("p.triggers.low", SHARD, 7)
    anew = [("incremental_unassign", *place), ("incremental_assign", *place), ("resume", *place)]
    assert client.calls == anew, "one that told its end is quiet, not deaf"
    pass_time(reader, DEAF_MS)
    assert client.calls == anew * 2, "until it is heard of"
    end = End("p.triggers.low", 7)
    reader._report(end, end.error())
    pass_time(reader, 10 * DEAF_MS)
    assert client.calls == anew * 2


def test_a_partition_that_is_held_back_is_not_expected_to_speak(reader: Reader, client: Client) -> None:
    attached = reader._attached[SHARD]
    attached.paused.add("triggers.low")
    attached.away.add("triggers.normal")
    client.calls.clear()
    pass_time(reader, DEAF_MS)
    assert client.calls == []
