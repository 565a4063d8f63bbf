"""The offset to commit for one partition: everything below it is finished.

Only unfinished offsets are kept, so memory is bounded by what is unfinished, however long the oldest of them takes. Offsets that were never
received (transaction markers, aborted records) lie between received ones and count as finished.
"""

from __future__ import annotations

from heapq import heappop, heappush


class Watermark:
    """Contiguous low-water mark of finished work."""

    def __init__(self) -> None:
        self._unfinished: set[int] = set()
        self._order: list[
            int
        ] = []  # heap of unfinished offsets; finished ones leave it once they are the smallest
        self._next = -1  # one after the last received

    @property
    def unfinished(self) -> int:
        """How many received offsets are not finished."""
        return len(self._unfinished)

    @property
    def position(self) -> int:
        """The offset to commit; -1 before anything was received."""
        while self._order and self._order[0] not in self._unfinished:
            heappop(self._order)
        return self._order[0] if self._order else self._next

    def received(self, offset: int) -> None:
        """A record was read. Offsets of a partition only grow until it is assigned anew."""
        assert offset >= self._next, f"offset {offset} after {self._next - 1}: an assignment has its own mark"
        self._next = offset + 1
        self._unfinished.add(offset)
        heappush(self._order, offset)

    def finished(self, offset: int) -> None:
        """Its outcome is durable. Repeats do nothing."""
        self._unfinished.discard(offset)
