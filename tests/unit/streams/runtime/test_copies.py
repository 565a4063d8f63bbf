"""Warm copies, and the shards' threads that claim them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from laxity.schemas.records import KeyRow
from laxity.schemas.serde import Codec, encode_row
from laxity.schemas.timing import ManualClock
from laxity.streams.effects import Change
from laxity.streams.runtime.copies import Copies
from laxity.streams.runtime.stores import StateDirectory, Stores, derivations
from laxity.streams.state import keys
from laxity.streams.state.changelog import KEYS, STATE, Row, keys_row
from laxity.streams.state.restore import Batch, Position, position
from laxity.streams.state.rocks import RocksStore, StoreLockedError

CODEC = Codec.local()
IDS = {STATE: "s", KEYS: "k"}
WAIT_S = 10


def ended(name: bytes) -> Row:
    row = KeyRow(digest=b"d", state="DEAD", reason="", generation=0, dispatch_no=1, ended_ms=1)
    return keys_row(Change(table=keys.KEY, key=name, value=encode_row(row)), CODEC)


def batch(*names: bytes, after: int) -> Batch:
    return Batch(rows=[ended(name) for name in names], next=after)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    found = StateDirectory.take(tmp_path / "state")
    yield found
    found.release()


@pytest.fixture
def gone() -> list[int]:
    return []


@pytest.fixture
def copies(directory: StateDirectory, gone: list[int]) -> Copies:
    return Copies(directory, derivations(CODEC), ManualClock(), gone=gone.append)


def test_what_is_applied_is_there_for_the_shards_thread_and_for_the_next_opening(
    copies: Copies, directory: StateDirectory, gone: list[int]
) -> None:
    assert copies.open(0, IDS)
    assert copies.nexts(0) == {STATE: None, KEYS: None}
    copies.apply(0, KEYS, batch(b"a", b"b", after=7))
    assert copies.nexts(0) == {STATE: None, KEYS: 7}
    with copies.claimed(0):
        assert (copies.shards(), copies.nexts(0), gone) == (frozenset(), {}, [0])
        assert not copies.open(0, IDS)
        copies.apply(0, KEYS, batch(b"c", after=8))  # what was read before the claim comes too late
        stores = Stores.open(directory.shard(0), IDS)
        assert position(stores.keys) == Position(topic_id="k", next=7)
        assert len(list(stores.keys.scan(b"k", b"l"))) == 2
        stores.close()
    assert copies.open(0, IDS)
    assert copies.nexts(0)[KEYS] == 7
    copies.close(0, "the end")


def test_a_claim_waits_for_the_write_under_way_and_no_longer(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.open(0, IDS)
    copies.open(1, IDS)
    writing, go_on = threading.Event(), threading.Event()
    write = RocksStore.write

    def slow(store: RocksStore, writes: object) -> None:
        writing.set()
        assert go_on.wait(WAIT_S)
        write(store, writes)  # type: ignore[arg-type]

    monkeypatch.setattr(RocksStore, "write", slow)
    follower = threading.Thread(target=copies.apply, args=(0, KEYS, batch(b"a", after=1)))
    follower.start()
    assert writing.wait(WAIT_S)
    claimed = threading.Event()

    def claim() -> None:
        with copies.claimed(0):
            claimed.set()

    claimer = threading.Thread(target=claim)
    claimer.start()
    assert not claimed.wait(0.1)
    go_on.set()
    assert claimed.wait(WAIT_S)
    for thread in (follower, claimer):
        thread.join(WAIT_S)
    copies.close(1, "the end")


def test_a_copy_whose_files_rot_is_thrown_away_and_begun_anew(
    copies: Copies, directory: StateDirectory, gone: list[int]
) -> None:
    copies.open(0, IDS)
    copies.apply(0, KEYS, batch(b"a", after=7))
    copies.close(0, "for a moment")
    for table in (directory.shard(0) / KEYS).glob("*.sst"):
        table.write_bytes(bytes(table.stat().st_size))
    while not copies.open(0, IDS):
        continue
    assert copies.nexts(0)[KEYS] is None
    copies.apply(0, KEYS, batch(b"a", after=7))
    assert copies.nexts(0)[KEYS] == 7
    copies.close(0, "the end")
    assert gone == [0, 0]


def test_a_topic_made_anew_and_a_lost_head_begin_anew(copies: Copies) -> None:
    copies.open(0, IDS)
    copies.apply(0, KEYS, batch(b"a", after=7))
    copies.clear(0, KEYS)
    assert copies.nexts(0)[KEYS] is None
    copies.apply(0, KEYS, batch(b"b", after=9))
    copies.close_made_anew(IDS)
    assert copies.shards() == {0}
    fresh = {STATE: "s", KEYS: "another"}
    copies.close_made_anew(fresh)
    assert copies.shards() == frozenset()
    assert copies.open(0, fresh)
    assert copies.nexts(0)[KEYS] is None
    copies.close(0, "the end")


def test_stores_that_are_locked_are_left_alone(copies: Copies, directory: StateDirectory) -> None:
    holder = RocksStore(directory.shard(0) / STATE)
    with pytest.raises(StoreLockedError):
        copies.open(0, IDS)
    assert copies.shards() == frozenset()
    holder.close()
    assert copies.open(0, IDS)
    copies.close(0, "the end")
