"""The front of an ordered index against a plain sorted map: spills, refills and reloads skip nothing and repeat nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.streams.state import front
from laxity.streams.state.front import Front
from laxity.streams.state.memory import MemoryStore

PREFIX = b"R-lane-2"
SMALL = 8
NUMBERS = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.lists(NUMBERS, min_size=1, max_size=12)),
        st.tuples(st.just("remove"), st.lists(NUMBERS, min_size=1, max_size=12)),
        st.tuples(st.just("pop"), st.integers(1, 12)),
        st.tuples(st.just("look"), st.integers(0, 40)),
        st.tuples(st.just("reload"), st.booleans()),
    ),
    max_size=30,
)


def key(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


@settings(deadline=None)
@given(STEPS)
def test_a_front_is_the_sorted_map_it_stands_for(steps: list[tuple[str, object]]) -> None:
    with patch.object(front, "FRONT_MAX", SMALL):
        store = MemoryStore()
        store.write([(b"R-lane-1\xff", b"below"), (b"R-lane-3", b"above")])
        model: dict[bytes, bytes] = {}
        found = Front(store, PREFIX)
        for count, (what, how) in enumerate(steps):
            if what == "insert":
                assert isinstance(how, list)
                for number in how:
                    _write(store, model, found, key(number), b"%d" % count)
            elif what == "remove":
                assert isinstance(how, list)
                for number in how:
                    _write(store, model, found, key(number), None)
            elif what == "pop":
                assert isinstance(how, int)
                for popped, _ in list(islice(found, how)):
                    _write(store, model, found, popped, None)
            elif what == "look":
                assert isinstance(how, int)
                assert list(islice(found, how)) == sorted(model.items())[:how]
            else:
                position = found.lower_bound() if how else b""
                found = Front(store, PREFIX, position)
            assert all(k >= found.lower_bound() for k in model), "a restart from here would skip a live key"
        assert list(found) == sorted(model.items())


def _write(
    store: MemoryStore, model: dict[bytes, bytes], found: Front, at: bytes, value: bytes | None
) -> None:
    store.write([(at, value)])
    if value is None:
        model.pop(at, None)
        found.remove(at)
    else:
        model[at] = value
        found.insert(at, value)


def test_a_hundred_thousand_entries_are_popped_in_order_from_bounded_memory() -> None:
    store, count = MemoryStore(), 100_000
    store.write([(key(i), b"") for i in range(count)])
    found = Front(store, PREFIX)
    most = at = 0
    while True:
        batch = list(islice(found, 512))
        if not batch:
            break
        assert [k for k, _ in batch] == [key(i) for i in range(at, at + len(batch))]
        at += len(batch)
        most = max(most, len(found._entries))
        store.write([(k, None) for k, _ in batch])
        for popped, _ in batch:
            found.remove(popped)
    assert at == count
    assert most <= 2 * front.FRONT_MAX
    for i in range(10_000):  # urgent inserts into a front that has read to the end
        store.write([(key(i), b"")])
        found.insert(key(i), b"")
        assert len(found._entries) <= front.FRONT_MAX
    assert [k for k, _ in islice(found, 3)] == [key(0), key(1), key(2)]


def test_a_seek_goes_on_where_it_stopped() -> None:
    """From the front it would walk over everything popped before."""
    starts: list[bytes] = []

    class Watched(MemoryStore):
        def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
            starts.append(start)
            return super().scan(start, end)

    store = Watched()
    store.write([(key(i), b"") for i in range(10_000)])
    found = Front(store, PREFIX)
    for _ in range(10_000):
        popped = next(iter(found))[0]
        store.write([(popped, None)])
        found.remove(popped)
    assert len(starts) <= 2 + 10_000 // (front.FRONT_MAX // 2)
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts)


def test_the_very_key_that_a_reload_begins_at_is_not_seen_twice() -> None:
    """A task that was parked comes back under the key it had."""
    store = MemoryStore()
    store.write([(key(5), b"old"), (key(7), b"")])
    found = Front(store, PREFIX, key(5))
    store.write([(key(5), b"new")])
    found.insert(key(5), b"new")
    assert list(found) == [(key(5), b"new"), (key(7), b"")]
