"""Avro bytes -> records, strictly: a schema is compiled once into Python that reads its fields in a row and builds the record.

Own code, because the libraries at hand read leniently (negative union indexes, over-long varints, ints beyond 32 bits, bytes left over), which
would make poison look like data, and because one pass without an intermediate dict halves the cost of the hottest rows. A property test holds
it to fastavro. A writer's schema may be an older or newer version of ours: missing fields take their defaults, unknown ones are read and dropped.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from laxity.schemas import limits
from laxity.schemas.avro_schema import record_class

Decode = Callable[[bytes], Any]

_INT_BITS, _LONG_BITS = 32, 64
_LONG_BYTES_MAX = 10


class Malformed(Exception):  # noqa: N818 - it is a fact about the bytes
    """Not Avro of that schema, or more than we take.

    `reason` is one of truncated, trailing_bytes, bad_number, bad_index, bad_size, bad_boolean, duplicate_key,
    too_many_items.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def compile_decoder(writer: dict[str, Any], reader: dict[str, Any], cls: type) -> Decode:
    """A function from bytes to `cls`. ValueError if the writer's schema cannot be read as the reader's, or is out of our limits.

    The function raises Malformed, IndexError (truncated) and UnicodeDecodeError, nothing else.
    """
    source = _Source()
    name = source.record(writer, reader, cls, depth=1)
    source.lines += [
        "def decode(b):",
        "    n = len(b)",
        f"    value, i = {name}(b, 0, n)",
        "    if i != n: bad('trailing_bytes', f'{n - i} bytes after the record')",
        "    return value",
    ]
    names = source.names | {"bad": _bad, "varint": _varint}
    exec(compile("\n".join(source.lines), f"<avro {cls.__name__}>", "exec"), names)  # noqa: S102 - our own text
    decode: Decode = names["decode"]
    return decode


def _bad(reason: str, detail: str) -> NoReturn:
    raise Malformed(reason, detail)


def _varint(b: bytes, i: int, first: int) -> tuple[int, int]:
    """The rest of an unsigned varint whose first byte had its high bit set: (value, next position)."""
    value, shift = first & 127, 7
    while True:
        byte = b[i]
        i += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift >= 7 * _LONG_BYTES_MAX:
            _bad("bad_number", f"a number of more than {_LONG_BYTES_MAX} bytes ends at {i}")
    if value >> _LONG_BITS:
        _bad("bad_number", f"a number of more than {_LONG_BITS} bits ends at {i}")
    return value, i


