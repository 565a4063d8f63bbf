"""The changelogs of a few shards on the real broker, and owners that write them as the host does: commit, then apply."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders import row
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from integration.deployment import CLOCK, wait_for

from laxity.infra.inspect.hashes import StoreHash, hash_of
from laxity.infra.local import Endpoints
from laxity.schemas import kafka_properties as tables
from laxity.schemas.kafka import KafkaClients
from laxity.schemas.records import KeyRow, Original, PayloadRow, TaskRow
from laxity.schemas.serde import Codec, encode_row
from laxity.schemas.settings import settings
from laxity.streams.effects import Change, Effects
from laxity.streams.runtime.cluster import Cluster, ClusterError
from laxity.streams.runtime.outbox import Outbox
from laxity.streams.runtime.stores import Stores, derivations
from laxity.streams.runtime.transactions import Transactions
from laxity.streams.state import index, keys
from laxity.streams.state.changelog import CHANGELOGS, KEYS, STATE
from laxity.streams.state.restore import Restored, position, restore
from laxity.streams.state.store import Store

SHARDS = 2
TINY = {"segment.ms": "100", "retention.ms": "-1"}  # a segment ends with the first record after it
EAGER = {
    **TINY,
    "cleanup.policy": "compact,delete",  # the broker deletes records on request only where it may delete
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "100",
    "delete.retention.ms": "60000",
}
CLEANER_MS = {"log.cleaner.backoff.ms": "200"}  # of the whole broker: how often the cleaner looks


@dataclass
class Logs:
    """Both changelogs under a prefix of their own."""

    clients: KafkaClients
    prefix: str
    admin: AdminClient
    codec: Codec = field(default_factory=Codec.local)

    @classmethod
    def made(cls, stack: Endpoints, config: Mapping[str, str]) -> Logs:
        found = settings(kafka=stack.kafka, prefix=f"c{uuid.uuid4().hex[:8]}.")
        clients = KafkaClients(found, role="test")
        logs = cls(clients, found.prefix, clients.admin())
        logs.create(config)
        return logs

    def create(self, config: Mapping[str, str]) -> None:
        topics = [NewTopic(self.prefix + name, SHARDS, 1, config=dict(config)) for name in CHANGELOGS]
        for done in self.admin.create_topics(topics).values():
            done.result(30)
        wait_for(self._are_known, "every broker knows the topics")

    def _are_known(self) -> bool:
        try:
            return bool(self.ids())
        except ClusterError:
            return False

    def delete(self) -> None:
        for done in self.admin.delete_topics([self.prefix + name for name in CHANGELOGS]).values():
            done.result(30)

    def consumer(self, *of: tables.Table) -> Consumer:
        strict: dict[str, Any] = {"auto.offset.reset": "error", "fetch.wait.max.ms": 10}
        return Consumer(
            self.clients.consumer_properties(*of or (tables.RESTORE,), group="scheduler") | strict
        )

    def cluster(self) -> Cluster:
        return Cluster(self.admin, self.consumer)

    def ids(self) -> Mapping[str, str]:
        found = self.cluster().topic_ids([self.prefix + name for name in CHANGELOGS])
        return {name: found[self.prefix + name] for name in CHANGELOGS}

    def restore(self, store: Store, name: str, shard: int = 0, *, now_ms: int = 0) -> Restored:
        log = self.cluster().changelog(self.prefix + name, shard, should_stop=lambda: False)
        return restore(store, log, derivations(self.codec)[name], now_ms=now_ms or CLOCK.now_ms())

    def records(self, name: str, shard: int = 0) -> list[bytes | None]:
        """Values of those that are left after compaction."""
        log = self.cluster().changelog(self.prefix + name, shard, should_stop=lambda: False)
        return [value for batch in log.read(None) for _, value in batch.rows]

    def behead(self, name: str, shard: int, offset: int) -> None:
        """Delete what lies below an offset, as retention does."""
        at = TopicPartition(self.prefix + name, shard, offset)
        for done in self.admin.delete_records([at]).values():
            done.result(10)

    def set_broker(self, config: Mapping[str, str | None]) -> None:
        """Of all brokers; None takes a setting back."""
        op = AlterConfigOpType
        entries = [
            ConfigEntry(name, value or "", incremental_operation=op.SET if value else op.DELETE)
            for name, value in config.items()
        ]
        brokers = self.admin.list_topics(timeout=10).brokers
        wanted = [ConfigResource(ResourceType.BROKER, str(n), incremental_configs=entries) for n in brokers]
        for done in self.admin.incremental_alter_configs(wanted).values():
            done.result(10)


@dataclass
class Owner:
    """The one effective writer of a shard, with its own stores."""

    logs: Logs
    stores: Stores
    shard: int = 0
    batch: int = 0
    tasks: dict[str, TaskRow] = field(default_factory=dict)

    @classmethod
    def of(cls, logs: Logs, folder: Path, shard: int = 0) -> Owner:
        return cls(logs, Stores.open(folder, logs.ids()), shard)

    def __post_init__(self) -> None:
        fixed: Any = {"transactional.id": f"{self.logs.prefix}scheduler.{self.shard}"}
        properties = self.logs.clients.producer_properties(tables.SHARD_PRODUCER, fixed)
        self.transactions = Transactions(properties, CLOCK)
        self.outbox = Outbox(prefix=self.logs.prefix, shard=self.shard, codec=self.logs.codec)

    def commit(self, *, put: Mapping[str, TaskRow] | None = None, end: Sequence[str] = ()) -> None:
        """One batch: tasks that are new or changed, tasks that end."""
        state: list[Change] = []
        local: list[tuple[bytes, bytes | None]] = []
        ended: list[Change] = []
        for task_id, after in [*(put or {}).items(), *((task_id, None) for task_id in end)]:
            before = self.tasks.get(task_id)
            raw = None if after is None else encode_row(after)
            state.append(Change(table=keys.TASK, key=task_id.encode(), value=raw))
            if before is None or after is None:
                payload = None if after is None else _payload(task_id)
                state.append(Change(table=keys.PAYLOAD, key=task_id.encode(), value=payload))
            local += index.derive(task_id, before, after)
            if after is None:
                ended.append(Change(table=keys.KEY, key=task_id.encode(), value=encode_row(_ended())))
                del self.tasks[task_id]
            else:
                self.tasks[task_id] = after
        self.carry_out(state, ended, local)

    def carry_out(
        self, state: Sequence[Change], ended: Sequence[Change], local: Sequence[tuple[bytes, bytes | None]]
    ) -> None:
        self.batch += 1
        effects = Effects(batch=self.batch, state=state, keys=ended, local=local, outputs=[])
        names = (self.outbox.state_topic, self.outbox.keys_topic)
        ends = self.transactions.commit(self.outbox.messages(effects), (), None, names)
        by_name = {STATE: ends.get(names[0], -1), KEYS: ends.get(names[1], -1)}
        self.stores.apply(effects, by_name, CLOCK.now_ms())

    def live(self, count: int, *, rounds: int = 3, first: int = 0) -> None:
        """Tasks that come, run through their states, and of which all but every tenth end."""
        ids = [f"{n:032x}" for n in range(first, first + count)]
        for at in range(0, count, 500):
            some = ids[at : at + 500]
            for n in range(rounds):
                self.commit(put={i: _row(i, n) for i in some})
            ending = [i for i in some if int(i, 16) % 10]
            if ending:
                self.commit(end=ending)

    def hashes(self) -> dict[str, StoreHash]:
        return hashes(self.stores)

    def close(self) -> None:
        self.transactions.close()
        self.stores.close()


STATES = ("READY", "DISPATCHED", "RUNNING")


def _row(task_id: str, number: int) -> TaskRow:
    changed = {"state": STATES[number % 3], "dispatch_no": number, "demands": {"llm": 1}, "firm": True}
    return row(key=task_id, run_id=task_id, seq=int(task_id, 16), **changed)


def _ended() -> KeyRow:
    return KeyRow(
        digest=b"d" * 32, state="SUCCEEDED", reason="", generation=0, dispatch_no=1, ended_ms=CLOCK.now_ms()
    )


def _payload(task_id: str) -> bytes:
    found = Original(
        topic="triggers.normal",
        partition=0,
        offset=int(task_id, 16),
        timestamp_ms=1,
        key=task_id.encode(),
        value=b"v" * 300,
        headers=[],
    )
    return encode_row(PayloadRow(original=found))


def hash_of_store(store: Store, name: str) -> StoreHash:
    """Of what the changelog carries; where the store is along it does not count."""
    counts = keys.is_changelogged if name == STATE else (lambda key: not key.startswith(keys.HOST))
    rows = [(key, value) for key, value in store.scan(b"", keys.MAX_KEY) if counts(key)]
    here = position(store)
    return hash_of(rows, None, here.topic_id if here else "")


def hashes(stores: Stores) -> dict[str, StoreHash]:
    return {STATE: hash_of_store(stores.state, STATE), KEYS: hash_of_store(stores.keys, KEYS)}


def index_of(store: Store) -> list[tuple[bytes, bytes]]:
    """What a store derived from its rows."""
    return [
        (key, value)
        for key, value in store.scan(b"", keys.HOST)
        if not keys.is_changelogged(key) and key[:1] != keys.LANE
    ]
