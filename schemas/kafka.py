"""The client factory: every Kafka client of every process comes from here, so that all share one set of properties (kafka_properties.py).

kafka = KafkaClients(settings(), role="scheduler")
producer = kafka.shard_producer(3)
"""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from laxity.schemas import kafka_properties as p
from laxity.schemas.settings import Settings, SettingsError

REPEAT_S = 30.0  # librdkafka says "Connection refused" every second for as long as a broker is away
_HOST_CHARS_MAX = 64
_number = itertools.count()
Client = TypeVar("Client", Consumer, Producer, AdminClient)


class KafkaClients:
    """Makes clients for one process role. `role` is part of client.id: scheduler, agents, publisher, cli.

    Callables (`error_cb`, `stats_cb`, `oauth_cb`) pass through `callbacks` to every client.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        role: str,
        env: Mapping[str, str] | None = None,
        callbacks: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        if not settings.kafka:
            raise SettingsError(
                "no Kafka address: set LAXITY_KAFKA; `laxity status --env` has that of a local stack"
            )
        self._names = settings.names
        self._bootstrap = settings.kafka
        self._role = role
        self._user = settings.kafka_properties(env)
        self._callbacks = dict(callbacks or {})
        self._log = quiet_logger()

    def urgent_consumer(self) -> Consumer:
        """The scheduler's member of the group: control, links, outcomes, critical, high."""
        return self._consumer(p.MEMBER, p.URGENT, group="scheduler")

    def bulk_consumer(self) -> Consumer:
        """The scheduler's bulk tiers: assigned by hand, never a member; its offsets go with the urgent one's group metadata."""
        return self._consumer(p.BULK, group="scheduler")

    def restore_consumer(self) -> Consumer:
        """Reads whole partitions, assigned by hand; tells each end. Never commits."""
        return self._consumer(p.RESTORE, group="restore")

    def agents_consumer(self, fleet: str) -> Consumer:
        """A runner's member of its fleet's group."""
        return self._consumer(p.MEMBER, p.AGENTS, group=f"agents.{fleet}")

    def reader(self, group: str) -> Consumer:
        """For tools and insight: `group` gets the prefix. Commits only what it is told to."""
        return self._consumer(p.RESTORE, group=group)

    def shard_producer(self, shard: int) -> Producer:
        """Transactional: `init_transactions` fences whoever had the shard before."""
        fixed = {"transactional.id": self._names.full(f"scheduler.{shard}")}
        return self._producer(p.SHARD_PRODUCER, fixed=fixed)

    def transactional_producer(self, name: str) -> Producer:
        """As for a shard, for an operator's commands that must reach every partition or none."""
        return self._producer(p.SHARD_PRODUCER, fixed={"transactional.id": self._names.full(name)})

    def producer(self) -> Producer:
        """Idempotent, for triggers: a record that cannot be written in time is told."""
        return self._producer(p.PUBLISHER, fixed={})

    def outcomes_producer(self) -> Producer:
        """Idempotent, for outcomes: waits for a broker as long as it takes, whatever the user set for publishers."""
        return self._producer(
            p.OUTCOMES, fixed={"message.timeout.ms": p.OUTCOMES["message.timeout.ms"].value}
        )

    def admin(self) -> AdminClient:
        """For provisioning and tools."""
        return _made(AdminClient, self._merge(p.COMMON), self._log)

    def consumer_properties(self, *tables: p.Table, group: str) -> dict[str, p.Value]:
        """What a consumer of that group gets."""
        return self._merge(p.COMMON, p.CONSUMER, *tables, fixed={"group.id": self._names.full(group)})

    def producer_properties(self, table: p.Table, fixed: Mapping[str, p.Value]) -> dict[str, p.Value]:
        """What a producer gets."""
        return self._merge(p.COMMON, p.PRODUCER, table, fixed=fixed)

    def _consumer(self, *tables: p.Table, group: str) -> Consumer:
        properties = self.consumer_properties(*tables, group=group) | self._callbacks
        return _made(Consumer, properties, self._log)

    def _producer(self, table: p.Table, fixed: Mapping[str, p.Value]) -> Producer:
        return _made(Producer, self.producer_properties(table, fixed) | self._callbacks, self._log)

    def _merge(self, *tables: p.Table, fixed: Mapping[str, p.Value] | None = None) -> dict[str, Any]:
        host = socket.gethostname()[:_HOST_CHARS_MAX]
        ours = {
            "bootstrap.servers": self._bootstrap,
            "client.id": f"laxity-{self._role}-{host}-{next(_number)}",
        }
        return p.merge(*tables, user=self._user, fixed=ours | dict(fixed or {}))


def _made(kind: Callable[..., Client], properties: Mapping[str, Any], logger: logging.Logger) -> Client:
    """SettingsError for what the client library will not take: a value of the user's, a certificate that cannot be read."""
    try:
        return kind(dict(properties), logger=logger)
    except KafkaException as error:
        raise SettingsError(f"Kafka properties: {error.args[0].str()}") from error


def quiet_logger() -> logging.Logger:
    """`laxity.kafka`: librdkafka's log lines, each kind at most once per REPEAT_S."""
    logger = logging.getLogger("laxity.kafka")
    if not any(isinstance(f, _OncePer) for f in logger.filters):
        logger.addFilter(_OncePer(REPEAT_S))
        logger.addHandler(logging.NullHandler())  # silent until the process sets up its logging
    return logger


class _OncePer:
    """A logging filter that drops repeats of a line's facility (`FAIL`, `REQTMOUT` …), so that a flood stays one line."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a repeat within the interval."""
        facility = str(record.args[0]) if isinstance(record.args, tuple) and record.args else str(record.msg)
        last = self._last.get(facility)
        if last is not None and 0 <= record.created - last < self._interval_s:
            return False
        self._last[facility] = record.created
        return True
