"""Hostile records as data: bytes, values, names, headers and keys, each with the code under which it must be refused, or "" where it is fine.

A test that runs them adds what must follow: the letter holds the same bytes, and the next good trigger is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builders import CODEC, START_MS, trigger

from laxity.schemas import limits
from laxity.schemas.records import Trigger
from laxity.schemas.serde import HEADER_BYTES

Headers = Sequence[tuple[str, bytes | None]]
GOOD = CODEC.encode(trigger("good", payload=b'{"n": 1}'))
FRAME = GOOD[:HEADER_BYTES]


def number(value: int) -> bytes:
    """An Avro int or long."""
    left = value << 1 ^ value >> 63
    out = bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes((*out, left))


def text(value: str | bytes) -> bytes:
    """An Avro string or bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return number(len(raw)) + raw


EMPTY = text("")
_FIELDS: Mapping[str, bytes] = {
    "type": text("work"),
    "tenant": text("default"),
    "run_id": EMPTY,
    "key": text("hostile"),
    "payload": text(b"{}"),
    "content_type": text("application/json"),
    "deadline_ms": number(0),
    "firm": b"\0",
    "not_before_ms": number(0),
    "estimate_ms": number(0),
    "value": number(0),
    "demands": b"\0",
    "depends_on": b"\0",
    "workflow": EMPTY,
    "max_attempts": number(0),
    "on_unknown": EMPTY,
    "headers": b"\0",
}
"""A trigger's fields in Avro, in the order of its schema."""


def raw(**fields: bytes) -> bytes:
    """A framed trigger of which some fields are these bytes."""
    assert fields.keys() <= _FIELDS.keys()
    return FRAME + b"".join({**_FIELDS, **fields}.values())


assert raw() == CODEC.encode(trigger("hostile")), "the fields above are those of the schema"

_FAR = number(2**62)
BYTES: Mapping[str, tuple[bytes | None, str]] = {
    "tombstone": (None, "empty"),
    "0 bytes": (b"", "empty"),
    "1 byte": (b"\0", "truncated"),
    "4 bytes": (FRAME[:4], "truncated"),
    "5 bytes": (FRAME, "truncated"),
    "wrong magic": (b"\1" + GOOD[1:], "not_framed"),
    "text": (b'{"type": "work"}', "not_framed"),
    "unknown schema id": (b"\0\xff\xff\xff\xff" + GOOD[5:], "schema_unknown"),
    "schema id 0": (b"\0\0\0\0\0" + GOOD[5:], "schema_unknown"),
    "schema of another record": (CODEC.frame(type(trigger()), b"")[:1] + b"\0\0\x03\xe9" + GOOD[5:], "wrong_schema"),
    "trailing zero": (GOOD + b"\0", "trailing_bytes"),
    "twice": (GOOD + GOOD, "trailing_bytes"),
    "trailing megabyte": (GOOD + bytes(limits.MIB - len(GOOD) - 1_000), "trailing_bytes"),
    "more than any record": (GOOD + bytes(limits.RECORD_BYTES_MAX), "too_large"),
    # numbers
    "number of 20 bytes": (raw(deadline_ms=b"\x81" * 19 + b"\1"), "bad_number"),
    "number of 11 bytes": (raw(deadline_ms=b"\x80" * 10 + b"\1"), "bad_number"),
    "number of 70 bits": (raw(deadline_ms=b"\xff" * 9 + b"\x7f"), "bad_number"),
    "int beyond 32 bits": (raw(max_attempts=number(2**31)), "bad_number"),
    "int of 64 bits": (raw(max_attempts=_FAR), "bad_number"),
    "boolean 2": (raw(firm=b"\2"), "bad_boolean"),
    "boolean 255": (raw(firm=b"\xff"), "bad_boolean"),
    # texts
    "invalid UTF-8": (raw(type=text(b"w\xff\xfek")), "bad_utf8"),
    "surrogate": (raw(key=text(b"\xed\xa0\x80")), "bad_utf8"),
    "overlong UTF-8": (raw(key=text(b"\xc0\xaf")), "bad_utf8"),
    "half a character at the end": (raw(key=text(b"\xf0\x9f")), "bad_utf8"),
    # lengths
    "length 2^31": (raw(payload=number(2**31)), "truncated"),
    "length 2^62": (raw(payload=_FAR), "truncated"),
    "length 2^63-1": (raw(type=number(2**63 - 1)), "truncated"),
    "length -1": (raw(type=number(-1)), "bad_size"),
    "length -2^63": (raw(payload=number(-(2**63))), "bad_size"),
    # blocks
    "array of 2^31": (raw(depends_on=number(2**31)), "truncated"),
    "array of 2^62": (raw(depends_on=_FAR), "truncated"),
    "array of -2^63 with a size": (raw(depends_on=number(-(2**63)) + number(1)), "truncated"),
    "array of -1 with size 2^62": (raw(depends_on=number(-1) + _FAR + text("a") + b"\0"), "bad_size"),
    "array of -1 with size -1": (raw(depends_on=number(-1) + number(-1) + text("a") + b"\0"), "bad_size"),
    "array that does not end": (raw(depends_on=(number(1) + EMPTY) * 9, workflow=b"")[:-5], "truncated"),
    "array of a million empty texts": (raw(depends_on=number(900_000) + bytes(900_000) + b"\0"), "too_many_items"),
    "a million arrays of one": (raw(depends_on=b"\2\0" * 450_000 + b"\0"), "too_many_items"),
    "map of 2^62": (raw(demands=_FAR), "truncated"),
    "map with one key twice": (raw(demands=number(2) + (text("llm") + number(1)) * 2 + b"\0"), "duplicate_key"),
    "map bomb": (raw(headers=number(200_000) + b"".join(text(b"%05x" % n) + EMPTY for n in range(140_000)) + b"\0"), "too_many_items"),
}  # fmt: skip
"""What a trigger's topic may hold that is no trigger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Fields of a trigger that decodes. `code`: of the problem; empty: it is accepted."""

    code: str
    fields: Mapping[str, Any]


