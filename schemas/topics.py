"""The catalogue of topics: who writes what under which key, for how long, and how its schema may change. Provisioning and docs read it.

Names here have no prefix; `Names` puts it before them. Names come from this file and the configuration, never from a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from laxity.schemas import limits, records

TIERS = ("critical", "high", "normal", "low", "background")  # most urgent first; a tier's index is its number

Cleanup = Literal["delete", "compact"]
Compatibility = Literal["FULL_TRANSITIVE", "BACKWARD_TRANSITIVE"]

DAY_MS: Final = 86_400_000
PREFIX_DEFAULT: Final = "laxity."
SHARDS_DEFAULT: Final = 4  # one process can own all; fixed for life, so more than a laptop needs

# The largest record of a topic. What wraps another record takes that one's limit and a MiB for what it adds.
_TRIGGER_BYTES: Final = limits.TRIGGER_RECORD_BYTES_MAX
_WRAPS_TRIGGER_BYTES: Final = (
    2 * limits.MIB
)  # payload rows, strays, redriven letters, dead triggers with their history
_DISPATCH_BYTES: Final = 2 * limits.MIB  # a trigger's payload and a checkpoint
_OUTCOME_BYTES: Final = 4 * limits.MIB  # may carry back a dispatch that could not be decoded
_BATCH_BYTES: Final = 4 * limits.MIB  # one record tells of a whole batch
_DEAD_INTERNAL_BYTES: Final = limits.RECORD_BYTES_MAX  # any of the above with its error headers

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PREFIX_CHARS_MAX = 128  # prefix + `dispatch.` + a fleet's 64 characters stay within Kafka's 249


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic. `record` None: bytes that are not ours to decode. `key` says what the record key is and how the partition follows."""

    name: str
    key: str
    record: type | None
    partitions: int
    cleanup: Cleanup = "delete"
    retention_ms: int = 7 * DAY_MS
    compatibility: Compatibility = "BACKWARD_TRANSITIVE"
    bytes_max: int = _WRAPS_TRIGGER_BYTES
    extra: Mapping[str, str] = field(default_factory=dict)  # settings of this topic alone

    @property
    def subject(self) -> str | None:
        """Name of its subject without the prefix; None where no schema is registered."""
        return f"{self.name}-value" if self.record else None

    def settings(self, replicas: int) -> dict[str, str]:
        """Every topic setting that we rely on, as Kafka spells it."""
        return {
            "cleanup.policy": self.cleanup,
            "compression.type": "producer",
            "max.message.bytes": str(self.bytes_max),
            # A producer's own time would let a record of 1970 vanish at once and one of 2100 stay for ever; deadlines count from arrival.
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": str(2 if replicas > 2 else 1),
            "unclean.leader.election.enable": "false",  # rather no leader than lost work
            "retention.bytes": "-1",  # a broker's own limit would drop accepted work that nobody has read yet
            **(_COMPACT if self.cleanup == "compact" else {"retention.ms": str(self.retention_ms)}),
            **self.extra,
        }


_COMPACT: Final = {
    "delete.retention.ms": str(
        7 * DAY_MS
    ),  # a state directory that slept for a week still learns of deleted rows
    "segment.ms": str(DAY_MS),  # only closed segments are compacted
    "retention.ms": "-1",
}
# What a process of ours reads as its input is written out by the broker, within max.message.bytes. As it arrives, a few hundred bytes could
# unpack to a gigabyte at every reader (librdkafka caps only zstd, and then stands before it), and a batch would be as its writer packed it.
_WRITTEN_OUT: Final = {"compression.type": "uncompressed"}


# A restore reads the newest segment as it was written: with Kafka's 1 GiB that could be 750,000 tasks that ended long ago (1.4 KiB each,
# half a minute); of 64 MiB it is 47,000 and 3 s. Compaction joins what is left of small segments, so they do not add up.
_STATE_SEGMENT_BYTES: Final = 64 * limits.MIB


def catalogue(fleets: Mapping[str, int], shards: int = SHARDS_DEFAULT) -> tuple[Topic, ...]:
    """All topics of a deployment. `fleets`: name -> partitions."""
    assert 1 <= shards <= limits.SHARDS_MAX, f"{shards} shards, limit {limits.SHARDS_MAX}"
    return (*_inputs(shards), *_dispatch(fleets), *_facts(shards), *_tables(shards), *_dead_letters(shards))


def written_records() -> frozenset[type]:
    """Records that some topic holds: each must have a schema id before a process starts."""
    return frozenset(topic.record for topic in catalogue({"any": 1}) if topic.record)


