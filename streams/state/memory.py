"""A store of sorted keys in memory, for tests, the driver and the simulator: the same contract as `rocks.py`, nothing on disk."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from laxity.streams.state.store import Write


class MemoryStore:
    """Ordered bytes to bytes, in one process's memory."""

    __slots__ = ("_keys", "_rows")

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        return self._rows.get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, ascending, as of the call."""
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        rows = self._rows
        return ((key, rows[key]) for key in keys)

    def write(self, writes: Sequence[Write]) -> None:
        """All or nothing; later writes of a key win."""
        for key, value in writes:
            if value is None:
                if self._rows.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
                continue
            if key not in self._rows:
                insort(self._keys, key)
            self._rows[key] = value

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Drop start <= key < end."""
        first, last = bisect_left(self._keys, start), bisect_left(self._keys, end)
        for key in self._keys[first:last]:
            del self._rows[key]
        del self._keys[first:last]

    def close(self) -> None:
        """Nothing to flush. The rows stay readable, so that a test can look at them."""