def bad(code: str, **fields: Any) -> Refused:
    return Refused(code=code, fields=fields)


_LONG_AGO, _HORIZON = START_MS - 86_400_000, START_MS + limits.DEADLINE_AHEAD_MS_MAX
VALUES: Mapping[str, Refused] = {
    "deadline 0": bad("", deadline_ms=0),
    "deadline passed": bad("", deadline_ms=_LONG_AGO),
    "deadline 1": bad("", deadline_ms=1),
    "deadline -1": bad("negative", deadline_ms=-1),
    "deadline -2^63": bad("negative", deadline_ms=-(2**63)),
    "deadline at the horizon": bad("", deadline_ms=_HORIZON),
    "deadline beyond the horizon": bad("too_far", deadline_ms=_HORIZON + 10**9),
    "deadline 2^62": bad("too_far", deadline_ms=2**62),
    "deadline 2^63-1": bad("too_far", deadline_ms=2**63 - 1),
    "release 2^62": bad("too_far", not_before_ms=2**62),
    "release -1": bad("negative", not_before_ms=-1),
    "release after the deadline": bad("not_before_after_deadline", deadline_ms=START_MS + 5, not_before_ms=START_MS + 9),
    "cost 0 of a rate": bad("", demands={"llm": 0}),
    "cost 0 of slots": bad("too_small", demands={"browser": 0}),
    "cost -1": bad("negative", demands={"llm": -1}),
    "cost -2^63": bad("negative", demands={"browser": -(2**63)}),
    "cost 2^53": bad("too_large", demands={"llm": 2**53}),
    "cost 2^53+1": bad("too_large", demands={"browser": 2**53 + 1}),
    "cost 2^63-1": bad("too_large", demands={"llm": 2**63 - 1}),
    "cost over capacity": bad("demand_over_capacity", demands={"browser": 3}),
    "unknown resource": bad("unknown_resource", demands={"gpu": 1}),
    "a fleet as a resource": bad("unknown_resource", demands={"fleet.default": 1}),
    "resource with a key that it has not": bad("key_unexpected", demands={"llm:x": 1}),
    "keyed resource without key": bad("key_missing", demands={"account": 1}),
    "keyed resource with an empty key": bad("key_missing", demands={"account:": 1}),
    "resource named NaN": bad("unknown_resource", demands={"NaN": 1}),
    "resource with NUL": bad("unknown_resource", demands={"llm\0": 1}),
    "17 resources": bad("too_many", demands={f"account:{n}": 1 for n in range(17)}),
    "estimate -1": bad("negative", estimate_ms=-1),
    "estimate 2^62": bad("too_large", estimate_ms=2**62),
    "value 2^62": bad("too_large", value=2**62),
    "attempts -1": bad("negative", max_attempts=-1),
    "attempts 101": bad("too_large", max_attempts=101),
    "on_unknown": bad("unknown_choice", on_unknown="drop"),
    "content type of two lines": bad("bad_text", content_type="a\r\nb"),
    "33 headers": bad("too_many", headers={f"h{n}": "" for n in range(33)}),
    "header name of two lines": bad("bad_name", headers={"a\r\nb": "c"}),
    "header of 5 KB": bad("too_long", headers={"a": "b" * 5_000}),
    "1,001 dependencies": bad("too_many", depends_on=tuple(str(n) for n in range(1_001))),
}  # fmt: skip
"""A trigger's values, at START_MS. Costs of NaN, 1e400, 0x10 have no Avro form: they are map<long>."""

