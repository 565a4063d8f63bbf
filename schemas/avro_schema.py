"""The `.avsc` files: text, parsed form and fingerprint of each record's schema, and the record class of each Avro name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import cache
from importlib import resources
from typing import Any

from fastavro.schema import parse_schema, to_parsing_canonical_form

from laxity.schemas import records

NAMESPACE = "laxity"
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def all_records() -> tuple[type, ...]:
    """Classes that have a schema file of their own, by name."""
    files = resources.files("laxity.schemas.avro").iterdir()
    names = {file.name for file in files if file.name.endswith(".avsc")}
    return tuple(cls for _, cls in sorted(_classes().items()) if file_name(cls) in names)


def file_name(cls: type) -> str:
    """`task_row.avsc` for TaskRow."""
    return _WORD_START.sub("_", cls.__name__).lower() + ".avsc"


def record_class(name: str) -> type:
    """The class that mirrors an Avro record; `name` with or without namespace. KeyError for a stranger."""
    return _classes()[name.removeprefix(f"{NAMESPACE}.")]


@cache
def schema_of(cls: type) -> dict[str, Any]:
    """The schema as it stands in its file."""
    text = resources.files("laxity.schemas.avro").joinpath(file_name(cls)).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def schema_text(cls: type) -> str:
    """What is registered: the file as JSON without spaces, docs included."""
    return json.dumps(schema_of(cls), separators=(",", ":"), ensure_ascii=False)


@cache
def parsed(cls: type) -> Any:
    """For fastavro."""
    return parse_schema(schema_of(cls))


def fingerprint(schema: str) -> str:
    """64 hex digits: SHA-256 of Avro's parsing canonical form and of the defaults, which that form leaves out. Docs do not count."""
    document = json.loads(schema)
    canonical = to_parsing_canonical_form(parse_schema(document))
    defaults = json.dumps(_defaults(document), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{canonical}\n{defaults}".encode()).hexdigest()


def _defaults(node: Any) -> Any:
    """Every field's default by its path; nodes without fields vanish."""
    if isinstance(node, list):
        return [found for part in node if (found := _defaults(part))]
    if not isinstance(node, dict):
        return None
    if "fields" in node:
        return {
            f["name"]: {
                k: v
                for k, v in (("default", f.get("default", ...)), ("type", _defaults(f["type"])))
                if v is not ...
            }
            for f in node["fields"]
        }
    return _defaults(node.get("items", node.get("values", node.get("type"))))


@cache
def _classes() -> dict[str, type]:
    return {n: c for n, c in vars(records).items() if isinstance(c, type) and dataclasses.is_dataclass(c)}
