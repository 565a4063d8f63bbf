"""Timers: release times, retries, latest starts, and the one behind each wake-up of a keyed slot; a bounded number per batch."""

from __future__ import annotations

from collections.abc import Iterable

from laxity.schemas.records import ShardRow
from laxity.schemas.serde import decode_row
from laxity.streams.batch import Batch
from laxity.streams.dispatch import KEYED_SAFETY_MS
from laxity.streams.lifecycle import Cause, State
from laxity.streams.reasons import Reason
from laxity.streams.state import index, keys
from laxity.streams.state.front import Front
from laxity.streams.state.store import Store, Write

TIMERS_PER_BATCH_MAX = (
    256  # with the records of a batch some thousand rows: a commit well within its interval
)


class Timers:
    """All timers of a shard in the order of their instants, a bounded front in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._front = Front(store, keys.TIMER)

    def load(self) -> None:
        """Start over from the store.

        Timers behind keyed slots go: no task waits for one any more (see ReadyTable.load), and a store restored from the changelog has none,
        so that a warm and a cold start go on alike.
        """
        self._drop_keyed()
        self._front = Front(self._store, keys.TIMER)

    def _drop_keyed(self) -> None:
        """They lie within two intervals of the last batch."""
        raw = self._store.get(keys.state_key(keys.SHARD, keys.SHARD_KEY))
        if raw is None:
            return
        end = keys.timer_key(decode_row(ShardRow, raw).now_ms + 2 * KEYED_SAFETY_MS + 1, b"", "")
        timers = self._store.scan(keys.TIMER, end)
        keyed: list[Write] = [(key, None) for key, _ in timers if key[9:10] == index.KEYED]
        if keyed:
            self._store.write(keyed)

    def due(self, now_ms: int) -> list[tuple[bytes, bytes, str]]:
        """Committed timers that are due, at most TIMERS_PER_BATCH_MAX: key, kind, name."""
        found: list[tuple[bytes, bytes, str]] = []
        for key, _ in self._front:
            if keys.read_u64(key, 1) > now_ms or len(found) >= TIMERS_PER_BATCH_MAX:
                break
            found.append((key, key[9:10], key[10:].decode()))
        return found

    def next_ms(self) -> int | None:
        """When the first timer is due."""
        first = next(iter(self._front), None)
        return None if first is None else keys.read_u64(first[0], 1)

    def apply(self, writes: Iterable[Write]) -> None:
        """Committed writes."""
        for key, value in writes:
            if key[:1] == keys.TIMER:
                self._front.remove(key) if value is None else self._front.insert(key, value)


def fire(batch: Batch, due: Iterable[tuple[bytes, bytes, str]]) -> list[tuple[bytes, str]]:
    """Let due timers act; returns those of keyed slots, with their keys. A task's own timers go with its state."""
    keyed = []
    for key, kind, name in due:
        if kind == index.KEYED:
            keyed.append((key, name))
            continue
        row = batch.tables.task(name)
        if row is None or key not in index.entries(name, row):
            continue  # an input of this very batch has moved the task on
        if kind == index.EXPIRE:
            batch.end(name, row, Cause.EXPIRE, Reason.LATEST_START_PASSED)
        elif row.state == State.DELAYED:
            reason = Reason.RETRY if row.attempt or row.bounces else Reason.RELEASED
            batch.move(name, row, Cause.RELEASE, reason, ready_ms=batch.now_ms, due_ms=0)
    return keyed
