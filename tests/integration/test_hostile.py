"""Hostile bytes against real brokers: what they take, what our readers do with it, and that the next good record is carried out within 5 s."""

from __future__ import annotations

import socket
import struct
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]
from hostile import corpus, wire
from hostile.wire import Sent
from integration.deployment import CLOCK, World, deployed, wait_for

from laxity.infra.local import Endpoints
from laxity.infra.local.launch import start_detached, stop
from laxity.infra.local.plan import make_plan
from laxity.infra.local.settings import StackSettings
from laxity.schemas import kafka_properties as tables
from laxity.schemas import limits
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.kafka_headers import headers_of
from laxity.schemas.records import Command, Outcome, Trigger
from laxity.schemas.serde import HEADER_BYTES
from laxity.schemas.settings import settings
from laxity.streams.effects import Record
from laxity.streams.runtime.inbox import Inbox
from laxity.streams.runtime.reader import Membership, Reader
from laxity.streams.runtime.sources import INPUTS, URGENT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

NEXT_MS_MAX = 5_000  # after poison the next record flows within this
MEMORY_MIB_MAX = 300  # of a scheduler process with hostile inputs; quiet it has some 100
TOO_LARGE, UNKNOWN = 10, -1  # the broker's words: beyond max.message.bytes; its own memory would not hold it
NO_LEADER = {3, 5, 6}  # a topic that was just made
Rot = Callable[[bytearray, int, int], None]


@dataclass(frozen=True)
class Own:
    """A stack of our own, whose logs on disk we may spoil."""

    endpoints: Endpoints
    root: Path

    def log(self, topic: str) -> Path:
        """The first segment of partition 0."""
        (found,) = self.root.glob(f"kafka/data/**/{topic}-0/00000000000000000000.log")
        return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("hostile")
    plan = make_plan(
        StackSettings(data_dir=folder, kafka="", registry_url="", redis_url=""), only="kafka,registry,redis"
    )
    try:
        yield Own(start_detached(plan), folder)
    finally:
        stop(plan.data)


def sent(address: str, topic: str, batch: bytes) -> tuple[int, int]:
    """To partition 0, once that has a leader."""
    answers: list[tuple[int, int]] = []

    def took() -> bool:
        answers.append(wire.produce(address, topic, 0, batch))
        return answers[-1][0] not in NO_LEADER

    wait_for(took, "a leader")
    return answers[-1]


@dataclass
class Reading:
    """The urgent reader of a process, alone: what it puts into the inbox of shard 0."""

    own: Own
    prefix: str = field(default_factory=lambda: f"x{uuid.uuid4().hex[:8]}.")
    inbox: Inbox = field(default_factory=lambda: Inbox(0))
    taken: list[Record] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = KafkaClients(settings(kafka=self.own.endpoints.kafka, prefix=self.prefix), role="test")
        admin = self.clients.admin()
        made = [NewTopic(self.prefix + name, 1, 1) for name in INPUTS]
        for done in admin.create_topics(made).values():
            done.result(30)
        self.granted: list[int] = []
        ignore: Callable[[object], None] = lambda _: None  # noqa: E731
        self.reader = Reader(
            name="urgent",
            consumer=self.consumer(tables.MEMBER, tables.URGENT),
            topics=URGENT,
            prefix=self.prefix,
            clock=CLOCK,
            membership=Membership(granted=self.granted.extend, revoked=ignore, lost=ignore),
            probe=lambda more: self.consumer(tables.RESTORE, **more),
            failed=self.failures.append,
        )
        self.reader.start()

    def consumer(self, *of: tables.Table, **more: object) -> Consumer:
        properties: dict[str, Any] = self.clients.consumer_properties(*of, group="scheduler")
        return Consumer({**properties, "auto.offset.reset": "error", **more})

    def send(self, topic: str, batch: bytes) -> tuple[int, int]:
        return sent(self.own.endpoints.kafka, self.prefix + topic, batch)

    def good(self, topic: str, first: int, count: int = 3) -> None:
        for number in range(first, first + count):
            assert self.send(topic, wire.batch_of(Sent(value=b"%d" % number)))[0] == 0

    def begin(self) -> None:
        self.inbox.open(dict.fromkeys(INPUTS, 0))
        self.reader.attach(self.inbox, dict.fromkeys(INPUTS, 0)).result(10)

    def came(self) -> list[Record]:
        self.taken += self.inbox.take(500).records
        return self.taken

    def reached(self) -> int:
        self.came()
        return self.inbox.positions()["outcomes"]

    def stop(self) -> None:
        self.reader.stop()
        self.reader.join(20)
        assert self.failures == []


