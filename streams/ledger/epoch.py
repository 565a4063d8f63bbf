"""The twin's memory of who may speak: the epoch, the server that began it, the owners of the shards. `lua/base.lua` has the same."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Epoch:
    """An epoch ends when the server forgets its key, or another server process answers.

    `owners`: shard -> highest owner epoch that spoke; `reports`: shard -> owner epoch under which it reconciled in this epoch.
    """

    key: str = ""
    run_id: str = ""
    begun_ms: int = 0
    sequence: int = 0
    owners: dict[int, int] = field(default_factory=dict)
    reports: dict[int, int] = field(default_factory=dict)

    def name(self) -> str:
        """Key and run_id in one; "" before the first."""
        return f"{self.key}/{self.run_id}" if self.key else ""

    def remembers(self, run_id: str) -> bool:
        """Whether the server with this run_id began it."""
        return bool(self.key) and self.run_id == run_id

    def begin(self, key: str, run_id: str, now_ms: int) -> None:
        """A new one: nobody has reported."""
        self.key, self.run_id, self.begun_ms = key, run_id, now_ms
        self.reports.clear()

    def own(self, shard: int, owner_epoch: int) -> bool:
        """False: a higher owner epoch has spoken for the shard."""
        if owner_epoch < self.owners.get(shard, 0):
            return False
        self.owners[shard] = owner_epoch
        return True

    def gate(self, shard: int, owner_epoch: int, run_id: str) -> str:
        """What a shard's decision may do: ok | recovering | fenced; one that may not has its place in the order here and now."""
        if not self.remembers(run_id):
            return "recovering"
        status = "ok" if self.reports.get(shard) == owner_epoch else "recovering"
        if not self.own(shard, owner_epoch):
            status = "fenced"
        if status != "ok":
            self.advance()
        return status

    def opens_ms(self, *, shards: int, ttl_ms: int, now_ms: int) -> int:
        """0: all shards have reported, or every lease of before has lapsed; else when the latter is so."""
        opens_ms = self.begun_ms + ttl_ms
        return 0 if len(self.reports) >= shards or now_ms >= opens_ms else opens_ms

    def advance(self) -> None:
        """One more decision in the order of all."""
        self.sequence += bool(self.key)
