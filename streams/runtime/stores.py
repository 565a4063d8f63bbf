"""The two stores of a shard on disk, and the directory of the process that holds them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from laxity.schemas.limits import MIB
from laxity.schemas.safety import exposed
from laxity.schemas.serde import Codec
from laxity.schemas.timing import Millis
from laxity.streams.effects import Effects
from laxity.streams.runtime.crashpoints import reach
from laxity.streams.runtime.liveness import NOBODY, Predecessor
from laxity.streams.runtime.logs import Event, logger
from laxity.streams.state.changelog import KEYS, STATE, Row, keys_changes, state_changes
from laxity.streams.state.keys import drop_expired_keys, key_write, state_write
from laxity.streams.state.restore import Derive, Position, position_writes
from laxity.streams.state.rocks import RocksStore, StoreCorruptError, StoreError, wipe
from laxity.streams.state.store import Store, Write
from laxity.streams.state.tables import restored

PROCESSES_MAX = 64  # numbered directories tried under one data directory
FREE_BYTES_MIN = 32 * MIB  # a store writes out a full buffer (16 MiB) while it still keeps the log of it


class StateDirectoryError(Exception):
    """No directory for this process's state."""


class StateDirectory:
    """One process's state; locked while it lives. It remembers which shards the process had, for a restart after a crash."""

    def __init__(self, root: Path, lock: IO[str]) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def take(cls, root: Path) -> StateDirectory:
        """Exactly this one. Raises StateDirectoryError if another process has it, or if others may look into it: it holds payloads."""
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if reason := exposed(root):
                raise StateDirectoryError(f"state directory {reason}")
            _require_space(root)
            lock = (root / "lock").open("a")
        except OSError as error:
            raise StateDirectoryError(f"state directory {root}: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StateDirectoryError(f"state directory {root}: another process has it") from error
        return cls(root, lock)

    @classmethod
    def first_free(cls, data_dir: Path) -> StateDirectory:
        """The first of `state/0`, `state/1`, … that no living process has: after a crash usually the same."""
        for number in range(PROCESSES_MAX):
            try:
                return cls.take(data_dir / "state" / str(number))
            except StateDirectoryError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
        raise StateDirectoryError(f"{data_dir / 'state'}: all {PROCESSES_MAX} directories are in use")

    def remember(self, process: str, shards: Iterable[int]) -> None:
        """Who we are on the liveness board, and which shards we have: replaced as a whole. Raises StateDirectoryError."""
        fresh = self.root / "holding.json.new"
        text = json.dumps({"process": process, "shards": sorted(shards)})
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self.root / "holding.json")
        except OSError as error:
            raise StateDirectoryError(f"state directory {self.root}: {error}") from error

    def remembered(self) -> Predecessor:
        """The last process here; a torn or missing file is nobody (the transaction timeout rules then)."""
        try:
            found = json.loads((self.root / "holding.json").read_text("utf-8"))
            shards = frozenset(int(shard) for shard in found["shards"])
            return Predecessor(process=str(found["process"]), shards=shards)
        except (OSError, ValueError, TypeError, KeyError):
            return NOBODY

    def shard(self, shard: int) -> Path:
        """Where a shard's stores are."""
        return self.root / f"shard-{shard}"

    def release(self) -> None:
        """Let another process have it."""
        os.fsync(self._lock.fileno())
        self._lock.close()


def _require_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < FREE_BYTES_MIN:
        raise StateDirectoryError(
            f"state directory {root}: {free} bytes are free, at least {FREE_BYTES_MIN} are needed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """State and keys of one shard, each with its changelog's id."""

    state: Store
    keys: Store
    topic_ids: Mapping[str, str]  # of `state` and `keys`
    reach: Callable[[str], None] = reach

    @classmethod
    def open(cls, folder: Path, topic_ids: Mapping[str, str]) -> Stores:
        """Opened, or made anew where the files are damaged. Raises StoreError (locked, disk full), with neither left open."""
        state = _opened(folder / STATE)
        try:
            return cls(state=state, keys=_opened(folder / KEYS), topic_ids=topic_ids)
        except StoreError:
            state.close()
            raise

    def apply(self, effects: Effects, ends: Mapping[str, int], now_ms: Millis) -> None:
        """After the commit: data, derived rows and changelog offsets, each store in one write. `ends`: by changelog, without prefix."""
        state = [*(state_write(change) for change in effects.state), *effects.local]
        self.state.write(state + self._position(STATE, ends, now_ms))
        self.reach("mid_apply")
        keys = [key_write(change) for change in effects.keys]
        if keys:
            self.keys.write(keys + self._position(KEYS, ends, now_ms))

    def _position(
        self, topic: str, ends: Mapping[str, int], now_ms: Millis
    ) -> list[tuple[bytes, bytes | None]]:
        here = Position(topic_id=self.topic_ids[topic], next=ends[topic])
        return position_writes(here, now_ms)

    def drop_expired_keys(self, now_ms: Millis) -> None:
        """Days of keys that nobody remembers."""
        drop_expired_keys(self.keys, now_ms)

    def close(self) -> None:
        """Flush and unlock both."""
        try:
            self.state.close()
        finally:
            self.keys.close()


def derivations(codec: Codec) -> Mapping[str, Derive]:
    """By changelog: how its records become rows of its store."""

    def state(store: Store, rows: Sequence[Row]) -> Sequence[Write]:
        return restored(store, state_changes(rows, codec))

    def keys(_: Store, rows: Sequence[Row]) -> Sequence[Write]:
        return [key_write(change) for change in keys_changes(rows, codec)]

    return {STATE: state, KEYS: keys}


def _opened(path: Path) -> RocksStore:
    try:
        return _readable(path)
    except StoreCorruptError as error:
        wipe_damaged(error)
        return RocksStore(path)


def _readable(path: Path) -> RocksStore:
    store = RocksStore(path)
    try:
        store.get(b"~")
    except StoreError:
        store.close()
        raise
    return store


def wipe_damaged(error: StoreCorruptError) -> None:
    """Throw the damaged store away; it must be closed. Damage may show long after the opening: a block is checked when it is read."""
    logger().warning(Event.WIPED, path=str(error.path), why=str(error))
    wipe(error.path)
