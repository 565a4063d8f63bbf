"""Bytes that were once written must be written and read the same way for ever."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import fastavro
import pytest

from laxity.schemas.avro_schema import all_records, parsed, schema_of
from laxity.schemas.serde import Codec, decode_row, encode_row

Golden = Callable[[type], dict[str, tuple[Any, bytes]]]
RECORDS = pytest.mark.parametrize("cls", all_records(), ids=lambda cls: cls.__name__)


@RECORDS
def test_encoding_is_golden(cls: type, golden: Golden) -> None:
    for name, (record, avro) in golden(cls).items():
        assert encode_row(record).hex() == avro.hex(), name


@RECORDS
def test_decoding_is_golden(cls: type, golden: Golden) -> None:
    for name, (record, avro) in golden(cls).items():
        assert decode_row(cls, avro) == record, name


@RECORDS
def test_the_full_example_leaves_no_field_at_its_default(cls: type, golden: Golden) -> None:
    record, _ = golden(cls)["full"]
    for field in schema_of(cls)["fields"]:
        if "default" in field:
            value = getattr(record, field["name"])
            assert value not in (field["default"], b"", (), {}), field["name"]


@RECORDS
def test_another_implementation_reads_them(cls: type, golden: Golden) -> None:
    for record, avro in golden(cls).values():
        read = fastavro.schemaless_reader(io.BytesIO(avro), parsed(cls), None)
        assert isinstance(read, dict)
        assert list(read) == [field["name"] for field in schema_of(cls)["fields"]]
        assert all(read[f] == getattr(record, f) for f in read if isinstance(read[f], str | int | bytes))


def test_the_frame_is_golden() -> None:
    codec = Codec.local()
    assert {cls.__name__: number for cls, number in codec.ids().items()} == {
        cls.__name__: 1_001 + index for index, cls in enumerate(all_records())
    }
    cls = all_records()[0]
    assert codec.frame(cls, b"row").hex() == "00" + "000003e9" + b"row".hex()
