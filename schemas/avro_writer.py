"""Records -> the dicts that fastavro writes: one dict display per record class, compiled once (dataclasses.asdict costs ten times as much)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from laxity.schemas import limits

Convert = Callable[[Any], dict[str, Any]]


def compile_converter(schema: dict[str, Any], cls: type) -> Convert:
    """A function from the record to its dict. It raises OverflowError for an Avro int beyond 32 bits, which fastavro would write."""
    lines: list[str] = []
    _record(schema, lines)
    names: dict[str, Any] = {"bad": _bad}
    exec(compile("\n".join(lines), f"<dict of {cls.__name__}>", "exec"), names)  # noqa: S102 - our own text
    convert: Convert = names[f"dict_{schema['name']}"]
    return convert


def _bad(record: Any, names: list[str]) -> NoReturn:
    values = ", ".join(f"{name}={getattr(record, name)}" for name in names)
    raise OverflowError(f"{type(record).__name__}: an int beyond 32 bits among {values}")


def _record(schema: dict[str, Any], lines: list[str]) -> str:
    pairs = [
        f"{field['name']!r}: {_value(field['type'], 'o.' + field['name'], lines)}"
        for field in schema["fields"]
    ]
    ints = [field["name"] for field in schema["fields"] if field["type"] == "int"]
    in_range = " and ".join(f"-{limits.INT_MAX + 1} <= o.{name} <= {limits.INT_MAX}" for name in ints)
    name = f"dict_{schema['name']}"
    lines += [
        f"def {name}(o):",
        *([f"    if not ({in_range}): bad(o, {ints!r})"] if ints else []),
        f"    return {{{', '.join(pairs)}}}",
    ]
    return name


def _value(kind: Any, source: str, lines: list[str]) -> str:
    """An expression for the value; plain types pass through."""
    if isinstance(kind, list):
        inner = _value(kind[1], source, lines)
        return source if inner == source else f"None if {source} is None else {inner}"
    if not isinstance(kind, dict):
        return source
    if kind["type"] == "record":
        return f"{_record(kind, lines)}({source})"
    if kind["type"] == "array":
        inner = _value(kind["items"], "item", lines)
        return source if inner == "item" else f"[{inner} for item in {source}]"
    return source