class _Source:
    """The Python text of one decoder and the names it uses."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self._count = itertools.count()

    def record(self, writer: dict[str, Any], reader: dict[str, Any], cls: type, depth: int) -> str:
        """Adds a function (b, i, n) -> (record, i); returns its name."""
        _same("record name", writer["name"].rpartition(".")[2], reader["name"])
        if not writer["fields"]:
            raise ValueError(
                f"record {writer['name']!r} has no fields: items of no bytes could be any number"
            )
        name = f"read_{cls.__name__}_{next(self._count)}"
        wanted = {f["name"]: f for f in reader["fields"]}
        variables = {field: f"v{k}" for k, field in enumerate(wanted)}
        body: list[str] = []
        for field in writer["fields"]:
            mine = wanted.get(field["name"])
            target = variables[field["name"]] if mine else "_"
            body += self.value(field["type"], mine["type"] if mine else field["type"], target, depth)
        present = {f["name"] for f in writer["fields"]}
        body += [
            line
            for field in wanted
            if field not in present
            for line in self._default(wanted[field], variables[field])
        ]
        self._build(name, cls, list(wanted), variables, body)
        return name

    def _build(
        self, name: str, cls: type, fields: list[str], variables: dict[str, str], body: list[str]
    ) -> None:
        """A frozen record is built as its mutable twin of the same layout: a third of the cost of its own __init__."""
        twin = dataclasses.make_dataclass(
            f"{cls.__name__}Draft", [f.name for f in dataclasses.fields(cls)], slots=True
        )
        self.names |= {f"twin_{name}": twin, f"class_{name}": cls}
        arguments = ", ".join(f"{field}={variables[field]}" for field in fields)
        self.lines += [
            f"def {name}(b, i, n):",
            *(f"    {line}" for line in body),
            f"    value = twin_{name}({arguments})",
            f"    value.__class__ = class_{name}",
            "    return value, i",
        ]

    def _default(self, field: dict[str, Any], target: str) -> list[str]:
        if "default" not in field:
            raise ValueError(f"field {field['name']!r} is missing in the writer's schema and has no default")
        default = field["default"]
        if isinstance(default, dict):
            return [f"{target} = {{}}"] if not default else _refuse_default(field)
        if isinstance(default, list):
            return [f"{target} = ()"] if not default else _refuse_default(field)
        return [f"{target} = {default.encode('latin-1') if field['type'] == 'bytes' else default!r}"]

    def value(self, writer: Any, reader: Any, target: str, depth: int) -> list[str]:
        """Lines that read one value into `target`."""
        if depth > limits.SCHEMA_DEPTH_MAX:
            raise ValueError(f"schema nests deeper than {limits.SCHEMA_DEPTH_MAX}")
        if isinstance(writer, list):
            return self._optional(writer, reader, target, depth)
        kind, mine = (t["type"] if isinstance(t, dict) else t for t in (writer, reader))
        if (kind, mine) != ("int", "long"):
            _same("type", kind, mine)
        match kind:
            case "string" | "bytes":
                return [*_unsigned("a length"), *_CUT, f"{target} = {_TEXT[kind]}", "i = j"]
            case "int" | "long":
                return [*_NUMBER, f"{target} = (x >> 1) ^ -(x & 1)", *(_INT_RANGE if kind == "int" else [])]
            case "boolean":
                return [
                    "x = b[i]; i += 1",
                    "if x > 1: bad('bad_boolean', f'{x} at {i - 1}')",
                    f"{target} = x == 1",
                ]
            case "array" | "map":
                return self._blocks(kind, writer, reader, target, depth)
            case "record":
                return [f"{target}, i = {self._nested(writer, reader, depth)}(b, i, n)"]
        raise ValueError(f"type {kind!r} is not one of ours")

    def _nested(self, writer: dict[str, Any], reader: dict[str, Any], depth: int) -> str:
        return self.record(writer, reader, record_class(reader["name"]), depth + 1)

    def _optional(self, writer: Sequence[Any], reader: Any, target: str, depth: int) -> list[str]:
        if (
            len(writer) != 2
            or writer[0] != "null"
            or not isinstance(reader, list)
            or len(reader) != 2
            or reader[0] != "null"
        ):
            raise ValueError(f"union {writer!r} is not [null, type] on both sides")
        lines = self.value(writer[1], reader[1], target, depth + 1)
        return [
            "x = b[i]; i += 1",
            f"if x == 0: {target} = None",
            "elif x == 2:",
            *(f"    {line}" for line in lines),
            "else: bad('bad_index', f'{x} at {i - 1}: neither null nor the value')",
        ]

    def _blocks(
        self, kind: str, writer: dict[str, Any], reader: dict[str, Any], target: str, depth: int
    ) -> list[str]:
        """Arrays become tuples, maps dicts. The empty one, the usual case, costs one comparison."""
        name = f"read_{kind}_{next(self._count)}"
        item_key = "items" if kind == "array" else "values"
        item = self.value(writer[item_key], reader[item_key], "item", depth + 1)
        key = [*_unsigned("a length"), *_CUT, f"key = {_TEXT['string']}", "i = j"] if kind == "map" else []
        store = ["out.append(item)"] if kind == "array" else [*_ONCE, "out[key] = item"]
        self.lines += [
            f"def {name}(b, i, n):",
            f"    out = {'[]' if kind == 'array' else '{}'}",
            "    while True:",
            *(f"        {line}" for line in (*_NUMBER, *_BLOCK)),
            "        for _ in range(count):",
            *(f"            {line}" for line in (*key, *item, *store)),
            "        if size >= 0 and i != start + size: bad('bad_size', f'block of {i - start} bytes says {size}')",
            f"    return {'tuple(out)' if kind == 'array' else 'out'}, i",
        ]
        empty = "()" if kind == "array" else "{}"
        return [f"if b[i] == 0: {target} = {empty}; i += 1", f"else: {target}, i = {name}(b, i, n)"]


_NUMBER = ("x = b[i]; i += 1", "if x > 127: x, i = varint(b, i, x)")
_CUT = ("j = i + (x >> 1)", "if j > n: bad('truncated', f'{x >> 1} bytes at {i}, {n - i} left')")
_TEXT = {"string": "str(b[i:j], 'utf-8')", "bytes": "b[i:j]"}
_ONCE = ("if key in out: bad('duplicate_key', repr(key[:64]))",)
_INT_RANGE = (
    f"if x >> {_INT_BITS}: bad('bad_number', f'an int of more than {_INT_BITS} bits ends at {{i}}')",
)
_BLOCK = (
    "if x == 0: break",
    "count = (x >> 1) ^ -(x & 1)",
    "size = -1",
    "if count < 0:",
    "    count = -count",
    "    x = b[i]; i += 1",
    "    if x > 127: x, i = varint(b, i, x)",
    "    if x & 1: bad('bad_size', f'negative block at {i}')",
    "    size = x >> 1",
    "if count > n - i: bad('truncated', f'{count} items at {i}, {n - i} bytes left')",  # each takes a byte or more
    f"if len(out) + count > {limits.ITEMS_MAX}: bad('too_many_items', f'{{len(out) + count}} at {{i}}, limit {limits.ITEMS_MAX}')",
    "start = i",
)


def _unsigned(what: str) -> tuple[str, ...]:
    return (*_NUMBER, f"if x & 1: bad('bad_size', f'{what} below 0 ends at {{i}}')")


def _same(what: str, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise ValueError(f"{what} {theirs!r} of the writer is {ours!r} of the reader")


def _refuse_default(field: dict[str, Any]) -> NoReturn:
    raise ValueError(f"field {field['name']!r}: the default of an array or a map must be empty")
