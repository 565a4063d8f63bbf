"""Rows to records and back."""

import pytest

from laxity.schemas.records import KeyRow
from laxity.schemas.serde import Codec, Undecodable, encode_row
from laxity.streams.effects import Change
from laxity.streams.state import changelog, keys

CODEC = Codec.local()
KEY_ROW = KeyRow(digest=b"d", state="SUCCEEDED", reason="", generation=0, dispatch_no=1, ended_ms=5)


@pytest.mark.parametrize("table", [keys.TASK, keys.PAYLOAD, keys.SETTLE, keys.SHARD])
@pytest.mark.parametrize("value", [b"row", b"", None])
def test_a_change_comes_back(table: str, value: bytes | None) -> None:
    change = Change(table=table, key=b"id:0:1", value=value)
    row = changelog.state_row(change, CODEC)
    assert row[0] == keys.state_key(table, b"id:0:1")
    assert changelog.state_changes([row], CODEC) == [change]


def test_of_each_state_row_only_the_last_counts_and_of_keys_all_do() -> None:
    def task(row: bytes | None, name: bytes = b"a") -> Change:
        return Change(table=keys.TASK, key=name, value=row)

    changes = [task(b"1"), task(b"x", b"b"), task(None), task(b"2"), task(None, b"b")]
    rows = [changelog.state_row(change, CODEC) for change in changes]
    assert sorted(changelog.state_changes(rows, CODEC), key=lambda c: c.key) == [task(b"2"), task(None, b"b")]
    ended = [Change(table=keys.KEY, key=b"a", value=encode_row(KEY_ROW))] * 2
    assert changelog.keys_changes([changelog.keys_row(c, CODEC) for c in ended], CODEC) == ended


def test_a_key_row_is_readable_by_any_avro_reader() -> None:
    change = Change(table=keys.KEY, key=b"task", value=encode_row(KEY_ROW))
    key, value = changelog.keys_row(change, CODEC)
    assert (key, CODEC.decode(KeyRow, value)) == (b"task", KEY_ROW)
    assert changelog.keys_changes([(key, value)], CODEC) == [change]


def test_a_value_under_another_tables_key_is_refused() -> None:
    _, value = changelog.state_row(Change(table=keys.TASK, key=b"a", value=b"row"), CODEC)
    with pytest.raises(changelog.ForeignRowError, match="settle"):
        changelog.state_changes([(keys.state_key(keys.SETTLE, b"a"), value)], CODEC)


def test_foreign_keys_values_and_tombstones_are_refused() -> None:
    with pytest.raises(changelog.ForeignRowError):
        changelog.state_changes([(b"?x", None)], CODEC)
    with pytest.raises(Undecodable):
        changelog.state_changes([(keys.state_key(keys.TASK, b"a"), b"junk")], CODEC)
    with pytest.raises(changelog.ForeignRowError):
        changelog.keys_changes([(b"task", None)], CODEC)
    with pytest.raises(changelog.ForeignRowError):
        changelog.keys_row(Change(table=keys.KEY, key=b"task", value=None), CODEC)
    with pytest.raises(Undecodable):
        changelog.keys_changes([(b"task", CODEC.encode(KEY_ROW)[:-1])], CODEC)


def test_the_largest_row_travels() -> None:
    big = Change(table=keys.PAYLOAD, key=b"k", value=b"x" * 1_500_000)
    assert changelog.state_changes([changelog.state_row(big, CODEC)], CODEC) == [big]
