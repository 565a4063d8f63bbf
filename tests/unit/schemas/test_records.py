"""The dataclasses and the .avsc files say the same, field by field."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

import pytest

from laxity.schemas import records
from laxity.schemas.avro_schema import all_records, file_name, record_class, schema_of
from laxity.schemas.serde import decode_row, encode_row

PLAIN = {"string": str, "bytes": bytes, "boolean": bool, "int": int, "long": int}


def all_schemas() -> Iterator[dict[str, Any]]:
    """Every record schema, nested ones included."""
    seen: set[str] = set()
    todo: list[Any] = [schema_of(cls) for cls in all_records()]
    while todo:
        node = todo.pop(0)
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict) and node.get("type") == "record":
            todo += [f["type"] for f in node["fields"]]
            if node["name"] not in seen:
                seen.add(node["name"])
                yield node
        elif isinstance(node, dict):
            todo += [node.get("items"), node.get("values"), node.get("type")]


SCHEMAS = {schema["name"]: schema for schema in all_schemas()}


def annotation(avro: Any) -> Any:
    if isinstance(avro, list):
        assert avro[0] == "null"
        return annotation(avro[1]) | None
    if isinstance(avro, str):
        return PLAIN[avro]
    if avro["type"] == "record":
        return record_class(avro["name"])
    if avro["type"] == "array":
        return Sequence[annotation(avro["items"])]  # type: ignore[misc]
    assert avro["type"] == "map"
    return Mapping[str, annotation(avro["values"])]  # type: ignore[misc]


def default(avro: dict[str, Any]) -> Any:
    value = avro.get("default", dataclasses.MISSING)
    if avro["type"] == "bytes" and isinstance(value, str):
        return value.encode("latin-1")
    return () if value == [] else value


def class_default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def test_every_dataclass_has_a_schema_and_the_reverse() -> None:
    mirrored = {n for n, c in vars(records).items() if isinstance(c, type) and dataclasses.is_dataclass(c)}
    assert mirrored == set(SCHEMAS)
    assert len(all_records()) == 16
    assert all(
        file_name(cls) == re.sub("(?<!^)(?=[A-Z])", "_", cls.__name__).lower() + ".avsc"
        for cls in all_records()
    )


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_fields_agree(name: str) -> None:
    schema, cls = SCHEMAS[name], record_class(name)
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    assert [f.name for f in fields] == [f["name"] for f in schema["fields"]], "names and order"
    for field, avro in zip(fields, schema["fields"], strict=True):
        assert hints[field.name] == annotation(avro["type"]), field.name
        assert class_default(field) == default(avro), f"default of {field.name}"
        assert type(class_default(field)) is type(default(avro)), f"type of the default of {field.name}"


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_records_are_frozen_slotted_and_keyword_only(name: str) -> None:
    cls = record_class(name)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(cls, "__slots__")
    assert all(f.kw_only for f in dataclasses.fields(cls))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_everything_is_documented(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema["doc"].strip()
    assert [f["name"] for f in schema["fields"] if not f.get("doc", "").strip()] == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_only_kinds_that_can_grow(name: str) -> None:
    """No enums, no logical types, no unions but [null, x] with default null or none: see the rules of evolution."""
    for field in SCHEMAS[name]["fields"]:
        kind = field["type"]
        if isinstance(kind, list):
            assert kind[0] == "null"
            assert len(kind) == 2
            assert field.get("default") is None
        elif isinstance(kind, dict):
            assert kind["type"] in {"record", "array", "map"}
            assert "logicalType" not in kind


def test_a_decoded_record_is_a_real_one() -> None:
    """Decoding builds records by a shortcut; nothing may tell them from others."""
    made = records.Trigger(type="t", demands={"llm": 3})
    read = decode_row(records.Trigger, encode_row(made))
    assert type(read) is records.Trigger
    assert read == made
    assert repr(read) == repr(made)
    assert dataclasses.replace(read, tenant="x").tenant == "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.type = "other"  # type: ignore[misc]
