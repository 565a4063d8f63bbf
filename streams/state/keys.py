"""Keys of the tables: one byte of table, then fields whose byte order is the order wanted (integers 8 bytes, big-endian).

Changelogged tables: task, payload, settle, shard (topic `state`) and key (topic `keys`). Derived, local only: ready, lane, timer,
leased, parked, position. The prefix `~` belongs to the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from laxity.schemas.limits import KEYS_KEPT_MS
from laxity.schemas.records import KeyRow
from laxity.schemas.serde import decode_row
from laxity.streams.effects import Change
from laxity.streams.state.store import Store, Write

TASK, PAYLOAD, SETTLE, SHARD, KEY = "task", "payload", "settle", "shard", "key"

_TABLES = {TASK: b"t", PAYLOAD: b"p", SETTLE: b"s", SHARD: b"h"}
READY, LANE, TIMER, LEASED, PARKED, POSITION = b"R", b"L", b"T", b"D", b"K", b"P"
HOST = b"~"
SHARD_KEY = b"shard"

_KEY_TABLE = b"k"
_DAY_MS = 86_400_000

MAX_KEY = b"\xff" * 40
LANE_BYTES = 8


def u64(number: int) -> bytes:
    """Eight bytes whose order is the number's. Negative numbers are bugs."""
    return number.to_bytes(8, "big")


def read_u64(raw: bytes, at: int) -> int:
    """The number at a position."""
    return int.from_bytes(raw[at : at + 8], "big")


def state_key(table: str, key: bytes) -> bytes:
    """Key of a changelogged row, in the store and in topic `state`."""
    return _TABLES[table] + key


def state_write(change: Change) -> Write:
    """A change of topic `state` as a store write."""
    return state_key(change.table, change.key), change.value


def change_of(key: bytes, value: bytes | None) -> Change:
    """The other way: a store key of a changelogged table as a change."""
    for table, prefix in _TABLES.items():
        if key[:1] == prefix:
            return Change(table=table, key=key[1:], value=value)
    raise ValueError(f"key {key[:8]!r} is of no changelogged table")


def table_of(key: bytes) -> str:
    """Name of the changelogged table that a store key belongs to."""
    return KEY if key[:1] == _KEY_TABLE else change_of(key, None).table


def is_changelogged(key: bytes) -> bool:
    """Whether topic `state` carries the table of this store key."""
    return key[:1] in _TABLES.values()


def lane_of(fleet: str, demands: Mapping[str, int]) -> tuple[str, ...]:
    """What a task needs, without amounts and without the key of keyed slots: tasks of one lane wait for the same things."""
    return tuple(sorted({name.partition(":")[0] for name in demands} | {f"fleet.{fleet}"}))


def lane_id(lane: tuple[str, ...]) -> bytes:
    """Eight bytes that stand for a lane in keys."""
    return hashlib.sha256("\x00".join(lane).encode()).digest()[:LANE_BYTES]


def ready_prefix(lane: bytes, tier: int) -> bytes:
    """All ready tasks of one lane and tier, in the order of urgency."""
    return READY + lane + bytes((tier,))


def ready_key(lane: bytes, tier: int, urgency: int, seq: int) -> bytes:
    """Place of a ready task."""
    return ready_prefix(lane, tier) + u64(urgency) + u64(seq)


def timer_key(due_ms: int, kind: bytes, task_id: str) -> bytes:
    """Place of a timer: due at `due_ms`."""
    return TIMER + u64(due_ms) + kind + task_id.encode()


def parked_prefix(keyed: str) -> bytes:
    """All tasks that wait for one keyed slot (`account:acme`), any lane and tier."""
    return PARKED + hashlib.sha256(keyed.encode("utf-8", "surrogatepass")).digest()[:16]


def parked_key(keyed: str, ready: bytes) -> bytes:
    """Place of a ready task that waits for a keyed slot: the tier and the urgency first, the whole ready key as a suffix."""
    return parked_prefix(keyed) + ready[len(READY) + LANE_BYTES :] + ready


def ready_of_parked(key: bytes) -> bytes:
    """The ready key inside a parked key."""
    return key[len(PARKED) + 16 + 17 :]


def key_write(change: Change) -> Write:
    """A row of topic `keys` as a write to the key store: buckets of one day, so that a day is dropped whole."""
    assert change.value is not None, "rows of topic keys end by retention, never by tombstone"
    return _bucket(decode_row(KeyRow, change.value).ended_ms // _DAY_MS) + change.key, change.value


def _bucket(day: int) -> bytes:
    return _KEY_TABLE + day.to_bytes(4, "big")


def key_buckets(keys: Store) -> list[bytes]:
    """Prefixes of the days that have rows, newest first: one seek per day."""
    found: list[bytes] = []
    start = _KEY_TABLE
    while True:
        first = next(iter(keys.scan(start, _KEY_TABLE + MAX_KEY)), None)
        if first is None:
            return found[::-1]
        found.append(first[0][:5])
        start = _bucket(int.from_bytes(first[0][1:5], "big") + 1)


def drop_expired_keys(keys: Store, now_ms: int) -> None:
    """Drop the days that are wholly older than KEYS_KEPT_MS. Lookups ignore old rows by themselves, so when this runs matters to nobody."""
    keys.delete_range(_KEY_TABLE, _bucket(max(0, now_ms - KEYS_KEPT_MS) // _DAY_MS))
