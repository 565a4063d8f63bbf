"""Golden examples and the history of every schema, as data files that other languages can use, too.

golden/RECORD.json: {"minimal" | "full": {"values": {...}, "avro": hex}}; bytes are hex texts in `values`.
history/RECORD/N.avsc: every published version, from 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laxity.schemas.avro_schema import file_name, record_class, schema_of

HERE = Path(__file__).parent


def build(kind: Any, value: Any) -> Any:
    """A record or value from its JSON form."""
    if isinstance(kind, list):
        return None if value is None else build(kind[1], value)
    if kind == "bytes":
        return bytes.fromhex(value)
    if not isinstance(kind, dict):
        return value
    if kind["type"] == "array":
        return tuple(build(kind["items"], item) for item in value)
    if kind["type"] == "map":
        return {key: build(kind["values"], item) for key, item in value.items()}
    types = {field["name"]: field["type"] for field in kind["fields"]}
    return record_class(kind["name"])(**{name: build(types[name], item) for name, item in value.items()})


@pytest.fixture(scope="session")
def golden() -> Callable[[type], dict[str, tuple[Any, bytes]]]:
    """Of a record class: name of the example -> (record, Avro)."""

    def of(cls: type) -> dict[str, tuple[Any, bytes]]:
        path = HERE / "golden" / file_name(cls).replace(".avsc", ".json")
        examples = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: (build(schema_of(cls), example["values"]), bytes.fromhex(example["avro"]))
            for name, example in examples.items()
        }

    return of


@pytest.fixture(scope="session")
def history() -> Callable[[type], list[dict[str, Any]]]:
    """Of a record class: all its versions, oldest first."""

    def of(cls: type) -> list[dict[str, Any]]:
        folder = HERE / "history" / file_name(cls).removesuffix(".avsc")
        files = sorted(folder.glob("*.avsc"), key=lambda path: int(path.stem))
        assert [int(path.stem) for path in files] == list(range(1, len(files) + 1)), f"{folder}: 1, 2, 3 …"
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]

    return of
