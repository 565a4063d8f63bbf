"""Files of a shard's stores that rot, vanish, or belong to somebody else: rebuilt to the same hash, or refused by the name of the directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from builders import row

from laxity.schemas.records import KeyRow
from laxity.schemas.serde import Codec, encode_row
from laxity.streams.effects import Change
from laxity.streams.runtime.stores import Stores, derivations, wipe_damaged
from laxity.streams.state import keys
from laxity.streams.state.changelog import CHANGELOGS, KEYS, STATE, Row, keys_row, state_row
from laxity.streams.state.restore import Batch, restore
from laxity.streams.state.rocks import RocksStore, StoreCorruptError, StoreError, StoreLockedError
from laxity.streams.state.store import Store

CODEC = Codec.local()
HOW = derivations(CODEC)
IDS = {STATE: "id of state", KEYS: "id of keys"}
NOW_MS = 1_700_000_000_000
TASKS = 600
NOBODY = 65_534
STARTS_MAX = 3  # a store that is rotten in several places is thrown away once, not once for each


@dataclass
class Log:
    """A changelog in memory; `read_from` remembers where each reading began."""

    topic_id: str
    rows: Sequence[Row]
    read_from: list[int]

    def read(self, start: int | None) -> Iterator[Batch]:
        at = start or 0
        self.read_from.append(at)
        for first in range(at, len(self.rows), 100):
            yield Batch(rows=self.rows[first : first + 100], next=min(first + 100, len(self.rows)))
        yield Batch(rows=(), next=len(self.rows), ended=True)


def _state_rows() -> list[Row]:
    found = []
    for n in range(TASKS):
        state = ("READY", "DELAYED", "RUNNING")[n % 3]
        task = row(state=state, seq=n, due_ms=n, key=os.urandom(60).hex(), demands={"llm": 1})
        name = hashlib.sha256(b"%d" % n).hexdigest().encode()
        found.append(state_row(Change(table=keys.TASK, key=name, value=encode_row(task)), CODEC))
        if n % 4 == 0 and n > 200:
            found.append((found[n - 100][0], None))
    return found


def _key_rows() -> list[Row]:
    def ended(n: int) -> bytes:
        return encode_row(
            KeyRow(
                digest=os.urandom(32),
                state="DEAD",
                reason="",
                generation=0,
                dispatch_no=1,
                ended_ms=n * 10**6,
            )
        )

    changes = [Change(table=keys.KEY, key=b"%032x" % n, value=ended(n)) for n in range(TASKS * 2)]
    return [keys_row(change, CODEC) for change in changes]


def logs() -> dict[str, Log]:
    return {name: Log(IDS[name], rows, []) for name, rows in ((STATE, _state_rows()), (KEYS, _key_rows()))}


def brought_up(folder: Path, all_of: dict[str, Log]) -> dict[str, list[tuple[bytes, bytes]]]:
    """As a shard does it: open, restore, read; where damage shows, throw away and start over. Every row of both stores."""
    for _ in range(STARTS_MAX):
        try:
            return _one_start(folder, all_of)
        except StoreCorruptError as error:
            wipe_damaged(error)
    raise AssertionError(f"still damaged after {STARTS_MAX} starts")


def _one_start(folder: Path, all_of: dict[str, Log]) -> dict[str, list[tuple[bytes, bytes]]]:
    stores = Stores.open(folder, IDS)
    both: dict[str, Store] = {STATE: stores.state, KEYS: stores.keys}
    try:
        for name, store in both.items():
            restore(store, all_of[name], HOW[name], now_ms=NOW_MS)
        return {name: list(store.scan(b"", keys.MAX_KEY)) for name, store in both.items()}
    finally:
        stores.close()


def crashed(folder: Path, all_of: dict[str, Log]) -> dict[str, list[tuple[bytes, bytes]]]:
    """A shard's folder as a crash leaves it: tables, and a log of what came after them. Returns what it should hold."""
    whole = {name: Log(log.topic_id, log.rows, []) for name, log in all_of.items()}
    half = {name: Log(log.topic_id, log.rows[: len(log.rows) // 2], []) for name, log in all_of.items()}
    live = folder.with_name("live")
    brought_up(live, half)
    stores = Stores.open(live, IDS)
    for name, store in ((STATE, stores.state), (KEYS, stores.keys)):
        restore(store, whole[name], HOW[name], now_ms=NOW_MS)
    shutil.copytree(live, folder)
    found = {n: list(s.scan(b"", keys.MAX_KEY)) for n, s in ((STATE, stores.state), (KEYS, stores.keys))}
    stores.close()
    shutil.rmtree(live)
    return found


def one(pattern: str) -> Callable[[Path], Path]:
    """The newest file of that kind."""
    return lambda store: max(store.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def flip(file: Path, at: int | None = None) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 0x5A
    file.write_bytes(raw)


def junk(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(os.urandom(200))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


TABLE, LOG, MANIFEST, CURRENT = one("*.sst"), one("*.log"), one("MANIFEST-*"), one("CURRENT")
DAMAGES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None]]] = {
    "table, a byte flipped": (TABLE, flip),
    "table, its last byte flipped": (TABLE, lambda file: flip(file, -1)),
    "table cut": (TABLE, cut),
    "table lost": (TABLE, Path.unlink),
    "MANIFEST, a byte flipped": (MANIFEST, flip),
    "MANIFEST cut": (MANIFEST, cut),
    "MANIFEST lost": (MANIFEST, Path.unlink),
    "CURRENT empty": (CURRENT, empty),
    "CURRENT lost": (CURRENT, Path.unlink),
    "log, garbage in it": (LOG, junk),
    "log, a byte flipped": (LOG, flip),
    "log cut": (LOG, cut),
    "log lost": (LOG, Path.unlink),
}


@pytest.mark.parametrize("name", CHANGELOGS)
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_it_is_rebuilt_to_the_same(tmp_path: Path, name: str, damage: str) -> None:
    all_of = logs()
    expected = crashed(tmp_path / "shard-0", all_of)
    which, how = DAMAGES[damage]
    how(which(tmp_path / "shard-0" / name))
    assert brought_up(tmp_path / "shard-0", all_of) == expected
    (other,) = {*CHANGELOGS} - {name}
    assert set(all_of[other].read_from) == {len(all_of[other].rows)}, "the neighbour is kept"


def test_any_single_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """At a position of each file of both stores chosen by its name: rebuilt, or the same as before."""
    all_of = logs()
    sound = tmp_path / "sound" / "shard-0"
    sound.parent.mkdir()
    expected = crashed(sound, all_of)
    files = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.stat().st_size]
    assert len(files) > 8
    for number, file in enumerate(f for f in files if (sound / f).is_file() for _ in range(2)):
        folder = tmp_path / f"shard-{number}"
        shutil.copytree(sound, folder)
        place = int.from_bytes(hashlib.sha256(f"{file} {number}".encode()).digest()[:8], "big")
        flip(folder / file, place % (folder / file).stat().st_size)
        assert brought_up(folder, all_of) == expected, f"{file}, byte {place}"
        shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A directory that this process may not read, whoever runs the test."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "shard-0").mkdir(mode=0o000)
    am_root = os.geteuid() == 0
    if am_root:
        os.seteuid(NOBODY)
    try:
        yield root / "shard-0"
    finally:
        if am_root:
            os.seteuid(0)
        shutil.rmtree(root)


def test_a_directory_that_may_not_be_read_is_refused_by_name_and_kept() -> None:
    with as_nobody() as folder:
        with pytest.raises(StoreError, match=f"{folder}.*ermission denied") as refused:
            Stores.open(folder, IDS)
        assert not isinstance(refused.value, StoreCorruptError)
        assert folder.exists()


@pytest.mark.parametrize("name", CHANGELOGS)
def test_a_store_that_another_process_has_open_is_refused_by_name_and_kept(tmp_path: Path, name: str) -> None:
    all_of = logs()
    expected = crashed(tmp_path / "shard-0", all_of)
    program = (
        "import sys; from pathlib import Path; from laxity.streams.state.rocks import RocksStore;"
        "store = RocksStore(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    folder = tmp_path / "shard-0" / name
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreLockedError, match=str(folder)):
            Stores.open(tmp_path / "shard-0", IDS)
    assert brought_up(tmp_path / "shard-0", all_of) == expected
    assert 0 not in all_of[name].read_from, "nothing was thrown away"


def test_damage_that_shows_while_it_runs_is_told_by_every_call(tmp_path: Path) -> None:
    """The block is read for the first time long after the opening, by a get as well as by a scan."""
    crashed(tmp_path / "shard-0", logs())
    RocksStore(tmp_path / "shard-0" / STATE).close()
    for table in (tmp_path / "shard-0" / STATE).glob("*.sst"):
        for at in range(0, table.stat().st_size * 2 // 3, 1_000):  # its index comes last and is sound
            flip(table, at)
    stores = Stores.open(tmp_path / "shard-0", IDS)
    names = [hashlib.sha256(b"%d" % n).hexdigest().encode() for n in range(TASKS)]
    with pytest.raises(StoreCorruptError, match=str(tmp_path)):
        [stores.state.get(keys.state_key(keys.TASK, name)) for name in names]
    with pytest.raises(StoreCorruptError, match=str(tmp_path)):
        list(stores.state.scan(b"", keys.MAX_KEY))
    stores.close()
