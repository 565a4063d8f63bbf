"""The contract of `Store`, for every implementation."""

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laxity.streams.state.store import Store, Write


def rows(store: Store, start: bytes = b"", end: bytes = b"\xff" * 40) -> list[tuple[bytes, bytes]]:
    return list(store.scan(start, end))


def test_a_missing_key_is_none(store: Store) -> None:
    assert store.get(b"nothing") is None
    assert rows(store) == []


def test_an_empty_value_is_a_value(store: Store) -> None:
    store.write([(b"k", b"")])
    assert store.get(b"k") == b""
    assert rows(store) == [(b"k", b"")]


def test_later_writes_of_a_key_win(store: Store) -> None:
    store.write([(b"k", b"1"), (b"k", None), (b"k", b"2"), (b"gone", b"1"), (b"gone", None)])
    assert rows(store) == [(b"k", b"2")]


def test_deleting_what_is_not_there_is_no_error(store: Store) -> None:
    store.write([(b"nothing", None)])
    assert rows(store) == []


def test_keys_are_ordered_as_unsigned_bytes(store: Store) -> None:
    keys = [b"\x00", b"\x00\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff\x00", b"\xff\xff"]
    store.write([(key, b"v") for key in reversed(keys)])
    assert [key for key, _ in rows(store)] == keys


def test_a_scan_includes_its_start_and_excludes_its_end(store: Store) -> None:
    store.write([(key, key) for key in (b"a", b"b", b"b\x00", b"c")])
    assert [key for key, _ in rows(store, b"b", b"c")] == [b"b", b"b\x00"]
    assert rows(store, b"b", b"b") == []
    assert rows(store, b"c", b"b") == []


def test_a_scan_outlives_its_bounds(store: Store) -> None:
    """RocksDB's iterator only points at the upper bound: once that memory was used again it ended anywhere."""
    keys = [b"D%032x" % number for number in range(50)]
    store.write([(key, b"") for key in keys])
    for size in (8, 41, 64):
        scan = store.scan(b"D", b"D".ljust(size, b"\xff"))
        others = [bytes(length) for length in range(8, 128) for _ in range(20)]
        assert [key for key, _ in scan] == keys
        assert others


def test_a_scan_shows_the_store_as_of_the_call(store: Store) -> None:
    store.write([(b"a", b"1")])
    before = store.scan(b"", b"z")
    assert list(before) == [(b"a", b"1")]
    store.write([(b"b", b"2")])
    assert list(before) == []
    assert rows(store) == [(b"a", b"1"), (b"b", b"2")]


def test_a_scan_may_be_left_in_the_middle(store: Store) -> None:
    store.write([(bytes((n,)), b"v") for n in range(100)])
    first = next(iter(store.scan(b"\x07", b"\xff")))
    store.write([(b"\x07", None)])
    assert first == (b"\x07", b"v")
    assert next(iter(store.scan(b"\x07", b"\xff")))[0] == b"\x08"


def test_delete_range_keeps_both_neighbours(store: Store) -> None:
    store.write([(key, key) for key in (b"a", b"b", b"b\x00", b"bz", b"c")])
    store.delete_range(b"b", b"c")
    assert [key for key, _ in rows(store)] == [b"a", b"c"]
    store.delete_range(b"c", b"a")
    assert [key for key, _ in rows(store)] == [b"a", b"c"]


def test_a_key_can_be_written_again_after_its_range_was_dropped(store: Store) -> None:
    store.write([(b"b", b"old")])
    store.delete_range(b"a", b"c")
    store.write([(b"b", b"new")])
    assert rows(store) == [(b"b", b"new")]


def test_large_values(store: Store) -> None:
    value = bytes(range(256)) * 8192
    store.write([(b"big", value)])
    assert store.get(b"big") == value


KEYS = st.binary(min_size=1, max_size=3)
BATCHES = st.lists(
    st.one_of(
        st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=8),
        st.tuples(KEYS, KEYS),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=BATCHES)
def test_it_behaves_as_a_sorted_dict(
    store: Store, steps: Sequence[list[Write] | tuple[bytes, bytes]]
) -> None:
    store.delete_range(b"", b"\xff" * 40)
    model: dict[bytes, bytes] = {}
    for step in steps:
        if isinstance(step, tuple):
            store.delete_range(*step)
            model = {key: value for key, value in model.items() if not step[0] <= key < step[1]}
            continue
        store.write(step)
        for key, value in step:
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert rows(store) == sorted(model.items())
    assert rows(store) == sorted(model.items())
    assert [store.get(key) for key in model] == list(model.values())
