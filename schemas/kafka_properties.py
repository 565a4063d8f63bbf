"""Every librdkafka property that we rely on, with its reason. A user's own properties go over them, except for those that correctness rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from laxity.schemas import limits

Value = str | int | bool


class Because(NamedTuple):
    """A value and why."""

    value: Value
    reason: str


Table = Mapping[str, Because]

COMMON: Final[Table] = {
    "reconnect.backoff.max.ms": Because(1_000, "a broker that came back is used at once, not after 10 s"),
    "topic.metadata.refresh.interval.ms": Because(
        30_000, "a new leader is found without waiting for an error"
    ),
    "log.connection.close": Because(False, "brokers close idle connections; that is no news"),
    "log_level": Because(4, "warnings and worse"),
    "client.dns.lookup": Because("use_all_dns_ips", "any address of a bootstrap name will do"),
    "socket.keepalive.enable": Because(True, "a half-open connection is noticed"),
}

CONSUMER: Final[Table] = {
    "isolation.level": Because("read_committed", "what an aborted batch wrote never happened"),
    "auto.offset.reset": Because("earliest", "librdkafka's default, largest, would skip accepted work"),
    "enable.auto.commit": Because(False, "offsets are committed with the work they stand for"),
    "enable.auto.offset.store": Because(False, "see enable.auto.commit"),
    "check.crcs": Because(True, "a rotten record is an error here, not poison further on"),
    "queued.max.messages.kbytes": Because(
        4_096, "64 MiB of prefetch per partition would be memory and stale order"
    ),
    "fetch.queue.backoff.ms": Because(10, "with a small queue the default of 1 s would throttle reading"),
    "fetch.message.max.bytes": Because(limits.RECORD_BYTES_MAX, "the largest record in one piece"),
    "fetch.max.bytes": Because(4 * limits.RECORD_BYTES_MAX, "a few of the largest"),
    "receive.message.max.bytes": Because(
        4 * limits.RECORD_BYTES_MAX + limits.MIB, "must exceed fetch.max.bytes"
    ),
    "allow.auto.create.topics": Because(False, "a misspelt topic is an error"),
}

MEMBER: Final[Table] = {
    "partition.assignment.strategy": Because(
        "cooperative-sticky", "shards that stay keep running in a rebalance"
    ),
    "session.timeout.ms": Because(
        6_000, "a killed process is replaced within seconds; the broker's usual minimum"
    ),
    "heartbeat.interval.ms": Because(200, "a planned hand-over waits for a heartbeat: 3 s by default"),
}

URGENT: Final[Table] = {
    "enable.partition.eof": Because(True, "transaction markers leave gaps: the end is told, not guessed"),
    "fetch.wait.max.ms": Because(100, "upper bound of the wait for a partition that was resumed"),
    "max.poll.interval.ms": Because(
        30_000, "a join that the coordinator forgets, as one that stood still does, is sent again after that"
    ),
}

BULK: Final[Table] = {
    "enable.partition.eof": Because(True, "as for the urgent consumer"),
    "queued.max.messages.kbytes": Because(1_024, "bulk tiers wait in Kafka, not in memory"),
}

RESTORE: Final[Table] = {
    "enable.partition.eof": Because(True, "the end of a restore; highwater - 1 may never be read"),
    "queued.max.messages.kbytes": Because(16_384, "throughput counts, order of arrival does not"),
}

STANDBY: Final[Table] = {
    "enable.partition.eof": Because(True, "a copy that met the end of its changelog is young"),
    "fetch.min.bytes": Because(
        65_536, "nobody waits for a copy: the broker may gather for fetch.wait.max.ms"
    ),
}

AGENTS: Final[Table] = {
    "fetch.wait.max.ms": Because(100, "a dispatch is short; nobody gains from batching it"),
    "max.poll.interval.ms": Because(
        30_000, "the poll thread never blocks a second; and a forgotten join is sent again after that"
    ),
}

PRODUCER: Final[Table] = {
    "acks": Because("all", "accepted means that it survives a broker"),
    "enable.idempotence": Because(True, "a retry of the client writes nothing twice and keeps the order"),
    "partitioner": Because("murmur2_random", "as Java's producers: a run has one shard whoever writes it"),
    "message.max.bytes": Because(limits.RECORD_BYTES_MAX, "topics have limits of their own"),
    "linger.ms": Because(2, "a few records to a request; 5 ms by default"),
    "compression.type": Because("lz4", "cheap; triggers are written out again by the broker"),
}

PUBLISHER: Final[Table] = {
    "message.timeout.ms": Because(30_000, "a caller hears within half a minute, not after five"),
    "queue.buffering.max.messages": Because(
        100_000, "then the caller waits: back-pressure instead of memory"
    ),
    "queue.buffering.max.kbytes": Because(65_536, "see queue.buffering.max.messages"),
}

OUTCOMES: Final[Table] = {
    "message.timeout.ms": Because(
        0, "never given up: a record in doubt would be written again, and its counts with it"
    ),
    "queue.buffering.max.kbytes": Because(65_536, "then the runner waits and asks again"),
}

SHARD_PRODUCER: Final[Table] = {
    "transaction.timeout.ms": Because(
        5_000, "readers stand at a dead owner's open transaction for no longer"
    ),
    "message.timeout.ms": Because(
        4_500, "below transaction.timeout.ms: a record fails before its transaction does"
    ),
    "linger.ms": Because(0, "a batch is flushed as a whole by its commit"),
    "enable.sparse.connections": Because(
        False, "else init_transactions waits 500 ms for its coordinator's timer in every second takeover"
    ),
}

PROTECTED: Final[Mapping[str, str]] = {
    "acks": PRODUCER["acks"].reason,
    "request.required.acks": PRODUCER["acks"].reason,
    "enable.idempotence": PRODUCER["enable.idempotence"].reason,
    "enable.gapless.guarantee": "the same promise by another name",
    "isolation.level": CONSUMER["isolation.level"].reason,
    "transactional.id": "it fences: one per shard",
    "auto.offset.reset": CONSUMER["auto.offset.reset"].reason,
    "enable.auto.commit": CONSUMER["enable.auto.commit"].reason,
    "auto.commit.enable": CONSUMER["enable.auto.commit"].reason,
    "enable.auto.offset.store": CONSUMER["enable.auto.offset.store"].reason,
    "enable.partition.eof": URGENT["enable.partition.eof"].reason,
    "partitioner": PRODUCER["partitioner"].reason,
    "partition.assignment.strategy": "the rebalance code is made for cooperative-sticky",
    "group.id": "groups are named after the prefix",
    "client.id": "it names role, host and number; LAXITY_PREFIX tells deployments apart",
    "bootstrap.servers": "set LAXITY_KAFKA",
    "metadata.broker.list": "set LAXITY_KAFKA",
    "plugin.library.paths": "it loads code",
}

NOT_STATIC: Final = (
    "with group.protocol=consumer a static member that restarts is fenced by its own last session"
)
CLASSIC_ONLY: Final = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


class PropertyRefused(ValueError):  # noqa: N818 - it says what happened
    """A user's property that correctness rests on."""


def merge(*tables: Table, user: Mapping[str, str], fixed: Mapping[str, Value]) -> dict[str, Value]:
    """Ours in order, the user's over them, then `fixed`. PropertyRefused names the key and the reason.

    With `group.protocol=consumer` the broker decides what CLASSIC_ONLY would set, and librdkafka refuses it.
    """
    for key in user:
        if key in PROTECTED:
            raise PropertyRefused(f"Kafka property {key} cannot be set: {PROTECTED[key]}")
    ours: dict[str, Value] = {key: because.value for table in tables for key, because in table.items()}
    if user.get("group.protocol", "").lower() == "consumer":
        if "group.instance.id" in user:
            raise PropertyRefused(f"Kafka property group.instance.id cannot be set: {NOT_STATIC}")
        ours = {key: value for key, value in ours.items() if key not in CLASSIC_ONLY}
    return ours | dict(user) | dict(fixed)
