"""Ids are functions of business values, collide only for equal values, and place a run as every Kafka client does."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laxity.schemas import identity as i

TEXTS = st.text(max_size=30)

# Hashes that Java's client computes (org.apache.kafka.common.utils.Utils.murmur2), signed.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("data", JAVA)
def test_murmur2_is_java_s(data: bytes) -> None:
    assert i.murmur2(data) == JAVA[data] & 0x7FFFFFFF


@given(st.binary(max_size=200))
def test_murmur2_is_a_positive_int(data: bytes) -> None:
    assert 0 <= i.murmur2(data) <= 0x7FFFFFFF


@given(st.text(max_size=60), st.integers(1, 64))
def test_a_shard_is_one_of_them(run_id: str, shards: int) -> None:
    assert 0 <= i.shard_of(run_id, shards) < shards


@given(st.lists(TEXTS, max_size=5), st.lists(TEXTS, max_size=5))
def test_digests_meet_only_for_equal_fields(a: list[str], b: list[str]) -> None:
    assert (i.digest_of(*a) == i.digest_of(*b)) == (a == b)


def test_digest_is_what_the_contract_says() -> None:
    framed = b"\0\0\0\x03a:b" + b"\0\0\0\x02\xc3\xa9"
    assert i.digest_of("a:b", "é") == hashlib.sha256(framed).hexdigest()[:32]
    assert i.digest_of("a:b", "c") != i.digest_of("a", "b:c")


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_ids_depend_on_every_part(tenant: str, run: str, key: str, other: str) -> None:
    task = i.task_id_of(tenant, run, key)
    assert task == i.task_id_of(tenant, run, key)
    assert len(task) == 32
    if other != key:
        assert task != i.task_id_of(tenant, run, other)
    if other != tenant:
        assert task != i.task_id_of(other, run, key)
    if other != run:
        assert task != i.task_id_of(tenant, other, key)


@given(TEXTS, TEXTS, TEXTS)
def test_one_business_key_meets_one_shard(tenant: str, run: str, key: str) -> None:
    assert i.run_id_of(tenant, run, key) == (run or i.digest_of(tenant, key))
    assert i.run_id_of(tenant, "", key) == i.run_id_of(tenant, "", key)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 2**45), st.integers(1, 10**9))
def test_windows_are_of_the_event(business: list[str], event_ms: int, window_ms: int) -> None:
    def key(at_ms: int, width_ms: int = window_ms) -> str:
        return i.idempotency_key("t", "x", business, at_ms, width_ms)

    start = event_ms - event_ms % window_ms
    assert len(key(event_ms)) == 64
    assert key(start) == key(event_ms) == key(start + window_ms - 1)
    assert key(start + window_ms) != key(event_ms)
    assert key(event_ms, 0) == key(event_ms + 1, 0), "without a window the time does not count"
    assert key(event_ms, 0) != key(event_ms)


@given(st.binary(max_size=50), st.binary(max_size=50), TEXTS, TEXTS)
def test_payload_digests(a: bytes, b: bytes, x: str, y: str) -> None:
    assert (i.payload_digest(x, a) == i.payload_digest(y, b)) == ((x, a) == (y, b))


def test_the_provider_s_key_survives_attempts_and_changes_by_generation() -> None:
    first = i.effect_key("t", "task", 0, "step")
    assert first == i.effect_key("t", "task", 0, "step")
    assert len({first, i.effect_key("t", "task", 1, "step"), i.effect_key("t", "task", 0, "other")}) == 3
    assert i.reservation_id("task", 1, 7) == "task:1:7"
    assert i.positional_key("laxity.triggers.low", 3, 9) == "laxity.triggers.low/3/9"
