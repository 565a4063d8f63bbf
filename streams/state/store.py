"""The seam to the ordered key-value store: `memory.py` for tests, `rocks.py` for work; one conformance suite for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

Write = tuple[bytes, bytes | None]
"""Key and value; None deletes."""


class Store(Protocol):
    """Ordered bytes to bytes. It never holds anything that Kafka has not committed."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        ...

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, ascending, as of the call. Exhaust or close it before the next write."""
        ...

    def write(self, writes: Sequence[Write]) -> None:
        """All or nothing; later writes of a key win."""
        ...

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Drop start <= key < end."""
        ...

    def close(self) -> None:
        """Flush and let go of the files; further calls are bugs."""
        ...
