"""Whatever the bytes, decoding ends in a record or in one typed error; what it accepts, the other implementation reads the same way."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from hostile.fuzz import GROWTH_MIB_MAX, fuzz, peak_mib, same
from hypothesis import given, settings
from hypothesis import strategies as st

from laxity.schemas.avro_schema import all_records, parsed, record_class, schema_of
from laxity.schemas.records import Outcome, TaskRow, Trigger
from laxity.schemas.serde import Codec, Undecodable, decode_row, encode_row

Golden = Callable[[type], dict[str, tuple[Any, bytes]]]
RECORDS = pytest.mark.parametrize("cls", all_records(), ids=lambda cls: cls.__name__)
CODEC = Codec.local()
RUNS = settings(max_examples=30, deadline=None)


def outcome(cls: type, data: bytes) -> Any:
    """The record, or the reason of the refusal. Anything else fails the test."""
    try:
        return decode_row(cls, data)
    except Undecodable as error:
        return error.reason


@RECORDS
def test_cut_at_every_byte(cls: type, golden: Golden) -> None:
    _, avro = golden(cls)["full"]
    for end in range(len(avro)):
        assert outcome(cls, avro[:end]) == "truncated", end
    framed = CODEC.frame(cls, avro)
    for end in range(len(framed)):
        with pytest.raises(Undecodable):
            CODEC.decode(cls, framed[:end])


@RECORDS
def test_anything_after_the_record(cls: type, golden: Golden) -> None:
    for _, avro in golden(cls).values():
        for junk in (b"\0", b"\xff", avro):
            assert outcome(cls, avro + junk) == "trailing_bytes"


@RECORDS
def test_every_flipped_bit(cls: type, golden: Golden) -> None:
    """Accepted or refused; if accepted, read as fastavro reads it."""
    _, avro = golden(cls)["full"]
    accepted = 0
    for position in range(len(avro) * 8):
        data = bytearray(avro)
        data[position // 8] ^= 1 << position % 8
        found = outcome(cls, bytes(data))
        if not isinstance(found, str):
            accepted += 1
            assert same(found, fastavro.schemaless_reader(io.BytesIO(data), parsed(cls), None))
    assert accepted < len(avro) * 8, "some flip breaks it"


@RECORDS
@RUNS
@given(data=st.binary(max_size=400))
def test_random_bytes(cls: type, data: bytes) -> None:
    outcome(cls, data)
    with pytest.raises(Undecodable):
        CODEC.decode(cls, data if data[:5] not in PREFIXES else b"")


PREFIXES = {CODEC.frame(cls, b"") for cls in all_records()}


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=12)), max_size=6))
@pytest.mark.parametrize("cls", [Trigger, Outcome, TaskRow], ids=lambda cls: cls.__name__)
def test_splices(cls: type, parts: list[tuple[int, bytes]], golden: Golden) -> None:
    """Bytes of a good record, replaced here and there: nearer to what hostile or broken writers send than random bytes."""
    _, avro = golden(cls)["full"]
    data = bytearray(avro)
    for position, piece in parts:
        data[position : position + len(piece)] = piece
    found = outcome(cls, bytes(data))
    if not isinstance(found, str):
        assert same(found, fastavro.schemaless_reader(io.BytesIO(bytes(data)), parsed(cls), None))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an Avro type."""
    if isinstance(kind, list):
        return st.none() | values(kind[1])
    if isinstance(kind, str):
        return PLAIN[kind]
    if kind["type"] == "array":
        return st.lists(values(kind["items"]), max_size=3).map(tuple)
    if kind["type"] == "map":
        return st.dictionaries(PLAIN["string"], values(kind["values"]), max_size=3)
    fields = {field["name"]: values(field["type"]) for field in kind["fields"]}
    return st.fixed_dictionaries(fields).map(lambda found: record_class(kind["name"])(**found))


PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    "bytes": st.binary(max_size=300),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
}


@RECORDS
def test_any_record_survives_the_round_trip_and_means_the_same_to_others(cls: type) -> None:
    @settings(max_examples=25, deadline=None)
    @given(record=values(schema_of(cls)))
    def check(record: Any) -> None:
        avro = encode_row(record)
        assert decode_row(cls, avro) == record
        assert CODEC.decode(cls, CODEC.encode(record)) == record
        assert same(record, fastavro.schemaless_reader(io.BytesIO(avro), parsed(cls), None))

    check()


CUT = 20_000  # of the million of `make fuzz`


def test_mutants_of_values_lengths_and_bytes() -> None:
    before_mib = peak_mib()
    report = fuzz(CUT, "2026")
    assert report.failures() == []
    assert report.payloads == CUT
    assert report.accepted > CUT // 5, "near enough to good records to get through now and then"
    assert report.compared > 1_000
    assert len(report.refused) >= 8, "every kind of refusal but those of size"
    assert peak_mib() - before_mib < GROWTH_MIB_MAX
