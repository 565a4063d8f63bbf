"""Restoring from a changelog, into every store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from laxity.streams.state import restore as restoring
from laxity.streams.state.changelog import STATE_VERSION, Row
from laxity.streams.state.restore import (
    COPY_AGE_MS_MAX,
    REREADS_MAX,
    Batch,
    Copy,
    OffsetGone,
    Position,
    position,
    position_writes,
    restore,
)
from laxity.streams.state.store import Store, Write

NOW_MS = 1_700_000_000_000


@dataclass
class Log:
    """A changelog in memory: offset -> row; offsets may have gaps, as after compaction and markers."""

    topic_id: str = "id-1"
    rows: dict[int, Row] = field(default_factory=dict)
    first: int = 0
    end: int = 0
    batch_size: int = 2
    reads: list[int | None] = field(default_factory=list)

    def add(self, key: bytes, value: bytes | None, *, gap: int = 0) -> None:
        self.rows[self.end + gap] = (key, value)
        self.end += gap + 1

    def read(self, start: int | None) -> Iterator[Batch]:
        self.reads.append(start)
        if start is not None and not self.first <= start <= self.end:
            raise OffsetGone(f"offset {start} is not within {self.first} to {self.end}")
        todo = [offset for offset in sorted(self.rows) if offset >= (start or self.first)]
        for at in range(0, len(todo), self.batch_size):
            part = todo[at : at + self.batch_size]
            yield Batch(rows=[self.rows[offset] for offset in part], next=part[-1] + 1)
        yield Batch(rows=(), next=self.end, ended=True)


def derive(store: Store, rows: Sequence[Row]) -> list[Write]:
    """The rows, and an index from value to key that must follow the store as it is."""
    writes: list[Write] = []
    now = {key: store.get(b"d" + key) for key, _ in rows}
    for key, value in rows:
        if now[key] is not None:
            writes.append((b"i" + now[key], None))  # type: ignore[operator]
        if value is not None:
            writes.append((b"i" + value, key))
        writes.append((b"d" + key, value))
        now[key] = value
    return writes


def contents(store: Store) -> dict[bytes, bytes]:
    return dict(store.scan(b"", b"~"))


def test_an_empty_changelog_leaves_a_position(store: Store) -> None:
    done = restore(store, Log(), derive, now_ms=NOW_MS)
    assert (done.rows, done.next, done.wiped) == (0, 0, "")
    assert position(store) == Position(topic_id="id-1", next=0)


def test_only_what_is_missing_is_read(store: Store) -> None:
    log = Log()
    for n in range(5):
        log.add(b"k%d" % n, b"v%d" % n)
    restore(store, log, derive, now_ms=NOW_MS)
    log.add(b"k0", None)
    log.add(b"k1", b"new")
    done = restore(store, log, derive, now_ms=NOW_MS)
    assert (done.rows, log.reads) == (2, [None, 5])
    assert contents(store) == {
        b"dk1": b"new", b"dk2": b"v2", b"dk3": b"v3", b"dk4": b"v4",
        b"inew": b"k1", b"iv2": b"k2", b"iv3": b"k3", b"iv4": b"k4",
    }  # fmt: skip


def test_markers_at_the_end_move_the_position(store: Store) -> None:
    log = Log()
    log.add(b"k", b"v")
    log.end += 7
    assert restore(store, log, derive, now_ms=NOW_MS).next == 8
    assert position(store) == Position(topic_id="id-1", next=8)
    assert restore(store, log, derive, now_ms=NOW_MS).rows == 0


def test_a_topic_made_anew_is_read_from_its_start(store: Store) -> None:
    old, new = Log(), Log(topic_id="id-2")
    for n in range(3):
        old.add(b"old%d" % n, b"v%d" % n)
    new.add(b"new", b"w")
    restore(store, old, derive, now_ms=NOW_MS)
    done = restore(store, new, derive, now_ms=NOW_MS)
    assert "id-2" in done.wiped
    assert contents(store) == {b"dnew": b"w", b"iw": b"new"}


@pytest.mark.parametrize("first", [4, 0])
def test_an_offset_out_of_range_rebuilds(store: Store, first: int) -> None:
    log = Log()
    for n in range(3):
        log.add(b"k%d" % n, b"v%d" % n)
    restore(store, log, derive, now_ms=NOW_MS)
    log.rows = {5: (b"k9", b"v9")} if first else {0: (b"k9", b"v9")}
    log.first, log.end = first, 6 if first else 1
    done = restore(store, log, derive, now_ms=NOW_MS)
    assert "not within" in done.wiped
    assert contents(store) == {b"dk9": b"v9", b"iv9": b"k9"}


def test_a_copy_older_than_the_tombstones_is_not_trusted(store: Store) -> None:
    log = Log()
    log.add(b"gone", b"v")
    restore(store, log, derive, now_ms=NOW_MS)
    log.rows, log.end = {}, 2  # deleted, and the tombstone compacted away
    done = restore(store, log, derive, now_ms=NOW_MS + COPY_AGE_MS_MAX + 1)
    assert "tombstones" in done.wiped
    assert contents(store) == {}


def test_a_copy_that_never_met_the_end_is_as_old_as_its_beginning(store: Store) -> None:
    """Read on a little every five days it would pass a tombstone that is gone by then."""
    log, day_ms = Log(), 86_400_000
    for n in range(6):
        log.add(b"k%d" % n, b"v")
    copy = Copy(store, log.topic_id, derive, NOW_MS)
    batches = log.read(None)
    copy.apply(next(batches), NOW_MS)
    later = Copy(store, log.topic_id, derive, NOW_MS + 5 * day_ms)
    assert (later.wiped, later.next) == ("", 2)
    later.apply(next(batches), NOW_MS + 5 * day_ms)
    assert "tombstones" in Copy(store, log.topic_id, derive, NOW_MS + 7 * day_ms).wiped
    assert contents(store) == {}


def test_one_that_met_the_end_is_young_again(store: Store) -> None:
    log, day_ms = Log(), 86_400_000
    log.add(b"k", b"v")
    restore(store, log, derive, now_ms=NOW_MS)
    restore(store, log, derive, now_ms=NOW_MS + 5 * day_ms)
    assert restore(store, log, derive, now_ms=NOW_MS + 10 * day_ms).wiped == ""


@dataclass
class Shrinking(Log):
    """Retention takes the head away while it is read, so many times."""

    losses: int = 0

    def read(self, start: int | None) -> Iterator[Batch]:
        batches = super().read(start)
        yield next(batches)
        if self.losses:
            self.losses -= 1
            self.first += 1
            raise OffsetGone(f"offset {self.first} is gone")
        yield from batches


def test_a_head_that_is_deleted_under_the_reader_is_read_again_from_the_new_one(store: Store) -> None:
    log = Shrinking(losses=REREADS_MAX)
    for n in range(9):
        log.add(b"k%d" % n, b"v%d" % n)
    done = restore(store, log, derive, now_ms=NOW_MS)
    assert done.wiped == f"offset {REREADS_MAX} is gone"
    assert {key for key in contents(store) if key[:1] == b"d"} == {b"dk%d" % n for n in range(REREADS_MAX, 9)}


def test_one_that_is_deleted_faster_than_it_is_read_is_an_error_not_a_loop(store: Store) -> None:
    log = Shrinking(losses=REREADS_MAX + 1)
    for n in range(9):
        log.add(b"k%d" % n, b"v%d" % n)
    with pytest.raises(OffsetGone):
        restore(store, log, derive, now_ms=NOW_MS)


def test_a_young_copy_is_kept_when_the_clock_stepped_back(store: Store) -> None:
    log = Log()
    log.add(b"k", b"v")
    restore(store, log, derive, now_ms=NOW_MS)
    assert restore(store, log, derive, now_ms=NOW_MS - 10 * COPY_AGE_MS_MAX).wiped == ""


def test_rows_without_a_position_are_not_trusted(store: Store) -> None:
    store.write([(b"drow", b"of unknown age")])
    log = Log()
    log.add(b"k", b"v")
    assert restore(store, log, derive, now_ms=NOW_MS).wiped == "rows without a position"
    assert contents(store) == {b"dk": b"v", b"iv": b"k"}


def test_a_restore_that_was_stopped_goes_on_where_it_was(store: Store) -> None:
    log = Log()
    for n in range(7):
        log.add(b"k%d" % n, b"v%d" % n)

    def stop(rows: int, _next: int) -> None:
        if rows == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(store, log, derive, now_ms=NOW_MS, progress=stop)
    assert position(store) == Position(topic_id="id-1", next=4)
    assert restore(store, log, derive, now_ms=NOW_MS).rows == 3
    assert len(contents(store)) == 14


def test_a_copy_that_another_state_version_derived_is_made_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its local rows, or those that a standby of an older release derived from newer rows, may mean something else."""
    log = Log()
    log.add(b"k", b"v")
    restore(store, log, derive, now_ms=NOW_MS)
    monkeypatch.setattr(restoring, "STATE_VERSION", STATE_VERSION + 1)
    log.add(b"k2", b"v")
    done = restore(store, log, derive, now_ms=NOW_MS)
    assert "state version" in done.wiped
    assert done.rows == 2
    assert restore(store, log, derive, now_ms=NOW_MS).wiped == ""


def test_the_position_is_a_number_of_its_own_topic(store: Store) -> None:
    store.write(position_writes(Position(topic_id="Ab-_é", next=2**40), NOW_MS))
    assert position(store) == Position(topic_id="Ab-_é", next=2**40)
