"""The wire format: what goes in comes out, and what is not ours is refused with one typed error."""

from __future__ import annotations

from typing import Any

import pytest

from laxity.schemas import limits
from laxity.schemas.avro_schema import schema_text
from laxity.schemas.records import Header, Link, Original, SettleRow, StateRow, Trigger
from laxity.schemas.serde import Codec, Pin, SchemaUnknown, Undecodable, decode_row, encode_row

CODEC = Codec.local()
TRIGGER = Trigger(
    type="invoice.check",
    tenant="acme",
    key="Rechnung № 7 🧾",
    payload=bytes(range(256)),
    deadline_ms=2**53 - 1,
    firm=True,
    value=-(2**63),
    demands={"llm": 2**63 - 1, "account:a": 1},
    depends_on=("a", "run:r:b"),
    headers={"x": "y"},
    max_attempts=2**31 - 1,
)
ORIGINAL = Original(
    topic="t",
    partition=1,
    offset=2**62,
    timestamp_ms=-1,
    key=None,
    value=b"\x00\xff",
    headers=(Header(name="a", value=None), Header(name="a", value=b"")),
)


def refusal(cls: type, data: bytes | None) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        CODEC.decode(cls, data)
    return caught.value


def framed(cls: type, row: bytes) -> bytes:
    return CODEC.frame(cls, row)


@pytest.mark.parametrize(
    "record", [TRIGGER, Link(kind="stray", from_shard=0, original=ORIGINAL), StateRow(table="t", row=b"")]
)
def test_round_trip(record: Any) -> None:
    data = CODEC.encode(record)
    assert data[0] == 0
    assert int.from_bytes(data[1:5], "big") == CODEC.ids()[type(record)]
    assert CODEC.decode(type(record), data) == record
    assert data == CODEC.frame(type(record), encode_row(record))
    assert decode_row(type(record), encode_row(record)) == record


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"\x00", "truncated"),
        (b"\x00\x00\x00\x03", "truncated"),
        (b"\x01\x00\x00\x03\xe9\x00", "not_framed"),
        (b"{}", "not_framed"),
        (b"\x00\x00\x00\x00\x01rest", "schema_unknown"),
        (b"\x00\xff\xff\xff\xffrest", "schema_unknown"),
    ],
)
def test_frames_that_are_not_ours(data: bytes | None, reason: str) -> None:
    assert refusal(Trigger, data).reason == reason


def test_unknown_id_is_a_case_of_its_own() -> None:
    error = refusal(Trigger, b"\x00\x00\x00\x00\x07")
    assert isinstance(error, SchemaUnknown)
    assert error.schema_id == 7


def test_another_record_is_refused_by_its_id() -> None:
    assert refusal(Trigger, CODEC.encode(StateRow(table="t", row=b""))).reason == "wrong_schema"


# SettleRow: used map<long>, unclaimed boolean. StateRow: table string, row bytes. Link: kind, from_shard int, original [null, record].
@pytest.mark.parametrize(
    ("cls", "row", "reason"),
    [
        (StateRow, "", "truncated"),
        (StateRow, "0a6162", "truncated"),  # 5 bytes announced, 2 there
        (StateRow, "0261", "truncated"),
        (StateRow, "01610261", "bad_size"),  # length -1
        (StateRow, "feffffffffffffffff0161", "truncated"),  # length 2**62
        (StateRow, "02ff00", "bad_utf8"),
        (StateRow, "06eda08000", "bad_utf8"),  # a surrogate
        (StateRow, "00000000", "trailing_bytes"),
        (StateRow, "0000" + "00", "trailing_bytes"),
        (SettleRow, "0002", "bad_boolean"),
        (SettleRow, "00ff", "bad_boolean"),
        (SettleRow, "02026102", "truncated"),
        (SettleRow, "0202610200", "truncated"),
        (SettleRow, "020261020202610400" + "01", "duplicate_key"),
        (SettleRow, "fe01026102", "truncated"),  # 127 items in 4 bytes
        (SettleRow, "010802610200" + "01", "bad_size"),  # a block of 3 bytes that says 4
        (SettleRow, "0101026102" + "0001", "bad_size"),  # a negative size
        (SettleRow, "0202618080808080808080808001" + "0001", "bad_number"),  # 10 bytes follow: eleven in all
        (SettleRow, "020261ffffffffffffffffff7f" + "0001", "bad_number"),  # more than 64 bits
        (SettleRow, "020261" + "81" * 19 + "01" + "0001", "bad_number"),
        (Link, "00" + "ffffffff7f" + "00", "bad_number"),  # int of 35 bits
        (Link, "00" + "808080801000", "bad_number"),  # int of 33 bits
        (Link, "0000" + "01", "bad_index"),  # union index -1
        (Link, "0000" + "04", "bad_index"),
        (Link, "0000" + "8200", "bad_index"),
    ],
)
def test_avro_that_the_libraries_let_pass_or_choke_on(cls: type, row: str, reason: str) -> None:
    assert refusal(cls, framed(cls, bytes.fromhex(row))).reason == reason


