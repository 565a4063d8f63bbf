"""Reads what Kafka tells of a run: triggers with its header, events, dead letters; from the ends at its beginning, committed records only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from laxity.infra.demo.stories import TERMINAL, Seen, Sent
from laxity.infra.demo.submission import HEADER
from laxity.infra.inspect.reading import headers_of
from laxity.schemas.contracts import open_codec
from laxity.schemas.identity import positional_key, run_id_of, task_id_of
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import TaskEvent, Trigger
from laxity.schemas.serde import Undecodable
from laxity.schemas.settings import Settings
from laxity.schemas.timing import Clock
from laxity.schemas.topics import TIERS

FAMILIES: Final = ("triggers", "events", "dlq")
ASK_S: Final = 10.0  # for partitions and their ends
POLL_S: Final = 0.1
BATCH: Final = 500
CATCH_UP_MS: Final = 30_000  # an open transaction holds readers back for 5 s at most


class WatchError(Exception):
    """Kafka could not be read to the end; the text says why."""


class Watcher:
    """A thread that reads; its public attributes grow while it does and are complete after `finish`.

    `ended` has the last terminal state per task id, of all tasks that are told of, not only the run's.
    """

    def __init__(self, settings: Settings, run: str, clock: Clock) -> None:
        """Notes the ends. KafkaException, ContractError."""
        clients = KafkaClients(settings, role="demo")
        self._codec = open_codec(settings, clients=clients)
        self._names = settings.names
        self._run = run.encode()
        self._clock = clock
        self._admin = clients.admin()
        self._consumer: Consumer = clients.reader("demo")
        ends = self._ends()
        self._consumer.assign([TopicPartition(topic, number, end) for (topic, number), end in ends.items()])
        self._eof: dict[tuple[str, int], int] = {}
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="demo-watcher", daemon=True)
        self.sent: dict[str, Sent] = {}
        self.events: list[Seen] = []
        self.states: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.missed: set[str] = set()
        self.letters: set[str] = set()
        self.undecodable: list[str] = []

    def start(self) -> None:
        """Read until `finish`."""
        self._thread.start()

    def check(self) -> None:
        """WatchError if the thread cannot go on."""
        if self._failure is not None:
            raise WatchError(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    def finish(self) -> None:
        """End the thread, then read to the present ends and close. WatchError."""
        self.close()
        self.check()
        try:
            self._catch_up()
        except KafkaException as error:
            raise WatchError(error.args[0].str()) from error
        finally:
            self._consumer.close()

    def close(self) -> None:
        """End the thread without reading on."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _ends(self) -> dict[tuple[str, int], int]:
        """The present end of every partition that is read, as committed; in one request, beside the consumer's waiting fetches."""
        topics = self._admin.list_topics(timeout=ASK_S).topics
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted: dict[TopicPartition, OffsetSpec] = {}
        for name in (self._names.full(f"{family}.{tier}") for family in FAMILIES for tier in TIERS):
            if name not in topics:
                raise WatchError(f"topic {name} does not exist: laxity topics apply")
            wanted |= {TopicPartition(name, number): latest for number in topics[name].partitions}
        asked = self._admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ASK_S
        )
        return {(at.topic, at.partition): answer.result(ASK_S).offset for at, answer in asked.items()}

    def _follow(self) -> None:
        try:
            while not self._stop.is_set():
                self._read()
        except Exception as error:  # noqa: BLE001 - `check` tells the run
            self._failure = error

    def _catch_up(self) -> None:
        ends = self._ends()
        until_ms = self._clock.monotonic_ms() + CATCH_UP_MS
        while behind := [at for at, end in ends.items() if self._eof.get(at, 0) < end]:
            if self._clock.monotonic_ms() > until_ms:
                where = ", ".join(f"{topic}/{number}" for topic, number in behind[:3])
                raise WatchError(f"{len(behind)} partitions could not be read to their end: {where}")
            self._read()

    def _read(self) -> None:
        message: Any
        for message in self._consumer.consume(BATCH, POLL_S):
            error = message.error()
            if error is None:
                self._take(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's own name for it
                self._eof[message.topic(), message.partition()] = message.offset()
            elif not error.retriable():
                raise KafkaException(error)

    def _take(self, message: Any) -> None:
        family, _, tier = self._names.short(message.topic()).partition(".")
        try:
            if family == "events":
                self._event(message)
            elif _of_run(headers_of(message), self._run):
                task_id, tenant = self._names_of(message)
                self._trigger_or_letter(family, task_id, tier, tenant, message.timestamp()[1])
        except Undecodable as error:
            where = f"{message.topic()}/{message.partition()}/{message.offset()}"
            self.undecodable.append(f"{where}: {error}")

    def _event(self, message: Any) -> None:
        event = self._codec.decode(TaskEvent, message.value())
        self.events.append(Seen(event=event, appended_ms=message.timestamp()[1]))
        if event.kind not in {"transitions", "rejected"}:
            return
        self.states[event.task_id] = event.state
        if event.state in TERMINAL:
            self.ended[event.task_id] = event.state
            if event.state == "SUCCEEDED" and event.missed_by_ms:
                self.missed.add(event.task_id)

    def _names_of(self, message: Any) -> tuple[str, str]:
        """Task id and tenant, as the scheduler derives them."""
        trigger = self._codec.decode(Trigger, message.value())
        key = trigger.key or positional_key(message.topic(), message.partition(), message.offset())
        run_id = run_id_of(trigger.tenant, trigger.run_id, key)
        return task_id_of(trigger.tenant, run_id, key), trigger.tenant

    def _trigger_or_letter(self, family: str, task_id: str, tier: str, tenant: str, appended_ms: int) -> None:
        if family == "dlq":
            self.letters.add(task_id)
        else:
            self.sent.setdefault(
                task_id, Sent(task_id=task_id, tier=tier, tenant=tenant, appended_ms=appended_ms)
            )


def _of_run(headers: Sequence[tuple[str, bytes | None]], run: bytes) -> bool:
    return any(name == HEADER and value == run for name, value in headers)