@pytest.fixture
def reading(own: Own) -> Iterator[Reading]:
    made = Reading(own)
    wait_for(lambda: made.granted == [0], "the shard")
    yield made
    made.stop()


def flipped(log: bytearray, at: int, _size: int) -> None:
    log[at + 64] ^= 0xFF


def packed(codec: int) -> Rot:
    """The batch says that it is compressed, under a checksum that is right; it is not."""

    def spoil(log: bytearray, at: int, size: int) -> None:
        struct.pack_into(">h", log, at + wire.CRC_FROM, codec)
        checksum = wire.crc32c(bytes(log[at + wire.CRC_FROM : at + wire.OVERHEAD + size]))
        struct.pack_into(">I", log, at + wire.CRC_AT, checksum)

    return spoil


def inner(log: bytearray, at: int, size: int) -> None:
    """The first record says that it is longer than its batch, under a checksum that is right."""
    log[at + 61] = 0x7F
    checksum = wire.crc32c(bytes(log[at + wire.CRC_FROM : at + wire.OVERHEAD + size]))
    struct.pack_into(">I", log, at + wire.CRC_AT, checksum)


ROTS: Mapping[str, Rot] = {
    "checksum": flipped,
    "gzip": packed(1),
    "zstd": packed(4),
    "codec 7": packed(7),
    "inside": inner,
}


def some(names: Collection[str], quick: Collection[str]) -> list[Any]:
    """All of them, those that are not among the quick ones for check-deep."""
    assert set(quick) <= set(names)
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(ROTS, ["checksum", "zstd"]))
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_rotten_batch_is_passed_and_no_good_record_is(
    reading: Reading, own: Own, name: str, count: int
) -> None:
    reading.good("outcomes", 0)
    assert reading.send("outcomes", wire.batch_of(*(Sent(value=b"%d" % n) for n in range(3, 3 + count)))) == (
        0,
        3,
    )
    reading.good("outcomes", 3 + count)
    spoil(own.log(reading.prefix + "outcomes"), 3, ROTS[name])
    reading.begin()
    wait_for(lambda: len(reading.came()) == 7, "all but the rotten ones", NEXT_MS_MAX + count * 500)
    assert [r.value for r in reading.taken if not r.problem] == [
        b"%d" % n for n in (0, 1, 2, *range(3 + count, 6 + count))
    ]
    (pointer,) = [r for r in reading.taken if r.problem]
    assert (pointer.offset, pointer.key, pointer.value) == (3, None, None)
    assert pointer.problem.startswith(f"offsets 3 to {2 + count}: ")
    assert ("CRC32C" in pointer.problem) == (name == "checksum")
    reading.good("outcomes", 6 + count)
    wait_for(lambda: len(reading.came()) == 10, "what comes later, too", NEXT_MS_MAX)
    assert reading.inbox.positions()["outcomes"] == 9 + count


def span(problem: str) -> range:
    """`offsets 3 to 4: …`"""
    _, first, _, last, *_ = problem.replace(":", "").split()
    return range(int(first), int(last) + 1)


def spoil(path: Path, batch: int, rot: Rot) -> None:
    """The log is the broker's page cache, too: it serves what we write."""
    log = bytearray(path.read_bytes())
    at = 0
    for _ in range(batch):
        at += wire.OVERHEAD + int(struct.unpack_from(">i", log, at + 8)[0])
    rot(log, at, struct.unpack_from(">i", log, at + 8)[0])
    with path.open("r+b") as file:
        file.write(log)


def record(*, delta: bytes = b"\0", key: bytes = wire.varint(-1), value: bytes = b"\2x") -> bytes:
    body = b"\0\0" + delta + key + value + b"\0"
    return wire.varint(len(body)) + body


