"""What only the store on disk can get wrong."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from laxity.streams.state.rocks import RocksStore, StoreCorruptError, StoreError, StoreLockedError, wipe


def filled(path: Path) -> None:
    store = RocksStore(path)
    store.write([(n.to_bytes(4, "big"), b"v" * 100) for n in range(1000)])
    store.close()


def test_rows_survive_a_close(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    store = RocksStore(tmp_path / "store")
    assert len(list(store.scan(b"", b"\xff"))) == 1000
    store.close()


def test_an_open_scan_does_not_keep_the_lock(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store")
    store.write([(b"a", b"1"), (b"b", b"2")])
    scan = store.scan(b"", b"z")
    next(scan)
    store.close()
    assert list(scan) == []
    RocksStore(tmp_path / "store").close()


def test_a_second_opener_is_told_that_it_is_locked(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "store")
    with pytest.raises(StoreLockedError, match="lock"):
        RocksStore(tmp_path / "store")
    store.close()


def flip(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = next(path.glob(name))
        raw = bytearray(file.read_bytes())
        for at in range(0, len(raw), 16):
            raw[at] ^= 0xFF
        file.write_bytes(raw)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: next(path.glob(name)).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        next(path.glob(name)).write_bytes(b"")

    return damage


@pytest.mark.parametrize(
    "damage",
    [flip("MANIFEST-*"), truncate("CURRENT"), remove("*.sst"), flip("*.sst"), remove("MANIFEST-*")],
    ids=["manifest flipped", "CURRENT cut", "table lost", "table flipped", "manifest lost"],
)
def test_damage_is_told_apart(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "store"
    filled(path)
    damage(path)
    with pytest.raises(StoreCorruptError) as caught:
        RocksStore(path).get(b"\x00\x00\x00\x01")
    assert str(path) in str(caught.value)
    wipe(path)
    RocksStore(path).close()


def test_a_directory_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        RocksStore(tmp_path / "file")


def test_wiping_nothing_is_fine(tmp_path: Path) -> None:
    wipe(tmp_path / "never")


def test_a_scan_over_a_damaged_block_is_an_error_not_an_end(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = RocksStore(path)
    store.write([(n.to_bytes(4, "big"), os.urandom(100)) for n in range(1000)])
    store.close()
    (table,) = path.glob("*.sst")
    rotten = bytearray(table.read_bytes())
    rotten[30_000:30_100] = bytes(100)
    table.write_bytes(rotten)
    store = RocksStore(path)
    assert len(list(store.scan(b"", (100).to_bytes(4, "big")))) == 100
    with pytest.raises(StoreCorruptError, match="checksum"):
        list(store.scan(b"", b"\xff"))
    with pytest.raises(StoreCorruptError, match="checksum"):
        list(store.scan((280).to_bytes(4, "big"), b"\xff"))
    store.close()
    RocksStore(path).close()
