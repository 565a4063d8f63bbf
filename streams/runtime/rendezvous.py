"""Who keeps a warm copy of which shard: everyone reads the same board and computes the same, so nothing is agreed upon. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from laxity.schemas.timing import Millis

SETTLE_MS = 3_000  # a wish must last so long: names come and go on the board during every hand-over

Processes = Mapping[str, Collection[int]]
"""Living processes by name, each with the shards that it runs."""


def standbys(shard: int, processes: Processes, count: int) -> list[str]:
    """The first `count` of those that do not run the shard, by a hash of both: one that comes or goes moves only copies of its own."""

    def rank(process: str) -> bytes:
        return hashlib.sha256(f"{process}/{shard}".encode()).digest()

    return sorted((name for name, runs in processes.items() if shard not in runs), key=rank)[:count]


class Wishes:
    """Which shards this process is to copy: what the ranking has said for SETTLE_MS without a break."""

    def __init__(self, me: str, *, shards: int, count: int) -> None:
        self._me, self._shards, self._count = me, shards, count
        self._since: dict[int, tuple[bool, Millis]] = {}
        self._settled: set[int] = set()

    def settled(self, processes: Processes, now_ms: Millis) -> frozenset[int]:
        """Given who lives now, by a monotonic clock."""
        for shard in range(self._shards):
            wish = self._me in standbys(shard, processes, self._count)
            said, since_ms = self._since.get(shard, (not wish, now_ms))
            if said is not wish:
                since_ms = now_ms
            self._since[shard] = (wish, since_ms)
            if now_ms - since_ms >= SETTLE_MS:
                (self._settled.add if wish else self._settled.discard)(shard)
        return frozenset(self._settled)