MADE: Mapping[str, bytes] = {
    "value of length -2": wire.batch(record(value=wire.varint(-2)), 1),
    "key of length -2": wire.batch(record(key=wire.varint(-2)), 1),
    "key of length -2^31": wire.batch(record(key=wire.varint(-(2**31))), 1),
    "far beyond the end": wire.batch(record(delta=wire.varint(2**30)), 1),
    "64 MiB in a kilobyte": wire.bomb(wire.ZSTD, 64 * limits.MIB),  # where a topic's settings let it in
}


@pytest.mark.parametrize("name", some(MADE, ["value of length -2", "far beyond the end"]))
@pytest.mark.parametrize("late", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_batch_that_the_broker_takes_and_the_client_cannot_read_is_passed(
    reading: Reading,
    name: str,
    late: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if late:
        reading.begin()
    reading.good("outcomes", 0)
    for _ in range(2):
        code, _ = reading.send("outcomes", MADE[name])
        assert code == 0, "the broker takes it"
    if late:
        wait_for(lambda: reading.reached() == 5, "what is there", 2 * NEXT_MS_MAX)
    reading.good("outcomes", 5)
    if not late:
        reading.begin()
    wait_for(lambda: sum(not r.problem for r in reading.came()) == 6, "the good ones", 2 * NEXT_MS_MAX)
    assert [r.value for r in reading.taken if not r.problem] == [b"%d" % n for n in (0, 1, 2, 5, 6, 7)]
    wait_for(lambda: reading.reached() == 8, "the end")
    passed = [n for r in reading.taken if r.problem for n in span(r.problem)]
    assert passed == [3, 4], "each once"


HIDING: Mapping[str, bytes] = {
    "one": wire.batch(record(delta=wire.varint(2)), 1),
    "two, both further on": wire.batch(record(delta=wire.varint(3)) + record(delta=wire.varint(4)), 2),
    "two, turned round": wire.batch(record(delta=wire.varint(1)) + record(delta=wire.varint(0)), 2),
    "two at one place": wire.batch(record() + record(), 2),
}


@pytest.mark.parametrize("name", some(HIDING, ["one"]))
@pytest.mark.parametrize("late", [pytest.param(False, marks=pytest.mark.slow), True])
def test_no_batch_hides_those_behind_it(
    reading: Reading,
    name: str,
    late: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Its records say that they stand where others stand: believed, those would look old."""
    if late:
        reading.begin()
    reading.good("outcomes", 0)
    for first in (10, 20):
        assert reading.send("outcomes", HIDING[name])[0] == 0, "the broker takes it"
        reading.good("outcomes", first, 8)
    if not late:
        reading.begin()
    numbers = [b"%d" % n for n in (*range(3), *range(10, 18), *range(20, 28))]
    wait_for(
        lambda: [r.value for r in reading.came() if not r.problem and r.value != b"x"] == numbers,
        "all good ones",
    )


def test_what_others_write_in_transactions_is_all_read(reading: Reading) -> None:
    """Markers and aborted records leave gaps in a trigger topic: each is looked at, none costs a record."""
    producer = reading.clients.shard_producer(0)
    producer.init_transactions(10)
    reading.begin()
    for number in range(40):
        producer.begin_transaction()
        for part in range(3):
            producer.produce(reading.prefix + "triggers.high", b"%d-%d" % (number, part), partition=0)
        producer.abort_transaction(10) if number % 7 == 3 else producer.commit_transaction(10)
    numbers = [b"%d-%d" % (number, part) for number in range(40) if number % 7 != 3 for part in range(3)]
    wait_for(lambda: len(reading.came()) >= len(numbers), "all committed ones")
    assert [r.value for r in reading.taken] == numbers
    assert not any(r.problem for r in reading.taken)


def test_a_quiet_partition_is_left_alone(reading: Reading) -> None:
    """Looking for what cannot be read finds nothing where an open transaction holds records back."""
    producer = reading.clients.shard_producer(0)
    reading.begin()
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(reading.prefix + "outcomes", b"open", partition=0)
    producer.flush(10)
    reading.good("outcomes", 1)
    wait_for(lambda: bool(reading.reader._attached[0].looking), "it looks")
    wait_for(lambda: not reading.reader._attached[0].looking, "it has looked")
    assert reading.came() == []
    producer.commit_transaction(10)
    wait_for(lambda: [r.value for r in reading.came()] == [b"open", b"1", b"2", b"3"], "all, and no pointer")


# whole processes


@pytest.fixture(scope="module")
def world(own: Own, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with deployed(own.endpoints, own.endpoints.redis, tmp_path_factory.mktemp("world")) as made:
        made.started()
        yield made


def peak_mib(world: World) -> int:
    """Most memory that the scheduler ever had, as Linux tells it."""
    status = Path(f"/proc/{world.processes[-1].popen.pid}/status")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def assert_goes_on(world: World, began_ms: int) -> None:
    """A good trigger in the same partition, published now, is carried out in time."""
    trigger = Trigger(type="echo", key=uuid.uuid4().hex, payload=b"{}")
    raw = wire.batch_of(Sent(value=world.codec.encode(trigger)))
    assert sent(world.found.kafka, world.found.names.full("triggers.normal"), raw)[0] == 0
    wait_for(lambda: world.ended()[trigger.key] == 1, "the next good trigger ended")
    took_ms = CLOCK.monotonic_ms() - began_ms
    assert took_ms < 2 * NEXT_MS_MAX, "5 s, and as much again for a crowded machine"
    assert peak_mib(world) < MEMORY_MIB_MAX
    process = world.processes[-1]
    assert process.popen.poll() is None
    assert not process.said("scheduler.failed")
    again = {line["kind"] for line in process.said("shard.starts_over")}
    assert again <= {"DoubtfulError"}, "a crowded machine's slow commits may begin anew, for no input"


def letters(world: World, topic: str) -> list[tuple[bytes | None, bytes | None, str]]:
    """Key, value and reason."""
    found = []
    for m in world.read(topic):
        reasons = [value or b"" for name, value in headers_of(m) if name == "laxity.error.reason"]
        found.append((m.key(), m.value(), reasons[-1].decode()))
    return found


def test_every_family_of_poison_is_in_the_dlq_as_it_was(world: World) -> None:
    topic = world.found.names.full("triggers.normal")
    trigger_id = world.codec.encode(Trigger(type="echo"))[:HEADER_BYTES]
    sends: list[tuple[Sent, str]] = []
    for raw, reason in corpus.BYTES.values():
        framed = raw if raw is None or raw[:HEADER_BYTES] != corpus.FRAME else trigger_id + raw[HEADER_BYTES:]
        if reason not in {
            "too_large",
            "wrong_schema",
        }:  # the broker takes no such; ids differ from place to place
            sends.append((Sent(value=framed, key=b"k%d" % len(sends)), reason))
    good = world.codec.encode(Trigger(type="echo", key="never"))
    odd_headers: list[tuple[list[tuple[bytes, bytes | None]], str]] = [
        ([(b"\xff\xfe", b"x")], "unreadable"),
        ([(b"fine", None), (b"\xc3", None)], "unreadable"),
        ([(b"h%d" % n, b"") for n in range(10_000)], "invalid"),
        ([(b"h", bytes(900_000))], "invalid"),
    ]
    sends += [
        (Sent(value=good, key=b"h%d" % n, headers=h), reason) for n, (h, reason) in enumerate(odd_headers)
    ]
    for record_, _ in sends:
        assert sent(world.found.kafka, topic, wire.batch_of(record_))[0] == 0
    assert_goes_on(world, CLOCK.monotonic_ms())
    wait_for(lambda: len(letters(world, "dlq.normal")) >= len(sends), "all letters")
    expected = [(record_.key, record_.value, reason) for record_, reason in sends]
    assert sorted(letters(world, "dlq.normal"), key=str) == sorted(expected, key=str)


def test_what_no_client_can_read_has_pointers_in_the_dlq(world: World) -> None:
    """The last family: on triggers and on an internal input."""
    before = {topic: len(letters(world, topic)) for topic in ("dlq.normal", "dlq.internal")}
    for name in ("triggers.normal", "outcomes"):
        code, _ = sent(world.found.kafka, world.found.names.full(name), MADE["value of length -2"])
        assert code == 0
    assert_goes_on(world, CLOCK.monotonic_ms())
    for topic, count in before.items():
        wait_for(lambda topic=topic, count=count: len(letters(world, topic)) == count + 1, topic)  # type: ignore[misc]
        assert letters(world, topic)[-1] == (None, None, "unreadable")
    assert len(world.processes[-1].said("input.unreadable")) == 2


@pytest.mark.parametrize("codec", some(wire.CODECS, ["gzip", "zstd"]))
def test_no_topic_that_we_read_stores_a_bomb(world: World, codec: str) -> None:
    """Some kilobytes that unpack to 16 MiB: refused, by every input, as too large; nothing reaches a process of ours."""
    bomb = wire.bomb(wire.CODECS[codec], 16 * limits.MIB)
    assert len(bomb) < limits.MIB
    for topic in ("triggers.normal", "triggers.critical", "outcomes", "control", "links", "dispatch.default"):
        code, _ = sent(world.found.kafka, world.found.names.full(topic), bomb)
        assert code == TOO_LARGE, topic
    assert_goes_on(world, CLOCK.monotonic_ms())


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_gigabyte_is_refused_by_a_broker_with_half_of_that(world: World, codec: str) -> None:
    bomb = wire.bomb(wire.CODECS[codec], 1024 * limits.MIB)
    assert len(bomb) < limits.MIB
    code, _ = sent(world.found.kafka, world.found.names.full("triggers.normal"), bomb)
    assert code in {TOO_LARGE, UNKNOWN}
    assert_goes_on(world, CLOCK.monotonic_ms())


def test_hostile_internal_records_stop_nothing(world: World) -> None:
    names, codec = world.found.names, world.codec
    hostile = {
        "control": [
            codec.encode(Command(kind="cancel", command_id="c", task_id="\x1b[2J" * 1_000)),
            b"\0",
            b"{}",
        ],
        "outcomes": [
            codec.encode(Outcome(kind="succeeded", task_id="t" * 100_000, generation=0, dispatch_no=2**62)),
            b"",
            b"\xff" * 1_000_000,
        ],
        "links": [b"\0\0\0\0\1", codec.encode(Trigger(type="echo"))],
    }
    before = len(letters(world, "dlq.internal"))
    for topic, values in hostile.items():
        for value in values:
            assert sent(world.found.kafka, names.full(topic), wire.batch_of(Sent(value=value)))[0] == 0
    assert_goes_on(world, CLOCK.monotonic_ms())
    wait_for(
        lambda: len(letters(world, "dlq.internal")) == before + 7, "all but the command, which is an event"
    )
    assert {value for _, value, _ in letters(world, "dlq.internal")[before:]} == {
        value
        for values in hostile.values()
        for value in values[0 if values is not hostile["control"] else 1 :]
    }


class Registry(threading.Thread):
    """Counts who calls, and hangs up."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.line = socket.create_server(("127.0.0.1", 0))
        self.calls = 0

    def run(self) -> None:
        with suppress(OSError):  # closed by the test
            while True:
                self.line.accept()[0].close()
                self.calls += 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.line.getsockname()[1]}"


def test_ten_thousand_unknown_schemas_ask_no_registry(own: Own, tmp_path: Path) -> None:
    with deployed(own.endpoints, own.endpoints.redis, tmp_path) as made:
        registry = Registry()
        registry.start()
        made.found = made.found.model_copy(update={"registry_url": registry.url})
        made.started()
        asked = registry.calls
        assert asked > 0, "it was asked at the start"
        topic = made.found.names.full("triggers.low")
        ids = range(1_000_000, 1_010_000)
        for first in range(0, len(ids), 1_000):
            values = [b"\0" + number.to_bytes(4, "big") + b"?" for number in ids[first : first + 1_000]]
            assert (
                sent(made.found.kafka, topic, wire.batch_of(*(Sent(value=value) for value in values)))[0] == 0
            )
        began_ms = CLOCK.monotonic_ms()
        wait_for(lambda: len(made.read("dlq.low")) >= len(ids), "all letters")
        took_ms = CLOCK.monotonic_ms() - began_ms
        found = letters(made, "dlq.low")
        assert {reason for _, _, reason in found} == {"schema_unknown"}
        assert {value for _, value, _ in found} == {b"\0" + n.to_bytes(4, "big") + b"?" for n in ids}
        assert registry.calls == asked, f"not once in {took_ms} ms"
        assert_goes_on(made, CLOCK.monotonic_ms())
        registry.line.close()
