"""Every limit of the contract, with its reason. Sizes are bytes of UTF-8 unless the name says otherwise."""

from __future__ import annotations

from typing import Final

# Time
DEADLINE_AHEAD_MS_MAX: Final = 7 * 24 * 3_600_000  # topics of unfinished work keep 7 days
ESTIMATE_MS_MAX: Final = 12 * 3_600_000  # no attempt runs longer than 12 h
KEYS_KEPT_MS: Final = (
    15 * 24 * 3_600_000
)  # twice the deadline's horizon and a day: a late replay still meets its key

# Numbers
QUANTITY_MAX: Final = 2**53 - 1  # Lua numbers are doubles: beyond this sums lose ones
TIME_MS_MAX: Final = 2**53 - 1  # times travel through the same scripts and through JSON
ATTEMPTS_MAX: Final = 100  # an attempt costs LLM tokens; more is a loop, not a retry
BACKOFF_MS_MAX: Final = 24 * 3_600_000  # a retry beyond a day belongs to a schedule
PARTITIONS_MAX: Final = 1_024  # of a fleet's topic: one runner each
SHARDS_MAX: Final = 64  # 8 processes of 8 shards
INT_MAX: Final = 2**31 - 1  # Avro int

# Names
NAME_PATTERN: Final = (
    r"[A-Za-z0-9_][A-Za-z0-9._@+=-]*"  # no ':' (ids join by it), no '/', no braces, no spaces
)
NAME_CHARS_MAX: Final = 128  # tenant, type, workflow: part of ids, metrics, log lines
RUN_ID_CHARS_MAX: Final = 256  # a record key; longer ones only slow the broker
KEY_BYTES_MAX: Final = (
    512  # a foreign idempotency key is any text without NUL: it is stored per task for 15 days
)
RESOURCE_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # before an optional `:key`
RESOURCE_CHARS_MAX: Final = 64  # a metric label
RESOURCE_KEY_BYTES_MAX: Final = 256  # the business entity of a keyed slot
FLEET_PATTERN: Final = (
    r"[a-z0-9][a-z0-9-]*"  # part of a topic name; '.' beside '_' collides in Kafka's metrics
)
FLEET_CHARS_MAX: Final = 64  # leaves room for the prefix within Kafka's 249
CONTENT_TYPE_CHARS_MAX: Final = 128  # RFC 6838 allows 127 for each half; real ones are short

# Counts and sizes
DEMANDS_MAX: Final = 16  # one script call reserves them all
DEPENDENCIES_MAX: Final = 1_000  # one row each, written in one transaction
HEADERS_MAX: Final = 32  # as many as proxies commonly pass
HEADER_BYTES_MAX: Final = 4_096  # name and value of one
RECORD_HEADERS_MAX: Final = (
    128  # Kafka headers of a trigger's record: tracing, events and a letter's own, twice over
)
RECORD_HEADERS_BYTES_MAX: Final = (
    131_072  # names and values of all of them: as many as a publisher may send, or a letter's history twice
)
TOPIC_CHARS_MAX: Final = 249  # Kafka's own limit
MIB: Final = 1_048_576
TRIGGER_RECORD_BYTES_MAX: Final = MIB  # what the broker takes on triggers.*
TRIGGER_BYTES_MAX: Final = (
    MIB - 65_536
)  # payload and all texts of a trigger; the rest is for Kafka headers and framing
CHECKPOINT_BYTES_MAX: Final = 262_144  # travels with every further dispatch of the task
RESULT_BYTES_MAX: Final = 786_432  # in `outcomes` beside a checkpoint, within 1 MiB
EVENT_RESULT_BYTES_MAX: Final = 4_096  # events are kept 30 days; larger results stay in `outcomes`
ITEMS_MAX: Final = 131_072  # of one array or map in Avro: as many ids as fit the largest journal; a byte each would be millions of objects
SCHEMA_BYTES_MAX: Final = 262_144  # a schema text from a registry
SCHEMA_DEPTH_MAX: Final = 16  # nesting; ours reach 4
RECORD_BYTES_MAX: Final = (
    6 * MIB
)  # the largest record of any topic: a dead outcome that wraps a dead dispatch