def test_foreign_block_layouts_are_fine() -> None:
    """Go writes maps in blocks with their size; an empty block list and several blocks are Avro, too."""
    expected = SettleRow(used={"a": 1, "b": -1}, unclaimed=True)
    one_sized = "03" + "0c" + "026102" + "026201" + "00" + "01"
    two_blocks = "02" + "026102" + "02" + "026201" + "00" + "01"
    mixed = "01" + "06" + "026102" + "02" + "026201" + "00" + "01"
    for row in (one_sized, two_blocks, mixed):
        assert decode_row(SettleRow, bytes.fromhex(row)) == expected


def test_extreme_integers_pass() -> None:
    for number in (2**31 - 1, -(2**31)):
        assert decode_row(Link, encode_row(Link(kind="", from_shard=number))).from_shard == number
    for number in (2**63 - 1, -(2**63)):
        assert decode_row(SettleRow, encode_row(SettleRow(used={"a": number}))).used == {"a": number}


def test_a_record_beyond_every_topic_is_not_looked_at() -> None:
    assert refusal(StateRow, framed(StateRow, bytes(limits.RECORD_BYTES_MAX + 1))).reason == "too_large"


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (Link(kind="", from_shard=2**31), OverflowError),
        (Link(kind="", from_shard=-(2**31) - 1), OverflowError),
        (SettleRow(used={"a": 2**63}), OverflowError),
        (StateRow(table="\ud800", row=b""), UnicodeEncodeError),
        (StateRow(table=b"t", row=b""), TypeError),  # type: ignore[arg-type]
        (StateRow(table="t", row="r"), TypeError),  # type: ignore[arg-type]
    ],
)
def test_values_that_avro_cannot_hold_are_not_written(record: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encode_row(record)


def test_no_error_quotes_the_bytes_at_length() -> None:
    secret = b"s" * 10_000
    for data in (
        secret,
        framed(StateRow, secret),
        framed(SettleRow, b"\x04" + b"\x80\x7d" + b"k" * 8000 + b"\x02" + b"\x80\x7d" + b"k" * 8000),
    ):
        for cls in (StateRow, SettleRow):
            assert len(str(refusal(cls, data))) < 200


# Versions

OLD = """{"type":"record","name":"StateRow","namespace":"laxity","fields":[{"name":"row","type":"bytes"},{"name":"gone","type":
{"type":"map","values":"long"},"default":{}},{"name":"table","type":"string"}]}"""


def state_row(more: str) -> str:
    """StateRow with one field more."""
    own = '{"name":"table","type":"string"},{"name":"row","type":"bytes"}'
    return f'{{"type":"record","name":"StateRow","fields":[{own},{more}]}}'


def pins(*more: Pin) -> list[Pin]:
    return [Pin(registry_id=9, record=StateRow, schema=schema_text(StateRow)), *more]


def test_another_version_is_read_by_its_own_schema() -> None:
    """Fields in another order and one that is gone."""
    codec = Codec(pins(Pin(registry_id=8, record=StateRow, schema=OLD)))
    row = bytes.fromhex("0401ff" + "02026b0200" + "047474")
    assert codec.decode(StateRow, b"\0\0\0\0\x08" + row) == StateRow(table="tt", row=b"\x01\xff")
    assert codec.encode(StateRow(table="", row=b""))[:5] == b"\0\0\0\0\x09", "the newest is written"


def test_missing_fields_take_our_defaults() -> None:
    old = '{"type":"record","name":"Trigger","namespace":"laxity","fields":[{"name":"type","type":"string"}]}'
    codec = Codec([Pin(registry_id=1, record=Trigger, schema=old)])
    assert codec.decode(Trigger, b"\0\0\0\0\x01\x02t") == Trigger(type="t")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ('{"type":"record","name":"StateRow","fields":[{"name":"table","type":"string"}]}', "no default"),
        (
            '{"type":"record","name":"StateRow","fields":[{"name":"table","type":"int"},{"name":"row","type":"bytes"}]}',
            "type",
        ),
        ('{"type":"record","name":"Other","fields":[]}', "record name"),
        (
            state_row('{"name":"e","type":{"type":"enum","name":"E","symbols":["A"]},"default":"A"}'),
            "enum",
        ),
        (
            state_row('{"name":"e","type":{"type":"array","items":"null"},"default":[]}'),
            "null",
        ),
    ],
)
def test_versions_that_cannot_be_read_are_refused_when_the_codec_is_made(schema: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Codec(pins(Pin(registry_id=8, record=StateRow, schema=schema)))


def test_an_id_has_one_meaning() -> None:
    with pytest.raises(ValueError, match="9 is pinned twice"):
        Codec(pins(Pin(registry_id=9, record=Trigger, schema=schema_text(Trigger))))


def test_a_deep_schema_is_refused() -> None:
    inner: str = '"string"'
    for _ in range(limits.SCHEMA_DEPTH_MAX + 4):
        inner = f'{{"type":"array","items":{inner}}}'
    schema = state_row(f'{{"name":"deep","type":{inner},"default":[]}}')
    with pytest.raises(ValueError, match="nests deeper"):
        Codec(pins(Pin(registry_id=8, record=StateRow, schema=schema)))
