"""The store on disk: RocksDB with raw bytes.

What it holds can always be read again from the changelogs, and each write carries the changelog offset that it is good for. So nothing
is synced (a lost tail of the log loses data and offset together), and a store that cannot be opened is thrown away by the host.

    StoreError              the disk refuses: no permission, broken hardware
    ├── StoreCorruptError   its files are damaged: wipe and restore
    ├── StoreFullError      no space is left: nothing of the write is there
    └── StoreLockedError    another process, or this one, has it open
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakSet

from rocksdict import BlockBasedOptions, Cache, DbClosedError, Options, Rdict, ReadOptions, WriteBatch

from laxity.streams.state.store import Write

WRITE_BUFFER_BYTES = 16 * 1024 * 1024  # per memtable; two stores and at most eight shards in a process
BLOCK_CACHE_BYTES = 8 * 1024 * 1024  # per store; the operating system caches files beside it
BLOOM_BITS_PER_KEY = 10  # 1 % false positives: intake asks for keys that mostly do not exist
LOG_FILES_MAX = 2  # RocksDB's own text logs


class StoreError(Exception):
    """A store failed; the message names its directory."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"store {path}: {problem}")
        self.path = path


class StoreCorruptError(StoreError):
    """The files are damaged; wipe the directory and restore from the changelog."""


class StoreLockedError(StoreError):
    """The directory is open elsewhere; it must not be wiped."""


class StoreFullError(StoreError):
    """No space is left. What was written before is whole; it goes on once there is space and the store is opened again."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, f"no space left, {shutil.disk_usage(path).free} bytes are free: {problem}")


_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_DAMAGE = ("Corruption", "does not exist", "No such file", "Not implemented", "Invalid argument")


def _raise(path: Path, error: Exception) -> NoReturn:
    """The library raises bare `Exception`; RocksDB's own status text says which kind it is."""
    text = str(error)
    if "lock hold" in text.lower() or "While lock file" in text:
        raise StoreLockedError(path, text) from error
    if any(kind in text for kind in _FULL):
        raise StoreFullError(path, text) from error
    if any(kind in text for kind in _DAMAGE):
        raise StoreCorruptError(path, text) from error
    raise StoreError(path, text) from error


def _options() -> Options:
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(LOG_FILES_MAX)
    options.set_stats_dump_period_sec(0)
    return options


class RocksStore:
    """One RocksDB directory. One thread at a time; opening it creates it."""

    __slots__ = ("_db", "_failed", "_path", "_scans")

    def __init__(self, path: Path) -> None:
        """Raises StoreCorruptError or StoreLockedError, or StoreError for anything else."""
        self._path = path
        self._failed = False
        self._scans: WeakSet[Generator[tuple[bytes, bytes]]] = WeakSet()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = Rdict(str(path), _options())
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            _raise(path, error)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value: bytes | None = self._call(self._db.get, key)
        return value

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, ascending, as of the call."""
        if start >= end:
            return iter(())
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        items = self._call(self._db.items, from_key=start, read_opt=bounds)
        scan = self._guarded(items, start, bounds)
        self._scans.add(scan)
        return scan

    def _guarded(
        self, items: Iterator[tuple[bytes, bytes]], start: bytes, bounds: ReadOptions
    ) -> Generator[tuple[bytes, bytes]]:
        """`bounds` owns the bytes of the upper bound, to which the iterator only points: it must live as long."""
        last = start
        try:
            for entry in items:
                yield entry
                last = entry[0]
            self._require_end(last, bounds)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001
            _raise(self._path, error)
        finally:
            del items, bounds  # in this order

    def _require_end(self, last: bytes, bounds: ReadOptions) -> None:
        """The library's iterator ends alike at the end and at a damaged block; only a cursor of its own tells which it was."""
        rest = self._db.iter(bounds)
        try:
            rest.seek(last)
            if rest.valid() and rest.key() == last:
                rest.next()
            rest.status()
            if rest.valid():
                raise StoreError(self._path, "a scan ended before its end")
        finally:
            del rest  # a traceback would keep it, and with it the lock

    def write(self, writes: Sequence[Write]) -> None:
        """All or nothing; later writes of a key win."""
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in writes:
            if value is None:
                delete(key)
            else:
                put(key, value)
        self._call(self._db.write, batch)

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Drop start <= key < end."""
        if start < end:
            self._call(self._db.delete_range, start, end)

    def close(self) -> None:
        """Flush and let go of the files; scans that are still open end here (an open iterator would keep the lock).

        A store that has failed fails here again, mostly in other words: what was said first is what counts.
        """
        for scan in list(self._scans):
            scan.close()
        failed = self._failed
        try:
            self._call(self._db.close)
        except StoreError:
            if not failed:
                raise

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DbClosedError:
            raise
        except Exception as error:  # noqa: BLE001
            self._failed = True
            _raise(self._path, error)


def wipe(path: Path) -> None:
    """Remove a store's directory with all that is in it; no directory is fine."""
    if path.exists():
        shutil.rmtree(path)
