"""Mutants of good records: of their values (everything that a type allows, the edges first), of their lengths, of their bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from random import Random  # noqa: TID251 - the seed is the argument
from typing import Any

from laxity.schemas.avro_schema import record_class, schema_of

LONGS = (0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**53, 2**53 + 1, 2**62, -(2**62), 2**63 - 1, -(2**63))
INTS = (0, 1, -1, 127, 128, 2**31 - 1, -(2**31))
TEXTS = (
    "", "x", "\0", "{}", ":", "../..", "^.*", "__consumer_offsets", "\u202e", "💥", "a\r\nb", "\x1b[2J", "stray", "cancel", "redrive",
    "started", "progress", "succeeded", "failed", "yielded", "unknown", "bounced", "poison", "laxity.triggers.high", "fleet.default", "x" * 600,
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff\xfe", b"{}", bytes(300), b"\0\0\0\3\xe9")
CHANGED_PER_RECORD = 3


def mutated_record(random: Random, record: Any) -> Any:
    """The record with a few fields of any other value of their types."""
    kind: Any = type(record)
    fields = {field["name"]: field["type"] for field in schema_of(kind)["fields"]}
    names = random.sample(sorted(fields), min(len(fields), random.randint(1, CHANGED_PER_RECORD)))
    return dataclasses.replace(record, **{name: any_value(random, fields[name]) for name in names})


def any_value(random: Random, kind: Any) -> Any:
    """A value of an Avro type, rather an awkward one."""
    if isinstance(kind, list):
        return None if random.random() < 0.3 else any_value(random, kind[1])
    if isinstance(kind, str):
        return _PLAIN[kind](random)
    few = range(random.choice((0, 1, 2, 9)))
    if kind["type"] == "array":
        return tuple(any_value(random, kind["items"]) for _ in few)
    if kind["type"] == "map":
        return {f"{_PLAIN['string'](random)}{n}": any_value(random, kind["values"]) for n in few}
    fields = {field["name"]: any_value(random, field["type"]) for field in kind["fields"]}
    return record_class(kind["name"])(**fields)


_PLAIN: Mapping[str, Callable[[Random], Any]] = {
    "string": lambda random: random.choice(TEXTS),
    "bytes": lambda random: random.choice(BYTES),
    "boolean": lambda random: random.random() < 0.5,
    "int": lambda random: random.choice(INTS),
    "long": lambda random: random.choice(LONGS),
}

_NUMBERS: Sequence[bytes] = (
    b"\0", b"\1", b"\2", b"\3", b"\x7f", b"\x80\1", b"\xff\1", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x10", b"\xff" * 9 + b"\1",
    b"\x80" * 9 + b"\1", b"\xfe" + b"\xff" * 8 + b"\1", b"\xff" * 9 + b"\x7f", b"\x81" * 19 + b"\1", b"\x80" * 10, b"\xff" * 40,
)  # fmt: skip


def mutated_bytes(random: Random, data: bytes, other: bytes) -> bytes:
    """Bytes of a good record, changed in one or a few places; `other` is what may be spliced in."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        _CHANGES[random.randrange(len(_CHANGES))](random, out, other)
    return bytes(out)


def _flip(random: Random, out: bytearray, _other: bytes) -> None:
    if out:
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)


def _cut(random: Random, out: bytearray, _other: bytes) -> None:
    del out[random.randrange(len(out) + 1) :]


def _number(random: Random, out: bytearray, _other: bytes) -> None:
    """Where a length, a count or a value may stand."""
    at = random.randrange(len(out) + 1)
    out[at : at + random.randrange(3)] = random.choice(_NUMBERS)


def _drop(random: Random, out: bytearray, _other: bytes) -> None:
    at = random.randrange(len(out) + 1)
    del out[at : at + random.randint(1, 8)]


def _double(random: Random, out: bytearray, _other: bytes) -> None:
    at = random.randrange(len(out) + 1)
    piece = out[at : at + random.randint(1, 64)]
    out[at:at] = piece * random.choice((1, 2, 30))


def _splice(random: Random, out: bytearray, other: bytes) -> None:
    at, start = random.randrange(len(out) + 1), random.randrange(len(other) + 1)
    out[at : at + random.randrange(40)] = other[start : start + random.randrange(40)]


def _noise(random: Random, out: bytearray, _other: bytes) -> None:
    at = random.randrange(len(out) + 1)
    out[at : at + 4] = random.randbytes(random.randrange(9))


_CHANGES = (_flip, _flip, _cut, _number, _number, _drop, _double, _splice, _noise)
