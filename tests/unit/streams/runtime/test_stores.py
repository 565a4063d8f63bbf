"""The state directory and the two stores in it."""

import os
from pathlib import Path

import pytest

from laxity.schemas.limits import KEYS_KEPT_MS
from laxity.schemas.records import KeyRow, ShardRow
from laxity.schemas.serde import encode_row
from laxity.streams.effects import Change, Effects
from laxity.streams.runtime import stores as stores_module
from laxity.streams.runtime.liveness import NOBODY, Predecessor
from laxity.streams.runtime.stores import StateDirectory, StateDirectoryError, Stores, wipe_damaged
from laxity.streams.state import keys
from laxity.streams.state.restore import Position, position
from laxity.streams.state.rocks import RocksStore, StoreCorruptError, StoreLockedError

IDS = {"state": "s", "keys": "k"}
DAY_MS = 86_400_000


def test_each_process_gets_a_directory_of_its_own_and_a_restart_the_same(tmp_path: Path) -> None:
    first, second = StateDirectory.first_free(tmp_path), StateDirectory.first_free(tmp_path)
    assert (first.root.name, second.root.name) == ("0", "1")
    assert first.remembered() == NOBODY
    first.remember("one", {3, 1})
    first.release()
    again = StateDirectory.first_free(tmp_path)
    assert again.root == first.root
    assert again.remembered() == Predecessor(process="one", shards=frozenset({1, 3}))
    with pytest.raises(StateDirectoryError, match="another process has it"):
        StateDirectory.take(second.root)
    again.release()
    second.release()


TORN = ["", "{", "[1", "[1, 2]", "null", "7", '{"process": "p", "shards": ["x"]}', '{"shards": [1]}']


@pytest.mark.parametrize("text", TORN)
def test_a_torn_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    directory = StateDirectory.take(tmp_path)
    (tmp_path / "holding.json").write_text(text)
    assert directory.remembered() == NOBODY
    directory.release()


def test_a_directory_that_cannot_be_is_an_error_not_a_search(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StateDirectoryError, match="state directory"):
        StateDirectory.first_free(tmp_path)


def test_a_disk_with_too_little_room_is_refused_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores_module, "FREE_BYTES_MIN", 1 << 62)
    with pytest.raises(StateDirectoryError, match=rf"{tmp_path}.* [0-9]+ bytes are free, at least {1 << 62}"):
        StateDirectory.take(tmp_path / "state")
    assert not (tmp_path / "state" / "lock").exists()


def test_a_note_that_cannot_be_written_names_the_directory(tmp_path: Path) -> None:
    directory = StateDirectory.take(tmp_path / "state")
    (tmp_path / "state" / "holding.json.new").mkdir()
    with pytest.raises(StateDirectoryError, match=str(tmp_path / "state")):
        directory.remember("me", {1})
    directory.release()


def effects(batch: int, ended: str = "") -> Effects:
    row = ShardRow(
        state_version=1, owner_epoch=1, batch=batch, now_ms=0, seq=0, usage_seq=0, ledger_epoch="", waiting=()
    )
    key = KeyRow(digest=b"d", state="DEAD", reason="", generation=0, dispatch_no=1, ended_ms=DAY_MS)
    return Effects(
        batch=batch,
        state=[Change(table=keys.SHARD, key=keys.SHARD_KEY, value=encode_row(row))],
        keys=[Change(table=keys.KEY, key=ended.encode(), value=encode_row(key))] if ended else [],
        local=[(keys.READY + b"x", b"1")],
        outputs=[],
    )


def test_data_derived_rows_and_offsets_are_written_together(tmp_path: Path) -> None:
    stores = Stores.open(tmp_path, IDS)
    stores.apply(effects(1), {"state": 5, "keys": -1}, now_ms=1)
    assert position(stores.state) == Position(topic_id="s", next=5)
    assert position(stores.keys) is None
    stores.apply(effects(2, "t1"), {"state": 8, "keys": 3}, now_ms=2)
    assert position(stores.keys) == Position(topic_id="k", next=3)
    assert stores.state.get(keys.READY + b"x") == b"1"
    assert len(keys.key_buckets(stores.keys)) == 1
    stores.drop_expired_keys(DAY_MS + KEYS_KEPT_MS + 2 * DAY_MS)
    assert keys.key_buckets(stores.keys) == []
    assert position(stores.keys) == Position(topic_id="k", next=3)
    stores.close()


def test_a_damaged_store_is_made_anew_and_its_neighbour_kept(tmp_path: Path) -> None:
    stores = Stores.open(tmp_path, IDS)
    stores.apply(effects(1, "t1"), {"state": 5, "keys": 3}, now_ms=1)
    stores.close()
    (tmp_path / "state" / "CURRENT").write_bytes(b"")
    stores = Stores.open(tmp_path, IDS)
    assert position(stores.state) is None
    assert position(stores.keys) == Position(topic_id="k", next=3)
    with pytest.raises(StoreLockedError):
        Stores.open(tmp_path, IDS)
    stores.close()


def test_damage_that_shows_only_when_it_is_read_is_wiped_too(tmp_path: Path) -> None:
    stores = Stores.open(tmp_path, IDS)
    rows = [(b"Rx%05d" % n, os.urandom(100)) for n in range(1_000)]
    stores.state.write(rows)
    stores.close()
    (table,) = (tmp_path / "state").glob("*.sst")
    rotten = bytearray(table.read_bytes())
    rotten[30_000:30_100] = bytes(100)
    table.write_bytes(rotten)
    stores = Stores.open(tmp_path, IDS)
    with pytest.raises(StoreCorruptError) as found:
        list(stores.state.scan(b"R", b"S"))
    stores.close()
    wipe_damaged(found.value)
    stores = Stores.open(tmp_path, IDS)
    assert list(stores.state.scan(b"R", b"S")) == []
    stores.close()


def test_where_one_store_cannot_be_opened_the_other_is_not_left_open(tmp_path: Path) -> None:
    holder = RocksStore(tmp_path / "keys")
    with pytest.raises(StoreLockedError):
        Stores.open(tmp_path, IDS)
    RocksStore(tmp_path / "state").close()
    holder.close()
    Stores.open(tmp_path, IDS).close()


def test_a_directory_that_others_may_look_into_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    with pytest.raises(StateDirectoryError, match="chmod go-rwx"):
        StateDirectory.take(root)
    root.chmod(0o700)
    StateDirectory.take(root).release()