def _inputs(shards: int) -> Iterable[Topic]:
    """What shard i reads: partition i of each."""
    for tier in TIERS:
        yield Topic(
            name=f"triggers.{tier}",
            key="run id, murmur2",
            record=records.Trigger,
            partitions=shards,
            compatibility="FULL_TRANSITIVE",
            bytes_max=_TRIGGER_BYTES,
            extra=_WRITTEN_OUT,
        )
    outcome, command, link = records.Outcome, records.Command, records.Link
    yield Topic(
        name="outcomes",
        key="task id; shard",
        record=outcome,
        partitions=shards,
        bytes_max=_OUTCOME_BYTES,
        extra=_WRITTEN_OUT,
    )
    for name, key, record in (
        ("control", "command id; shard", command),
        ("links", "run id; shard of the receiver", link),
    ):
        yield Topic(name=name, key=key, record=record, partitions=shards, extra=_WRITTEN_OUT)


def _dispatch(fleets: Mapping[str, int]) -> Iterable[Topic]:
    for fleet, partitions in sorted(fleets.items()):
        yield Topic(
            name=f"dispatch.{fleet}",
            key="task id; partition of the chosen runner",
            record=records.Dispatch,
            partitions=partitions,
            bytes_max=_DISPATCH_BYTES,
            extra=_WRITTEN_OUT,
        )


def _facts(shards: int) -> Iterable[Topic]:
    """What others may read: what happened, what it cost, and why."""
    for tier in TIERS:
        yield Topic(
            name=f"events.{tier}",
            key="task id; shard",
            record=records.TaskEvent,
            partitions=shards,
            retention_ms=30 * DAY_MS,
            compatibility="FULL_TRANSITIVE",
        )
    yield Topic(
        name="usage",
        key="shard",
        record=records.Usage,
        partitions=shards,
        retention_ms=90 * DAY_MS,
        compatibility="FULL_TRANSITIVE",
    )
    yield Topic(
        name="journal", key="shard", record=records.Journal, partitions=shards, bytes_max=_BATCH_BYTES
    )


def _tables(shards: int) -> Iterable[Topic]:
    yield Topic(
        name="state",
        key="table and row key; shard",
        record=records.StateRow,
        partitions=shards,
        cleanup="compact",
        extra={"segment.bytes": str(_STATE_SEGMENT_BYTES)},
    )
    # Deleted by time, not compacted: a key is written once and forgotten whole days at a time. A segment goes when its newest record is
    # too old: with Kafka's 7 days to a segment, restores would read up to 22 days of keys for 15.
    yield Topic(
        name="keys",
        key="task id; shard",
        record=records.KeyRow,
        partitions=shards,
        retention_ms=limits.KEYS_KEPT_MS,
        extra={"segment.ms": str(DAY_MS)},
    )
    yield Topic(
        name="schedules",
        key="schedule id",
        record=records.Schedule,
        partitions=1,
        cleanup="compact",
        compatibility="FULL_TRANSITIVE",
        extra=_WRITTEN_OUT,
    )
    yield Topic(
        name="contracts",
        key="schema fingerprint",
        record=records.Contract,
        partitions=1,
        cleanup="compact",
        extra=_WRITTEN_OUT,
    )


def _dead_letters(shards: int) -> Iterable[Topic]:
    """The original bytes under the original key, written by the shard that gave up, to its own partition."""
    for tier in TIERS:
        yield Topic(
            name=f"dlq.{tier}",
            key="as it was; shard",
            record=None,
            partitions=shards,
            retention_ms=30 * DAY_MS,
        )
    yield Topic(
        name="dlq.internal",
        key="as it was; shard",
        record=None,
        partitions=shards,
        retention_ms=30 * DAY_MS,
        bytes_max=_DEAD_INTERNAL_BYTES,
    )


@dataclass(frozen=True, slots=True)
class Names:
    """Puts the deployment's prefix before topics, groups, transactional ids and keys. ValueError for a prefix that Kafka would refuse."""

    prefix: str = PREFIX_DEFAULT

    def __post_init__(self) -> None:
        if len(self.prefix) > _PREFIX_CHARS_MAX or not (self.prefix == "" or _NAME.fullmatch(self.prefix)):
            raise ValueError(f"prefix {self.prefix!r}: at most {_PREFIX_CHARS_MAX} of a-z A-Z 0-9 . _ -")

    def full(self, name: str) -> str:
        """`laxity.dispatch.default` for `dispatch.default`."""
        return self.prefix + name

    def short(self, full: str) -> str:
        """The catalogue's name of a topic; ValueError for one of somebody else."""
        if not full.startswith(self.prefix):
            raise ValueError(f"topic {full!r} does not begin with {self.prefix!r}")
        return full[len(self.prefix) :]
