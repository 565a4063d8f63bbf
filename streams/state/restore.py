"""Bring a store up to the end of its changelog, and know how far it is.

Each write carries the offset that the store is good for, so that a lost tail of the local log loses rows and offset together. A copy that
belongs to another topic, that the topic no longer reaches back to, or that is so old that tombstones may have been compacted away meanwhile,
is emptied and read from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from laxity.schemas.timing import Millis
from laxity.streams.state.changelog import Row
from laxity.streams.state.keys import HOST, MAX_KEY, read_u64, u64
from laxity.streams.state.store import Store, Write

COPY_AGE_MS_MAX = 6 * 86_400_000  # a day less than delete.retention.ms of the changelogs (7 days)

_POSITION = HOST + b"position"
_STAMP = HOST + b"stamp"

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
    """Committed records in order; `next` may lie beyond the last one (transaction markers)."""

    rows: Sequence[Row]
    next: int


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
    """Rows to put into the same write as the data."""
    return [(_POSITION, u64(here.next) + here.topic_id.encode()), (_STAMP, u64(now_ms))]


def stamp_age_ms(store: Store, now_ms: Millis) -> Millis:
    """How long ago the store was last written; a clock that stepped back counts as 0."""
    raw = store.get(_STAMP)
    return 0 if raw is None else max(0, now_ms - read_u64(raw, 0))


def restore(
    store: Store,
    changelog: Changelog,
    derive: Derive,
    *,
    now_ms: Millis,
    progress: Callable[[int, int], None] = lambda _rows, _next: None,
) -> Restored:
    """Read what the store lacks. `progress(rows so far, next offset)` is called after each batch and may raise to stop; what is written stays good."""
    wiped = _unusable(store, changelog, now_ms)
    if not wiped:
        try:
            return _read(store, changelog, derive, now_ms=now_ms, progress=progress, wiped="")
        except OffsetGone as error:
            wiped = str(error) or "its offset is no longer in the topic"
    _empty(store)
    return _read(store, changelog, derive, now_ms=now_ms, progress=progress, wiped=wiped)


def _unusable(store: Store, changelog: Changelog, now_ms: Millis) -> str:
    here = position(store)
    if here is None:
        left = next(iter(store.scan(b"", MAX_KEY)), None)
        return "" if left is None else "rows without a position"
    if here.topic_id != changelog.topic_id:
        return f"it belongs to topic id {here.topic_id}, the topic has {changelog.topic_id}"
    age_ms = stamp_age_ms(store, now_ms)
    if age_ms > COPY_AGE_MS_MAX:
        return f"it is {age_ms} ms old, tombstones are kept {COPY_AGE_MS_MAX} ms at least"
    return ""


def _empty(store: Store) -> None:
    """The position goes first: a crash in between leaves rows without a position, which is emptied again."""
    store.write([(_POSITION, None)])
    store.delete_range(b"", MAX_KEY)


def _read(
    store: Store,
    changelog: Changelog,
    derive: Derive,
    *,
    now_ms: Millis,
    progress: Callable[[int, int], None],
    wiped: str,
) -> Restored:
    here = position(store)
    rows, end = 0, 0 if here is None else here.next
    for batch in changelog.read(None if here is None else here.next):
        end = max(end, batch.next)
        done = Position(topic_id=changelog.topic_id, next=end)
        store.write([*derive(store, batch.rows), *position_writes(done, now_ms)])
        rows += len(batch.rows)
        progress(rows, end)
    return Restored(rows=rows, next=end, wiped=wiped)
