"""What happened, as others can read it: all committed records of Kafka, the provider's ledger, and what our own clients were told.

`read` collects it from a stack that is quiet; the checker and its tests only know these records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from laxity.infra.demo.provider.ledger import read_ledger
from laxity.infra.demo.provider.line import Line
from laxity.infra.inspect.reading import Reader
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Dispatch, Journal, Outcome, TaskEvent, Trigger
from laxity.schemas.serde import Codec, Undecodable
from laxity.schemas.settings import Settings
from laxity.schemas.timing import Clock
from laxity.schemas.topics import TIERS, Names

T = TypeVar("T")
ERROR = "laxity.error."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record stands; `topic` without the prefix."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A record as its bytes are."""

    place: Place
    appended_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A record of a trigger topic. `trigger` is None where nobody can read it; `task_id` is then empty."""

    raw: Raw
    trigger: Trigger | None
    task_id: str

    @property
    def tier(self) -> str:
        """By its topic."""
        return self.raw.place.topic.removeprefix("triggers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event."""

    place: Place
    appended_ms: int
    event: TaskEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """A dispatch."""

    place: Place
    appended_ms: int
    dispatch: Dispatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """An outcome that can be read."""

    place: Place
    appended_ms: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """A batch."""

    place: Place
    appended_ms: int
    entry: Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One step of a client's operation. `step`: invoke, ok (acknowledged), fail (surely nothing was written), info (nobody knows).

    `what`: trigger, poison, cancel. `digest`: SHA-256 of the bytes that were sent, in hexadecimal; `place` where they were acknowledged.
    """

    number: int
    step: str
    what: str
    at_ms: int
    task_id: str = ""
    digest: str = ""
    place: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All of it. Lists of Kafka records are in the order of partitions and offsets; `prefix` is that of the deployment."""

    sent: Sequence[Sent] = ()
    told: Sequence[Told] = ()
    ordered: Sequence[Ordered] = ()
    reported: Sequence[Reported] = ()
    booked: Sequence[Booked] = ()
    letters: Sequence[Raw] = ()
    calls: Sequence[Line] = ()
    ops: Sequence[Op] = ()
    prefix: str = "laxity."
    unreadable: Sequence[str] = field(default_factory=tuple)  # records of ours that cannot be decoded


def sent_of(raw: Raw, trigger: Trigger | None, prefix: str) -> Sent:
    """With the task id that the scheduler derives, too."""
    if trigger is None:
        return Sent(raw=raw, trigger=None, task_id="")
    place = raw.place
    key = trigger.key or positional_key(prefix + place.topic, place.partition, place.offset)
    run_id = run_id_of(trigger.tenant, trigger.run_id, key)
    return Sent(raw=raw, trigger=trigger, task_id=task_id_of(trigger.tenant, run_id, key))


def origin_of(letter: Raw, prefix: str) -> Place:
    """Where a letter says that its bytes came from. KeyError, ValueError for one that does not say."""
    found = {name: value or b"" for name, value in letter.headers if name.startswith(ERROR)}
    return Place(
        topic=found[f"{ERROR}topic"].decode().removeprefix(prefix),
        partition=int(found[f"{ERROR}partition"]),
        offset=int(found[f"{ERROR}offset"]),
    )


class OpLog:
    """A file of operations, one JSON line each, written as they happen."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, op: Op) -> None:
        """In the file when it returns."""
        self._file.write(json.dumps(asdict(op), separators=(",", ":")) + "\n")

    def close(self) -> None:
        """No more operations."""
        self._file.close()


def read_ops(path: Path) -> list[Op]:
    """All operations of the file."""
    return [Op(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def read(settings: Settings, ledger: Path, ops: Path | None, clock: Clock) -> History:
    """From the running stack; at best once it is quiet."""
    clients = KafkaClients(settings, role="checker", env={})
    codec, names = open_codec(settings, clients=clients), settings.names
    with Reader(clients, clock) as reader:
        source = _Source(reader, names, codec)
        return History(
            sent=[_sent(codec, raw, names.prefix) for raw in source.raws("triggers")],
            told=[
                Told(place=raw.place, appended_ms=raw.appended_ms, event=event)
                for raw, event in source.records("events", TaskEvent)
            ],
            ordered=[
                Ordered(place=raw.place, appended_ms=raw.appended_ms, dispatch=dispatch)
                for raw, dispatch in source.records("dispatch", Dispatch)
            ],
            reported=[
                Reported(place=raw.place, appended_ms=raw.appended_ms, outcome=outcome)
                for raw, outcome in source.records("outcomes", Outcome)
            ],
            booked=[
                Booked(place=raw.place, appended_ms=raw.appended_ms, entry=entry)
                for raw, entry in source.records("journal", Journal)
            ],
            letters=source.raws("dlq"),
            calls=list(read_ledger(ledger)),
            ops=read_ops(ops) if ops is not None else [],
            prefix=names.prefix,
            unreadable=source.unreadable,
        )


def triggers_in(settings: Settings, clock: Clock) -> list[Sent]:
    """What Kafka accepted so far."""
    clients = KafkaClients(settings, role="checker", env={})
    codec = open_codec(settings, clients=clients)
    with Reader(clients, clock) as reader:
        source = _Source(reader, settings.names, codec)
        return [_sent(codec, raw, settings.prefix) for raw in source.raws("triggers")]


class _Source:
    """Topics of the deployment, read from beginning to end."""

    def __init__(self, reader: Reader, names: Names, codec: Codec) -> None:
        self._reader, self._names, self._codec = reader, names, codec
        self.unreadable: list[str] = []

    def raws(self, family: str) -> list[Raw]:
        """Of all topics of a family, in the order of topic, partition and offset."""
        topics = [self._names.full(name) for name in self._topics(family)]
        found = [self._raw(message) for message in self._reader.read(self._reader.whole(topics))]
        return sorted(found, key=lambda raw: (raw.place.topic, raw.place.partition, raw.place.offset))

    def records(self, family: str, kind: type[T]) -> Iterator[tuple[Raw, T]]:
        """With what they hold."""
        for raw in self.raws(family):
            try:
                yield raw, self._codec.decode(kind, raw.value)
            except Undecodable as error:
                self.unreadable.append(f"{raw.place}: {error}")

    @staticmethod
    def _topics(family: str) -> Sequence[str]:
        by_tier: Mapping[str, Sequence[str]] = {
            name: [f"{name}.{tier}" for tier in TIERS] for name in ("triggers", "events", "dlq")
        }
        named = {"dispatch": ["dispatch.default"], "dlq": [*by_tier["dlq"], "dlq.internal"]}
        return {**by_tier, **named}.get(family, [family])

    def _raw(self, message: Any) -> Raw:
        return Raw(
            place=Place(
                topic=self._names.short(message.topic()),
                partition=message.partition(),
                offset=message.offset(),
            ),
            appended_ms=message.timestamp()[1],
            key=message.key(),
            value=message.value(),
            headers=tuple(message.headers() or ()),
        )


def _sent(codec: Codec, raw: Raw, prefix: str) -> Sent:
    try:
        return sent_of(raw, codec.decode(Trigger, raw.value), prefix)
    except Undecodable:
        return sent_of(raw, None, prefix)
