"""The head of an ordered index, in memory and bounded; the rest stays in the store.

A seek from the front of a RocksDB range walks over the tombstones of everything popped before (735 pops/s against 730,000 from a
remembered position), so the front remembers how far it has read and goes on from there. It mirrors the committed store: it is
changed only after the store was written.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from laxity.streams.state.store import Store

FRONT_MAX = 2048  # some 200 KiB per lane and tier; a refill reads half of it in one seek

Entry = tuple[bytes, bytes]


class Front:
    """Entries of one prefix in key order: those below `_next` are here, the others in the store."""

    __slots__ = ("_end", "_entries", "_next", "_store")

    def __init__(self, store: Store, prefix: bytes, position: bytes = b"") -> None:
        """`position`: a lower bound of all live keys, where known."""
        self._store = store
        self._end = prefix + b"\xff" * 40
        self._entries: list[Entry] = []
        self._next = max(prefix, position)

    def __iter__(self) -> Iterator[Entry]:
        """Ascending, reading on from the store where needed. Do not change the front meanwhile."""
        at = 0
        while True:
            while at < len(self._entries):
                yield self._entries[at]
                at += 1
            if self._next == self._end:
                return
            self._refill()

    def _refill(self) -> None:
        room = FRONT_MAX // 2
        for entry in self._store.scan(self._next, self._end):
            self._entries.append(entry)
            room -= 1
            if not room:
                self._next = entry[0] + b"\x00"
                return
        self._next = self._end

    def insert(self, key: bytes, value: bytes) -> None:
        """A committed insert."""
        if key >= self._next:
            return
        place = bisect_left(self._entries, (key, b""))
        if place < len(self._entries) and self._entries[place][0] == key:
            self._entries[place] = (key, value)
            return
        insort(self._entries, (key, value))
        if len(self._entries) > FRONT_MAX:
            del self._entries[FRONT_MAX // 2 :]
            self._next = self._entries[-1][0] + b"\x00"

    def remove(self, key: bytes) -> None:
        """A committed delete; of a key that is not here it is a no-op."""
        place = bisect_left(self._entries, (key, b""))
        if place < len(self._entries) and self._entries[place][0] == key:
            del self._entries[place]

    def lower_bound(self) -> bytes:
        """No live key of the range is below this: where a restart may seek from."""
        return self._entries[0][0] if self._entries else self._next