LONG = 65_536
NAMES: Mapping[str, tuple[str, bool, bool]] = {
    "one letter": ("x", True, True),
    "512 bytes": ("x" * 512, False, True),
    "513 bytes": ("x" * 513, False, False),
    "64 KiB": ("x" * LONG, False, False),
    "NUL": ("a\0b", False, False),
    "right to left": ("\u202egnp.exe", False, True),
    "emoji": ("💥" * 40, False, True),
    "combining": ("e" + "\u0301" * 60, False, True),
    "braces": ("{}", False, True),
    "hash tag": ("{ledger}", False, True),
    "colon": (":", False, True),
    "joins like another": ("a:b", False, True),
    "path": ("../../etc/passwd", False, True),
    "dots": ("..", False, True),
    "regular expression": ("^.*", False, True),
    "Kafka's own topic": ("__consumer_offsets", True, True),
    "another topic of ours": ("laxity.state", True, True),
    "terminal": ("\x1b[2J\x1b]0;owned\a", False, True),
    "two lines": ('x\n{"level":"INFO"}', False, True),
    "Lua": ('"]] redis.call("FLUSHALL") --', False, True),
    "RESP": ("$1\r\nx\r\n*1\r\n", False, True),
    "format": ("%s%n%x{0.__class__}", False, True),
    "HTML": ("<img onerror=alert(1) src=x>", False, True),
    "not a number": ("NaN", True, True),
    "hexadecimal": ("0x10", True, True),
    "infinite": ("1e400", True, True),
    "minus": ("-1", False, True),
    "blanks": ("   ", False, True),
}  # fmt: skip
"""A text, whether it may be a name (tenant, type, run, workflow), and whether it may be a key."""

_OURS = tuple(
    (f"laxity.error.{name}", b"forged") for name in ("reason", "topic", "offset", "attempts", "history")
)
HEADERS: Mapping[str, tuple[Headers, str]] = {
    "none": ((), ""),
    "null and empty": ((("n", None), ("e", b""), ("", b"x"), ("", None)), ""),
    "every byte": ((("b", bytes(range(256))),), ""),
    "two lines": ((("a\r\nb", b"c\r\nd: e"),), ""),
    "one name twice": ((("a", b"1"), ("a", b"2")), ""),
    "ours forged": (_OURS, ""),
    "ours forged twice": (_OURS + _OURS, ""),
    "128 of them": (tuple((f"h{n}", b"") for n in range(limits.RECORD_HEADERS_MAX)), ""),
    "129 of them": (tuple((f"h{n}", b"") for n in range(limits.RECORD_HEADERS_MAX + 1)), "too_many"),
    "10,000 of them": (tuple((f"h{n}", b"v") for n in range(10_000)), "too_many"),
    "as large as may be": ((("h", bytes(limits.RECORD_HEADERS_BYTES_MAX - 1)),), ""),
    "one byte more": ((("h", bytes(limits.RECORD_HEADERS_BYTES_MAX)),), "too_large"),
    "a megabyte": ((("h", bytes(1_000_000)),), "too_large"),
    "a name of a megabyte": ((("h" * 1_000_000, None),), "too_large"),
}  # fmt: skip

KEYS: Mapping[str, bytes | None] = {
    "null": None,
    "empty": b"",
    "not the run id": b"another",
    "not UTF-8": b"\xff\xfe",
    "NUL": b"\0",
    "a megabyte": b"k" * 1_000_000,
}
"""Record keys: a trigger's place follows from what is in it, so none of them does harm."""


def largest() -> Trigger:
    """Payload and texts together are as large as a trigger may be."""
    bare = trigger("largest", payload=b"")
    texts = (bare.type, bare.tenant, bare.key, bare.content_type)
    return trigger("largest", payload=bytes(limits.TRIGGER_BYTES_MAX - sum(map(len, texts))))
