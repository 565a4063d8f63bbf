"""Publish triggers: validate -> key -> idempotent produce -> delivery report.

    with Publisher.connect() as publisher:
        done = publisher.publish(trigger_of("invoice.check", {"id": 7}, business=["acme", "7"]), tier="high")
        print(done.task_id)

`AsyncPublisher` is the same for asyncio; it never blocks the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from confluent_kafka import Producer

from laxity.producers.delivery import Outbox, Published, PublishFailed
from laxity.producers.request import Headers, InvalidTrigger, Prepared, Preparer, trigger_of
from laxity.schemas import config as configuration
from laxity.schemas.contracts import open_codec
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import Trigger
from laxity.schemas.serde import Codec
from laxity.schemas.settings import Settings
from laxity.schemas.settings import settings as settings_of
from laxity.schemas.timing import Clock, SystemClock
from laxity.schemas.topics import Names

__all__ = ["AsyncPublisher", "InvalidTrigger", "PublishFailed", "Published", "Publisher", "trigger_of"]

TIER_DEFAULT = "normal"
WAIT_S = 40.0  # beyond the client's own limit of 30 s, which then has answered
CLOSE_S = 10.0

Result = Published | PublishFailed


class Publisher:
    """Thread-safe. A context manager: leaving it flushes, and raises PublishFailed if something was not acknowledged."""

    def __init__(
        self,
        producer: Producer,
        codec: Codec,
        config: configuration.Config,
        names: Names | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._preparer = Preparer(config, codec, names or Names())
        self._clock = clock or SystemClock()
        self._outbox = Outbox(producer)

    @classmethod
    def connect(cls, settings: Settings | None = None, config: configuration.Config | None = None) -> Self:
        """From LAXITY_* variables and laxity.toml where nothing is given; reads the schema ids once. ContractError, SettingsError, ConfigError."""
        settings = settings or settings_of()
        clients = KafkaClients(settings, role="publisher")
        codec = open_codec(settings, clients=clients)
        return cls(clients.producer(), codec, config or configuration.load(), settings.names)

    def send(self, trigger: Trigger, tier: str = TIER_DEFAULT, headers: Headers = ()) -> Future[Published]:
        """Queue it; the future ends with Published or PublishFailed. Waits while the queue is full (PublishFailed after WAIT_S). InvalidTrigger."""
        return self._outbox.send(self.prepare(trigger, tier, headers), WAIT_S)

    def publish(self, trigger: Trigger, tier: str = TIER_DEFAULT, headers: Headers = ()) -> Published:
        """Send and wait for the broker's acknowledgement. InvalidTrigger, PublishFailed."""
        return _wait(self.send(trigger, tier, headers))

    def publish_many(
        self, triggers: Iterable[Trigger], tier: str = TIER_DEFAULT, headers: Headers = ()
    ) -> list[Result]:
        """One result per trigger, in order. All are checked before any is sent: InvalidTrigger tells the index of the first bad one."""
        return self._outbox.send_all(self._prepare_all(triggers, tier, headers), WAIT_S)

    def flush(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until all that was sent is answered. PublishFailed names how many are not."""
        _complain(self._outbox.flush(timeout_s), timeout_s)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush and end. As flush."""
        _complain(self._outbox.close(timeout_s), timeout_s)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._outbox.close(CLOSE_S)

    def prepare(self, trigger: Trigger, tier: str = TIER_DEFAULT, headers: Headers = ()) -> Prepared:
        """The record that would be produced, for tests and dry runs. InvalidTrigger."""
        return self._preparer.prepare(trigger, tier, headers, self._clock.now_ms())

    def _prepare_all(self, triggers: Iterable[Trigger], tier: str, headers: Headers) -> list[Prepared]:
        prepared = []
        for index, trigger in enumerate(triggers):
            try:
                prepared.append(self.prepare(trigger, tier, headers))
            except InvalidTrigger as error:
                raise InvalidTrigger(error.problems, index) from None
        return prepared


class AsyncPublisher:
    """Publisher for asyncio. An async context manager. Any number of tasks may publish at the same time."""

    def __init__(self, publisher: Publisher) -> None:
        self._sync = publisher

    @classmethod
    async def connect(
        cls, settings: Settings | None = None, config: configuration.Config | None = None
    ) -> Self:
        """As Publisher.connect."""
        return cls(await asyncio.to_thread(Publisher.connect, settings, config))

    async def publish(self, trigger: Trigger, tier: str = TIER_DEFAULT, headers: Headers = ()) -> Published:
        """Ends with the broker's acknowledgement. InvalidTrigger, PublishFailed. Cancelling it does not take the record back."""
        prepared = self._sync.prepare(trigger, tier, headers)
        return await asyncio.wrap_future(await self._queued(prepared))

    async def publish_many(
        self, triggers: Iterable[Trigger], tier: str = TIER_DEFAULT, headers: Headers = ()
    ) -> Sequence[Result]:
        """As Publisher.publish_many."""
        return await asyncio.to_thread(self._sync.publish_many, list(triggers), tier, headers)

    async def flush(self, timeout_s: float = CLOSE_S) -> None:
        """As Publisher.flush."""
        await asyncio.to_thread(self._sync.flush, timeout_s)

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """As Publisher.close."""
        await asyncio.to_thread(self._sync.close, timeout_s)

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._sync.__exit__, kind, error, trace)

    async def _queued(self, prepared: Prepared) -> Future[Published]:
        """At once where there is room; else the wait happens in a thread."""
        outbox = self._sync._outbox  # noqa: SLF001 - two faces of one publisher
        queued = outbox.try_send(prepared)
        return await asyncio.to_thread(outbox.send, prepared, WAIT_S) if queued is None else queued


def _wait(result: Future[Published]) -> Published:
    try:
        return result.result(WAIT_S)
    except TimeoutError:
        raise PublishFailed(f"no delivery report within {WAIT_S} s", retriable=True) from None


def _complain(left: int, timeout_s: float) -> None:
    if left:
        raise PublishFailed(f"{left} records were not acknowledged within {timeout_s} s", retriable=True)
