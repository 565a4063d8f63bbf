"""Rows and records: how a change of a table travels through the topics `state` and `keys`.

`state`: key = the row's key in the store (table byte first), value = framed StateRow, tombstone = the row is gone.
`keys`: key = task id, value = framed KeyRow; rows end by retention, never by tombstone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from laxity.schemas.records import KeyRow, StateRow
from laxity.schemas.serde import Codec, encode_row
from laxity.streams.effects import Change
from laxity.streams.state import keys

STATE, KEYS = "state", "keys"
STATE_VERSION = (
    1  # of the rows and of what is derived from them; raised where an older release would misread them
)
CHANGELOGS = (STATE, KEYS)

Row = tuple[bytes, bytes | None]
"""Key and value of a changelog record."""

Decode = Callable[[Sequence[Row]], list[Change]]


class ForeignRowError(Exception):
    """A changelog record that no release of ours can have written there."""

    def __init__(self, topic: str, key: bytes, problem: str) -> None:
        super().__init__(f"topic {topic}, key {key[:64]!r}: {problem}")


def state_row(change: Change, codec: Codec) -> Row:
    """A change as a record of topic `state`."""
    key = keys.state_key(change.table, change.key)
    if change.value is None:
        return key, None
    return key, codec.frame(StateRow, encode_row(StateRow(table=change.table, row=change.value)))


def keys_row(change: Change, codec: Codec) -> Row:
    """A change as a record of topic `keys`."""
    if change.value is None:
        raise ForeignRowError(KEYS, change.key, "a row of keys ends by retention, never by tombstone")
    return change.key, codec.frame(KeyRow, change.value)


def state_changes(rows: Sequence[Row], codec: Codec) -> list[Change]:
    """Records of topic `state` as changes, of each key only the last: what the broker's compaction would leave.

    Raises ForeignRowError, or Undecodable for a value that is no StateRow.
    """
    return [_state_change(key, value, codec) for key, value in dict(rows).items()]


def _state_change(key: bytes, value: bytes | None, codec: Codec) -> Change:
    try:
        gone = keys.change_of(key, None)
    except ValueError as error:
        raise ForeignRowError(STATE, key, str(error)) from error
    if value is None:
        return gone
    row = codec.decode(StateRow, value)
    if row.table != gone.table:
        raise ForeignRowError(STATE, key, f"the key is of table {gone.table}, the value of {row.table!r}")
    return Change(table=row.table, key=gone.key, value=row.row)


def keys_changes(rows: Sequence[Row], codec: Codec) -> list[Change]:
    """Records of topic `keys` as changes, all of them: a task that ended twice has a row for each day. Raises ForeignRowError, or Undecodable."""
    return [_keys_change(key, value, codec) for key, value in rows]


def _keys_change(key: bytes, value: bytes | None, codec: Codec) -> Change:
    if value is None:
        raise ForeignRowError(KEYS, key, "a tombstone")
    row, head = codec.decode(KeyRow, value), codec.frame(KeyRow, b"")
    raw = (
        value[len(head) :] if value.startswith(head) else encode_row(row)
    )  # written by today's schema: as it is
    return Change(table=keys.KEY, key=key, value=raw)
