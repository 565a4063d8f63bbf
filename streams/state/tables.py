"""The tables of a shard as the stages see them: the committed store under an overlay of this batch's rows.

The overlay becomes changes and local writes at the end of a batch; dropping it is all that an abort needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from laxity.schemas.limits import KEYS_KEPT_MS
from laxity.schemas.records import KeyRow, Original, PayloadRow, SettleRow, ShardRow, TaskRow
from laxity.schemas.serde import decode_row, encode_row
from laxity.streams.effects import Change
from laxity.streams.state import index, keys
from laxity.streams.state.store import Store, Write


class Tables:
    """Reads see this batch's writes; nothing reaches the stores before the commit."""

    def __init__(self, store: Store, key_store: Store) -> None:
        self._store = store
        self._keys = key_store
        self._tasks: dict[str, TaskRow | None] = {}
        self._before: dict[str, TaskRow | None] = {}
        self._payloads: dict[str, bytes | None] = {}
        self._settles: dict[str, SettleRow | None] = {}
        self._ended: dict[str, KeyRow] = {}
        self._buckets: list[bytes] | None = None

    def drop(self) -> None:
        """Forget the overlay, after a commit or an abort."""
        for overlay in (self._tasks, self._before, self._payloads, self._settles, self._ended):
            overlay.clear()
        self._buckets = None

    # tasks

    def task(self, task_id: str) -> TaskRow | None:
        """A live task, or None."""
        if task_id in self._tasks:
            return self._tasks[task_id]
        return self._committed(task_id)

    def _committed(self, task_id: str) -> TaskRow | None:
        if task_id not in self._before:
            raw = self._store.get(keys.state_key(keys.TASK, task_id.encode()))
            self._before[task_id] = None if raw is None else decode_row(TaskRow, raw)
        return self._before[task_id]

    def put_task(self, task_id: str, row: TaskRow | None) -> None:
        """Set or, with None, end a live task."""
        self._committed(task_id)
        self._tasks[task_id] = row

    def leased(self) -> Iterator[tuple[str, TaskRow]]:
        """Committed tasks with a reservation behind them: for reconcile; needs an empty overlay."""
        for key, _ in self._store.scan(keys.LEASED, keys.LEASED + keys.MAX_KEY):
            task_id = key[1:].decode()
            row = self.task(task_id)
            assert row is not None, f"index names {task_id}, the table does not"
            yield task_id, row

    # payloads

    def original(self, task_id: str) -> Original:
        """The trigger as it was read. A live task without one is a bug."""
        raw = self._payloads.get(task_id) or self._store.get(keys.state_key(keys.PAYLOAD, task_id.encode()))
        assert raw is not None, f"task {task_id} has no payload row"
        return decode_row(PayloadRow, raw).original

    def put_original(self, task_id: str, original: Original | None) -> None:
        """Set once, dropped with the task."""
        self._payloads[task_id] = None if original is None else encode_row(PayloadRow(original=original))

    # settlements

    def settles(self) -> Iterator[tuple[str, SettleRow]]:
        """Committed settlements that the ledger has yet to acknowledge: for reconcile and load; needs an empty overlay."""
        prefix = keys.state_key(keys.SETTLE, b"")
        for key, raw in self._store.scan(prefix, prefix + b"\xff"):
            yield key[1:].decode(), decode_row(SettleRow, raw)

    def put_settle(self, reservation: str, row: SettleRow | None) -> None:
        """Owe a settlement or, with None, strike it off."""
        self._settles[reservation] = row

    # idempotency keys

    def ended(self, task_id: str, now_ms: int) -> KeyRow | None:
        """What became of an ended task, while its key is remembered."""
        row = self._ended.get(task_id) or self._read_key(task_id)
        return row if row is not None and row.ended_ms > now_ms - KEYS_KEPT_MS else None

    def _read_key(self, task_id: str) -> KeyRow | None:
        if self._buckets is None:
            self._buckets = keys.key_buckets(self._keys)
        for bucket in self._buckets:
            raw = self._keys.get(bucket + task_id.encode())
            if raw is not None:
                return decode_row(KeyRow, raw)
        return None

    def put_ended(self, task_id: str, row: KeyRow) -> None:
        """Remember how a task ended."""
        self._ended[task_id] = row

    # the shard's own row

    def shard(self) -> ShardRow | None:
        """As committed."""
        raw = self._store.get(keys.state_key(keys.SHARD, keys.SHARD_KEY))
        return None if raw is None else decode_row(ShardRow, raw)

    # the end of a batch

    def touched(self) -> set[str]:
        """Tasks that this batch has changed."""
        return set(self._tasks)

    def task_changes(self) -> Iterable[tuple[str, TaskRow | None]]:
        """The tasks that this batch has changed, as they are now."""
        return self._tasks.items()

    def settle_changes(self) -> Iterable[tuple[str, SettleRow | None]]:
        """The settlements that this batch owes or strikes off."""
        return self._settles.items()

    def index_writes(self) -> list[Write]:
        """Index rows that follow from the overlay so far."""
        writes: list[Write] = []
        for task_id, after in self._tasks.items():
            writes += index.derive(task_id, self._before[task_id], after)
        return writes

    def changes(self, shard: ShardRow) -> tuple[list[Change], list[Change]]:
        """Rows for topics `state` and `keys`, in the order in which they were first touched."""
        state = [*self._task_rows(), *self._payload_rows(), *self._settle_rows()]
        state.append(Change(table=keys.SHARD, key=keys.SHARD_KEY, value=encode_row(shard)))
        ended = [
            Change(table=keys.KEY, key=t.encode(), value=encode_row(row)) for t, row in self._ended.items()
        ]
        return state, ended

    def _task_rows(self) -> Iterable[Change]:
        for task_id, row in self._tasks.items():
            if row is not None or self._before[task_id] is not None:
                value = None if row is None else encode_row(row)
                yield Change(table=keys.TASK, key=task_id.encode(), value=value)

    def _payload_rows(self) -> Iterable[Change]:
        for task_id, raw in self._payloads.items():
            if raw is not None or self._before.get(task_id) is not None:
                yield Change(table=keys.PAYLOAD, key=task_id.encode(), value=raw)

    def _settle_rows(self) -> Iterable[Change]:
        for reservation, row in self._settles.items():
            value = None if row is None else encode_row(row)
            yield Change(table=keys.SETTLE, key=reservation.encode(), value=value)


def restored(store: Store, changes: Iterable[Change]) -> list[Write]:
    """Writes for rows read from topic `state`: the rows and the index that follows, given the store as it is.

    Remembered positions are dropped: they may lie above a restored row.
    """
    writes: list[Write] = []
    latest: dict[bytes, TaskRow | None] = {}
    for change in changes:
        writes.append(keys.state_write(change))
        if change.table != keys.TASK:
            continue
        if change.key not in latest:
            raw = store.get(keys.state_key(keys.TASK, change.key))
            latest[change.key] = None if raw is None else decode_row(TaskRow, raw)
        after = None if change.value is None else decode_row(TaskRow, change.value)
        writes += index.derive(change.key.decode(), latest[change.key], after)
        latest[change.key] = after
    writes += [(key, None) for key, _ in store.scan(keys.POSITION, keys.POSITION + keys.MAX_KEY)]
    return writes
