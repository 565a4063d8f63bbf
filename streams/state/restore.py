"""Bring a store up to the end of its changelog, and know how far it is.

Each write carries the offset that the store is good for, so that a lost tail of the local log loses rows and offset together. A copy that
belongs to another topic, that the topic no longer reaches back to, or that is so old that tombstones may have been compacted away meanwhile,
is emptied and read from the start. Takeover reads to the end once (`restore`); a standby goes on for ever (`Copy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from laxity.schemas.timing import Millis
from laxity.streams.state.changelog import STATE_VERSION, Row
from laxity.streams.state.keys import HOST, MAX_KEY, read_u64, u64
from laxity.streams.state.store import Store, Write

COPY_AGE_MS_MAX = 6 * 86_400_000  # a day less than delete.retention.ms of the changelogs (7 days)
REREADS_MAX = 3  # from the start, because retention overtook the reading: then something else deletes

_POSITION = HOST + b"position"
_STAMP = HOST + b"stamp"
_VERSION = (
    HOST + b"version"
)  # of the release that derived the local rows: another one may derive them otherwise

Derive = Callable[[Store, Sequence[Row]], Sequence[Write]]
"""Records of the changelog to writes, given the store as it is: the rows and what follows from them locally."""


class OffsetGone(Exception):  # noqa: N818 - a state of the world
    """The topic does not reach back (or forward) to the offset asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a store is good for: every committed record of `topic_id` below `next`."""

    topic_id: str
    next: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Committed records in order; `next` may lie beyond the last one (transaction markers). `ended`: the partition's end was met."""

    rows: Sequence[Row]
    next: int
    ended: bool = False


class Changelog(Protocol):
    """One partition of a changelog, read to the end that it has once reading arrives there."""

    topic_id: str

    def read(self, start: int | None) -> Iterator[Batch]:
        """From `start`, or from the first record with None; ends at the partition's end. Raises OffsetGone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done. `wiped` says why the old copy was thrown away; empty if it was not."""

    rows: int
    next: int
    wiped: str


def position(store: Store) -> Position | None:
    """How far the store is; None: nothing was ever restored into it."""
    raw = store.get(_POSITION)
    return None if raw is None else Position(topic_id=raw[8:].decode(), next=read_u64(raw, 0))


def position_writes(here: Position, now_ms: Millis) -> list[Write]:
    """Rows to put into the same write as the data. `now_ms`: when the store was at its changelog's end."""
    return [
        (_POSITION, u64(here.next) + here.topic_id.encode()),
        (_STAMP, u64(now_ms)),
        (_VERSION, u64(STATE_VERSION)),
    ]


class Copy:
    """A store that follows one changelog: what it holds is judged once, then batches are applied in order.

    Its stamp moves only where it meets the end: a copy that never got there is as old as its beginning, whatever was added to it since.
    """

    __slots__ = ("_derive", "_stamp_ms", "_store", "next", "topic_id", "wiped")

    def __init__(self, store: Store, topic_id: str, derive: Derive, now_ms: Millis) -> None:
        """Empties a store that is of no use; `wiped` says why, empty if it was not."""
        self._store = store
        self._derive = derive
        self.topic_id = topic_id
        self.wiped = _unusable(store, topic_id, now_ms)
        here = position(store)
        self.next = None if here is None else here.next  # offset to read from; None: from the first record
        self._stamp_ms = _stamp_ms(store, now_ms)
        if self.wiped:
            self.clear(now_ms)

    def clear(self, now_ms: Millis) -> None:
        """Begin again from nothing. The position goes first: a crash in between leaves rows without a position, which is emptied again."""
        self._store.write([(_POSITION, None)])
        self._store.delete_range(b"", MAX_KEY)
        self.next, self._stamp_ms = None, now_ms

    def apply(self, batch: Batch, now_ms: Millis) -> None:
        """Rows, what follows from them, and the position, in one write."""
        self.next = max(self.next or 0, batch.next)
        if batch.ended:
            self._stamp_ms = now_ms
        here = Position(topic_id=self.topic_id, next=self.next)
        rows = self._derive(self._store, batch.rows) if batch.rows else ()
        self._store.write([*rows, *position_writes(here, self._stamp_ms)])


def restore(
    store: Store,
    changelog: Changelog,
    derive: Derive,
    *,
    now_ms: Millis,
    progress: Callable[[int, int], None] = lambda _rows, _next: None,
) -> Restored:
    """Read what the store lacks. Raises OffsetGone where the topic loses its head faster than it can be read.

    `progress(rows so far, next offset)` is called after each batch and may raise to stop; what is written stays good.
    """
    copy = Copy(store, changelog.topic_id, derive, now_ms)
    wiped = copy.wiped
    for _ in range(REREADS_MAX):
        try:
            return Restored(rows=_read(copy, changelog, now_ms, progress), next=copy.next or 0, wiped=wiped)
        except OffsetGone as error:
            wiped = str(error) or "its offset is no longer in the topic"
            copy.clear(now_ms)
    return Restored(rows=_read(copy, changelog, now_ms, progress), next=copy.next or 0, wiped=wiped)


def _read(copy: Copy, changelog: Changelog, now_ms: Millis, progress: Callable[[int, int], None]) -> int:
    rows = 0
    for batch in changelog.read(copy.next):
        copy.apply(batch, now_ms)
        rows += len(batch.rows)
        progress(rows, batch.next)
    return rows


def _stamp_ms(store: Store, now_ms: Millis) -> Millis:
    """When the store was last at the end; a clock that stepped back counts as now."""
    raw = store.get(_STAMP)
    return now_ms if raw is None else min(now_ms, read_u64(raw, 0))


def _unusable(store: Store, topic_id: str, now_ms: Millis) -> str:
    here = position(store)
    if here is None:
        left = next(iter(store.scan(b"", MAX_KEY)), None)
        return "" if left is None else "rows without a position"
    if here.topic_id != topic_id:
        return f"it belongs to topic id {here.topic_id}, the topic has {topic_id}"
    if store.get(_VERSION) != u64(STATE_VERSION):
        return f"a release of another state version wrote it, this one has version {STATE_VERSION}"
    age_ms = now_ms - _stamp_ms(store, now_ms)
    if age_ms > COPY_AGE_MS_MAX:
        return f"it was whole {age_ms} ms ago, tombstones are kept {COPY_AGE_MS_MAX} ms at least"
    return ""
