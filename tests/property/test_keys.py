"""Keys: their byte order is the order wanted, and what goes in comes out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.limits import KEYS_KEPT_MS
from laxity.schemas.records import KeyRow
from laxity.schemas.serde import encode_row
from laxity.streams.effects import Change
from laxity.streams.state import keys
from laxity.streams.state.memory import MemoryStore
from laxity.streams.state.tables import Tables

U64 = st.integers(0, 2**64 - 1)
LANES = st.binary(min_size=8, max_size=8)
TIERS = st.integers(0, 4)
DAY_MS = 86_400_000


@settings(deadline=None)
@given(U64, U64)
def test_numbers_keep_their_order(a: int, b: int) -> None:
    assert (keys.u64(a) < keys.u64(b)) == (a < b)
    assert keys.read_u64(b"xx" + keys.u64(a), 2) == a


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_out_of_range_is_a_bug(number: int) -> None:
    with pytest.raises(OverflowError):
        keys.u64(number)


@settings(deadline=None)
@given(st.tuples(LANES, TIERS, U64, U64), st.tuples(LANES, TIERS, U64, U64))
def test_ready_keys_sort_by_lane_tier_urgency_acceptance(
    a: tuple[bytes, int, int, int], b: tuple[bytes, int, int, int]
) -> None:
    assert (keys.ready_key(*a) < keys.ready_key(*b)) == (a < b)
    assert keys.ready_key(*a).startswith(keys.ready_prefix(a[0], a[1]))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30), LANES, TIERS, U64, U64)
def test_a_parked_key_holds_the_ready_key(keyed: str, lane: bytes, tier: int, urgency: int, seq: int) -> None:
    ready = keys.ready_key(lane, tier, urgency, seq)
    parked = keys.parked_key(keyed, ready)
    assert parked.startswith(keys.parked_prefix(keyed))
    assert keys.ready_of_parked(parked) == ready
    assert parked[:1] == keys.PARKED


@settings(deadline=None)
@given(LANES, LANES, TIERS, U64, U64, U64, U64)
def test_parked_tasks_of_a_tier_sort_by_urgency_whatever_their_lane(
    lane: bytes, other: bytes, tier: int, u1: int, s1: int, u2: int, s2: int
) -> None:
    a = keys.parked_key("x:y", keys.ready_key(lane, tier, u1, s1))
    b = keys.parked_key("x:y", keys.ready_key(other, tier, u2, s2))
    if (u1, s1) != (u2, s2):
        assert (a < b) == ((u1, s1) < (u2, s2))


@settings(deadline=None)
@given(U64, U64, st.sampled_from([b"\x01", b"\x02", b"\x03"]), st.text(max_size=20))
def test_timers_sort_by_their_instant(a: int, b: int, kind: bytes, name: str) -> None:
    first, second = keys.timer_key(a, kind, name), keys.timer_key(b, kind, name)
    assert (first < second) == (a < b)
    assert (first[9:10], first[10:].decode()) == (kind, name)


@settings(deadline=None)
@given(
    st.sampled_from([keys.TASK, keys.PAYLOAD, keys.SETTLE, keys.SHARD]),
    st.binary(max_size=40),
    st.none() | st.binary(max_size=9),
)
def test_a_store_key_is_a_change_and_back(table: str, key: bytes, value: bytes | None) -> None:
    change = Change(table=table, key=key, value=value)
    at, written = keys.state_write(change)
    assert keys.change_of(at, written) == change
    assert keys.is_changelogged(at)


@pytest.mark.parametrize(
    "prefix", [keys.READY, keys.LANE, keys.TIMER, keys.LEASED, keys.PARKED, keys.POSITION, keys.HOST]
)
def test_local_rows_are_never_in_a_changelog(prefix: bytes) -> None:
    assert not keys.is_changelogged(prefix + b"x")
    with pytest.raises(ValueError, match="no changelogged table"):
        keys.change_of(prefix + b"x", None)


def test_a_lane_is_what_is_needed_not_how_much_or_for_whom() -> None:
    lane = keys.lane_of("default", {"account:a": 1, "llm": 5})
    assert lane == keys.lane_of("default", {"llm": 9, "account:b": 1}) == ("account", "fleet.default", "llm")
    assert keys.lane_of("gpu", {"llm": 1}) != keys.lane_of("default", {"llm": 1})


ENDED = st.lists(st.tuples(st.integers(0, 40 * DAY_MS), st.sampled_from("abc")), max_size=20)


@settings(deadline=None)
@given(ENDED, st.integers(0, 60 * DAY_MS))
def test_keys_are_remembered_for_their_time_and_no_longer_however_often_they_are_dropped(
    ended: list[tuple[int, str]], now_ms: int
) -> None:
    store = MemoryStore()
    latest: dict[str, int] = {}
    for at_ms, name in sorted(ended):
        found = KeyRow(digest=b"", state="DEAD", reason="", generation=0, dispatch_no=0, ended_ms=at_ms)
        store.write([keys.key_write(Change(table=keys.KEY, key=name.encode(), value=encode_row(found)))])
        latest[name] = at_ms
    for _ in range(2):
        tables = Tables(MemoryStore(), store)
        for name in "abc":
            at_ms = latest.get(name, -KEYS_KEPT_MS)
            remembered = tables.ended(name, now_ms)
            assert (remembered is not None) == (name in latest and at_ms > now_ms - KEYS_KEPT_MS)
            assert remembered is None or remembered.ended_ms == at_ms, (
                "of a redriven task the last end counts"
            )
        keys.drop_expired_keys(store, now_ms)
    days = {b[1:5] for b in keys.key_buckets(store)}
    assert all(int.from_bytes(day, "big") * DAY_MS > now_ms - KEYS_KEPT_MS - DAY_MS for day in days)
