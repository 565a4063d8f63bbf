"""What stopped stores hold, as numbers that can be compared: every copy of every shard under a state directory.

Only changelogged rows count: what a store derives from them locally, or remembers for itself, may differ between equal copies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from laxity.infra.inspect.errors import InspectError
from laxity.streams.state import keys
from laxity.streams.state.changelog import KEYS, STATE
from laxity.streams.state.restore import position
from laxity.streams.state.rocks import RocksStore, StoreError, StoreLockedError
from laxity.streams.state.store import Store

_SHARD: Final = re.compile(r"shard-([0-9]{1,4})")
_ROCKS_FILE: Final = (
    "CURRENT"  # every RocksDB directory has it; opening a directory without would create a store
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableHash:
    """One table of a store: equal in two copies although the shard's own row has moved on."""

    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHash:
    """One store. `offset`: it is good for every committed record of its changelog below this; None: nothing was ever restored."""

    offset: int | None
    topic_id: str
    rows: int
    sha256: str  # over the changelogged rows in the order of their keys
    tables: Mapping[str, TableHash]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "offset": self.offset,
            "topic_id": self.topic_id,
            "rows": self.rows,
            "sha256": self.sha256,
            "tables": {
                name: {"rows": table.rows, "sha256": table.sha256} for name, table in self.tables.items()
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHash:
    """Both stores of one copy of a shard."""

    shard: int
    folder: Path
    state: StoreHash
    keys: StoreHash

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "shard": self.shard,
            "folder": str(self.folder),
            "state": self.state.document(),
            "keys": self.keys.document(),
        }


def hashes_under(root: Path) -> list[ShardHash]:
    """Every copy below `root` (a state directory, or a directory of them), by shard and folder. InspectError for one in use or damaged, or for none at all."""
    folders = [path for path in root.rglob("shard-*") if _SHARD.fullmatch(path.name) and path.is_dir()]
    found = [_hash_of(folder) for folder in folders if (folder / STATE / _ROCKS_FILE).exists()]
    if not found:
        raise InspectError(f"no shard has its state under {root}", "", "laxity state hash --state-dir DIR")
    return sorted(found, key=lambda copy: (copy.shard, copy.folder))


def _hash_of(folder: Path) -> ShardHash:
    number = _SHARD.fullmatch(folder.name)
    assert number is not None, "chosen by its name"
    return ShardHash(
        shard=int(number[1]),
        folder=folder,
        state=_opened(folder / STATE, _is_state_row),
        keys=_opened(folder / KEYS, _is_key_row),
    )


def _is_state_row(key: bytes) -> bool:
    return keys.is_changelogged(key)


def _is_key_row(key: bytes) -> bool:
    return not key.startswith(keys.HOST)


def _opened(path: Path, counts: Any) -> StoreHash:
    if not (path / _ROCKS_FILE).exists():
        return hash_of((), None, "")
    try:
        store = RocksStore(path)
    except StoreLockedError as error:
        raise InspectError(f"{path} is in use", "a scheduler runs on it", "laxity stop scheduler") from error
    except StoreError as error:
        raise InspectError(str(error)) from error
    try:
        return _read(store, counts)
    finally:
        store.close()


def _read(store: Store, counts: Any) -> StoreHash:
    here = position(store)
    rows = ((key, value) for key, value in _all(store) if counts(key))
    return hash_of(rows, here.next if here else None, here.topic_id if here else "")


def _all(store: Store) -> Iterator[tuple[bytes, bytes]]:
    return store.scan(b"", keys.MAX_KEY)


def hash_of(rows: Iterable[tuple[bytes, bytes]], offset: int | None, topic_id: str) -> StoreHash:
    """Of rows in the order of their keys; key and value framed by their lengths. Tables follow each other in that order, so one pass does both."""
    digest, count = hashlib.sha256(), 0
    tables: dict[str, TableHash] = {}
    for name, group in groupby(rows, key=lambda row: keys.table_of(row[0])):
        own, rows_of = hashlib.sha256(), 0
        for key, value in group:
            framed = len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value
            digest.update(framed)
            own.update(framed)
            rows_of += 1
        count += rows_of
        tables[name] = TableHash(rows=rows_of, sha256=own.hexdigest())
    return StoreHash(offset=offset, topic_id=topic_id, rows=count, sha256=digest.hexdigest(), tables=tables)
