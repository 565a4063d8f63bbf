"""No change of a schema may strand a reader or a writer: every pair of versions is checked by its topic's mode."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from laxity.schemas.avro_decoder import compile_decoder
from laxity.schemas.avro_schema import all_records, fingerprint, schema_of
from laxity.schemas.records import Trigger
from laxity.schemas.topics import catalogue

History = Callable[[type], list[dict[str, Any]]]
Schema = dict[str, Any]
RECORDS = pytest.mark.parametrize("cls", all_records(), ids=lambda cls: cls.__name__)
MODES = {topic.record: topic.compatibility for topic in catalogue({"default": 1}) if topic.record}


def can_read(reader: Schema, writer: Schema) -> bool:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    verdict = checker.get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    return verdict.compatibility is SchemaCompatibilityType.compatible


def breaks(older: Schema, newer: Schema, mode: str) -> list[str]:
    """What the mode forbids about a step from `older` to `newer`."""
    found = [] if can_read(newer, older) else ["new code cannot read old records"]
    if mode.startswith("FULL") and not can_read(older, newer):
        found.append("old code cannot read new records")
    return found


@RECORDS
def test_all_pairs_of_versions(cls: type, history: History) -> None:
    versions = history(cls)
    mode = MODES.get(cls, "BACKWARD_TRANSITIVE")  # tables of `state` are read by newer code only
    for (i, older), (j, newer) in itertools.combinations(enumerate(versions, start=1), 2):
        assert breaks(older, newer, mode) == [], f"{cls.__name__}: version {i} to {j} under {mode}"
    for number, version in enumerate(versions, start=1):
        assert callable(compile_decoder(version, schema_of(cls), cls)), (
            f"version {number} is read by this release"
        )


@RECORDS
def test_the_schema_in_use_is_the_last_version(cls: type, history: History) -> None:
    last = history(cls)[-1]
    assert fingerprint(json.dumps(last)) == fingerprint(json.dumps(schema_of(cls))), (
        f"{cls.__name__} changed: run python tests/contract/renew.py and look at what it wrote"
    )


# The check itself: changes that must be caught, changes that must pass.


def changed(edit: Callable[[Schema], object]) -> Schema:
    schema = copy.deepcopy(schema_of(Trigger))
    edit(schema)
    return schema


def field(schema: Schema, name: str) -> Schema:
    found: Schema = next(f for f in schema["fields"] if f["name"] == name)
    return found


BAD: dict[str, Callable[[Schema], object]] = {
    "a new field without default": lambda s: s["fields"].append({"name": "x", "type": "string"}),
    "dropping a field without default": lambda s: s["fields"].remove(field(s, "type")),
    "another type": lambda s: field(s, "value").update(type="string", default=""),
    "int to long, which old readers cannot read": lambda s: field(s, "max_attempts").update(type="long"),
    "long to int": lambda s: field(s, "value").update(type="int"),
    "a renamed required field": lambda s: field(s, "type").update(name="kind"),
    "map of other values": lambda s: field(s, "demands").update(type={"type": "map", "values": "string"}),
    "another record name": lambda s: s.update(name="Request"),
    "a new union": lambda s: field(s, "tenant").update(type=["null", "string"], default=None),
}

GOOD: dict[str, Callable[[Schema], object]] = {
    "a new field with default": lambda s: s["fields"].append({"name": "x", "type": "string", "default": ""}),
    "a new optional field": lambda s: s["fields"].append(
        {"name": "x", "type": ["null", "bytes"], "default": None}
    ),
    "dropping a field with default": lambda s: s["fields"].remove(field(s, "workflow")),
    "another doc": lambda s: field(s, "type").update(doc="Something else."),
    "another order": lambda s: s["fields"].reverse(),
}


@pytest.mark.parametrize("name", BAD)
def test_incompatible_changes_are_caught(name: str) -> None:
    assert breaks(schema_of(Trigger), changed(BAD[name]), MODES[Trigger]) != []


@pytest.mark.parametrize("name", GOOD)
def test_compatible_changes_pass(name: str) -> None:
    newer = changed(GOOD[name])
    assert breaks(schema_of(Trigger), newer, MODES[Trigger]) == []
    assert callable(compile_decoder(newer, schema_of(Trigger), Trigger)), (
        "a newer writer is read by this release"
    )


def test_a_changed_default_is_another_version() -> None:
    """Avro's canonical form leaves defaults out; ours may not."""
    newer = changed(lambda s: field(s, "tenant").update(default="nobody"))
    assert fingerprint(json.dumps(newer)) != fingerprint(json.dumps(schema_of(Trigger)))
    doc = changed(GOOD["another doc"])
    assert fingerprint(json.dumps(doc)) == fingerprint(json.dumps(schema_of(Trigger)))


def test_modes_are_those_of_the_contract() -> None:
    full = {cls.__name__ for cls, mode in MODES.items() if mode == "FULL_TRANSITIVE"}
    assert full == {"Trigger", "Schedule", "TaskEvent", "Usage"}
    assert set(MODES.values()) == {"FULL_TRANSITIVE", "BACKWARD_TRANSITIVE"}
