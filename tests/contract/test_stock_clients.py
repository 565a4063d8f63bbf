"""The stock Confluent serialisers read what we write and write what we read (with their in-process registry)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from laxity.schemas.avro_schema import all_records, schema_text
from laxity.schemas.serde import Codec, Pin
from laxity.schemas.topics import written_records

Golden = Callable[[type], dict[str, tuple[Any, bytes]]]
ON_TOPICS = pytest.mark.parametrize(
    "cls", [cls for cls in all_records() if cls in written_records()], ids=lambda cls: cls.__name__
)


@pytest.fixture
def registry() -> SchemaRegistryClient:
    return SchemaRegistryClient.new_client({"url": "mock://contract"})


@ON_TOPICS
def test_stock_reads_ours(cls: type, golden: Golden, registry: SchemaRegistryClient) -> None:
    number = registry.register_schema("t-value", Schema(schema_text(cls), "AVRO"))
    codec = Codec([Pin(registry_id=number, record=cls, schema=schema_text(cls))])
    read = AvroDeserializer(registry)
    for record, _ in golden(cls).values():
        found = read(codec.encode(record), SerializationContext("t", MessageField.VALUE))
        assert found == plain(record)


@ON_TOPICS
def test_we_read_stock(cls: type, golden: Golden, registry: SchemaRegistryClient) -> None:
    write = AvroSerializer(registry, schema_text(cls))
    for record, _ in golden(cls).values():
        data = write(plain(record), SerializationContext("t", MessageField.VALUE))
        assert data is not None
        number = int.from_bytes(data[1:5], "big")
        codec = Codec([Pin(registry_id=number, record=cls, schema=schema_text(cls))])
        assert codec.decode(cls, data) == record
        assert codec.encode(record) == data


def plain(value: Any) -> Any:
    """The dicts and lists that others work with."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def test_tables_have_no_topic_of_their_own() -> None:
    names = {cls.__name__ for cls in set(all_records()) - written_records()}
    assert names == {"TaskRow", "PayloadRow", "SettleRow", "ShardRow"}
